//! The async processor.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use oncekey::backend::{Acquire, Acquired, Backend as _};
use oncekey::consumer::in_process::{self, DeadLetter, InProcess, Publisher};
use oncekey::consumer::{Call, Delivery, Disposition, Identity, Job, Processor, RetryPolicy, Source, job};
use oncekey::record::Owner;
use oncekey::{CallPolicy, Engine, Fingerprint, Key, OnAbandoned, Outcome, RunError};
use oncekey_backends::{MemoryBackend, SqliteBackend};
use tokio::sync::{Notify, mpsc, oneshot};

/// What is asked: a number, and what to do with it.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
struct Task {
    number: u64,
    what: &'static str,
}

fn task(number: u64, what: &'static str) -> Task {
    Task { number, what }
}

fn identify(task: &Task) -> Result<Identity, oncekey::consumer::Unreadable> {
    if task.what == "unreadable" {
        return Err("it has no number".into());
    }
    Ok(Identity::new(Key::new("task", task.number)?, task)?)
}

/// Counts how often each number was worked on.
#[derive(Debug, Clone, Default)]
struct Ledger(Arc<Mutex<HashMap<u64, u32>>>);

impl Ledger {
    fn add(&self, number: u64) -> u32 {
        let mut counts = self.0.lock().unwrap();
        let count = counts.entry(number).or_default();
        *count += 1;
        *count
    }

    fn of(&self, number: u64) -> u32 {
        self.0.lock().unwrap().get(&number).copied().unwrap_or(0)
    }
}

/// Works; fails where the task says so.
fn work(ledger: &Ledger) -> impl Job<Task, Output = u64, Error = String> + use<> {
    let ledger = ledger.clone();
    job(identify, move |call: Call, task: Arc<Task>| {
        let ledger = ledger.clone();
        async move {
            call.run(move |_| async move {
                let tried = ledger.add(task.number);
                match task.what {
                    "poison" => Err(format!("try {tried} of {} failed", task.number)),
                    "panic" => panic!("as told"),
                    "third time" if tried < 3 => Err("not yet".to_owned()),
                    _ => Ok(task.number),
                }
            })
            .await
        }
    })
}

fn quick() -> RetryPolicy {
    RetryPolicy {
        max_attempts: 3,
        first_delay: Duration::from_millis(5),
        max_delay: Duration::from_millis(20),
        in_flight_delay: Duration::from_millis(5),
        store_away_delay: Duration::from_millis(20),
        ..RetryPolicy::default()
    }
}

fn queue() -> (Publisher<Task>, InProcess<Task>, mpsc::Receiver<DeadLetter<Task>>) {
    let (publisher, source) = in_process::channel(1_000);
    let (source, dead) = source.with_dead_letters(1_000);
    (publisher, source, dead)
}

fn engine() -> Engine {
    Engine::builder(MemoryBackend::new()).start().unwrap()
}

async fn all_of(tasks: impl IntoIterator<Item = Task>, publisher: Publisher<Task>) {
    for task in tasks {
        publisher.send(task).await.unwrap();
    }
}

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

/// A poison message has its attempts, then it is put aside with its last error; nobody waits for it meanwhile.
#[actix_rt::test]
async fn j02_a_poison_message_reaches_the_dead_letters_and_holds_up_nobody() {
    let ledger = Ledger::default();
    let (publisher, source, mut dead) = queue();
    let others = (2..200).map(|number| task(number, "work"));
    all_of([task(0, "poison"), task(1, "panic"), task(1_000, "third time")].into_iter().chain(others), publisher).await;
    let patient = RetryPolicy { first_delay: Duration::from_millis(300), max_delay: Duration::from_secs(1), ..quick() };
    let processed =
        Processor::new(engine(), source, work(&ledger)).concurrency(1).retry(patient).run(std::future::pending()).await;
    assert_eq!((processed.ran, processed.dead, processed.retried), (199, 2, 6));
    assert_eq!((ledger.of(0), ledger.of(1), ledger.of(1_000)), (3, 3, 3));
    let mut letters = [dead.recv().await.unwrap(), dead.recv().await.unwrap()];
    letters.sort_by_key(|letter| letter.message.number);
    assert_eq!(letters[0].reason, "try 3 of 0 failed");
    assert!(letters[1].reason.contains("panicked"), "{letters:?}");
}

struct Fussy(Ledger);

impl Job<Task> for Fussy {
    type Output = u64;
    type Error = String;

    fn identify(&self, task: &Task) -> Result<Identity, oncekey::consumer::Unreadable> {
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
    let conflicts = Arc::new(AtomicUsize::new(0));
    let processing = Processor::new(engine.clone(), Counting(source, conflicts.clone()), work(&ledger))
        .retry(RetryPolicy { max_attempts: 2, ..quick() })
        .run(std::future::pending());
    let processed = async {
        // More retries than there are attempts.
        while conflicts.load(Ordering::Relaxed) < 10 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        go.notify_one();
    };
    let (processed, ()) = futures_util::future::join(processing, processed).await;
    assert_eq!(elsewhere.await.unwrap(), Outcome::Ran(7));
    assert_eq!((processed.ran, processed.replayed, processed.dead, ledger.of(1)), (0, 1, 0, 0));
}

/// A source that counts what is to be retried.
struct Counting<S>(S, Arc<AtomicUsize>);

impl<S: Source> Source for Counting<S> {
    type Message = S::Message;
    type Receipt = S::Receipt;
    type Error = S::Error;

    async fn next(&self) -> Result<Option<Delivery<S::Message, S::Receipt>>, S::Error> {
        self.0.next().await
    }

    async fn settle(&self, receipt: S::Receipt, disposition: Disposition) -> Result<(), S::Error> {
        if matches!(disposition, Disposition::RetryLater { .. }) {
            self.1.fetch_add(1, Ordering::Relaxed);
        }
        self.0.settle(receipt, disposition).await
    }
}

/// The file is locked by another connection for a while: nothing runs, nothing is given up, and it goes on by itself.
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
    let retries = Arc::new(AtomicUsize::new(0));
    let processing = Processor::new(engine, Counting(source, retries.clone()), work(&ledger))
        .retry(RetryPolicy { max_attempts: 1, ..quick() })
        .run(std::future::pending());
    let unlocking = async {
        while retries.load(Ordering::Relaxed) < 50 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(ledger.of(0), 0);
        other.batch_execute("COMMIT").unwrap();
    };
    let (processed, ()) = futures_util::future::join(processing, unlocking).await;
    assert_eq!((processed.ran, processed.dead), (20, 0));
    assert!((0..20).all(|number| ledger.of(number) == 1));
}

/// The effect's row, its outcome and nothing twice: in one transaction.
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
                // Rolled back once, after the row was written.
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

/// A message whose process dies at each attempt is given up by the count that the store keeps.
#[actix_rt::test]
async fn j02_attempts_that_ended_with_their_process_count() {
    let (backend, ledger) = (MemoryBackend::new(), Ledger::default());
    let engine = Engine::builder(backend.clone()).start().unwrap();
    let Identity { key, fingerprint } = identify(&task(1, "work")).unwrap();
    // What three processes leave that die with the claim in hand, each after it took over from the one before.
    for attempt in 1..=3 {
        let claim = Acquire {
            key: key.clone(),
            fingerprint,
            owner: Owner::random(),
            lease: Duration::from_millis(1),
            on_abandoned: OnAbandoned::Rerun,
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

/// Messages of one key one after the other, in their order, also over a retry; other keys go on.
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

/// What began is finished, what did not is given back, and it ends within its limit.
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
    let source = Arc::new(source);
    let (stop, stopped) = oneshot::channel();
    let processing = Processor::new(engine.clone(), Shared(source.clone()), slow)
        .concurrency(1)
        .in_order_by(|_| 0)
        .in_hand(4)
        .run(async { drop(stopped.await) });
    let ending = async {
        began.notified().await;
        // Let the processor take all that it may have in hand.
        while format!("{source:?}") != "InProcess { in_hand: 4, later: 0 }" {
            tokio::task::yield_now().await;
        }
        stop.send(()).unwrap();
        tokio::task::yield_now().await;
        go.notify_one();
    };
    let (processed, ()) = futures_util::future::join(processing, ending).await;
    assert_eq!((processed.ran, processed.given_back, processed.left), (1, 3, 0));
    // The next one finds all that is left.
    drop(publisher);
    let rest = Processor::new(engine, Shared(source), work(&ledger)).run(std::future::pending()).await;
    assert_eq!((rest.ran, rest.replayed), (9, 0));
    assert!((0..10).all(|number| ledger.of(number) == 1));
}

/// A source that outlives its processor.
struct Shared<S>(Arc<S>);

impl<S: Source> Source for Shared<S> {
    type Message = S::Message;
    type Receipt = S::Receipt;
    type Error = S::Error;

    async fn next(&self) -> Result<Option<Delivery<S::Message, S::Receipt>>, S::Error> {
        self.0.next().await
    }

    async fn settle(&self, receipt: S::Receipt, disposition: Disposition) -> Result<(), S::Error> {
        self.0.settle(receipt, disposition).await
    }
}

/// A job that does not end does not keep the processor; its effect is still kept, and its message comes again.
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
    let policy = CallPolicy::default();
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
    let waiting = engine.with_policy(policy).with_wait(Duration::from_secs(10));
    let key = Key::new("task", 1).unwrap();
    let fingerprint = Identity::new(key.clone(), &task(1, "work")).unwrap().fingerprint;
    let again: Result<Outcome<u64>, RunError<String>> = waiting.run(key, fingerprint, |_| async { Ok(99) }).await;
    assert_eq!(again.unwrap(), Outcome::Replayed(17));
    let _: Fingerprint = fingerprint;
}
