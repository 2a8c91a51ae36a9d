//! Messages from Redis Streams, by a consumer group.
//!
//! | | how |
//! |---|---|
//! | taken | `XREADGROUP`, on a connection of its own |
//! | of a consumer that died | `XAUTOCLAIM`, once they were idle for [`claim_after`](RedisStreamsBuilder::claim_after) |
//! | acknowledged | `XACK` |
//! | retried later | it stays pending with this consumer, which delivers it again after the delay; its failures are counted in the hash `STREAM.GROUP.failures` |
//! | a dead letter | `XADD STREAM.dead` with its error and the original's headers under the prefix `oncekey-header-`, and `XACK`, in one script that ends where Redis refuses the first |
//!
//! An entry's fields `id` and `payload` are the message's, all others its headers; an entry without an `id` has its
//! stream id. The guide to [Redis Streams](crate::guide::redis_streams) has more.

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

/// A command that Redis did not answer, or refused.
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

    /// How long a message lies with a consumer that gives no sign of life before another takes it. Default: 30 s; at
    /// least 100 ms. A consumer that lives gives a sign for what it has in hand at a third of this.
    pub fn claim_after(mut self, idle: Duration) -> Self {
        self.claim_after = bounded(idle.max(Duration::from_millis(100)));
        self
    }

    /// How many messages are read at once. Default: 16; at least 1.
    pub fn batch(mut self, messages: usize) -> Self {
        self.batch = messages.clamp(1, i32::MAX as usize);
        self
    }

    /// How many messages may wait to be retried before no new ones are read. Default: 1 000; at least 1.
    pub fn max_waiting(mut self, messages: usize) -> Self {
        self.max_waiting = messages.max(1);
        self
    }

    /// Where dead letters go. Default: the stream's name with `.dead`.
    pub fn dead_letters(mut self, stream: impl Into<String>) -> Self {
        self.names.dead = stream.into();
        self
    }

    /// A group that is made here begins with what comes from now on. Default: with all that is in the stream.
    pub fn from_now_on(mut self) -> Self {
        self.from_start = false;
        self
    }

    /// Deletes an entry when it is settled for good, so that the stream does not grow. Only for streams that no other
    /// group reads. Default: entries stay, and whoever adds to the stream trims it.
    pub fn delete_settled(mut self) -> Self {
        self.delete_settled = true;
        self
    }

    /// How long a command may take before its connection is given up. Default: 5 s.
    pub fn deadline(mut self, limit: Duration) -> Self {
        self.deadline = bounded(limit);
        self
    }

    /// Connects, and makes the group where it is missing.
    ///
    /// # Errors
    /// Redis can't be reached, or refuses.
    pub async fn open(self) -> Result<RedisStreams, RedisStreamsError> {
        let commands = Arc::new(Link::new(self.client.clone(), self.deadline));
        RedisStreams::open(self, commands).await
    }
}

/// The client's URL may hold a password.
impl fmt::Debug for RedisStreamsBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStreamsBuilder").field("names", &self.names).finish_non_exhaustive()
    }
}
