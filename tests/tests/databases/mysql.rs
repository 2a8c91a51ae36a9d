//! MySQL's protocol, on MariaDB.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use diesel_async::pooled_connection::AsyncDieselConnectionManager;
use diesel_async::pooled_connection::deadpool::Pool;
use diesel_async::{AsyncConnection as _, AsyncMysqlConnection, SimpleAsyncConnection as _};
use futures_util::future::join_all;
use oncekey::backend::{
    Acquire, Acquired, Backend as _, Complete, CompleteInTransaction, CompletedInTransaction, List, Lookup, Purge,
    Purged, TransactionOperation,
};
use oncekey::conformance::Capabilities;
use oncekey::record::SealedOutcome;
use oncekey::{Claim, Engine, Key, OnAbandoned, Outcome, RunError};
use oncekey_backends::CompleteInError;
use oncekey_backends::mysql::{MysqlBackend, MysqlOpenError};
use tests::proxy::Proxy;
use tests::server::MariaDb;

use crate::common::{acquire, fresh_table, on_database};

on_database! {
    server: MariaDb,
    backend: MysqlBackend,
    open_error: MysqlOpenError,
    connection: AsyncMysqlConnection,
    key_column: "record_key",
}

#[actix_rt::test]
async fn a_table_that_is_not_to_be_made_is_asked_for() {
    let builder = || MysqlBackend::builder(SERVER.url()).table("kept").unwrap();
    let refused = builder().migrate(false).open().await.unwrap_err();
    assert!(matches!(refused, MysqlOpenError::NotMigrated { found: 0, .. }), "{refused}");
    builder().open().await.unwrap();
    let backend = builder().migrate(false).open().await.unwrap();
    assert!(matches!(backend.acquire(acquire("k")).await, Ok(Acquired::Claimed { .. })));
}

/// Lists and purges never read the whole table.
#[actix_rt::test]
async fn list_and_purge_go_by_their_indexes() {
    // The counters are the whole server's.
    let server = MariaDb::start();
    let backend = MysqlBackend::builder(server.url()).table("big").unwrap().open().await.unwrap();
    server.sql(
        "INSERT INTO big SELECT CONCAT('1:s:', LPAD(seq, 9, '0')), 0, 1, 0, 2, NULL, NULL, 0, \
         IF(seq % 100 = 0, 1, 9000000000000) FROM seq_1_to_200000; ANALYZE TABLE big",
    );
    let scanned = || {
        let read = server.sql("SHOW GLOBAL STATUS LIKE 'Handler_read_rnd_next'");
        read.split_whitespace().last().unwrap().parse::<u64>().unwrap()
    };
    let before = scanned();
    let purged = backend.purge(Purge { limit: 500 }).await.unwrap();
    assert_eq!(purged, Purged { removed: 500, more: true });
    let refused = backend.list(List { after: None, limit: 100 }).await.unwrap_err();
    assert!(refused.to_string().contains("corrupt"), "the rows are no records: {refused}");
    let scanned = scanned() - before;
    assert!(scanned < 10_000, "{scanned} rows were read of a table of 200,000");
}

/// Connections cut behind the engine's back are replaced by it.
#[actix_rt::test]
async fn cut_connections_are_replaced() {
    let server = MariaDb::start();
    let backend = MysqlBackend::open(&server.url()).await.unwrap();
    assert!(matches!(backend.acquire(acquire("a")).await, Ok(Acquired::Claimed { .. })));
    let ids = server.sql("SELECT id FROM information_schema.processlist WHERE user = 'shop'");
    assert!(!ids.is_empty());
    for id in ids.lines() {
        server.sql(&format!("KILL {id}"));
    }
    assert!(backend.lookup(Lookup { key: Key::new("s", "a").unwrap() }).await.unwrap().is_some());
    assert!(matches!(backend.acquire(acquire("b")).await, Ok(Acquired::Claimed { .. })));
}

/// The application's pool hands out no connection that the server has closed.
#[actix_rt::test]
async fn a_closed_connection_is_not_handed_to_the_application() {
    let server = MariaDb::start();
    let pool = MysqlBackend::open(&server.url()).await.unwrap().pool_of_its_own();
    let mut held = pool.get().await.unwrap();
    held.batch_execute("SELECT 1").await.unwrap();
    drop(held);
    let sleeping = "SELECT group_concat(concat('KILL ', id) separator ';') FROM information_schema.processlist \
                    WHERE user = 'shop' AND command = 'Sleep'";
    let kills = server.sql(sleeping);
    assert!(kills.starts_with("KILL "), "there was no connection: {kills}");
    server.sql(&kills);
    pool.get().await.unwrap().batch_execute("SELECT 1").await.unwrap();
}
