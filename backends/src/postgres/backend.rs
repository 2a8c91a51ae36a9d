//! The handle, its options, and how the store is opened.

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
    /// A store of records in PostgreSQL, by Diesel. No libpq is needed.
    ///
    /// The backend combines the requests that are waiting on an arbiter into a few statements. One statement claims all keys
    /// that are new, and one completes all claims of their owners. Where that meets anything else, the backend reads the
    /// batch's rows, decides, and writes with one INSERT, one UPDATE and one DELETE, each of which applies only to rows that
    /// have not changed since. So one commit, which is the cost of a claim, serves many requests. A replay writes nothing.
    /// Time is the server's.
    ///
    /// **Each arbiter has connections of its own** (see [`PostgresBuilder::pool_size`]), since a connection lives on the
    /// runtime that opened it. An application that has a Diesel pool [hands it over](Self::from_pool) instead.
    ///
    /// An operation that is [completed in a transaction](oncekey::Engine::run_in_async_transaction) gets the
    /// [`AsyncPgConnection`]: its rows and its outcome are committed together, at READ COMMITTED. It may
    /// use savepoints (`transaction` inside), and must not end the transaction by itself. When PostgreSQL gives it up for
    /// another's sake (a deadlock, a serialization failure) it is rolled back and done again, up to five times.
    ///
    /// Other processes' changes are told by LISTEN and NOTIFY, on one more connection for each arbiter on which somebody
    /// waits. A pooler that shares connections by transaction (PgBouncer) passes neither them nor prepared statements: it is
    /// refused; use it in session mode.
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

    /// Options for [`PostgresBackend::builder`]. Each has a default that is right for most.
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
    /// Options for connecting to a URL, `postgres://USER:PASSWORD@HOST:PORT/DATABASE`. Unless the server is on this
    /// machine it must speak TLS and show a certificate that the system trusts, or one that `?sslrootcert=PATH` does;
    /// `?sslmode=disable` and `?sslmode=require` (encrypted, unverified) say otherwise.
    url,
    /// Its connections stay as they are set up. `SET plan_cache_mode = force_custom_plan` is right for them: otherwise a
    /// plan made while the table was empty is kept for a while. Set `lock_timeout` to a second or two: a row that another
    /// session has locked keeps the other rows of its batch waiting for as long. [`open`](PostgresBuilder::open) warns of
    /// what is not right, as [`doctor`](Self::doctor) says it.
    pool,
    /// The table's name. Its migrations are recorded beside it, in `NAME_migrations`, and its steps are in `NAME_steps`.
    /// Default: `oncekey_records`.
    table,
    /// # Cancel safety
    /// A migration that is interrupted is rolled back.
    open,
    {
        async fn watch(&self, message: Watch) -> Result<Changed, StoreError> {
            watch(&self.0.core, &self.0.per_arbiter, &channel(self.0.place()), message).await
        }
    }
}

impl PostgresBuilder {
    /// The schema of the table, made if there is none. Default: the first in the connection's `search_path`.
    ///
    /// # Errors
    /// [`InvalidName`] for all but a plain name.
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
