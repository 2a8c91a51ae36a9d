//! A connection and its channels.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::uri::AMQPUri;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::RabbitMqError;

/// Limits a call of the client, because a black-holed broker never answers.
pub(super) async fn within<T>(
    limit: Duration,
    what: &'static str,
    call: impl Future<Output = lapin::Result<T>>,
) -> Result<T, RabbitMqError> {
    match timeout(limit, call).await {
        Ok(answer) => answer.map_err(|error| RabbitMqError::Client { what, error }),
        Err(_) => Err(RabbitMqError::Silent(what)),
    }
}

pub(super) async fn connect(uri: &AMQPUri, limit: Duration) -> Result<Connection, RabbitMqError> {
    let properties = ConnectionProperties::default().with_connection_name("oncekey".into());
    within(limit, "connecting", Connection::connect_uri(uri.clone(), properties)).await
}

/// A connection with its publishing channel. The broker closes that channel when it refuses a publish or a declaration.
/// The connection stays open, so its receipts stay valid.
pub(super) struct Link {
    pub(super) connection: Connection,
    publishing: Mutex<Option<Channel>>,
}

impl Link {
    pub(super) fn new(connection: Connection) -> Arc<Self> {
        Arc::new(Self { connection, publishing: Mutex::new(None) })
    }

    /// Returns the publishing channel. Opens a new one if the last was closed.
    pub(super) async fn publishing(&self, limit: Duration) -> Result<Channel, RabbitMqError> {
        let mut publishing = self.publishing.lock().await;
        if let Some(open) = &*publishing
            && open.status().connected()
        {
            return Ok(open.clone());
        }
        let channel = confirming(&self.connection, limit).await?;
        Ok(publishing.insert(channel).clone())
    }

    /// Makes the next publish open a new channel.
    pub(super) async fn forget(&self, channel: &Channel) {
        let mut publishing = self.publishing.lock().await;
        if publishing.as_ref().is_some_and(|open| open.id() == channel.id()) {
            *publishing = None;
        }
    }

    pub(super) fn is_connected(&self) -> bool {
        self.connection.status().connected()
    }
}

/// Opens a channel on which the broker confirms the messages that it accepts.
pub(super) async fn confirming(connection: &Connection, limit: Duration) -> Result<Channel, RabbitMqError> {
    let channel = within(limit, "opening a channel", connection.create_channel()).await?;
    within(limit, "asking for confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
    Ok(channel)
}

/// Publishes a message, and returns once the broker has stored it.
pub(super) async fn publish(
    channel: &Channel,
    limit: Duration,
    (exchange, routing_key): (&str, &str),
    payload: &[u8],
    properties: BasicProperties,
) -> Result<(), RabbitMqError> {
    const PERSISTENT: u8 = 2;

    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let properties = properties.with_delivery_mode(PERSISTENT);
    let publishing =
        async { channel.basic_publish(exchange.into(), routing_key.into(), options, payload, properties).await?.await };
    let confirmed = within(limit, "publishing a message", publishing).await?;
    // The broker returns a message that no queue accepts, and still confirms it.
    if confirmed.is_ack() && confirmed.take_message().is_none() {
        return Ok(());
    }
    Err(RabbitMqError::NotTaken(format!("{exchange}{routing_key}")))
}

pub(super) async fn declare(
    channel: &Channel,
    limit: Duration,
    queue: &str,
    arguments: &[(&'static str, AMQPValue)],
) -> Result<(), RabbitMqError> {
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        table.insert((*name).into(), value.clone());
    }
    within(limit, "declaring a queue", channel.queue_declare(queue.into(), options, table)).await.map(drop)
}

pub(super) fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}
