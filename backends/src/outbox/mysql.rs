//! The outbox in MySQL or MariaDB.

use std::sync::Arc;
use std::time::Duration;

use diesel::QueryResult;
use diesel::sql_types::{BigInt, Binary};
use diesel_async::pooled_connection::deadpool::Pool;
use diesel_async::{AsyncConnection as _, AsyncMysqlConnection, RunQueryDsl, SimpleAsyncConnection as _};
use oncekey::consumer::Message;

use super::relay::{Relay, Table};
use super::sql::{PARKED, RELAYS, Texts, outbox_by_texts};
use super::{OutboxError, OutboxMessage, Parked, Row, Unfit, failed, oncekey_outbox, parked, posted, row};
use crate::mysql::flush;
use crate::mysql::migration::{exists, find};
use crate::mysql::table::NOW;
use crate::sql::{Bind, DieselPool, Fragment, Name, Place, lend_clean};

/// An outbox in MySQL or MariaDB, in the table `oncekey_outbox`. See the [module](super).
#[derive(Clone)]
pub struct MysqlOutbox {
    pool: DieselPool<AsyncMysqlConnection>,
    texts: Arc<Texts>,
    /// The table whose commits wait for the log's flush, if the server shows a commit before it flushes the log.
    flushes: Option<Arc<str>>,
}

/// Options for [`MysqlOutbox::builder`].
#[must_use]
pub struct MysqlOutboxBuilder {
    pool: DieselPool<AsyncMysqlConnection>,
    migrate: bool,
}

impl MysqlOutboxBuilder {
    /// Sets whether [`open`](Self::open) creates the tables. If false, they must already exist. Default: true.
    pub fn migrate(mut self, migrate: bool) -> Self {
        self.migrate = migrate;
        self
    }

    /// Looks the tables up in the database that the pool's connections use, and creates missing tables.
    ///
    /// # Cancel safety
    /// The next opening creates the tables that are still missing.
    ///
    /// # Errors
    /// Fails if the server can't be reached or refuses a statement, or if tables are missing and `migrate` is false.
    pub async fn open(self) -> Result<MysqlOutbox, OutboxError> {
        let connection = self.pool.lend().await.map_err(failed("connecting"))?;
        let migrate = self.migrate;
        let opened = lend_clean(connection, async |connection: &mut AsyncMysqlConnection| {
            let place = find(connection, Name::fixed(TABLE)).await.map_err(failed("looking for the table"))?;
            bring_up_to_date(connection, &place, migrate).await?;
            let shows_too_early = flush::shows_too_early(connection).await;
            Ok((place, shows_too_early.map_err(failed("asking for the server's settings"))?))
        });
        let (place, shows_too_early) = opened.await?;
        let name = |suffix: &str| place.beside(suffix);
        let texts = Texts::new(name(""), name(PARKED), name(RELAYS), NOW, |text| format!("CAST({text} AS BINARY)"));
        let flushes = shows_too_early.then(|| name(FLUSHES).into());
        Ok(MysqlOutbox { pool: self.pool, texts: Arc::new(texts), flushes })
    }
}

impl std::fmt::Debug for MysqlOutboxBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MysqlOutboxBuilder").field("migrate", &self.migrate).finish_non_exhaustive()
    }
}

const TABLE: &str = "oncekey_outbox";
const FLUSHES: &str = "_flushes";
const TABLES: [(&str, &str); 4] = [
    ("", include_str!("../../migrations/outbox/mysql.sql")),
    (PARKED, include_str!("../../migrations/outbox/mysql_parked.sql")),
    (RELAYS, include_str!("../../migrations/outbox/mysql_relays.sql")),
    (FLUSHES, flush::TABLE),
];

fn text_of(text: &str, name: &str) -> String {
    text.replace("{table}", name).replace("{flushes}", name)
}

/// Returns the tables as statements, for the current database.
pub(crate) fn schema_text() -> String {
    TABLES.map(|(suffix, text)| text_of(text, &format!("`{TABLE}{suffix}`")).trim_end().to_owned() + ";\n").concat()
}

async fn bring_up_to_date(
    connection: &mut AsyncMysqlConnection,
    place: &Place,
    migrate: bool,
) -> Result<(), OutboxError> {
    for (suffix, text) in TABLES {
        let is_there = exists(connection, place, suffix).await;
        if is_there.map_err(failed("looking for the tables"))? {
            continue;
        }
        let table = place.beside(suffix);
        if !migrate {
            let reason = format!("the table {table} is missing, and migrations are switched off");
            return Err(OutboxError { what: "looking for the tables", reason });
        }
        let made = connection.batch_execute(&text_of(text, &table)).await;
        made.map_err(failed("making the tables"))?;
    }
    Ok(())
}

impl MysqlOutbox {
    /// Looks the tables up, and creates them if they are missing. One of them is for flushes
    /// (`oncekey_outbox_flushes`), because a server without a binary log shows messages whose commit a crash can still
    /// undo. The pool is the application's, or [one of the store's](crate::MysqlBackend::pool). The relay
    /// borrows a connection for each of its statements.
    ///
    /// # Errors
    /// Fails if the server can't be reached or refuses a statement.
    pub async fn open(pool: Pool<AsyncMysqlConnection>) -> Result<Self, OutboxError> {
        Self::builder(pool).open().await
    }

    /// Returns options for opening an outbox.
    ///
    /// ```no_run
    /// # async fn example(pool: diesel_async::pooled_connection::deadpool::Pool<diesel_async::AsyncMysqlConnection>)
    /// # -> Result<(), Box<dyn std::error::Error>> {
    /// use oncekey_backends::outbox::MysqlOutbox;
    ///
    /// let outbox = MysqlOutbox::builder(pool).migrate(false).open().await?;
    /// # Ok(()) }
    /// ```
    pub fn builder(pool: Pool<AsyncMysqlConnection>) -> MysqlOutboxBuilder {
        MysqlOutboxBuilder { pool: pool.into(), migrate: true }
    }

    /// Writes a message on the connection of a transaction: it is published if the transaction commits. This uses the
    /// table in the connection's current database; [`post`](Self::post) uses the outbox's own table.
    ///
    /// # Errors
    /// Returns the database's error. The table is missing if the outbox was never opened.
    pub async fn write(connection: &mut AsyncMysqlConnection, topic: &str, message: &Message) -> QueryResult<()> {
        let row = row(topic, message)?;
        diesel::insert_into(oncekey_outbox::table).values(row).execute(connection).await.map(drop)
    }

    /// Writes a message into this outbox's table, whatever database the transaction's connection currently uses.
    ///
    /// # Errors
    /// Returns the database's error.
    pub async fn post(&self, connection: &mut AsyncMysqlConnection, topic: &str, message: &Message) -> QueryResult<()> {
        let headers = super::headers_of(message)?;
        let binds = [bytes(message.id()), bytes(topic), Bind::Bytes(message.payload()), bytes(&headers)];
        Fragment::<(), _>::new(&self.texts.post, &binds).execute(connection).await.map(drop)
    }

    /// Returns a relay for this outbox.
    pub fn relay(&self) -> Relay<Self> {
        Relay::new(self.clone())
    }

    async fn await_flush(&self, connection: &mut AsyncMysqlConnection) -> QueryResult<()> {
        match &self.flushes {
            Some(flushes) => flush::await_flush(connection, flushes).await,
            None => Ok(()),
        }
    }
}

fn bytes(text: &str) -> Bind<'_> {
    Bind::Bytes(text.as_bytes())
}

outbox_by_texts! {
    outbox: MysqlOutbox,
    connection: AsyncMysqlConnection,
    bytes: bytes,
    number: Bind::BigInt,
    insert: ("INSERT IGNORE", ""),
}
