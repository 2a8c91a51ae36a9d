//! The public handle of the PostgreSQL backend, its options, and how the store is opened.

use std::sync::Arc;
use std::time::Duration;

use diesel::QueryResult;
use diesel::result::ConnectionResult;
use diesel_async::AsyncPgConnection;
use oncekey::backend::{Changed, Watch};

use super::PostgresOpenError;
use super::connect::{self, Config};
use super::doctor::examine;
use super::migration::{self, Tables};
use super::pooler::refuse_pooler;
use super::table::Postgres;
use super::texts::Texts;
use super::watch::{Watchers, channel, watch};
use crate::Finding;
use crate::migration::bring_up_to_date;
use crate::sql::{Connections, InvalidName, Name, Place, Server, Wanted, sql_backend};

sql_backend! {
    /// Stores records in PostgreSQL, through Diesel. It does not need libpq.
    ///
    /// The backend combines the requests that are waiting on an arbiter into a few statements. One statement claims all
    /// new keys, and one completes all claims of their owners. For the remaining requests, the backend reads the
    /// batch's rows, decides, and writes with one INSERT, one UPDATE and one DELETE, each of which applies only to rows
    /// that have not changed since. A claim's main cost is its commit, and one commit serves many requests. A replay
    /// writes nothing. All times come from the server's clock.
    ///
    /// **Each arbiter has its own connections** (see [`PostgresBuilder::pool_size`]), because a connection lives on the
    /// runtime that opened it. An application that has a Diesel pool can [use that pool](Self::from_pool) instead.
    ///
    /// An operation that is [completed in a transaction](oncekey::Engine::run_in_async_transaction) gets the
    /// [`AsyncPgConnection`]: its rows and its outcome commit together, at READ COMMITTED. It may use savepoints
    /// (`transaction` inside), but must not end the transaction itself. If PostgreSQL aborts the transaction in favor
    /// of another one (a deadlock, a serialization failure), the backend rolls it back and runs it again, up to five
    /// times.
    ///
    /// The backend learns of other processes' changes through LISTEN and NOTIFY, on one more connection for each
    /// arbiter that has waiting callers. A pooler that shares connections by transaction (PgBouncer) supports neither
    /// these nor prepared statements, so the backend refuses it: use session mode.
    ///
    /// ```no_run
    /// # async fn open() -> Result<(), Box<dyn std::error::Error>> {
    /// use oncekey::Engine;
    /// use oncekey_backends::postgres::PostgresBackend;
    ///
    /// let backend = PostgresBackend::open("postgres://shop@localhost/shop").await?;
    /// let engine = Engine::builder(backend).start()?;
    /// # Ok(()) }
    /// ```
    pub struct PostgresBackend;

    /// Options for [`PostgresBackend::builder`]. The defaults suit most applications.
    ///
    /// ```no_run
    /// # async fn open() -> Result<(), Box<dyn std::error::Error>> {
    /// use oncekey_backends::postgres::PostgresBackend;
    ///
    /// let backend = PostgresBackend::builder("postgres://shop@db.example/shop?sslmode=verify-full")
    ///     .schema("oncekey")?
    ///     .table("records")?
    ///     .pool_size(10)
    ///     .open()
    ///     .await?;
    /// # Ok(()) }
    /// ```
    pub struct PostgresBuilder;

    dialect: Postgres,
    error: PostgresOpenError,
    connection: AsyncPgConnection,
    path: "postgres",
    blocking: "diesel::PgConnection" in pg::Pg,
    /// Returns options for connecting to a URL, `postgres://USER:PASSWORD@HOST:PORT/DATABASE`. A server on another
    /// machine must use TLS, with a certificate that the system trusts or that `?sslrootcert=PATH` verifies.
    /// `?sslmode=disable` and `?sslmode=require` (encrypted, unverified) override this.
    url,
    /// The backend does not change the settings of the pool's connections. Set `plan_cache_mode = force_custom_plan`:
    /// otherwise PostgreSQL may keep using a plan from when the table was empty. Set `lock_timeout` to a second or two,
    /// because a row that another session has locked delays the other rows of its batch for that long.
    /// [`open`](PostgresBuilder::open) warns about unsuitable settings, as [`doctor`](Self::doctor) reports them.
    pool,
    /// Sets the table's name. Two more tables belong to it: `NAME_migrations` records its migrations, and `NAME_steps`
    /// holds its steps. Default: `oncekey_records`.
    table,
    /// # Cancel safety
    /// An interrupted migration is rolled back.
    open,
    {
        async fn watch(&self, message: Watch) -> Result<Changed, StoreError> {
            watch(&self.0.core, &self.0.per_arbiter, &channel(self.0.place()), message).await
        }
    }
}

impl PostgresBuilder {
    /// Sets the schema of the table; [`open`](Self::open) creates it if it is missing. Default: the first schema in the
    /// connection's `search_path`.
    ///
    /// # Errors
    /// Returns [`InvalidName`] unless it is a plain name.
    pub fn schema(mut self, schema: &str) -> Result<Self, InvalidName> {
        self.0.wanted.schema = Some(Name::new(schema)?);
        Ok(self)
    }
}

impl Server for Postgres {
    type Config = Config;
    type Found = Place;
    type PerArbiter = Arc<Watchers>;
    type Error = PostgresOpenError;

    fn read_url(url: &str) -> Result<Config, PostgresOpenError> {
        connect::read_url(url)
    }

    fn connect_timeout(config: &Config) -> Duration {
        config.timeout()
    }

    async fn connect(config: Config, is_for_steps: bool) -> ConnectionResult<AsyncPgConnection> {
        connect::connect(config, is_for_steps).await
    }

    fn unreachable(reason: String) -> PostgresOpenError {
        PostgresOpenError::failed(reason)
    }

    const TRIES_TWO: bool = true;

    async fn try_two(one: &mut AsyncPgConnection, other: &mut AsyncPgConnection) -> Result<(), PostgresOpenError> {
        refuse_pooler(one, other).await
    }

    async fn prepare(connection: &mut AsyncPgConnection, wanted: Wanted, _: bool) -> Result<Place, PostgresOpenError> {
        let table = wanted.table.to_string();
        let place = migration::find(connection, wanted.schema, wanted.table).await;
        let place = place.map_err(|reason| PostgresOpenError::Migration { table, reason }.or_pooler())?;
        let migrated = bring_up_to_date(&mut Tables { connection, place: &place }, wanted.migrate).await;
        migrated.map_err(|error| PostgresOpenError::not_migrated(place.qualified(), error).or_pooler())?;
        Ok(place)
    }

    async fn examine(connection: &mut AsyncPgConnection, place: &Place, owns: bool) -> QueryResult<Vec<Finding>> {
        examine(connection, place, owns).await
    }

    fn place(place: &Place) -> &Place {
        place
    }

    fn new(place: &Place, connections: Connections<AsyncPgConnection>) -> Self {
        let purge_lock = migration::lock(place, "purge");
        let texts = Texts::new(&place.qualified(), &place.steps(), &channel(place), purge_lock);
        Self { connections, texts }
    }
}
