//! What an error means: which messages it concerns, and which messages wait for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use oncekey::consumer::{
    BlockingProcessor, Call, Disposition, Processor, RetryPolicy, blocking_job, crossbeam_channel, job,
};
use oncekey::{Engine, Key, Outcome};
use oncekey_backends::{MemoryBackend, SqliteBackend};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::tasks::{Ledger, Task, all_of, engine, identify, queue, quick, task, work};

/// So long that a test in which a processor pauses times out.
const NEVER: Duration = Duration::from_secs(600);
const PATIENCE: Duration = Duration::from_secs(60);

fn patient() -> RetryPolicy {
    RetryPolicy { store_away_delay: NEVER, ..quick() }
}

/// Returns an engine on a file in which the records of some tasks are invalid.
async fn with_damaged_records(numbers: &[u64]) -> (TempDir, Engine) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.db");
    let engine = Engine::builder(SqliteBackend::open(&path).unwrap()).start().unwrap();
    for number in numbers {
        let key = Key::new("task", number).unwrap();
        engine.run(key, &task(*number, "work"), |_| async { Ok::<u64, String>(1) }).await.unwrap();
    }
    let mut beside = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    beside.batch_execute("PRAGMA busy_timeout = 10000; UPDATE oncekey_records SET state = 9").unwrap();
    (folder, engine)
}

/// The bench `consumers` measures the cost of such a record.
#[actix_rt::test]
async fn j09_damaged_records_among_20_000_messages_are_dead_letters_and_pause_nobody() {
    let (_folder, engine) = with_damaged_records(&[700, 701]).await;
    let (ledger, (publisher, source, mut dead)) = (Ledger::default(), queue());
    let publishing = actix_rt::spawn(all_of((0..20_000).map(|number| task(number, "work")), publisher));
    let running = Processor::new(engine, source, work(&ledger)).retry(patient()).run(std::future::pending());
    let processed = timeout(PATIENCE, running).await.expect("nobody waits for a damaged record");
    publishing.await.unwrap();
    assert_eq!((processed.ran, processed.dead), (19_998, 2));
    for _ in 0..2 {
        let letter = dead.recv().await.unwrap();
        assert!(letter.reason.contains("corrupt") && letter.message.number / 2 == 350, "{letter:?}");
    }
}

#[test]
fn j09_damaged_records_are_dead_letters_for_threads() {
    let (_folder, engine) = actix_rt::System::new().block_on(async { with_damaged_records(&[700]).await });
    // The system that created the record has ended with its arbiters.
    drop(engine);
    let engine = Engine::builder(SqliteBackend::open(_folder.path().join("keys.db")).unwrap()).start().unwrap();
    let (settled, told) = crossbeam_channel::unbounded();
    let (messages, taken) = crossbeam_channel::bounded(100);
    let done = blocking_job(identify, |task: &Task, _claim| Ok::<_, String>(task.number));
    let processor = BlockingProcessor::builder(engine, done)
        .batch(8)
        .retry(patient())
        .on_settled(move |message: Task, disposition| settled.send((message.number, disposition)).unwrap())
        .start(taken)
        .unwrap();
    (600..800).for_each(|number| messages.send(task(number, "work")).unwrap());
    drop(messages);
    let began = Instant::now();
    let mut letters = Vec::new();
    for _ in 0..200 {
        let (number, disposition) = told.recv_timeout(PATIENCE).expect("nobody waits for a damaged record");
        if let Disposition::DeadLetter { reason } = disposition {
            letters.push((number, reason));
        }
    }
    assert!(began.elapsed() < PATIENCE);
    assert!(matches!(&letters[..], [(700, reason)] if reason.contains("corrupt")), "{letters:?}");
    assert_eq!(processor.join().dead, 1);
}

/// A constraint that the database checks at the commit is the operation's own failure, and uses up its attempts.
#[actix_rt::test]
async fn j09_a_commit_that_is_refused_is_a_failure_of_its_message_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shop.db");
    let engine = Engine::builder(SqliteBackend::open(&path).unwrap()).start().unwrap();
    let mut beside = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    let tables = "PRAGMA busy_timeout = 10000; CREATE TABLE items (id INTEGER PRIMARY KEY);
        CREATE TABLE orders (item INTEGER REFERENCES items (id) DEFERRABLE INITIALLY DEFERRED);
        INSERT INTO items VALUES (1)";
    beside.batch_execute(tables).unwrap();
    let order = job(identify, |call: Call, task: Arc<Task>| async move {
        call.run_in_transaction(move |tx: &mut SqliteConnection, _claim| {
            let item = if task.what == "no such item" { 99 } else { 1 };
            diesel::sql_query(format!("INSERT INTO orders VALUES ({item})")).execute(tx).map(|_| task.number)
        })
        .await
    });
    let (publisher, source, mut dead) = queue();
    let tasks = (0..200).map(|number| task(number, if number == 70 { "no such item" } else { "work" }));
    all_of(tasks, publisher).await;
    let running = Processor::new(engine, source, order).retry(patient()).run(std::future::pending());
    let processed = timeout(PATIENCE, running).await.expect("nobody waits for a refused commit");
    assert_eq!((processed.ran, processed.dead), (199, 1));
    assert!(processed.retried >= 2);
    let letter = dead.recv().await.unwrap();
    assert!(letter.message.number == 70 && letter.reason.to_lowercase().contains("commit"), "{letter:?}");
}

/// A store that cannot run the operation at all is not an outage either.
#[actix_rt::test]
async fn j09_an_operation_that_the_store_can_not_run_ends_as_a_dead_letter() {
    let transact = job(identify, |call: Call, task: Arc<Task>| async move {
        if task.what == "work" {
            return call.run(move |_| async move { Ok::<u64, String>(task.number) }).await;
        }
        call.run_in_transaction(move |_: &mut SqliteConnection, _claim| Ok::<u64, String>(task.number)).await
    });
    let (publisher, source, mut dead) = queue();
    all_of([task(1, "transaction"), task(2, "work"), task(3, "work")], publisher).await;
    let quick = RetryPolicy { store_away_delay: NEVER, ..quick() };
    let running = Processor::new(engine(), source, transact).concurrency(1).retry(quick).run(std::future::pending());
    let processed = timeout(PATIENCE, running).await.expect("nobody waits for it");
    assert_eq!((processed.ran, processed.dead), (2, 1));
    assert!(dead.recv().await.unwrap().reason.contains("transaction"));
}

/// One tenant is at its limit. Its messages are redelivered later, and those of the others continue.
#[actix_rt::test]
async fn j09_a_scope_at_its_limit_waits_alone() {
    let engine = Engine::builder(MemoryBackend::new()).max_calls_per_scope(1).start().unwrap();
    let (go, gate) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let elsewhere = actix_rt::spawn({
        let (engine, go, gate) = (engine.clone(), go.clone(), gate.clone());
        async move {
            let running = engine.run(Key::new("busy", "other").unwrap(), &(), |_| async move {
                gate.notify_one();
                go.notified().await;
                Ok::<u64, String>(7)
            });
            running.await.unwrap()
        }
    });
    gate.notified().await;
    let by_scope = job(
        |task: &Task| {
            let scope = if task.what == "busy" { "busy".to_owned() } else { format!("free-{}", task.number) };
            Ok(oncekey::consumer::MessageKey::new(Key::new(scope, task.number)?, task)?)
        },
        {
            let (left, go) = (Arc::new(std::sync::atomic::AtomicUsize::new(200)), go.clone());
            move |call: Call, task: Arc<Task>| {
                let (left, go) = (left.clone(), go.clone());
                async move {
                    call.run(move |_| async move {
                        // When all the others are done, the scope is free again.
                        if task.what != "busy" && left.fetch_sub(1, std::sync::atomic::Ordering::SeqCst) == 1 {
                            go.notify_one();
                        }
                        Ok::<u64, String>(task.number)
                    })
                    .await
                }
            }
        },
    );
    let (publisher, source, _dead) = queue();
    all_of((0..=200).map(|number| task(number, if number == 0 { "busy" } else { "work" })), publisher).await;
    let policy = RetryPolicy { max_attempts: 1_000, store_away_delay: NEVER, ..quick() };
    let running = Processor::new(engine, source, by_scope).retry(policy).run(std::future::pending());
    let processed = timeout(PATIENCE, running).await.expect("nobody waits for another's scope");
    assert_eq!((processed.ran, processed.dead), (201, 0));
    assert!(processed.retried > 0);
    assert_eq!(elsewhere.await.unwrap(), Outcome::Ran(7));
}

#[derive(Serialize, Deserialize)]
struct Receipt {
    id: String,
}

/// The same type after a deployment.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct ReceiptWithTotal {
    id: String,
    total: u64,
}

#[actix_rt::test]
async fn j06_a_finished_message_is_acknowledged_though_its_type_has_changed() {
    let engine = engine();
    for number in 0..20 {
        let key = Key::new("task", number).unwrap();
        let old = Receipt { id: number.to_string() };
        engine.run(key, &task(number, "work"), |_| async { Ok::<_, String>(old) }).await.unwrap();
    }
    let mail = job(identify, |call: Call, task: Arc<Task>| async move {
        call.run(move |_| async move { Ok::<_, String>(ReceiptWithTotal { id: task.number.to_string(), total: 1 }) })
            .await
    });
    let (publisher, source, _dead) = queue();
    all_of((0..40).map(|number| task(number, "work")), publisher).await;
    let processed = Processor::new(engine, source, mail).retry(quick()).run(std::future::pending()).await;
    assert_eq!((processed.ran, processed.replayed, processed.dead, processed.retried), (20, 20, 0, 0));
}

#[test]
fn j06_threads_acknowledge_a_finished_message_though_its_type_has_changed() {
    let engine = engine();
    let old = engine.run_blocking(Key::new("task", 1).unwrap(), &task(1, "work"), |_| {
        Ok::<_, String>(Receipt { id: "1".to_owned() })
    });
    assert!(old.is_ok());
    let mail = blocking_job(identify, |task: &Task, _claim| {
        Ok::<_, String>(ReceiptWithTotal { id: task.number.to_string(), total: 1 })
    });
    let (messages, taken) = crossbeam_channel::bounded(2);
    let processor = BlockingProcessor::builder(engine, mail).retry(quick()).start(taken).unwrap();
    messages.send(task(1, "work")).unwrap();
    drop(messages);
    let processed = processor.join();
    assert_eq!((processed.ran, processed.replayed, processed.dead), (0, 1, 0));
}
