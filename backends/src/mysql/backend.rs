//! The handle, and the store's side of the protocol.

use std::fmt;
use std::sync::Arc;

#[cfg(feature = "blocking")]
use diesel::connection::LoadConnection;
use diesel_async::pooled_connection::deadpool::{Hook, Pool};
use diesel_async::pooled_connection::{AsyncDieselConnectionManager, ManagerConfig, RecyclingMethod};
use diesel_async::{AsyncMysqlConnection, SimpleAsyncConnection as _};
use futures_util::future::FutureExt as _;
use oncekey::backend::{
    Acquire, Acquired, Backend, BeginStep, Complete, CompleteInTransaction, CompleteStep, Completed,
    CompletedInTransaction, FailStep, Held, Hold, List, Lookup, Purge, Purged, RecordView, Release, Released, Remove,
    Removed, Renew, Renewed, Reply, Request, Resolve, ResolveStep, Resolved, Stats, StepBegun, StepCommitted,
    StepCompleted, StepFailed, StepInTransaction, StoreError, StoreStats, Withdraw, Withdrawn,
};

use super::connect::{Checked, Connector, Settings};
use super::doctor::examine;
use super::flush::shows_too_early;
use super::migration::{Place, bring_up_to_date, number, returns};
use super::options::Source;
use super::session::left_there;
use super::table::{FREE_LOCKS, Mysql};
use super::{MysqlBuilder, MysqlOpenError};
use crate::ask::by_asking;
use crate::sql::{BATCHES, Core, DieselPool, Name, Pooled, lend_clean, of_read, try_if_idle};
#[cfg(feature = "blocking")]
use crate::sql::{Transactions, complete_in};
use crate::{CompleteInError, Finding, doctor};

/// A store of records in MySQL (8.0 or later) or MariaDB (10.6 or later), by Diesel. No libmysqlclient is needed.
///
/// What waits in an arbiter's backend actor becomes a few statements for all of it. Claims of keys that nobody has used are
/// one, completions by their claims' owners another; where that meets something else, one reads the batch's rows, and one
/// each inserts, replaces and deletes what was decided, if the row is still what it was decided on. So a commit, which is
/// what a claim costs, serves many. A replay writes nothing where the server has a binary log; one without shows commits
/// before they are on the disk, and a batch's replays share a commit that waits until they are. Time is the server's.
///
/// **Each arbiter has connections of its own** (see [`MysqlBuilder::pool_size`]), since a connection lives on the runtime
/// that opened it. An application that has a Diesel pool [hands it over](Self::from_pool) instead.
///
/// An operation that is [completed in a transaction](oncekey::Engine::run_in_async_transaction) gets the
/// [`AsyncMysqlConnection`]: its rows and its outcome are committed together, at the server's default isolation (at
/// REPEATABLE READ where that is READ UNCOMMITTED or SERIALIZABLE). It may
/// use savepoints (`transaction` inside), and must not end the transaction by itself, as data definition (`CREATE TABLE`)
/// does here without a word. When the server gives it up for another's sake (a deadlock, a lock wait that takes too long)
/// it is rolled back and done again, up to five times.
///
/// The server can't tell of changes: one who waits for another process looks every 30 ms or so.
///
/// ```no_run
/// # async fn open() -> Result<(), Box<dyn std::error::Error>> {
/// use oncekey::Engine;
/// use oncekey_backends::mysql::MysqlBackend;
///
/// let backend = MysqlBackend::open("mysql://shop@localhost/shop").await?;
/// let engine = Engine::builder(backend).start()?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct MysqlBackend {
    core: Core<Mysql>,
    shared: Arc<Shared>,
}

/// A connection that is at work is not tried each time that it is lent: see `try_if_idle`.
const UNTRIED: RecyclingMethod<AsyncMysqlConnection> = RecyclingMethod::Fast;

/// What all arbiters' sessions are made from.
struct Shared {
    /// `None` where the application's pool is used.
    connector: Option<Connector>,
    #[cfg(feature = "blocking")]
    blocking: Option<Transactions<Mysql>>,
    pool_size: usize,
    server: Server,
}

/// What is asked of the server once.
struct Server {
    place: Place,
    left_there: String,
    /// Whether it takes locks by name.
    frees_locks: bool,
    /// The largest packet, in bytes.
    packet: usize,
    /// Before and after an operation's transaction.
    around: (&'static str, &'static str),
    shows_too_early: bool,
    /// Whether an INSERT can return what it inserted.
    returns: bool,
}

impl MysqlBackend {
    /// Connects with the default options; see [`MysqlBuilder::open`].
    ///
    /// # Errors
    /// [`MysqlOpenError`] says what is in the way.
    ///
    /// ```no_run
    /// # async fn open() -> Result<(), Box<dyn std::error::Error>> {
    /// use oncekey_backends::mysql::MysqlBackend;
    ///
    /// let backend = MysqlBackend::open("mysql://shop@db.example/shop").await?;
    /// # Ok(()) }
    /// ```
    pub async fn open(url: &str) -> Result<Self, MysqlOpenError> {
        Self::builder(url).open().await
    }

    /// Options for connecting to a URL, `mysql://USER:PASSWORD@HOST:PORT/DATABASE`. Unless the server is on this machine
    /// it must speak TLS and show a certificate that is trusted, or one that `?ssl_ca=PATH` does;
    /// `?require_ssl=false` says otherwise, and the other parameters of `mysql_async` are taken as well.
    ///
    /// ```
    /// use oncekey_backends::mysql::MysqlBackend;
    ///
    /// let builder = MysqlBackend::builder("mysql://shop@localhost/shop").pool_size(12);
    /// # let _ = builder;
    /// ```
    pub fn builder(url: impl Into<String>) -> MysqlBuilder {
        MysqlBuilder::new(Source::Url(url.into()))
    }

    /// Options for using the application's own pool, which all arbiters then share: it needs some 5 connections for each
    /// arbiter, and its runtime must outlive the engine.
    ///
    /// Its connections must count found rows, as Diesel's own do, and be at autocommit, and at READ COMMITTED or REPEATABLE
    /// READ: [`open`](MysqlBuilder::open) checks both on one connection. Set `innodb_lock_wait_timeout` to a second or two
    /// there: a row that another session has locked keeps the other rows of its batch waiting for as long.
    ///
    /// ```
    /// use diesel_async::AsyncMysqlConnection;
    /// use diesel_async::pooled_connection::AsyncDieselConnectionManager;
    /// use diesel_async::pooled_connection::deadpool::Pool;
    /// use oncekey_backends::mysql::MysqlBackend;
    ///
    /// let manager = AsyncDieselConnectionManager::<AsyncMysqlConnection>::new("mysql://shop@localhost/shop");
    /// let pool = Pool::builder(manager).max_size(20).build()?;
    /// let builder = MysqlBackend::from_pool(pool);
    /// # let _ = builder;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn from_pool(pool: impl Into<DieselPool<AsyncMysqlConnection>>) -> MysqlBuilder {
        MysqlBuilder::new(Source::Pool(pool.into()))
    }

    /// A pool of connections that are opened as this backend's are, for the application's own queries: each is tried
    /// before it is lent, so that a server's restart is nobody's error. For a backend on
    /// the application's pool it is that one; if that is bb8's or mobc's, one that lends nothing and says so.
    ///
    /// ```no_run
    /// # async fn open() -> Result<(), Box<dyn std::error::Error>> {
    /// # use oncekey_backends::mysql::MysqlBackend;
    /// let backend = MysqlBackend::open("mysql://shop@localhost/shop").await?;
    /// let connection = backend.pool_of_its_own().get().await?;
    /// # Ok(()) }
    /// ```
    pub fn pool_of_its_own(&self) -> Pool<AsyncMysqlConnection> {
        match &self.shared.connector {
            Some(connector) => pool_of(connector, self.shared.pool_size, RecyclingMethod::Verified),
            None => self.core.dialect.pool.deadpool(),
        }
    }

    /// Completes a claim **in the caller's own open transaction**: the outcome is committed with the caller's rows, or
    /// neither is. The message comes from [`Claim::completion`](oncekey::Claim::completion).
    ///
    /// Make it the transaction's last step: the record is locked from here to its end, and the claim's heartbeats wait.
    ///
    /// # Cancel safety
    /// Dropped midway, the transaction is to be rolled back.
    ///
    /// # Errors
    /// [`CompleteInError`]: the transaction is to be rolled back.
    ///
    /// ```no_run
    /// # async fn order() -> Result<(), Box<dyn std::error::Error>> {
    /// use diesel_async::{AsyncConnection as _, SimpleAsyncConnection as _};
    /// use oncekey::{Engine, Key, OnAbandoned};
    /// use oncekey_backends::MysqlBackend;
    ///
    /// type Failure = Box<dyn std::error::Error + Send + Sync>;
    ///
    /// let backend = MysqlBackend::open("mysql://shop@localhost/shop").await?;
    /// // What did not commit did not happen: a claim whose holder crashed is run again.
    /// let engine = Engine::builder(backend.clone()).on_abandoned(OnAbandoned::Rerun).start()?;
    /// let pool = backend.pool_of_its_own();
    ///
    /// let key = Key::new("orders", 17)?;
    /// let order = engine.run_local(key, &"book", async move |claim| {
    ///     let mut connection = pool.get().await?;
    ///     let order = connection.transaction(async |tx| {
    ///         tx.batch_execute("INSERT INTO orders (item) VALUES ('book')").await?;
    ///         backend.complete_in(tx, claim.completion(&17)?).await?;
    ///         Ok::<_, Failure>(17)
    ///     });
    ///     order.await
    /// });
    /// order.await?;
    /// # Ok(()) }
    /// ```
    pub async fn complete_in(
        &self,
        connection: &mut AsyncMysqlConnection,
        completion: Complete,
    ) -> Result<(), CompleteInError> {
        self.core.complete_in(connection, &completion).await
    }

    /// [`complete_in`](Self::complete_in) for a transaction of sync Diesel: the connection is a
    /// `diesel::MysqlConnection`, from
    /// any pool or none. It blocks: call it where the transaction's other statements run.
    ///
    /// # Errors
    /// [`CompleteInError`]: the transaction is to be rolled back.
    ///
    /// ```no_run
    /// use diesel::connection::LoadConnection;
    /// use diesel::mysql::Mysql;
    /// use oncekey::backend::Complete;
    /// use oncekey_backends::{CompleteInError, MysqlBackend};
    ///
    /// // `C` is `diesel::MysqlConnection`, and the completion comes from `Claim::completion`.
    /// fn order<C>(backend: &MysqlBackend, connection: &mut C, completion: Complete) -> Result<(), CompleteInError>
    /// where
    ///     C: LoadConnection<Backend = Mysql>,
    /// {
    ///     connection.transaction(|tx| {
    ///         tx.batch_execute("INSERT INTO orders (item) VALUES ('book')")?;
    ///         backend.complete_in_blocking(tx, completion)
    ///     })
    /// }
    /// ```
    #[cfg(feature = "blocking")]
    pub fn complete_in_blocking<C>(&self, connection: &mut C, completion: Complete) -> Result<(), CompleteInError>
    where
        C: LoadConnection<Backend = diesel::mysql::Mysql>,
    {
        complete_in(&*self.core.dialect, connection, &completion)
    }

    /// What the server is set to, where that is not what this store wants. [`open`](MysqlBuilder::open) logs the same.
    ///
    /// # Errors
    /// The server can't be asked.
    ///
    /// ```no_run
    /// # async fn open() -> Result<(), Box<dyn std::error::Error>> {
    /// # use oncekey_backends::mysql::MysqlBackend;
    /// let backend = MysqlBackend::open("mysql://shop@localhost/shop").await?;
    /// for finding in backend.doctor().await? {
    ///     println!("{finding}");
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn doctor(&self) -> Result<Vec<Finding>, StoreError> {
        let connection = self.core.dialect.pool.lend().await.map_err(StoreError::unavailable)?;
        let (server, owns) = (&self.shared.server, self.shared.connector.is_some());
        let examined = lend_clean(connection, Pooled::take, async |connection: &mut AsyncMysqlConnection| {
            examine(connection, &server.place, server.frees_locks, owns).await
        });
        examined.await.map_err(|error| of_read::<Mysql>(&error))
    }

    pub(super) async fn open_with(options: MysqlBuilder) -> Result<Self, MysqlOpenError> {
        let (table, migrate) = (options.table, options.migrate);
        let unreachable =
            |error: &dyn fmt::Display| MysqlOpenError::Unreachable(said_once(&error.to_string()).to_owned());
        let (connector, pool, server) = match options.source {
            Source::Url(url) => {
                let connector = Connector::new(&url)?;
                let mut connection = connector.clone().connect().await.map_err(|error| unreachable(&error))?;
                let server = prepare(&mut connection, table, migrate, true).await?;
                (Some(connector.clone()), pool_of(&connector.for_steps(), options.pool_size, UNTRIED).into(), server)
            }
            Source::Pool(pool) => {
                let connection = pool.lend().await.map_err(|error| unreachable(&error))?;
                let prepare =
                    async |connection: &mut AsyncMysqlConnection| prepare(connection, table, migrate, false).await;
                let server = lend_clean(connection, Pooled::take, prepare).await?;
                (None, pool.clone(), server)
            }
        };
        let shared = Shared {
            #[cfg(feature = "blocking")]
            blocking: options.blocking,
            connector,
            pool_size: options.pool_size,
            server,
        };
        let core = shared.core(pool);
        #[cfg(feature = "blocking")]
        if let Some(blocking) = &shared.blocking {
            blocking.check(&core).await.map_err(|error| unreachable(&format!("by the blocking pool: {error}")))?;
        }
        Ok(Self { core, shared: Arc::new(shared) })
    }

    /// Takes one step by itself.
    async fn ask<T: Send + 'static>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, StoreError> {
        self.core.ask(request).await
    }
}

/// The driver puts an I/O error into another one with the same text.
fn said_once(error: &str) -> &str {
    match error.split_once(": ") {
        Some((prefix, rest)) if rest.starts_with(prefix) => said_once(rest),
        _ => error,
    }
}

async fn prepare(
    connection: &mut AsyncMysqlConnection,
    table: Name,
    migrate: bool,
    owns: bool,
) -> Result<Server, MysqlOpenError> {
    let unreachable = |error: diesel::result::Error| MysqlOpenError::Unreachable(error.to_string());
    let settings = Settings::of(connection).await.map_err(unreachable)?;
    if !owns {
        settings.check()?;
    }
    let place = Place::find(connection, table).await?;
    bring_up_to_date(connection, &place, migrate).await?;
    let shows_too_early = shows_too_early(connection).await.map_err(unreachable)?;
    let returns = returns(connection).await.map_err(unreachable)?;
    let left_there = left_there(connection).await.map_err(unreachable)?;
    // Clusters refuse locks by name, and with them this.
    let frees_locks = connection.batch_execute(FREE_LOCKS).await.is_ok();
    let findings = examine(connection, &place, frees_locks, owns).await;
    doctor::log(&findings.map_err(unreachable)?);
    let packet = number(connection, "SELECT @@max_allowed_packet").await.map_err(unreachable)?;
    let packet = packet.and_then(|packet| usize::try_from(packet).ok()).unwrap_or(1 << 20);
    let around = settings.for_operations();
    Ok(Server { place, left_there, frees_locks, packet, around, shows_too_early, returns })
}

/// A pool that opens its connections when they are asked for. It has no time-outs: every call has the engine's deadline.
#[expect(clippy::expect_used, reason = "the only error is a time-out without a runtime, and there is no time-out")]
fn pool_of(
    connector: &Connector,
    size: usize,
    recycling: RecyclingMethod<AsyncMysqlConnection>,
) -> Pool<AsyncMysqlConnection> {
    let connector = connector.clone();
    let mut config = ManagerConfig::default();
    config.recycling_method = recycling;
    config.custom_setup = Box::new(move |_| connector.clone().connect().boxed());
    let manager = AsyncDieselConnectionManager::new_with_config("", config);
    Pool::builder(manager)
        .max_size(size)
        .pre_recycle(Hook::async_fn(|connection, metrics| Box::pin(try_if_idle(connection, metrics.last_used()))))
        .build()
        .expect("a pool without time-outs")
}

impl Shared {
    fn core(&self, pool: DieselPool<AsyncMysqlConnection>) -> Core<Mysql> {
        let Server { place, left_there, frees_locks, packet, around, shows_too_early, returns } = &self.server;
        let core = Core::new(Mysql {
            pool,
            size: self.pool_size,
            table: place.qualified(),
            steps: place.steps(),
            turns: place.flushes(),
            left_there: left_there.clone(),
            frees_locks: *frees_locks,
            packet: *packet,
            before: around.0,
            after: around.1,
            returns: *returns,
            flushes: shows_too_early.then(|| place.flushes()),
            limits_lock_waits: self.connector.is_some(),
            checked: Checked::default(),
        });
        #[cfg(feature = "blocking")]
        let core = core.with_blocking(self.blocking.clone());
        core
    }
}

impl Backend for MysqlBackend {
    fn session(&self) -> Self {
        match &self.shared.connector {
            Some(connector) => Self {
                core: self.shared.core(pool_of(&connector.for_steps(), self.shared.pool_size, UNTRIED).into()),
                shared: Arc::clone(&self.shared),
            },
            None => self.clone(),
        }
    }

    fn batches_under_way(&self) -> usize {
        BATCHES
    }

    by_asking! {
        acquire: Acquire -> Acquired,
        renew: Renew -> Renewed,
        complete: Complete -> Completed,
        release: Release -> Released,
        withdraw: Withdraw -> Withdrawn,
        hold: Hold -> Held,
        resolve: Resolve -> Resolved,
        begin_step: BeginStep -> StepBegun,
        complete_step: CompleteStep -> StepCompleted,
        fail_step: FailStep -> StepFailed,
        resolve_step: ResolveStep -> Resolved,
    }

    async fn step_in_transaction(&self, message: StepInTransaction) -> Result<StepCommitted, StoreError> {
        self.core.step_in_transaction(message).await
    }

    async fn complete_in_transaction(
        &self,
        message: CompleteInTransaction,
    ) -> Result<CompletedInTransaction, StoreError> {
        self.core.complete_in_transaction(message).await
    }

    async fn lookup(&self, message: Lookup) -> Result<Option<RecordView>, StoreError> {
        self.core.lookup(message).await
    }

    async fn remove(&self, message: Remove) -> Result<Removed, StoreError> {
        self.core.remove(message).await
    }

    async fn list(&self, message: List) -> Result<Vec<RecordView>, StoreError> {
        self.core.list(message).await
    }

    async fn purge(&self, message: Purge) -> Result<Purged, StoreError> {
        self.core.purge(message).await
    }

    async fn stats(&self, message: Stats) -> Result<StoreStats, StoreError> {
        self.core.stats(message).await
    }

    async fn execute(&self, batch: Vec<Request>) {
        self.core.execute(batch, |request| request.dispatch(self)).await;
    }
}

impl fmt::Debug for MysqlBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MysqlBackend").field("table", &self.shared.server.place.qualified()).finish_non_exhaustive()
    }
}
