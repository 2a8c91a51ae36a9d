//! The async processor: what happens to a message.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use oncekey::backend::{Acquire, Acquired, Backend as _};
use oncekey::consumer::{Call, Job, MessageKey, Processor, RetryPolicy, job};
use oncekey::record::Owner;
use oncekey::{Engine, Key, OnAbandoned, Outcome};
use oncekey_backends::{MemoryBackend, SqliteBackend};

use crate::tasks::{Ledger, Task, all_of, engine, identify, queue, quick, task, work};

#[actix_rt::test]
async fn j01_the_outcome_is_typed_and_says_whether_it_ran() {
    let (engine, ledger) = (engine(), Ledger::default());
    let (publisher, source, _dead) = queue();
    all_of([task(1, "work"), task(1, "work"), task(2, "work")], publisher).await;
    let processed = Processor::new(engine.clone(), source, work(&ledger)).run(std::future::pending()).await;
    assert_eq!((processed.ran, processed.replayed, processed.dead), (2, 1, 0));
    let again = engine.run(Key::new("task", 1).unwrap(), &task(1, "work"), |_| async { Ok::<u64, String>(99) }).await;
    assert_eq!(again.unwrap(), Outcome::Replayed(1));
    assert_eq!(ledger.of(1), 1);
}

#[actix_rt::test]
async fn j02_a_mismatch_and_an_unreadable_message_are_dead_letters() {
    let ledger = Ledger::default();
    let (publisher, source, mut dead) = queue();
    all_of([task(1, "work"), task(1, "other work"), task(2, "unreadable")], publisher).await;
    let processed = Processor::new(engine(), source, work(&ledger)).concurrency(1).run(std::future::pending()).await;
    assert_eq!((processed.ran, processed.dead), (1, 2));
    let letter = dead.recv().await.unwrap();
    assert!(letter.reason.contains("different request") && letter.message.what == "other work", "{letter:?}");
    assert!(dead.recv().await.unwrap().reason.contains("it has no number"));
    assert_eq!((ledger.of(1), ledger.of(2)), (1, 0));
}

/// A poison message has its attempts and is then dead-lettered with its last error; no other message waits for it. A
/// job that panics does not report what happened, so it does not run again: its key is indeterminate.
#[actix_rt::test]
async fn j02_a_poison_message_reaches_the_dead_letters_and_holds_up_nobody() {
    let ledger = Ledger::default();
    let (publisher, source, mut dead) = queue();
    let others = (2..200).map(|number| task(number, "work"));
    all_of([task(0, "poison"), task(1, "panic"), task(1_000, "third time")].into_iter().chain(others), publisher).await;
    let patient = RetryPolicy { first_delay: Duration::from_millis(300), max_delay: Duration::from_secs(1), ..quick() };
    let processed =
        Processor::new(engine(), source, work(&ledger)).concurrency(1).retry(patient).run(std::future::pending()).await;
    assert_eq!((processed.ran, processed.dead, processed.retried), (199, 2, 5));
    assert_eq!((ledger.of(0), ledger.of(1), ledger.of(1_000)), (3, 1, 3));
    let mut letters = [dead.recv().await.unwrap(), dead.recv().await.unwrap()];
    letters.sort_by_key(|letter| letter.message.number);
    assert_eq!(letters[0].reason, "try 3 of 0 failed");
    assert!(letters[1].reason.contains("it is not known"), "{letters:?}");
}

struct Fussy(Ledger);

impl Job<Task> for Fussy {
    type Output = u64;
    type Error = String;

    fn identify(&self, task: &Task) -> Result<MessageKey, oncekey::consumer::IdentifyError> {
        identify(task)
    }

    async fn perform(&self, call: Call, task: Arc<Task>) -> oncekey::consumer::JobResult<u64, String> {
        let ledger = self.0.clone();
        call.run(move |_| async move {
            ledger.add(task.number);
            Err("malformed".to_owned())
        })
        .await
    }

    fn is_poison(&self, error: &String) -> bool {
        error == "malformed"
    }
}

#[actix_rt::test]
async fn j02_an_error_that_no_retry_heals_is_a_dead_letter_at_once() {
    let ledger = Ledger::default();
    let (publisher, source, mut dead) = queue();
    all_of([task(1, "work")], publisher).await;
    let processed = Processor::new(engine(), source, Fussy(ledger.clone())).run(std::future::pending()).await;
    assert_eq!((processed.dead, ledger.of(1)), (1, 1));
    assert_eq!(dead.recv().await.unwrap().reason, "malformed");
}

/// One transaction writes the effect's row and its outcome, and nothing happens twice.
#[actix_rt::test]
async fn j03_a_job_in_a_transaction_commits_its_rows_with_its_outcome() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shop.db");
    let engine = Engine::builder(SqliteBackend::open(&path).unwrap()).start().unwrap();
    let mut reader = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    reader.batch_execute("PRAGMA busy_timeout = 10000; CREATE TABLE effects (number INTEGER)").unwrap();
    let fails = Arc::new(AtomicU32::new(1));
    let insert = job(identify, move |call: Call, task: Arc<Task>| {
        let fails = fails.clone();
        async move {
            call.run_in_transaction(move |tx: &mut SqliteConnection, _claim| {
                diesel::sql_query(format!("INSERT INTO effects VALUES ({})", task.number)).execute(tx)?;
                // The operation rolls back once, after the row was written.
                match fails.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)) {
                    Ok(_) => Err(diesel::result::Error::RollbackTransaction),
                    Err(_) => Ok(task.number),
                }
            })
            .await
        }
    });
    let (publisher, source, _dead) = queue();
    all_of([1, 2, 1, 2, 3].map(|number| task(number, "work")), publisher).await;
    let processed = Processor::new(engine, source, insert).retry(quick()).run(std::future::pending()).await;
    assert_eq!((processed.ran, processed.replayed, processed.dead), (3, 2, 0));
    let rows: Vec<i64> = diesel::sql_query("SELECT number FROM effects ORDER BY number")
        .load::<Number>(&mut reader)
        .unwrap()
        .into_iter()
        .map(|row| row.number)
        .collect();
    assert_eq!(rows, [1, 2, 3]);
}

#[derive(QueryableByName)]
struct Number {
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    number: i64,
}

/// If the process dies at each attempt on a message, the count that the store keeps ends the attempts.
#[actix_rt::test]
async fn j02_attempts_that_ended_with_their_process_count() {
    let (backend, ledger) = (MemoryBackend::new(), Ledger::default());
    let engine = Engine::builder(backend.clone()).start().unwrap();
    let MessageKey { key, fingerprint } = identify(&task(1, "work")).unwrap();
    // This is what three processes leave that die during the claim, each after it took over from the previous one.
    for attempt in 1..=3 {
        let claim = Acquire {
            key: key.clone(),
            fingerprint,
            owner: Owner::random(),
            lease: Duration::from_millis(1),
            on_abandoned: OnAbandoned::Rerun,
            past_withdrawal: None,
        };
        loop {
            match backend.acquire(claim.clone()).await.unwrap() {
                Acquired::Claimed { attempt: claimed, .. } => break assert_eq!(claimed.get(), attempt),
                Acquired::InProgress { lease_left } => tokio::time::sleep(lease_left).await,
                other => panic!("{other:?}"),
            }
        }
    }
    let (publisher, source, mut dead) = queue();
    all_of([task(1, "work")], publisher).await;
    let processed = Processor::new(engine, source, work(&ledger)).retry(quick()).run(std::future::pending()).await;
    assert_eq!((processed.dead, ledger.of(1)), (1, 0), "{processed:?}");
    let reason = dead.recv().await.unwrap().reason;
    assert!(reason.contains("given up") && reason.contains('3'), "{reason}");
}
