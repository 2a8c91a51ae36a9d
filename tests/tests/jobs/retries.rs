//! Retries that are not attempts, and which messages a retry delays.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use oncekey::consumer::{Call, Processor, RetryPolicy, job};
use oncekey::{Engine, Key, Outcome};
use oncekey_backends::SqliteBackend;
use tokio::sync::Notify;

use crate::tasks::{Kept, Ledger, Task, all_of, engine, identify, queue, quick, task, work};

#[actix_rt::test]
async fn j02_in_flight_elsewhere_is_retried_and_counts_as_no_attempt() {
    let (engine, ledger) = (engine(), Ledger::default());
    let (go, gate) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let elsewhere = {
        let (engine, go, gate) = (engine.clone(), go.clone(), gate.clone());
        let key = Key::new("task", 1).unwrap();
        actix_rt::spawn(async move {
            let asked = task(1, "work");
            let running = engine.run(key, &asked, |_| async move {
                gate.notify_one();
                go.notified().await;
                Ok::<u64, String>(7)
            });
            running.await.unwrap()
        })
    };
    gate.notified().await;
    let (publisher, source, _dead) = queue();
    all_of([task(1, "work")], publisher).await;
    let source = Kept::new(source);
    let processing = Processor::new(engine.clone(), source.clone(), work(&ledger))
        .retry(RetryPolicy { max_attempts: 2, ..quick() })
        .run(std::future::pending());
    let processed = async {
        // This is more retries than there are attempts.
        while source.retries() < 10 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        go.notify_one();
    };
    let (processed, ()) = futures_util::future::join(processing, processed).await;
    assert_eq!(elsewhere.await.unwrap(), Outcome::Ran(7));
    assert_eq!((processed.ran, processed.replayed, processed.dead, ledger.of(1)), (0, 1, 0, 0));
}

/// Another connection locks the file for a while. Nothing runs, no message is given up, and the processor continues by
/// itself.
#[actix_rt::test]
async fn j02_while_the_store_is_away_messages_wait_and_no_attempt_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.db");
    let backend = SqliteBackend::builder(&path).busy_timeout(Duration::from_millis(5)).open().unwrap();
    let engine = Engine::builder(backend).store_deadline(Duration::from_millis(100)).start().unwrap();
    let mut other = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    other.batch_execute("PRAGMA busy_timeout = 10000; BEGIN IMMEDIATE").unwrap();

    let ledger = Ledger::default();
    let (publisher, source, _dead) = queue();
    all_of((0..20).map(|number| task(number, "work")), publisher).await;
    let source = Kept::new(source);
    let processing = Processor::new(engine, source.clone(), work(&ledger))
        .retry(RetryPolicy { max_attempts: 1, ..quick() })
        .run(std::future::pending());
    let unlocking = async {
        while source.retries() < 50 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(ledger.of(0), 0);
        other.batch_execute("COMMIT").unwrap();
    };
    let (processed, ()) = futures_util::future::join(processing, unlocking).await;
    assert_eq!((processed.ran, processed.dead), (20, 0));
    assert!((0..20).all(|number| ledger.of(number) == 1));
}

/// Messages of one key run one at a time and in order, even across a retry. Other keys continue.
#[actix_rt::test]
async fn j02_in_order_by_key_a_retry_holds_back_its_own_key_only() {
    let (publisher, source, _dead) = queue();
    let order = Arc::new(Mutex::new(Vec::new()));
    let tries = Ledger::default();
    let record = {
        let (order, tries) = (order.clone(), tries.clone());
        job(identify, move |call: Call, task: Arc<Task>| {
            let (order, tries) = (order.clone(), tries.clone());
            async move {
                call.run(move |_| async move {
                    let tried = tries.add(task.number);
                    tokio::task::yield_now().await;
                    if task.number == 0 && tried < 3 {
                        return Err("not yet");
                    }
                    order.lock().unwrap().push(task.number);
                    Ok(task.number)
                })
                .await
            }
        })
    };
    all_of((0..90).map(|number| task(number, "work")), publisher).await;
    let processed = Processor::new(engine(), source, record)
        .concurrency(4)
        .in_hand(90)
        .retry(RetryPolicy { first_delay: Duration::from_millis(200), max_delay: Duration::from_secs(1), ..quick() })
        .in_order_by(|task: &Task| task.number % 3)
        .run(std::future::pending())
        .await;
    assert_eq!(processed.ran, 90);
    let order = order.lock().unwrap();
    for lane in 0..3 {
        let numbers: Vec<u64> = order.iter().copied().filter(|number| number % 3 == lane).collect();
        assert!(numbers.is_sorted() && numbers.len() == 30, "{numbers:?}");
    }
    let held_up = order.iter().position(|number| *number == 0).unwrap();
    assert_eq!(held_up, 60, "the other keys were done while the first was retried");
}
