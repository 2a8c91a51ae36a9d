//! Names and sessions: whatever an operation or the application leaves on a connection does not affect later work.

/// Checks for every database, in the module of one of them.
macro_rules! names_on_database {
    (
        backend: $backend:ident,
        connection: $connection:ty,
        open_elsewhere: $open_elsewhere:expr,
        leave_elsewhere: $leave_elsewhere:literal,
        leave_behind: $leave_behind:expr,
        what_is_left: $what_is_left:expr $(,)?
    ) => {
        mod names {
            use oncekey::backend::Lookup;

            use super::*;

            #[derive(diesel::QueryableByName)]
            struct Left {
                #[diesel(sql_type = diesel::sql_types::Text)]
                found: String,
            }

            async fn left(connection: &mut $connection) -> String {
                use diesel_async::RunQueryDsl as _;
                let text = format!("SELECT {} AS found", $what_is_left);
                diesel::sql_query(text).get_result::<Left>(connection).await.unwrap().found
            }

            /// An operation switches its connection to another schema or database. Every later claim is still made in
            /// the original table.
            #[actix_rt::test]
            async fn e27_an_operation_that_moves_its_session_moves_no_claim() {
                let server = SERVER.url();
                let table = fresh_table();
                drop(($open_elsewhere)(&table).await);
                let own = $backend::builder(&server).table(&table).unwrap().open().await.unwrap();
                let lent = $backend::from_pool(pool()).table(&table).unwrap().open().await.unwrap();
                for backend in [own, lent] {
                    let engine = Engine::builder(backend.clone()).on_abandoned(OnAbandoned::Resume).start().unwrap();
                    // This makes more concurrent calls than there are connections.
                    let move_away = |number: usize| {
                        let key = Key::new("s", number).unwrap();
                        let operation = async |tx: &mut $connection, _: &Claim| {
                            tx.batch_execute($leave_elsewhere).await?;
                            Ok::<u32, diesel::result::Error>(1)
                        };
                        engine.run_in_async_transaction(key, b"", operation)
                    };
                    join_all((0..30).map(move_away))
                        .await
                        .into_iter()
                        .for_each(|ran| assert_eq!(ran.unwrap().into_inner(), 1));
                    let move_steps = |number: usize| {
                        engine.run_local(Key::new("u", number).unwrap(), b"", async move |claim: Claim| {
                            let leave = async |tx: &mut $connection, _: &oncekey::Step| {
                                tx.batch_execute($leave_elsewhere).await?;
                                Ok::<u32, diesel::result::Error>(1)
                            };
                            claim.step_in_async_transaction("leave", leave).await?;
                            claim.step("stay", async |_| Ok::<u32, diesel::result::Error>(1)).await
                        })
                    };
                    join_all((0..10).map(move_steps))
                        .await
                        .into_iter()
                        .for_each(|ran| assert_eq!(ran.unwrap().into_inner(), 1));
                    for number in 0..30 {
                        let key = Key::new("t", number).unwrap();
                        let ran = engine.run(key.clone(), b"", |_| async { Ok::<u32, ()>(1) }).await.unwrap();
                        assert!(matches!(ran, Outcome::Ran(1) | Outcome::Replayed(1)));
                        assert!(backend.lookup(Lookup { key }).await.unwrap().is_some());
                    }
                }
                assert_eq!(SERVER.sql(&format!("SELECT count(*) FROM {table}")), "70");
                assert_eq!(SERVER.sql(&format!("SELECT count(*) FROM {table}_steps")), "20");
                assert_eq!(SERVER.sql(&format!("SELECT count(*) FROM elsewhere.{table}")), "0");
                assert_eq!(SERVER.sql(&format!("SELECT count(*) FROM elsewhere.{table}_steps")), "0");
            }

            /// The application switches all connections of its own pool.
            #[actix_rt::test]
            async fn e27_a_pool_that_is_moved_moves_no_claim() {
                let table = fresh_table();
                drop(($open_elsewhere)(&table).await);
                let pool = pool();
                let backend = $backend::from_pool(pool.clone()).table(&table).unwrap().open().await.unwrap();
                assert!(matches!(backend.acquire(acquire("k")).await, Ok(Acquired::Claimed { .. })));
                let mut connections = Vec::new();
                for _ in 0..20 {
                    let mut connection = pool.get().await.unwrap();
                    connection.batch_execute($leave_elsewhere).await.unwrap();
                    connections.push(connection);
                }
                drop(connections);
                let again = backend.acquire(acquire("k")).await;
                assert!(matches!(again, Ok(Acquired::InProgress { .. })), "{again:?}");
                assert_eq!(backend.purge(Purge { limit: 1 }).await.unwrap().removed, 0);
                // Steps, and decisions about all of them.
                let held = crate::steps::claim(&backend, "steps").await;
                held.done(&backend, "charge", 1).await;
                let release = oncekey::backend::Release { key: held.key.clone(), owner: held.owner };
                backend.release(release).await.unwrap();
                let next = crate::steps::claim(&backend, "steps").await;
                assert_eq!(crate::steps::progress(next.steps.as_deref()), [("charge".to_owned(), "completed")]);
                SERVER.sql(&format!("UPDATE {table} SET lease_until = 1, purge_at = 2"));
                assert!(backend.purge(Purge { limit: 10 }).await.unwrap().removed >= 2);
                assert_eq!(SERVER.sql(&format!("SELECT count(*) FROM {table}_steps")), "0");
                assert_eq!(SERVER.sql(&format!("SELECT count(*) FROM elsewhere.{table}")), "0");
                assert_eq!(SERVER.sql(&format!("SELECT count(*) FROM elsewhere.{table}_steps")), "0");
            }

            /// A connection that was lent to an operation is returned unchanged, or not at all.
            #[actix_rt::test]
            async fn e27_nothing_of_an_operation_is_left_on_its_connection() {
                let table = fresh_table();
                let own = open(&table).await;
                let lent = $backend::from_pool(pool()).table(&table).unwrap().open().await.unwrap();
                for (backend, scope) in [(own, "own"), (lent, "lent")] {
                    let engine = Engine::builder(backend).on_abandoned(OnAbandoned::Resume).start().unwrap();
                    for (number, leave) in $leave_behind.iter().enumerate() {
                        for round in 0..3 {
                            let key = Key::new(scope, format!("{number}-{round}")).unwrap();
                            let before = Arc::new(parking_lot::Mutex::new(String::new()));
                            let seen = Arc::clone(&before);
                            let operation = async move |tx: &mut $connection, _: &Claim| {
                                *seen.lock() = left(tx).await;
                                tx.batch_execute(leave).await?;
                                Ok::<u32, diesel::result::Error>(1)
                            };
                            engine.run_in_async_transaction(key, b"", operation).await.unwrap();
                            assert_eq!(*before.lock(), "", "{scope}: {leave}");
                            // The same holds for a step's operation.
                            let key = Key::new(scope, format!("step-{number}-{round}")).unwrap();
                            let seen = Arc::clone(&before);
                            let step = async move |tx: &mut $connection, _: &oncekey::Step| {
                                *seen.lock() = left(tx).await;
                                tx.batch_execute(leave).await?;
                                Ok::<u32, diesel::result::Error>(1)
                            };
                            let operation =
                                async move |claim: Claim| claim.step_in_async_transaction("leave", step).await;
                            engine.run_local(key, b"", operation).await.unwrap();
                            assert_eq!(*before.lock(), "", "{scope}, step: {leave}");
                        }
                    }
                }
            }
        }
    };
}
pub(crate) use names_on_database;
