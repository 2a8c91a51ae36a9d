//! The versions of the file's tables.
//!
//! The file may be the user's own database, with its own migrations in Diesel's `__diesel_schema_migrations`. So this
//! library records its migrations in a separate table. All of it happens inside the one write transaction of opening:
//! of ten processes that open a fresh file at once, one creates the tables and nine find them.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use diesel::connection::SimpleConnection as _;
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable, Text};

use super::clock::NotAnchored;
use crate::migration::{self, Migration, Schema, Statements};

const MIGRATIONS: &[Migration] = &[
    (20_261_124_000_000, include_str!("../../migrations/sqlite/20261124000000_records/up.sql")),
    (20_261_127_000_000, include_str!("../../migrations/sqlite/20261127000000_fencing/up.sql")),
    (20_261_128_000_000, include_str!("../../migrations/sqlite/20261128000000_steps/up.sql")),
];

/// Why the tables are not up to date.
#[derive(Debug)]
pub(super) enum NotMigrated {
    Newer {
        found: String,
        known: String,
    },
    /// They are missing or older, and migrations are switched off.
    Older {
        found: String,
        known: String,
    },
    Sqlite(diesel::result::Error),
    /// The tables are up to date, but the file's clock can't be read.
    NoBootId,
}

impl From<NotAnchored> for NotMigrated {
    fn from(error: NotAnchored) -> Self {
        match error {
            NotAnchored::NoBootId => Self::NoBootId,
            NotAnchored::Sqlite(error) => Self::Sqlite(error),
        }
    }
}

impl From<diesel::result::Error> for NotMigrated {
    fn from(error: diesel::result::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<migration::NotMigrated> for NotMigrated {
    fn from(error: migration::NotMigrated) -> Self {
        let named = |version: i64| if version == 0 { "none".to_owned() } else { version.to_string() };
        match error {
            migration::NotMigrated::Newer { found, known } => Self::Newer { found: named(found), known: named(known) },
            migration::NotMigrated::Older { found, known } => Self::Older { found: named(found), known: named(known) },
            migration::NotMigrated::Failed(error) => Self::Sqlite(error),
        }
    }
}

/// Applies the migrations that have not been applied yet. Call it inside a write transaction.
pub(super) fn bring_up_to_date(connection: &mut SqliteConnection, migrate: bool) -> Result<(), NotMigrated> {
    let mut tables = Tables(connection);
    let mut migrated = pin!(migration::bring_up_to_date(&mut tables, migrate));
    // The future only blocks and never waits, so its first poll completes it.
    loop {
        if let Poll::Ready(migrated) = migrated.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return Ok(migrated?);
        }
    }
}

/// Whether a table of that name exists.
pub(crate) fn has_table(connection: &mut SqliteConnection, name: &str) -> QueryResult<bool> {
    let found =
        sql::<BigInt>("SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ").bind::<Text, _>(name);
    Ok(found.get_result::<i64>(connection)? > 0)
}

fn statements() -> Statements {
    let made =
        "CREATE TABLE IF NOT EXISTS oncekey_migrations (version TEXT PRIMARY KEY NOT NULL) STRICT, WITHOUT ROWID";
    let record = |version| format!("INSERT INTO oncekey_migrations VALUES ('{version}')");
    Statements::new(made.to_owned(), MIGRATIONS, str::to_owned, record)
}

/// Returns the whole schema as statements.
pub(crate) fn schema_text() -> String {
    statements().text()
}

/// The tables, through a connection that holds the file's write lock.
struct Tables<'a>(&'a mut SqliteConnection);

impl Schema for Tables<'_> {
    fn statements(&self) -> Statements {
        statements()
    }

    fn table(&self) -> String {
        "oncekey_records".to_owned()
    }

    async fn version(&mut self) -> QueryResult<i64> {
        if !has_table(self.0, "oncekey_migrations")? {
            return Ok(0);
        }
        let newest = sql::<Nullable<BigInt>>("SELECT max(CAST(version AS INTEGER)) FROM oncekey_migrations");
        Ok(newest.get_result::<Option<i64>>(self.0)?.unwrap_or(0))
    }

    /// Does nothing: the transaction of opening is the lock.
    async fn lock(&mut self) -> QueryResult<()> {
        Ok(())
    }

    async fn unlock(&mut self, _: bool) -> QueryResult<()> {
        Ok(())
    }

    async fn execute(&mut self, text: &str) -> QueryResult<()> {
        self.0.batch_execute(text)
    }
}
