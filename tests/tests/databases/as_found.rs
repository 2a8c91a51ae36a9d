//! Servers as users run them: behind a pooler, in a cluster, failed over, with small limits, and with their own
//! defaults.

use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel_async::{AsyncConnection as _, AsyncMysqlConnection, AsyncPgConnection, SimpleAsyncConnection as _};
use futures_util::future::join_all;
use oncekey::backend::{
    Acquire, Acquired, Backend, CommitStep, Complete, CompleteInTransaction, CompleteStep, Completed,
    CompletedInTransaction, Purge, Renew, Renewed, Request, ResolveStep, Resolved, StepBegun, StepCommitted,
    StepCompleted, StepFailed, StepInTransaction, StepResolution, StoreError, TransactionOperation,
};
use oncekey::record::{Binding, PayloadKind, Progress, SealedOutcome};
use oncekey::{Claim, Engine, Error, Key, OnAbandoned, Outcome, RunError, Step};
use oncekey_backends::mysql::MysqlBackend;
use oncekey_backends::outbox::{MysqlOutbox, PostgresOutbox};
use oncekey_backends::postgres::{PostgresBackend, PostgresOpenError};
use tests::server::{MariaDb, PgBouncer, Postgres};
use tokio::sync::Notify;

use crate::common::{a_while, acquire, mysql_pool, postgres_pool};
use crate::sessions::{key, long_outcome, reply};
use crate::steps::{Held, RETENTION, claim, claim_for, name};

async fn claims(backend: &impl Backend, name: &str) -> Result<Acquire, StoreError> {
    let claim = acquire(name);
    let answer = backend.acquire(claim.clone()).await?;
    assert!(matches!(answer, Acquired::Claimed { .. }), "{name}: {answer:?}");
    Ok(claim)
}

/// A pooler in transaction mode keeps neither settings nor prepared statements. It is refused, by name.
#[actix_rt::test]
async fn e27_a_pooler_by_transaction_is_refused_at_open() {
    let server = Postgres::start();
    // The pooler lends the connection that was returned last, or the one that was returned first, or it has one
    // connection for all.
    for settings in ["", "server_round_robin = 1", "default_pool_size = 1"] {
        let pooler = PgBouncer::before_with(&server, "transaction", settings);
        let opened = [
            PostgresBackend::open(&pooler.url()).await,
            PostgresBackend::from_pool(postgres_pool(&pooler.url(), 5)).open().await,
        ];
        for opened in opened {
            let refused = opened.unwrap_err();
            assert!(matches!(refused, PostgresOpenError::Pooler), "{settings}: {refused}");
            assert!(refused.to_string().contains("session"), "{refused}");
        }
    }
    assert_eq!(server.sql("SELECT to_regclass('oncekey_records') IS NULL"), "t");
}

/// Transactions of other clients, which take and return the server's processes in the meantime, do not hide a pooler.
#[actix_rt::test]
async fn e27_a_busy_pooler_by_transaction_is_refused_at_open() {
    let server = Postgres::start();
    let pooler = PgBouncer::before(&server, "transaction");
    let others = (0..4).map(|_| {
        let url = pooler.url();
        actix_rt::spawn(async move {
            loop {
                // The statement that the driver prepares at its start may be gone. It then starts again.
                let Ok(mut connection) = AsyncPgConnection::establish(&url).await else { continue };
                while connection.batch_execute("BEGIN; SELECT 1; COMMIT").await.is_ok() {}
            }
        })
    });
    let others: Vec<_> = others.collect();
    for _ in 0..5 {
        let opened = PostgresBackend::from_pool(postgres_pool(&pooler.url(), 5)).open().await;
        assert!(matches!(opened, Err(PostgresOpenError::Pooler)), "{opened:?}");
    }
    others.iter().for_each(actix_rt::task::JoinHandle::abort);
}

/// A pooler in session mode changes nothing.
#[actix_rt::test]
async fn e27_a_pooler_by_session_works() {
    let server = Postgres::start();
    server.sql("CREATE TABLE orders (n int)");
    let pooler = PgBouncer::before(&server, "session");
    let backends = [
        PostgresBackend::open(&pooler.url()).await.unwrap(),
        PostgresBackend::from_pool(postgres_pool(&pooler.url(), 20)).open().await.unwrap(),
    ];
    let engines = backends.map(|backend| Engine::builder(backend).start().unwrap());
    for round in 0..20 {
        let (holder, other) = (&engines[round % 2], &engines[(round + 1) % 2]);
        let key = Key::new("s", round).unwrap();
        let operation = async |tx: &mut AsyncPgConnection, _: &_| {
            tx.batch_execute("INSERT INTO orders VALUES (1)").await?;
            Ok::<u32, diesel::result::Error>(1)
        };
        assert_eq!(holder.run_in_async_transaction(key.clone(), b"", operation).await.unwrap(), Outcome::Ran(1));
        assert_eq!(other.run_in_async_transaction(key, b"", operation).await.unwrap(), Outcome::Replayed(1));
    }
    assert_eq!(server.sql("SELECT count(*) FROM orders"), "20");
    // A waiting caller on the other engine learns of the end.
    let (began, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (begins, goes_on) = (Arc::clone(&began), Arc::clone(&go_on));
    let running = engines[0].run_local(Key::new("s", "w").unwrap(), b"", async move |_| {
        begins.notify_one();
        goes_on.notified().await;
        Ok::<u32, ()>(7)
    });
    let waiting = async {
        began.notified().await;
        let waits = engines[1].with_wait(Duration::from_secs(10));
        let waited = waits.run(Key::new("s", "w").unwrap(), b"", |_| async { Ok::<u32, ()>(8) });
        let letting_go = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            go_on.notify_one();
        };
        futures_util::future::join(waited, letting_go).await.0
    };
    let (ran, waited) = futures_util::future::join(running, waiting).await;
    assert_eq!((ran.unwrap(), waited.unwrap()), (Outcome::Ran(7), Outcome::Replayed(7)));
}

/// A server that has become a replica refuses to write, and the connections to it are closed, because the next ones may
/// lead to the primary.
#[actix_rt::test]
async fn e11_a_server_that_failed_over_to_read_only_is_left() {
    let server = Postgres::start();
    server.sql("CREATE TABLE orders (n int)");
    let backend = PostgresBackend::open(&server.url()).await.unwrap();
    claims(&backend, "before").await.unwrap();
    let engine = Engine::builder(backend.clone()).start().unwrap();
    let order = async |name: &'static str| {
        engine
            .run_in_async_transaction(key(name), b"", async |tx: &mut AsyncPgConnection, _| {
                tx.batch_execute("INSERT INTO orders VALUES (1)").await?;
                Ok::<u32, diesel::result::Error>(1)
            })
            .await
    };
    order("first").await.unwrap();
    let processes = || server.sql("SELECT pid FROM pg_stat_activity WHERE application_name = 'oncekey'");
    server.sql("ALTER SYSTEM SET default_transaction_read_only = on");
    server.sql("SELECT pg_reload_conf()");
    tests::process::until("read only", async || server.sql("SHOW default_transaction_read_only") == "on").await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let there = processes();
    for n in 0..4 {
        let refused = claims(&backend, &format!("during {n}")).await.unwrap_err();
        assert!(matches!(refused, StoreError::ReadOnly(_)), "{refused:?}");
        assert!(refused.is_transient() && !refused.is_unknown());
    }
    server.sql("ALTER SYSTEM RESET default_transaction_read_only");
    server.sql("SELECT pg_reload_conf()");
    tests::process::until("writable", async || server.sql("SHOW default_transaction_read_only") == "off").await;
    let left: Vec<_> =
        processes().lines().filter(|pid| there.lines().any(|old| old == *pid)).map(str::to_owned).collect();
    assert!(left.len() < there.lines().count(), "no connection was closed: {there}");
    claims(&backend, "after").await.unwrap();
    order("second").await.unwrap();

    let server = MariaDb::start();
    server.sql(
        "CREATE USER app@'127.0.0.1'; GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER ON shop.* TO app@'127.0.0.1'",
    );
    let backend = MysqlBackend::open(&server.url().replace("shop@", "app@")).await.unwrap();
    claims(&backend, "before").await.unwrap();
    server.sql("SET GLOBAL read_only = 1");
    let ids = || server.sql("SELECT id FROM information_schema.processlist WHERE user = 'app'");
    let there = ids();
    for n in 0..4 {
        let refused = claims(&backend, &format!("during {n}")).await.unwrap_err();
        assert!(matches!(refused, StoreError::ReadOnly(_)), "{refused:?}");
    }
    let findings = backend.doctor().await.unwrap();
    assert!(findings.iter().any(|finding| finding.setting == "read_only"), "{findings:?}");
    server.sql("SET GLOBAL read_only = 0");
    let left = ids().lines().filter(|id| there.lines().any(|old| old == *id)).count();
    assert!(left < there.lines().count(), "no connection was closed: {there}");
    claims(&backend, "after").await.unwrap();
}

/// Idle connections in the pool that the server has closed cause no errors.
#[actix_rt::test]
async fn e11_connections_that_were_cut_while_idle_are_nobodys_error() {
    let server = Postgres::start_with(&["idle_session_timeout=1s"]);
    let backend = PostgresBackend::open(&server.url()).await.unwrap();
    let outbox = PostgresOutbox::open(backend.pool()).await.unwrap();
    claims(&backend, "before").await.unwrap();
    tokio::time::sleep(Duration::from_millis(1_800)).await;
    claims(&backend, "after").await.unwrap();
    outbox.parked(1).await.unwrap();

    let server = MariaDb::start_with(&["--wait-timeout=1"]);
    let backend = MysqlBackend::open(&server.url()).await.unwrap();
    let outbox = MysqlOutbox::open(backend.pool()).await.unwrap();
    claims(&backend, "before").await.unwrap();
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    claims(&backend, "after").await.unwrap();
    outbox.parked(1).await.unwrap();
}

/// The server refuses one outcome, beside large ones that it accepts. All are completed, and the refused one becomes a
/// tombstone.
#[actix_rt::test]
async fn e12_an_outcome_larger_than_the_servers_packet_is_a_tombstone() {
    let server = MariaDb::start_with(&["--max-allowed-packet=1M"]);
    let backend = MysqlBackend::open(&server.url()).await.unwrap();
    let sizes: Vec<usize> = (0..40).map(|n| [10, 100_000, 900_000, 3 << 20][n % 4]).collect();
    let (answered, answers) = std::sync::mpsc::channel();
    let mut batch = Vec::new();
    for (n, size) in sizes.iter().enumerate() {
        let name = format!("k{n}");
        let owner = claims(&backend, &name).await.unwrap().owner;
        let outcome = long_outcome(&key(&name), *size);
        let message = Complete { key: key(&name), owner, outcome, retention: Duration::from_secs(60) };
        batch.push(Request::Complete(message, reply(&name, &answered)));
    }
    let started = Instant::now();
    backend.execute(batch).await;
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    let answers: Vec<_> = answers.try_iter().collect();
    assert_eq!(answers.len(), sizes.len());
    assert!(answers.iter().all(|(_, answer)| *answer == Ok(Completed::Stored)), "{answers:?}");
    for (n, size) in sizes.iter().enumerate() {
        let key = key(&format!("k{n}"));
        let wanted = if *size > 1 << 20 { SealedOutcome::tombstone(&key) } else { long_outcome(&key, *size) };
        let replayed = backend.acquire(acquire(&format!("k{n}"))).await;
        assert!(matches!(&replayed, Ok(Acquired::Completed { outcome }) if *outcome == wanted), "{n}: {size}");
    }
    // In a transaction, the caller gets the outcome, and later callers get the tombstone.
    let engine = Engine::builder(backend.clone()).start().unwrap();
    let run = async || {
        engine
            .run_in_async_transaction(key("tx"), b"", async |_: &mut AsyncMysqlConnection, _| {
                Ok::<String, diesel::result::Error>("7".repeat(3 << 20))
            })
            .await
    };
    assert!(matches!(run().await, Ok(Outcome::Ran(text)) if text.len() == 3 << 20));
    let again = run().await;
    assert!(matches!(again, Err(RunError::Engine(oncekey::Error::OutcomeNotKept))), "{:?}", again.map(|_| ()));
    let findings = backend.doctor().await.unwrap();
    assert!(findings.iter().any(|finding| finding.setting == "max_allowed_packet"), "{findings:?}");
}

/// The same for steps: the tombstone is sealed for the step, and its neighbours in the batch are unaffected.
#[actix_rt::test]
async fn e12_a_steps_outcome_larger_than_the_servers_packet_is_a_tombstone() {
    let server = MariaDb::start_with(&["--max-allowed-packet=1M"]);
    let backend = MysqlBackend::open(&server.url()).await.unwrap();
    let sealed_for = |held: &Held, step: &str, size: usize| {
        SealedOutcome::seal(Binding::step(&held.key, held.token, &name(step)), PayloadKind::Json, |payload| {
            payload.resize(size, b'7');
        })
    };
    let tombstone =
        |held: &Held, step: &str| SealedOutcome::tombstone(Binding::step(&held.key, held.token, &name(step)));
    let sizes: Vec<usize> = (0..40).map(|n| [10, 100_000, 900_000, 3 << 20][n % 4]).collect();
    let claiming = (0..sizes.len()).map(async |n| claim(&backend, &format!("k{n}")).await);
    let held: Vec<Held> = join_all(claiming).await;
    let (answered, begun) = std::sync::mpsc::channel();
    let begins = held.iter().map(|held| Request::BeginStep(Box::new(held.begin("charge", 1)), reply("k", &answered)));
    backend.execute(begins.collect()).await;
    let begun: Vec<_> = begun.try_iter().collect();
    assert_eq!(begun.len(), sizes.len());
    assert!(begun.iter().all(|(_, answer)| matches!(answer, Ok(StepBegun::Begun { .. }))), "{begun:?}");
    let (answered, completed) = std::sync::mpsc::channel();
    let completions = held.iter().zip(&sizes).map(|(held, size)| {
        let outcome = sealed_for(held, "charge", *size);
        let message = CompleteStep { outcome, ..held.complete(held.token, "charge", 1) };
        Request::CompleteStep(Box::new(message), reply("k", &answered))
    });
    backend.execute(completions.collect()).await;
    let completed: Vec<_> = completed.try_iter().collect();
    assert_eq!(completed.len(), sizes.len());
    assert!(completed.iter().all(|(_, answer)| *answer == Ok(StepCompleted::Stored)), "{completed:?}");
    for (held, size) in held.iter().zip(&sizes) {
        let (large, stored) = (*size > 1 << 20, sealed_for(held, "charge", *size));
        let wanted = if large { tombstone(held, "charge") } else { stored };
        let replayed = backend.begin_step(held.begin("charge", 2)).await;
        let is_wanted = matches!(&replayed, Ok(StepBegun::Completed { outcome, .. }) if *outcome == wanted);
        assert!(is_wanted, "{}: {size}", held.key);
    }
    // In a transaction, the caller gets the outcome, and later callers get the tombstone.
    let one = &held[0];
    let order = |number: u32| {
        let outcome = sealed_for(one, "order", 3 << 20);
        let operation = TransactionOperation::new_async(async move |_: &mut AsyncMysqlConnection| Ok(outcome.clone()));
        let (key, owner, life) = (one.key.clone(), one.owner, one.token);
        let step =
            CommitStep { key, owner, name: name("order"), fingerprint: None, number, life, retention: RETENTION };
        backend.step_in_transaction(StepInTransaction { step, operation })
    };
    let stored = StepCommitted::Stored { outcome: sealed_for(one, "order", 3 << 20), life: one.token };
    assert!(order(3).await == Ok(stored));
    let again = StepCommitted::Completed { outcome: tombstone(one, "order"), life: one.token };
    assert!(order(4).await == Ok(again));
    // An operator's resolution behaves the same.
    let lost = claim_for(&backend, "lost", Duration::from_millis(500)).await;
    assert!(matches!(backend.begin_step(lost.begin("charge", 1)).await, Ok(StepBegun::Begun { .. })));
    lost.lapsed(&backend).await;
    let word = ResolveStep {
        key: lost.key.clone(),
        name: name("charge"),
        run: None,
        life: Some(lost.token),
        with: StepResolution::Complete { outcome: sealed_for(&lost, "charge", 3 << 20) },
    };
    assert_eq!(backend.resolve_step(word).await, Ok(Resolved::Resolved));
    let next = claim(&backend, "lost").await;
    assert!(next.steps.unwrap().list[0].progress == Progress::Completed(tombstone(&lost, "charge")));
}

/// On any pool of the application, whatever its isolation level, a claim is renewed while its operation runs, and
/// completed afterwards.
#[actix_rt::test]
async fn e27_a_claim_is_renewed_while_its_operation_runs_on_any_pool() {
    let settings: [&[&str]; 3] = [
        &["--innodb-snapshot-isolation=ON"],
        &["--transaction-isolation=SERIALIZABLE"],
        &["--innodb-snapshot-isolation=ON", "--transaction-isolation=SERIALIZABLE"],
    ];
    for settings in settings {
        let server = MariaDb::start_with(settings);
        let pool = mysql_pool(&server.url(), 10);
        let backend = MysqlBackend::from_pool(pool.clone()).open().await.unwrap();
        for round in 0..3 {
            let claim = claims(&backend, &format!("k{round}")).await.unwrap();
            let (key, owner) = (claim.key, claim.owner);
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
        assert!(!backend.doctor().await.unwrap().is_empty());
        // The application gets its own setting back.
        let check = "BEGIN NOT ATOMIC IF @@innodb_snapshot_isolation <> @@GLOBAL.innodb_snapshot_isolation \
                     OR @@tx_isolation <> @@GLOBAL.tx_isolation THEN SIGNAL SQLSTATE '45000'; END IF; END";
        let lent = join_all((0..10).map(|_| pool.get())).await;
        for mut connection in lent.into_iter().map(Result::unwrap) {
            connection.batch_execute(check).await.unwrap();
        }
    }

    let server = Postgres::start();
    server.sql("ALTER DATABASE postgres SET default_transaction_isolation = 'serializable'");
    let backend = PostgresBackend::from_pool(postgres_pool(&server.url(), 10)).open().await.unwrap();
    let claim = claims(&backend, "k").await.unwrap();
    let (key, owner) = (claim.key, claim.owner);
    let outcome = SealedOutcome::tombstone(&key);
    let (renewed_key, renewing) = (key.clone(), backend.clone());
    let operation = TransactionOperation::new_async(async move |tx: &mut AsyncPgConnection| {
        tx.batch_execute("SELECT 1").await.unwrap();
        let renew = Renew { key: renewed_key.clone(), owner, lease: Duration::from_secs(60) };
        assert_eq!(renewing.renew(renew).await, Ok(Renewed::Renewed));
        Ok(outcome.clone())
    });
    let message = CompleteInTransaction { key, owner, retention: Duration::from_secs(60), operation };
    let answer = backend.complete_in_transaction(message).await;
    assert!(matches!(answer, Ok(CompletedInTransaction::Stored { .. })), "{answer:?}");
}

/// On any pool of the application, whatever its isolation level: a step's transaction delays neither its claim's
/// heartbeats nor its sibling steps. Operations with steps are taken over concurrently, and what each of their steps
/// wrote is there once.
#[actix_rt::test]
async fn e27_steps_in_transactions_work_on_any_pool() {
    const KEYS: usize = 8;
    const LEASE: Duration = Duration::from_secs(2);
    const LASTS: Duration = Duration::from_millis(2_500);
    let settings: [&[&str]; 2] = [
        &["--transaction-isolation=SERIALIZABLE"],
        &["--innodb-snapshot-isolation=ON", "--transaction-isolation=SERIALIZABLE"],
    ];
    for settings in settings {
        let server = MariaDb::start_with(settings);
        server.sql("CREATE TABLE reserved (item varchar(50))");
        let open = async || MysqlBackend::from_pool(mysql_pool(&server.url(), 10)).open().await.unwrap();
        let start = |backend| Engine::builder(backend).lease(LEASE).on_abandoned(OnAbandoned::Resume).start().unwrap();
        let (engine, other) = (start(open().await), start(open().await));
        let check_out = async |engine: &Engine, number: usize, is_first: bool| {
            let key = Key::new("s", format!("k{number:02}")).unwrap();
            let operation = async move |claim: Claim| {
                let reserve = async move |tx: &mut AsyncMysqlConnection, _: &Step| {
                    tx.batch_execute(&format!("INSERT INTO reserved VALUES ('{number}')")).await?;
                    // This is longer than the lease, which the heartbeats renew in the meantime.
                    tokio::time::sleep(LASTS).await;
                    Ok::<_, diesel::result::Error>(1_u32)
                };
                let sibling = claim.step("charge", async |_| Ok::<_, diesel::result::Error>(2_u32));
                let began = Instant::now();
                let (reserved, charged) =
                    futures_util::future::join(claim.step_in_async_transaction("reserve", reserve), async {
                        (sibling.await, began.elapsed())
                    })
                    .await;
                assert_eq!((reserved, charged.0), (Ok(1), Ok(2)), "{number}");
                assert!(charged.1 < LASTS || !is_first, "the sibling waited for {:?}", charged.1);
                assert!(!is_first, "this panic is part of a check");
                claim.step("mail", async |_| Ok::<_, diesel::result::Error>(3_u32)).await
            };
            engine.run_local(key, b"", operation).await
        };
        // Four run at once, because a pool of ten has six connections for transactions.
        for first in (0..KEYS).step_by(4) {
            let ran = join_all((first..first + 4).map(|number| check_out(&engine, number, true))).await;
            assert!(
                ran.iter().all(|ran| matches!(ran, Err(RunError::Engine(Error::Panicked)))),
                "{settings:?}: {ran:?}"
            );
        }
        let ran = join_all((0..KEYS).map(|number| check_out(&other, number, false))).await;
        assert!(ran.iter().all(|ran| matches!(ran, Ok(Outcome::Ran(3)))), "{settings:?}: {ran:?}");
        assert_eq!(server.sql("SELECT count(*), count(DISTINCT item) FROM reserved"), format!("{KEYS}\t{KEYS}"));
        // Messages about the steps of many keys run concurrently, each in its own transaction.
        let (backend, beside) = (open().await, open().await);
        let held = join_all((0..KEYS).map(async |number| claim(&backend, &format!("f{number:02}")).await)).await;
        for held in &held {
            assert!(matches!(backend.begin_step(held.begin("charge", 1)).await, Ok(StepBegun::Begun { .. })));
        }
        let failed = join_all(held.iter().enumerate().map(|(number, held)| {
            let backend = if number % 2 == 0 { &backend } else { &beside };
            async move {
                let failed = backend.fail_step(held.fail("charge", 1)).await;
                (
                    failed,
                    backend.begin_step(held.begin("charge", 2)).await,
                    backend.fail_step(held.fail("mail", 3)).await,
                )
            }
        }))
        .await;
        for (failed, begun, mail) in failed {
            assert_eq!((failed, mail), (Ok(StepFailed::Failed), Ok(StepFailed::Failed)), "{settings:?}");
            assert!(matches!(begun, Ok(StepBegun::Begun { .. })), "{settings:?}: {begun:?}");
        }
    }
}

/// A node of a Galera cluster opens, claims, completes, purges and relays, without named locks.
#[actix_rt::test]
async fn e14_a_galera_node_purges() {
    let port = tests::server::free_port();
    let provider = format!("--wsrep-provider-options=gmcast.listen_addr=tcp://127.0.0.1:{port}");
    let server = MariaDb::start_with(&[
        "--wsrep-on=ON",
        "--wsrep-provider=/usr/lib/galera/libgalera_smm.so",
        "--wsrep-cluster-address=gcomm://",
        "--wsrep-node-address=127.0.0.1",
        "--binlog-format=ROW",
        "--innodb-autoinc-lock-mode=2",
        &provider,
    ]);
    assert_eq!(server.sql("SHOW STATUS LIKE 'wsrep_ready'").split_whitespace().last(), Some("ON"));
    let backend = MysqlBackend::open(&server.url()).await.unwrap();
    for name in ["a", "b", "c"] {
        let claim = claims(&backend, name).await.unwrap();
        let outcome = SealedOutcome::tombstone(&claim.key);
        let complete = Complete { key: claim.key, owner: claim.owner, outcome, retention: Duration::from_millis(1) };
        assert_eq!(backend.complete(complete).await, Ok(Completed::Stored));
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(backend.purge(Purge { limit: 10 }).await.unwrap().removed, 3);
    server.sql("CREATE TABLE orders (n int PRIMARY KEY)");
    let engine = Engine::builder(backend.clone()).start().unwrap();
    let order = engine.run_in_async_transaction(key("tx"), b"", async |tx: &mut AsyncMysqlConnection, _| {
        tx.batch_execute("INSERT INTO orders VALUES (1)").await?;
        MysqlOutbox::write(tx, "mails", &oncekey::consumer::Message::new("mail-1", "")).await?;
        Ok::<u32, diesel::result::Error>(1)
    });
    let outbox = MysqlOutbox::open(backend.pool()).await.unwrap();
    assert_eq!(order.await.unwrap(), Outcome::Ran(1));
    let sent = outbox.relay().run(async |_| Ok::<_, String>(()), a_while()).await;
    assert_eq!(sent, 1);
}

/// Two processes purge, one at a time, and the turn of a dead one ends.
#[actix_rt::test]
async fn e14_the_turn_of_a_dead_purger_ends() {
    let server = MariaDb::start();
    let backend = MysqlBackend::open(&server.url()).await.unwrap();
    let claim = claims(&backend, "k").await.unwrap();
    let outcome = SealedOutcome::tombstone(&claim.key);
    let complete = Complete { key: claim.key, owner: claim.owner, outcome, retention: Duration::from_millis(1) };
    assert_eq!(backend.complete(complete).await, Ok(Completed::Stored));
    tokio::time::sleep(Duration::from_millis(50)).await;
    let turn = |until: &str| {
        let text = "REPLACE INTO oncekey_records_flushes VALUES (-1, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(3))";
        server.sql(&format!("{text} DIV 1000 + {until})"));
    };
    turn("60000");
    assert_eq!(backend.purge(Purge { limit: 10 }).await.unwrap().removed, 0);
    turn("-1");
    assert_eq!(backend.purge(Purge { limit: 10 }).await.unwrap().removed, 1);
}

/// Each finding has a name, a value, the wanted value, and a reason.
#[actix_rt::test]
async fn e27_the_doctor_names_what_is_set_wrong() {
    let server = Postgres::start_with(&["fsync=off", "synchronous_commit=off"]);
    let backend = PostgresBackend::open(&server.url()).await.unwrap();
    let found = backend.doctor().await.unwrap();
    let names: Vec<_> = found.iter().map(|finding| finding.setting.as_str()).collect();
    assert_eq!(names, ["fsync", "synchronous_commit"], "{found:?}");
    assert!(found.iter().all(|finding| finding.found == "off" && finding.wanted == "on" && !finding.why.is_empty()));
    server.sql("ALTER TABLE oncekey_records SET UNLOGGED");
    let found = backend.doctor().await.unwrap();
    assert!(found.iter().any(|finding| finding.found == "unlogged"), "{found:?}");
    server.sql("ALTER TABLE oncekey_records SET LOGGED; ALTER TABLE oncekey_records_steps SET UNLOGGED");
    let found = backend.doctor().await.unwrap();
    assert!(found.iter().any(|finding| finding.setting.contains("_steps")), "{found:?}");
    let server = Postgres::start();
    assert_eq!(PostgresBackend::open(&server.url()).await.unwrap().doctor().await.unwrap(), []);

    let server = MariaDb::start_with(&["--innodb-flush-log-at-trx-commit=2"]);
    let backend = MysqlBackend::open(&server.url()).await.unwrap();
    let found = backend.doctor().await.unwrap();
    let names: Vec<_> = found.iter().map(|finding| finding.setting.as_str()).collect();
    assert_eq!(names, ["innodb_flush_log_at_trx_commit"], "{found:?}");
    server.sql("SET GLOBAL innodb_flush_log_at_trx_commit = 1");
    assert_eq!(backend.doctor().await.unwrap(), []);
}
