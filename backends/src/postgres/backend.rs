//! The handle, and the store's side of the protocol.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "blocking")]
use diesel::connection::LoadConnection;
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
use tokio::time::timeout;

use super::connect::Connector;
use super::doctor::examine;
use super::migration::{Place, bring_up_to_date};
use super::options::Source;
use super::pooler::refuse_pooler;
use super::table::Postgres;
use super::texts::Texts;
use super::watch::{Watchers, watch};
use super::{PostgresBuilder, PostgresOpenError};
use crate::ask::by_asking;
use crate::sql::{BATCHES, Core, DieselPool, Name, Pooled, lend_clean, of_read, try_if_idle};
#[cfg(feature = "blocking")]
use crate::sql::{Transactions, complete_in};
use crate::{CompleteInError, Finding, doctor};

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
#[derive(Clone)]
pub struct PostgresBackend {
    core: Core<Postgres>,
    watchers: Arc<Watchers>,
    shared: Arc<Shared>,
}

/// A connection that is at work is not tried each time that it is lent: see `try_if_idle`.
const UNTRIED: RecyclingMethod<AsyncPgConnection> = RecyclingMethod::Fast;

/// How long an application's pool may take for a second connection.
const ANOTHER_WITHIN: Duration = Duration::from_secs(1);

/// What all arbiters' sessions are made from.
struct Shared {
    /// `None` where the application's pool is used.
    connector: Option<Connector>,
    #[cfg(feature = "blocking")]
    blocking: Option<Transactions<Postgres>>,
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
    /// what is not right, as [`doctor`](Self::doctor) says it.
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
    pub fn from_pool(pool: impl Into<DieselPool<AsyncPgConnection>>) -> PostgresBuilder {
        PostgresBuilder::new(Source::Pool(pool.into()))
    }

    /// A pool of connections that are opened as this backend's are, for the application's own queries: each is tried
    /// before it is lent, so that a server's restart is nobody's error. For a backend on
    /// the application's pool it is that one; if that is bb8's or mobc's, one that lends nothing and says so.
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

    /// [`complete_in`](Self::complete_in) for a transaction of sync Diesel: the connection is a
    /// `diesel::PgConnection`, from
    /// any pool or none. It blocks: call it where the transaction's other statements run.
    ///
    /// # Errors
    /// [`CompleteInError`]: the transaction is to be rolled back.
    ///
    /// ```no_run
    /// use diesel::connection::LoadConnection;
    /// use diesel::pg::Pg;
    /// use oncekey::backend::Complete;
    /// use oncekey_backends::{CompleteInError, PostgresBackend};
    ///
    /// // `C` is `diesel::PgConnection`, and the completion comes from `Claim::completion`.
    /// fn order<C>(backend: &PostgresBackend, connection: &mut C, completion: Complete) -> Result<(), CompleteInError>
    /// where
    ///     C: LoadConnection<Backend = Pg>,
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
        C: LoadConnection<Backend = diesel::pg::Pg>,
    {
        complete_in(&*self.core.dialect, connection, &completion)
    }

    /// What the server is set to, where that is not what this store wants. [`open`](PostgresBuilder::open) logs the same.
    ///
    /// # Errors
    /// The server can't be asked.
    ///
    /// ```no_run
    /// # async fn open() -> Result<(), Box<dyn std::error::Error>> {
    /// # use oncekey_backends::postgres::PostgresBackend;
    /// let backend = PostgresBackend::open("postgres://shop@localhost/shop").await?;
    /// for finding in backend.doctor().await? {
    ///     println!("{finding}");
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn doctor(&self) -> Result<Vec<Finding>, StoreError> {
        let pool = &self.core.dialect.pool;
        let connection = pool.lend().await.map_err(StoreError::unavailable)?;
        let (place, owns) = (&self.shared.place, self.shared.connector.is_some());
        let examine = async |connection: &mut AsyncPgConnection| examine(connection, place, owns).await;
        lend_clean(connection, Pooled::take, examine).await.map_err(|error| of_read::<Postgres>(&error))
    }

    pub(super) async fn open_with(options: PostgresBuilder) -> Result<Self, PostgresOpenError> {
        let (schema, table, migrate) = (options.schema, options.table, options.migrate);
        let unreachable = |error: &dyn fmt::Display| PostgresOpenError::failed(error.to_string());
        let owns = matches!(options.source, Source::Url(_));
        let prepare =
            async |connection: &mut AsyncPgConnection| prepare(connection, schema, table, migrate, owns).await;
        let (connector, pool, place) = match options.source {
            Source::Url(url) => {
                let connector = Connector::new(&url)?;
                let mut connection = connector.clone().connect().await.map_err(|error| unreachable(&error))?;
                let mut another = connector.clone().connect().await.map_err(|error| unreachable(&error))?;
                refuse_pooler(&mut connection, &mut another).await?;
                drop(another);
                let place = prepare(&mut connection).await.map_err(PostgresOpenError::or_pooler)?;
                (Some(connector.clone()), pool_of(&connector.for_steps(), options.pool_size, UNTRIED).into(), place)
            }
            Source::Pool(pool) => {
                let connection = pool.lend().await.map_err(|error| unreachable(&error))?;
                let prepared = lend_clean(connection, Pooled::take, async |connection: &mut AsyncPgConnection| {
                    // A pool of one connection, or one whose others are lent, can't be tried.
                    if let Ok(Ok(another)) = timeout(ANOTHER_WITHIN, pool.lend()).await {
                        let refuse = async |another: &mut AsyncPgConnection| refuse_pooler(connection, another).await;
                        lend_clean(another, Pooled::take, refuse).await?;
                    }
                    prepare(connection).await
                });
                let place = prepared.await.map_err(PostgresOpenError::or_pooler)?;
                (None, pool.clone(), place)
            }
        };
        let shared = Shared {
            #[cfg(feature = "blocking")]
            blocking: options.blocking,
            connector,
            pool_size: options.pool_size,
            channel: place.channel(),
            place,
        };
        let core = shared.core(pool);
        #[cfg(feature = "blocking")]
        if let Some(blocking) = &shared.blocking {
            blocking.check(&core).await.map_err(|error| unreachable(&format!("by the blocking pool: {error}")))?;
        }
        Ok(Self { core, watchers: Arc::default(), shared: Arc::new(shared) })
    }

    /// Takes one step by itself.
    async fn ask<T: Send + 'static>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, StoreError> {
        self.core.ask(request).await
    }
}

async fn prepare(
    connection: &mut AsyncPgConnection,
    schema: Option<Name>,
    table: Name,
    migrate: bool,
    owns: bool,
) -> Result<Place, PostgresOpenError> {
    let place = Place::find(connection, schema, table).await?;
    bring_up_to_date(connection, &place, migrate).await?;
    let found = examine(connection, &place, owns).await;
    doctor::log(&found.map_err(|error| PostgresOpenError::Unreachable(error.to_string()))?);
    Ok(place)
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
    fn core(&self, pool: DieselPool<AsyncPgConnection>) -> Core<Postgres> {
        let texts = Texts::new(&self.place.qualified(), &self.place.steps(), &self.channel, self.place.lock("purge"));
        let core =
            Core::new(Postgres { pool, size: self.pool_size, texts, limits_lock_waits: self.connector.is_some() });
        #[cfg(feature = "blocking")]
        let core = core.with_blocking(self.blocking.clone());
        core
    }
}

impl Backend for PostgresBackend {
    fn session(&self) -> Self {
        match &self.shared.connector {
            Some(connector) => Self {
                core: self.shared.core(pool_of(&connector.for_steps(), self.shared.pool_size, UNTRIED).into()),
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

    async fn examine(&self) -> Result<Vec<Finding>, StoreError> {
        self.doctor().await
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
