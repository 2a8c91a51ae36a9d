//! The outbox in PostgreSQL.

use std::sync::Arc;
use std::time::Duration;

use diesel::QueryResult;
use diesel::sql_types::{BigInt, Binary};
use diesel_async::pooled_connection::deadpool::{Object, Pool};
use diesel_async::{AsyncConnection as _, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection as _};
use oncekey::consumer::Message;

use super::relay::{Relay, Table};
use super::sql::{PARKED, RELAYS, Texts, outbox_by_texts};
use super::{OutboxError, Parked, Posted, Row, Unfit, failed, oncekey_outbox, parked, posted, row};
use crate::postgres::migration::{make_schema, quoted, schema_of};
use crate::postgres::table::Bind;
use crate::sql::{Fragment, InvalidName, Name, lend_clean};

/// An outbox in PostgreSQL, in the table `oncekey_outbox`. See the [module](super).
#[derive(Clone)]
pub struct PostgresOutbox {
    pool: Pool<AsyncPgConnection>,
    texts: Arc<Texts>,
}

/// Options for [`PostgresOutbox::builder`].
#[must_use]
pub struct PostgresOutboxBuilder {
    pool: Pool<AsyncPgConnection>,
    schema: Option<Name>,
    migrate: bool,
}

impl PostgresOutboxBuilder {
    /// The schema of the tables, made if there is none. Default: the one in which the connection's search path finds
    /// `oncekey_outbox` at the opening, or else the first.
    ///
    /// # Errors
    /// [`InvalidName`] for all but a plain name.
    pub fn schema(mut self, schema: &str) -> Result<Self, InvalidName> {
        self.schema = Some(Name::new(schema)?);
        Ok(self)
    }

    /// Whether [`open`](Self::open) makes the tables; without, they must be there. Default: true.
    pub fn migrate(mut self, migrate: bool) -> Self {
        self.migrate = migrate;
        self
    }

    /// Looks the tables up, and makes those that are missing.
    ///
    /// # Cancel safety
    /// What was made is rolled back.
    ///
    /// # Errors
    /// The server can't be reached, or refuses; the tables are missing and were not to be made.
    pub async fn open(self) -> Result<PostgresOutbox, OutboxError> {
        let connection = self.pool.get().await.map_err(failed("connecting"))?;
        let (schema, migrate) = (self.schema.map(|schema| schema.to_string()), self.migrate);
        let schema = lend_clean(connection, Object::take, async |connection: &mut AsyncPgConnection| {
            let schema = match schema {
                Some(schema) => schema,
                None => schema_of(connection, TABLE).await.map_err(failed("looking for the table"))?,
            };
            bring_up_to_date(connection, &schema, migrate).await?;
            Ok::<_, OutboxError>(schema)
        });
        let schema = schema.await?;
        let name = |suffix: &str| name_of(&schema, suffix);
        let texts = Texts::new(name(""), name(PARKED), name(RELAYS), NOW, |text| format!("convert_to({text}, 'UTF8')"));
        Ok(PostgresOutbox { pool: self.pool, texts: Arc::new(texts) })
    }
}

impl std::fmt::Debug for PostgresOutboxBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresOutboxBuilder").field("schema", &self.schema).finish_non_exhaustive()
    }
}

const TABLE: &str = "oncekey_outbox";
const TABLES: [(&str, &str); 3] = [
    ("", include_str!("../../migrations/outbox/postgres.sql")),
    (PARKED, include_str!("../../migrations/outbox/postgres_parked.sql")),
    (RELAYS, include_str!("../../migrations/outbox/postgres_relays.sql")),
];
const NOW: &str = "(extract(epoch from clock_timestamp()) * 1000)::bigint";
/// The number of an advisory lock, of this library in any version.
const MAKING: i64 = 0x006f_6e63_656b_6579;

fn name_of(schema: &str, suffix: &str) -> String {
    format!("{}.{}", quoted(schema), quoted(&format!("{TABLE}{suffix}")))
}

/// The tables as statements, in the search path.
pub(crate) fn schema_text() -> String {
    TABLES
        .map(|(suffix, text)| {
            text.replace("{table}", &quoted(&format!("{TABLE}{suffix}"))).trim_end().to_owned() + ";\n"
        })
        .concat()
}

async fn is_there(connection: &mut AsyncPgConnection, table: &str) -> Result<bool, OutboxError> {
    let binds = [Bind::Text(table)];
    let text = "SELECT to_regclass(?) IS NOT NULL";
    let found = Fragment::<diesel::sql_types::Bool, _>::new(text, &binds).get_result(connection).await;
    found.map_err(failed("looking for the tables"))
}

async fn bring_up_to_date(connection: &mut AsyncPgConnection, schema: &str, migrate: bool) -> Result<(), OutboxError> {
    let mut missing = Vec::new();
    for (suffix, text) in TABLES {
        let table = name_of(schema, suffix);
        if !is_there(connection, &table).await? {
            missing.push((table, text));
        }
    }
    let [(first, _), ..] = missing.as_slice() else { return Ok(()) };
    if !migrate {
        let reason = format!("the table {first} is missing, and migrations are switched off");
        return Err(OutboxError { what: "looking for the tables", reason });
    }
    // Of ten processes that start at once one makes the tables, and nine find them.
    let made = connection.transaction(async |tx| {
        tx.batch_execute(&format!("SELECT pg_advisory_xact_lock({MAKING})")).await?;
        make_schema(tx, schema).await?;
        for (table, text) in &missing {
            tx.batch_execute(&text.replace("{table}", table)).await?;
        }
        QueryResult::Ok(())
    });
    made.await.map_err(failed("making the tables"))
}

impl PostgresOutbox {
    /// Looks the tables up, and makes them if they are missing. The pool is the application's, or
    /// [one of the store's](crate::PostgresBackend::pool_of_its_own); the relay borrows a connection of it for each of its
    /// statements.
    ///
    /// # Errors
    /// The server can't be reached, or refuses.
    pub async fn open(pool: Pool<AsyncPgConnection>) -> Result<Self, OutboxError> {
        Self::builder(pool).open().await
    }

    /// Options for opening an outbox.
    ///
    /// ```no_run
    /// # async fn example(pool: diesel_async::pooled_connection::deadpool::Pool<diesel_async::AsyncPgConnection>)
    /// # -> Result<(), Box<dyn std::error::Error>> {
    /// use oncekey_backends::outbox::PostgresOutbox;
    ///
    /// let outbox = PostgresOutbox::builder(pool).schema("shop")?.migrate(false).open().await?;
    /// # Ok(()) }
    /// ```
    pub fn builder(pool: Pool<AsyncPgConnection>) -> PostgresOutboxBuilder {
        PostgresOutboxBuilder { pool, schema: None, migrate: true }
    }

    /// Writes a message by the connection of a transaction: it is published if that commits. The table is the one that the
    /// connection's search path finds; [`post`](Self::post) goes by the outbox's own.
    ///
    /// # Errors
    /// The database's; the table is missing if the outbox was never opened.
    pub async fn write(connection: &mut AsyncPgConnection, topic: &str, message: &Message) -> QueryResult<()> {
        let row = row(topic, message)?;
        diesel::insert_into(oncekey_outbox::table).values(row).execute(connection).await.map(drop)
    }

    /// Writes a message into this outbox's table, whatever the search path of the transaction's connection is by now.
    ///
    /// # Errors
    /// The database's.
    pub async fn post(&self, connection: &mut AsyncPgConnection, topic: &str, message: &Message) -> QueryResult<()> {
        let headers = super::headers_of(message)?;
        let binds = [Bind::Text(message.id()), Bind::Text(topic), Bind::Blob(message.payload()), Bind::Text(&headers)];
        Fragment::<(), _>::new(&self.texts.post, &binds).execute(connection).await.map(drop)
    }

    /// A relay of what is written here.
    pub fn relay(&self) -> Relay<Self> {
        Relay::new(self.clone())
    }

    /// A commit is flushed before it is shown.
    async fn await_flush(&self, _: &mut AsyncPgConnection) -> QueryResult<()> {
        Ok(())
    }
}

fn bytes(text: &str) -> Bind<'_> {
    Bind::Text(text)
}

outbox_by_texts! {
    outbox: PostgresOutbox,
    connection: AsyncPgConnection,
    bytes: bytes,
    number: Bind::BigInt,
    insert: ("INSERT", "ON CONFLICT (id) DO NOTHING"),
}
