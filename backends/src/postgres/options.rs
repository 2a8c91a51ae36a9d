//! How the records are reached.

use std::fmt;

#[cfg(feature = "blocking")]
use diesel::connection::{AnsiTransactionManager, LoadConnection};
use diesel_async::AsyncPgConnection;

#[cfg(feature = "blocking")]
use super::table::Postgres;
use super::{PostgresBackend, PostgresOpenError};
#[cfg(feature = "blocking")]
use crate::sql::Transactions;
use crate::sql::{DieselPool, InvalidName, Name};

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
#[must_use]
pub struct PostgresBuilder {
    pub(super) source: Source,
    pub(super) schema: Option<Name>,
    pub(super) table: Name,
    pub(super) pool_size: usize,
    pub(super) migrate: bool,
    #[cfg(feature = "blocking")]
    pub(super) blocking: Option<Transactions<Postgres>>,
}

/// Where connections come from.
pub(super) enum Source {
    Url(String),
    Pool(DieselPool<AsyncPgConnection>),
}

impl PostgresBuilder {
    pub(super) fn new(source: Source) -> Self {
        let table = Name::fixed("oncekey_records");
        Self {
            source,
            schema: None,
            table,
            pool_size: 8,
            migrate: true,
            #[cfg(feature = "blocking")]
            blocking: None,
        }
    }

    /// The schema of the table, made if there is none. Default: the first in the connection's `search_path`.
    ///
    /// # Errors
    /// [`InvalidName`] for all but a plain name.
    pub fn schema(mut self, schema: &str) -> Result<Self, InvalidName> {
        self.schema = Some(Name::new(schema)?);
        Ok(self)
    }

    /// The table's name. Its migrations are recorded beside it, in `NAME_migrations`, and its steps are in `NAME_steps`.
    /// Default: `oncekey_records`.
    ///
    /// # Errors
    /// [`InvalidName`] for all but a plain name.
    pub fn table(mut self, table: &str) -> Result<Self, InvalidName> {
        self.table = Name::new(table)?;
        Ok(self)
    }

    /// How many connections **each arbiter** (each worker of a server) opens at most. Default: 8, of which 4 are for claims and
    /// settlements, and the others for operations in transactions. At least 5. A pool of your own has its own size, which this
    /// says only where [the pool does not tell it](crate::DieselPool).
    pub fn pool_size(mut self, connections: usize) -> Self {
        self.pool_size = connections.max(5);
        self
    }

    /// Whether [`open`](Self::open) makes and updates the table; without, it must be there. Default: true.
    pub fn migrate(mut self, migrate: bool) -> Self {
        self.migrate = migrate;
        self
    }

    /// The application's r2d2 pool of sync Diesel, for operations that block:
    /// [`run_in_transaction`](oncekey::Engine::run_in_transaction) gives them a connection of it, a `diesel::PgConnection`, in the transaction that
    /// also stores their outcome. Everything else goes by the backend's own connections, which lead to the same database.
    ///
    /// One pool may serve any number of engines. An operation runs on a thread for blocking work, and **once**: what the
    /// database gives up for another's sake (a deadlock) is rolled back and reported as
    /// [`Overloaded`](oncekey::backend::StoreError::Overloaded).
    ///
    /// [`Claim::step_in_transaction`](oncekey::Claim::step_in_transaction) gives a step a connection of it in the same way.
    ///
    /// [`open`](Self::open) checks that the pool reaches the table. A pool that leads to another database commits nothing.
    ///
    /// ```no_run
    /// use diesel::connection::{AnsiTransactionManager, LoadConnection};
    /// use diesel::pg::Pg;
    /// use diesel::r2d2::{ConnectionManager, Pool, R2D2Connection};
    /// use oncekey::{Engine, Key};
    /// use oncekey_backends::PostgresBackend;
    ///
    /// // `C` is `diesel::PgConnection`.
    /// # async fn open<C>() -> Result<(), Box<dyn std::error::Error>>
    /// # where
    /// #     C: R2D2Connection + LoadConnection<Backend = Pg, TransactionManager = AnsiTransactionManager> + 'static,
    /// # {
    /// let url = "postgres://shop@localhost/shop";
    /// let pool = Pool::new(ConnectionManager::<C>::new(url))?;
    /// let backend = PostgresBackend::builder(url).blocking_pool(pool.clone()).open().await?;
    /// let engine = Engine::builder(backend).start()?;
    /// let order = engine.run_in_transaction(Key::new("orders", 17)?, &"book", |tx: &mut C, _claim| {
    ///     tx.batch_execute("INSERT INTO orders (item) VALUES ('book')")?;
    ///     Ok::<_, diesel::result::Error>(17)
    /// });
    /// order.await?;
    /// # Ok(()) }
    /// ```
    #[cfg(feature = "blocking")]
    pub fn blocking_pool<M>(mut self, pool: diesel::r2d2::Pool<M>) -> Self
    where
        M: diesel::r2d2::ManageConnection,
        M::Connection: LoadConnection<Backend = diesel::pg::Pg, TransactionManager = AnsiTransactionManager>,
    {
        self.blocking = Some(Transactions::by(pool));
        self
    }

    /// Connects, brings the table up to date where that is needed, and checks the server's settings: a setting that
    /// can lose what was answered is warned of by its name.
    ///
    /// # Cancel safety
    /// A migration that is interrupted is rolled back.
    ///
    /// # Errors
    /// [`PostgresOpenError`] says what is in the way.
    pub async fn open(self) -> Result<PostgresBackend, PostgresOpenError> {
        PostgresBackend::open_with(self).await
    }
}

/// The URL may hold a password: it is not shown.
impl fmt::Debug for PostgresBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresBuilder")
            .field("schema", &self.schema)
            .field("table", &self.table)
            .field("pool_size", &self.pool_size)
            .finish_non_exhaustive()
    }
}
