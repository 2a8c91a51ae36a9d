//! A source for Redis Streams, which uses a consumer group.
//!
//! | | how |
//! |---|---|
//! | taken | `XREADGROUP`, on a separate connection |
//! | taken over from a dead consumer | `XAUTOCLAIM`, once the messages have been idle for [`claim_after`](RedisStreamsBuilder::claim_after) |
//! | acknowledged | `XACK` |
//! | retried later | the message stays pending with this consumer, which delivers it again after the delay; its failures are counted in the hash `STREAM.GROUP.failures` |
//! | a dead letter | `XADD STREAM.dead` with its error and the original's headers under the prefix `oncekey-header-`, and `XACK`, in one script that stops if Redis refuses the first command |
//!
//! The fields `id` and `payload` of an entry become the message's id and payload; all others become headers. Without an
//! `id`, the message's id is the entry's stream id. The guide to [Redis Streams](crate::guide::redis_streams) has more.

mod link;
mod publish;
mod source;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use redis;

pub use publish::RedisPublisher;
pub use source::{Receipt, RedisStreams};

use crate::consumer::backoff::bounded;
use link::Link;

/// A command that Redis refused or did not answer.
///
/// ```
/// use oncekey::consumer::redis_streams::{RedisStreams, redis};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let nobody = redis::Client::open("redis://127.0.0.1:1/").expect("a URL");
/// let refused = RedisStreams::builder(nobody, "orders", "mailers", "mailer-1").open().await.unwrap_err();
/// assert!(refused.to_string().contains("connecting"), "{refused}");
/// # }
/// ```
#[derive(Debug, thiserror::Error)]
#[error("Redis: {what} failed: {error}")]
pub struct RedisStreamsError {
    what: &'static str,
    #[source]
    error: redis::RedisError,
}

/// Options for [`RedisStreams::builder`].
#[derive(Clone)]
#[must_use]
pub struct RedisStreamsBuilder {
    client: redis::Client,
    names: Names,
    claim_after: Duration,
    batch: usize,
    max_waiting: usize,
    from_start: bool,
    delete_settled: bool,
    deadline: Duration,
}

#[derive(Debug, Clone)]
struct Names {
    stream: String,
    group: String,
    consumer: String,
    dead: String,
    failures: String,
}

impl RedisStreamsBuilder {
    fn new(client: redis::Client, stream: &str, group: &str, consumer: &str) -> Self {
        Self {
            client,
            names: Names {
                dead: format!("{stream}.dead"),
                failures: format!("{stream}.{group}.failures"),
                stream: stream.to_owned(),
                group: group.to_owned(),
                consumer: consumer.to_owned(),
            },
            claim_after: Duration::from_secs(30),
            batch: 16,
            max_waiting: 1_000,
            from_start: true,
            delete_settled: false,
            deadline: Duration::from_secs(5),
        }
    }

    /// Sets how long a consumer may be silent before another one takes its messages. Default: 30 s; at least 100 ms. A
    /// live consumer refreshes its messages three times within this time.
    pub fn claim_after(mut self, idle: Duration) -> Self {
        self.claim_after = bounded(idle.max(Duration::from_millis(100)));
        self
    }

    /// Sets how many messages are read at once. Default: 16; at least 1.
    pub fn batch(mut self, messages: usize) -> Self {
        self.batch = messages.clamp(1, i32::MAX as usize);
        self
    }

    /// Sets how many messages may wait to be retried before the source reads no new ones. Default: 1 000; at least 1.
    pub fn max_waiting(mut self, messages: usize) -> Self {
        self.max_waiting = messages.max(1);
        self
    }

    /// Sets the stream for dead letters. Default: the stream's name with `.dead`.
    pub fn dead_letters(mut self, stream: impl Into<String>) -> Self {
        self.names.dead = stream.into();
        self
    }

    /// If the group is created here, it begins with entries that are added from now on. Default: with all entries of
    /// the stream.
    pub fn from_now_on(mut self) -> Self {
        self.from_start = false;
        self
    }

    /// Deletes an entry once it is acknowledged or a dead letter, so that the stream does not grow. Use it only for
    /// streams that no other group reads. Default: entries stay, and publishers trim the stream.
    pub fn delete_settled(mut self) -> Self {
        self.delete_settled = true;
        self
    }

    /// Sets how long a command may take before its connection is replaced. Default: 5 s.
    pub fn deadline(mut self, limit: Duration) -> Self {
        self.deadline = bounded(limit);
        self
    }

    /// Connects, and creates the group if it is missing.
    ///
    /// # Errors
    /// Redis cannot be reached, or refuses.
    pub async fn open(self) -> Result<RedisStreams, RedisStreamsError> {
        let commands = Arc::new(Link::new(self.client.clone(), self.deadline));
        RedisStreams::open(self, commands).await
    }
}

/// Leaves out the client, whose URL may contain a password.
impl fmt::Debug for RedisStreamsBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStreamsBuilder").field("names", &self.names).finish_non_exhaustive()
    }
}
