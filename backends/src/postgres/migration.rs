//! The table's versions.

use diesel::sql_types::{BigInt, Bool, Text};
use diesel_async::{AsyncConnection as _, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection as _};
use tracing::{info, warn};

use super::PostgresOpenError;
use super::table::Bind;
use crate::sql::{Fragment, Name, lock_number};

/// Each is applied once, in this order. `{table}` and `{name}` stand for the table's name, with its schema and without;
/// `{steps}` for that of the table of steps.
const MIGRATIONS: &[&str] = &[
    include_str!("../../migrations/postgres/1_records.sql"),
    include_str!("../../migrations/postgres/2_withdrawals.sql"),
    include_str!("../../migrations/postgres/3_steps.sql"),
];

/// Where the table is.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) schema: Option<Name>,
    pub(super) table: Name,
}

impl Place {
    /// The quoted name, with its schema.
    pub(super) fn qualified(&self) -> String {
        self.qualify(&self.table.to_string())
    }

    /// The same of the table of steps.
    pub(super) fn steps(&self) -> String {
        self.qualify(&format!("{}_steps", self.table))
    }

    fn qualify(&self, name: &str) -> String {
        match &self.schema {
            Some(schema) => format!("\"{schema}\".\"{name}\""),
            None => format!("\"{name}\""),
        }
    }

    /// The channel of announcements. Another schema's table of the same name may share it: a wake-up too many.
    pub(super) fn channel(&self) -> String {
        format!("oncekey_{}", self.table)
    }

    /// The number of an advisory lock on this table.
    pub(super) fn lock(&self, purpose: &str) -> i64 {
        lock_number(&format!("oncekey {purpose} {}", self.qualified())).cast_signed()
    }
}

/// Applies what has not been applied, under an advisory lock: of ten processes that start at once one makes the table,
/// and nine find it.
pub(super) async fn bring_up_to_date(
    connection: &mut AsyncPgConnection,
    place: &Place,
    migrate: bool,
) -> Result<(), PostgresOpenError> {
    let table = place.qualified();
    let known = MIGRATIONS.len() as i64;
    let failed =
        |error: diesel::result::Error| PostgresOpenError::Migration { table: table.clone(), reason: error.to_string() };
    let mut found = version(connection, place).await.map_err(failed)?;
    if found < known && migrate {
        // What the caller may not do is only asked of the server when there is something to do.
        connection.transaction(async |connection| migrate_from(connection, place).await).await.map_err(failed)?;
        found = version(connection, place).await.map_err(failed)?;
    }
    if found > known {
        return Err(PostgresOpenError::NewerSchema { table, found, known });
    }
    if found < known {
        return Err(PostgresOpenError::NotMigrated { table, found, known });
    }
    Ok(())
}

async fn migrate_from(connection: &mut AsyncPgConnection, place: &Place) -> diesel::QueryResult<()> {
    let lock = format!("SELECT pg_advisory_xact_lock({})", place.lock("migration"));
    connection.batch_execute(&lock).await?;
    if let Some(schema) = &place.schema {
        connection.batch_execute(&format!("CREATE SCHEMA IF NOT EXISTS \"{schema}\"")).await?;
    }
    let migrations = place.qualify(&format!("{}_migrations", place.table));
    connection.batch_execute(&format!("CREATE TABLE IF NOT EXISTS {migrations} (version bigint PRIMARY KEY)")).await?;
    // Another process may have done it while this one waited.
    let found = version(connection, place).await?;
    for (number, migration) in MIGRATIONS.iter().enumerate() {
        let number = number as i64 + 1;
        if number > found {
            let text = migration.replace("{table}", &place.qualified()).replace("{name}", &place.table.to_string());
            let text = text.replace("{steps}", &place.steps());
            connection.batch_execute(&text).await?;
            connection.batch_execute(&format!("INSERT INTO {migrations} VALUES ({number})")).await?;
            info!(table = %place.qualified(), version = number, "the table of records was brought up to date");
        }
    }
    Ok(())
}

/// The version that the table has; 0 if there is none.
async fn version(connection: &mut AsyncPgConnection, place: &Place) -> diesel::QueryResult<i64> {
    let migrations = place.qualify(&format!("{}_migrations", place.table));
    let binds = [Bind::Text(&migrations)];
    let exists: bool =
        Fragment::<Bool, _>::new("SELECT to_regclass(?) IS NOT NULL", &binds).get_result(connection).await?;
    if !exists {
        return Ok(0);
    }
    let text = format!("SELECT coalesce(max(version), 0) FROM {migrations}");
    Fragment::<BigInt, Bind<'_>>::new(&text, &[]).get_result(connection).await
}

/// Names the settings by which the server may lose what it has confirmed.
pub(super) async fn check_durability(connection: &mut AsyncPgConnection) -> diesel::QueryResult<()> {
    for (setting, weak) in [("synchronous_commit", "off"), ("fsync", "off"), ("full_page_writes", "off")] {
        let binds = [Bind::Text(setting)];
        // The default counts as well: a connection of the application's own has it, and may complete claims.
        let text = "SELECT CASE WHEN 'off' IN (setting, reset_val) THEN 'off' ELSE setting END FROM pg_settings \
                    WHERE name = ?";
        let value: String = Fragment::<Text, _>::new(text, &binds).get_result(connection).await?;
        if value == weak && setting == "synchronous_commit" {
            warn!(
                setting,
                value,
                "by its default PostgreSQL may lose commits that it has confirmed when it crashes. The connections that \
                 this store opens switch it on; on a pool of your own operations whose outcome was answered may run again"
            );
        } else if value == weak {
            warn!(
                setting,
                value,
                "PostgreSQL may lose commits that it has confirmed when it crashes: operations whose outcome was \
                 answered may run again"
            );
        }
    }
    let text = "SELECT current_setting('default_transaction_isolation')";
    let value: String = Fragment::<Text, Bind<'_>>::new(text, &[]).get_result(connection).await?;
    if matches!(value.as_str(), "repeatable read" | "serializable") {
        warn!(
            setting = "default_transaction_isolation",
            value,
            "an operation in a transaction that lasts longer than a third of its lease can't be committed, since its record \
             has changed meanwhile: set it to 'read committed' on the pool's connections"
        );
    }
    Ok(())
}
