//! The outbox in PostgreSQL.

use std::sync::Arc;
use std::time::Duration;

use diesel::QueryResult;
use diesel::sql_types::{BigInt, Binary};
use diesel_async::pooled_connection::deadpool::Pool;
use diesel_async::{AsyncConnection as _, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection as _};
use oncekey::consumer::Message;

use super::relay::{Relay, Table};
use super::sql::{PARKED, RELAYS, Texts, outbox_by_texts};
use super::{OutboxError, OutboxMessage, Parked, Row, Unfit, failed, oncekey_outbox, parked, posted, row};
use crate::postgres::migration::{QUOTE, exists, find, make_schema};
use crate::postgres::texts::NOW;
use crate::sql::{Bind, DieselPool, Fragment, InvalidName, Name, Place, lend_clean};

/// An outbox in PostgreSQL, in the table `oncekey_outbox`. See the [module](super).
#[derive(Clone)]
pub struct PostgresOutbox {
    pool: DieselPool<AsyncPgConnection>,
    texts: Arc<Texts>,
}

/// Options for [`PostgresOutbox::builder`].
#[must_use]
pub struct PostgresOutboxBuilder {
    pool: DieselPool<AsyncPgConnection>,
    schema: Option<Name>,
    migrate: bool,
}

impl PostgresOutboxBuilder {
    /// Sets the schema of the tables; [`open`](Self::open) creates it if it is missing. Default: the schema in which
    /// the connection's search path finds `oncekey_outbox` at opening, or else the first one.
    ///
    /// # Errors
    /// Returns [`InvalidName`] unless it is a plain name.
    pub fn schema(mut self, schema: &str) -> Result<Self, InvalidName> {
        self.schema = Some(Name::new(schema)?);
        Ok(self)
    }

    /// Sets whether [`open`](Self::open) creates the tables. If false, they must already exist. Default: true.
    pub fn migrate(mut self, migrate: bool) -> Self {
        self.migrate = migrate;
        self
    }

    /// Looks the tables up, and creates missing tables.
    ///
    /// # Cancel safety
    /// Dropping the future rolls back what it created.
    ///
    /// # Errors
    /// Fails if the server can't be reached or refuses a statement, or if tables are missing and `migrate` is false.
    pub async fn open(self) -> Result<PostgresOutbox, OutboxError> {
        let connection = self.pool.lend().await.map_err(failed("connecting"))?;
        let (schema, migrate) = (self.schema, self.migrate);
        let place = lend_clean(connection, async |connection: &mut AsyncPgConnection| {
            let place = find(connection, schema, Name::fixed(TABLE)).await.map_err(failed("looking for the table"))?;
            bring_up_to_date(connection, &place, migrate).await?;
            Ok::<_, OutboxError>(place)
        });
        let place = place.await?;
        let name = |suffix: &str| place.beside(suffix);
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
/// The number of an advisory lock, the same in every version of this library.
const MAKING: i64 = 0x006f_6e63_656b_6579;

/// Returns the tables as statements, for the search path.
pub(crate) fn schema_text() -> String {
    let place = Place::anywhere(QUOTE, Name::fixed(TABLE));
    TABLES.map(|(suffix, text)| text.replace("{table}", &place.beside(suffix)).trim_end().to_owned() + ";\n").concat()
}

async fn bring_up_to_date(connection: &mut AsyncPgConnection, place: &Place, migrate: bool) -> Result<(), OutboxError> {
    let mut missing = Vec::new();
    for (suffix, text) in TABLES {
        let table = place.beside(suffix);
        if !exists(connection, &table).await.map_err(failed("looking for the tables"))? {
            missing.push((table, text));
        }
    }
    let [(first, _), ..] = missing.as_slice() else { return Ok(()) };
    if !migrate {
        let reason = format!("the table {first} is missing, and migrations are switched off");
        return Err(OutboxError { what: "looking for the tables", reason });
    }
    // If ten processes start at once, one creates the tables and nine find them.
    let made = connection.transaction(async |tx| {
        tx.batch_execute(&format!("SELECT pg_advisory_xact_lock({MAKING})")).await?;
        make_schema(tx, place).await?;
        for (table, text) in &missing {
            tx.batch_execute(&text.replace("{table}", table)).await?;
        }
        QueryResult::Ok(())
    });
    made.await.map_err(failed("making the tables"))
}

impl PostgresOutbox {
    /// Looks the tables up, and creates them if they are missing. The pool is the application's, or [one of the
    /// store's](crate::PostgresBackend::pool). The relay borrows a connection for each of its statements.
    ///
    /// # Errors
    /// Fails if the server can't be reached or refuses a statement.
    pub async fn open(pool: Pool<AsyncPgConnection>) -> Result<Self, OutboxError> {
        Self::builder(pool).open().await
    }

    /// Returns options for opening an outbox.
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
        PostgresOutboxBuilder { pool: pool.into(), schema: None, migrate: true }
    }

    /// Writes a message on the connection of a transaction: it is published if the transaction commits. This uses the
    /// table that the connection's search path finds; [`post`](Self::post) uses the outbox's own table.
    ///
    /// # Errors
    /// Returns the database's error. The table is missing if the outbox was never opened.
    pub async fn write(connection: &mut AsyncPgConnection, topic: &str, message: &Message) -> QueryResult<()> {
        let row = row(topic, message)?;
        diesel::insert_into(oncekey_outbox::table).values(row).execute(connection).await.map(drop)
    }

    /// Writes a message into this outbox's table, whatever the current search path of the transaction's connection is.
    ///
    /// # Errors
    /// Returns the database's error.
    pub async fn post(&self, connection: &mut AsyncPgConnection, topic: &str, message: &Message) -> QueryResult<()> {
        let headers = super::headers_of(message)?;
        let binds = [Bind::Text(message.id()), Bind::Text(topic), Bind::Bytes(message.payload()), Bind::Text(&headers)];
        Fragment::<(), _>::new(&self.texts.post, &binds).execute(connection).await.map(drop)
    }

    /// Returns a relay for this outbox.
    pub fn relay(&self) -> Relay<Self> {
        Relay::new(self.clone())
    }

    /// PostgreSQL flushes a commit before it shows it to others.
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
