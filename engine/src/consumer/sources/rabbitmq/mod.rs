//! Messages from RabbitMQ (3.10 or later).
//!
//! | | how |
//! |---|---|
//! | taken | a consumer with manual acknowledgements; what a dead consumer had is redelivered by the broker |
//! | acknowledged | `basic.ack` |
//! | retried later, since it can't run now | held by the consumer for up to two seconds; with a longer delay, published like one whose job failed, and not counted |
//! | retried later, since its job failed | published, confirmed, to the queue `QUEUE.retry.MS` whose messages live that long and then return to `QUEUE` by the internal exchange `QUEUE.retry`; then acknowledged. The header `oncekey-failures` counts |
//! | a dead letter | published, confirmed, to the exchange `QUEUE.dead` with the header `oncekey-error`; then acknowledged. The queue `QUEUE.dead` is bound to it |
//!
//! A retry and a dead letter keep the properties `message_id`, `content_type`, `content_encoding`, `correlation_id`,
//! `reply_to`, `timestamp`, `priority`, `type` and `app_id`, and the original's headers under the prefix
//! `oncekey-header-`. Nothing else goes with them.
//!
//! The message's id is the property `message_id`. RabbitMQ gives none of its own: **a message that was published without
//! one has an empty id**. The guide to [RabbitMQ](crate::guide::rabbitmq) has more.

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

/// What RabbitMQ did not do.
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
    /// The URI is none. It may hold a password, and is not shown.
    #[error("RabbitMQ: the URI is not of the form amqp://user:password@host:port/vhost: {0}")]
    Uri(String),
    /// The client's error.
    #[error("RabbitMQ: {what} failed: {error}")]
    Client {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        error: lapin::Error,
    },
    /// The broker did not take a message.
    #[error("RabbitMQ did not take a message for {0:?}: there is no such queue, or it is full")]
    NotTaken(String),
    /// A message's id, or the name of one of its headers, is longer than AMQP allows.
    #[error("RabbitMQ takes ids and names of headers of 255 bytes at most; this one has {0}")]
    TooLong(usize),
    /// The broker cancelled the consumer: its queue was deleted, or moved.
    #[error("RabbitMQ ended the consumer of {0:?}")]
    Ended(String),
    /// No answer within the limit.
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

    /// How many messages the broker hands out ahead. Default: 32; at least 1. Choose it no smaller than the processor's
    /// concurrency, or the messages that it has in hand where it keeps an order.
    pub fn prefetch(mut self, messages: u16) -> Self {
        self.prefetch = messages.max(1);
        self
    }

    /// Where dead letters go: the name of the exchange and of the queue that is bound to it. Default: the queue's name
    /// with `.dead`.
    pub fn dead_letters(mut self, name: impl Into<String>) -> Self {
        self.dead = name.into();
        self
    }

    /// The queue is a durable classic one. Default: a quorum queue, the type that the broker's documentation recommends
    /// for messages that must not be lost. The queues for retries are quorum queues either way: they alone hand messages
    /// on without a moment in which a crash of the broker loses one.
    pub fn classic(mut self) -> Self {
        self.classic = true;
        self
    }

    /// How often the broker may redeliver a message of the quorum queue before it drops it. Default: without limit, also on
    /// RabbitMQ 4, where a queue has a limit of 20 if it is declared without one. See
    /// [`has_delivery_limit_asked_for`](RabbitMq::has_delivery_limit_asked_for) for queues that exist.
    pub fn delivery_limit(mut self, deliveries: u32) -> Self {
        self.delivery_limit = Some(deliveries);
        self
    }

    /// How long the broker may take for an answer before the connection is given up. Default: 10 s.
    pub fn deadline(mut self, limit: Duration) -> Self {
        self.deadline = limit;
        self
    }

    /// Connects, and declares the queue, the dead letters' exchange and their queue where they are missing.
    ///
    /// # Errors
    /// RabbitMQ can't be reached, or refuses.
    pub async fn open(self) -> Result<RabbitMq, RabbitMqError> {
        RabbitMq::open(self).await
    }
}

/// The URI may hold a password.
impl fmt::Debug for RabbitMqBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitMqBuilder").field("queue", &self.queue).finish_non_exhaustive()
    }
}
