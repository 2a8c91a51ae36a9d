//! Messages from NATS JetStream (server 2.9 or later), by a durable pull consumer.
//!
//! | | how |
//! |---|---|
//! | taken | pulled; what a dead consumer had comes again after [`ack_wait`](NatsJetStreamBuilder::ack_wait) |
//! | acknowledged | `ACK` |
//! | retried later | `NAK` with the delay; failures are counted in the stream `oncekey_STREAM_CONSUMER`, since the server counts deliveries, whatever they ended with |
//! | a dead letter | published to `dead.STREAM.CONSUMER` with the headers `Oncekey-Error` and `Oncekey-Id`, and the original's under the prefix `Oncekey-Header-`; then `TERM`. One that is larger than the server takes comes in parts, with the header `Oncekey-Part` |
//!
//! The message's id is the header `Nats-Msg-Id`, or where there is none `STREAM:SEQUENCE`. The guide to
//! [NATS JetStream](crate::guide::nats) has more.

mod letter;
mod publish;
mod source;

use std::fmt;
use std::time::Duration;

pub use async_nats;

pub use publish::NatsPublisher;
pub use source::{NatsJetStream, Receipt};

use crate::consumer::backoff::bounded;

/// What NATS did not do.
///
/// ```no_run
/// # async fn example(client: oncekey::consumer::nats::async_nats::Client) {
/// use oncekey::consumer::nats::NatsJetStream;
///
/// if let Err(refused) = NatsJetStream::builder(client, "ORDERS", "mailers").open().await {
///     eprintln!("{refused}");
/// }
/// # }
/// ```
#[derive(Debug, thiserror::Error)]
#[error("NATS JetStream: {what} failed: {error}")]
pub struct NatsError {
    what: &'static str,
    #[source]
    error: Box<dyn std::error::Error + Send + Sync>,
}

/// For `map_err`.
fn failed<E: Into<Box<dyn std::error::Error + Send + Sync>>>(what: &'static str) -> impl FnOnce(E) -> NatsError {
    move |error| NatsError { what, error: error.into() }
}

/// Options for [`NatsJetStream::builder`].
#[derive(Clone)]
#[must_use]
pub struct NatsJetStreamBuilder {
    client: async_nats::Client,
    stream: String,
    consumer: String,
    dead: String,
    filter: String,
    ack_wait: Duration,
    batch: usize,
}

impl NatsJetStreamBuilder {
    fn new(client: async_nats::Client, stream: &str, consumer: &str) -> Self {
        Self {
            client,
            dead: format!("dead.{stream}.{consumer}"),
            stream: stream.to_owned(),
            consumer: consumer.to_owned(),
            filter: String::new(),
            ack_wait: Duration::from_secs(30),
            batch: 16,
        }
    }

    /// How long the server waits for an answer before it delivers a message again. Default: 30 s. Choose it longer than
    /// jobs usually take: a message that comes again meanwhile is found in flight, and waits.
    pub fn ack_wait(mut self, limit: Duration) -> Self {
        self.ack_wait = bounded(limit);
        self
    }

    /// How many messages are pulled ahead. Default: 16; at least 1.
    pub fn batch(mut self, messages: usize) -> Self {
        self.batch = messages.clamp(1, i32::MAX as usize);
        self
    }

    /// Only messages of this subject. Default: all of the stream.
    pub fn filter(mut self, subject: impl Into<String>) -> Self {
        self.filter = subject.into();
        self
    }

    /// The subject of dead letters. Default: `dead.STREAM.CONSUMER`. A stream for it is made, with dots as underscores.
    pub fn dead_letters(mut self, subject: impl Into<String>) -> Self {
        self.dead = subject.into();
        self
    }

    /// Finds the stream, and makes the consumer, the stream of failures and the dead letters' stream where they are
    /// missing.
    ///
    /// # Errors
    /// NATS can't be reached, has no such stream, or refuses.
    pub async fn open(self) -> Result<NatsJetStream, NatsError> {
        NatsJetStream::open(self).await
    }
}

impl fmt::Debug for NatsJetStreamBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsJetStreamBuilder")
            .field("stream", &self.stream)
            .field("consumer", &self.consumer)
            .finish_non_exhaustive()
    }
}
