//! How other sessions, the server's defaults and an operation's own statements affect a transaction or a lock.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use oncekey::Key;
use oncekey::backend::{Complete, Renew, Renewed, Reply, Request, StoreError};
use oncekey::record::{Owner, PayloadKind, SealedOutcome};

pub(crate) fn key(name: &str) -> Key {
    Key::new("s", name).unwrap()
}

/// Returns an outcome of slightly more than that many bytes.
pub(crate) fn long_outcome(key: &Key, bytes: usize) -> SealedOutcome {
    SealedOutcome::seal(key, PayloadKind::Json, |payload| payload.resize(bytes, b'7'))
}

pub(crate) fn completion(name: &str, owner: Owner, retention: Duration) -> Complete {
    let key = key(name);
    let outcome = SealedOutcome::of_value(&key, &17).unwrap();
    Complete { key, owner, outcome, retention }
}

/// Returns a reply that sends the answer with the name of its key.
pub(crate) fn reply<T: Send + 'static>(name: &str, answered: &Sender<(String, Result<T, StoreError>)>) -> Reply<T> {
    let (name, answered) = (name.to_owned(), answered.clone());
    Reply::new(move |answer| drop(answered.send((name, answer))))
}

/// The name of a claim, and the answer to its renewal.
pub(crate) type RenewalAnswer = (String, Result<Renewed, StoreError>);

/// Returns renewals of these claims, as one batch.
pub(crate) fn renewals(claims: &[(String, Owner)]) -> (Vec<Request>, Receiver<RenewalAnswer>) {
    let (answered, answers) = channel();
    let renewal = |(name, owner): &(String, Owner)| {
        let message = Renew { key: key(name), owner: *owner, lease: Duration::from_secs(60) };
        Request::Renew(message, reply(name, &answered))
    };
    (claims.iter().map(renewal).collect(), answers)
}

/// Checks for every database, in the module of one of them.
macro_rules! sessions_on_database {
    (
        backend: $backend:ident,
        open_error: $open_error:ident,
        connection: $connection:ty,
        scheme: $scheme:literal,
        key_column: $key_column:literal $(,)?
    ) => {
        mod beside_others {
            use std::sync::mpsc::channel;
            use std::time::Instant;

            use oncekey::backend::{Completed, Hold, Renewed, Request, Resolution, Resolve, Resolved};
            use oncekey::record::Owner;
            use tests::process::until;
            use tokio::time::timeout;

            use super::*;
            use crate::sessions::{completion, key, long_outcome, renewals, reply};

            async fn claimed(backend: &$backend, name: &str) -> Owner {
                let message = acquire(name);
                let owner = message.owner;
                assert!(matches!(backend.acquire(message).await, Ok(Acquired::Claimed { .. })));
                owner
            }

            /// Another session has locked one record's row and keeps it. The other claims of the batch are renewed.
            #[actix_rt::test]
            async fn e04_a_locked_row_does_not_keep_its_neighbours_from_being_renewed() {
                let table = fresh_table();
                let backend = open(&table).await;
                let mut claims = Vec::new();
                for n in 0..10 {
                    let name = format!("k{n}");
                    let owner = claimed(&backend, &name).await;
                    claims.push((name, owner));
                }
                let pool = pool();
                let mut session = pool.get().await.unwrap();
                session.batch_execute("BEGIN").await.unwrap();
                // The row is selected by its whole key, because MySQL locks every row that it has to read.
                let k4 = key("k4");
                let lock = format!("UPDATE {table} SET attempt = attempt WHERE {} = '{}'", $key_column, k4.as_stored());
                session.batch_execute(&lock).await.unwrap();
                for _ in 0..2 {
                    let (batch, answers) = renewals(&claims);
                    let started = Instant::now();
                    timeout(Duration::from_secs(30), backend.execute(batch)).await.unwrap();
                    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
                    let answers: Vec<_> = answers.try_iter().collect();
                    assert_eq!(answers.len(), 10);
                    for (name, answer) in answers {
                        match name.as_str() {
                            "k4" => assert!(matches!(answer, Err(StoreError::Unavailable(_))), "{answer:?}"),
                            _ => assert_eq!(answer, Ok(Renewed::Renewed), "{name}"),
                        }
                    }
                }
                session.batch_execute("ROLLBACK").await.unwrap();
                let (batch, answers) = renewals(&claims);
                backend.execute(batch).await;
                assert!(answers.try_iter().all(|(_, answer)| answer == Ok(Renewed::Renewed)));
            }

            /// Another session has inserted a key that is not visible yet. The other keys of the batch are claimed.
            #[actix_rt::test]
            async fn e11_an_insert_that_waits_does_not_keep_its_neighbours_from_being_claimed() {
                let table = fresh_table();
                let backend = open(&table).await;
                claimed(&backend, "there").await;
                let pool = pool();
                let mut session = pool.get().await.unwrap();
                session.batch_execute("BEGIN").await.unwrap();
                let columns = "fingerprint, attempt, owner, state, lease_until, on_abandoned, purge_at, fencing_token";
                let insert = format!(
                    "INSERT INTO {table} ({column}, {columns}) SELECT '{unseen}', {columns} FROM {table} \
                     WHERE {column} = '{there}'",
                    column = $key_column,
                    unseen = key("k1").as_stored(),
                    there = key("there").as_stored(),
                );
                session.batch_execute(&insert).await.unwrap();
                let (answered, answers) = channel();
                let names = ["k0", "k1", "k2", "k3"];
                let batch = names.iter().map(|name| Request::Acquire(acquire(name), reply(name, &answered))).collect();
                let started = Instant::now();
                timeout(Duration::from_secs(30), backend.execute(batch)).await.unwrap();
                assert!(started.elapsed() < Duration::from_millis(4_800), "{:?}", started.elapsed());
                for (name, answer) in answers.try_iter() {
                    match name.as_str() {
                        "k1" => assert!(matches!(answer, Err(StoreError::Unavailable(_))), "{answer:?}"),
                        _ => assert!(matches!(answer, Ok(Acquired::Claimed { .. })), "{name}: {answer:?}"),
                    }
                }
                session.batch_execute("ROLLBACK").await.unwrap();
                claimed(&backend, "k1").await;
            }

            /// The short lock timeout applies only to the backend's steps. An operation waits as long as the server's
            /// default says.
            #[actix_rt::test]
            async fn e11_an_operation_waits_for_its_locks_as_the_server_says() {
                let table = fresh_table();
                SERVER.sql("CREATE TABLE slow (n int); INSERT INTO slow VALUES (1)");
                let engine = Engine::builder(open(&table).await).start().unwrap();
                let runs = Arc::new(AtomicUsize::new(0));
                let pool = pool();
                // The check runs twice, because the connection is lent again in its original state.
                for number in 0..2 {
                    let mut session = pool.get().await.unwrap();
                    session.batch_execute("BEGIN").await.unwrap();
                    session.batch_execute("UPDATE slow SET n = n").await.unwrap();
                    let counted = Arc::clone(&runs);
                    let operation = async move |tx: &mut $connection, _: &Claim| {
                        counted.fetch_add(1, Ordering::Relaxed);
                        tx.batch_execute("UPDATE slow SET n = n + 1").await?;
                        Ok::<u32, diesel::result::Error>(1)
                    };
                    let running = engine.run_in_async_transaction(key(&format!("k{number}")), b"", operation);
                    let letting_go = async {
                        tokio::time::sleep(Duration::from_millis(2_200)).await;
                        session.batch_execute("COMMIT").await.unwrap();
                    };
                    let (ran, ()) = futures_util::future::join(running, letting_go).await;
                    assert_eq!(ran.unwrap(), Outcome::Ran(1));
                }
                assert_eq!(runs.load(Ordering::Relaxed), 2);
                assert_eq!(SERVER.sql("SELECT n FROM slow"), "3");
            }

            /// An operation must not end its transaction. If it does, its record is not completed by itself.
            #[actix_rt::test]
            async fn e19_an_operation_that_ends_its_transaction_completes_nothing() {
                SERVER.sql("CREATE TABLE ended (n int)");
                for ending in ["COMMIT", "ROLLBACK", "COMMIT; BEGIN", "ROLLBACK; BEGIN"] {
                    let table = fresh_table();
                    let backend = open(&table).await;
                    let owner = claimed(&backend, "k").await;
                    let outcome = SealedOutcome::tombstone(&key("k"));
                    let operation = TransactionOperation::new_async(async move |tx: &mut $connection| {
                        tx.batch_execute("INSERT INTO ended VALUES (1)").await.unwrap();
                        for statement in ending.split("; ") {
                            tx.batch_execute(statement).await.unwrap();
                        }
                        Ok(outcome.clone())
                    });
                    let retention = Duration::from_secs(60);
                    let message = CompleteInTransaction { key: key("k"), owner, retention, operation };
                    let answer = backend.complete_in_transaction(message).await;
                    assert_eq!(answer, Err(StoreError::TransactionEnded), "{ending}");
                    assert_eq!(SERVER.sql(&format!("SELECT state FROM {table}")), "1", "{ending}");
                }
            }

            /// The same in the caller's own transaction.
            #[actix_rt::test]
            async fn e19_a_claim_is_not_completed_after_its_transaction() {
                SERVER.sql("CREATE TABLE ended_own (n int)");
                let table = fresh_table();
                let backend = open(&table).await;
                let owner = claimed(&backend, "k").await;
                let pool = pool();
                let mut connection = pool.get().await.unwrap();
                for ending in ["COMMIT", "ROLLBACK"] {
                    let mut completed = None;
                    let ended = connection
                        .transaction(async |tx| {
                            tx.batch_execute("INSERT INTO ended_own VALUES (1)").await?;
                            tx.batch_execute(ending).await?;
                            let completion = completion("k", owner, Duration::from_secs(60));
                            completed = Some(backend.complete_in(tx, completion).await);
                            Err::<(), _>(diesel::result::Error::RollbackTransaction)
                        })
                        .await;
                    assert!(ended.is_err());
                    assert!(matches!(completed, Some(Err(CompleteInError::TransactionEnded))), "{completed:?}");
                    assert_eq!(SERVER.sql(&format!("SELECT state FROM {table}")), "1", "{ending}");
                }
                // In an open transaction it is completed.
                let order = connection.transaction(async |tx| {
                    backend.complete_in(tx, completion("k", owner, Duration::from_secs(60))).await
                });
                order.await.unwrap();
                assert_eq!(SERVER.sql(&format!("SELECT state FROM {table}")), "2");
            }

            /// Outcomes of any length are replayed whole, even if a read came before their write.
            #[actix_rt::test]
            async fn e02_a_long_outcome_is_replayed_whole() {
                let backend = open(&fresh_table()).await;
                let (answered, answers) = channel();
                let mut batch = Vec::new();
                let sizes = [100 << 10, 1 << 20, 10];
                for size in sizes {
                    let name = format!("in a transaction {size}");
                    let owner = claimed(&backend, &name).await;
                    let outcome = long_outcome(&key(&name), size);
                    let operation = TransactionOperation::new_async(async move |_: &mut $connection| Ok(outcome.clone()));
                    let retention = Duration::from_secs(60);
                    let message = CompleteInTransaction { key: key(&name), owner, retention, operation };
                    let stored = backend.complete_in_transaction(message).await;
                    assert!(matches!(stored, Ok(CompletedInTransaction::Stored { .. })), "{stored:?}");

                    let name = format!("resolved {size}");
                    let owner = claimed(&backend, &name).await;
                    backend.hold(Hold { key: key(&name), owner }).await.unwrap();
                    let with = Resolution::Complete { outcome: long_outcome(&key(&name), size), retention };
                    let message = Resolve { key: key(&name), attempt: None, owner: None, with };
                    batch.push(Request::Resolve(message, reply(&name, &answered)));
                }
                backend.execute(batch).await;
                for (name, answer) in answers.try_iter() {
                    assert_eq!(answer, Ok(Resolved::Resolved), "{name}");
                }
                for (kind, size) in ["in a transaction", "resolved"].iter().flat_map(|kind| sizes.map(|size| (kind, size))) {
                    let name = format!("{kind} {size}");
                    let replayed = backend.acquire(acquire(&name)).await;
                    let wanted = long_outcome(&key(&name), size);
                    assert!(matches!(replayed, Ok(Acquired::Completed { outcome }) if outcome == wanted), "{name}");
                }
            }

            /// The clock was set back, so the record's token is ahead of it. If the record disappeared before the clock
            /// has passed its token, the next claim would get a lower one.
            #[actix_rt::test]
            async fn e25_a_completed_record_outlives_its_token() {
                let table = fresh_table();
                let backend = open(&table).await;
                let names = ["alone", "one of two", "the other"];
                let mut owners = Vec::new();
                for name in names {
                    owners.push(claimed(&backend, name).await);
                }
                SERVER.sql(&format!("UPDATE {table} SET fencing_token = fencing_token + 3600000000"));
                let complete = |n: usize| completion(names[n], owners[n], Duration::from_millis(1));
                assert_eq!(backend.complete(complete(0)).await, Ok(Completed::Stored));
                let (answered, answers) = channel();
                let batch = [1, 2].map(|n| Request::Complete(complete(n), reply(names[n], &answered)));
                backend.execute(batch.into()).await;
                assert!(answers.try_iter().all(|(_, answer)| answer == Ok(Completed::Stored)));
                tokio::time::sleep(Duration::from_millis(20)).await;
                assert_eq!(backend.purge(Purge { limit: 10 }).await.unwrap().removed, 0);
                for name in names {
                    let answer = backend.acquire(acquire(name)).await;
                    assert!(matches!(answer, Ok(Acquired::Completed { .. })), "{name}: {answer:?}");
                }
            }

            /// A connection loses all packets while it is idle in its pool. It costs a call one second, and not its
            /// deadline.
            #[actix_rt::test]
            async fn e11_a_silent_idle_connection_is_replaced_within_the_deadline() {
                let table = fresh_table();
                let proxy = Proxy::before(SERVER.port());
                let url = withdrawals::through(&proxy, &SERVER.url(), SERVER.port());
                let backend = $backend::builder(url).table(&table).unwrap().open().await.unwrap();
                claimed(&backend, "before").await;
                // This is longer than a connection counts as alive without a check.
                tokio::time::sleep(Duration::from_millis(700)).await;
                proxy.swallow();
                let started = Instant::now();
                let asking = actix_rt::spawn(async move { backend.acquire(acquire("after")).await });
                until("a swallowed message", async || proxy.swallowed() > 0).await;
                proxy.heal();
                let answer = timeout(Duration::from_secs(4), asking).await.expect("it waits for the silent connection");
                assert!(matches!(answer.unwrap(), Ok(Acquired::Claimed { .. })));
                assert!(started.elapsed() < Duration::from_secs(4));
            }

            #[actix_rt::test]
            async fn e11_a_server_that_accepts_and_says_nothing_is_unreachable() {
                let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
                let port = listener.local_addr().unwrap().port();
                let url = format!("{}://shop@127.0.0.1:{port}/shop", $scheme);
                let opened = timeout(Duration::from_secs(9), $backend::open(&url)).await.expect("it waits for ever");
                assert!(matches!(opened, Err($open_error::Unreachable(_))), "{opened:?}");
            }
        }
    };
}
pub(crate) use sessions_on_database;
