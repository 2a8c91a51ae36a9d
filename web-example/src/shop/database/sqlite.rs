//! The shop's SQLite file, used from threads outside the arbiters.

use std::path::Path;
use std::time::Duration;

use actix_web::web;
use diesel::connection::SimpleConnection as _;
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::r2d2::{ConnectionManager, CustomizeConnection, NopErrorHandler, Pool};

use super::DatabaseError;

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS orders (
        id INTEGER PRIMARY KEY AUTOINCREMENT, item TEXT NOT NULL, quantity INTEGER NOT NULL, created_at TEXT NOT NULL);
    CREATE INDEX IF NOT EXISTS orders_by_item ON orders (item);
    CREATE TABLE IF NOT EXISTS charges (
        id INTEGER PRIMARY KEY AUTOINCREMENT, reference TEXT NOT NULL, amount INTEGER NOT NULL, currency TEXT NOT NULL,
        card TEXT NOT NULL, created_at TEXT NOT NULL);
    CREATE INDEX IF NOT EXISTS charges_by_reference ON charges (reference);
    CREATE TABLE IF NOT EXISTS mails (
        id INTEGER PRIMARY KEY AUTOINCREMENT, order_id INTEGER NOT NULL, created_at TEXT NOT NULL);
    CREATE INDEX IF NOT EXISTS mails_by_order ON mails (order_id);
    CREATE TABLE IF NOT EXISTS limited (reference TEXT PRIMARY KEY);
    CREATE TABLE IF NOT EXISTS checkout_steps (
        id INTEGER PRIMARY KEY AUTOINCREMENT, reference TEXT NOT NULL, step TEXT NOT NULL, provider_key TEXT NOT NULL,
        created_at TEXT NOT NULL);
    CREATE INDEX IF NOT EXISTS checkout_steps_by_reference ON checkout_steps (reference);
    CREATE TABLE IF NOT EXISTS crashed (reference TEXT PRIMARY KEY);
";

/// A pool of connections to the shop's file.
#[derive(Clone)]
pub(crate) struct SqliteFile(Pool<ConnectionManager<SqliteConnection>>);

#[derive(Debug)]
struct SetUp;

impl CustomizeConnection<SqliteConnection, diesel::r2d2::Error> for SetUp {
    fn on_acquire(&self, connection: &mut SqliteConnection) -> Result<(), diesel::r2d2::Error> {
        set_up(connection).map_err(diesel::r2d2::Error::QueryError)
    }
}

fn set_up(connection: &mut SqliteConnection) -> QueryResult<()> {
    connection.batch_execute("PRAGMA busy_timeout = 10000; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL")
}

fn make_tables(connection: &mut SqliteConnection) -> QueryResult<()> {
    connection.batch_execute(TABLES)?;
    // An older file gets this column now.
    let columns: i64 = diesel::select(sql::<diesel::sql_types::BigInt>(
        "(SELECT count(*) FROM pragma_table_info('charges') WHERE name = 'provider_key')",
    ))
    .get_result(connection)?;
    if columns == 0 {
        connection.batch_execute("ALTER TABLE charges ADD COLUMN provider_key TEXT")?;
    }
    Ok(())
}

impl SqliteFile {
    pub(super) fn open(path: &Path) -> Result<Self, DatabaseError> {
        let unusable = |error: &dyn std::fmt::Display| DatabaseError::Open(format!("{}: {error}", path.display()));
        let name = path.to_string_lossy();
        if name.contains('?') {
            return Err(unusable(
                &"it takes a path alone; what follows the ? would be a part of the file's name, not a setting",
            ));
        }
        // A separate connection fails at once. The pool would retry for its whole timeout.
        let mut connection = SqliteConnection::establish(&name).map_err(|error| unusable(&error))?;
        set_up(&mut connection).map_err(|error| unusable(&error))?;
        // One write transaction makes two processes that start at once take turns.
        let made = connection.immediate_transaction(make_tables);
        made.map_err(|error: diesel::result::Error| unusable(&error))?;
        let pool = Pool::builder()
            .max_size(4)
            .connection_timeout(Duration::from_secs(10))
            .connection_customizer(Box::new(SetUp))
            // The caller gets the error. By default, the pool would also log it at each attempt.
            .error_handler(Box::new(NopErrorHandler));
        let pool = pool.build(ConnectionManager::new(&*name)).map_err(|error| unusable(&error))?;
        Ok(Self(pool))
    }

    /// Runs `work` on a thread for blocking work.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut SqliteConnection) -> QueryResult<T> + Send + 'static,
    ) -> Result<T, DatabaseError> {
        let pool = self.0.clone();
        let done = web::block(move || {
            let mut connection = pool.get().map_err(|error| DatabaseError::Open(error.to_string()))?;
            work(&mut connection).map_err(DatabaseError::from)
        });
        done.await?
    }
}
