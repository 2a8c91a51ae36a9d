//! The shop's tables in the database of a server.

use diesel::QueryResult;
use diesel::dsl::sql;
use diesel::sql_types::BigInt;
use diesel_async::{AsyncMysqlConnection, SimpleAsyncConnection};

/// Creates the tables under a lock, so that two processes that start at once take turns.
pub(super) const POSTGRES_TABLES: &[&str] = &["
    BEGIN;
    SELECT pg_advisory_xact_lock(hashtext('oncekey web-example'));
    CREATE TABLE IF NOT EXISTS orders (
        id BIGSERIAL PRIMARY KEY, item TEXT NOT NULL, quantity BIGINT NOT NULL, created_at TEXT NOT NULL);
    CREATE INDEX IF NOT EXISTS orders_by_item ON orders (item);
    CREATE TABLE IF NOT EXISTS charges (
        id BIGSERIAL PRIMARY KEY, reference TEXT NOT NULL, amount BIGINT NOT NULL, currency TEXT NOT NULL,
        card TEXT NOT NULL, created_at TEXT NOT NULL);
    ALTER TABLE charges ADD COLUMN IF NOT EXISTS provider_key TEXT;
    CREATE INDEX IF NOT EXISTS charges_by_reference ON charges (reference);
    CREATE TABLE IF NOT EXISTS mails (id BIGSERIAL PRIMARY KEY, order_id BIGINT NOT NULL, created_at TEXT NOT NULL);
    CREATE INDEX IF NOT EXISTS mails_by_order ON mails (order_id);
    CREATE TABLE IF NOT EXISTS limited (reference TEXT PRIMARY KEY);
    CREATE TABLE IF NOT EXISTS checkout_steps (
        id BIGSERIAL PRIMARY KEY, reference TEXT NOT NULL, step TEXT NOT NULL, provider_key TEXT NOT NULL,
        created_at TEXT NOT NULL);
    CREATE INDEX IF NOT EXISTS checkout_steps_by_reference ON checkout_steps (reference);
    CREATE TABLE IF NOT EXISTS crashed (reference TEXT PRIMARY KEY);
    COMMIT;
"];

pub(super) const MYSQL_TABLES: &[&str] = &[
    "CREATE TABLE IF NOT EXISTS orders (
        id BIGINT AUTO_INCREMENT PRIMARY KEY, item TEXT NOT NULL, quantity BIGINT NOT NULL, created_at TEXT NOT NULL,
        KEY orders_by_item (item(64))) ENGINE = InnoDB",
    "CREATE TABLE IF NOT EXISTS charges (
        id BIGINT AUTO_INCREMENT PRIMARY KEY, reference TEXT NOT NULL, amount BIGINT NOT NULL, currency TEXT NOT NULL,
        card TEXT NOT NULL, created_at TEXT NOT NULL, KEY charges_by_reference (reference(64))) ENGINE = InnoDB",
    "CREATE TABLE IF NOT EXISTS mails (
        id BIGINT AUTO_INCREMENT PRIMARY KEY, order_id BIGINT NOT NULL, created_at TEXT NOT NULL,
        KEY mails_by_order (order_id)) ENGINE = InnoDB",
    "CREATE TABLE IF NOT EXISTS limited (
        reference VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin PRIMARY KEY) ENGINE = InnoDB",
    "CREATE TABLE IF NOT EXISTS checkout_steps (
        id BIGINT AUTO_INCREMENT PRIMARY KEY, reference TEXT NOT NULL, step TEXT NOT NULL, provider_key TEXT NOT NULL,
        created_at TEXT NOT NULL, KEY checkout_steps_by_reference (reference(64))) ENGINE = InnoDB",
    "CREATE TABLE IF NOT EXISTS crashed (
        reference VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin PRIMARY KEY) ENGINE = InnoDB",
];

/// Adds this column to an older table of charges. MySQL has no `IF NOT EXISTS` for it.
pub(super) async fn add_provider_key(connection: &mut AsyncMysqlConnection) -> QueryResult<()> {
    let found = sql::<BigInt>(
        "(SELECT count(*) FROM information_schema.columns
            WHERE table_schema = DATABASE() AND table_name = 'charges' AND column_name = 'provider_key')",
    );
    let columns: i64 = diesel_async::RunQueryDsl::get_result(diesel::select(found), connection).await?;
    if columns > 0 {
        return Ok(());
    }
    match connection.batch_execute("ALTER TABLE charges ADD COLUMN provider_key TEXT").await {
        // Another process has already added it.
        Err(error) if error.to_string().contains("Duplicate column") => Ok(()),
        altered => altered,
    }
}

pub(super) async fn make_tables<C: SimpleAsyncConnection>(connection: &mut C, tables: &[&str]) -> QueryResult<()> {
    for table in tables {
        connection.batch_execute(table).await?;
    }
    Ok(())
}
