//! The public handle of the Redis backend, and its implementation of [`Backend`].

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

/// While this many batches are in flight on one connection, new messages gather into the next batch.
const BATCHES: usize = 2;
/// Splitting a batch into smaller pipelines costs more reads and writes than the parallel work saves.
const SMALLEST_BATCH: usize = 8;
/// The time limit for reading the whole store.
const SCAN_LIMIT: Duration = Duration::from_secs(60);

/// Stores records in Redis or Valkey: one server, a master that Sentinel names, or a cluster.
///
/// A record is one Redis key. If the record has steps, they are a second key in the same slot. A first use takes two
/// commands: the claim (`SET … NX GET PX`) and the outcome (a script that checks the owner). A replay takes one. Each
/// arbiter has one connection, on which its backend actor sends the messages waiting in its mailbox as one pipeline.
/// All times come from the server's clock: a record's lease and retention are encoded in its key's time to live.
///
/// **If Redis loses a record, its operation runs again.** The page about [Redis](crate::redis#what-is-promised) gives
/// the risk for each persistence setting and topology. The backend refuses a server that evicts keys, and warns about
/// one with weak persistence. It does not support transactions with the application's own rows.
///
/// Redis expires the records by itself, so [`purge`](Backend::purge) does nothing. Redis keeps no order of keys:
/// [`list`](Backend::list) and [`stats`](Backend::stats) read every key of the database, a thousand at a time. Use them
/// for inspection only.
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
    /// [`RedisOpenError`] says why the store could not be opened.
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

    /// Returns options for connecting to a URL:
    ///
    /// | | |
    /// |---|---|
    /// | one server | `redis://USER:PASSWORD@HOST:PORT/DATABASE` |
    /// | by a socket | `redis+unix:///run/redis.sock?db=0&user=…&pass=…` |
    /// | Sentinel | `redis+sentinel://USER:PASSWORD@HOST:PORT,HOST:PORT/MASTER/DATABASE` |
    /// | Cluster | `redis+cluster://USER:PASSWORD@HOST:PORT,HOST:PORT` |
    ///
    /// `rediss`, `rediss+sentinel` and `rediss+cluster` are the same over TLS. The certificates that the system trusts,
    /// or those in `?sslrootcert=PATH`, verify the server. The user and password are those of Redis; set the sentinels'
    /// own with `?sentinel_user=` and `?sentinel_password=`. `?prefix=` and `?accept=` have the same effect as the
    /// builder's methods.
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

    /// Returns options for connecting with the application's own client, including its address, credentials and TLS
    /// settings. Every arbiter opens its own connections through it.
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

    /// Returns options for using the application's own connection, which all arbiters then share. Its runtime must
    /// outlive the engine. Prefer [`from_client`](Self::from_client), for three reasons:
    ///
    /// - A manager can't open the second connection on which Redis announces that an operation has ended. Instead, a
    ///   caller that waits for another process's operation polls 30 to 50 times a second.
    /// - A manager keeps a connection whose server has gone silent. Give its client [TCP
    ///   settings](redis::io::tcp::TcpSettings) with a user timeout. Otherwise calls fail until the kernel closes the
    ///   connection.
    /// - A manager reconnects by itself. Every ten seconds, the backend checks whether the manager has connected to a
    ///   server that evicts keys.
    ///
    /// The manager's own response timeout (0.5 s by default) ends a call before
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
            // The driver uses the process's default crypto provider; this sets one if there is none yet.
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

    /// Returns the server settings that differ from what this store needs. [`open`](RedisBuilder::open) logs the same
    /// findings.
    ///
    /// # Errors
    /// Fails if the backend can't ask the servers, or if a server now has a setting that the backend refuses.
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

    /// Executes steps until all of them are answered. Each round is one round trip.
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

    /// Executes one step by itself. In a cluster, each command goes to its own node and waits for no other node.
    async fn take_alone(&self, step: Step) {
        let mut left = Some(step);
        while let Some(mut step) = left {
            let answer = self.link.command(|now| step.command(now)).await;
            left = step.hear(answer);
        }
    }

    /// Executes one step by itself.
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

    /// In a cluster, a batch waits for its slowest node. With no limit here, the other batches need not wait for it.
    fn max_in_flight_batches(&self) -> usize {
        if self.link.is_cluster() { usize::MAX } else { BATCHES }
    }

    fn min_batch_size(&self) -> usize {
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

    /// Redis removes expired records by itself.
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
                // These take long, and the batch must not wait for them.
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
