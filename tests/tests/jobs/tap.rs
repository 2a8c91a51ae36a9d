//! The engine's events as a channel, and consumers inside one program that share an engine.

use std::sync::Arc;
use std::time::Duration;

use oncekey::consumer::{Call, MessageKey, Processor, RetryPolicy, event_channel, in_process, job};
use oncekey::{Engine, EventKind, Key, OnAbandoned};
use oncekey_backends::MemoryBackend;

#[actix_rt::test]
async fn j01_the_tap_tells_what_the_engine_did() {
    let (observer, tap) = event_channel(100);
    let backend = MemoryBackend::new();
    let engine = Engine::builder(backend.clone()).observer(observer).start().unwrap();
    let key = Key::new("mail", 17).unwrap();
    let run = async |asked: &str| {
        let _ = engine.run(key.clone(), asked.as_bytes(), |_| async { Ok::<u32, ()>(1) }).await;
    };
    run("a").await;
    run("a").await;
    run("b").await;
    // A claim that another process left behind.
    let other =
        Engine::builder(backend).lease(Duration::from_millis(50)).on_abandoned(OnAbandoned::Rerun).start().unwrap();
    let left = Key::new("mail", 18).unwrap();
    std::thread::spawn({
        let left = left.clone();
        move || {
            actix_rt::System::new().block_on(async move {
                let running = other.run_local(left, b"a", |_| std::future::pending::<Result<u32, ()>>());
                let _ = tokio::time::timeout(Duration::from_millis(100), running).await;
            });
        }
    })
    .join()
    .unwrap();
    let patient = engine.with_wait(Duration::from_secs(10));
    patient.run(left, b"a", |_| async { Ok::<u32, ()>(1) }).await.unwrap();

    let kinds: Vec<EventKind> = tap.events().try_iter().map(|event| event.kind).collect();
    for kind in [EventKind::Miss, EventKind::Completed, EventKind::Hit, EventKind::Mismatch, EventKind::Takeover] {
        assert!(kinds.contains(&kind), "{kind:?} is not among {kinds:?}");
    }
    assert_eq!(tap.dropped(), 0);
}

#[actix_rt::test]
async fn j04_a_full_tap_drops_and_counts_and_holds_up_nobody() {
    let (observer, tap) = event_channel(5);
    let engine = Engine::builder(MemoryBackend::new()).observer(observer).start().unwrap();
    for number in 0..10 {
        engine.run(Key::new("mail", number).unwrap(), b"", |_| async { Ok::<u32, ()>(1) }).await.unwrap();
    }
    // Each call is a miss and a completion.
    assert_eq!((tap.events().len(), tap.dropped()), (5, 15));
}

/// Consumers of one program share the engine through its handle. An outcome of one is replayed to the other.
#[actix_rt::test]
async fn j04_two_consumers_of_one_program_share_the_engine() {
    let engine = Engine::builder(MemoryBackend::new()).start().unwrap();
    let consumer = |events: in_process::InProcess<u64>| {
        let mail = job(
            |order: &u64| Ok(MessageKey::new(Key::new("mail", order)?, order)?),
            |call: Call, order: Arc<u64>| async move { call.run(move |_| async move { Ok::<u64, String>(*order) }).await },
        );
        let quick = RetryPolicy { in_flight_delay: Duration::from_millis(2), ..RetryPolicy::default() };
        Processor::new(engine.clone(), events, mail).retry(quick).run(std::future::pending())
    };
    let ((one, first), (other, second)) = (in_process::channel(10), in_process::channel(10));
    let publishing = async move {
        for order in 0..500 {
            one.send(order).await.unwrap();
            other.send(order).await.unwrap();
        }
    };
    let (first, second, ()) = futures_util::future::join3(consumer(first), consumer(second), publishing).await;
    assert_eq!((first.ran + second.ran, first.replayed + second.replayed), (500, 500));
}
