//! Adds messages to a stream.

use std::time::Duration;

use redis::{Client, Cmd};

use super::RedisStreamsError;
use super::link::Link;
use crate::consumer::Message;

/// Adds messages to a stream, in the form that [`RedisStreams`](super::RedisStreams) reads.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use oncekey::consumer::{Message, redis_streams::{RedisPublisher, redis}};
///
/// let publisher = RedisPublisher::new(redis::Client::open("redis://127.0.0.1/")?, "orders");
/// publisher.publish(&Message::json("order-17", &["book"])?).await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct RedisPublisher {
    link: Link,
    stream: String,
    max_len: Option<usize>,
}

impl RedisPublisher {
    /// Creates a publisher, which connects when it sends the first message.
    pub fn new(client: Client, stream: impl Into<String>) -> Self {
        Self { link: Link::new(client, Duration::from_secs(5)), stream: stream.into(), max_len: None }
    }

    /// Trims the stream to approximately this many entries. **Redis drops the oldest entries even if nobody has read
    /// them**, so choose more than any backlog. Default: no trimming.
    #[must_use]
    pub fn max_len(mut self, entries: usize) -> Self {
        self.max_len = Some(entries);
        self
    }

    /// Adds a message, and returns once Redis has it.
    ///
    /// # Errors
    /// Redis did not confirm the message. It may have it nonetheless: publish the message again with the same id.
    pub async fn publish(&self, message: &Message) -> Result<(), RedisStreamsError> {
        let mut command = Cmd::new();
        command.arg("XADD").arg(&self.stream);
        if let Some(entries) = self.max_len {
            command.arg("MAXLEN").arg("~").arg(entries);
        }
        command.arg("*");
        for (name, value) in message.headers() {
            command.arg(name).arg(value);
        }
        // Added last, so that a header of the same name cannot replace them.
        command.arg("id").arg(message.id()).arg("payload").arg(message.payload().as_ref());
        self.link.ask("adding a message", &command).await
    }
}
