//! How the records are reached.

use std::fmt;

#[cfg(feature = "blocking")]
use diesel::connection::{AnsiTransactionManager, LoadConnection};
use diesel_async::AsyncMysqlConnection;

#[cfg(feature = "blocking")]
use super::table::Mysql;
use super::{MysqlBackend, MysqlOpenError};
#[cfg(feature = "blocking")]
use crate::sql::Transactions;
use crate::sql::{DieselPool, InvalidName, Name};

/// Options for [`MysqlBackend::builder`]. Each has a default that is right for most.
///
/// ```no_run
/// # async fn open() -> Result<(), Box<dyn std::error::Error>> {
/// use oncekey_backends::mysql::MysqlBackend;
///
/// let backend = MysqlBackend::builder("mysql://shop@db.example/shop")
///     .table("records")?
///     .pool_size(10)
///     .open()
///     .await?;
/// # Ok(()) }
/// ```
#[must_use]
pub struct MysqlBuilder {
    pub(super) source: Source,
    pub(super) table: Name,
    pub(super) pool_size: usize,
    pub(super) migrate: bool,
    #[cfg(feature = "blocking")]
    pub(super) blocking: Option<Transactions<Mysql>>,
}

/// Where connections come from.
pub(super) enum Source {
    Url(String),
    Pool(DieselPool<AsyncMysqlConnection>),
}

impl MysqlBuilder {
    pub(super) fn new(source: Source) -> Self {
        let table = Name::fixed("oncekey_records");
        Self {
            source,
            table,
            pool_size: 8,
            migrate: true,
            #[cfg(feature = "blocking")]
            blocking: None,
        }
    }

    /// The table's name. Its migrations are recorded beside it, in `NAME_migrations`, its steps are in `NAME_steps`, and
    /// `NAME_flushes` is for replays on a server without a binary log. Default: `oncekey_records`.
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
    /// [`run_in_transaction`](oncekey::Engine::run_in_transaction) gives them a connection of it, a `diesel::MysqlConnection`, in the transaction that
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
    /// use diesel::mysql::Mysql;
    /// use diesel::r2d2::{ConnectionManager, Pool, R2D2Connection};
    /// use oncekey::{Engine, Key};
    /// use oncekey_backends::MysqlBackend;
    ///
    /// // `C` is `diesel::MysqlConnection`.
    /// # async fn open<C>() -> Result<(), Box<dyn std::error::Error>>
    /// # where
    /// #     C: R2D2Connection + LoadConnection<Backend = Mysql, TransactionManager = AnsiTransactionManager> + 'static,
    /// # {
    /// let url = "mysql://shop@localhost/shop";
    /// let pool = Pool::new(ConnectionManager::<C>::new(url))?;
    /// let backend = MysqlBackend::builder(url).blocking_pool(pool.clone()).open().await?;
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
        M::Connection: LoadConnection<Backend = diesel::mysql::Mysql, TransactionManager = AnsiTransactionManager>,
    {
        self.blocking = Some(Transactions::by(pool));
        self
    }

    /// Connects, brings the table up to date where that is needed, and checks the server's settings: a setting that
    /// can lose what was answered is warned of by its name.
    ///
    /// # Cancel safety
    /// A migration that is interrupted goes on at the next opening.
    ///
    /// # Errors
    /// [`MysqlOpenError`] says what is in the way.
    pub async fn open(self) -> Result<MysqlBackend, MysqlOpenError> {
        MysqlBackend::open_with(self).await
    }
}

/// The URL may hold a password: it is not shown.
impl fmt::Debug for MysqlBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MysqlBuilder")
            .field("table", &self.table)
            .field("pool_size", &self.pool_size)
            .finish_non_exhaustive()
    }
}
