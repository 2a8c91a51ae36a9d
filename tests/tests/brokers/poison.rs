//! Messages that fail at every attempt.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use oncekey::Engine;
use oncekey::consumer::{Call, Message, Processed, Processor, RetryPolicy, Source, job};
use oncekey_backends::MemoryBackend;
use tests::broker::{Broker, Letter};
use tokio::sync::Notify;

const OTHERS: usize = 200;

/// Two processors, one after the other, share the count of failures, because the broker keeps it.
pub(crate) async fn reaches_the_dead_letters(broker: impl Broker) {
    let poison = ["poison-1", "poison-2"].map(|id| Message::new(id, "poison"));
    let unreadable = Message::new("unreadable", "unreadable");
    let others = (0..OTHERS).map(|number| Message::new(number.to_string(), "mail"));
    let all: Vec<Message> = poison.into_iter().chain([unreadable]).chain(others).collect();
    broker.publish(&all).await;

    let engine = Engine::builder(MemoryBackend::new()).start().unwrap();
    let tried = Arc::new(AtomicUsize::new(0));
    // The first processor ends when each poison message has failed once and all others are done.
    let first = consume_once(&broker, &engine, &tried, 2, OTHERS).await;
    assert_eq!((first.ran, first.dead), (OTHERS as u64, 1), "{first:?}");
    // The second one has two attempts left for each.
    let second = consume_once(&broker, &engine, &tried, 6, 0).await;
    assert_eq!((second.ran, second.dead, tried.load(Ordering::SeqCst)), (0, 2, 6), "{second:?}");

    let mut dead = broker.dead().await;
    dead.sort_by(|one, other| one.id.cmp(&other.id));
    let letter = |id: &str, error: &str| Letter { id: id.to_owned(), error: error.to_owned() };
    let no_key = "no key can be read from the message: it is unreadable";
    let expected = [letter("poison-1", "no route for poison-1"), letter("poison-2", "no route for poison-2")];
    assert_eq!(dead, [&expected[..], &[letter("unreadable", no_key)]].concat());
    assert_eq!(broker.left().await, 0);
}

/// Consumes until the poison messages have had `tries` attempts in all, and this processor has done `others` messages.
async fn consume_once(
    broker: &impl Broker,
    engine: &Engine,
    tried: &Arc<AtomicUsize>,
    tries: usize,
    others: usize,
) -> Processed {
    consume(broker.source().await, broker, engine, tried, tries, others).await
}

async fn consume(
    source: impl Source<Message = Message>,
    broker: &impl Broker,
    engine: &Engine,
    tried: &Arc<AtomicUsize>,
    tries: usize,
    others: usize,
) -> Processed {
    let (done, changed) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let mail = {
        let (tried, done, changed) = (tried.clone(), done.clone(), changed.clone());
        job(
            |message: &Message| match message.id() {
                "unreadable" => Err("it is unreadable".into()),
                _ => Ok(message.identity("mail")?),
            },
            move |call: Call, message: Arc<Message>| {
                let (tried, done, changed) = (tried.clone(), done.clone(), changed.clone());
                async move {
                    call.run(move |_| async move {
                        let is_poison = message.payload() == "poison";
                        if is_poison { &tried } else { &done }.fetch_add(1, Ordering::SeqCst);
                        changed.notify_one();
                        if is_poison { Err(format!("no route for {}", message.id())) } else { Ok(()) }
                    })
                    .await
                }
            },
        )
    };
    let retry = RetryPolicy {
        max_attempts: 3,
        first_delay: Duration::from_millis(1_500),
        max_delay: Duration::from_millis(1_500),
        ..RetryPolicy::default()
    };
    let until = async {
        while tried.load(Ordering::SeqCst) < tries || done.load(Ordering::SeqCst) < others {
            changed.notified().await;
        }
        // After its last attempt, a poison message is a dead letter.
        while tries == 6 && broker.dead().await.len() < 3 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    Processor::new(engine.clone(), source, mail).concurrency(4).retry(retry).run(until).await
}
