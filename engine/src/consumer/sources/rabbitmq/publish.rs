//! Publishes messages to a queue.

use std::fmt;
use std::time::Duration;

use lapin::types::{FieldTable, ShortString};
use lapin::uri::AMQPUri;
use lapin::{BasicProperties, Channel, Connection};
use tokio::sync::Mutex;

use super::RabbitMqError;
use super::link::{confirming, connect, publish, text};
use crate::consumer::Message;

/// Publishes messages to a queue in the form that [`RabbitMq`](super::RabbitMq) reads. The messages are persistent, and
/// the broker confirms each one.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use oncekey::consumer::{Message, rabbitmq::RabbitPublisher};
///
/// let publisher = RabbitPublisher::new("amqp://127.0.0.1:5672/%2f", "", "orders")?;
/// publisher.publish(&Message::json("order-17", &["book"])?).await?;
/// # Ok(()) }
/// ```
pub struct RabbitPublisher {
    uri: AMQPUri,
    exchange: String,
    routing_key: String,
    link: Mutex<Option<(Connection, Channel)>>,
}

const DEADLINE: Duration = Duration::from_secs(10);

impl RabbitPublisher {
    /// Creates a publisher for an exchange and a routing key. With the default exchange, whose name is empty, the key
    /// is a queue's name. The publisher connects when it sends the first message. The queue must exist by then.
    ///
    /// # Errors
    /// The URI is invalid.
    pub fn new(uri: &str, exchange: impl Into<String>, routing_key: impl Into<String>) -> Result<Self, RabbitMqError> {
        let uri = uri.parse().map_err(RabbitMqError::Uri)?;
        Ok(Self { uri, exchange: exchange.into(), routing_key: routing_key.into(), link: Mutex::new(None) })
    }

    /// Publishes a message, and returns once the broker has stored it.
    ///
    /// # Errors
    /// The broker did not confirm the message. It may have stored it nonetheless: publish the message again with the
    /// same id.
    pub async fn publish(&self, message: &Message) -> Result<(), RabbitMqError> {
        let channel = self.channel().await?;
        let mut headers = FieldTable::default();
        for (name, value) in message.headers() {
            headers.insert(short(name)?, text(value));
        }
        let properties = BasicProperties::default().with_message_id(short(message.id())?).with_headers(headers);
        let published =
            publish(&channel, DEADLINE, (&self.exchange, &self.routing_key), message.payload(), properties).await;
        if published.is_err() {
            *self.link.lock().await = None;
        }
        published
    }

    async fn channel(&self) -> Result<Channel, RabbitMqError> {
        let mut link = self.link.lock().await;
        if let Some((connection, channel)) = &*link
            && connection.status().connected()
            && channel.status().connected()
        {
            return Ok(channel.clone());
        }
        let connection = connect(&self.uri, DEADLINE).await?;
        let channel = confirming(&connection, DEADLINE).await?;
        *link = Some((connection, channel.clone()));
        Ok(channel)
    }
}

/// Converts an id or a header name, which AMQP limits to 255 bytes.
fn short(text: &str) -> Result<ShortString, RabbitMqError> {
    ShortString::try_new(text).map_err(|_| RabbitMqError::TooLong(text.len()))
}

/// Leaves out the URI, which may contain a password.
impl fmt::Debug for RabbitPublisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitPublisher")
            .field("exchange", &self.exchange)
            .field("routing_key", &self.routing_key)
            .finish_non_exhaustive()
    }
}
