//! The application's own connections of sync Diesel, on real servers.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test, what fails fails the test")]

mod steps;

use std::sync::LazyLock;
use std::time::Duration;

use diesel::connection::SimpleConnection as _;
use diesel::dsl::sql;
use diesel::r2d2::{ConnectionManager, Pool};
use diesel::sql_types::Bool;
use diesel::{Connection as _, MysqlConnection, PgConnection, RunQueryDsl as _, SqliteConnection};
use futures_util::future::join_all;
use oncekey::backend::{
    Acquire, Acquired, Backend as _, Complete, CompleteInTransaction, CompletedInTransaction, StoreError,
    TransactionOperation,
};
use oncekey::conformance::Capabilities;
use oncekey::record::{Owner, SealedOutcome};
use oncekey::{Engine, Error, Key, OnAbandoned, Outcome, RunError};
use oncekey_backends::CompleteInError;
use oncekey_backends::mysql::{MysqlBackend, MysqlOpenError};
use oncekey_backends::postgres::{PostgresBackend, PostgresOpenError};
use tests::claims::{acquire, fresh_table};
use tests::proxy::Proxy;
use tests::server::{MariaDb, Postgres};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The checks that are made on both databases, in the module of one of them.
macro_rules! on_database {
    (
        server: $server:ty,
        backend: $backend:ident,
        open_error: $open_error:ident,
        connection: $connection:ty,
        leave_behind: $leave_behind:expr,
        what_is_left: $what_is_left:expr $(,)?
    ) => {
        static SERVER: LazyLock<$server> = LazyLock::new(<$server>::start);

        fn pool_of(url: &str, size: u32) -> Pool<ConnectionManager<$connection>> {
            let manager = ConnectionManager::<$connection>::new(url);
            Pool::builder().max_size(size).min_idle(Some(0)).build(manager).unwrap()
        }

        fn pool(size: u32) -> Pool<ConnectionManager<$connection>> {
            pool_of(&SERVER.url(), size)
        }

        async fn open(table: &str, pool: &Pool<ConnectionManager<$connection>>) -> $backend {
            let builder = $backend::builder(SERVER.url()).table(table).unwrap();
            builder.blocking_pool(pool.clone()).open().await.unwrap()
        }

        fn count(table: &str) -> String {
            SERVER.sql(&format!("SELECT count(*) FROM {table}"))
        }

        oncekey::conformance_tests!(conformance, Capabilities::all(), {
            let table = fresh_table();
            move || {
                let table = table.clone();
                async move { open(&table, &pool(4)).await }
            }
        });

        /// The rows and the outcome commit together, or neither does; each order once, by two engines on one pool that is
        /// smaller than what is under way.
        #[actix_rt::test]
        async fn e13_two_engines_work_over_one_pool() {
            SERVER.sql("CREATE TABLE orders (item varchar(50))");
            let (table, pool) = (fresh_table(), pool(3));
            let engines = [open(&table, &pool).await, open(&table, &pool).await]
                .map(|backend| Engine::builder(backend).start().unwrap().with_wait(Duration::from_secs(30)));
            let order = |round: usize, engine: &Engine| {
                let (engine, key) = (engine.clone(), Key::new("s", round).unwrap());
                async move {
                    engine
                        .run_in_transaction(key, b"", move |tx: &mut $connection, _| {
                            tx.transaction(|tx| tx.batch_execute(&format!("INSERT INTO orders VALUES ('{round}')")))?;
                            // Every fifth is refused after its rows were written.
                            if round % 5 == 4 { Err(diesel::result::Error::RollbackTransaction) } else { Ok(round) }
                        })
                        .await
                }
            };
            let ordered = join_all((0..40).flat_map(|round| engines.iter().map(move |engine| order(round, engine)))).await;
            for (number, ordered) in ordered.iter().enumerate() {
                let round = number / 2;
                match ordered {
                    Ok(Outcome::Ran(value) | Outcome::Replayed(value)) => assert_eq!(*value, round),
                    Err(RunError::Operation(_)) => assert_eq!(round % 5, 4),
                    other => panic!("{round}: {other:?}"),
                }
            }
            let ran = ordered.iter().filter(|ordered| matches!(ordered, Ok(Outcome::Ran(_)))).count();
            assert_eq!(ran, 32);
            assert_eq!(SERVER.sql("SELECT count(*) - count(DISTINCT item) FROM orders"), "0");
            assert_eq!(count("orders"), "32");
            assert!(pool.state().connections <= 3);
        }

        /// The caller's own transaction, from the caller's own pool.
        #[actix_rt::test]
        async fn e13_a_claim_is_completed_in_the_callers_transaction() {
            SERVER.sql("CREATE TABLE own (item varchar(50))");
            let pool = pool(4);
            let backend = open(&fresh_table(), &pool).await;
            let engine = Engine::builder(backend.clone()).on_abandoned(OnAbandoned::Rerun).start().unwrap();
            let order = async |commits: bool| {
                let (pool, backend) = (pool.clone(), backend.clone());
                let operation = async move |claim: oncekey::Claim| {
                    let completion = claim.completion(&17_u32)?;
                    tokio::task::spawn_blocking(move || {
                        let mut connection = pool.get()?;
                        // Outside of a transaction it would commit by itself.
                        let alone = backend.complete_in_blocking(&mut connection, completion.clone());
                        assert!(matches!(alone, Err(CompleteInError::NoTransaction)), "{alone:?}");
                        connection.transaction(|tx| {
                            tx.batch_execute("INSERT INTO own VALUES ('book')")?;
                            backend.complete_in_blocking(tx, completion.clone())?;
                            // As good as once.
                            backend.complete_in_blocking(tx, completion)?;
                            if commits { Ok(17_u32) } else { Err(Failure::from("changed its mind")) }
                        })
                    })
                    .await?
                };
                engine.run_local(Key::new("s", "k").unwrap(), b"", operation).await
            };
            assert!(matches!(order(false).await, Err(RunError::Operation(_))));
            assert_eq!(count("own"), "0");
            assert_eq!(order(true).await.unwrap(), Outcome::Ran(17));
            assert_eq!(order(true).await.unwrap(), Outcome::Replayed(17));
            assert_eq!(count("own"), "1");
        }

        #[actix_rt::test]
        async fn e06_a_stale_owner_completes_nothing() {
            SERVER.sql("CREATE TABLE stale (item varchar(50))");
            let pool = pool(2);
            let backend = open(&fresh_table(), &pool).await;
            let claim = Acquire { lease: Duration::from_millis(1), ..acquire("k") };
            let outcome = SealedOutcome::tombstone(&claim.key);
            let retention = Duration::from_secs(60);
            let stale = Complete { key: claim.key.clone(), owner: claim.owner, outcome: outcome.clone(), retention };
            assert!(matches!(backend.acquire(claim).await, Ok(Acquired::Claimed { .. })));
            let taken_over = async || {
                while !matches!(backend.acquire(acquire("k")).await, Ok(Acquired::Claimed { took_over: true, .. })) {}
            };
            // During the operation the claim is taken over, by another thread, and lost.
            let (begin, begun) = tokio::sync::oneshot::channel();
            let (go_on, goes_on) = std::sync::mpsc::channel::<()>();
            let operation = TransactionOperation::new(move |tx: &mut $connection| {
                tx.batch_execute("INSERT INTO stale VALUES ('book')").unwrap();
                begin.send(()).unwrap();
                goes_on.recv().unwrap();
                Ok(outcome)
            });
            let (key, owner) = (stale.key.clone(), stale.owner);
            let running = backend.complete_in_transaction(CompleteInTransaction { key, owner, retention, operation });
            let taking = async {
                begun.await.unwrap();
                taken_over().await;
                go_on.send(()).unwrap();
            };
            let (ended, ()) = futures_util::future::join(running, taking).await;
            assert_eq!(ended, Ok(CompletedInTransaction::Lost));
            let ended = pool.get().unwrap().transaction(|tx| {
                tx.batch_execute("INSERT INTO stale VALUES ('book')")?;
                backend.complete_in_blocking(tx, stale.clone())
            });
            assert!(matches!(ended, Err(CompleteInError::ClaimLost)), "{ended:?}");
            assert_eq!(count("stale"), "0");
        }

        /// What an operation leaves on its connection meets no later user of the pool.
        #[actix_rt::test]
        async fn e27_a_connection_goes_back_as_it_was() {
            let (table, pool) = (fresh_table(), pool(1));
            let engine = Engine::builder(open(&table, &pool).await).start().unwrap();
            let is_left = |pool: &Pool<ConnectionManager<$connection>>| {
                let asked = diesel::select(sql::<Bool>($what_is_left));
                asked.get_result::<bool>(&mut pool.get().unwrap()).unwrap()
            };
            for (number, leave_behind) in $leave_behind.into_iter().enumerate() {
                let ran = engine.run_in_transaction(
                    Key::new("s", number).unwrap(),
                    b"",
                    move |tx: &mut $connection, _| tx.batch_execute(leave_behind).map(|()| 1_u32),
                );
                assert_eq!(ran.await.unwrap(), Outcome::Ran(1), "{leave_behind}");
                assert!(!is_left(&pool), "{leave_behind}");
            }
        }

        /// A transaction that the operation has ended is no proof of anything.
        #[actix_rt::test]
        async fn e13_an_operation_that_ends_its_transaction_is_not_told_of() {
            SERVER.sql("CREATE TABLE ended (item varchar(50))");
            let engine = Engine::builder(open(&fresh_table(), &pool(1)).await).start().unwrap();
            let ran = engine.run_in_transaction(Key::new("s", "k").unwrap(), b"", |tx: &mut $connection, _| {
                tx.batch_execute("INSERT INTO ended VALUES ('kept')")?;
                tx.batch_execute("COMMIT")?;
                Ok::<u32, diesel::result::Error>(1)
            });
            let ended = ran.await;
            let is_told = matches!(&ended, Err(RunError::Engine(Error::OutcomeNotStored(StoreError::TransactionEnded))));
            assert!(is_told, "{ended:?}");
        }

        /// An operation that fails or panics leaves no rows, and another try runs.
        #[actix_rt::test]
        async fn e13_what_fails_is_rolled_back() {
            SERVER.sql("CREATE TABLE failed (item varchar(50))");
            let engine = Engine::builder(open(&fresh_table(), &pool(1)).await).start().unwrap();
            let run = async |fails: u32| {
                let operation = move |tx: &mut $connection, _: &oncekey::Claim| {
                    tx.batch_execute("INSERT INTO failed VALUES ('book')").unwrap();
                    assert!(fails != 1, "this panic is part of a check");
                    if fails == 2 { Err("changed its mind") } else { Ok(17_u32) }
                };
                engine.run_in_transaction(Key::new("s", "k").unwrap(), b"", operation).await
            };
            assert!(matches!(run(1).await, Err(RunError::Engine(Error::Panicked))));
            assert!(matches!(run(2).await, Err(RunError::Operation("changed its mind"))));
            assert_eq!(count("failed"), "0");
            assert_eq!(run(0).await.unwrap(), Outcome::Ran(17));
            assert_eq!(run(1).await.unwrap(), Outcome::Replayed(17));
            assert_eq!(count("failed"), "1");
            let wrong = engine.run_in_transaction(Key::new("s", "w").unwrap(), b"", |_: &mut SqliteConnection, _| {
                Ok::<u32, ()>(1)
            });
            let wrong = wrong.await;
            assert!(matches!(wrong, Err(RunError::Engine(Error::NoSuchTransaction { .. }))), "{wrong:?}");
        }

        /// Two operations that take the same rows in opposite order: one is given up, whatever it makes of that.
        #[actix_rt::test]
        async fn e13_a_deadlock_is_rolled_back() {
            SERVER.sql(
                "CREATE TABLE stock (item varchar(50) PRIMARY KEY, left_over int); INSERT INTO stock VALUES ('a', 100), ('b', 100)",
            );
            let (table, pool) = (fresh_table(), pool(4));
            let engine = Engine::builder(open(&table, &pool).await).start().unwrap();
            for passes_over in [false, true] {
                let meet = std::sync::Arc::new(std::sync::Barrier::new(2));
                let took = join_all([["a", "b"], ["b", "a"]].into_iter().map(|items| {
                    let meet = meet.clone();
                    engine.run_in_transaction(
                        Key::new("s", format!("{passes_over} {}", items.concat())).unwrap(),
                        b"",
                        move |tx: &mut $connection, _| {
                            for item in items {
                                let text = format!("UPDATE stock SET left_over = left_over - 1 WHERE item = '{item}'");
                                let taken = tx.batch_execute(&text);
                                if !passes_over {
                                    taken?;
                                }
                                if item == items[0] {
                                    meet.wait();
                                }
                            }
                            Ok::<u32, diesel::result::Error>(1)
                        },
                    )
                }))
                .await;
                let ran = took.iter().filter(|took| matches!(took, Ok(Outcome::Ran(1)))).count();
                assert_eq!(ran, 1, "{took:?}");
                let is_told = |took: &Result<_, RunError<_>>| match took {
                    Err(RunError::Operation(_)) => !passes_over,
                    Err(RunError::Engine(Error::Store(StoreError::Overloaded(_)))) => passes_over,
                    _ => false,
                };
                assert!(took.iter().any(is_told), "{took:?}");
            }
            assert_eq!(SERVER.sql("SELECT left_over FROM stock"), "98\n98");
        }

        /// The connection is cut after COMMIT: the record tells that it took place, and nothing runs again.
        #[actix_rt::test]
        async fn j02_a_commit_without_an_answer_is_found_again() {
            SERVER.sql("CREATE TABLE cut (item varchar(50))");
            let proxy = Proxy::before(SERVER.port());
            let url = SERVER.url().replace(&SERVER.port().to_string(), &proxy.port().to_string());
            let engine = Engine::builder(open(&fresh_table(), &pool_of(&url, 2)).await).start().unwrap();
            proxy.cut_commits(5);
            for number in 0..5 {
                let ran = engine.run_in_transaction(Key::new("s", number).unwrap(), b"", |tx: &mut $connection, _| {
                    tx.batch_execute("INSERT INTO cut VALUES ('cut')")?;
                    Ok::<u32, diesel::result::Error>(17)
                });
                assert_eq!(ran.await.unwrap(), Outcome::Ran(17));
            }
            assert_eq!(proxy.commits_left(), 0);
            assert_eq!(count("cut"), "5");
        }

        /// A caller that gave up while the pool had no connection is not served later.
        #[actix_rt::test]
        async fn e19_an_operation_that_was_given_up_does_not_run_late() {
            SERVER.sql("CREATE TABLE late (item varchar(50))");
            let pool = pool(1);
            let backend = open(&fresh_table(), &pool).await;
            let claim = acquire("k");
            let (key, owner) = (claim.key.clone(), claim.owner);
            assert!(matches!(backend.acquire(claim).await, Ok(Acquired::Claimed { .. })));
            let outcome = SealedOutcome::tombstone(&key);
            let lent = pool.get().unwrap();
            let inserting = |outcome: SealedOutcome| {
                TransactionOperation::new(move |tx: &mut $connection| {
                    tx.batch_execute("INSERT INTO late VALUES ('late')").unwrap();
                    Ok(outcome)
                })
            };
            let retention = Duration::from_secs(60);
            let operation = inserting(outcome);
            let late = CompleteInTransaction { key: key.clone(), owner, retention, operation };
            let ended = tokio::time::timeout(Duration::from_millis(300), backend.complete_in_transaction(late)).await;
            assert!(ended.is_err(), "{ended:?}");
            let operation = TransactionOperation::probe();
            let probe = CompleteInTransaction { key, owner, retention, operation };
            assert_eq!(backend.complete_in_transaction(probe).await, Ok(CompletedInTransaction::RolledBack));
            drop(lent);
            // The next operation waits until the late one's thread has ended.
            let claim = acquire("next");
            let (key, owner) = (claim.key.clone(), claim.owner);
            assert!(matches!(backend.acquire(claim).await, Ok(Acquired::Claimed { .. })));
            let operation = inserting(SealedOutcome::tombstone(&key));
            let next = CompleteInTransaction { key, owner, retention, operation };
            let stored = backend.complete_in_transaction(next).await;
            assert!(matches!(stored, Ok(CompletedInTransaction::Stored { .. })), "{stored:?}");
            assert_eq!(count("late"), "1");
        }

        /// A pool that leads elsewhere is refused.
        #[actix_rt::test]
        async fn e27_a_pool_of_another_database_is_refused() {
            let other = <$server>::start();
            let builder = $backend::builder(SERVER.url()).table(&fresh_table()).unwrap();
            let refused = builder.blocking_pool(pool_of(&other.url(), 1)).open().await.unwrap_err();
            let is_refused = matches!(&refused, $open_error::Unreachable(why) if why.contains("blocking pool"));
            assert!(is_refused, "{refused}");
        }
    };
}

mod postgres {
    use super::*;

    on_database! {
        server: Postgres,
        backend: PostgresBackend,
        open_error: PostgresOpenError,
        connection: PgConnection,
        leave_behind: [
            "SET search_path = pg_catalog",
            "SET TimeZone = 'Asia/Tokyo'",
            "SET default_transaction_read_only = on",
            "CREATE TEMP TABLE left_there (n int)",
            "DECLARE left_there CURSOR WITH HOLD FOR SELECT 1",
        ],
        what_is_left: "current_setting('search_path') = 'pg_catalog' OR current_setting('TimeZone') = 'Asia/Tokyo' \
            OR current_setting('default_transaction_read_only') = 'on' OR to_regclass('pg_temp.left_there') IS NOT NULL \
            OR EXISTS (SELECT 1 FROM pg_cursors WHERE name = 'left_there')",
    }

    crate::steps::steps_on_database!(PostgresBackend, PgConnection);
}

mod mysql {
    use super::*;

    on_database! {
        server: MariaDb,
        backend: MysqlBackend,
        open_error: MysqlOpenError,
        connection: MysqlConnection,
        leave_behind: [
            "SET time_zone = '+09:00'",
            "SET foreign_key_checks = 0",
            "SET innodb_lock_wait_timeout = 3",
            "USE mysql",
        ],
        what_is_left: "@@time_zone = '+09:00' OR @@foreign_key_checks = 0 OR @@innodb_lock_wait_timeout = 3 \
            OR DATABASE() = 'mysql' OR @@autocommit = 0",
    }

    crate::steps::steps_on_database!(MysqlBackend, MysqlConnection);
}
