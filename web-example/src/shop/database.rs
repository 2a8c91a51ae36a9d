//! The shop's tables, and access to them from off the arbiters.

use std::path::Path;
use std::time::Duration;

use actix_web::web;
use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use diesel::r2d2::{ConnectionManager, CustomizeConnection, Pool};

diesel::table! {
    orders (id) {
        id -> BigInt,
        item -> Text,
        quantity -> BigInt,
        created_at -> Text,
    }
}

diesel::table! {
    /// One line per charge that happened.
    charges (id) {
        id -> BigInt,
        reference -> Text,
        amount -> BigInt,
        currency -> Text,
        card -> Text,
        created_at -> Text,
    }
}

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS orders (
        id INTEGER PRIMARY KEY AUTOINCREMENT, item TEXT NOT NULL, quantity INTEGER NOT NULL, created_at TEXT NOT NULL);
    CREATE INDEX IF NOT EXISTS orders_by_item ON orders (item);
    CREATE TABLE IF NOT EXISTS charges (
        id INTEGER PRIMARY KEY AUTOINCREMENT, reference TEXT NOT NULL, amount INTEGER NOT NULL, currency TEXT NOT NULL,
        card TEXT NOT NULL, created_at TEXT NOT NULL);
    CREATE INDEX IF NOT EXISTS charges_by_reference ON charges (reference);
";

/// Why the shop can't use its database.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DatabaseError {
    #[error("{0}")]
    Sql(#[from] diesel::result::Error),
    #[error("{0}")]
    Pool(String),
}

/// A pool of connections to the shop's file.
#[derive(Clone)]
pub(crate) struct Database(Pool<ConnectionManager<SqliteConnection>>);

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Database")
    }
}

#[derive(Debug)]
struct SetUp;

impl CustomizeConnection<SqliteConnection, diesel::r2d2::Error> for SetUp {
    fn on_acquire(&self, connection: &mut SqliteConnection) -> Result<(), diesel::r2d2::Error> {
        connection
            .batch_execute("PRAGMA busy_timeout = 10000; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL")
            .map_err(diesel::r2d2::Error::QueryError)
    }
}

impl Database {
    pub(super) fn open(path: &Path) -> Result<Self, DatabaseError> {
        let path = path.to_string_lossy();
        let manager = ConnectionManager::new(&*path);
        let pool = Pool::builder()
            .max_size(4)
            .connection_timeout(Duration::from_secs(10))
            .connection_customizer(Box::new(SetUp));
        let pool = pool.build(manager).map_err(|error| DatabaseError::Pool(error.to_string()))?;
        let mut connection = pool.get().map_err(|error| DatabaseError::Pool(error.to_string()))?;
        // In one write transaction: two processes that start at once take turns.
        connection.immediate_transaction(|connection| connection.batch_execute(TABLES))?;
        Ok(Self(pool))
    }

    /// Does `work` on a thread for blocking work.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut SqliteConnection) -> QueryResult<T> + Send + 'static,
    ) -> Result<T, actix_web::Error> {
        let pool = self.0.clone();
        let done = web::block(move || {
            let mut connection = pool.get().map_err(|error| DatabaseError::Pool(error.to_string()))?;
            work(&mut connection).map_err(DatabaseError::from)
        });
        done.await?.map_err(|error| {
            tracing::error!(%error, "the shop's database failed");
            actix_web::error::ErrorInternalServerError("the shop's database failed")
        })
    }
}

/// The time, as the shop shows it.
pub(super) fn now() -> String {
    jiff::Timestamp::now().to_string()
}
