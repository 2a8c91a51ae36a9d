//! The versions of the table's schema.

use diesel::QueryResult;
use diesel::result::Error;
use diesel::sql_types::{BigInt, Nullable, Text};
use diesel_async::{AsyncMysqlConnection, RunQueryDsl, SimpleAsyncConnection as _};
use tracing::info;

use super::flush;
use crate::migration::{Migration, Schema, Statements};
use crate::sql::{Bind, Fragment, Name, Place, lock_number};

/// The character with which MySQL quotes identifiers.
const QUOTE: char = '`';

const MIGRATIONS: &[Migration] = &[
    (1, include_str!("../../migrations/mysql/1_records.sql")),
    (2, flush::TABLE),
    (3, include_str!("../../migrations/mysql/3_withdrawals.sql")),
    (4, include_str!("../../migrations/mysql/4_steps.sql")),
];

/// How long to wait for another process that migrates.
const LOCK_SECONDS: u32 = 60;

/// Returns the place of a table: the database that the connection uses.
///
/// # Errors
/// Returns the server's error, or says what is wrong with the database.
pub(crate) async fn find(connection: &mut AsyncMysqlConnection, table: Name) -> Result<Place, String> {
    let text = "SELECT COALESCE(DATABASE(), '')";
    let database: QueryResult<String> = Fragment::<Text, Bind<'_>>::new(text, &[]).get_result(connection).await;
    let database = database.map_err(|error| error.to_string())?;
    if database.is_empty() {
        return Err("the pool's connections use no database: name one in their URL".to_owned());
    }
    // A question mark marks a statement's parameters.
    if database.contains('?') {
        return Err("its database's name contains a question mark".to_owned());
    }
    Ok(Place::new(QUOTE, database, table))
}

/// Returns whether such a companion table exists.
pub(crate) async fn exists(connection: &mut AsyncMysqlConnection, place: &Place, suffix: &str) -> QueryResult<bool> {
    let name = format!("{}{suffix}", place.table());
    let text = "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = ? AND table_name = ?";
    let binds = [Bind::Bytes(place.within().as_bytes()), Bind::Bytes(name.as_bytes())];
    let found: i64 = Fragment::<BigInt, _>::new(text, &binds).get_result(connection).await?;
    Ok(found > 0)
}

/// Returns the name of a lock on the table. Locks belong to the whole server, and their names have at most 64
/// characters.
fn lock_name(place: &Place) -> String {
    let hash = lock_number(&format!("{}.{}", place.within(), place.table()));
    format!("oncekey_migrate_{hash:016x}")
}

pub(super) async fn number(connection: &mut AsyncMysqlConnection, text: &str) -> QueryResult<Option<i64>> {
    Fragment::<Nullable<BigInt>, Bind<'_>>::new(text, &[]).get_result(connection).await
}

/// Returns whether the server is a MariaDB whose INSERT can return the inserted rows (since 10.5). MySQL can't do that.
pub(super) async fn returns(connection: &mut AsyncMysqlConnection) -> QueryResult<bool> {
    let text = "SELECT VERSION()";
    let version: String = Fragment::<Text, Bind<'_>>::new(text, &[]).get_result(connection).await?;
    Ok(can_return(&version))
}

fn can_return(version: &str) -> bool {
    // "10.11.6-MariaDB-0+deb12u1"; some proxies and clouds report "5.5.5-10.11.6-MariaDB".
    let version = version.strip_prefix("5.5.5-").unwrap_or(version);
    let mut numbers = version.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    version.contains("MariaDB") && (numbers.next(), numbers.next()) >= (Some(10), Some(5))
}

fn statements(place: &Place) -> Statements {
    place.statements(MIGRATIONS, "(version BIGINT NOT NULL PRIMARY KEY) ENGINE = InnoDB", "INSERT IGNORE")
}

/// Returns the whole schema as statements, for tables with their default names in the current database.
pub(crate) fn schema_text() -> String {
    statements(&Place::anywhere(QUOTE, Name::fixed("oncekey_records"))).text()
}

/// The tables, migrated under a named lock. MySQL can't roll data definition back: an interrupted migration is run
/// again.
pub(super) struct Tables<'a> {
    connection: &'a mut AsyncMysqlConnection,
    place: &'a Place,
    is_locked: bool,
}

impl<'a> Tables<'a> {
    pub(super) fn new(connection: &'a mut AsyncMysqlConnection, place: &'a Place) -> Self {
        Self { connection, place, is_locked: false }
    }
}

impl Schema for Tables<'_> {
    fn statements(&self) -> Statements {
        statements(self.place)
    }

    fn table(&self) -> String {
        self.place.qualified()
    }

    async fn version(&mut self) -> QueryResult<i64> {
        if !exists(self.connection, self.place, "_migrations").await? {
            return Ok(0);
        }
        let text = format!("SELECT MAX(version) FROM {}", self.place.beside("_migrations"));
        Ok(number(self.connection, &text).await?.unwrap_or(0))
    }

    async fn lock(&mut self) -> QueryResult<()> {
        let lock = format!("SELECT GET_LOCK('{}', {LOCK_SECONDS})", lock_name(self.place));
        self.is_locked = match number(self.connection, &lock).await {
            Ok(locked) => locked == Some(1),
            // Galera and XtraDB Cluster refuse named locks. Every statement is safe to repeat.
            Err(Error::DatabaseError(_, information)) => {
                info!(reason = information.message(), "migrating without a lock, which the server refuses");
                false
            }
            Err(error) => return Err(error),
        };
        Ok(())
    }

    async fn unlock(&mut self, _: bool) -> QueryResult<()> {
        if !self.is_locked {
            return Ok(());
        }
        number(self.connection, &format!("SELECT RELEASE_LOCK('{}')", lock_name(self.place))).await.map(drop)
    }

    async fn execute(&mut self, text: &str) -> QueryResult<()> {
        match self.connection.batch_execute(text).await {
            // The earlier migration was interrupted after this statement. The server executes a statement completely or
            // not at all.
            Err(Error::DatabaseError(_, information)) if information.message().starts_with("Duplicate column name") => {
                Ok(())
            }
            done => done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_insert_returns_rows_on_mariadb_alone() {
        for version in ["10.5.0-MariaDB", "10.11.6-MariaDB-0+deb12u1", "5.5.5-10.11.6-MariaDB", "11.8.3-MariaDB-log"] {
            assert!(can_return(version), "{version}");
        }
        for version in ["8.0.40", "8.4.3-log", "10.4.34-MariaDB", "5.5.68-MariaDB", "9.1.0", ""] {
            assert!(!can_return(version), "{version}");
        }
    }
}
