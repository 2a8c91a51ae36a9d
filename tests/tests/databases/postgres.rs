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
    Purged, Remove, Removed, Renew, Renewed, StoreError, TransactionOperation,
};
use oncekey::conformance::Capabilities;
use oncekey::record::SealedOutcome;
use oncekey::{Claim, Engine, Error, Key, OnAbandoned, Outcome, RunError};
use oncekey_backends::CompleteInError;
use oncekey_backends::postgres::{PostgresBackend, PostgresOpenError};
use tests::process::{PATIENCE, until};
use tests::proxy::Proxy;
use tests::server::{PgBouncer, Postgres};

use crate::common::{acquire, fresh_table, on_database};
use crate::names::names_on_database;
use crate::sessions::sessions_on_database;
use crate::steps::{self, steps_on_database};
use crate::withdrawals::{self, withdrawals_on_database};

on_database! {
    server: Postgres,
    backend: PostgresBackend,
    open_error: PostgresOpenError,
    connection: AsyncPgConnection,
    key_column: "key",
}

static POOLER: LazyLock<PgBouncer> = LazyLock::new(|| PgBouncer::before(&SERVER, "session"));

oncekey::conformance_tests!(pooled, Capabilities::all(), {
    let table = fresh_table();
    move || {
        let table = table.clone();
        async move { PostgresBackend::builder(POOLER.url()).table(&table).unwrap().open().await.unwrap() }
    }
});

/// The suite runs on the version that `ONCEKEY_POSTGRES` asks for.
#[test]
fn chosen_version() {
    let running = SERVER.sql("SELECT current_setting('server_version_num')::int / 10000");
    assert_eq!(running, Postgres::chosen_version().unwrap_or_else(|| running.clone()));
}

withdrawals_on_database! {
    backend: PostgresBackend,
    key_column: "key",
    lock_table: "BEGIN; LOCK TABLE {table} IN SHARE MODE",
    unlock_table: "ROLLBACK",
    schema_before: 1,
}

steps_on_database! {
    backend: PostgresBackend,
    connection: AsyncPgConnection,
    key_column: "key",
}

sessions_on_database! {
    backend: PostgresBackend,
    open_error: PostgresOpenError,
    connection: AsyncPgConnection,
    scheme: "postgres",
    key_column: "key",
}

names_on_database! {
    backend: PostgresBackend,
    connection: AsyncPgConnection,
    open_elsewhere: async |table: &str| {
        let elsewhere = PostgresBackend::builder(SERVER.url()).schema("elsewhere").unwrap();
        elsewhere.table(table).unwrap().open().await.unwrap()
    },
    leave_elsewhere: "SET search_path = elsewhere, public",
    leave_behind: [
        "SET search_path = pg_catalog",
        "SET statement_timeout = '7s'",
        "SET TimeZone = 'Asia/Tokyo'",
        "SET default_transaction_read_only = on",
        "CREATE TEMP TABLE left_there (n int)",
        "SELECT pg_try_advisory_lock(4711)",
        "PREPARE left_there AS SELECT 1",
        "DECLARE left_there CURSOR WITH HOLD FOR SELECT 1",
    ],
    what_is_left: "concat( \
        (SELECT string_agg(name, ',') FROM pg_settings WHERE source = 'session' AND name IN \
        ('search_path', 'statement_timeout', 'default_transaction_read_only')), \
        CASE WHEN current_setting('TimeZone') <> 'UTC' THEN 'TimeZone' END, \
        CASE WHEN to_regclass('pg_temp.left_there') IS NOT NULL THEN 'temporary table' END, \
        (SELECT 'lock' FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711 AND pid = pg_backend_pid()), \
        (SELECT 'statement' FROM pg_prepared_statements WHERE name = 'left_there'), \
        (SELECT 'cursor' FROM pg_cursors WHERE name = 'left_there'))",
}

/// Makes commits wait, from now on, for a standby that is not there.
fn miss_a_standby(server: &Postgres) {
    server.sql("ALTER SYSTEM SET synchronous_standby_names = 'absent'");
    server.sql("SELECT pg_reload_conf()");
}

fn miss_no_standby(server: &Postgres) {
    server.sql("ALTER SYSTEM RESET synchronous_standby_names");
    server.sql("SELECT pg_reload_conf()");
}

fn is_set(server: &Postgres) -> bool {
    server.sql("SHOW synchronous_standby_names") == "absent"
}

/// A row whose commit waits is invisible to mere readers.
#[actix_rt::test]
async fn e19_a_claim_whose_commit_waits_for_a_standby_leaves_the_key_free() {
    let server = Postgres::start();
    let proxy = Proxy::before(server.port());
    let url = withdrawals::through(&proxy, &server.url(), server.port());
    let backend = PostgresBackend::open(&url).await.unwrap();
    miss_a_standby(&server);
    until("the setting", async || is_set(&server)).await;
    withdrawals::key_ends_free(backend, &proxy, async || miss_no_standby(&server)).await;
    assert_eq!(server.sql("SELECT state FROM oncekey_records"), "2");
}

/// The answer to a COMMIT is lost while it waits for a standby. A mere read would suggest that nothing was committed,
/// so the engine answers only after the commit has ended.
#[actix_rt::test]
async fn e12_a_commit_that_waits_for_a_standby_is_not_denied() {
    let server = Postgres::start();
    server.sql("CREATE TABLE waited (n int)");
    let proxy = Proxy::before(server.port());
    let url = withdrawals::through(&proxy, &server.url(), server.port());
    let engine = Engine::builder(PostgresBackend::open(&url).await.unwrap()).start().unwrap();
    let (in_operation, go_on) = (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
    let running = actix_rt::spawn({
        let (in_operation, go_on) = (in_operation.clone(), go_on.clone());
        async move {
            let operation = async move |tx: &mut AsyncPgConnection, _: &Claim| {
                tx.batch_execute("INSERT INTO waited VALUES (1)").await?;
                in_operation.notify_one();
                go_on.notified().await;
                Ok::<u32, diesel::result::Error>(17)
            };
            engine.run_in_async_transaction(Key::new("s", "k").unwrap(), b"", operation).await
        }
    });
    in_operation.notified().await;
    miss_a_standby(&server);
    until("the setting", async || is_set(&server)).await;
    proxy.leave_commits_alone(1);
    go_on.notify_one();
    // The probe waits for the commit's lock.
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    until("a probe or an answer", async || running.is_finished() || server.sql(waits) != "0").await;
    assert!(!running.is_finished(), "an answer was given while the commit waited");
    assert_eq!(server.sql("SELECT count(*) FROM waited"), "0", "the commit does not wait: this shows nothing");
    miss_no_standby(&server);
    assert_eq!(running.await.unwrap().unwrap(), Outcome::Ran(17));
    assert_eq!(server.sql("SELECT count(*) FROM waited"), "1");
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
    // A session's counts appear when it has ended.
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

/// The engine replaces connections that were cut.
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

/// After a failed statement PostgreSQL refuses all others. An operation that ignores the failure has itself failed: it
/// is rolled back, and the store does not count as unavailable.
#[actix_rt::test]
async fn e19_an_operation_that_passes_over_a_violation_is_rolled_back() {
    SERVER.sql("CREATE TABLE once (n int PRIMARY KEY); INSERT INTO once VALUES (1)");
    let table = fresh_table();
    let backend = open(&table).await;
    let claim = acquire("k");
    let (key, owner) = (claim.key.clone(), claim.owner);
    assert!(matches!(backend.acquire(claim).await, Ok(Acquired::Claimed { .. })));
    let outcome = SealedOutcome::tombstone(&key);
    let operation = TransactionOperation::new_async(async move |tx: &mut AsyncPgConnection| {
        tx.batch_execute("INSERT INTO once VALUES (2)").await.unwrap();
        assert!(tx.batch_execute("INSERT INTO once VALUES (1)").await.is_err());
        Ok(outcome.clone())
    });
    let message = CompleteInTransaction { key, owner, retention: Duration::from_secs(60), operation };
    assert_eq!(backend.complete_in_transaction(message).await, Ok(CompletedInTransaction::RolledBack));
    assert_eq!(SERVER.sql("SELECT n FROM once"), "1");
    assert_eq!(SERVER.sql(&format!("SELECT state FROM {table}")), "1");
}

/// The backend sets what correctness needs on each connection, whatever the database's defaults are.
#[actix_rt::test]
async fn e27_the_settings_are_the_backends_whatever_the_databases_defaults() {
    let server = Postgres::start();
    server.sql("ALTER DATABASE postgres SET default_transaction_isolation = 'serializable'");
    server.sql("ALTER DATABASE postgres SET synchronous_commit = off");
    server.sql("ALTER DATABASE postgres SET lock_timeout = '7s'");
    let backend = PostgresBackend::open(&server.url()).await.unwrap();
    let claim = acquire("k");
    let (key, owner) = (claim.key.clone(), claim.owner);
    assert!(matches!(backend.acquire(claim).await, Ok(Acquired::Claimed { .. })));
    let outcome = SealedOutcome::tombstone(&key);
    let (renewed_key, renewing) = (key.clone(), backend.clone());
    let operation = TransactionOperation::new_async(async move |tx: &mut AsyncPgConnection| {
        // An operation waits for locks as the database's setting says.
        let settings = "DO $$ BEGIN IF current_setting('synchronous_commit') <> 'on' \
                        OR current_setting('transaction_isolation') <> 'read committed' \
                        OR current_setting('lock_timeout') <> '7s' \
                        THEN RAISE EXCEPTION '% % %', current_setting('synchronous_commit'), \
                        current_setting('transaction_isolation'), current_setting('lock_timeout'); END IF; END $$";
        tx.batch_execute(settings).await.unwrap();
        let renew = Renew { key: renewed_key.clone(), owner, lease: Duration::from_secs(60) };
        assert_eq!(renewing.renew(renew).await, Ok(Renewed::Renewed));
        Ok(outcome.clone())
    });
    let message = CompleteInTransaction { key, owner, retention: Duration::from_secs(60), operation };
    let answer = backend.complete_in_transaction(message).await;
    assert!(matches!(answer, Ok(CompletedInTransaction::Stored { .. })), "{answer:?}");
}

/// A constraint that is checked at the commit is the operation's own failure, and not an unavailable store.
#[actix_rt::test]
async fn j09_a_constraint_that_fails_at_the_commit_is_the_operations_own_failure() {
    SERVER.sql("CREATE TABLE parents (id int PRIMARY KEY)");
    SERVER.sql("CREATE TABLE children (parent int REFERENCES parents DEFERRABLE INITIALLY DEFERRED)");
    let engine = Engine::builder(open(&fresh_table()).await).start().unwrap();
    let insert = async || {
        let operation = async |tx: &mut AsyncPgConnection, _: &Claim| {
            tx.batch_execute("INSERT INTO children VALUES (99)").await?;
            Ok::<u32, diesel::result::Error>(17)
        };
        engine.run_in_async_transaction(Key::new("s", "child").unwrap(), b"", operation).await
    };
    for _ in 0..2 {
        let refused = insert().await;
        assert!(matches!(refused, Err(RunError::Engine(Error::CommitRefused(_)))), "{refused:?}");
    }
    SERVER.sql("INSERT INTO parents VALUES (99)");
    assert_eq!(insert().await.unwrap(), Outcome::Ran(17));
    assert_eq!(SERVER.sql("SELECT count(*) FROM children"), "1");
}
