//! The table's versions.

use diesel::QueryResult;
use diesel::result::Error;
use diesel::sql_types::{BigInt, Nullable, Text};
use diesel_async::{AsyncMysqlConnection, RunQueryDsl, SimpleAsyncConnection as _};
use tracing::info;

use super::table::Bind;
use super::{MysqlOpenError, flush};
use crate::sql::{Fragment, Name, lock_number};

/// Each is applied once, in this order. `{table}` stands for the table's name, `{flushes}` for that of the table of flushes,
/// and `{steps}` for that of the table of steps.
const MIGRATIONS: &[&str] = &[
    include_str!("../../migrations/mysql/1_records.sql"),
    flush::TABLE,
    include_str!("../../migrations/mysql/3_withdrawals.sql"),
    include_str!("../../migrations/mysql/4_steps.sql"),
];

/// How long to wait for another process that migrates.
const LOCK_SECONDS: u32 = 60;

/// Where the table is: the database of the opening, whatever a session uses later.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    database: String,
    table: Name,
}

impl Place {
    /// # Errors
    /// What is wrong with the database that the connection uses.
    pub(crate) async fn find(connection: &mut AsyncMysqlConnection, table: Name) -> Result<Self, MysqlOpenError> {
        let failed = |reason: String| MysqlOpenError::Migration { table: table.to_string(), reason };
        let database = database(connection).await.map_err(|error| failed(error.to_string()))?;
        if database.is_empty() {
            return Err(failed("the pool's connections use no database: name one in their URL".to_owned()));
        }
        // A statement's parameters are marked by it.
        if database.contains('?') {
            return Err(failed("its database's name contains a question mark".to_owned()));
        }
        Ok(Self { database, table })
    }

    /// The quoted name of the table.
    pub(crate) fn qualified(&self) -> String {
        self.beside("")
    }

    /// The quoted name of a table beside it.
    pub(crate) fn beside(&self, suffix: &str) -> String {
        format!("`{}`.`{}{suffix}`", self.database.replace('`', "``"), self.table)
    }

    /// The quoted name of the table by which a flush of the log is awaited.
    pub(super) fn flushes(&self) -> String {
        self.beside("_flushes")
    }

    /// The quoted name of the table of steps.
    pub(super) fn steps(&self) -> String {
        self.beside("_steps")
    }

    fn text_of(&self, migration: &str) -> String {
        text_of(migration, &self.qualified(), &self.flushes(), &self.steps())
    }

    /// Whether there is such a table beside it.
    pub(crate) async fn exists(&self, connection: &mut AsyncMysqlConnection, suffix: &str) -> QueryResult<bool> {
        let name = format!("{}{suffix}", self.table);
        let text = "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = ? AND table_name = ?";
        let binds = [Bind::Bytes(self.database.as_bytes()), Bind::Bytes(name.as_bytes())];
        let found: i64 = Fragment::<BigInt, _>::new(text, &binds).get_result(connection).await?;
        Ok(found > 0)
    }

    /// The name of a lock on this table: locks are the whole server's, and their names have up to 64 characters.
    fn lock_name(&self) -> String {
        let hash = lock_number(&format!("{}.{}", self.database, self.table));
        format!("oncekey_migrate_{hash:016x}")
    }
}

pub(super) async fn number(connection: &mut AsyncMysqlConnection, text: &str) -> QueryResult<Option<i64>> {
    Fragment::<Nullable<BigInt>, Bind<'_>>::new(text, &[]).get_result(connection).await
}

pub(super) async fn database(connection: &mut AsyncMysqlConnection) -> QueryResult<String> {
    let text = "SELECT COALESCE(DATABASE(), '')";
    Fragment::<Text, Bind<'_>>::new(text, &[]).get_result(connection).await
}

/// Whether the server is a MariaDB whose INSERT can return what it inserted: since 10.5. MySQL's can't.
pub(super) async fn returns(connection: &mut AsyncMysqlConnection) -> QueryResult<bool> {
    let text = "SELECT VERSION()";
    let version: String = Fragment::<Text, Bind<'_>>::new(text, &[]).get_result(connection).await?;
    Ok(can_return(&version))
}

fn can_return(version: &str) -> bool {
    // "10.11.6-MariaDB-0+deb12u1", and from some proxies and clouds "5.5.5-10.11.6-MariaDB".
    let version = version.strip_prefix("5.5.5-").unwrap_or(version);
    let mut numbers = version.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    version.contains("MariaDB") && (numbers.next(), numbers.next()) >= (Some(10), Some(5))
}

/// Applies what has not been applied, under a named lock: of ten processes that start at once one makes the table, and
/// nine find it. Data definition can't be rolled back here: what was cut short is done again.
pub(super) async fn bring_up_to_date(
    connection: &mut AsyncMysqlConnection,
    place: &Place,
    migrate: bool,
) -> Result<(), MysqlOpenError> {
    let known = MIGRATIONS.len() as i64;
    let table = &place.table;
    let failed = |error: Error| MysqlOpenError::Migration { table: table.to_string(), reason: error.to_string() };
    let mut found = version(connection, place).await.map_err(failed)?;
    if found < known && migrate {
        let lock = place.lock_name();
        let locked = match number(connection, &format!("SELECT GET_LOCK('{lock}', {LOCK_SECONDS})")).await {
            Ok(locked) => locked == Some(1),
            // Galera and XtraDB Cluster refuse locks by name. Every statement is as good done twice as once.
            Err(Error::DatabaseError(_, information)) => {
                info!(reason = information.message(), "migrating without a lock, which the server refuses");
                false
            }
            Err(error) => return Err(failed(error)),
        };
        let migrated = migrate_from(connection, place).await;
        if locked {
            number(connection, &format!("SELECT RELEASE_LOCK('{lock}')")).await.map_err(failed)?;
        }
        migrated.map_err(failed)?;
        found = version(connection, place).await.map_err(failed)?;
    }
    if found > known {
        return Err(MysqlOpenError::NewerSchema { table: table.to_string(), found, known });
    }
    if found < known {
        return Err(MysqlOpenError::NotMigrated { table: table.to_string(), found, known });
    }
    Ok(())
}

fn migrations_table(migrations: &str) -> String {
    format!("CREATE TABLE IF NOT EXISTS {migrations} (version BIGINT NOT NULL PRIMARY KEY) ENGINE = InnoDB")
}

fn text_of(migration: &str, table: &str, flushes: &str, steps: &str) -> String {
    migration.replace("{table}", table).replace("{flushes}", flushes).replace("{steps}", steps)
}

/// All of it as statements, for tables with their default names in the database that is used.
pub(crate) fn schema_text() -> String {
    let table = "oncekey_records";
    let mut text = format!("{};\n", migrations_table(&format!("`{table}_migrations`")));
    for (number, migration) in MIGRATIONS.iter().enumerate() {
        let quoted = |suffix: &str| format!("`{table}{suffix}`");
        let migration = text_of(migration, &quoted(""), &quoted("_flushes"), &quoted("_steps"));
        text.push_str(&format!("{};\n", migration.trim_end().trim_end_matches(';')));
        text.push_str(&format!("INSERT INTO `{table}_migrations` VALUES ({});\n", number + 1));
    }
    text
}

async fn migrate_from(connection: &mut AsyncMysqlConnection, place: &Place) -> QueryResult<()> {
    let migrations = place.beside("_migrations");
    connection.batch_execute(&migrations_table(&migrations)).await?;
    // Another process may have done it while this one waited.
    let found = version(connection, place).await?;
    for (number, migration) in MIGRATIONS.iter().enumerate() {
        let number = number as i64 + 1;
        if number > found {
            match connection.batch_execute(&place.text_of(migration)).await {
                // It was cut short after the statement, which the server does whole or not at all.
                Err(Error::DatabaseError(_, information))
                    if information.message().starts_with("Duplicate column name") => {}
                done => done?,
            }
            connection.batch_execute(&format!("INSERT IGNORE INTO {migrations} VALUES ({number})")).await?;
            info!(table = %place.qualified(), version = number, "the table of records was brought up to date");
        }
    }
    Ok(())
}

/// The version that the table has; 0 if there is none.
async fn version(connection: &mut AsyncMysqlConnection, place: &Place) -> QueryResult<i64> {
    if !place.exists(connection, "_migrations").await? {
        return Ok(0);
    }
    let text = format!("SELECT MAX(version) FROM {}", place.beside("_migrations"));
    Ok(number(connection, &text).await?.unwrap_or(0))
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
