//! Publishing what is in an outbox.

use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;
use tracing::{debug, warn};

use super::{OutboxError, Posted};

/// An outbox's table, as a relay sees it. The three of this module are its implementations.
pub trait Table: Send + Sync + 'static {
    /// The right to publish: one at a time has it, over all processes, and it ends with its process.
    type Turn: Send + 'static;

    /// Takes the turn; `None` while another has it.
    fn take_turn(&self) -> impl Future<Output = Result<Option<Self::Turn>, OutboxError>> + Send;

    /// The first messages, in their order.
    fn first(&self, turn: &mut Self::Turn, limit: i64)
    -> impl Future<Output = Result<Vec<Posted>, OutboxError>> + Send;

    /// Removes messages that are published.
    fn remove(&self, turn: &mut Self::Turn, numbers: Vec<i64>) -> impl Future<Output = Result<(), OutboxError>> + Send;
}

/// Publishes what is in an outbox, in order, and at least once.
///
/// Any number of processes may run one; they take turns, and when the one at work dies another goes on. A message that
/// can't be published holds up those after it, and is tried again, with a growing delay up to some seconds.
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
    wake: Arc<Notify>,
}

/// The longest pause after an error.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

impl<T: Table> Relay<T> {
    pub(super) fn new(table: T) -> Self {
        Self { table, batch: 100, poll: Duration::from_millis(200), wake: Arc::default() }
    }

    /// How many messages are read, and removed once they are published, at a time. Default: 100; at least 1.
    pub fn batch(mut self, messages: u32) -> Self {
        self.batch = i64::from(messages.max(1));
        self
    }

    /// How long an empty outbox, or one whose turn is another's, is not looked at. Default: 200 ms.
    pub fn poll(mut self, interval: Duration) -> Self {
        self.poll = interval;
        self
    }

    /// Tells the relay to look at once: for a writer in the same process, after its commit.
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

    /// Publishes until `until` is ready, and gives how many messages it published.
    ///
    /// # Cancel safety
    /// What was published and not removed yet is published again, by this relay or another.
    pub async fn run<E: fmt::Display>(
        self,
        publish: impl AsyncFn(&Posted) -> Result<(), E>,
        until: impl Future<Output = ()>,
    ) -> u64 {
        let mut published = 0;
        let mut until = pin!(until);
        let (mut turn, mut errors) = (None, 0_u32);
        loop {
            let relayed = tokio::select! {
                biased;
                () = &mut until => return published,
                relayed = self.relay_batch(&mut turn, &publish, &mut published) => relayed,
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
            tokio::select! {
                biased;
                () = &mut until => return published,
                () = sleep(pause) => {}
                () = self.wake.notified(), if errors == 0 => {}
            }
        }
    }

    /// Publishes the first messages; whether there may be more.
    async fn relay_batch<E: fmt::Display>(
        &self,
        turn: &mut Option<T::Turn>,
        publish: &impl AsyncFn(&Posted) -> Result<(), E>,
        published: &mut u64,
    ) -> Result<bool, OutboxError> {
        // Out of its place until the batch is through: after an error, of the connection perhaps, it is taken anew.
        let mut at_work = match turn.take() {
            Some(turn) => turn,
            None => match self.table.take_turn().await? {
                Some(turn) => turn,
                None => return Ok(false),
            },
        };
        let first = self.table.first(&mut at_work, self.batch).await?;
        let mut done = Vec::with_capacity(first.len());
        let mut refused = None;
        for posted in &first {
            match publish(posted).await {
                Ok(()) => done.push(posted.number),
                Err(error) => {
                    refused = Some(OutboxError { what: "publishing a message", reason: error.to_string() });
                    break;
                }
            }
        }
        let (count, is_full) = (done.len(), first.len() as i64 == self.batch);
        if count > 0 {
            self.table.remove(&mut at_work, done).await?;
            *published += count as u64;
            debug!(count, "messages of the outbox were published");
        }
        *turn = Some(at_work);
        refused.map_or(Ok(is_full), Err)
    }
}

impl<T> fmt::Debug for Relay<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").field("batch", &self.batch).field("poll", &self.poll).finish_non_exhaustive()
    }
}
