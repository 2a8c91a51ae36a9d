//! The table's versions.

use diesel::result::Error;
use diesel::sql_types::{BigInt, Nullable, Text};
use diesel_async::{AsyncMysqlConnection, RunQueryDsl, SimpleAsyncConnection as _};
use tracing::{info, warn};

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

/// The name of a lock on this table: locks are the whole server's, and their names have up to 64 characters.
pub(super) fn lock_name(purpose: &str, database: &str, table: &Name) -> String {
    let hash = lock_number(&format!("{database}.{table}"));
    format!("oncekey_{purpose}_{hash:016x}")
}

pub(super) async fn number(connection: &mut AsyncMysqlConnection, text: &str) -> diesel::QueryResult<Option<i64>> {
    Fragment::<Nullable<BigInt>, Bind<'_>>::new(text, &[]).get_result(connection).await
}

pub(super) async fn database(connection: &mut AsyncMysqlConnection) -> diesel::QueryResult<String> {
    let text = "SELECT COALESCE(DATABASE(), '')";
    Fragment::<Text, Bind<'_>>::new(text, &[]).get_result(connection).await
}

/// Whether the server is a MariaDB whose INSERT can return what it inserted: since 10.5. MySQL's can't.
pub(super) async fn returns(connection: &mut AsyncMysqlConnection) -> diesel::QueryResult<bool> {
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
    table: &Name,
    lock: &str,
    migrate: bool,
) -> Result<(), MysqlOpenError> {
    let known = MIGRATIONS.len() as i64;
    let failed = |error: diesel::result::Error| MysqlOpenError::Migration {
        table: table.to_string(),
        reason: error.to_string(),
    };
    let mut found = version(connection, table).await.map_err(failed)?;
    if found < known && migrate {
        let locked = number(connection, &format!("SELECT GET_LOCK('{lock}', {LOCK_SECONDS})")).await.map_err(failed)?;
        if locked != Some(1) {
            return Err(MysqlOpenError::Migration {
                table: table.to_string(),
                reason: format!("another process has been at it for {LOCK_SECONDS} seconds"),
            });
        }
        let migrated = migrate_from(connection, table).await;
        number(connection, &format!("SELECT RELEASE_LOCK('{lock}')")).await.map_err(failed)?;
        migrated.map_err(failed)?;
        found = version(connection, table).await.map_err(failed)?;
    }
    if found > known {
        return Err(MysqlOpenError::NewerSchema { table: table.to_string(), found, known });
    }
    if found < known {
        return Err(MysqlOpenError::NotMigrated { table: table.to_string(), found, known });
    }
    Ok(())
}

async fn migrate_from(connection: &mut AsyncMysqlConnection, table: &Name) -> diesel::QueryResult<()> {
    let versions = format!("CREATE TABLE IF NOT EXISTS `{table}_migrations` (version BIGINT NOT NULL PRIMARY KEY)");
    connection.batch_execute(&format!("{versions} ENGINE = InnoDB")).await?;
    // Another process may have done it while this one waited.
    let found = version(connection, table).await?;
    for (number, migration) in MIGRATIONS.iter().enumerate() {
        let number = number as i64 + 1;
        if number > found {
            let migration = migration.replace("{table}", &format!("`{table}`")).replace("{steps}", &steps(table));
            match connection.batch_execute(&migration.replace("{flushes}", &flushes(table))).await {
                // It was cut short after the statement, which the server does whole or not at all.
                Err(Error::DatabaseError(_, information))
                    if information.message().starts_with("Duplicate column name") => {}
                done => done?,
            }
            connection.batch_execute(&format!("INSERT INTO `{table}_migrations` VALUES ({number})")).await?;
            info!(%table, version = number, "the table of records was brought up to date");
        }
    }
    Ok(())
}

/// The version that the table has; 0 if there is none.
async fn version(connection: &mut AsyncMysqlConnection, table: &Name) -> diesel::QueryResult<i64> {
    let text = format!(
        "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = \
         '{table}_migrations'"
    );
    if number(connection, &text).await? == Some(0) {
        return Ok(0);
    }
    let text = format!("SELECT MAX(version) FROM `{table}_migrations`");
    Ok(number(connection, &text).await?.unwrap_or(0))
}

/// The quoted name of the table by which a flush of the log is awaited.
pub(super) fn flushes(table: &Name) -> String {
    format!("`{table}_flushes`")
}

/// The quoted name of the table of steps.
pub(super) fn steps(table: &Name) -> String {
    format!("`{table}_steps`")
}

/// Names the settings by which the server may lose what it has confirmed.
pub(super) async fn check_durability(connection: &mut AsyncMysqlConnection) -> diesel::QueryResult<()> {
    let settings = [
        ("innodb_flush_log_at_trx_commit", "SELECT @@GLOBAL.innodb_flush_log_at_trx_commit"),
        ("innodb_doublewrite", "SELECT CASE @@GLOBAL.innodb_doublewrite WHEN 'OFF' THEN 0 WHEN '0' THEN 0 ELSE 1 END"),
        ("sync_binlog", "SELECT CASE WHEN @@GLOBAL.log_bin = 1 THEN @@GLOBAL.sync_binlog ELSE 1 END"),
    ];
    for (setting, text) in settings {
        let value = number(connection, text).await?.unwrap_or(1);
        if value != 1 {
            warn!(
                setting,
                value,
                "the MySQL server may lose commits that it has confirmed when it crashes: operations whose outcome was \
                 answered may run again"
            );
        }
    }
    Ok(())
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
