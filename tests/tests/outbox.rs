//! Messages that commit with the rows of their job, and are published afterwards, on real databases.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test, what fails fails the test")]

use std::cell::{Cell, RefCell};
use std::time::Duration;

use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use diesel_async::pooled_connection::deadpool::Pool;
use diesel_async::{AsyncConnection, AsyncMysqlConnection, AsyncPgConnection, SimpleAsyncConnection as _};
use oncekey::consumer::{Message, Processor, in_process, job};
use oncekey::{Engine, Key, Outcome, RunError};
use oncekey_backends::outbox::{MysqlOutbox, Posted, PostgresOutbox, Relay, SqliteOutbox, Table};
use oncekey_backends::{MemoryBackend, MysqlBackend, PostgresBackend, SqliteBackend};
use tests::process::until;
use tests::server::{MariaDb, Postgres};
use tokio::sync::Notify;

fn message(number: usize) -> Message {
    Message::new(format!("mail-{number}"), format!("to: {number}")).with_header("tenant", "ada")
}

/// Publishes until `count` messages were, and gives them as they came.
async fn publish<T: Table>(relay: Relay<T>, count: usize) -> Vec<Posted> {
    let (published, all) = (RefCell::new(Vec::new()), Notify::new());
    let publish = async |posted: &Posted| {
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
        // The batch is removed behind it.
        tokio::time::sleep(Duration::from_millis(300)).await;
    };
    relay.run(publish, until).await;
    published.into_inner()
}

/// What every outbox must do, whatever its database: `write` commits messages, each in a transaction of its own.
async fn keeps_its_word<T: Table>(relay: impl Fn() -> Relay<T>, write: impl AsyncFn(std::ops::Range<usize>)) {
    write(0..250).await;
    // One that can't be published holds up those after it, and is tried again.
    let (tries, came) = (Cell::new(0), RefCell::new(Vec::new()));
    let all = Notify::new();
    let publish_moody = async |posted: &Posted| {
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

    // One that is torn down midway published some, and removed none: they come again, with the same ids.
    write(250..260).await;
    let halfway = Notify::new();
    let stuck = async |posted: &Posted| {
        if posted.message.id() == "mail-255" {
            halfway.notify_one();
            std::future::pending::<()>().await;
        }
        Ok::<_, String>(())
    };
    assert_eq!(relay().run(stuck, halfway.notified()).await, 0);
    // While one is at work, another waits for its turn; when it ends, the other goes on.
    let (began, go) = (Notify::new(), Notify::new());
    let holding = async |_: &Posted| {
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
    let pool = PostgresBackend::open(&server.url()).await.unwrap().pool_of_its_own();
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
    let pool = MysqlBackend::open(&server.url()).await.unwrap().pool_of_its_own();
    let outbox = MysqlOutbox::open(pool.clone()).await.unwrap();
    let write = async |numbers: std::ops::Range<usize>| {
        let mut connection = pool.get().await.unwrap();
        for number in numbers {
            MysqlOutbox::write(&mut connection, "mails", &message(number)).await.unwrap();
        }
    };
    keeps_its_word(|| outbox.relay(), write).await;
}

/// Where a commit is shown before it is on the disk, no message is published that a crash can still take back.
#[actix_rt::test]
async fn j03_a_message_is_published_once_it_is_on_the_disk() {
    let mut server = MariaDb::start_with_log_to_hold(&["--table-open-cache-instances=1"]);
    let pool = MysqlBackend::open(&server.url()).await.unwrap().pool_of_its_own();
    let outbox = MysqlOutbox::open(pool.clone()).await.unwrap();
    // While the log is held no table can be opened: those that are read are open before.
    server.sql("SELECT 1 FROM oncekey_outbox a, oncekey_outbox b, oncekey_outbox c, oncekey_outbox d");
    let posted = |server: &MariaDb| server.sql("SELECT count(*) FROM oncekey_outbox");

    server.hold_log();
    let mut connection = pool.get().await.unwrap();
    let writing = actix_rt::spawn(async move { MysqlOutbox::write(&mut connection, "mails", &message(1)).await });
    until("a shown commit", || posted(&server) == "1").await;
    let published = Cell::new(0);
    let publish = async |_: &Posted| {
        published.set(published.get() + 1);
        Ok::<_, String>(())
    };
    let flush = "INSERT INTO oncekey_outbox_flushes";
    let told = until("a message or a flush", || published.get() > 0 || server.is_executing(flush));
    outbox.relay().run(publish, told).await;
    writing.abort();
    server.kill();
    server.let_log_go();
    server.restart();

    assert_eq!(posted(&server), "0", "the crash took nothing away: this shows nothing");
    assert_eq!(published.get(), 0, "a message was published that is gone");
}

/// A job's message commits with its outcome, or not at all; the next consumer has its effect once.
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

    // Published twice, as by a relay that died before it removed it.
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

/// The same on the databases whose connections are awaited.
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
    let pool: Pool<AsyncPgConnection> = backend.pool_of_its_own();
    let outbox = PostgresOutbox::open(pool).await.unwrap();
    let engine = Engine::builder(backend).start().unwrap();
    let write = async |tx: &mut AsyncPgConnection| PostgresOutbox::write(tx, "mails", &message(1)).await;
    commits_with_its_job(engine, write).await;
    assert_eq!(publish(outbox.relay(), 1).await.len(), 1);

    let mysql = MariaDb::start();
    let backend = MysqlBackend::open(&mysql.url()).await.unwrap();
    let pool: Pool<AsyncMysqlConnection> = backend.pool_of_its_own();
    let outbox = MysqlOutbox::open(pool.clone()).await.unwrap();
    let engine = Engine::builder(backend).start().unwrap();
    let write = async |tx: &mut AsyncMysqlConnection| MysqlOutbox::write(tx, "mails", &message(1)).await;
    commits_with_its_job(engine, write).await;
    assert_eq!(publish(outbox.relay(), 1).await.len(), 1);
    // Its server's lock ends with its session.
    pool.get().await.unwrap().batch_execute("DO 0").await.unwrap();
}
