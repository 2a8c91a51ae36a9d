//! Whatever a server, a database or a role sets for its sessions, the store keeps its promises, or `open` names the
//! obstacle.

use std::sync::mpsc::channel;
use std::time::Duration;

use diesel_async::{AsyncMysqlConnection, AsyncPgConnection, SimpleAsyncConnection as _};
use oncekey::backend::{
    Acquired, Backend, Complete, CompleteInTransaction, Completed, CompletedInTransaction, List, Lookup, Purge,
    Release, Released, Request, Stats, StepBegun, StepFailed, StoreError, TransactionOperation,
};
use oncekey::record::SealedOutcome;
use oncekey_backends::mysql::{MysqlBackend, MysqlOpenError};
use oncekey_backends::postgres::{PostgresBackend, PostgresOpenError};
use tests::server::{MariaDb, PgBouncer, Postgres};

use crate::common::{acquire, fresh_table, mysql_pool, postgres_pool};
use crate::sessions::{completion, key, reply};
use crate::steps::claim;

const KEYS: usize = 8;

/// Checks claims, outcomes and steps of many keys, with statements for one and for several. Returns what went wrong.
async fn keeps_its_word(
    backend: &impl Backend,
    ordering: impl Fn(SealedOutcome) -> TransactionOperation,
) -> Result<(), String> {
    let retention = Duration::from_secs(60);
    let names: Vec<String> = (0..KEYS).map(|number| format!("k{number}")).collect();
    let acquire_all = async || {
        let claims: Vec<_> = names.iter().map(|name| acquire(name)).collect();
        let (answered, answers) = channel();
        let batch =
            claims.iter().map(|claim| Request::Acquire(claim.clone(), reply(claim.key.idempotency_key(), &answered)));
        backend.execute(batch.collect()).await;
        let mut answers: Vec<_> = answers.try_iter().collect();
        answers.sort_by(|(one, _), (other, _)| one.cmp(other));
        (claims, answers)
    };
    let (claims, claimed) = acquire_all().await;
    for (name, answer) in &claimed {
        if !matches!(answer, Ok(Acquired::Claimed { .. })) {
            return Err(format!("the claim of {name}: {answer:?}"));
        }
    }
    let (answered, answers) = channel();
    let batch = claims.iter().map(|claim| {
        let message = completion(claim.key.idempotency_key(), claim.owner, retention);
        Request::Complete(message, reply(claim.key.idempotency_key(), &answered))
    });
    backend.execute(batch.collect()).await;
    for (name, answer) in answers.try_iter() {
        if answer != Ok(Completed::Stored) {
            return Err(format!("the completion of {name}: {answer:?}"));
        }
    }
    for (name, answer) in acquire_all().await.1 {
        if !matches!(answer, Ok(Acquired::Completed { .. })) {
            return Err(format!("the replay of {name}: {answer:?}"));
        }
    }
    if backend.lookup(Lookup { key: key("missing") }).await != Ok(None) {
        return Err("a key that is missing is not absent".to_owned());
    }

    // Steps, including ones that are decided in their own transaction.
    let held = claim(backend, "steps").await;
    held.done(backend, "charge", 1).await;
    if backend.fail_step(held.fail("charge", 9)).await.is_err() {
        return Err("a step's failure".to_owned());
    }
    let failed = backend.fail_step(held.fail("mail", 2)).await;
    let begun = backend.begin_step(held.begin("mail", 3)).await;
    if failed != Ok(StepFailed::Failed) || !matches!(begun, Ok(StepBegun::Begun { .. })) {
        return Err(format!("a step again: {failed:?}, {begun:?}"));
    }
    backend.fail_step(held.fail("mail", 3)).await.map_err(|error| error.to_string())?;
    let released = backend.release(Release { key: held.key.clone(), owner: held.owner }).await;
    if released != Ok(Released::Released) {
        return Err(format!("a release with steps: {released:?}"));
    }
    // The last work on a connection is committed as well.
    let again = claim(backend, "steps").await;
    if again.steps.as_ref().map(|steps| steps.list.len()) != Some(2) {
        return Err(format!("the steps after a release: {:?}", again.steps));
    }

    let message = acquire("order");
    let outcome = SealedOutcome::of_value(&message.key, &17).map_err(|error| error.to_string())?;
    let (key, owner, operation) = (message.key.clone(), message.owner, ordering(outcome));
    backend.acquire(message).await.map_err(|error| error.to_string())?;
    let ordered = backend.complete_in_transaction(CompleteInTransaction { key, owner, retention, operation }).await;
    if !matches!(ordered, Ok(CompletedInTransaction::Stored { .. })) {
        return Err(format!("an operation in a transaction: {ordered:?}"));
    }

    let listed = backend.list(List { after: None, limit: 100 }).await.map_err(|error| error.to_string())?;
    let counted = backend.stats(Stats).await.map_err(|error| error.to_string())?;
    if (listed.len(), counted.completed) != (KEYS + 2, KEYS as u64 + 1) {
        return Err(format!("{} listed, {} counted", listed.len(), counted.completed));
    }
    let short = acquire("short");
    let outcome = SealedOutcome::tombstone(&short.key);
    let message = Complete { key: short.key.clone(), owner: short.owner, outcome, retention: Duration::from_millis(1) };
    backend.acquire(short).await.map_err(|error| error.to_string())?;
    backend.complete(message).await.map_err(|error| error.to_string())?;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let purged = backend.purge(Purge { limit: 100 }).await.map_err(|error| error.to_string())?;
    if purged.removed != 1 { Err(format!("{} purged", purged.removed)) } else { Ok(()) }
}

fn ordering_in_mysql(outcome: SealedOutcome) -> TransactionOperation {
    TransactionOperation::new_async(async move |tx: &mut AsyncMysqlConnection| {
        tx.batch_execute("INSERT INTO orders VALUES (1)").await.unwrap();
        Ok(outcome.clone())
    })
}

fn ordering_in_postgres(outcome: SealedOutcome) -> TransactionOperation {
    TransactionOperation::new_async(async move |tx: &mut AsyncPgConnection| {
        tx.batch_execute("INSERT INTO orders VALUES (1)").await.unwrap();
        Ok(outcome.clone())
    })
}

/// Session settings in MariaDB's server defaults: those that the application's pool must not have, each by itself, and
/// those that change nothing, some of them together.
#[actix_rt::test]
async fn s01_whatever_mysqls_sessions_begin_with_what_is_answered_is_committed() {
    type Settings = &'static [(&'static str, &'static str)];
    const UNFIT: [Settings; 5] = [
        &[("completion_type", "'CHAIN'")],
        &[("completion_type", "'RELEASE'")],
        &[("autocommit", "0")],
        &[("sql_select_limit", "1")],
        &[("sql_mode", "'ORACLE'")],
    ];
    const FIT: [Settings; 3] = [
        &[
            ("sql_mode", "'EMPTY_STRING_IS_NULL'"),
            ("sql_safe_updates", "1"),
            ("time_zone", "'-11:00'"),
            ("collation_connection", "'utf8mb4_bin'"),
        ],
        &[
            ("sql_mode", "'ANSI,NO_BACKSLASH_ESCAPES,SIMULTANEOUS_ASSIGNMENT,PAD_CHAR_TO_FULL_LENGTH'"),
            ("group_concat_max_len", "4"),
            ("join_buffer_size", "128"),
            ("sql_auto_is_null", "1"),
            ("tx_isolation", "'READ-COMMITTED'"),
        ],
        &[
            ("sql_mode", "'TRADITIONAL,ONLY_FULL_GROUP_BY,NO_UNSIGNED_SUBTRACTION,HIGH_NOT_PRECEDENCE'"),
            ("character_set_client", "'latin1'"),
            ("max_statement_time", "5"),
            ("innodb_lock_wait_timeout", "1"),
        ],
    ];
    let server = MariaDb::start();
    let builders = || {
        let pooled = MysqlBackend::from_pool(mysql_pool(&server.url(), 10)).table("pooled").unwrap();
        (MysqlBackend::builder(server.url()).table("own").unwrap(), pooled)
    };
    let (own, pooled) = builders();
    own.open().await.unwrap();
    pooled.open().await.unwrap();
    server.sql("CREATE TABLE orders (n int)");
    let emptied =
        ["own", "own_steps", "pooled", "pooled_steps", "orders"].map(|table| format!("TRUNCATE {table};")).concat();
    let mut wrong = Vec::new();
    for (settings, is_fit) in
        UNFIT.map(|settings| (settings, false)).into_iter().chain(FIT.map(|settings| (settings, true)))
    {
        server.sql(&emptied);
        let was = settings.iter().map(|(setting, _)| {
            let was = server.sql(&format!("SELECT @@GLOBAL.{setting}"));
            let was = if was.parse::<f64>().is_ok() { was } else { format!("'{was}'") };
            format!("SET GLOBAL {setting} = {was};")
        });
        let back: String = was.collect();
        let set = settings.iter().map(|(setting, value)| format!("SET GLOBAL {setting} = {value};"));
        server.sql(&set.collect::<String>());
        let check = async || {
            let (own, pooled) = builders();
            let backend = own.open().await.map_err(|error| error.to_string())?;
            keeps_its_word(&backend, ordering_in_mysql).await?;
            match pooled.open().await {
                Ok(backend) if is_fit => keeps_its_word(&backend, ordering_in_mysql).await,
                Err(MysqlOpenError::Setting { setting, .. }) if !is_fit && setting == settings[0].0 => Ok(()),
                opened => Err(format!("on a pool: {opened:?}")),
            }
        };
        let checked = check().await;
        server.sql(&back);
        // The committed rows, as another session sees them.
        let completed = "(SELECT count(*) FROM own WHERE state = 2), (SELECT count(*) FROM pooled WHERE state = 2)";
        let committed = server.sql(&format!("SELECT {completed}, (SELECT count(*) FROM orders)"));
        let wanted = if is_fit { format!("{0}\t{0}\t2", KEYS + 1) } else { format!("{}\t0\t1", KEYS + 1) };
        if let Err(error) = checked {
            wrong.push(format!("{settings:?}: {error}"));
        } else if committed != wanted {
            wrong.push(format!("{settings:?}: committed is {committed}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The server's `init_connect`, which runs for each connection of a user who is not an administrator.
#[actix_rt::test]
async fn s01_what_mysql_runs_at_each_connection_changes_nothing() {
    let text = "SET autocommit = 0, completion_type = 1, sql_select_limit = 1, sql_mode = 'EMPTY_STRING_IS_NULL'; \
                SET SESSION TRANSACTION ISOLATION LEVEL READ UNCOMMITTED; BEGIN";
    let server = MariaDb::start_with(&[&format!("--init-connect={text}")]);
    server.sql("CREATE USER app@'127.0.0.1'; GRANT ALL ON shop.* TO app@'127.0.0.1'; CREATE TABLE orders (n int)");
    let url = server.url().replace("shop@", "app@");
    let backend = MysqlBackend::open(&url).await.unwrap();
    assert_eq!(keeps_its_word(&backend, ordering_in_mysql).await, Ok(()));
    drop(backend);
    let count = |what: &str| server.sql(&format!("SELECT count(*) FROM {what}"));
    assert_eq!(count("oncekey_records WHERE state = 2"), (KEYS + 1).to_string());
    assert_eq!(count("orders"), "1");
    let refused = MysqlBackend::from_pool(mysql_pool(&url, 5)).open().await.unwrap_err();
    assert!(matches!(refused, MysqlOpenError::Setting { .. }), "{refused}");
}

/// One connection of the application's pool has other settings than the one that was checked by `open`.
#[actix_rt::test]
async fn s01_each_connection_of_a_pool_is_checked() {
    let server = MariaDb::start();
    let backend = MysqlBackend::from_pool(mysql_pool(&server.url(), 5)).open().await.unwrap();
    let claimed = backend.acquire(acquire("before")).await;
    assert!(matches!(claimed, Ok(Acquired::Claimed { .. })), "{claimed:?}");
    let kill_all = || {
        let others = "SELECT COALESCE(group_concat(concat('KILL ', id) separator ';'), 'DO 0') \
                      FROM information_schema.processlist WHERE user = 'shop'";
        server.sql(&server.sql(others));
    };
    for (setting, value, usual) in [
        ("autocommit", "0", "1"),
        ("completion_type", "1", "0"),
        ("tx_isolation", "'READ-UNCOMMITTED'", "'REPEATABLE-READ'"),
    ] {
        server.sql(&format!("SET GLOBAL {setting} = {value}"));
        kill_all();
        let mut refusals = 0;
        for number in 0..4 {
            match backend.acquire(acquire(&format!("{setting} {number}"))).await {
                Err(StoreError::Unavailable(told)) if told.contains("pool") => refusals += 1,
                // The connection was cut.
                Err(StoreError::Unavailable(_)) => {}
                other => panic!("{setting}: {other:?}"),
            }
        }
        assert!(refusals > 0, "{setting}");
        server.sql(&format!("SET GLOBAL {setting} = {usual}"));
        let again = backend.acquire(acquire(&format!("{setting} again"))).await;
        assert!(matches!(again, Ok(Acquired::Claimed { .. })), "{setting}: {again:?}");
    }
    assert_eq!(server.sql("SELECT count(*) FROM oncekey_records"), "4");
}

/// Session settings of PostgreSQL, by role, some of them together. The store works, on its own connections and on a
/// pool with these settings.
#[actix_rt::test]
async fn s06_whatever_a_role_sets_in_postgres_the_store_keeps_its_word() {
    let settings: [&[(&str, &str)]; 3] = [
        &[
            ("standard_conforming_strings", "off"),
            ("backslash_quote", "off"),
            ("bytea_output", "escape"),
            ("\"DateStyle\"", "'German, DMY'"),
            ("\"IntervalStyle\"", "sql_standard"),
            ("\"TimeZone\"", "'Pacific/Kiritimati'"),
            ("extra_float_digits", "-15"),
            ("array_nulls", "off"),
            ("transform_null_equals", "on"),
            ("quote_all_identifiers", "on"),
            ("client_encoding", "LATIN1"),
            ("search_path", "pg_catalog, public"),
        ],
        &[
            ("statement_timeout", "5000"),
            ("idle_in_transaction_session_timeout", "3000"),
            ("lock_timeout", "100"),
            ("default_transaction_isolation", "serializable"),
            ("default_transaction_deferrable", "on"),
            ("synchronous_commit", "off"),
            ("exit_on_error", "on"),
        ],
        &[
            ("plan_cache_mode", "force_generic_plan"),
            ("default_transaction_isolation", "'repeatable read'"),
            ("row_security", "off"),
            ("jit_above_cost", "0"),
            ("enable_indexscan", "off"),
            ("default_tablespace", "pg_default"),
            ("check_function_bodies", "off"),
        ],
    ];
    let server = Postgres::start();
    server.sql("CREATE TABLE orders (n int); CREATE ROLE app LOGIN; GRANT ALL ON orders TO app; GRANT CREATE ON SCHEMA public TO app");
    let url = server.url().replace("shop@", "app@");
    let mut wrong = Vec::new();
    for settings in settings {
        let set = settings.iter().map(|(setting, value)| format!("ALTER ROLE app SET {setting} = {value};"));
        server.sql(&format!("TRUNCATE orders; {}", set.collect::<String>()));
        let (own, pooled) = (fresh_table(), fresh_table());
        let check = async || {
            let told = |error: PostgresOpenError| error.to_string();
            let builder = PostgresBackend::builder(&url).schema("public").unwrap();
            let backend = builder.table(&own).unwrap().open().await.map_err(told)?;
            keeps_its_word(&backend, ordering_in_postgres).await?;
            let builder = PostgresBackend::from_pool(postgres_pool(&url, 10)).schema("public").unwrap();
            let backend = builder.table(&pooled).unwrap().open().await.map_err(told)?;
            keeps_its_word(&backend, ordering_in_postgres).await.map_err(|error| format!("on a pool: {error}"))
        };
        let checked = check().await;
        server.sql("ALTER ROLE app RESET ALL");
        let completed = |table: &str| format!("(SELECT count(*) FROM {table} WHERE state = 2)");
        let text = format!("SELECT {}, {}, (SELECT count(*) FROM orders)", completed(&own), completed(&pooled));
        if let Err(error) = checked {
            wrong.push(format!("{settings:?}: {error}"));
            continue;
        }
        let (committed, wanted) = (server.sql(&text), format!("{0}|{0}|2", KEYS + 1));
        if committed != wanted {
            wrong.push(format!("{settings:?}: committed is {committed}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A role whose transactions only read, and one without a schema in its path: the error says so, and nothing is kept.
#[actix_rt::test]
async fn s13_what_a_role_may_not_do_is_said() {
    let server = Postgres::start();
    server.sql("CREATE ROLE app LOGIN; GRANT CREATE ON SCHEMA public TO app; ALTER ROLE app SET search_path = ''");
    let url = server.url().replace("shop@", "app@");
    let refused = PostgresBackend::open(&url).await.unwrap_err();
    assert!(refused.to_string().contains("search path"), "{refused}");
    server.sql("ALTER ROLE app RESET search_path");
    PostgresBackend::open(&url).await.unwrap();

    server.sql("ALTER ROLE app SET default_transaction_read_only = on");
    let backend = PostgresBackend::open(&url).await.unwrap();
    let findings = backend.doctor().await.unwrap();
    assert!(findings.iter().any(|finding| finding.setting == "default_transaction_read_only"), "{findings:?}");
    let refused = backend.acquire(acquire("k")).await;
    assert!(matches!(refused, Err(StoreError::ReadOnly(_))), "{refused:?}");
    // Tables that do not exist yet cannot be created.
    let refused = PostgresBackend::builder(&url).table("others").unwrap().open().await.unwrap_err();
    assert!(matches!(refused, PostgresOpenError::Migration { .. }), "{refused}");
    server.sql("ALTER ROLE app RESET default_transaction_read_only");

    let server = MariaDb::start();
    let backend = MysqlBackend::open(&server.url()).await.unwrap();
    assert_eq!(backend.doctor().await.unwrap(), []);
    server.sql("SET GLOBAL tx_read_only = 1");
    let backend = MysqlBackend::open(&server.url()).await.unwrap();
    let refused = backend.acquire(acquire("k")).await;
    assert!(matches!(refused, Err(StoreError::ReadOnly(_))), "{refused:?}");
    let findings = backend.doctor().await.unwrap();
    assert!(findings.iter().any(|finding| finding.setting == "transaction_read_only"), "{findings:?}");
}

/// The server ends a session while an operation is idle in its transaction, or cancels a statement that takes too long.
/// The operation fails, and nothing of it remains.
#[actix_rt::test]
async fn s04_a_session_that_the_server_ends_leaves_nothing_behind() {
    let server = Postgres::start();
    server.sql("CREATE TABLE orders (n int)");
    for (setting, statement) in
        [("idle_in_transaction_session_timeout", "SELECT 1"), ("statement_timeout", "SELECT pg_sleep(2)")]
    {
        server.sql(&format!("ALTER ROLE shop SET {setting} = '200ms'"));
        let table = fresh_table();
        let backend = PostgresBackend::builder(server.url()).table(&table).unwrap().open().await.unwrap();
        for passes_over in [false, true] {
            let claim = acquire(&format!("{setting} {passes_over}"));
            let (key, owner) = (claim.key.clone(), claim.owner);
            let claimed = backend.acquire(claim).await;
            assert!(matches!(claimed, Ok(Acquired::Claimed { .. })), "{claimed:?}");
            let outcome = SealedOutcome::tombstone(&key);
            let operation = TransactionOperation::new_async(async move |tx: &mut AsyncPgConnection| {
                tx.batch_execute("INSERT INTO orders VALUES (1)").await.unwrap();
                tokio::time::sleep(Duration::from_millis(500)).await;
                match tx.batch_execute(statement).await {
                    Err(_) if !passes_over => Err(oncekey::backend::OperationFailure::RollBack),
                    _ => Ok(outcome.clone()),
                }
            });
            let message = CompleteInTransaction { key, owner, retention: Duration::from_secs(60), operation };
            let answer = backend.complete_in_transaction(message).await;
            let is_told = matches!(&answer, Ok(CompletedInTransaction::RolledBack) | Err(StoreError::Unavailable(_)));
            assert!(is_told, "{setting}, {passes_over}: {answer:?}");
        }
        assert_eq!(server.sql("SELECT count(*) FROM orders"), "0");
        assert_eq!(server.sql(&format!("SELECT count(*) FROM {table} WHERE state <> 1")), "0");
        server.sql(&format!("ALTER ROLE shop RESET {setting}"));
    }
}

/// A pooler in statement mode allows no transactions at all. It is refused by the same name.
#[actix_rt::test]
async fn s07_a_pooler_by_statement_is_refused_at_open() {
    let server = Postgres::start();
    for settings in ["", "default_pool_size = 1"] {
        let pooler = PgBouncer::before_with(&server, "statement", settings);
        let opened = [
            PostgresBackend::open(&pooler.url()).await,
            PostgresBackend::from_pool(postgres_pool(&pooler.url(), 5)).open().await,
        ];
        for opened in opened {
            assert!(matches!(opened, Err(PostgresOpenError::Pooler)), "{settings}: {opened:?}");
        }
    }
    assert_eq!(server.sql("SELECT to_regclass('oncekey_records') IS NULL"), "t");
}

/// A hot standby refuses every claim and says what it is. It is used once it is promoted.
#[actix_rt::test]
async fn s13_a_hot_standby_is_told_of_and_used_once_it_is_promoted() {
    let primary = Postgres::start();
    let backend = PostgresBackend::open(&primary.url()).await.unwrap();
    let done = acquire("done");
    backend.acquire(done.clone()).await.unwrap();
    let outcome = completion("done", done.owner, Duration::from_secs(60));
    assert_eq!(backend.complete(outcome).await, Ok(Completed::Stored));
    let standby = primary.standby();
    let backend = PostgresBackend::open(&standby.url()).await.unwrap();
    let findings = backend.doctor().await.unwrap();
    assert!(findings.iter().any(|finding| finding.setting == "pg_is_in_recovery"), "{findings:?}");
    let refused = backend.acquire(acquire("new")).await;
    assert!(matches!(refused, Err(StoreError::ReadOnly(_))), "{refused:?}");
    assert!(backend.lookup(Lookup { key: key("done") }).await.unwrap().is_some());
    // Tables cannot be created on a standby, and `open` says so.
    let refused = PostgresBackend::builder(standby.url()).table("others").unwrap().open().await.unwrap_err();
    assert!(matches!(refused, PostgresOpenError::Migration { .. }), "{refused}");
    standby.sql("SELECT pg_promote()");
    let claimed = backend.acquire(acquire("new")).await;
    assert!(matches!(claimed, Ok(Acquired::Claimed { .. })), "{claimed:?}");
    let replayed = backend.acquire(acquire("done")).await;
    assert!(matches!(replayed, Ok(Acquired::Completed { .. })), "{replayed:?}");
}
