//! The tables' versions.
//!
//! The file may be the user's own database, with migrations of its own in Diesel's `__diesel_schema_migrations`. So what
//! this library has applied stands in a table of its own. All of it happens inside the one write transaction of opening,
//! so that of ten processes that open a fresh file at once one makes the tables, and nine find them.

use std::fmt;

use diesel::connection::SimpleConnection as _;
use diesel::migration::{Migration, MigrationSource as _};
use diesel::prelude::*;
use diesel::sqlite::Sqlite;
use diesel_migrations::{EmbeddedMigrations, embed_migrations};

use super::clock::NotAnchored;
use super::schema::oncekey_migrations::dsl::{oncekey_migrations, version};

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations/sqlite");

/// Why the tables are not up to date.
#[derive(Debug)]
pub(super) enum NotMigrated {
    Newer {
        found: String,
        known: String,
    },
    Failed(String),
    Sqlite(diesel::result::Error),
    /// The tables are up to date, and the file's clock can't be read.
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

/// Applies what has not been applied; call it inside a write transaction.
pub(super) fn bring_up_to_date(connection: &mut SqliteConnection) -> Result<(), NotMigrated> {
    let failed = |error: &dyn fmt::Display| NotMigrated::Failed(error.to_string());
    let mut known: Vec<Box<dyn Migration<Sqlite>>> = MIGRATIONS.migrations().map_err(|error| failed(&error))?;
    known.sort_unstable_by(|a, b| a.name().version().cmp(&b.name().version()));
    let version_of = |migration: &dyn Migration<Sqlite>| migration.name().version().to_string();
    let newest = known.last().map(|migration| version_of(migration.as_ref())).unwrap_or_default();

    connection.batch_execute(
        "CREATE TABLE IF NOT EXISTS oncekey_migrations (version TEXT PRIMARY KEY NOT NULL) STRICT, WITHOUT ROWID",
    )?;
    let applied: Vec<String> = oncekey_migrations.select(version).order(version).load(connection)?;
    if let Some(found) = applied.last().filter(|last| **last > newest) {
        return Err(NotMigrated::Newer { found: found.clone(), known: newest });
    }
    for migration in known {
        let this = version_of(migration.as_ref());
        if !applied.contains(&this) {
            migration.run(connection).map_err(|error| failed(&error))?;
            diesel::insert_into(oncekey_migrations).values(version.eq(this)).execute(connection)?;
        }
    }
    Ok(())
}
