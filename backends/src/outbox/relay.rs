//! Publishes the messages of an outbox.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use oncekey::record::Owner;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, warn};

use super::{OutboxError, OutboxMessage, Unfit};

/// An outbox's tables, as a relay uses them. This module's three outboxes implement it.
pub trait Table: Send + Sync + 'static {
    /// The right to publish. Only one relay at a time has it, across all processes and machines.
    type Turn: Send + 'static;

    /// Takes the turn for `lease`, in the name of `relay`. Returns `None` while another relay has it.
    fn take_turn(
        &self,
        relay: &str,
        lease: Duration,
    ) -> impl Future<Output = Result<Option<Self::Turn>, OutboxError>> + Send;

    /// Renews the turn for `lease` from now on. Returns false if another relay has it.
    fn keep_turn(
        &self,
        turn: &mut Self::Turn,
        relay: &str,
        lease: Duration,
    ) -> impl Future<Output = Result<bool, OutboxError>> + Send;

    /// Gives the turn up to the next relay.
    fn give_turn_up(&self, turn: Self::Turn, relay: &str) -> impl Future<Output = Result<(), OutboxError>> + Send;

    /// Returns the first rows, in order.
    fn first(
        &self,
        turn: &mut Self::Turn,
        limit: i64,
    ) -> impl Future<Output = Result<Vec<Result<OutboxMessage, Unfit>>, OutboxError>> + Send;

    /// Removes published messages.
    fn remove(&self, turn: &mut Self::Turn, numbers: Vec<i64>) -> impl Future<Output = Result<(), OutboxError>> + Send;

    /// Parks a row.
    fn park(&self, turn: &mut Self::Turn, unfit: &Unfit) -> impl Future<Output = Result<(), OutboxError>> + Send;
}

/// The callback for parked rows.
type OnParked = Arc<dyn Fn(&Unfit) + Send + Sync>;

/// Publishes the messages of an outbox, in order and at least once.
///
/// Any number of processes may run a relay, and one of them publishes. When its machine dies, another continues within
/// the [lease](Self::lease). A message that can't be published delays the messages after it. The relay retries it with
/// a backoff that grows to some seconds, unless [`park_after`](Self::park_after) parks it. A row that can't be read as
/// a message is parked at once.
///
/// ```no_run
/// # async fn example(pool: diesel_async::pooled_connection::deadpool::Pool<diesel_async::AsyncPgConnection>)
/// # -> Result<(), Box<dyn std::error::Error>> {
/// use oncekey::consumer::redis_streams::{RedisPublisher, redis};
/// use oncekey_backends::outbox::PostgresOutbox;
///
/// let mails = RedisPublisher::new(redis::Client::open("redis://127.0.0.1/")?, "mails");
/// let outbox = PostgresOutbox::open(pool).await?;
/// outbox.relay().run(async |posted| mails.publish(&posted.message).await, std::future::pending()).await;
/// # Ok(()) }
/// ```
#[must_use]
pub struct Relay<T> {
    table: T,
    batch: i64,
    poll: Duration,
    lease: Duration,
    park_after: Option<u32>,
    on_parked: Option<OnParked>,
    wake: Arc<Notify>,
    name: String,
}

/// The longest pause after an error.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The turn, and the time until which it certainly belongs to this relay.
struct Held<T> {
    turn: T,
    renewed: Instant,
    until: Instant,
}

/// The last message that could not be published, and how often in a row.
#[derive(Default)]
struct Refused {
    number: i64,
    times: u32,
}

impl<T: Table> Relay<T> {
    pub(super) fn new(table: T) -> Self {
        let name = format!("{:032x}", u128::from_be_bytes(*Owner::random().as_bytes()));
        Self {
            table,
            batch: 100,
            poll: Duration::from_millis(200),
            lease: Duration::from_secs(10),
            park_after: None,
            on_parked: None,
            wake: Arc::default(),
            name,
        }
    }

    /// Sets how many messages are read together, and removed together once they are published. Default: 100; at least
    /// 1.
    pub fn batch(mut self, messages: u32) -> Self {
        self.batch = i64::from(messages.max(1));
        self
    }

    /// Sets the pause before the relay checks the outbox again if it is empty or another relay has the turn. Default:
    /// 200 ms.
    pub fn poll(mut self, interval: Duration) -> Self {
        self.poll = interval;
        self
    }

    /// Sets how long the turn lasts without a renewal, and so how long an outbox stands still when its relay's machine
    /// dies. A relay that can't renew its turn stops publishing when the turn ends. Default: 10 s; at least 1 s. It has
    /// no effect on SQLite.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease.max(Duration::from_secs(1));
        self
    }

    /// Parks a message that could not be published this many times in a row, so that the messages after it can be
    /// published. Without this, the relay retries it as long as it runs, which keeps the order. At least 1.
    pub fn park_after(mut self, tries: u32) -> Self {
        self.park_after = Some(tries.max(1));
        self
    }

    /// Calls `hear` for each parked row, in addition to the warning in the log. `hear` must not block.
    ///
    /// ```
    /// # use oncekey_backends::outbox::SqliteOutbox;
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("shop.db");
    /// let relay = SqliteOutbox::open(&path)?.relay().on_parked(|row| eprintln!("row {}: {}", row.number, row.reason));
    /// # let _ = relay;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn on_parked(mut self, hear: impl Fn(&Unfit) + Send + Sync + 'static) -> Self {
        self.on_parked = Some(Arc::new(hear));
        self
    }

    /// Returns a signal that makes the relay check at once, for a writer in the same process to use after its commit.
    ///
    /// ```
    /// # use oncekey_backends::outbox::SqliteOutbox;
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("shop.db");
    /// let relay = SqliteOutbox::open(&path)?.relay();
    /// let wake = relay.wake();
    /// wake.notify_one();
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn wake(&self) -> Arc<Notify> {
        Arc::clone(&self.wake)
    }

    /// Publishes until `until` is ready, and returns how many messages it published.
    ///
    /// # Cancel safety
    /// Messages that were published but not yet removed are published again, by this relay or another. Another relay
    /// starts when this one's lease ends.
    pub async fn run<E: fmt::Display>(
        self,
        publish: impl AsyncFn(&OutboxMessage) -> Result<(), E>,
        until: impl Future<Output = ()>,
    ) -> u64 {
        let mut published = 0;
        let mut until = pin!(until);
        let (mut held, mut refused, mut errors) = (None, Refused::default(), 0_u32);
        loop {
            let relayed = tokio::select! {
                biased;
                () = &mut until => break,
                relayed = self.relay_batch(&mut held, &mut refused, &publish, &mut published) => relayed,
            };
            let pause = match relayed {
                Ok(true) => {
                    errors = 0;
                    continue;
                }
                Ok(false) => {
                    errors = 0;
                    self.poll
                }
                Err(error) => {
                    warn!(%error, "messages stay in the outbox for now");
                    errors = (errors + 1).min(10);
                    (Duration::from_millis(50) * 2_u32.pow(errors)).min(LONGEST_PAUSE)
                }
            };
            // A pausing relay keeps its turn. Otherwise another relay would try the same message.
            let pause = if held.is_some() { pause.min(self.lease / 3) } else { pause };
            tokio::select! {
                biased;
                () = &mut until => break,
                () = sleep(pause) => {}
                () = self.wake.notified(), if errors == 0 => {}
            }
        }
        if let Some(held) = held {
            // If this fails, the lease ends the turn.
            let _ = timeout(Duration::from_secs(1), self.table.give_turn_up(held.turn, &self.name)).await;
        }
        published
    }

    /// Publishes the first messages. Returns whether there may be more.
    async fn relay_batch<E: fmt::Display>(
        &self,
        held: &mut Option<Held<T::Turn>>,
        refused: &mut Refused,
        publish: &impl AsyncFn(&OutboxMessage) -> Result<(), E>,
        published: &mut u64,
    ) -> Result<bool, OutboxError> {
        if !self.has_turn(held).await? {
            return Ok(false);
        }
        let relayed = self.relay_held(held, refused, publish, published).await;
        if relayed.is_err() && held.as_ref().is_some_and(|held| Instant::now() >= held.until) {
            *held = None;
        }
        relayed
    }

    /// Takes the turn, or renews it after a third of its lease.
    async fn has_turn(&self, held: &mut Option<Held<T::Turn>>) -> Result<bool, OutboxError> {
        let now = Instant::now();
        let within = |limit: Duration| sleep_until(now + limit);
        let Some(mine) = held else {
            let taken = tokio::select! {
                taken = self.table.take_turn(&self.name, self.lease) => taken?,
                () = within(self.lease) => return Err(OutboxError::silent()),
            };
            *held = taken.map(|turn| Held { turn, renewed: now, until: now + self.lease });
            return Ok(held.is_some());
        };
        if now.duration_since(mine.renewed) < self.lease / 3 && now < mine.until {
            return Ok(true);
        }
        let kept = tokio::select! {
            kept = self.table.keep_turn(&mut mine.turn, &self.name, self.lease) => kept?,
            () = within(self.lease) => return Err(OutboxError::silent()),
        };
        if kept {
            (mine.renewed, mine.until) = (now, now + self.lease);
        } else {
            *held = None;
        }
        Ok(kept)
    }

    async fn relay_held<E: fmt::Display>(
        &self,
        held: &mut Option<Held<T::Turn>>,
        refused: &mut Refused,
        publish: &impl AsyncFn(&OutboxMessage) -> Result<(), E>,
        published: &mut u64,
    ) -> Result<bool, OutboxError> {
        let Some(mine) = held else { return Ok(false) };
        let first = tokio::select! {
            first = self.table.first(&mut mine.turn, self.batch) => first?,
            () = sleep_until(mine.until) => return Err(OutboxError::silent()),
        };
        let is_full = first.len() as i64 == self.batch;
        let (done, failed, unfit) =
            (RefCell::new(Vec::with_capacity(first.len())), RefCell::new(None), RefCell::new(None));
        let publishing = async {
            for row in &first {
                let posted = match row {
                    Ok(posted) => posted,
                    Err(row) => {
                        // The messages before it are removed first, so that parking it republishes none.
                        *unfit.borrow_mut() = Some(row.clone());
                        return;
                    }
                };
                match publish(posted).await {
                    Ok(()) => done.borrow_mut().push(posted.number),
                    Err(error) => {
                        *failed.borrow_mut() = Some((posted.number, error.to_string()));
                        return;
                    }
                }
            }
        };
        // No message may be published in a turn that may belong to another relay.
        let lost = tokio::select! {
            biased;
            () = publishing => None,
            lost = self.renew(mine) => Some(lost),
        };
        let done = done.into_inner();
        let count = done.len();
        if count > 0 {
            // Published messages are removed, whichever relay has the turn now.
            self.table.remove(&mut mine.turn, done).await?;
            *published += count as u64;
            debug!(count, "messages of the outbox were published");
        }
        if let Some(lost) = lost {
            *held = None;
            return Err(lost);
        }
        if let Some(row) = unfit.into_inner() {
            self.park(mine, &row).await?;
            return Ok(true);
        }
        let Some((number, reason)) = failed.into_inner() else { return Ok(is_full) };
        let times = if refused.number == number { refused.times + 1 } else { 1 };
        *refused = Refused { number, times };
        if self.park_after.is_some_and(|tries| times >= tries) {
            self.park(mine, &Unfit { number, reason: format!("it could not be published {times} times: {reason}") })
                .await?;
            return Ok(true);
        }
        Err(OutboxError { what: "publishing a message", reason })
    }

    async fn park(&self, mine: &mut Held<T::Turn>, row: &Unfit) -> Result<(), OutboxError> {
        self.table.park(&mut mine.turn, row).await?;
        warn!(number = row.number, reason = row.reason, "a message of the outbox was parked");
        if let Some(hear) = &self.on_parked {
            hear(row);
        }
        Ok(())
    }

    /// Renews the turn as long as it certainly belongs to this relay, and returns when that is no longer certain.
    async fn renew(&self, mine: &mut Held<T::Turn>) -> OutboxError {
        loop {
            let next = (mine.renewed + self.lease / 3).max(Instant::now());
            if next >= mine.until {
                sleep_until(mine.until).await;
                return OutboxError::silent();
            }
            sleep_until(next).await;
            let now = Instant::now();
            let kept = tokio::select! {
                kept = self.table.keep_turn(&mut mine.turn, &self.name, self.lease) => kept,
                () = sleep_until(mine.until) => return OutboxError::silent(),
            };
            match kept {
                Ok(true) => (mine.renewed, mine.until) = (now, now + self.lease),
                Ok(false) => {
                    let reason = "another relay has it".to_owned();
                    return OutboxError { what: "keeping the turn", reason };
                }
                Err(error) => {
                    warn!(%error, "the relay's turn could not be renewed");
                    mine.renewed = now;
                }
            }
        }
    }
}

impl OutboxError {
    fn silent() -> Self {
        Self { what: "keeping the turn", reason: "the database did not answer within the lease".to_owned() }
    }
}

impl<T> fmt::Debug for Relay<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").field("batch", &self.batch).field("poll", &self.poll).finish_non_exhaustive()
    }
}
