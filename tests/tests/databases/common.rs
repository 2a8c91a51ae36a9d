//! Checks that hold for each database.

use std::time::Duration;

use diesel_async::pooled_connection::AsyncDieselConnectionManager;
use diesel_async::pooled_connection::deadpool::Pool;
use diesel_async::{AsyncMysqlConnection, AsyncPgConnection};
pub(crate) use tests::claims::{acquire, fresh_table};

pub(crate) fn postgres_pool(url: &str, size: usize) -> Pool<AsyncPgConnection> {
    Pool::builder(AsyncDieselConnectionManager::new(url)).max_size(size).build().unwrap()
}

pub(crate) fn mysql_pool(url: &str, size: usize) -> Pool<AsyncMysqlConnection> {
    Pool::builder(AsyncDieselConnectionManager::new(url)).max_size(size).build().unwrap()
}

/// Waits long enough for a relay's first query.
pub(crate) async fn a_while() {
    tokio::time::sleep(Duration::from_secs(2)).await;
}

/// The conformance suite and the checks for every database, in the module of one of them.
macro_rules! on_database {
    (
        server: $server:ty,
        backend: $backend:ident,
        open_error: $open_error:ident,
        connection: $connection:ty,
        key_column: $key_column:literal $(,)?
    ) => {
        static SERVER: LazyLock<$server> = LazyLock::new(<$server>::start);

        oncekey::conformance_tests!(conformance, Capabilities::all(), {
            let table = fresh_table();
            move || {
                let table = table.clone();
                async move { $backend::builder(SERVER.url()).table(&table).unwrap().open().await.unwrap() }
            }
        });

        async fn open(table: &str) -> $backend {
            $backend::builder(SERVER.url()).table(table).unwrap().open().await.unwrap()
        }

        #[actix_rt::test]
        async fn ten_that_start_at_once_make_one_table() {
            let table = fresh_table();
            let opened = join_all((0..10).map(|_| open(&table))).await;
            let acquired = join_all(opened.iter().map(|backend| backend.acquire(acquire("k")))).await;
            assert_eq!(acquired.iter().filter(|answer| matches!(answer, Ok(Acquired::Claimed { .. }))).count(), 1);
            assert_eq!(SERVER.sql(&format!("SELECT max(version) - count(*) FROM {table}_migrations")), "0");
        }

        #[actix_rt::test]
        async fn a_newer_schema_is_refused_by_name() {
            let table = fresh_table();
            drop(open(&table).await);
            SERVER.sql(&format!("INSERT INTO {table}_migrations VALUES (99)"));
            let refused = $backend::builder(SERVER.url()).table(&table).unwrap().open().await.unwrap_err();
            assert!(matches!(refused, $open_error::NewerSchema { found: 99, .. }), "{refused}");
            assert!(refused.to_string().contains(&table), "{refused}");
        }

        /// One row that the server refuses does not fail the others of its batch.
        #[actix_rt::test]
        async fn one_bad_row_does_not_fail_its_neighbours() {
            let table = fresh_table();
            let backend = open(&table).await;
            SERVER.sql(&format!("ALTER TABLE {table} ADD CONSTRAINT refused CHECK ({} NOT LIKE '%:bad')", $key_column));
            let engine = Engine::builder(backend).start().unwrap();
            let keys = ["a", "b", "bad", "c", "d"];
            let ran = join_all(keys.map(|key| {
                let engine = engine.clone();
                async move { engine.run(Key::new("s", key).unwrap(), b"", |_| async { Ok::<u32, ()>(1) }).await }
            }))
            .await;
            let failed: Vec<_> = keys.iter().zip(&ran).filter(|(_, ran)| ran.is_err()).map(|(key, _)| *key).collect();
            assert_eq!(failed, ["bad"], "{ran:?}");
        }

        /// The server restarts under an engine, which continues by itself.
        #[actix_rt::test]
        async fn after_the_servers_restart_it_goes_on() {
            let mut server = <$server>::start();
            let engine = Engine::builder($backend::open(&server.url()).await.unwrap()).start().unwrap();
            let run = async |key: &str| engine.run(Key::new("s", key).unwrap(), b"", |_| async { Ok::<u32, ()>(1) }).await;
            assert_eq!(run("before").await.unwrap(), Outcome::Ran(1));
            server.kill();
            assert!(run("while").await.is_err());
            server.restart();
            assert_eq!(run("before").await.unwrap(), Outcome::Replayed(1));
            assert_eq!(run("after").await.unwrap(), Outcome::Ran(1));
        }

        fn pool() -> Pool<$connection> {
            Pool::builder(AsyncDieselConnectionManager::new(SERVER.url())).max_size(20).build().unwrap()
        }

        /// On the application's own pool, the rows and the outcome commit together, or neither does.
        #[actix_rt::test]
        async fn the_operations_rows_commit_with_the_outcome() {
            let table = fresh_table();
            SERVER.sql("CREATE TABLE IF NOT EXISTS orders (item varchar(50))");
            let backend = $backend::from_pool(pool()).table(&table).unwrap().open().await.unwrap();
            let engine = Engine::builder(backend).start().unwrap();
            let order = async |key: &str, item: &'static str, fails: bool| {
                let key = Key::new("s", key).unwrap();
                engine
                    .run_in_async_transaction(key, b"", async move |tx: &mut $connection, _| {
                        tx.batch_execute(&format!("INSERT INTO orders VALUES ('{item}')")).await?;
                        if fails { Err(diesel::result::Error::RollbackTransaction) } else { Ok(17_u32) }
                    })
                    .await
            };
            let count = |item: &str| SERVER.sql(&format!("SELECT count(*) FROM orders WHERE item = '{item}'"));
            assert!(matches!(order("1", "book", true).await, Err(RunError::Operation(_))));
            assert_eq!(count("book"), "0");
            assert_eq!(order("1", "book", false).await.unwrap(), Outcome::Ran(17));
            assert_eq!(order("1", "book", false).await.unwrap(), Outcome::Replayed(17));
            assert_eq!(count("book"), "1");
        }

        /// The store's deadline counts while the store works, and not while the operation runs.
        #[actix_rt::test]
        async fn j09_an_async_transaction_takes_the_time_that_it_needs() {
            let deadline = std::time::Duration::from_secs(1);
            let engine = Engine::builder(open(&fresh_table()).await).store_deadline(deadline).start().unwrap();
            let operation = async move |_: &mut $connection, _: &Claim| {
                tokio::time::sleep(3 * deadline).await;
                Ok::<u32, diesel::result::Error>(17)
            };
            let ran = engine.run_in_async_transaction(Key::new("s", "k").unwrap(), b"", operation).await;
            assert_eq!(ran.unwrap(), Outcome::Ran(17));
        }

        /// In a transaction that the application opens itself, the rows and the outcome commit together, or neither
        /// does.
        #[actix_rt::test]
        async fn e18_a_claim_is_completed_in_the_callers_own_transaction() {
            type Failure = Box<dyn std::error::Error + Send + Sync>;
            SERVER.sql("CREATE TABLE own (item varchar(50))");
            let backend = open(&fresh_table()).await;
            let engine = Engine::builder(backend.clone()).on_abandoned(OnAbandoned::Rerun).start().unwrap();
            let pool = pool();
            let order = async |key: &str, commits: bool| {
                let (pool, backend) = (pool.clone(), backend.clone());
                let operation = move |claim: Claim| async move {
                    let completion = claim.completion(&17_u32)?;
                    let mut connection = pool.get().await?;
                    // Outside a transaction it would be committed by itself.
                    let alone = backend.complete_in(&mut connection, completion.clone()).await;
                    assert!(matches!(alone, Err(CompleteInError::NoTransaction)));
                    connection
                        .transaction(async |tx| {
                            tx.batch_execute("INSERT INTO own VALUES ('book')").await?;
                            backend.complete_in(tx, completion.clone()).await?;
                            // A second completion changes nothing.
                            backend.complete_in(tx, completion).await?;
                            if commits { Ok(17_u32) } else { Err(Failure::from("changed its mind")) }
                        })
                        .await
                };
                engine.run_local(Key::new("s", key).unwrap(), b"", operation).await
            };
            let count = || SERVER.sql("SELECT count(*) FROM own");
            assert!(matches!(order("k", false).await, Err(RunError::Operation(_))));
            assert_eq!(count(), "0");
            assert_eq!(order("k", true).await.unwrap(), Outcome::Ran(17));
            assert_eq!(order("k", true).await.unwrap(), Outcome::Replayed(17));
            assert_eq!(count(), "1");
        }

        /// A holder whose claim was taken over learns so in its own transaction, which it rolls back.
        #[actix_rt::test]
        async fn e06_a_stale_owner_completes_nothing_in_its_own_transaction() {
            SERVER.sql("CREATE TABLE own_late (item varchar(50))");
            let backend = open(&fresh_table()).await;
            let claim = Acquire { lease: Duration::from_millis(1), ..acquire("k") };
            let outcome = SealedOutcome::tombstone(&claim.key);
            let stale = Complete { key: claim.key.clone(), owner: claim.owner, outcome, retention: Duration::from_secs(60) };
            assert!(matches!(backend.acquire(claim).await, Ok(Acquired::Claimed { .. })));
            while !matches!(backend.acquire(acquire("k")).await, Ok(Acquired::Claimed { took_over: true, .. })) {}
            let mut connection = pool().get().await.unwrap();
            let ended = connection.transaction(async |tx| {
                tx.batch_execute("INSERT INTO own_late VALUES ('book')").await?;
                backend.complete_in(tx, stale).await
            });
            assert!(matches!(ended.await, Err(CompleteInError::ClaimLost)));
            assert_eq!(SERVER.sql("SELECT count(*) FROM own_late"), "0");
        }

        /// Two operations take the same rows in opposite order. The database aborts one of them, and it runs again.
        #[actix_rt::test]
        async fn a_deadlock_is_done_again() {
            SERVER.sql(
                "CREATE TABLE stock (item varchar(50) PRIMARY KEY, left_over int); INSERT INTO stock VALUES ('a', 100), ('b', 100)",
            );
            let table = fresh_table();
            let engines = [open(&table).await, open(&table).await].map(|backend| Engine::builder(backend).start().unwrap());
            let runs = Arc::new(AtomicUsize::new(0));
            let meet = Arc::new(tokio::sync::Barrier::new(2));
            let took = join_all([["a", "b"], ["b", "a"]].into_iter().zip(&engines).map(|(items, engine)| {
                let (runs, meet) = (runs.clone(), meet.clone());
                engine.run_in_async_transaction(
                    Key::new("s", items.concat()).unwrap(),
                    b"",
                    async move |tx: &mut $connection, _| {
                        let first = runs.fetch_add(1, Ordering::Relaxed) < 2;
                        for item in items {
                            let text = format!("UPDATE stock SET left_over = left_over - 1 WHERE item = '{item}'");
                            tx.batch_execute(&text).await?;
                            // Both hold their first row before either asks for its second.
                            if first && item == items[0] {
                                meet.wait().await;
                            }
                        }
                        Ok::<u32, diesel::result::Error>(1)
                    },
                )
            }))
            .await;
            assert!(took.iter().all(|took| matches!(took, Ok(Outcome::Ran(1)))), "{took:?}");
            assert!(runs.load(Ordering::Relaxed) >= 3, "none was done again: there was no deadlock");
            assert_eq!(SERVER.sql("SELECT left_over FROM stock"), "98\n98");
        }

        #[actix_rt::test]
        async fn a_password_is_in_no_error() {
            let url = SERVER.url().replace("shop@", "nobody:hunter2@");
            let error = $backend::open(&url).await.unwrap_err();
            assert!(!format!("{error} {error:?} {:?}", $backend::builder(&url)).contains("hunter2"), "{error}");
        }

        #[actix_rt::test]
        async fn a_savepoint_of_the_operation_is_its_own_affair() {
            let table = fresh_table();
            SERVER.sql("CREATE TABLE notes (text varchar(50))");
            let engine = Engine::builder(open(&table).await).start().unwrap();
            let noted = engine
                .run_in_async_transaction(Key::new("s", "n").unwrap(), b"", async |tx: &mut $connection, _| {
                    let inner = tx
                        .transaction(async |tx| {
                            tx.batch_execute("INSERT INTO notes VALUES ('gone')").await?;
                            Err::<(), _>(diesel::result::Error::RollbackTransaction)
                        })
                        .await;
                    assert!(inner.is_err());
                    tx.batch_execute("INSERT INTO notes VALUES ('kept')").await?;
                    Ok::<u32, diesel::result::Error>(1)
                })
                .await;
            assert_eq!(noted.unwrap(), Outcome::Ran(1));
            assert_eq!(SERVER.sql("SELECT text FROM notes"), "kept");
        }

        /// A holder that was away for longer than its lease while its operation ran commits nothing.
        #[actix_rt::test]
        async fn a_claim_taken_over_during_the_operation_commits_nothing() {
            SERVER.sql("CREATE TABLE late (text varchar(50))");
            let table = fresh_table();
            let (holder, other) = (open(&table).await, open(&table).await);
            let claim = Acquire { lease: Duration::from_millis(1), ..acquire("k") };
            let (key, owner) = (claim.key.clone(), claim.owner);
            assert!(matches!(holder.acquire(claim).await, Ok(Acquired::Claimed { .. })));
            let outcome = SealedOutcome::tombstone(&key);
            let operation = TransactionOperation::new_async(async move |tx: &mut $connection| {
                tx.batch_execute("INSERT INTO late VALUES ('late')").await.unwrap();
                while !matches!(other.acquire(acquire("k")).await, Ok(Acquired::Claimed { took_over: true, .. })) {}
                Ok(outcome.clone())
            });
            let message = CompleteInTransaction { key, owner, retention: Duration::from_secs(60), operation };
            assert_eq!(holder.complete_in_transaction(message).await, Ok(CompletedInTransaction::Lost));
            assert_eq!(SERVER.sql("SELECT count(*) FROM late"), "0");
        }

        /// The connection is cut after COMMIT. The record shows that the commit took place, and nothing runs again.
        #[actix_rt::test]
        async fn a_commit_without_an_answer_is_found_again() {
            SERVER.sql("CREATE TABLE cut (text varchar(50))");
            let proxy = Proxy::before(SERVER.port());
            let url = SERVER.url().replace(&SERVER.port().to_string(), &proxy.port().to_string());
            let backend = $backend::builder(url).table(&fresh_table()).unwrap().open().await.unwrap();
            let engine = Engine::builder(backend).start().unwrap();
            proxy.cut_commits(5);
            for number in 0..5 {
                let key = Key::new("s", number).unwrap();
                let ran = engine.run_in_async_transaction(key, b"", async |tx: &mut $connection, _| {
                    tx.batch_execute("INSERT INTO cut VALUES ('cut')").await?;
                    Ok::<u32, diesel::result::Error>(17)
                });
                assert_eq!(ran.await.unwrap(), Outcome::Ran(17));
            }
            assert_eq!(proxy.commits_left(), 0);
            assert_eq!(SERVER.sql("SELECT count(*) FROM cut"), "5");
        }
    };
}
pub(crate) use on_database;
