//! The table's versions.

use diesel::QueryResult;
use diesel::sql_types::{BigInt, Bool, Text};
use diesel_async::{AsyncConnection as _, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection as _};
use tracing::info;

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
    schema: String,
    table: Name,
}

/// An identifier as it stands in a statement.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The schema in which a table is found now, or else the one in which it would be made. It is looked up once: a session's
/// search path may change later, by an operation's statement or by the application's.
///
/// # Errors
/// The server's, or that no schema of the search path exists.
pub(crate) async fn schema_of(connection: &mut AsyncPgConnection, table: &str) -> Result<String, String> {
    const FOUND: &str = "SELECT coalesce((SELECT n.nspname::text FROM pg_class AS c JOIN pg_namespace AS n \
                         ON n.oid = c.relnamespace WHERE c.oid = to_regclass(?) AND c.relpersistence <> 't'), \
                         current_schema()::text, '')";
    let table = quoted(table);
    let found: QueryResult<String> =
        Fragment::<Text, _>::new(FOUND, &[Bind::Text(&table)]).get_result(connection).await;
    match found {
        Ok(schema) if schema.is_empty() => {
            Err("no schema of the connection's search path exists: make one, or name one by `schema`".to_owned())
        }
        // A statement's parameters are marked by it.
        Ok(schema) if schema.contains('?') => Err("its schema's name contains a question mark".to_owned()),
        Ok(schema) => Ok(schema),
        Err(error) => Err(error.to_string()),
    }
}

/// Makes a schema if it is missing; call it inside a transaction. A role that may not make one may own one.
pub(crate) async fn make_schema(connection: &mut AsyncPgConnection, schema: &str) -> QueryResult<()> {
    let schema = quoted(schema);
    let exists: bool = Fragment::<Bool, _>::new("SELECT to_regnamespace(?) IS NOT NULL", &[Bind::Text(&schema)])
        .get_result(connection)
        .await?;
    if exists {
        return Ok(());
    }
    // Of two that make it at once, one would fail: PostgreSQL looks before it waits.
    let lock = lock_number(&format!("oncekey schema {schema}")).cast_signed();
    let text = format!("SELECT pg_advisory_xact_lock({lock}); CREATE SCHEMA IF NOT EXISTS {schema}");
    connection.batch_execute(&text).await
}

impl Place {
    /// Looks the table's schema up, unless it is given.
    pub(super) async fn find(
        connection: &mut AsyncPgConnection,
        schema: Option<Name>,
        table: Name,
    ) -> Result<Self, PostgresOpenError> {
        let schema = match schema {
            Some(schema) => schema.to_string(),
            None => schema_of(connection, &table.to_string())
                .await
                .map_err(|reason| PostgresOpenError::Migration { table: table.to_string(), reason })?,
        };
        Ok(Self { schema, table })
    }

    /// The quoted name, with its schema.
    pub(super) fn qualified(&self) -> String {
        self.qualify(&self.table.to_string())
    }

    /// The same of the table of steps.
    pub(super) fn steps(&self) -> String {
        self.qualify(&format!("{}_steps", self.table))
    }

    fn text_of(&self, migration: &str) -> String {
        text_of(migration, &self.qualified(), &self.table.to_string(), &self.steps())
    }

    fn qualify(&self, name: &str) -> String {
        format!("{}.{}", quoted(&self.schema), quoted(name))
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

fn migrations_table(migrations: &str) -> String {
    format!("CREATE TABLE IF NOT EXISTS {migrations} (version bigint PRIMARY KEY)")
}

fn text_of(migration: &str, table: &str, name: &str, steps: &str) -> String {
    migration.replace("{table}", table).replace("{name}", name).replace("{steps}", steps)
}

/// All of it as statements, for tables with their default names in the search path.
pub(crate) fn schema_text() -> String {
    let name = "oncekey_records";
    let mut text = format!("{};\n", migrations_table(&format!("{name}_migrations")));
    for (number, migration) in MIGRATIONS.iter().enumerate() {
        text.push_str(text_of(migration, name, name, &format!("{name}_steps")).trim_end().trim_end_matches(';'));
        text.push_str(&format!(";\nINSERT INTO {name}_migrations VALUES ({});\n", number + 1));
    }
    text
}

async fn migrate_from(connection: &mut AsyncPgConnection, place: &Place) -> diesel::QueryResult<()> {
    let lock = format!("SELECT pg_advisory_xact_lock({})", place.lock("migration"));
    connection.batch_execute(&lock).await?;
    make_schema(connection, &place.schema).await?;
    let migrations = place.qualify(&format!("{}_migrations", place.table));
    connection.batch_execute(&migrations_table(&migrations)).await?;
    // Another process may have done it while this one waited.
    let found = version(connection, place).await?;
    for (number, migration) in MIGRATIONS.iter().enumerate() {
        let number = number as i64 + 1;
        if number > found {
            connection.batch_execute(&place.text_of(migration)).await?;
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
