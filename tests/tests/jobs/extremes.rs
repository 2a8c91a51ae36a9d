//! Settings at the limits of their types: `Duration::MAX` means never, and `usize::MAX` means unlimited.

use std::sync::Arc;
use std::time::Duration;

use oncekey::consumer::{
    BlockingProcessor, Disposition, OnIndeterminate, Processor, RetryPolicy, Source as _, blocking_job,
    crossbeam_channel, in_process,
};
use oncekey::{Engine, OnAbandoned};
use oncekey_backends::MemoryBackend;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::tasks::{Ledger, Task, all_of, engine, identify, queue, task, work};

const PATIENCE: Duration = Duration::from_secs(60);

fn endless() -> RetryPolicy {
    RetryPolicy {
        max_attempts: u32::MAX,
        first_delay: Duration::MAX,
        max_delay: Duration::MAX,
        in_flight_delay: Duration::MAX,
        store_away_delay: Duration::MAX,
        on_indeterminate: OnIndeterminate::RetryLater(Duration::MAX),
    }
}

#[actix_rt::test]
async fn j05_a_processor_without_limits_drains_and_gives_back_what_it_would_retry_for_ever() {
    for is_ordered in [false, true] {
        let ledger = Ledger::default();
        let (publisher, source) = in_process::channel(usize::MAX);
        let (source, _dead) = source.with_dead_letters(usize::MAX);
        all_of([task(0, "poison"), task(1, "panic"), task(2, "work")], publisher).await;
        let engine = Engine::builder(MemoryBackend::new()).on_abandoned(OnAbandoned::Hold).start().unwrap();
        let processor = Processor::new(engine, source, work(&ledger))
            .concurrency(usize::MAX)
            .in_hand(usize::MAX)
            .retry(endless())
            .drain_limit(Duration::MAX);
        let processor = if is_ordered { processor.in_order_by(|task: &Task| task.number) } else { processor };
        let until = async {
            while (0..3).any(|number| ledger.of(number) == 0) {
                tokio::task::yield_now().await;
            }
            // Failed messages are delayed by now.
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let running = timeout(PATIENCE, processor.run_and_return(until));
        let (source, processed) = running.await.expect("the drain ends");
        assert_eq!((processed.ran, processed.dead, processed.left, processed.unsettled), (1, 0, 0, 0), "{processed:?}");
        let mut left: Vec<u64> = source.into_remaining().iter().map(|task| task.number).collect();
        left.sort_unstable();
        assert_eq!(left, [0, 1]);
    }
}

/// The concurrency is unlimited, and so are the places that the default of `in_hand` derives from it.
#[actix_rt::test]
async fn j04_a_processor_of_any_concurrency_starts() {
    let ledger = Ledger::default();
    let (publisher, source, _dead) = queue();
    all_of((0..20).map(|number| task(number, "work")), publisher).await;
    let processor = Processor::new(engine(), source, work(&ledger)).concurrency(usize::MAX);
    let processed = processor.in_order_by(|task: &Task| task.number).run(std::future::pending()).await;
    assert_eq!(processed.ran, 20);
}

#[test]
fn j05_threads_give_back_what_they_would_retry_for_ever() {
    let (tried, tries) = crossbeam_channel::unbounded();
    let failing = blocking_job(identify, move |task: &Task, _claim| {
        tried.send(task.number).unwrap();
        if task.what == "poison" { Err("no route") } else { Ok(task.number) }
    });
    let (messages, taken) = crossbeam_channel::bounded(10);
    let processor = BlockingProcessor::builder(engine(), failing).threads(2).retry(endless()).start(taken).unwrap();
    (0..6).for_each(|number| messages.send(task(number, if number < 4 { "poison" } else { "work" })).unwrap());
    for _ in 0..6 {
        tries.recv_timeout(PATIENCE).expect("each is tried");
    }
    let processed = processor.shutdown(Duration::MAX);
    assert_eq!((processed.ran, processed.dead, processed.is_unfinished), (2, 0, false));
    let mut left: Vec<u64> = processed.given_back.iter().map(|task| task.number).collect();
    left.sort_unstable();
    assert_eq!(left, [0, 1, 2, 3]);
}

/// A source accepts any delay.
#[actix_rt::test]
async fn j05_an_in_process_message_may_wait_for_ever() {
    let (publisher, source) = in_process::channel(10);
    publisher.send(task(1, "work")).await.unwrap();
    let delivery = source.next().await.unwrap().unwrap();
    source.settle(delivery.receipt, Disposition::RetryLater { after: Duration::MAX, failed: false }).await.unwrap();
    assert_eq!(source.into_remaining().len(), 1);
}

/// A processor that is told to end while a message waits for its retry ends at once.
#[actix_rt::test]
async fn j05_the_end_is_heard_during_a_backoff() {
    let ledger = Ledger::default();
    let (publisher, source, _dead) = queue();
    all_of([task(0, "poison"), task(1, "poison")], publisher).await;
    let source = Arc::new(source);
    let patient = RetryPolicy { first_delay: Duration::from_secs(600), ..endless() };
    let (stop, stopped) = oneshot::channel::<()>();
    let processor = Processor::new(engine(), source.clone(), work(&ledger)).retry(patient).in_order_by(|_| 0);
    let running = actix_rt::spawn(processor.run(async { drop(stopped.await) }));
    while ledger.of(0) == 0 {
        tokio::task::yield_now().await;
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    drop(stop);
    let processed = timeout(Duration::from_secs(10), running).await.expect("it ends at once").unwrap();
    assert_eq!((processed.left, processed.given_back, ledger.of(0), ledger.of(1)), (0, 1, 1, 0));
    assert_eq!(Arc::into_inner(source).unwrap().into_remaining().len(), 2);
}
