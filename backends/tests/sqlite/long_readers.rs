//! A reader that stays in its transaction, and the write-ahead log that it keeps from being written back.

use std::fs;
use std::io;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Instant;

use diesel::dsl::sql;
use diesel::sql_types::BigInt;
use oncekey::backend::{
    Completed, Held, Hold, List, Lookup, Release, Released, Renew, Renewed, Stats, StoreError, Withdraw, Withdrawn,
};
use oncekey::record::Owner;
use tracing_subscriber::fmt::MakeWriter;

use super::*;

const LIMIT: u64 = 2 << 20;

/// What the process logs.
#[derive(Clone, Default)]
struct Logged(Arc<Mutex<Vec<u8>>>);

impl io::Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Logged {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

static LOGGED: LazyLock<Logged> = LazyLock::new(|| {
    let logged = Logged::default();
    let subscriber = tracing_subscriber::fmt().with_writer(logged.clone()).with_ansi(false).finish();
    // The writer's thread is none of the test's.
    tracing::subscriber::set_global_default(subscriber).unwrap();
    logged
});

/// The lines that are of this level and tell of this file.
fn logged(level: &str, path: &Path) -> Vec<String> {
    let text = String::from_utf8(LOGGED.0.lock().unwrap().clone()).unwrap();
    let path = path.display().to_string();
    text.lines().filter(|line| line.contains(level) && line.contains(&path)).map(str::to_owned).collect()
}

fn log_length(backend: &SqliteBackend) -> u64 {
    fs::metadata(format!("{}-wal", backend.path().display())).unwrap().len()
}

#[derive(QueryableByName)]
struct Checkpoint {
    #[diesel(sql_type = BigInt)]
    busy: i64,
}

/// Whether somebody reads from the log, so that it can't be started anew.
fn is_read(connection: &mut SqliteConnection) -> bool {
    let done: Checkpoint = diesel::sql_query("PRAGMA wal_checkpoint(TRUNCATE)").get_result(connection).unwrap();
    done.busy != 0
}

/// A connection in a read transaction.
fn reading(backend: &SqliteBackend) -> SqliteConnection {
    let mut reader = beside(backend);
    reader.batch_execute("BEGIN").unwrap();
    let count: i64 = sql::<BigInt>("SELECT count(*) FROM oncekey_records").get_result(&mut reader).unwrap();
    assert!(count >= 0);
    reader
}

/// Runs operations with outcomes of 64 KiB until a claim is refused.
async fn until_refused(backend: &SqliteBackend) -> StoreError {
    let started = Instant::now();
    let mut number = 0;
    loop {
        let (key, owner) = (key(format!("fill {number}")), Owner::random());
        if let Err(refused) = backend.acquire(claim(&key, owner)).await {
            assert_eq!(backend.lookup(Lookup { key }).await, Ok(None));
            return refused;
        }
        let outcome = outcome(&key, &"x".repeat(64 << 10));
        assert_eq!(backend.complete(Complete { outcome, ..completion(&key, owner) }).await, Ok(Completed::Stored));
        assert!(started.elapsed() < Duration::from_secs(30), "the log has {} bytes", log_length(backend));
        // Some forty operations between two looks.
        tokio::time::sleep(Duration::from_millis(25)).await;
        number += 1;
    }
}

async fn until_claimed(backend: &SqliteBackend, name: &str) {
    let started = Instant::now();
    while backend.acquire(claim(&key(name), Owner::random())).await.is_err() {
        assert!(started.elapsed() < Duration::from_secs(5), "claims are still refused");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Beyond the limit no new claim is taken, so that the disk keeps room for the ends of those that there are. Once the reader
/// has ended the log is written back, and all goes on.
#[actix_rt::test]
async fn e12_beyond_the_logs_limit_claims_are_refused_and_their_ends_are_not() {
    LazyLock::force(&LOGGED);
    let folder = tempfile::tempdir().unwrap();
    let backend = SqliteBackend::builder(folder.path().join("keys.db")).wal_limit(LIMIT).open().unwrap();
    let owner = Owner::random();
    for name in ["complete", "renew", "hold", "release", "withdraw", "again", "step", "transaction", "done"] {
        assert!(is_claimed(&backend, claim(&key(name), owner)).await);
    }
    assert_eq!(backend.complete(completion(&key("done"), owner)).await, Ok(Completed::Stored));
    let lapsing =
        Acquire { lease: Duration::from_millis(1), on_abandoned: OnAbandoned::Rerun, ..claim(&key("lapsed"), owner) };
    assert!(is_claimed(&backend, lapsing).await);

    let reader = reading(&backend);
    let refused = until_refused(&backend).await;
    assert!(matches!(&refused, StoreError::Full(what) if what.contains("wal_limit")), "{refused}");
    assert!(refused.is_transient() && !refused.is_unknown());
    assert!(log_length(&backend) >= LIMIT);
    assert!(!backend.doctor().is_empty());
    let path = backend.path();
    // Once, whether it passed by the first length on its way or not.
    let told = || (logged("WARN", path).len() <= 1, logged("ERROR", path).len());
    assert_eq!(told(), (true, 1), "{:?}", logged("", path));

    // A takeover begins work as well.
    let taking_over = backend.acquire(claim(&key("lapsed"), Owner::random())).await;
    assert!(matches!(taking_over, Err(StoreError::Full(_))), "{taking_over:?}");
    // The store still accepts renewals and settlements, and still answers from what it has.
    let lease = Duration::from_secs(60);
    let named = |name: &str| (key(name), owner);
    let (key_of, owner) = named("renew");
    assert_eq!(backend.renew(Renew { key: key_of, owner, lease }).await, Ok(Renewed::Renewed));
    let (key_of, owner) = named("hold");
    assert_eq!(backend.hold(Hold { key: key_of, owner }).await, Ok(Held::Held));
    let (key_of, owner) = named("release");
    assert_eq!(backend.release(Release { key: key_of, owner }).await, Ok(Released::Released));
    let (key_of, owner) = named("withdraw");
    assert_eq!(backend.withdraw(Withdraw { key: key_of, owner }).await, Ok(Withdrawn));
    assert!(is_claimed(&backend, claim(&key("again"), owner)).await);
    operation_steps::done(&backend, &key("step"), owner, "charge", 1).await;
    transactions::on_writer_as(&backend, &key("transaction"), owner, "CREATE TABLE beside (n INTEGER)").await;
    let large =
        Complete { outcome: outcome(&key("complete"), &"x".repeat(64 << 10)), ..completion(&key("complete"), owner) };
    assert_eq!(backend.complete(large).await, Ok(Completed::Stored));
    let replayed = backend.acquire(claim(&key("done"), Owner::random())).await.unwrap();
    assert_eq!(replayed, Acquired::Completed { outcome: outcome(&key("done"), "17") });

    // Refusals alone don't make it longer, and are not warned of again.
    let length = log_length(&backend);
    for number in 0..20 {
        let refused = backend.acquire(claim(&key(number), Owner::random())).await;
        assert!(matches!(refused, Err(StoreError::Full(_))), "{refused:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(log_length(&backend), length);
    assert_eq!(told(), (true, 1), "{:?}", logged("", path));

    drop(reader);
    until_claimed(&backend, "after").await;
    assert!(log_length(&backend) < LIMIT / 4, "{}", log_length(&backend));
    assert!(logged("INFO", path).iter().any(|line| line.contains("written back")), "{:?}", logged("", path));
    assert!(backend.doctor().is_empty());
}

/// A reader that ends in time is warned of, and nothing is refused.
#[actix_rt::test]
async fn e12_a_reader_that_ends_in_time_is_warned_of_alone() {
    LazyLock::force(&LOGGED);
    let folder = tempfile::tempdir().unwrap();
    let backend = SqliteBackend::builder(folder.path().join("keys.db")).wal_limit(64 << 20).open().unwrap();
    let reader = reading(&backend);
    let owner = Owner::random();
    let grow = async |name: &str| {
        assert!(is_claimed(&backend, claim(&key(name), owner)).await);
        let outcome = outcome(&key(name), &"x".repeat(17 << 20));
        assert_eq!(
            backend.complete(Complete { outcome, ..completion(&key(name), owner) }).await,
            Ok(Completed::Stored)
        );
    };
    let until = async |level: &str, text: &str| {
        let started = Instant::now();
        let mut number = 0;
        while !logged(level, backend.path()).iter().any(|line| line.contains(text)) {
            assert!(started.elapsed() < Duration::from_secs(5), "{:?}", logged("", backend.path()));
            // The log is looked at after a write.
            assert!(is_claimed(&backend, claim(&key(format!("{level} {number}")), owner)).await);
            tokio::time::sleep(Duration::from_millis(50)).await;
            number += 1;
        }
    };
    grow("large").await;
    until("WARN", "read transaction").await;
    drop(reader);
    until("INFO", "written back").await;
    assert!(logged("ERROR", backend.path()).is_empty());
    assert!(log_length(&backend) < 16 << 20);
}

/// Whatever the backend's own readers are asked, and whatever they find, none of them stays in its transaction.
#[actix_rt::test]
async fn e12_the_backends_own_readers_end_their_transactions() {
    let (_folder, backend) = fresh();
    let owner = Owner::random();
    for name in ["plain", "steps", "damaged", "damaged step"] {
        assert!(is_claimed(&backend, claim(&key(name), owner)).await);
    }
    for name in ["steps", "damaged step"] {
        operation_steps::done(&backend, &key(name), owner, "charge", 1).await;
    }
    let damage = format!(
        "UPDATE oncekey_records SET owner = x'00' WHERE key = '{}'; UPDATE oncekey_steps SET progress = 9 WHERE record_id = \
         (SELECT id FROM oncekey_records WHERE key = '{}')",
        key("damaged").as_stored(),
        key("damaged step").as_stored()
    );
    beside(&backend).batch_execute(&damage).unwrap();
    for name in ["plain", "steps", "damaged", "damaged step", "missing"] {
        // More than there are readers.
        for _ in 0..4 {
            let found = backend.lookup(Lookup { key: key(name) }).await;
            assert_eq!(matches!(found, Err(StoreError::Corrupt(_))), name.starts_with("damaged"), "{name}: {found:?}");
        }
        let _ = backend.list(List { after: None, limit: 1 }).await;
        let _ = backend.list(List { after: None, limit: 10 }).await;
        backend.stats(Stats).await.unwrap();
        // It waits for nobody, and is refused where somebody reads from the log.
        let mut other = beside(&backend);
        other.batch_execute("PRAGMA busy_timeout = 0").unwrap();
        assert!(is_claimed(&backend, claim(&key(format!("written after {name}")), owner)).await);
        let started = Instant::now();
        // An answer is given just before its transaction ends.
        while is_read(&mut other) {
            assert!(started.elapsed() < Duration::from_secs(2), "{name}: a reader stays in its transaction");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
