//! Steps of operations whose rows are written on the application's own connections.

/// The checks that are made on both databases, in the module of one of them, beside those of `on_database`.
macro_rules! steps_on_database {
    ($backend:ident, $connection:ty) => {
        mod steps {
            use std::sync::mpsc;

            use oncekey::backend::{
                BeginStep, CommitStep, CompleteStep, OperationFailure, Renew, Renewed, StepBegun, StepCommitted,
                StepCompleted, StepInTransaction,
            };
            use oncekey::record::{Binding, StepName, StepRun};
            use oncekey::{Claim, FencingToken, StepError, StepPolicy};
            use tokio::sync::oneshot;

            use super::*;

            const RETENTION: Duration = Duration::from_secs(60);

            /// A claim that may be continued.
            #[derive(Clone)]
            struct Held {
                key: Key,
                owner: Owner,
                token: FencingToken,
            }

            async fn claim_for(backend: &$backend, lease: Duration) -> Held {
                let message = Acquire { lease, on_abandoned: OnAbandoned::Resume, ..acquire("k") };
                loop {
                    match backend.acquire(message.clone()).await.unwrap() {
                        Acquired::Claimed { token, .. } => {
                            return Held { key: message.key, owner: message.owner, token };
                        }
                        Acquired::InProgress { .. } => {}
                        other => panic!("not claimed: {other:?}"),
                    }
                }
            }

            impl Held {
                fn name(step: &str) -> StepName {
                    StepName::new(step).unwrap()
                }

                fn outcome(&self, life: FencingToken, step: &str, value: u32) -> SealedOutcome {
                    SealedOutcome::of_value(Binding::step(&self.key, life, &Self::name(step)), &value).unwrap()
                }

                fn begin(&self, step: &str, number: u32, policy: StepPolicy) -> BeginStep {
                    let (key, owner, name) = (self.key.clone(), self.owner, Self::name(step));
                    BeginStep { key, owner, name, fingerprint: None, number, policy, retention: RETENTION }
                }

                fn complete(&self, step: &str, number: u32) -> CompleteStep {
                    let (run, outcome) =
                        (StepRun { token: self.token, number }, self.outcome(self.token, step, number));
                    CompleteStep { key: self.key.clone(), life: self.token, name: Self::name(step), run, outcome }
                }

                fn commit(
                    &self,
                    life: FencingToken,
                    number: u32,
                    operation: TransactionOperation,
                ) -> StepInTransaction {
                    let (key, owner, name) = (self.key.clone(), self.owner, Self::name("order"));
                    let retention = RETENTION;
                    let step = CommitStep { key, owner, name, fingerprint: None, number, life, retention };
                    StepInTransaction { step, operation }
                }
            }

            /// An operation that inserts a row, reports it, and waits for a signal to continue.
            fn inserting(
                rows: &str,
                outcome: SealedOutcome,
            ) -> (TransactionOperation, oneshot::Receiver<()>, mpsc::Sender<()>) {
                let text = format!("INSERT INTO {rows} VALUES (1)");
                let (begin, begun) = oneshot::channel();
                let (go_on, goes_on) = mpsc::channel();
                let operation = TransactionOperation::new(move |tx: &mut $connection| {
                    tx.batch_execute(&text).unwrap();
                    begin.send(()).unwrap();
                    goes_on.recv().unwrap();
                    Ok(outcome)
                });
                (operation, begun, go_on)
            }

            /// The rows and the step commit together, once, and a later try goes on from there.
            #[actix_rt::test]
            async fn e26_a_steps_rows_commit_with_its_outcome() {
                SERVER.sql("CREATE TABLE step_rows (n int)");
                let (table, pool) = (fresh_table(), pool(2));
                let engine =
                    Engine::builder(open(&table, &pool).await).on_abandoned(OnAbandoned::Resume).start().unwrap();
                let checkout = async |tries: u32| {
                    let operation = async move |claim: Claim| {
                        let reserve = move |tx: &mut $connection, _: &oncekey::Step| {
                            tx.batch_execute("INSERT INTO step_rows VALUES (1)")?;
                            if tries == 0 { Err(diesel::result::Error::NotFound) } else { Ok(tries) }
                        };
                        let reserved = claim.step_in_transaction("reserve", reserve).await?;
                        let charged = claim.step("charge", async |_| Ok::<_, diesel::result::Error>(10)).await?;
                        assert!(tries != 1, "this panic is part of a check");
                        let ship = |tx: &mut $connection, _: &oncekey::Step| {
                            tx.batch_execute("INSERT INTO step_rows VALUES (2)").map(|()| 100)
                        };
                        let shipped = claim.step_in_transaction("ship", ship).await?;
                        Ok::<u32, StepError<diesel::result::Error>>(reserved + charged + shipped)
                    };
                    engine.run_local(Key::new("s", "checkout").unwrap(), b"", operation).await
                };
                let failed = checkout(0).await;
                assert!(matches!(failed, Err(RunError::Operation(StepError::Operation(_)))), "{failed:?}");
                assert_eq!(count("step_rows"), "0");
                assert!(matches!(checkout(1).await, Err(RunError::Engine(Error::Panicked))));
                assert_eq!(count("step_rows"), "1");
                assert_eq!(checkout(2).await.unwrap(), Outcome::Ran(111));
                assert_eq!(checkout(3).await.unwrap(), Outcome::Replayed(111));
                assert_eq!(SERVER.sql("SELECT n FROM step_rows ORDER BY n"), "1\n2");
                // A connection of another kind is an error, and nothing runs.
                let operation = async |claim: Claim| {
                    let wrong =
                        claim.step_in_transaction("wrong", |_: &mut SqliteConnection, _| Ok::<u32, ()>(1)).await;
                    assert!(matches!(wrong, Err(StepError::NoSuchTransaction { .. })), "{wrong:?}");
                    Ok::<u32, ()>(1)
                };
                engine.run_local(Key::new("s", "wrong").unwrap(), b"", operation).await.unwrap();
            }

            /// While a step's operation runs its parent is renewed, and its sibling steps begin and end.
            #[actix_rt::test]
            async fn e26_a_steps_transaction_keeps_nobody_waiting() {
                SERVER.sql("CREATE TABLE slow_step (n int)");
                let backend = open(&fresh_table(), &pool(1)).await;
                let held = claim_for(&backend, RETENTION).await;
                let (operation, begun, go_on) = inserting("slow_step", held.outcome(held.token, "order", 1));
                let running = backend.step_in_transaction(held.commit(held.token, 1, operation));
                let beside = async {
                    begun.await.unwrap();
                    let renew = Renew { key: held.key.clone(), owner: held.owner, lease: RETENTION };
                    assert_eq!(backend.renew(renew).await, Ok(Renewed::Renewed));
                    let begun = backend.begin_step(held.begin("sibling", 2, StepPolicy::Hold)).await;
                    assert!(matches!(begun, Ok(StepBegun::Begun { .. })), "{begun:?}");
                    assert_eq!(backend.complete_step(held.complete("sibling", 2)).await, Ok(StepCompleted::Stored));
                    go_on.send(()).unwrap();
                };
                let (answer, ()) = futures_util::future::join(running, beside).await;
                assert!(matches!(answer, Ok(StepCommitted::Stored { .. })), "{answer:?}");
                let view = backend.lookup(oncekey::backend::Lookup { key: held.key }).await.unwrap().unwrap();
                assert_eq!(view.steps.unwrap().list.len(), 2);
                assert_eq!(count("slow_step"), "1");
            }

            /// A holder that was away for longer than its lease, while its step ran, commits nothing.
            #[actix_rt::test]
            async fn e26_a_step_of_a_lost_claim_commits_nothing() {
                SERVER.sql("CREATE TABLE late_step (n int)");
                let table = fresh_table();
                let backend = open(&table, &pool(1)).await;
                let held = claim_for(&backend, Duration::from_millis(300)).await;
                let (operation, begun, go_on) = inserting("late_step", held.outcome(held.token, "order", 1));
                let running = backend.step_in_transaction(held.commit(held.token, 1, operation));
                let taking_over = async {
                    begun.await.unwrap();
                    claim_for(&backend, RETENTION).await;
                    go_on.send(()).unwrap();
                };
                let (answer, ()) = futures_util::future::join(running, taking_over).await;
                assert_eq!(answer, Ok(StepCommitted::Lost));
                // Nor does it run again.
                let never = TransactionOperation::new(|_: &mut $connection| panic!("it runs although it may not"));
                let answer = backend.step_in_transaction(held.commit(held.token, 2, never)).await;
                assert_eq!(answer, Ok(StepCommitted::Lost));
                assert_eq!(count("late_step"), "0");
                assert_eq!(count(&format!("{table}_steps")), "0");
            }

            /// Another run of the step ends while this one's transaction is open, whose snapshot may be older.
            #[actix_rt::test]
            async fn e26_a_step_that_was_completed_meanwhile_is_not_committed_again() {
                SERVER.sql("CREATE TABLE twice_step (n int)");
                let backend = open(&fresh_table(), &pool(1)).await;
                let first = claim_for(&backend, Duration::from_millis(300)).await;
                let begun = backend.begin_step(first.begin("order", 1, StepPolicy::Rerun)).await;
                assert!(matches!(begun, Ok(StepBegun::Begun { .. })), "{begun:?}");
                let (second, life) = (claim_for(&backend, RETENTION).await, first.token);
                let operation = {
                    let (completion, backend) = (first.complete("order", 1), backend.clone());
                    let (outcome, runtime) = (second.outcome(life, "order", 9), tokio::runtime::Handle::current());
                    TransactionOperation::new(move |tx: &mut $connection| {
                        // A snapshot is taken by the first read.
                        tx.batch_execute("SELECT 1 FROM twice_step; INSERT INTO twice_step VALUES (1)").unwrap();
                        assert_eq!(runtime.block_on(backend.complete_step(completion)), Ok(StepCompleted::Stored));
                        Ok(outcome)
                    })
                };
                let answer = backend.step_in_transaction(second.commit(life, 1, operation)).await;
                assert_eq!(answer, Ok(StepCommitted::Completed { outcome: first.outcome(life, "order", 1), life }));
                assert_eq!(count("twice_step"), "0");
            }

            /// A step's operation must not end its transaction. If it does, the step is not completed by itself; nor is one
            /// that leaves a transaction open, fails, or panics.
            #[actix_rt::test]
            async fn e26_a_step_that_ends_its_transaction_completes_nothing() {
                SERVER.sql("CREATE TABLE ended_step (n int)");
                let (table, pool) = (fresh_table(), pool(1));
                let backend = open(&table, &pool).await;
                let held = claim_for(&backend, RETENTION).await;
                let after = |statements: &'static [&'static str]| {
                    let outcome = held.outcome(held.token, "order", 1);
                    TransactionOperation::new(move |tx: &mut $connection| {
                        for statement in statements {
                            tx.batch_execute(statement).unwrap();
                        }
                        Ok(outcome)
                    })
                };
                for ending in [&["COMMIT"][..], &["ROLLBACK"], &["ROLLBACK", "BEGIN"]] {
                    let answer = backend.step_in_transaction(held.commit(held.token, 1, after(ending))).await;
                    assert_eq!(answer, Err(StoreError::TransactionEnded), "{ending:?}");
                }
                let failing = TransactionOperation::new(|tx: &mut $connection| {
                    tx.batch_execute("INSERT INTO ended_step VALUES (1)").unwrap();
                    Err(OperationFailure::RollBack)
                });
                let panicking = TransactionOperation::new(|tx: &mut $connection| {
                    tx.batch_execute("INSERT INTO ended_step VALUES (1)").unwrap();
                    panic!("this panic is part of a check")
                });
                for (number, operation) in [(2, failing), (3, panicking)] {
                    let answer = backend.step_in_transaction(held.commit(held.token, number, operation)).await;
                    assert_eq!(answer, Ok(StepCommitted::RolledBack));
                }
                assert_eq!(count("ended_step"), "0");
                assert_eq!(count(&format!("{table}_steps")), "0");
                let answer = backend.step_in_transaction(held.commit(held.token, 4, after(&[]))).await;
                assert!(matches!(answer, Ok(StepCommitted::Stored { .. })), "{answer:?}");
            }

            /// The connection is cut after COMMIT: the step tells that it took place, and nothing runs again.
            #[actix_rt::test]
            async fn e26_a_steps_commit_without_an_answer_is_found_again() {
                SERVER.sql("CREATE TABLE cut_step (n int)");
                let (table, proxy) = (fresh_table(), Proxy::before(SERVER.port()));
                let url = SERVER.url().replace(&SERVER.port().to_string(), &proxy.port().to_string());
                let backend = open(&table, &pool_of(&url, 2)).await;
                let engine = Engine::builder(backend).on_abandoned(OnAbandoned::Resume).start().unwrap();
                proxy.cut_commits(3);
                for number in 0..3 {
                    let ran = engine.run_local(Key::new("s", number).unwrap(), b"", async |claim: Claim| {
                        let order = |tx: &mut $connection, _: &oncekey::Step| {
                            tx.batch_execute("INSERT INTO cut_step VALUES (1)").map(|()| 17_u32)
                        };
                        claim.step_in_transaction("order", order).await
                    });
                    assert_eq!(ran.await.unwrap(), Outcome::Ran(17));
                }
                assert_eq!(proxy.commits_left(), 0);
                assert_eq!(count("cut_step"), "3");
                assert_eq!(SERVER.sql(&format!("SELECT count(*) FROM {table}_steps WHERE state <> 2")), "0");
            }

            /// A caller that gave up while the pool had no connection is not served later.
            #[actix_rt::test]
            async fn e19_a_step_that_was_given_up_does_not_run_late() {
                SERVER.sql("CREATE TABLE given_up_step (n int)");
                let pool = pool(1);
                let backend = open(&fresh_table(), &pool).await;
                let held = claim_for(&backend, RETENTION).await;
                let lent = pool.get().unwrap();
                let inserting = || {
                    let outcome = held.outcome(held.token, "order", 1);
                    TransactionOperation::new(move |tx: &mut $connection| {
                        tx.batch_execute("INSERT INTO given_up_step VALUES (1)").unwrap();
                        Ok(outcome)
                    })
                };
                let late = backend.step_in_transaction(held.commit(held.token, 1, inserting()));
                assert!(tokio::time::timeout(Duration::from_millis(300), late).await.is_err());
                drop(lent);
                // The next one waits until the late one's thread has ended.
                let answer = backend.step_in_transaction(held.commit(held.token, 2, inserting())).await;
                assert!(matches!(answer, Ok(StepCommitted::Stored { .. })), "{answer:?}");
                assert_eq!(count("given_up_step"), "1");
            }
        }
    };
}
pub(crate) use steps_on_database;
