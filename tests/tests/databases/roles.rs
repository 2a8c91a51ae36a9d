//! Roles with few rights: without the right to create tables, or owning only a schema.

use diesel_async::{AsyncMysqlConnection, AsyncPgConnection, SimpleAsyncConnection as _};
use oncekey::backend::{Acquired, Backend as _};
use oncekey::consumer::Message;
use oncekey::{Engine, Key, Outcome};
use oncekey_backends::mysql::{MysqlBackend, MysqlOpenError};
use oncekey_backends::outbox::{MysqlOutbox, PostgresOutbox};
use oncekey_backends::postgres::{PostgresBackend, PostgresOpenError};
use tests::server::{MariaDb, Postgres};

use crate::common::{a_while, acquire, mysql_pool, postgres_pool};

/// The application's own tools create the tables, from the DDL that the library returns. The role may use them, and
/// nothing more.
#[actix_rt::test]
async fn e27_a_role_without_ddl_rights_works_in_postgres() {
    let server = Postgres::start();
    server.sql(&oncekey_backends::schema("postgres").unwrap());
    server.sql(
        "REVOKE CREATE ON SCHEMA public FROM PUBLIC; CREATE ROLE app LOGIN; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO app; \
         GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO app; CREATE TABLE orders (n int); GRANT ALL ON orders TO app",
    );
    let url = server.url().replace("shop@", "app@");
    // Nothing is missing, so the default works as well.
    drop(PostgresBackend::open(&url).await.unwrap());
    let backend = PostgresBackend::builder(&url).migrate(false).open().await.unwrap();
    let pool = backend.pool();
    PostgresOutbox::open(pool.clone()).await.unwrap();
    let outbox = PostgresOutbox::builder(pool).migrate(false).open().await.unwrap();
    let engine = Engine::builder(backend.clone()).start().unwrap();
    crate::steps::claim(&backend, "steps").await.done(&backend, "charge", 1).await;
    let order =
        engine.run_in_async_transaction(Key::new("s", 1).unwrap(), b"", async |tx: &mut AsyncPgConnection, _| {
            tx.batch_execute("INSERT INTO orders VALUES (1)").await?;
            PostgresOutbox::write(tx, "mails", &Message::new("mail-1", "")).await?;
            Ok::<u32, diesel::result::Error>(1)
        });
    assert_eq!(order.await.unwrap(), Outcome::Ran(1));
    let sent = outbox.relay().run(async |_| Ok::<_, String>(()), a_while()).await;
    assert_eq!(sent, 1);
}

#[actix_rt::test]
async fn e27_a_role_without_ddl_rights_works_in_mysql() {
    let server = MariaDb::start();
    server.sql(&oncekey_backends::schema("mysql").unwrap());
    server.sql(
        "CREATE TABLE orders (n int); CREATE USER app@'127.0.0.1'; \
         GRANT SELECT, INSERT, UPDATE, DELETE ON shop.* TO app@'127.0.0.1'",
    );
    let url = server.url().replace("shop@", "app@");
    drop(MysqlBackend::open(&url).await.unwrap());
    let backend = MysqlBackend::builder(&url).migrate(false).open().await.unwrap();
    let pool = backend.pool();
    MysqlOutbox::open(pool.clone()).await.unwrap();
    let outbox = MysqlOutbox::builder(pool).migrate(false).open().await.unwrap();
    let engine = Engine::builder(backend.clone()).start().unwrap();
    crate::steps::claim(&backend, "steps").await.done(&backend, "charge", 1).await;
    let order =
        engine.run_in_async_transaction(Key::new("s", 1).unwrap(), b"", async |tx: &mut AsyncMysqlConnection, _| {
            tx.batch_execute("INSERT INTO orders VALUES (1)").await?;
            MysqlOutbox::write(tx, "mails", &Message::new("mail-1", "")).await?;
            Ok::<u32, diesel::result::Error>(1)
        });
    assert_eq!(order.await.unwrap(), Outcome::Ran(1));
    let sent = outbox.relay().run(async |_| Ok::<_, String>(()), a_while()).await;
    assert_eq!(sent, 1);
}

/// The role owns its schema, and may not create another.
#[actix_rt::test]
async fn e27_a_role_that_owns_its_schema_needs_no_more() {
    let server = Postgres::start();
    server.sql("CREATE ROLE app LOGIN; CREATE SCHEMA app AUTHORIZATION app");
    let url = server.url().replace("shop@", "app@");
    let builder = || PostgresBackend::builder(&url).schema("app").unwrap();
    let backend = builder().open().await.unwrap();
    assert!(matches!(backend.acquire(acquire("k")).await, Ok(Acquired::Claimed { .. })));
    let outbox = PostgresOutbox::builder(backend.pool()).schema("app").unwrap().open().await.unwrap();
    drop(outbox.relay());
    assert_eq!(server.sql("SELECT count(*) FROM app.oncekey_outbox"), "0");
    // It cannot create a missing schema.
    let refused = PostgresBackend::builder(&url).schema("other").unwrap().open().await.unwrap_err();
    assert!(matches!(refused, PostgresOpenError::Migration { .. }), "{refused}");
}

/// An `open` that fails leaves the application's pool as it was.
#[actix_rt::test]
async fn e27_an_opening_that_fails_leaves_no_transaction_in_the_pool() {
    let server = Postgres::start();
    server.sql("REVOKE CREATE ON SCHEMA public FROM PUBLIC; CREATE ROLE app LOGIN");
    let pool = postgres_pool(&server.url().replace("shop@", "app@"), 1);
    for _ in 0..2 {
        let refused = PostgresBackend::from_pool(pool.clone()).open().await.unwrap_err();
        assert!(matches!(refused, PostgresOpenError::Migration { .. }), "{refused}");
        pool.get().await.unwrap().batch_execute("SELECT 1").await.unwrap();
        let refused = PostgresBackend::from_pool(pool.clone()).schema("app").unwrap().open().await.unwrap_err();
        assert!(matches!(refused, PostgresOpenError::Migration { .. }), "{refused}");
        pool.get().await.unwrap().batch_execute("SELECT 1").await.unwrap();
        PostgresOutbox::open(pool.clone()).await.unwrap_err();
        pool.get().await.unwrap().batch_execute("SELECT 1").await.unwrap();
        PostgresOutbox::builder(pool.clone()).migrate(false).open().await.unwrap_err();
        pool.get().await.unwrap().batch_execute("SELECT 1").await.unwrap();
    }
    assert_eq!(server.sql("SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"), "0");

    let server = MariaDb::start();
    server.sql("CREATE USER app@'127.0.0.1'; GRANT SELECT ON shop.* TO app@'127.0.0.1'");
    let pool = mysql_pool(&server.url().replace("shop@", "app@"), 1);
    for _ in 0..2 {
        let refused = MysqlBackend::from_pool(pool.clone()).open().await.unwrap_err();
        assert!(matches!(refused, MysqlOpenError::Migration { .. }), "{refused}");
        pool.get().await.unwrap().batch_execute("SELECT 1").await.unwrap();
        MysqlOutbox::open(pool.clone()).await.unwrap_err();
        pool.get().await.unwrap().batch_execute("SELECT 1").await.unwrap();
    }
    assert_eq!(server.sql("SELECT count(*) FROM information_schema.innodb_trx"), "0");
    // The lock of the migration was released with its connection.
    MysqlBackend::open(&server.url()).await.unwrap();
}
