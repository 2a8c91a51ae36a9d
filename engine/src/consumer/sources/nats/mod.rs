//! A source for NATS JetStream (server 2.9 or later), which uses a durable pull consumer.
//!
//! | | how |
//! |---|---|
//! | taken | pulled; the server delivers a dead consumer's messages again after [`ack_wait`](NatsJetStreamBuilder::ack_wait) |
//! | acknowledged | `ACK` |
//! | retried later | `NAK` with the delay; failures are counted in the stream `oncekey_STREAM_CONSUMER`, because the server counts deliveries whatever their result |
//! | a dead letter | published to `dead.STREAM.CONSUMER` with the headers `Oncekey-Error` and `Oncekey-Id`, and the original's headers under the prefix `Oncekey-Header-`; then `TERM`. A dead letter that exceeds the server's limit is split into parts with the header `Oncekey-Part` |
//!
//! The message's id is the header `Nats-Msg-Id`, or `STREAM:SEQUENCE` without that header. The guide to
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

/// An operation that NATS refused or did not complete.
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

/// Builds a closure for `map_err`.
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

    /// Sets how long the server waits for an answer before it delivers a message again. Default: 30 s. Choose more than
    /// your jobs usually take. If the server delivers a message again while its job runs, the job does not run twice.
    pub fn ack_wait(mut self, limit: Duration) -> Self {
        self.ack_wait = bounded(limit);
        self
    }

    /// Sets how many messages are pulled ahead. Default: 16; at least 1.
    pub fn batch(mut self, messages: usize) -> Self {
        self.batch = messages.clamp(1, i32::MAX as usize);
        self
    }

    /// Takes only messages with this subject. Default: all messages of the stream.
    pub fn filter(mut self, subject: impl Into<String>) -> Self {
        self.filter = subject.into();
        self
    }

    /// Sets the subject of dead letters. Default: `dead.STREAM.CONSUMER`. The source creates a stream for it, named
    /// after the subject with underscores instead of dots.
    pub fn dead_letters(mut self, subject: impl Into<String>) -> Self {
        self.dead = subject.into();
        self
    }

    /// Finds the stream. Creates the consumer, the stream of failures and the dead-letter stream if they are missing.
    ///
    /// # Errors
    /// NATS cannot be reached, has no such stream, or refuses.
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
