//! MySQL's protocol, on MariaDB.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use diesel_async::pooled_connection::AsyncDieselConnectionManager;
use diesel_async::pooled_connection::deadpool::Pool;
use diesel_async::{
    AnsiTransactionManager, AsyncConnection as _, AsyncMysqlConnection, SimpleAsyncConnection as _,
    TransactionManager as _,
};
use futures_util::future::join_all;
use oncekey::backend::{
    Acquire, Acquired, Backend as _, Complete, CompleteInTransaction, CompletedInTransaction, Hold, List, Lookup,
    Purge, Purged, Remove, Removed, Renew, Renewed, Request, Resolution, Resolve, Resolved, StateView, StoreError,
    TransactionOperation,
};
use oncekey::conformance::Capabilities;
use oncekey::record::{Owner, SealedOutcome};
use oncekey::{Claim, Engine, Key, OnAbandoned, Outcome, RunError};
use oncekey_backends::CompleteInError;
use oncekey_backends::mysql::{MysqlBackend, MysqlOpenError};
use tests::process::until;
use tests::proxy::Proxy;
use tests::server::MariaDb;

use crate::common::{acquire, fresh_table, on_database};
use crate::names::names_on_database;
use crate::sessions::{self, sessions_on_database};
use crate::steps::{self, steps_on_database};
use crate::withdrawals::{self, withdrawals_on_database};

on_database! {
    server: MariaDb,
    backend: MysqlBackend,
    open_error: MysqlOpenError,
    connection: AsyncMysqlConnection,
    key_column: "record_key",
}

withdrawals_on_database! {
    backend: MysqlBackend,
    key_column: "record_key",
    lock_table: "LOCK TABLES {table} READ",
    unlock_table: "UNLOCK TABLES",
    schema_before: 2,
}

steps_on_database! {
    backend: MysqlBackend,
    connection: AsyncMysqlConnection,
    key_column: "record_key",
}

sessions_on_database! {
    backend: MysqlBackend,
    open_error: MysqlOpenError,
    connection: AsyncMysqlConnection,
    scheme: "mysql",
    key_column: "record_key",
}

names_on_database! {
    backend: MysqlBackend,
    connection: AsyncMysqlConnection,
    open_elsewhere: async |table: &str| {
        SERVER.sql("CREATE DATABASE IF NOT EXISTS elsewhere");
        let url = SERVER.url().replace(&format!(":{}/shop", SERVER.port()), &format!(":{}/elsewhere", SERVER.port()));
        MysqlBackend::builder(url).table(table).unwrap().open().await.unwrap()
    },
    leave_elsewhere: "USE elsewhere",
    leave_behind: [
        "USE elsewhere",
        "SET SESSION sql_mode = ''",
        "SET time_zone = '+09:00'",
        "SET foreign_key_checks = 0",
        "SET NAMES latin1",
        "SET SESSION TRANSACTION READ ONLY",
        "SELECT GET_LOCK('left_there', 0)",
    ],
    what_is_left: "CONCAT(IF(DATABASE() <=> 'shop', '', 'database'), \
        IF(@@sql_mode = @@GLOBAL.sql_mode, '', 'sql_mode'), IF(@@time_zone = '+00:00', '', 'time_zone'), \
        IF(@@foreign_key_checks, '', 'foreign_key_checks'), IF(@@character_set_client = 'utf8mb4', '', 'names'), \
        IF(@@tx_read_only, 'read only', ''), IF(IS_USED_LOCK('left_there') <=> CONNECTION_ID(), 'lock', ''))",
}

/// DDL is not part of a transaction in MySQL, so the process may end between the columns and the version.
#[actix_rt::test]
async fn a_migration_that_was_cut_short_is_finished() {
    let table = fresh_table();
    drop(open(&table).await);
    SERVER.sql(&format!("DELETE FROM {table}_migrations WHERE version = 4"));
    assert!(matches!(open(&table).await.acquire(acquire("k")).await, Ok(Acquired::Claimed { .. })));
    assert_eq!(SERVER.sql(&format!("SELECT max(version) FROM {table}_migrations")), "4");
}

/// Two operations take the same rows in opposite order. The one that the server aborts ignores the error, which has
/// rolled back its rows, and continues. It runs again, and its record is completed with its rows.
#[actix_rt::test]
async fn e18_an_operation_that_passes_over_a_deadlock_is_run_again() {
    SERVER.sql(
        "CREATE TABLE shelf (item varchar(50) PRIMARY KEY, left_over int); INSERT INTO shelf VALUES ('a', 100), ('b', 100); \
         CREATE TABLE sold (items varchar(50))",
    );
    let table = fresh_table();
    let engines = [open(&table).await, open(&table).await].map(|backend| Engine::builder(backend).start().unwrap());
    let (runs, passed_over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let meet = Arc::new(tokio::sync::Barrier::new(2));
    let took = join_all([["a", "b"], ["b", "a"]].into_iter().zip(&engines).map(|(items, engine)| {
        let (runs, passed_over, meet) = (runs.clone(), passed_over.clone(), meet.clone());
        engine.run_in_async_transaction(
            Key::new("s", items.concat()).unwrap(),
            b"",
            async move |tx: &mut AsyncMysqlConnection, _| {
                let first = runs.fetch_add(1, Ordering::Relaxed) < 2;
                for item in items {
                    let text = format!("UPDATE shelf SET left_over = left_over - 1 WHERE item = '{item}'");
                    if tx.batch_execute(&text).await.is_err() {
                        passed_over.fetch_add(1, Ordering::Relaxed);
                    }
                    if first && item == items[0] {
                        meet.wait().await;
                    }
                }
                tx.batch_execute(&format!("INSERT INTO sold VALUES ('{}')", items.concat())).await?;
                Ok::<u32, diesel::result::Error>(1)
            },
        )
    }))
    .await;
    assert!(took.iter().all(|took| matches!(took, Ok(Outcome::Ran(1)))), "{took:?}");
    assert!(passed_over.load(Ordering::Relaxed) > 0, "there was no deadlock");
    assert_eq!(SERVER.sql("SELECT left_over FROM shelf"), "98\n98");
    assert_eq!(SERVER.sql("SELECT items FROM sold ORDER BY items"), "ab\nba");
    // The connections are unchanged.
    let states = SERVER.sql(&format!("SELECT state FROM {table}"));
    assert_eq!(states, "2\n2");
}

/// The same in the caller's own transaction: what it wrote after the deadlock is already committed. The error says so,
/// and its record is not completed without its rows.
#[actix_rt::test]
async fn e18_a_claim_is_not_completed_in_a_transaction_that_a_deadlock_ended() {
    SERVER.sql(
        "CREATE TABLE bin (item varchar(50) PRIMARY KEY, left_over int); INSERT INTO bin VALUES ('a', 100), ('b', 100); \
         CREATE TABLE weight (n int); CREATE TABLE since_then (n int)",
    );
    let backend = open(&fresh_table()).await;
    let claim = acquire("k");
    assert!(matches!(backend.acquire(claim.clone()).await, Ok(Acquired::Claimed { .. })));
    let outcome = SealedOutcome::tombstone(&claim.key);
    let completion =
        Complete { key: claim.key.clone(), owner: claim.owner, outcome, retention: Duration::from_secs(60) };
    let (pool, meet) = (pool(), Arc::new(tokio::sync::Barrier::new(2)));
    let take = |item: &str| format!("UPDATE bin SET left_over = left_over - 1 WHERE item = '{item}'");
    let light = async {
        let mut connection = pool.get().await.unwrap();
        connection
            .transaction(async |tx| {
                tx.batch_execute(&take("a")).await?;
                meet.wait().await;
                let given_up = tx.batch_execute(&take("b")).await;
                assert!(given_up.is_err(), "the other was given up, or there was no deadlock");
                tx.batch_execute("INSERT INTO since_then VALUES (1)").await?;
                backend.complete_in(tx, completion).await
            })
            .await
    };
    // The server aborts the transaction that has written less.
    let heavy = async {
        let mut connection = pool.get().await.unwrap();
        connection
            .transaction(async |tx| {
                tx.batch_execute("INSERT INTO weight SELECT seq FROM seq_1_to_1000").await?;
                tx.batch_execute(&take("b")).await?;
                meet.wait().await;
                tx.batch_execute(&take("a")).await
            })
            .await
    };
    let (light, heavy) = futures_util::future::join(light, heavy).await;
    heavy.unwrap();
    assert!(matches!(light, Err(CompleteInError::TransactionEnded)), "{light:?}");
    assert_eq!(SERVER.sql("SELECT left_over FROM bin"), "99\n99");
    // This row is what the error reports.
    assert_eq!(SERVER.sql("SELECT count(*) FROM since_then"), "1");
    let view = backend.lookup(Lookup { key: claim.key }).await.unwrap().unwrap();
    assert!(matches!(view.state, StateView::InProgress { .. }), "{view:?}");
}

/// An operation must not end its transaction. If it does, its record is not completed, and it does not run again.
#[actix_rt::test]
async fn e18_an_operation_that_commits_by_itself_is_told() {
    SERVER.sql("CREATE TABLE early (n int)");
    let backend = open(&fresh_table()).await;
    let claim = acquire("k");
    let (key, owner) = (claim.key.clone(), claim.owner);
    assert!(matches!(backend.acquire(claim).await, Ok(Acquired::Claimed { .. })));
    let outcome = SealedOutcome::tombstone(&key);
    let operation = TransactionOperation::new_async(async move |tx: &mut AsyncMysqlConnection| {
        tx.batch_execute("INSERT INTO early VALUES (1)").await.unwrap();
        tx.batch_execute("COMMIT").await.unwrap();
        Ok(outcome.clone())
    });
    let message = CompleteInTransaction { key, owner, retention: Duration::from_secs(60), operation };
    assert_eq!(backend.complete_in_transaction(message).await, Err(StoreError::TransactionEnded));
    assert_eq!(SERVER.sql("SELECT count(*) FROM early"), "1");
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
    // The counters belong to the whole server.
    let server = MariaDb::start();
    let backend = MysqlBackend::builder(server.url()).table("big").unwrap().open().await.unwrap();
    server.sql(
        "INSERT INTO big SELECT CONCAT('1:s:', LPAD(seq, 9, '0')), 0, 1, 0, 2, NULL, NULL, 0, \
         IF(seq % 100 = 0, 1, 9000000000000), 0, NULL, NULL, NULL, NULL, NULL FROM seq_1_to_200000; ANALYZE TABLE big",
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

/// The engine replaces connections that were cut.
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

/// Where a commit is visible before it is on disk, no caller gets an outcome that a crash can still take away.
#[actix_rt::test]
async fn e02_an_outcome_is_told_of_once_it_is_on_the_disk() {
    let mut server = MariaDb::start_with_log_to_hold(&["--table-open-cache-instances=1"]);
    let holder = MysqlBackend::open(&server.url()).await.unwrap();
    let another = MysqlBackend::open(&server.url()).await.unwrap();
    let claim = acquire("k");
    assert!(matches!(holder.acquire(claim.clone()).await, Ok(Acquired::Claimed { .. })));
    let asked = || Acquire { owner: Owner::random(), ..claim.clone() };
    // This session has met a record, so it reads first from now on: an INSERT would wait for the log before it finds
    // anything.
    assert!(matches!(another.acquire(asked()).await, Ok(Acquired::InProgress { .. })));
    // No table can be opened while the log is held either, so the tables that are read are opened before.
    server.sql("SELECT 1 FROM oncekey_records a, oncekey_records b, oncekey_records c, oncekey_records d");
    let state = |server: &MariaDb| server.sql("SELECT state FROM oncekey_records");

    server.hold_log();
    let completion = Complete {
        key: claim.key.clone(),
        owner: claim.owner,
        outcome: SealedOutcome::of_value(&claim.key, &1).unwrap(),
        retention: Duration::from_secs(60),
    };
    let completing = actix_rt::spawn(async move { holder.complete(completion).await });
    // A reader sees the outcome, although its commit has not returned.
    until("a shown commit", async || state(&server) == "2").await;
    let asked = asked();
    let asking = actix_rt::spawn(async move { another.acquire(asked).await });
    let flush = "INSERT INTO `shop`.`oncekey_records_flushes`";
    until("an answer or a flush", async || asking.is_finished() || server.is_executing(flush)).await;
    // The holder is stopped as well, because it would complete its claim on the restarted server.
    completing.abort();
    server.kill();
    server.let_log_go();
    server.restart();

    assert_eq!(state(&server), "1", "the crash took nothing away: this shows nothing");
    let told = asking.await.unwrap();
    assert!(!matches!(told, Ok(Acquired::Completed { .. })), "an outcome was told of that is gone: {told:?}");
}

/// A replay of an outcome that has long been on disk waits for a flush too, but only where there is no binary log.
#[actix_rt::test]
async fn a_server_with_a_binary_log_is_not_asked_to_flush() {
    for (settings, flushes) in [(&[][..], "1"), (&["--log-bin", "--sync-binlog=1"][..], "0")] {
        let server = MariaDb::start_with(settings);
        let engine = Engine::builder(MysqlBackend::open(&server.url()).await.unwrap()).start().unwrap();
        for _ in 0..2 {
            let ran = engine.run(Key::new("s", "k").unwrap(), b"", |_| async { Ok::<u32, ()>(1) }).await;
            assert_eq!(ran.unwrap().into_inner(), 1);
        }
        assert_eq!(server.sql("SELECT COALESCE(SUM(flushes), 0) FROM oncekey_records_flushes"), flushes);
    }
}

/// The application's pool hands out no connection that the server has closed.
#[actix_rt::test]
async fn a_closed_connection_is_not_handed_to_the_application() {
    let server = MariaDb::start();
    let pool = MysqlBackend::open(&server.url()).await.unwrap().pool();
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

/// MySQL gives a parameter in a derived table room for 65,535 bytes. (MariaDB accepts any length, so this test checks
/// what is sent.)
#[actix_rt::test]
async fn e02_no_long_outcome_is_sent_through_a_derived_table() {
    let server = MariaDb::start_with(&["--log-output=TABLE", "--general-log=1"]);
    let backend = MysqlBackend::open(&server.url()).await.unwrap();
    let (answered, answers) = std::sync::mpsc::channel();
    let mut batch = Vec::new();
    for (name, size) in [("a", 100 << 10), ("b", 10), ("c", 20), ("d", 1 << 20)] {
        let claim = acquire(name);
        let (key, owner) = (claim.key.clone(), claim.owner);
        assert!(matches!(backend.acquire(claim).await, Ok(Acquired::Claimed { .. })));
        backend.hold(Hold { key: key.clone(), owner }).await.unwrap();
        let outcome = sessions::long_outcome(&key, size);
        let with = Resolution::Complete { outcome, retention: Duration::from_secs(60) };
        let message = Resolve { key, attempt: None, owner: None, with };
        batch.push(Request::Resolve(message, sessions::reply(name, &answered)));
    }
    backend.execute(batch).await;
    assert_eq!(answers.try_iter().filter(|(_, answer)| *answer == Ok(Resolved::Resolved)).count(), 4);
    let sent = |what: &str| {
        let text = "SELECT count(*) FROM mysql.general_log WHERE command_type = 'Execute' AND argument";
        server.sql(&format!("{text} LIKE '{what}'"))
    };
    assert_ne!(sent("UPDATE (SELECT CAST(%"), "0", "the short ones share no statement: this shows nothing");
    assert_eq!(sent("UPDATE (SELECT CAST(%7777777777777777777777777777777777%"), "0");
    assert_eq!(sent("UPDATE `shop`.`oncekey\\_records` SET %7777777777777777777777777777777777%"), "2");
}

/// Sessions of this server begin without autocommit. Whatever was answered is still committed, and survives a crash.
#[actix_rt::test]
async fn e27_outcomes_are_committed_where_autocommit_is_off_by_default() {
    let mut server = MariaDb::start_with(&["--autocommit=0"]);
    let run = async |server: &MariaDb, key: &'static str| {
        let engine = Engine::builder(MysqlBackend::open(&server.url()).await.unwrap()).start().unwrap();
        engine.run(Key::new("s", key).unwrap(), b"", |_| async { Ok::<u32, ()>(1) }).await.unwrap()
    };
    assert_eq!(run(&server, "k").await, Outcome::Ran(1));
    server.kill();
    server.restart();
    assert_eq!(run(&server, "k").await, Outcome::Replayed(1));

    // The application's own pool has the default.
    let manager = AsyncDieselConnectionManager::<AsyncMysqlConnection>::new(server.url());
    let pool = Pool::builder(manager).max_size(5).build().unwrap();
    let refused = MysqlBackend::from_pool(pool).open().await.unwrap_err();
    assert!(
        matches!(&refused, MysqlOpenError::Setting { setting: "autocommit", found, wanted: "ON" } if found == "OFF"),
        "{refused:?}"
    );
    assert!(refused.to_string().contains("autocommit"), "{refused}");
}

/// Sessions of this server read uncommitted data. An outcome that is rolled back later is still never replayed.
#[actix_rt::test]
async fn e27_an_outcome_that_is_rolled_back_is_never_replayed() {
    let server = MariaDb::start_with(&["--transaction-isolation=READ-UNCOMMITTED"]);
    let backend = MysqlBackend::open(&server.url()).await.unwrap();
    let claim = acquire("k");
    assert!(matches!(backend.acquire(claim.clone()).await, Ok(Acquired::Claimed { .. })));
    let completion = sessions::completion("k", claim.owner, Duration::from_secs(60));
    let mut connection = backend.pool().get().await.unwrap();
    AnsiTransactionManager::begin_transaction(&mut *connection).await.unwrap();
    backend.complete_in(&mut connection, completion).await.unwrap();
    let answer = backend.acquire(acquire("k")).await;
    assert!(matches!(answer, Ok(Acquired::InProgress { .. })), "{answer:?}");
    AnsiTransactionManager::rollback_transaction(&mut *connection).await.unwrap();

    let manager = AsyncDieselConnectionManager::<AsyncMysqlConnection>::new(server.url());
    let pool = Pool::builder(manager).max_size(5).build().unwrap();
    let refused = MysqlBackend::from_pool(pool).open().await.unwrap_err();
    assert!(matches!(&refused, MysqlOpenError::Setting { setting: "transaction_isolation", .. }), "{refused:?}");
}

/// An operation's heartbeats change its record while the operation runs. No default of the server treats that as a
/// conflict.
#[actix_rt::test]
async fn e27_a_claim_is_renewed_while_its_operation_runs_whatever_the_isolation() {
    let settings: [&[&str]; 2] = [&["--innodb-snapshot-isolation=ON"], &["--transaction-isolation=SERIALIZABLE"]];
    for settings in settings {
        let server = MariaDb::start_with(settings);
        let backend = MysqlBackend::open(&server.url()).await.unwrap();
        let claim = acquire("k");
        let (key, owner) = (claim.key.clone(), claim.owner);
        assert!(matches!(backend.acquire(claim).await, Ok(Acquired::Claimed { .. })));
        let outcome = SealedOutcome::tombstone(&key);
        let (renewed_key, renewing) = (key.clone(), backend.clone());
        let operation = TransactionOperation::new_async(async move |tx: &mut AsyncMysqlConnection| {
            tx.batch_execute("SELECT 1").await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
            let renew = Renew { key: renewed_key.clone(), owner, lease: Duration::from_secs(60) };
            assert_eq!(renewing.renew(renew).await, Ok(Renewed::Renewed));
            Ok(outcome.clone())
        });
        let message = CompleteInTransaction { key, owner, retention: Duration::from_secs(60), operation };
        let answer = backend.complete_in_transaction(message).await;
        assert!(matches!(answer, Ok(CompletedInTransaction::Stored { .. })), "{settings:?}: {answer:?}");
    }
}
