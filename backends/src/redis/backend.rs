//! The handle, and the store's side of the protocol.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use oncekey::backend::{
    Acquire, Acquired, Backend, BeginStep, Changed, Complete, CompleteStep, Completed, FailStep, Held, Hold, List,
    Lookup, Purge, Purged, RecordView, Release, Released, Remove, Removed, Renew, Renewed, Reply, Request, Resolve,
    ResolveStep, Resolved, Stats, StepBegun, StepCompleted, StepFailed, StoreError, StoreStats, Watch, Withdraw,
    Withdrawn,
};
use redis::Client;
use redis::aio::ConnectionManager;
use tokio::time::timeout;

use super::family_step::WithSteps;
use super::link::Link;
use super::options::Source;
use super::rights;
use super::settings::check;
use super::step::{Names, Step};
use super::watch::{Watchers, watch};
use super::{RedisBuilder, RedisOpenError, scan};
use crate::ask::{ask, by_asking};
use crate::{Finding, doctor};

/// While so many batches are under way on one connection, what comes in gathers into the next.
const BATCHES: usize = 2;
/// Smaller pipelines cost more by their reads and writes than the server's working at the same time saves.
const SMALLEST_BATCH: usize = 8;
/// How long a reading of the whole store may take.
const SCAN_LIMIT: Duration = Duration::from_secs(60);

/// A store of records in Redis or Valkey: one server, a master that Sentinel names, or a cluster.
///
/// A record is one key, and its steps, if it has any, are another in the same slot. A first use is two commands, the claim (`SET … NX GET PX`) and the outcome (a script that checks
/// the owner), and a replay is one. What waits in an arbiter's backend actor goes out as one pipeline over the arbiter's
/// connection. All times are the server's: a record's time is its key's time to live.
///
/// **What Redis forgets runs again.** How much that is, by persistence and topology, stands in the page about
/// [Redis](crate::redis#what-is-promised); a server that evicts keys is refused, and one that persists weakly is warned
/// of. There are no transactions with the caller's own rows.
///
/// Records expire by themselves, so that [`purge`](Backend::purge) has nothing to do. Redis has no order of keys:
/// [`list`](Backend::list) and [`stats`](Backend::stats) read every key of the database, in steps of a thousand, and are
/// for inspection.
///
/// ```no_run
/// # async fn open() -> Result<(), Box<dyn std::error::Error>> {
/// use oncekey::Engine;
/// use oncekey_backends::redis::RedisBackend;
///
/// let backend = RedisBackend::open("redis://:secret@localhost/0").await?;
/// let engine = Engine::builder(backend).start()?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct RedisBackend {
    link: Arc<Link>,
    names: Arc<Names>,
    watchers: Arc<Watchers>,
}

impl RedisBackend {
    /// Connects with the default options; see [`RedisBuilder::open`].
    ///
    /// # Errors
    /// [`RedisOpenError`] says what is in the way.
    ///
    /// ```no_run
    /// # async fn open() -> Result<(), Box<dyn std::error::Error>> {
    /// use oncekey_backends::redis::RedisBackend;
    ///
    /// let backend = RedisBackend::open("redis+cluster://a.example:6379,b.example:6379").await?;
    /// # Ok(()) }
    /// ```
    pub async fn open(url: &str) -> Result<Self, RedisOpenError> {
        Self::builder(url).open().await
    }

    /// Options for connecting to a URL:
    ///
    /// | | |
    /// |---|---|
    /// | one server | `redis://USER:PASSWORD@HOST:PORT/DATABASE` |
    /// | by a socket | `redis+unix:///run/redis.sock?db=0&user=…&pass=…` |
    /// | Sentinel | `redis+sentinel://USER:PASSWORD@HOST:PORT,HOST:PORT/MASTER/DATABASE` |
    /// | Cluster | `redis+cluster://USER:PASSWORD@HOST:PORT,HOST:PORT` |
    ///
    /// `rediss`, `rediss+sentinel` and `rediss+cluster` are the same by TLS, verified by what the system trusts, or by
    /// `?sslrootcert=PATH`. The user and password are Redis's; the sentinels' own are `?sentinel_user=` and
    /// `?sentinel_password=`. `?prefix=` and `?accept=` say what the builder's methods do.
    ///
    /// ```
    /// use oncekey_backends::redis::RedisBackend;
    ///
    /// let builder = RedisBackend::builder("redis://localhost/0?accept=weak-persistence").prefix("shop:");
    /// # let _ = builder;
    /// ```
    pub fn builder(url: impl Into<String>) -> RedisBuilder {
        RedisBuilder::new(Source::Url(url.into()))
    }

    /// Options for a client of the application's own, with its address, credentials and TLS settings. Every arbiter opens
    /// its own connections by it.
    ///
    /// ```no_run
    /// # async fn open() -> Result<(), Box<dyn std::error::Error>> {
    /// use oncekey_backends::redis::RedisBackend;
    ///
    /// let client = redis::Client::open("redis://:secret@localhost/0")?;
    /// let backend = RedisBackend::from_client(client).prefix("shop:").open().await?;
    /// # Ok(()) }
    /// ```
    pub fn from_client(client: Client) -> RedisBuilder {
        RedisBuilder::new(Source::Client(Box::new(client)))
    }

    /// Options for a connection of the application's own, which all arbiters then share: its runtime must outlive the
    /// engine. [`from_client`](Self::from_client) serves better, for three reasons:
    ///
    /// - A manager does not open a second connection, on which Redis could announce that an operation has ended. A caller
    ///   that waits for another process's operation asks for it 30 to 50 times a second instead.
    /// - A manager keeps a connection whose server has fallen silent. Give its client
    ///   [TCP settings](redis::io::tcp::TcpSettings) with a user time-out, or calls fail until the kernel gives it up.
    /// - A manager connects again by itself. The backend looks every ten seconds whether that led to a server that evicts
    ///   keys.
    ///
    /// The manager's own response time-out (0.5 s by default) ends a call before
    /// [`response_timeout`](RedisBuilder::response_timeout) does.
    ///
    /// ```no_run
    /// # async fn open() -> Result<(), Box<dyn std::error::Error>> {
    /// use oncekey_backends::redis::RedisBackend;
    /// use redis::aio::ConnectionManager;
    ///
    /// let manager = ConnectionManager::new(redis::Client::open("redis://localhost/0")?).await?;
    /// let backend = RedisBackend::from_connection_manager(manager.clone()).open().await?;
    /// # Ok(()) }
    /// ```
    pub fn from_connection_manager(manager: ConnectionManager) -> RedisBuilder {
        RedisBuilder::new(Source::Manager(manager))
    }

    pub(super) async fn open_with(mut options: RedisBuilder) -> Result<Self, RedisOpenError> {
        let address = options.address().await?;
        if address.is_tls() {
            // The driver takes the process's choice of cryptography; where there is none yet, this is it.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let prefix = options.prefix.unwrap_or_else(|| "oncekey:".to_owned());
        let channel = format!("{prefix}changed:{}", address.database());
        let names = Arc::new(Names { prefix, channel, with_steps: WithSteps::default() });
        let link = Link::new(address, options.limits, options.accepts);
        doctor::log(&check(&link).await?);
        rights::check(&link, &names.prefix).await?;
        Ok(Self { link: Arc::new(link), names, watchers: Arc::default() })
    }

    /// What the servers are set to, where that is not what this store wants. [`open`](RedisBuilder::open) logs the same.
    ///
    /// # Errors
    /// The servers can't be asked, or are set to what is refused by now.
    ///
    /// ```no_run
    /// # async fn open() -> Result<(), Box<dyn std::error::Error>> {
    /// # use oncekey_backends::redis::RedisBackend;
    /// let backend = RedisBackend::open("redis://localhost/0").await?;
    /// for finding in backend.doctor().await? {
    ///     println!("{finding}");
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn doctor(&self) -> Result<Vec<Finding>, RedisOpenError> {
        check(&self.link).await
    }

    /// Takes steps until all of them are answered: each round is one round trip.
    async fn take(&self, mut steps: Vec<Step>) {
        if self.link.is_cluster() {
            join_all(steps.into_iter().map(|step| self.take_alone(step))).await;
            return;
        }
        while !steps.is_empty() {
            let commands = |now| steps.iter_mut().map(|step| step.depart(now)).collect();
            let answers = match self.link.pipeline(commands).await {
                Ok(answers) => answers,
                Err(failure) => vec![Err(failure); steps.len()],
            };
            steps = steps.into_iter().zip(answers).filter_map(|(step, answer)| step.hear(answer)).collect();
        }
    }

    /// In a cluster each command goes its own way, and waits for no other's node.
    async fn take_alone(&self, step: Step) {
        let mut left = Some(step);
        while let Some(mut step) = left {
            let answer = self.link.command(|now| step.command(now)).await;
            left = step.hear(answer);
        }
    }

    /// Takes one step by itself.
    async fn ask<T: Send + 'static>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, StoreError> {
        ask(request, async |request| self.execute(vec![request]).await).await
    }

    async fn scan_list(&self, message: List) -> Result<Vec<RecordView>, StoreError> {
        let list = timeout(SCAN_LIMIT, scan::list(&self.link, &self.names, message)).await;
        list.unwrap_or_else(|_| Err(too_long()))
    }

    async fn scan_stats(&self) -> Result<StoreStats, StoreError> {
        timeout(SCAN_LIMIT, scan::stats(&self.link, &self.names)).await.unwrap_or_else(|_| Err(too_long()))
    }
}

fn too_long() -> StoreError {
    StoreError::unavailable(format!("the whole store could not be read within {SCAN_LIMIT:?}"))
}

impl Backend for RedisBackend {
    fn session(&self) -> Self {
        Self { link: Arc::new(self.link.another()), names: Arc::clone(&self.names), watchers: Arc::default() }
    }

    /// In a cluster a batch waits for its slowest node: others are not held up by it.
    fn batches_under_way(&self) -> usize {
        if self.link.is_cluster() { usize::MAX } else { BATCHES }
    }

    fn smallest_batch(&self) -> usize {
        if self.link.is_cluster() { usize::MAX } else { SMALLEST_BATCH }
    }

    by_asking! {
        acquire: Acquire -> Acquired,
        renew: Renew -> Renewed,
        complete: Complete -> Completed,
        release: Release -> Released,
        withdraw: Withdraw -> Withdrawn,
        hold: Hold -> Held,
        resolve: Resolve -> Resolved,
        lookup: Lookup -> Option<RecordView>,
        remove: Remove -> Removed,
        begin_step: BeginStep -> StepBegun,
        complete_step: CompleteStep -> StepCompleted,
        fail_step: FailStep -> StepFailed,
        resolve_step: ResolveStep -> Resolved,
    }

    async fn list(&self, message: List) -> Result<Vec<RecordView>, StoreError> {
        self.scan_list(message).await
    }

    /// The server removes what has expired by itself.
    async fn purge(&self, _: Purge) -> Result<Purged, StoreError> {
        Ok(Purged { removed: 0, more: false })
    }

    async fn stats(&self, _: Stats) -> Result<StoreStats, StoreError> {
        self.scan_stats().await
    }

    async fn examine(&self) -> Result<Vec<Finding>, StoreError> {
        self.doctor().await.map_err(StoreError::unavailable)
    }

    async fn watch(&self, message: Watch) -> Result<Changed, StoreError> {
        watch(&self.link, &self.names, &self.watchers, message).await
    }

    async fn execute(&self, batch: Vec<Request>) {
        let until = Instant::now() + self.link.limits().response;
        let mut steps = Vec::with_capacity(batch.len());
        let mut others = Vec::new();
        for request in batch {
            match Step::begin(&self.names, request, until) {
                Ok(step) => steps.push(step),
                // These take long, and the batch is not to wait for them.
                Err(Request::List(message, reply)) => {
                    let store = self.clone();
                    tokio::spawn(async move { reply.send(store.scan_list(message).await) });
                }
                Err(Request::Stats(_, reply)) => {
                    let store = self.clone();
                    tokio::spawn(async move { reply.send(store.scan_stats().await) });
                }
                Err(other) => others.push(other.dispatch(self)),
            }
        }
        futures_util::future::join(self.take(steps), join_all(others)).await;
    }
}

impl fmt::Debug for RedisBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBackend")
            .field("server", &self.link.address().name())
            .field("prefix", &self.names.prefix)
            .finish_non_exhaustive()
    }
}
