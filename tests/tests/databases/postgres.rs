//! PostgreSQL.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use diesel_async::pooled_connection::AsyncDieselConnectionManager;
use diesel_async::pooled_connection::deadpool::Pool;
use diesel_async::{AsyncConnection as _, AsyncPgConnection, SimpleAsyncConnection as _};
use futures_util::future::join_all;
use oncekey::backend::{
    Acquire, Acquired, Backend as _, Complete, CompleteInTransaction, CompletedInTransaction, List, Lookup, Purge,
    Purged, TransactionOperation,
};
use oncekey::conformance::Capabilities;
use oncekey::record::SealedOutcome;
use oncekey::{Claim, Engine, Key, OnAbandoned, Outcome, RunError};
use oncekey_backends::CompleteInError;
use oncekey_backends::postgres::{PostgresBackend, PostgresOpenError};
use tests::process::PATIENCE;
use tests::proxy::Proxy;
use tests::server::Postgres;

use crate::common::{acquire, fresh_table, on_database};

on_database! {
    server: Postgres,
    backend: PostgresBackend,
    open_error: PostgresOpenError,
    connection: AsyncPgConnection,
    key_column: "key",
}

#[actix_rt::test]
async fn the_schema_is_made_and_a_table_that_is_not_to_be_made_is_asked_for() {
    let builder = || PostgresBackend::builder(SERVER.url()).schema("apart").unwrap().table("kept").unwrap();
    let refused = builder().migrate(false).open().await.unwrap_err();
    assert!(matches!(refused, PostgresOpenError::NotMigrated { found: 0, .. }), "{refused}");
    builder().open().await.unwrap();
    let backend = builder().migrate(false).open().await.unwrap();
    assert!(matches!(backend.acquire(acquire("k")).await, Ok(Acquired::Claimed { .. })));
    assert_eq!(SERVER.sql("SELECT count(*) FROM apart.kept"), "1");
}

/// Lists and purges never read the whole table.
#[actix_rt::test]
async fn list_and_purge_go_by_their_indexes() {
    let table = fresh_table();
    let backend = open(&table).await;
    SERVER.sql(&format!(
        "INSERT INTO {table} SELECT '1:s:' || lpad(n::text, 9, '0'), '\\x00', 1, '\\x00', 2, NULL, NULL, '\\x00', \
         CASE WHEN n % 100 = 0 THEN 1 ELSE 9000000000000 END FROM generate_series(1, 200000) AS n; ANALYZE {table}"
    ));
    let purged = backend.purge(Purge { limit: 500 }).await.unwrap();
    assert_eq!(purged, Purged { removed: 500, more: true });
    let refused = backend.list(List { after: None, limit: 100 }).await.unwrap_err();
    assert!(refused.to_string().contains("corrupt"), "the rows are no records: {refused}");
    drop(backend);
    // A session's counts are there when it has ended.
    let count = |what: &str| {
        SERVER.sql(&format!("SELECT coalesce(sum({what}), 0) FROM pg_stat_user_tables WHERE relname = '{table}'"))
    };
    let deadline = Instant::now() + PATIENCE;
    while count("n_tup_del") != "500" {
        assert!(Instant::now() < deadline, "the purge was not counted");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(count("seq_tup_read"), "0", "rows were read by scanning the table");
}

/// Connections cut behind the engine's back are replaced by it.
#[actix_rt::test]
async fn cut_connections_are_replaced() {
    let table = fresh_table();
    let backend = open(&table).await;
    assert!(matches!(backend.acquire(acquire("a")).await, Ok(Acquired::Claimed { .. })));
    let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
               WHERE application_name = 'oncekey' AND state = 'idle' AND query LIKE ";
    SERVER.sql(&format!("{cut} '%{table}%'"));
    assert!(backend.lookup(Lookup { key: Key::new("s", "a").unwrap() }).await.unwrap().is_some());
    assert!(matches!(backend.acquire(acquire("b")).await, Ok(Acquired::Claimed { .. })));
}
