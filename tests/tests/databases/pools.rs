//! The application's own pools of diesel-async connections, of the other kinds.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use diesel_async::pooled_connection::{AsyncDieselConnectionManager, PoolableConnection, bb8, mobc};
use diesel_async::{AsyncMysqlConnection, AsyncPgConnection, SimpleAsyncConnection as _};
use oncekey::backend::{Acquired, Backend as _, StoreError};
use oncekey::conformance::Capabilities;
use oncekey::{Engine, Key, Outcome, RunError};
use oncekey_backends::mysql::MysqlBackend;
use oncekey_backends::postgres::PostgresBackend;
use tests::server::{MariaDb, Postgres};
use tokio::sync::Notify;

use crate::common::{acquire, fresh_table};

static POSTGRES: LazyLock<Postgres> = LazyLock::new(Postgres::start);
static MARIADB: LazyLock<MariaDb> = LazyLock::new(MariaDb::start);

/// More connections than any check needs at once.
const SIZE: u32 = 20;

fn manager<C: PoolableConnection + 'static>(url: &str) -> AsyncDieselConnectionManager<C> {
    AsyncDieselConnectionManager::new(url)
}

async fn bb8_postgres() -> bb8::Pool<AsyncPgConnection> {
    bb8::Pool::builder().max_size(SIZE).build(manager(&POSTGRES.url())).await.unwrap()
}

async fn bb8_mysql() -> bb8::Pool<AsyncMysqlConnection> {
    bb8::Pool::builder().max_size(SIZE).build(manager(&MARIADB.url())).await.unwrap()
}

fn mobc_postgres() -> mobc::Pool<AsyncPgConnection> {
    mobc::Pool::builder().max_open(u64::from(SIZE)).build(manager(&POSTGRES.url()))
}

fn mobc_mysql() -> mobc::Pool<AsyncMysqlConnection> {
    mobc::Pool::builder().max_open(u64::from(SIZE)).build(manager(&MARIADB.url()))
}

oncekey::conformance_tests!(bb8_pool, Capabilities::all(), {
    let table = fresh_table();
    move || {
        let table = table.clone();
        async move { PostgresBackend::from_pool(bb8_postgres().await).table(&table).unwrap().open().await.unwrap() }
    }
});

oncekey::conformance_tests!(mobc_pool, Capabilities::all(), {
    let table = fresh_table();
    move || {
        let table = table.clone();
        async move { MysqlBackend::from_pool(mobc_mysql()).table(&table).unwrap().open().await.unwrap() }
    }
});

/// Rows and outcome commit together, a spoilt connection is closed, and the backend has no pool of its own.
macro_rules! a_pool_serves {
    ($name:ident, $backend:ident, $connection:ty, $pool:expr, $server:ident) => {
        #[actix_rt::test]
        async fn $name() {
            let table = fresh_table();
            let rows = format!("{table}_orders");
            $server.sql(&format!("CREATE TABLE {rows} (item varchar(50))"));
            let pool = $pool;
            let backend = $backend::from_pool(pool.clone()).table(&table).unwrap().open().await.unwrap();
            let own = backend.pool().get().await.err().map(|error| error.to_string());
            assert!(own.as_ref().is_some_and(|why| why.contains("not deadpool's")), "{own:?}");
            let engine = Engine::builder(backend).start().unwrap();
            let order = async |key: &str, fails: bool| {
                let insert = format!("INSERT INTO {rows} VALUES ('book')");
                engine
                    .run_in_async_transaction(Key::new("s", key).unwrap(), b"", async move |tx: &mut $connection, _| {
                        tx.batch_execute(&insert).await?;
                        if fails { Err(diesel::result::Error::RollbackTransaction) } else { Ok(17_u32) }
                    })
                    .await
            };
            assert!(matches!(order("k", true).await, Err(RunError::Operation(_))));
            assert_eq!(order("k", false).await.unwrap(), Outcome::Ran(17));
            assert_eq!(order("k", false).await.unwrap(), Outcome::Replayed(17));
            assert_eq!($server.sql(&format!("SELECT count(*) FROM {rows}")), "1");
        }
    };
}

a_pool_serves!(bb8_serves_postgres, PostgresBackend, AsyncPgConnection, bb8_postgres().await, POSTGRES);
a_pool_serves!(bb8_serves_mysql, MysqlBackend, AsyncMysqlConnection, bb8_mysql().await, MARIADB);
a_pool_serves!(mobc_serves_postgres, PostgresBackend, AsyncPgConnection, mobc_postgres(), POSTGRES);
a_pool_serves!(mobc_serves_mysql, MysqlBackend, AsyncMysqlConnection, mobc_mysql(), MARIADB);

/// A call that is dropped midway leaves neither a statement nor a lock in the pool, because its connection is closed.
#[actix_rt::test]
async fn e27_a_connection_whose_call_was_dropped_is_closed() {
    let server = Postgres::start();
    let pool = bb8::Pool::builder().max_size(1).build(manager::<AsyncPgConnection>(&server.url())).await.unwrap();
    let backend = PostgresBackend::from_pool(pool.clone()).open().await.unwrap();
    let pid = "SELECT string_agg(pid::text, ',') FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
    let locker = Arc::new(Notify::new());
    let unlock = Arc::clone(&locker);
    let mut other = <AsyncPgConnection as diesel_async::AsyncConnection>::establish(&server.url()).await.unwrap();
    other.batch_execute("BEGIN; LOCK TABLE oncekey_records").await.unwrap();
    let holding = actix_rt::spawn(async move {
        unlock.notified().await;
        other.batch_execute("ROLLBACK").await.unwrap();
    });
    let dropped = tokio::time::timeout(Duration::from_millis(300), backend.acquire(acquire("k"))).await;
    assert!(dropped.is_err(), "{dropped:?}");
    locker.notify_one();
    holding.await.unwrap();
    let before = server.sql(pid);
    let claimed: Result<_, StoreError> = backend.acquire(acquire("k2")).await;
    assert!(matches!(claimed, Ok(Acquired::Claimed { .. })), "{claimed:?}");
    assert_ne!(server.sql(pid), before);
}
