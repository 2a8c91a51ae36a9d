//! Publishes messages to a stream.

use std::str::FromStr as _;

use async_nats::jetstream::{self, Context};
use async_nats::{Client, HeaderMap, HeaderName, HeaderValue};

use super::{NatsError, failed};
use crate::consumer::Message;

/// Publishes messages to a subject of a stream, in the form that [`NatsJetStream`](super::NatsJetStream) reads, and
/// waits for the stream's confirmation. The server drops a message whose id it has seen within the stream's
/// deduplication window.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use oncekey::consumer::{Message, nats::{NatsPublisher, async_nats}};
///
/// let publisher = NatsPublisher::new(async_nats::connect("127.0.0.1:4222").await?, "orders");
/// publisher.publish(&Message::json("order-17", &["book"])?).await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct NatsPublisher {
    context: Context,
    subject: String,
}

impl NatsPublisher {
    /// Creates a publisher for a subject that a stream captures.
    pub fn new(client: Client, subject: impl Into<String>) -> Self {
        Self { context: jetstream::new(client), subject: subject.into() }
    }

    /// Publishes a message, and returns once the stream has stored it.
    ///
    /// # Errors
    /// The stream did not confirm the message. It may have stored it nonetheless: publish the message again with the
    /// same id.
    pub async fn publish(&self, message: &Message) -> Result<(), NatsError> {
        let mut headers = HeaderMap::new();
        for (name, value) in message.headers() {
            put(&mut headers, name, value)?;
        }
        put(&mut headers, async_nats::header::NATS_MESSAGE_ID.as_ref(), message.id())?;
        send(&self.context, &self.subject, headers, message).await
    }
}

/// Sets a header. Checks it first, because the client panics on a header that NATS cannot carry.
pub(super) fn put(headers: &mut HeaderMap, name: &str, value: &str) -> Result<(), NatsError> {
    let name = HeaderName::from_str(name).map_err(failed("naming a header"))?;
    let value = HeaderValue::from_str(value).map_err(failed("setting a header"))?;
    headers.insert(name, value);
    Ok(())
}

pub(super) async fn send(
    context: &Context,
    subject: &str,
    headers: HeaderMap,
    message: &Message,
) -> Result<(), NatsError> {
    let publishing = context.publish_with_headers(subject.to_owned(), headers, message.payload().clone());
    let confirmed = publishing.await.map_err(failed("publishing a message"))?;
    confirmed.await.map_err(failed("publishing a message")).map(drop)
}
