//! The table's versions.

use diesel::QueryResult;
use diesel::sql_types::{BigInt, Bool, Text};
use diesel_async::{
    AnsiTransactionManager, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection as _, TransactionManager as _,
};

use crate::migration::{Migration, Schema, Statements};
use crate::sql::{Bind, Fragment, Name, Place, lock_number, quoted};

/// By which PostgreSQL quotes identifiers.
pub(crate) const QUOTE: char = '"';

const MIGRATIONS: &[Migration] = &[
    (1, include_str!("../../migrations/postgres/1_records.sql")),
    (2, include_str!("../../migrations/postgres/2_withdrawals.sql")),
    (3, include_str!("../../migrations/postgres/3_steps.sql")),
];

/// The place of a table: the schema that is given, or the one in which the table is found now, or else the one in which it
/// would be made. It is looked up once: a session's search path may change later, by an operation's statement or by the
/// application's.
///
/// # Errors
/// The server's, or that no schema of the search path exists.
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
        // A statement's parameters are marked by it.
        Ok(schema) if schema.contains('?') => Err("its schema's name contains a question mark".to_owned()),
        Ok(schema) => Ok(Place::new(QUOTE, schema, table)),
        Err(error) => Err(error.to_string()),
    }
}

/// Makes the place's schema if it is missing; call it inside a transaction. A role that may not make one may own one.
pub(crate) async fn make_schema(connection: &mut AsyncPgConnection, place: &Place) -> QueryResult<()> {
    let schema = quoted(QUOTE, place.within());
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

/// Whether there is a table of that quoted name.
pub(crate) async fn exists(connection: &mut AsyncPgConnection, table: &str) -> QueryResult<bool> {
    Fragment::<Bool, _>::new("SELECT to_regclass(?) IS NOT NULL", &[Bind::Text(table)]).get_result(connection).await
}

/// The number of an advisory lock on the table.
pub(super) fn lock(place: &Place, purpose: &str) -> i64 {
    lock_number(&format!("oncekey {purpose} {}", place.qualified())).cast_signed()
}

fn statements(place: &Place) -> Statements {
    place.statements(MIGRATIONS, "(version bigint PRIMARY KEY)", "INSERT")
}

/// All of it as statements, for tables with their default names in the search path.
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
