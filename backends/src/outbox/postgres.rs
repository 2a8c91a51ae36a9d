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
use super::{OutboxError, Parked, Posted, Row, Unfit, failed, oncekey_outbox, parked, posted, row};
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
/// The number of an advisory lock, of this library in any version.
const MAKING: i64 = 0x006f_6e63_656b_6579;

/// The tables as statements, in the search path.
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
    // Of ten processes that start at once one makes the tables, and nine find them.
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
        PostgresOutboxBuilder { pool: pool.into(), schema: None, migrate: true }
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
        let binds = [Bind::Text(message.id()), Bind::Text(topic), Bind::Bytes(message.payload()), Bind::Text(&headers)];
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
