//! The versions of the table's schema.

use diesel::QueryResult;
use diesel::sql_types::{BigInt, Bool, Text};
use diesel_async::{
    AnsiTransactionManager, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection as _, TransactionManager as _,
};

use crate::migration::{Migration, Schema, Statements};
use crate::sql::{Bind, Fragment, Name, Place, lock_number, quoted};

/// The character with which PostgreSQL quotes identifiers.
pub(crate) const QUOTE: char = '"';

const MIGRATIONS: &[Migration] = &[
    (1, include_str!("../../migrations/postgres/1_records.sql")),
    (2, include_str!("../../migrations/postgres/2_withdrawals.sql")),
    (3, include_str!("../../migrations/postgres/3_steps.sql")),
];

/// Returns the place of a table: the given schema, or the schema in which the table is found now, or else the schema in
/// which it would be created. It is looked up once, because an operation's statement or the application may change a
/// session's search path later.
///
/// # Errors
/// Returns the server's error, or reports that no schema of the search path exists.
pub(crate) async fn find(
    connection: &mut AsyncPgConnection,
    schema: Option<Name>,
    table: Name,
) -> Result<Place, String> {
    const FOUND: &str = "SELECT coalesce((SELECT n.nspname::text FROM pg_class AS c JOIN pg_namespace AS n \
                         ON n.oid = c.relnamespace WHERE c.oid = to_regclass(?) AND c.relpersistence <> 't'), \
                         current_schema()::text, '')";
    if let Some(schema) = schema {
        return Ok(Place::new(QUOTE, schema.to_string(), table));
    }
    let name = quoted(QUOTE, &table.to_string());
    let found: QueryResult<String> = Fragment::<Text, _>::new(FOUND, &[Bind::Text(&name)]).get_result(connection).await;
    match found {
        Ok(schema) if schema.is_empty() => {
            Err("no schema of the connection's search path exists: make one, or name one by `schema`".to_owned())
        }
        // A question mark marks a statement's parameters.
        Ok(schema) if schema.contains('?') => Err("its schema's name contains a question mark".to_owned()),
        Ok(schema) => Ok(Place::new(QUOTE, schema, table)),
        Err(error) => Err(error.to_string()),
    }
}

/// Creates the place's schema if it is missing. Call it inside a transaction. A role without the right to create a
/// schema may still own one.
pub(crate) async fn make_schema(connection: &mut AsyncPgConnection, place: &Place) -> QueryResult<()> {
    let schema = quoted(QUOTE, place.within());
    let exists: bool = Fragment::<Bool, _>::new("SELECT to_regnamespace(?) IS NOT NULL", &[Bind::Text(&schema)])
        .get_result(connection)
        .await?;
    if exists {
        return Ok(());
    }
    // Without the lock, one of two sessions that create the schema at once would fail: PostgreSQL checks whether it
    // exists before it waits.
    let lock = lock_number(&format!("oncekey schema {schema}")).cast_signed();
    let text = format!("SELECT pg_advisory_xact_lock({lock}); CREATE SCHEMA IF NOT EXISTS {schema}");
    connection.batch_execute(&text).await
}

/// Returns whether a table with that quoted name exists.
pub(crate) async fn exists(connection: &mut AsyncPgConnection, table: &str) -> QueryResult<bool> {
    Fragment::<Bool, _>::new("SELECT to_regclass(?) IS NOT NULL", &[Bind::Text(table)]).get_result(connection).await
}

/// Returns the number of an advisory lock on the table.
pub(super) fn lock(place: &Place, purpose: &str) -> i64 {
    lock_number(&format!("oncekey {purpose} {}", place.qualified())).cast_signed()
}

fn statements(place: &Place) -> Statements {
    place.statements(MIGRATIONS, "(version bigint PRIMARY KEY)", "INSERT")
}

/// Returns the whole schema as statements, for tables with their default names in the search path.
pub(crate) fn schema_text() -> String {
    statements(&Place::anywhere(QUOTE, Name::fixed("oncekey_records"))).text()
}

/// The tables, migrated in one transaction under an advisory lock.
pub(super) struct Tables<'a> {
    pub(super) connection: &'a mut AsyncPgConnection,
    pub(super) place: &'a Place,
}

impl Schema for Tables<'_> {
    fn statements(&self) -> Statements {
        statements(self.place)
    }

    fn table(&self) -> String {
        self.place.qualified()
    }

    async fn version(&mut self) -> QueryResult<i64> {
        let versions = self.place.beside("_migrations");
        if !exists(self.connection, &versions).await? {
            return Ok(0);
        }
        let text = format!("SELECT coalesce(max(version), 0) FROM {versions}");
        Fragment::<BigInt, Bind<'_>>::new(&text, &[]).get_result(self.connection).await
    }

    async fn lock(&mut self) -> QueryResult<()> {
        AnsiTransactionManager::begin_transaction(self.connection).await?;
        let lock = format!("SELECT pg_advisory_xact_lock({})", lock(self.place, "migration"));
        self.connection.batch_execute(&lock).await?;
        make_schema(self.connection, self.place).await
    }

    async fn unlock(&mut self, done: bool) -> QueryResult<()> {
        if done {
            return AnsiTransactionManager::commit_transaction(self.connection).await;
        }
        AnsiTransactionManager::rollback_transaction(self.connection).await
    }

    async fn execute(&mut self, text: &str) -> QueryResult<()> {
        self.connection.batch_execute(text).await
    }
}
