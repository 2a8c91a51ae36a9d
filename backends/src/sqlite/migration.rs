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
    /// They are missing or older, and were not to be made.
    Older {
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
pub(super) fn bring_up_to_date(connection: &mut SqliteConnection, migrate: bool) -> Result<(), NotMigrated> {
    let failed = |error: &dyn fmt::Display| NotMigrated::Failed(error.to_string());
    let mut known: Vec<Box<dyn Migration<Sqlite>>> = MIGRATIONS.migrations().map_err(|error| failed(&error))?;
    known.sort_unstable_by(|a, b| a.name().version().cmp(&b.name().version()));
    let version_of = |migration: &dyn Migration<Sqlite>| migration.name().version().to_string();
    let newest = known.last().map(|migration| version_of(migration.as_ref())).unwrap_or_default();

    if migrate {
        connection.batch_execute(
            "CREATE TABLE IF NOT EXISTS oncekey_migrations (version TEXT PRIMARY KEY NOT NULL) STRICT, WITHOUT ROWID",
        )?;
    } else if !has_table(connection)? {
        return Err(NotMigrated::Older { found: "none".to_owned(), known: newest });
    }
    let applied: Vec<String> = oncekey_migrations.select(version).order(version).load(connection)?;
    if let Some(found) = applied.last().filter(|last| **last > newest) {
        return Err(NotMigrated::Newer { found: found.clone(), known: newest });
    }
    for migration in known {
        let this = version_of(migration.as_ref());
        if applied.contains(&this) {
            continue;
        }
        if !migrate {
            let found = applied.last().cloned().unwrap_or_else(|| "none".to_owned());
            return Err(NotMigrated::Older { found, known: newest });
        }
        migration.run(connection).map_err(|error| failed(&error))?;
        diesel::insert_into(oncekey_migrations).values(version.eq(this)).execute(connection)?;
    }
    Ok(())
}

fn has_table(connection: &mut SqliteConnection) -> QueryResult<bool> {
    let found = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'oncekey_migrations'";
    Ok(texts(connection, &format!("SELECT CAST(({found}) AS TEXT) AS text"))? == ["1"])
}

#[derive(QueryableByName)]
struct Text {
    #[diesel(sql_type = diesel::sql_types::Text)]
    text: String,
}

fn texts(connection: &mut SqliteConnection, statement: &str) -> QueryResult<Vec<String>> {
    let found: Vec<Text> = diesel::sql_query(statement).load(connection)?;
    Ok(found.into_iter().map(|found| found.text).collect())
}

/// All of it as statements: what the migrations make of an empty database. `None` if SQLite has no memory for one.
pub(crate) fn schema_text() -> Option<String> {
    let mut connection = SqliteConnection::establish(":memory:").ok()?;
    bring_up_to_date(&mut connection, true).ok()?;
    let made = texts(&mut connection, "SELECT sql AS text FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid");
    let versions =
        "SELECT format('INSERT INTO oncekey_migrations VALUES (%Q)', version) AS text FROM oncekey_migrations";
    let statements = made.ok()?.into_iter().chain(texts(&mut connection, versions).ok()?);
    Some(statements.map(|statement| statement + ";\n").collect())
}
