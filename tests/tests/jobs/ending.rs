//! How the processor ends.

use std::sync::Arc;
use std::time::Duration;

use oncekey::consumer::{Call, MessageKey, Processor, job};
use oncekey::{Key, Outcome, RunError};
use tokio::sync::{Notify, oneshot};

use crate::tasks::{Kept, Ledger, Task, all_of, engine, identify, queue, task, work};

/// The processor finishes the jobs that began, gives back the other messages, and ends within its limit.
#[actix_rt::test]
async fn j05_a_told_end_finishes_what_began_and_gives_back_the_rest() {
    let (engine, ledger) = (engine(), Ledger::default());
    let (publisher, source, _dead) = queue();
    let (began, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let slow = {
        let (ledger, began, go) = (ledger.clone(), began.clone(), go.clone());
        job(identify, move |call: Call, task: Arc<Task>| {
            let (ledger, began, go) = (ledger.clone(), began.clone(), go.clone());
            async move {
                call.run(move |_| async move {
                    began.notify_one();
                    go.notified().await;
                    ledger.add(task.number);
                    Ok::<u64, String>(task.number)
                })
                .await
            }
        })
    };
    all_of((0..10).map(|number| task(number, "work")), publisher.clone()).await;
    let source = Kept::new(source);
    let (stop, stopped) = oneshot::channel();
    let processing = Processor::new(engine.clone(), source.clone(), slow)
        .concurrency(1)
        .in_order_by(|_| 0)
        .in_hand(4)
        .run(async { drop(stopped.await) });
    let ending = async {
        began.notified().await;
        // Let the processor take as many messages as it may hold.
        while format!("{:?}", source.source) != "InProcess { in_hand: 4, later: 0 }" {
            tokio::task::yield_now().await;
        }
        stop.send(()).unwrap();
        tokio::task::yield_now().await;
        go.notify_one();
    };
    let (processed, ()) = futures_util::future::join(processing, ending).await;
    assert_eq!((processed.ran, processed.given_back, processed.left), (1, 3, 0));
    // The next processor finds all remaining messages.
    drop(publisher);
    let rest = Processor::new(engine, source, work(&ledger)).run(std::future::pending()).await;
    assert_eq!((rest.ran, rest.replayed), (9, 0));
    assert!((0..10).all(|number| ledger.of(number) == 1));
}

/// A job that does not end does not stop the processor from ending. Its effect is kept, and its message is redelivered.
#[actix_rt::test]
async fn j05_a_job_beyond_the_limit_goes_on_and_its_message_is_not_settled() {
    let engine = engine();
    let (publisher, source, _dead) = queue();
    let go = Arc::new(Notify::new());
    let endless = {
        let go = go.clone();
        job(identify, move |call: Call, _: Arc<Task>| {
            let go = go.clone();
            async move {
                call.run(move |_| async move {
                    go.notified().await;
                    Ok::<u64, String>(17)
                })
                .await
            }
        })
    };
    all_of([task(1, "work")], publisher).await;
    let processed = Processor::new(engine.clone(), source, endless)
        .drain_limit(Duration::from_millis(50))
        .run(async {
            while engine.keys_in_flight().await == 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    assert_eq!((processed.left, processed.ran), (1, 0));
    go.notify_one();
    let waiting = engine.with_wait(Duration::from_secs(10));
    let key = Key::new("task", 1).unwrap();
    let fingerprint = MessageKey::new(key.clone(), &task(1, "work")).unwrap().fingerprint;
    let again: Result<Outcome<u64>, RunError<String>> = waiting.run(key, fingerprint, |_| async { Ok(99) }).await;
    assert_eq!(again.unwrap(), Outcome::Replayed(17));
}
