//! Messages that commit with the rows of their job and are published afterwards, on real databases.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test, what fails fails the test")]

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use diesel_async::pooled_connection::AsyncDieselConnectionManager;
use diesel_async::pooled_connection::deadpool::Pool;
use diesel_async::{AsyncConnection, AsyncMysqlConnection, AsyncPgConnection, SimpleAsyncConnection as _};
use oncekey::consumer::{Message, Processor, in_process, job};
use oncekey::{Engine, Key, Outcome, RunError};
use oncekey_backends::outbox::{MysqlOutbox, OutboxMessage, Parked, PostgresOutbox, Relay, SqliteOutbox, Table};
use oncekey_backends::{MemoryBackend, MysqlBackend, PostgresBackend, SqliteBackend};
use parking_lot::Mutex;
use tests::process::until;
use tests::proxy::Proxy;
use tests::server::{MariaDb, Postgres};
use tokio::sync::Notify;

fn message(number: usize) -> Message {
    Message::new(format!("mail-{number}"), format!("to: {number}")).with_header("tenant", "ada")
}

/// Publishes until `count` messages have been published, and returns them in order.
async fn publish<T: Table>(relay: Relay<T>, count: usize) -> Vec<OutboxMessage> {
    let (published, all) = (RefCell::new(Vec::new()), Notify::new());
    let publish = async |posted: &OutboxMessage| {
        published.borrow_mut().push(posted.clone());
        if published.borrow().len() >= count {
            all.notify_one();
        }
        Ok::<_, String>(())
    };
    let until = async {
        if count > 0 {
            all.notified().await;
        } else {
            tokio::time::sleep(Duration::from_millis(600)).await;
        }
        // The batch is removed after it is published.
        tokio::time::sleep(Duration::from_millis(300)).await;
    };
    relay.run(publish, until).await;
    published.into_inner()
}

/// Checks what every outbox must do, whatever its database. `write` commits messages, each in its own transaction.
async fn keeps_its_word<T: Table>(relay: impl Fn() -> Relay<T>, write: impl AsyncFn(std::ops::Range<usize>)) {
    write(0..250).await;
    // A message that cannot be published delays the later ones, and is tried again.
    let (tries, came) = (Cell::new(0), RefCell::new(Vec::new()));
    let all = Notify::new();
    let publish_moody = async |posted: &OutboxMessage| {
        if posted.message.id() == "mail-100" && tries.replace(tries.get() + 1) < 3 {
            return Err("the broker is away");
        }
        came.borrow_mut().push(posted.clone());
        if came.borrow().len() == 250 {
            all.notify_one();
        }
        Ok(())
    };
    let until = async {
        all.notified().await;
        tokio::time::sleep(Duration::from_millis(300)).await;
    };
    assert_eq!(relay().batch(64).run(publish_moody, until).await, 250);
    assert_eq!(tries.get(), 4);
    let came = came.into_inner();
    assert!(came.iter().map(|posted| &posted.message).eq(&(0..250).map(message).collect::<Vec<_>>()));
    assert!(came.is_sorted_by_key(|posted| posted.number) && came.iter().all(|posted| posted.topic == "mails"));
    assert_eq!(publish(relay(), 0).await, [], "what is published is gone");

    // A relay that is dropped midway has published some messages and removed none. They are published again, with the
    // same ids.
    write(250..260).await;
    let halfway = Notify::new();
    let stuck = async |posted: &OutboxMessage| {
        if posted.message.id() == "mail-255" {
            halfway.notify_one();
            std::future::pending::<()>().await;
        }
        Ok::<_, String>(())
    };
    assert_eq!(relay().run(stuck, halfway.notified()).await, 0);
    // While one relay works, another waits for its turn. When the first one ends, the other continues.
    let (began, go) = (Notify::new(), Notify::new());
    let holding = async |_: &OutboxMessage| {
        began.notify_one();
        go.notified().await;
        Err::<(), _>("not me")
    };
    let end = async {
        began.notified().await;
        assert_eq!(publish(relay(), 0).await, []);
    };
    assert_eq!(relay().run(holding, end).await, 0);
    let again = publish(relay(), 10).await;
    assert!(again.iter().map(|posted| &posted.message).eq(&(250..260).map(message).collect::<Vec<_>>()));
}

#[actix_rt::test]
async fn j03_the_outbox_in_sqlite_keeps_its_word() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shop.db");
    let outbox = SqliteOutbox::open(&path).unwrap();
    let mut connection = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    connection.batch_execute("PRAGMA busy_timeout = 10000").unwrap();
    let connection = RefCell::new(connection);
    let write = async |numbers: std::ops::Range<usize>| {
        for number in numbers {
            SqliteOutbox::write(&mut connection.borrow_mut(), "mails", &message(number)).unwrap();
        }
    };
    keeps_its_word(|| outbox.relay(), write).await;
}

#[actix_rt::test]
async fn j03_the_outbox_in_postgres_keeps_its_word() {
    let server = Postgres::start();
    let pool = PostgresBackend::open(&server.url()).await.unwrap().pool();
    let outbox = PostgresOutbox::open(pool.clone()).await.unwrap();
    let write = async |numbers: std::ops::Range<usize>| {
        let mut connection = pool.get().await.unwrap();
        for number in numbers {
            PostgresOutbox::write(&mut connection, "mails", &message(number)).await.unwrap();
        }
    };
    keeps_its_word(|| outbox.relay(), write).await;
}

#[actix_rt::test]
async fn j03_the_outbox_in_mysql_keeps_its_word() {
    let server = MariaDb::start();
    let pool = MysqlBackend::open(&server.url()).await.unwrap().pool();
    let outbox = MysqlOutbox::open(pool.clone()).await.unwrap();
    let write = async |numbers: std::ops::Range<usize>| {
        let mut connection = pool.get().await.unwrap();
        for number in numbers {
            MysqlOutbox::write(&mut connection, "mails", &message(number)).await.unwrap();
        }
    };
    keeps_its_word(|| outbox.relay(), write).await;
}

/// Where a commit is visible before it is on disk, no message is published that a crash can still take back.
#[actix_rt::test]
async fn j03_a_message_is_published_once_it_is_on_the_disk() {
    let mut server = MariaDb::start_with_log_to_hold(&["--table-open-cache-instances=1"]);
    let pool = MysqlBackend::open(&server.url()).await.unwrap().pool();
    let outbox = MysqlOutbox::open(pool.clone()).await.unwrap();
    let posted = |server: &MariaDb| server.sql("SELECT count(*) FROM oncekey_outbox");
    let published = Cell::new(0);
    let publish = async |_: &OutboxMessage| {
        published.set(published.get() + 1);
        Ok::<_, String>(())
    };
    let told = async {
        // The relay gets its turn before the log is held, because a renewal would wait for the log.
        let turns = "SELECT count(*) FROM oncekey_outbox_relays WHERE lease_until > 0";
        until("the relay's turn", async || server.sql(turns) == "1").await;
        // While the log is held no table can be opened, so the tables that are read are opened before.
        server.sql("SELECT 1 FROM oncekey_outbox a, oncekey_outbox b, oncekey_outbox c, oncekey_outbox d");
        server.hold_log();
        let mut connection = pool.get().await.unwrap();
        let writing = actix_rt::spawn(async move { MysqlOutbox::write(&mut connection, "mails", &message(1)).await });
        until("a shown commit", async || posted(&server) == "1").await;
        let flush = "INSERT INTO `shop`.`oncekey_outbox_flushes`";
        until("a message or a flush", async || published.get() > 0 || server.is_executing(flush)).await;
        writing.abort();
        server.kill();
    };
    outbox.relay().lease(Duration::from_secs(60)).run(publish, told).await;
    server.let_log_go();
    server.restart();

    assert_eq!(posted(&server), "0", "the crash took nothing away: this shows nothing");
    assert_eq!(published.get(), 0, "a message was published that is gone");
}

/// A job's message commits with its outcome, or not at all. The next consumer has its effect once.
#[actix_rt::test]
async fn j03_a_jobs_message_commits_with_its_outcome_and_the_next_consumer_dedups_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shop.db");
    let engine = Engine::builder(SqliteBackend::open(&path).unwrap()).start().unwrap();
    let outbox = SqliteOutbox::open(&path).unwrap();
    let order = async |fails: bool| {
        engine
            .run_in_transaction(Key::new("orders", 1).unwrap(), b"", move |tx: &mut SqliteConnection, _| {
                SqliteOutbox::write(tx, "mails", &message(1))?;
                if fails { Err(diesel::result::Error::RollbackTransaction) } else { Ok(17_u32) }
            })
            .await
    };
    assert!(matches!(order(true).await, Err(RunError::Operation(_))));
    assert_eq!(publish(outbox.relay(), 0).await, []);
    assert_eq!(order(false).await.unwrap(), Outcome::Ran(17));
    assert_eq!(order(false).await.unwrap(), Outcome::Replayed(17));

    // The message is published twice, as by a relay that died before it removed the message.
    let (publisher, source) = in_process::channel::<Message>(10);
    let posted = publish(outbox.relay(), 1).await;
    for posted in posted.iter().chain(&posted) {
        publisher.send(posted.message.clone()).await.unwrap();
    }
    drop(publisher);
    let mail = job(
        |message: &Message| Ok(message.identity("mail")?),
        |call, _| async move { call.run(|_| async { Ok::<u32, String>(1) }).await },
    );
    let other = Engine::builder(MemoryBackend::new()).start().unwrap();
    let quick = oncekey::consumer::RetryPolicy { in_flight_delay: Duration::from_millis(1), ..Default::default() };
    let processed = Processor::new(other, source, mail).retry(quick).run(std::future::pending()).await;
    assert_eq!((processed.ran, processed.replayed), (1, 1));
}

/// The same for databases with async connections.
async fn commits_with_its_job<C>(engine: Engine, write: impl AsyncFn(&mut C) -> QueryResult<()> + Copy + Send + 'static)
where
    C: AsyncConnection + 'static,
{
    for (fails, expected) in [(true, None), (false, Some(Outcome::Ran(17))), (false, Some(Outcome::Replayed(17)))] {
        let ordered = engine
            .run_in_async_transaction(Key::new("orders", 1).unwrap(), b"", async move |tx: &mut C, _| {
                write(tx).await?;
                if fails { Err(diesel::result::Error::RollbackTransaction) } else { Ok(17_u32) }
            })
            .await;
        assert_eq!(ordered.ok(), expected);
    }
}

#[actix_rt::test]
async fn j03_a_jobs_message_commits_with_its_outcome_in_postgres_and_mysql() {
    let postgres = Postgres::start();
    let backend = PostgresBackend::open(&postgres.url()).await.unwrap();
    let pool: Pool<AsyncPgConnection> = backend.pool();
    let outbox = PostgresOutbox::open(pool).await.unwrap();
    let engine = Engine::builder(backend).start().unwrap();
    let write = async |tx: &mut AsyncPgConnection| PostgresOutbox::write(tx, "mails", &message(1)).await;
    commits_with_its_job(engine, write).await;
    assert_eq!(publish(outbox.relay(), 1).await.len(), 1);

    let mysql = MariaDb::start();
    let backend = MysqlBackend::open(&mysql.url()).await.unwrap();
    let pool: Pool<AsyncMysqlConnection> = backend.pool();
    let outbox = MysqlOutbox::open(pool.clone()).await.unwrap();
    let engine = Engine::builder(backend).start().unwrap();
    let write = async |tx: &mut AsyncMysqlConnection| MysqlOutbox::write(tx, "mails", &message(1)).await;
    commits_with_its_job(engine, write).await;
    assert_eq!(publish(outbox.relay(), 1).await.len(), 1);
    pool.get().await.unwrap().batch_execute("DO 0").await.unwrap();
}

/// The relay's machine dies, and nothing from it reaches the server any more, while its connections there stay open.
/// Another relay continues when the lease has lapsed, and the first one has stopped by then.
async fn is_replaced_within_its_lease<T: Table>(dead: Relay<T>, proxy: &Proxy, alive: Relay<T>, write: impl AsyncFn()) {
    struct Ended<'a>(&'a Cell<Option<Instant>>);
    impl Drop for Ended<'_> {
        fn drop(&mut self) {
            self.0.set(Some(Instant::now()));
        }
    }

    write().await;
    let (began, ended, published) = (Notify::new(), Cell::new(None), Cell::new(None));
    let stuck = async |_: &OutboxMessage| {
        let _ended = Ended(&ended);
        began.notify_one();
        std::future::pending::<Result<(), String>>().await
    };
    let done = Notify::new();
    let dies = dead.lease(Duration::from_secs(2)).run(stuck, done.notified());
    let other = async {
        began.notified().await;
        // This is longer than the lease, which is renewed while its publisher works.
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(ended.get().is_none(), "it lost its turn");
        proxy.swallow();
        let cut = Instant::now();
        let publish = async |_: &OutboxMessage| {
            published.set(Some(Instant::now()));
            Ok::<_, String>(())
        };
        let until = until("the other's message", async || published.get().is_some());
        alive.lease(Duration::from_secs(2)).run(publish, until).await;
        done.notify_one();
        assert!(cut.elapsed() < Duration::from_secs(5), "{:?}", cut.elapsed());
    };
    futures_util::future::join(dies, other).await;
    assert!(ended.get() < published.get(), "two relays published at once");
}

#[actix_rt::test]
async fn j03_a_relay_whose_machine_dies_is_replaced_within_its_lease() {
    let server = Postgres::start();
    let proxy = Proxy::before(server.port());
    let url = server.url().replace(&server.port().to_string(), &proxy.port().to_string());
    let pools = [url, server.url()].map(postgres_pool);
    let dead = PostgresOutbox::open(pools[0].clone()).await.unwrap();
    let alive = PostgresOutbox::open(pools[1].clone()).await.unwrap();
    let write = async || alive.post(&mut pools[1].get().await.unwrap(), "mails", &message(1)).await.unwrap();
    is_replaced_within_its_lease(dead.relay(), &proxy, alive.relay(), write).await;

    let server = MariaDb::start();
    let proxy = Proxy::before(server.port());
    let url = server.url().replace(&server.port().to_string(), &proxy.port().to_string());
    let pools = [url, server.url()].map(mysql_pool);
    let dead = MysqlOutbox::open(pools[0].clone()).await.unwrap();
    let alive = MysqlOutbox::open(pools[1].clone()).await.unwrap();
    let write = async || alive.post(&mut pools[1].get().await.unwrap(), "mails", &message(1)).await.unwrap();
    is_replaced_within_its_lease(dead.relay(), &proxy, alive.relay(), write).await;
}

fn postgres_pool(url: String) -> Pool<AsyncPgConnection> {
    Pool::builder(AsyncDieselConnectionManager::new(url)).max_size(8).build().unwrap()
}

fn mysql_pool(url: String) -> Pool<AsyncMysqlConnection> {
    Pool::builder(AsyncDieselConnectionManager::new(url)).max_size(8).build().unwrap()
}

/// Runs relays with nothing to do, one of them in its turn, for a few seconds.
async fn idle<T: Table>(relays: Vec<Relay<T>>) {
    let nothing = async |_: &OutboxMessage| Ok::<_, String>(());
    let idle = relays.into_iter().map(|relay| relay.run(nothing, tokio::time::sleep(Duration::from_secs(3))));
    futures_util::future::join_all(idle).await;
}

#[actix_rt::test]
async fn j03_relays_that_wait_open_no_connections() {
    let server = Postgres::start();
    let opened =
        || server.sql("SELECT sessions FROM pg_stat_database WHERE datname = 'postgres'").parse::<i64>().unwrap();
    let mut relays = Vec::new();
    for _ in 0..3 {
        relays.push(PostgresOutbox::open(postgres_pool(server.url())).await.unwrap().relay());
    }
    let before = opened();
    idle(relays).await;
    // The connections of `opened` itself are among them.
    assert!(opened() - before <= 6, "{} connections were opened", opened() - before);

    let server = MariaDb::start();
    let opened = || {
        let found = server.sql("SHOW GLOBAL STATUS LIKE 'Connections'");
        found.split_whitespace().last().unwrap().parse::<i64>().unwrap()
    };
    let mut relays = Vec::new();
    for _ in 0..3 {
        relays.push(MysqlOutbox::open(mysql_pool(server.url())).await.unwrap().relay());
    }
    let before = opened();
    idle(relays).await;
    assert!(opened() - before <= 6, "{} connections were opened", opened() - before);
}

/// Rows 3 and 5 of seven are not valid messages. The others are published, and the two are parked until an operator
/// repairs them.
async fn parks_what_is_no_message<T: Table>(
    relay: impl Fn() -> Relay<T>,
    parked: impl AsyncFn() -> Vec<Parked>,
    mend: impl Fn(),
    retry: impl AsyncFn(Vec<i64>),
) {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hearing = Arc::clone(&heard);
    let relaying = relay().batch(4).on_parked(move |row| hearing.lock().push(row.number));
    let published = publish(relaying, 5).await;
    let ids: Vec<_> = published.iter().map(|posted| posted.message.id().to_owned()).collect();
    assert_eq!(ids, ["mail-1", "mail-2", "mail-4", "mail-6", "mail-7"]);
    let set_apart = parked().await;
    assert_eq!(set_apart.iter().map(|row| row.id.as_str()).collect::<Vec<_>>(), ["mail-3", "mail-5"]);
    let numbers: Vec<_> = set_apart.iter().map(|row| row.number).collect();
    assert_eq!(*heard.lock(), numbers);
    assert!(set_apart.iter().all(|row| row.reason.contains("headers") && row.topic == "mails"), "{set_apart:?}");
    // They are not repaired yet, so they are parked again.
    retry(numbers.clone()).await;
    assert_eq!(publish(relay(), 0).await, []);
    assert_eq!(parked().await, set_apart);
    mend();
    retry(numbers).await;
    let published = publish(relay(), 2).await;
    assert_eq!(published.iter().map(|posted| posted.message.clone()).collect::<Vec<_>>(), [message(3), message(5)]);
    assert_eq!(parked().await, []);
}

const SPOIL: &str = "UPDATE oncekey_outbox SET headers = '[1' WHERE message_id IN ('mail-3', 'mail-5')";
const MEND: &str = r#"UPDATE oncekey_outbox_parked SET headers = '{"tenant":"ada"}'"#;

#[actix_rt::test]
async fn j03_a_row_that_is_no_message_is_parked() {
    let server = Postgres::start();
    let pool = postgres_pool(server.url());
    let outbox = PostgresOutbox::open(pool.clone()).await.unwrap();
    for number in 1..8 {
        PostgresOutbox::write(&mut pool.get().await.unwrap(), "mails", &message(number)).await.unwrap();
    }
    server.sql(SPOIL);
    let mend = || drop(server.sql(MEND));
    let parked = async || outbox.parked(100).await.unwrap();
    parks_what_is_no_message(|| outbox.relay(), parked, mend, async |rows| outbox.retry(rows).await.unwrap()).await;

    let server = MariaDb::start();
    let pool = mysql_pool(server.url());
    let outbox = MysqlOutbox::open(pool.clone()).await.unwrap();
    for number in 1..8 {
        MysqlOutbox::write(&mut pool.get().await.unwrap(), "mails", &message(number)).await.unwrap();
    }
    server.sql(SPOIL);
    let mend = || drop(server.sql(MEND));
    let parked = async || outbox.parked(100).await.unwrap();
    parks_what_is_no_message(|| outbox.relay(), parked, mend, async |rows| outbox.retry(rows).await.unwrap()).await;

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shop.db");
    let outbox = SqliteOutbox::open(&path).unwrap();
    let connection = RefCell::new(SqliteConnection::establish(path.to_str().unwrap()).unwrap());
    for number in 1..8 {
        SqliteOutbox::write(&mut connection.borrow_mut(), "mails", &message(number)).unwrap();
    }
    connection.borrow_mut().batch_execute(SPOIL).unwrap();
    let mend = || connection.borrow_mut().batch_execute(MEND).unwrap();
    let parked = async || outbox.parked(100).await.unwrap();
    parks_what_is_no_message(|| outbox.relay(), parked, mend, async |rows| outbox.retry(rows).await.unwrap()).await;

    // Bytes that are not valid text do not stop the relay either.
    let spoil = "INSERT INTO oncekey_outbox (message_id, topic, payload, headers) \
                 VALUES (CAST(x'ff' AS TEXT), 'mails', x'', '{}')";
    connection.borrow_mut().batch_execute(spoil).unwrap();
    SqliteOutbox::write(&mut connection.borrow_mut(), "mails", &message(9)).unwrap();
    assert_eq!(publish(outbox.relay(), 1).await[0].message, message(9));
    assert!(outbox.parked(1).await.unwrap()[0].reason.contains("id is not UTF-8"));
}

/// A message that its broker refuses forever delays the others for as long as the application allows.
#[actix_rt::test]
async fn j03_a_message_that_is_refused_too_often_is_parked_where_that_is_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shop.db");
    let outbox = SqliteOutbox::open(&path).unwrap();
    let mut connection = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    for number in 1..4 {
        SqliteOutbox::write(&mut connection, "mails", &message(number)).unwrap();
    }
    let (tries, came) = (Cell::new(0), Cell::new(0));
    let publish = async |posted: &OutboxMessage| {
        if posted.message.id() == "mail-2" {
            tries.set(tries.get() + 1);
            return Err("too large");
        }
        came.set(came.get() + 1);
        Ok(())
    };
    outbox.relay().park_after(3).run(publish, until("the others", async || came.get() == 2)).await;
    assert_eq!(tries.get(), 3);
    let parked = outbox.parked(100).await.unwrap();
    assert_eq!((parked.len(), parked[0].id.as_str()), (1, "mail-2"));
    assert!(parked[0].reason.contains("too large"), "{parked:?}");
}

/// Two sessions find the same table through different search paths, and one relay has the turn.
#[actix_rt::test]
async fn j03_two_search_paths_lead_to_one_active_relay() {
    let server = Postgres::start();
    server.sql("CREATE SCHEMA a; CREATE SCHEMA b");
    let shared = PostgresOutbox::open(postgres_pool(server.url())).await.unwrap();
    let by = |path: &str| postgres_pool(format!("{}?options=-c%20search_path%3D{path},public", server.url()));
    let (pool, other) = (by("a"), by("b"));
    let first = PostgresOutbox::open(pool.clone()).await.unwrap();
    let second = PostgresOutbox::open(other).await.unwrap();
    first.post(&mut pool.get().await.unwrap(), "mails", &message(1)).await.unwrap();
    let began = Notify::new();
    let holding = async |_: &OutboxMessage| {
        began.notify_one();
        std::future::pending::<Result<(), String>>().await
    };
    let end = async {
        began.notified().await;
        assert_eq!(publish(second.relay(), 0).await, []);
        assert_eq!(publish(shared.relay(), 0).await, []);
    };
    assert_eq!(first.relay().run(holding, end).await, 0);
    assert_eq!(publish(second.relay(), 1).await.len(), 1);
}

/// Two names of one file lead to one lock.
#[actix_rt::test]
async fn j03_two_names_of_a_file_lead_to_one_active_relay() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shop.db");
    let first = SqliteOutbox::open(&path).unwrap();
    let alias = folder.path().join("alias.db");
    std::os::unix::fs::symlink(&path, &alias).unwrap();
    let second = SqliteOutbox::builder(&alias).migrate(false).open().unwrap();
    let mut connection = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    SqliteOutbox::write(&mut connection, "mails", &message(1)).unwrap();
    let began = Notify::new();
    let holding = async |_: &OutboxMessage| {
        began.notify_one();
        std::future::pending::<Result<(), String>>().await
    };
    let end = async {
        began.notified().await;
        assert_eq!(publish(second.relay(), 0).await, []);
    };
    assert_eq!(first.relay().run(holding, end).await, 0);
}
