//! The handle, and the store's side of the protocol.

use std::fmt;
use std::sync::Arc;

use diesel_async::AsyncPgConnection;
use diesel_async::pooled_connection::deadpool::{Hook, Pool};
use diesel_async::pooled_connection::{AsyncDieselConnectionManager, ManagerConfig, RecyclingMethod};
use futures_util::future::FutureExt as _;
use oncekey::backend::{
    Acquire, Acquired, Backend, BeginStep, Changed, Complete, CompleteInTransaction, CompleteStep, Completed,
    CompletedInTransaction, FailStep, Held, Hold, List, Lookup, Purge, Purged, RecordView, Release, Released, Remove,
    Removed, Renew, Renewed, Reply, Request, Resolve, ResolveStep, Resolved, Stats, StepBegun, StepCommitted,
    StepCompleted, StepFailed, StepInTransaction, StoreError, StoreStats, Watch, Withdraw, Withdrawn,
};

use super::connect::Connector;
use super::migration::{Place, bring_up_to_date, check_durability};
use super::options::Source;
use super::table::Postgres;
use super::texts::Texts;
use super::watch::{Watchers, watch};
use super::{PostgresBuilder, PostgresOpenError};
use crate::CompleteInError;
use crate::ask::by_asking;
use crate::sql::{BATCHES, Core, try_if_idle};

/// A store of records in PostgreSQL, by Diesel. No libpq is needed.
///
/// What waits in an arbiter's backend actor becomes a few statements for all of it. Claims of keys that nobody has used are
/// one, completions by their claims' owners another; where that meets something else, one reads the batch's rows, and one
/// each inserts, replaces and deletes what was decided, if the row is still what it was decided on. So a commit, which is
/// what a claim costs, serves many, and a replay writes nothing. Time is the server's.
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
/// waits. A pooler that shares connections by transaction (PgBouncer) passes neither them nor prepared statements: use
/// it in session mode.
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
#[derive(Clone)]
pub struct PostgresBackend {
    core: Core<Postgres>,
    watchers: Arc<Watchers>,
    shared: Arc<Shared>,
}

/// A connection that is at work is not tried each time that it is lent: see `try_if_idle`.
const UNTRIED: RecyclingMethod<AsyncPgConnection> = RecyclingMethod::Fast;

/// What all arbiters' sessions are made from.
struct Shared {
    /// `None` where the application's pool is used.
    connector: Option<Connector>,
    pool_size: usize,
    place: Place,
    channel: String,
}

impl PostgresBackend {
    /// Connects with the default options; see [`PostgresBuilder::open`].
    ///
    /// # Errors
    /// [`PostgresOpenError`] says what is in the way.
    ///
    /// ```no_run
    /// # async fn open() -> Result<(), Box<dyn std::error::Error>> {
    /// use oncekey_backends::postgres::PostgresBackend;
    ///
    /// let backend = PostgresBackend::open("postgres://shop@db.example/shop").await?;
    /// # Ok(()) }
    /// ```
    pub async fn open(url: &str) -> Result<Self, PostgresOpenError> {
        Self::builder(url).open().await
    }

    /// Options for connecting to a URL, `postgres://USER:PASSWORD@HOST:PORT/DATABASE`. Unless the server is on this
    /// machine it must speak TLS and show a certificate that the system trusts, or one that `?sslrootcert=PATH` does;
    /// `?sslmode=disable` and `?sslmode=require` (encrypted, unverified) say otherwise.
    ///
    /// ```
    /// use oncekey_backends::postgres::PostgresBackend;
    ///
    /// let builder = PostgresBackend::builder("postgres://shop@localhost/shop").pool_size(12);
    /// # let _ = builder;
    /// ```
    pub fn builder(url: impl Into<String>) -> PostgresBuilder {
        PostgresBuilder::new(Source::Url(url.into()))
    }

    /// Options for using the application's own pool, which all arbiters then share: it needs some 5 connections for each
    /// arbiter, and its runtime must outlive the engine.
    ///
    /// Its connections stay as they are set up. `SET plan_cache_mode = force_custom_plan` is right for them: otherwise a
    /// plan made while the table was empty is kept for a while. Set `lock_timeout` to a second or two: a row that another
    /// session has locked keeps the other rows of its batch waiting for as long. [`open`](PostgresBuilder::open) warns of
    /// an isolation and of a durability that are not right.
    ///
    /// ```
    /// use diesel_async::AsyncPgConnection;
    /// use diesel_async::pooled_connection::AsyncDieselConnectionManager;
    /// use diesel_async::pooled_connection::deadpool::Pool;
    /// use oncekey_backends::postgres::PostgresBackend;
    ///
    /// let manager = AsyncDieselConnectionManager::<AsyncPgConnection>::new("postgres://shop@localhost/shop");
    /// let pool = Pool::builder(manager).max_size(20).build()?;
    /// let builder = PostgresBackend::from_pool(pool);
    /// # let _ = builder;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn from_pool(pool: Pool<AsyncPgConnection>) -> PostgresBuilder {
        PostgresBuilder::new(Source::Pool(pool))
    }

    /// A pool of connections that are opened as this backend's are, for the application's own queries: each is tried
    /// before it is lent, so that a server's restart is nobody's error. For a backend on
    /// the application's pool it is that one.
    ///
    /// ```no_run
    /// # async fn open() -> Result<(), Box<dyn std::error::Error>> {
    /// # use oncekey_backends::postgres::PostgresBackend;
    /// let backend = PostgresBackend::open("postgres://shop@localhost/shop").await?;
    /// let connection = backend.pool_of_its_own().get().await?;
    /// # Ok(()) }
    /// ```
    pub fn pool_of_its_own(&self) -> Pool<AsyncPgConnection> {
        match &self.shared.connector {
            Some(connector) => pool_of(connector, self.shared.pool_size, RecyclingMethod::Verified),
            None => self.core.dialect.pool.clone(),
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
    /// use oncekey_backends::PostgresBackend;
    ///
    /// type Failure = Box<dyn std::error::Error + Send + Sync>;
    ///
    /// let backend = PostgresBackend::open("postgres://shop@localhost/shop").await?;
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
        connection: &mut AsyncPgConnection,
        completion: Complete,
    ) -> Result<(), CompleteInError> {
        self.core.complete_in(connection, &completion).await
    }

    pub(super) async fn open_with(options: PostgresBuilder) -> Result<Self, PostgresOpenError> {
        let place = Place { schema: options.schema, table: options.table };
        let unreachable = |error: &dyn fmt::Display| PostgresOpenError::Unreachable(error.to_string());
        let (connector, pool) = match options.source {
            Source::Url(url) => {
                let connector = Connector::new(&url)?;
                let mut connection = connector.clone().connect().await.map_err(|error| unreachable(&error))?;
                prepare(&mut connection, &place, options.migrate).await?;
                (Some(connector.clone()), pool_of(&connector.for_steps(), options.pool_size, UNTRIED))
            }
            Source::Pool(pool) => {
                let mut connection = pool.get().await.map_err(|error| unreachable(&error))?;
                prepare(&mut connection, &place, options.migrate).await?;
                (None, pool.clone())
            }
        };
        let shared = Shared { connector, pool_size: options.pool_size, channel: place.channel(), place };
        Ok(Self { core: shared.core(pool), watchers: Arc::default(), shared: Arc::new(shared) })
    }

    /// Takes one step by itself.
    async fn ask<T: Send + 'static>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, StoreError> {
        self.core.ask(request).await
    }
}

async fn prepare(connection: &mut AsyncPgConnection, place: &Place, migrate: bool) -> Result<(), PostgresOpenError> {
    bring_up_to_date(connection, place, migrate).await?;
    let checked = check_durability(connection).await;
    checked.map_err(|error| PostgresOpenError::Unreachable(error.to_string()))
}

/// A pool that opens its connections when they are asked for. It has no time-outs: every call has the engine's deadline.
#[expect(clippy::expect_used, reason = "the only error is a time-out without a runtime, and there is no time-out")]
fn pool_of(
    connector: &Connector,
    size: usize,
    recycling: RecyclingMethod<AsyncPgConnection>,
) -> Pool<AsyncPgConnection> {
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
    fn core(&self, pool: Pool<AsyncPgConnection>) -> Core<Postgres> {
        let texts = Texts::new(&self.place.qualified(), &self.place.steps(), &self.channel, self.place.lock("purge"));
        Core::new(Postgres { pool, texts, limits_lock_waits: self.connector.is_some() })
    }
}

impl Backend for PostgresBackend {
    fn session(&self) -> Self {
        match &self.shared.connector {
            Some(connector) => Self {
                core: self.shared.core(pool_of(&connector.for_steps(), self.shared.pool_size, UNTRIED)),
                watchers: Arc::default(),
                shared: Arc::clone(&self.shared),
            },
            None => Self { watchers: Arc::default(), ..self.clone() },
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
    }

    async fn begin_step(&self, message: BeginStep) -> Result<StepBegun, StoreError> {
        self.ask(|reply| Request::BeginStep(Box::new(message), reply)).await
    }

    async fn complete_step(&self, message: CompleteStep) -> Result<StepCompleted, StoreError> {
        self.ask(|reply| Request::CompleteStep(Box::new(message), reply)).await
    }

    async fn fail_step(&self, message: FailStep) -> Result<StepFailed, StoreError> {
        self.ask(|reply| Request::FailStep(Box::new(message), reply)).await
    }

    async fn resolve_step(&self, message: ResolveStep) -> Result<Resolved, StoreError> {
        self.ask(|reply| Request::ResolveStep(Box::new(message), reply)).await
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

    async fn watch(&self, message: Watch) -> Result<Changed, StoreError> {
        watch(&self.core, &self.watchers, &self.shared.channel, message).await
    }

    async fn execute(&self, batch: Vec<Request>) {
        self.core.execute(batch, |request| request.dispatch(self)).await;
    }
}

impl fmt::Debug for PostgresBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresBackend").field("table", &self.shared.place.qualified()).finish_non_exhaustive()
    }
}
