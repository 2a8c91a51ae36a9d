//! A source for RabbitMQ (3.10 or later).
//!
//! | | how |
//! |---|---|
//! | taken | by a consumer with manual acknowledgements; the broker redelivers a dead consumer's messages |
//! | acknowledged | `basic.ack` |
//! | retried later, because it cannot run now | held by the consumer for up to two seconds; for a longer delay, published like a message whose job failed, without counting a failure |
//! | retried later, because its job failed | published, with confirmation, to the queue `QUEUE.retry.MS`, whose messages live that long and then return to `QUEUE` through the internal exchange `QUEUE.retry`; then acknowledged. The header `oncekey-failures` counts the failures |
//! | a dead letter | published, with confirmation, to the exchange `QUEUE.dead` with the header `oncekey-error`; then acknowledged. The queue `QUEUE.dead` is bound to it |
//!
//! A retry and a dead letter keep the properties `message_id`, `content_type`, `content_encoding`, `correlation_id`,
//! `reply_to`, `timestamp`, `priority`, `type` and `app_id`, and the original's headers under the prefix
//! `oncekey-header-`. They keep nothing else.
//!
//! The message's id is the property `message_id`. RabbitMQ assigns none itself: **a message published without one has
//! an empty id**. The guide to [RabbitMQ](crate::guide::rabbitmq) has more.

mod letter;
mod link;
mod publish;
mod source;

use std::fmt;
use std::time::Duration;

pub use lapin;

pub use publish::RabbitPublisher;
pub use source::{RabbitMq, Receipt};

use lapin::uri::AMQPUri;

/// Why an operation on RabbitMQ failed.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use oncekey::consumer::rabbitmq::RabbitMq;
///
/// let refused = RabbitMq::builder("amqp://u:secret@127.0.0.1:1/%2f", "orders").expect("a URI").open().await.unwrap_err();
/// assert!(!refused.to_string().contains("secret"), "{refused}");
/// # }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RabbitMqError {
    /// The URI is invalid. It is not shown, because it may contain a password.
    #[error("RabbitMQ: the URI is not of the form amqp://user:password@host:port/vhost: {0}")]
    Uri(String),
    /// The client returned an error.
    #[error("RabbitMQ: {what} failed: {error}")]
    Client {
        /// The operation that failed.
        what: &'static str,
        /// Why it failed.
        #[source]
        error: lapin::Error,
    },
    /// The broker did not accept a message.
    #[error("RabbitMQ did not take a message for {0:?}: there is no such queue, or it is full")]
    NotTaken(String),
    /// A message's id, or the name of one of its headers, is longer than AMQP allows.
    #[error("RabbitMQ takes ids and names of headers of 255 bytes at most; this one has {0}")]
    TooLong(usize),
    /// The broker cancelled the consumer, because its queue was deleted or moved.
    #[error("RabbitMQ ended the consumer of {0:?}")]
    Ended(String),
    /// The broker did not answer within the limit.
    #[error("RabbitMQ: {0} was not answered in time")]
    Silent(&'static str),
}

/// Options for [`RabbitMq::builder`].
#[derive(Clone)]
#[must_use]
pub struct RabbitMqBuilder {
    uri: AMQPUri,
    queue: String,
    dead: String,
    prefetch: u16,
    classic: bool,
    delivery_limit: Option<u32>,
    deadline: Duration,
}

impl RabbitMqBuilder {
    fn new(uri: &str, queue: &str) -> Result<Self, RabbitMqError> {
        Ok(Self {
            uri: uri.parse().map_err(RabbitMqError::Uri)?,
            dead: format!("{queue}.dead"),
            queue: queue.to_owned(),
            prefetch: 32,
            classic: false,
            delivery_limit: None,
            deadline: Duration::from_secs(10),
        })
    }

    /// Sets how many messages the broker sends ahead. Default: 32; at least 1. Choose at least the processor's
    /// concurrency, or, if the processor keeps an order, at least the number of messages that it holds.
    pub fn prefetch(mut self, messages: u16) -> Self {
        self.prefetch = messages.max(1);
        self
    }

    /// Sets where dead letters go: the name of the exchange, and of the queue that is bound to it. Default: the queue's
    /// name with `.dead`.
    pub fn dead_letters(mut self, name: impl Into<String>) -> Self {
        self.dead = name.into();
        self
    }

    /// Uses a durable classic queue. Default: a quorum queue, the type that the broker's documentation recommends for
    /// messages that must not be lost. The retry queues are quorum queues in either case: only these forward messages
    /// so that no crash of the broker can lose one.
    pub fn classic(mut self) -> Self {
        self.classic = true;
        self
    }

    /// Sets how many times the broker may redeliver a message of the quorum queue before it drops it. Default: no
    /// limit, even on RabbitMQ 4, which limits queues that are declared without a limit to 20. For existing queues, see
    /// [`has_delivery_limit_asked_for`](RabbitMq::has_delivery_limit_asked_for).
    pub fn delivery_limit(mut self, deliveries: u32) -> Self {
        self.delivery_limit = Some(deliveries);
        self
    }

    /// Sets how long the broker may take to answer before the connection is closed. Default: 10 s.
    pub fn deadline(mut self, limit: Duration) -> Self {
        self.deadline = limit;
        self
    }

    /// Connects. Declares the queue, the dead-letter exchange and its queue if they are missing.
    ///
    /// # Errors
    /// RabbitMQ cannot be reached, or refuses.
    pub async fn open(self) -> Result<RabbitMq, RabbitMqError> {
        RabbitMq::open(self).await
    }
}

/// Leaves out the URI, which may contain a password.
impl fmt::Debug for RabbitMqBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitMqBuilder").field("queue", &self.queue).finish_non_exhaustive()
    }
}
