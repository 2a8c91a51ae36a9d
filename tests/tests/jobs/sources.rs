//! The processor never has the only copy of an in-process message: the caller gets back what is left.

use std::sync::Arc;
use std::time::Duration;

use oncekey::consumer::{Call, Processor, RetryPolicy, Source as _, in_process, job};
use tokio::sync::Notify;

use crate::tasks::{Ledger, Task, all_of, engine, identify, queue, quick, task, work};

/// Some messages wait in the queue, one waits for its retry, and one job is still running at the limit of the drain.
#[actix_rt::test]
async fn j05_the_caller_gets_back_every_in_process_message_that_is_not_settled() {
    let (publisher, source, _dead) = queue();
    let (began, failed) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let slow = {
        let (began, failed) = (began.clone(), failed.clone());
        job(identify, move |call: Call, task: Arc<Task>| {
            let (began, failed) = (began.clone(), failed.clone());
            async move {
                call.run(move |_| async move {
                    match task.number {
                        0 => {
                            failed.notify_one();
                            Err("not now".to_owned())
                        }
                        _ => {
                            began.notify_one();
                            std::future::pending::<Result<u64, String>>().await
                        }
                    }
                })
                .await
            }
        })
    };
    all_of((0..10).map(|number| task(number, "work")), publisher).await;
    let patient = RetryPolicy { first_delay: Duration::from_secs(600), max_delay: Duration::from_secs(600), ..quick() };
    let processor =
        Processor::new(engine(), source, slow).concurrency(1).retry(patient).drain_limit(Duration::from_millis(20));
    let (source, processed) = processor
        .run_and_return(async {
            failed.notified().await;
            began.notified().await;
        })
        .await;
    assert_eq!((processed.retried, processed.left), (1, 1));
    let mut remaining: Vec<u64> = source.into_remaining().iter().map(|task| task.number).collect();
    remaining.sort_unstable();
    assert_eq!(remaining, (0..10).collect::<Vec<_>>());
}

/// One source serves two processors, and a clone shows what is left.
#[actix_rt::test]
async fn j05_an_arc_of_a_source_is_a_source() {
    let ledger = Ledger::default();
    let (publisher, source, _dead) = queue();
    let source = Arc::new(source);
    all_of((0..100).map(|number| task(number, "work")), publisher).await;
    let engine = engine();
    let processors = [0, 1].map(|_| {
        Processor::new(engine.clone(), source.clone(), work(&ledger)).concurrency(2).run(std::future::pending())
    });
    let [one, other] = processors;
    let (one, other) = futures_util::future::join(one, other).await;
    assert_eq!(one.ran + other.ran, 100);
    assert_eq!(Arc::into_inner(source).unwrap().into_remaining(), []);
}

#[actix_rt::test]
async fn j05_a_closed_source_gives_publishers_their_messages_back_and_ends() {
    let ledger = Ledger::default();
    let (publisher, source) = in_process::channel(100);
    for number in 0..10 {
        publisher.send(task(number, "work")).await.unwrap();
    }
    let source = Arc::new(source);
    let running = Processor::new(engine(), source.clone(), work(&ledger)).run(std::future::pending());
    let closing = async {
        while ledger.of(3) == 0 {
            tokio::task::yield_now().await;
        }
        source.close_queue();
        assert_eq!(publisher.send(task(99, "work")).await.unwrap_err().0.number, 99);
    };
    // The publisher is still there, so only closing the source ends it.
    let (processed, ()) = futures_util::future::join(running, closing).await;
    assert_eq!(processed.ran, 10);
    assert!(source.next().await.unwrap().is_none());
}
