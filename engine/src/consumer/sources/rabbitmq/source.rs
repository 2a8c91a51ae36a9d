//! Consumes a queue.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::FutureExt as _;
use futures_util::stream::StreamExt as _;
use lapin::message::Delivery as Delivered;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
    ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Acker, BasicProperties, Channel, Connection, Consumer, ExchangeKind};
use tokio::sync::{Mutex, Notify};
use tokio::time::{Instant, sleep_until};
use tracing::warn;

use super::letter::{ERROR, FAILURES, named, unwrap, wrap};
use super::link::{Link, connect, declare, publish, text, within};
use super::{RabbitMqBuilder, RabbitMqError};
use crate::consumer::later::Later;
use crate::consumer::{Delivery, Disposition, Message, Source};

/// A consumer of a queue.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use oncekey::consumer::rabbitmq::RabbitMq;
///
/// let source = RabbitMq::builder("amqp://127.0.0.1:5672/%2f", "orders")?.prefetch(64).open().await?;
/// # Ok(()) }
/// ```
pub struct RabbitMq {
    options: RabbitMqBuilder,
    session: Mutex<Option<Session>>,
    /// Messages that the consumer holds until they are retried. They belong to the connection: when it ends, the broker
    /// delivers them again.
    later: parking_lot::Mutex<Later<Instant, Receipt>>,
    /// Signals that a message was added to `later`, so that `next` does not sleep past its due time.
    changed: Notify,
}

/// The longest delay for which the consumer holds a message that cannot run now. A held message occupies a place of the
/// prefetch, so longer delays would block other keys and scopes.
const LONGEST_IN_HAND: Duration = Duration::from_secs(2);

/// One connection. Only this connection can settle what it delivered.
struct Session {
    link: Arc<Link>,
    channel: Channel,
    consumer: Consumer,
    has_delivery_limit_asked_for: bool,
}

/// Identifies a delivery of this source.
#[derive(Clone)]
pub struct Receipt {
    acker: Acker,
    link: Arc<Link>,
    message: Arc<Message>,
    properties: BasicProperties,
    /// The headers with which the message was first published.
    headers: FieldTable,
    failures: u32,
}

impl RabbitMq {
    /// Returns a [`RabbitMqBuilder`] for a consumer of `queue`.
    ///
    /// # Errors
    /// The URI is invalid.
    pub fn builder(uri: &str, queue: &str) -> Result<RabbitMqBuilder, RabbitMqError> {
        RabbitMqBuilder::new(uri, queue)
    }

    pub(super) async fn open(options: RabbitMqBuilder) -> Result<Self, RabbitMqError> {
        let session = Session::begin(&options).await?;
        Ok(Self {
            options,
            session: Mutex::new(Some(session)),
            later: parking_lot::Mutex::default(),
            changed: Notify::new(),
        })
    }

    /// Returns whether the queue has the delivery limit that the builder asks for, which is no limit unless you set
    /// one.
    ///
    /// RabbitMQ 4 limits quorum queues to 20 redeliveries by default and drops a message after that: after twenty
    /// crashes the message is gone, without a dead letter. This source declares its queue without a limit. An existing
    /// queue keeps the limit with which it was declared. This method then returns `false`, and a warning is in the log.
    /// Delete the queue so that the source declares it again, or set the limit with a policy.
    ///
    /// Returns `None` while there is no connection.
    pub async fn has_delivery_limit_asked_for(&self) -> Option<bool> {
        self.session.lock().await.as_ref().map(|session| session.has_delivery_limit_asked_for)
    }
}

/// Returns the name of the exchange through which retries return to `queue`. Clients cannot publish to it, so a message
/// that arrives through it has the headers of a source like this one.
fn retry_exchange(queue: &str) -> String {
    format!("{queue}.retry")
}

impl Session {
    async fn begin(options: &RabbitMqBuilder) -> Result<Self, RabbitMqError> {
        let RabbitMqBuilder { uri, queue, dead, prefetch, deadline, .. } = options;
        let limit = *deadline;
        let link = Link::new(connect(uri, limit).await?);
        let has_delivery_limit_asked_for = declare_queue(&link.connection, options).await?;
        let publishing = link.publishing(limit).await?;
        declare(&publishing, limit, dead, &[("x-queue-type", text("quorum"))]).await?;
        let back = retry_exchange(queue);
        let internal = ExchangeDeclareOptions { durable: true, internal: true, ..ExchangeDeclareOptions::default() };
        let exchange =
            publishing.exchange_declare(back.as_str().into(), ExchangeKind::Fanout, internal, FieldTable::default());
        within(limit, "declaring the exchange of retries", exchange).await?;
        let binding = publishing.queue_bind(
            queue.as_str().into(),
            back.as_str().into(),
            "".into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        within(limit, "binding the queue to the exchange of retries", binding).await?;
        let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let exchange =
            publishing.exchange_declare(dead.as_str().into(), ExchangeKind::Fanout, durable, FieldTable::default());
        within(limit, "declaring the dead letters' exchange", exchange).await?;
        let binding = publishing.queue_bind(
            dead.as_str().into(),
            dead.as_str().into(),
            "".into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        within(limit, "binding the dead letters' queue", binding).await?;
        let channel = within(limit, "opening a channel", link.connection.create_channel()).await?;
        within(limit, "setting the prefetch", channel.basic_qos(*prefetch, BasicQosOptions::default())).await?;
        let consuming = channel.basic_consume(
            queue.as_str().into(),
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let consumer = within(limit, "consuming", consuming).await?;
        Ok(Self { link, channel, consumer, has_delivery_limit_asked_for })
    }
}

/// Declares the queue. Returns whether its delivery limit is the requested one.
async fn declare_queue(connection: &Connection, options: &RabbitMqBuilder) -> Result<bool, RabbitMqError> {
    /// Practically no limit. RabbitMQ 4 uses -1 for "no limit", which RabbitMQ 3 treats as a limit that is exceeded at
    /// once.
    const UNLIMITED: u32 = i32::MAX as u32;

    let RabbitMqBuilder { queue, classic, deadline, delivery_limit, .. } = options;
    // Each attempt needs its own channel, because the broker closes a channel when it refuses a declaration.
    let channel = || within(*deadline, "opening a channel", connection.create_channel());
    if *classic {
        return declare(&channel().await?, *deadline, queue, &[]).await.map(|()| true);
    }
    let quorum = ("x-queue-type", text("quorum"));
    let limit = delivery_limit.unwrap_or(UNLIMITED);
    let limited = ("x-delivery-limit", AMQPValue::LongLongInt(limit.into()));
    match declare(&channel().await?, *deadline, queue, &[quorum.clone(), limited]).await {
        Ok(()) => return Ok(true),
        Err(error) if !has_another_limit(&error) => return Err(error),
        Err(_) => {}
    }
    // The queue exists. Check whether it differs only in its limit.
    if let Err(error) = declare(&channel().await?, *deadline, queue, &[quorum]).await {
        if !has_another_limit(&error) {
            return Err(error);
        }
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let channel = channel().await?;
        let looking = channel.queue_declare(queue.as_str().into(), passive, FieldTable::default());
        within(*deadline, "looking the queue up", looking).await?;
    }
    warn!(
        queue,
        "the queue exists with another limit of deliveries: RabbitMQ drops what is redelivered more often, by default after \
         20 times since version 4"
    );
    Ok(false)
}

/// Returns whether the broker refused a declaration only because of the delivery limit. It names the first argument
/// that differs.
fn has_another_limit(error: &RabbitMqError) -> bool {
    error.to_string().contains("inequivalent arg 'x-delivery-limit'")
}

impl Source for RabbitMq {
    type Message = Message;
    type Receipt = Receipt;
    type Error = RabbitMqError;

    async fn next(&self) -> Result<Option<Delivery<Message, Receipt>>, RabbitMqError> {
        let mut session = self.session.lock().await;
        let open = match &mut *session {
            Some(open) => open,
            // The broker delivers the last connection's unsettled messages to other consumers, or to this one again.
            None => session.insert(Session::begin(&self.options).await?),
        };
        loop {
            let due = self.later.lock().next_due();
            let sleeping = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            let taken = tokio::select! {
                biased;
                () = sleeping => match self.later.lock().pop_due(Instant::now()) {
                    Some(receipt) => return Ok(Some(deliver(receipt))),
                    None => continue,
                },
                () = self.changed.notified() => continue,
                taken = open.consumer.next() => taken,
            };
            let error = match taken {
                Some(Ok(delivered)) => return Ok(Some(deliver(receive(delivered, &open.link, &self.options.queue)))),
                Some(Err(error)) => RabbitMqError::Client { what: "consuming", error },
                None => RabbitMqError::Ended(self.options.queue.clone()),
            };
            *session = None;
            drop(self.later.lock().drain());
            return Err(error);
        }
    }

    async fn settle(&self, receipt: Receipt, disposition: Disposition) -> Result<(), RabbitMqError> {
        let limit = self.options.deadline;
        match disposition {
            Disposition::Ack => {}
            Disposition::RetryLater { after, failed: false } if after.is_zero() => {
                let requeue = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
                return within(limit, "giving a message back", receipt.acker.nack(requeue)).await.map(drop);
            }
            Disposition::RetryLater { after, failed: false } if after <= LONGEST_IN_HAND => {
                self.later.lock().insert(Instant::now() + after, receipt);
                self.changed.notify_one();
                return Ok(());
            }
            Disposition::RetryLater { after, failed } => self.put_off(&receipt, after, failed).await?,
            Disposition::DeadLetter { reason } => self.put_aside(&receipt, &reason).await?,
        }
        within(limit, "acknowledging a message", receipt.acker.ack(BasicAckOptions::default())).await.map(drop)
    }

    /// Only the connection that delivered a message can settle it.
    fn can_settle(&self, receipt: &Receipt) -> bool {
        receipt.link.is_connected() && receipt.acker.usable()
    }

    /// Makes the broker send no more messages, and gives back those that it has sent and those that wait to be retried.
    async fn end_intake(&self) {
        let limit = self.options.deadline;
        let requeue = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
        let mut waiting: Vec<Acker> = self.later.lock().drain().map(|receipt| receipt.acker).collect();
        if let Some(Session { channel, consumer, .. }) = &mut *self.session.lock().await {
            // If the broker does not receive this, it notices the end of the connection.
            let cancelling = channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
            let _ = within(limit, "cancelling the consumer", cancelling).await;
            while let Some(Some(Ok(delivered))) = consumer.next().now_or_never() {
                waiting.push(delivered.acker);
            }
        }
        for acker in waiting {
            let _ = within(limit, "giving a message back", acker.nack(requeue)).await;
        }
    }

    /// The broker delivers unsettled messages to other consumers as soon as the connection ends.
    async fn close(&self) {
        if let Some(Session { link, .. }) = self.session.lock().await.take() {
            let closing = link.connection.close(200, "the consumer ends".into());
            // If the broker does not receive this, it notices the end of the connection.
            let _ = within(self.options.deadline, "closing", closing).await;
        }
    }
}

impl RabbitMq {
    /// Publishes a message to the queue in which it waits for its retry.
    async fn put_off(&self, receipt: &Receipt, after: Duration, failed: bool) -> Result<(), RabbitMqError> {
        let failures = receipt.failures.saturating_add(u32::from(failed));
        let failures = (FAILURES, AMQPValue::LongLongInt(failures.into()));
        let put_off = async |publishing: &Channel| {
            let queue = self.retry_queue(publishing, after).await?;
            self.publish_again(publishing, receipt, ("", &queue), failures).await
        };
        self.on_publishing(&receipt.link, put_off).await
    }

    async fn put_aside(&self, receipt: &Receipt, reason: &str) -> Result<(), RabbitMqError> {
        let put_aside = async |publishing: &Channel| {
            self.publish_again(publishing, receipt, (&self.options.dead, ""), (ERROR, text(reason))).await
        };
        self.on_publishing(&receipt.link, put_aside).await
    }

    /// Publishes on the link's channel. If the broker does not answer, the next attempt opens a new channel.
    async fn on_publishing(
        &self,
        link: &Link,
        publish: impl AsyncFnOnce(&Channel) -> Result<(), RabbitMqError>,
    ) -> Result<(), RabbitMqError> {
        let publishing = link.publishing(self.options.deadline).await?;
        let published = publish(&publishing).await;
        if matches!(published, Err(RabbitMqError::Silent(_))) {
            link.forget(&publishing).await;
        }
        published
    }

    async fn publish_again(
        &self,
        publishing: &Channel,
        Receipt { message, properties, headers, .. }: &Receipt,
        to: (&str, &str),
        (name, value): (&'static str, AMQPValue),
    ) -> Result<(), RabbitMqError> {
        let properties = properties.clone().with_headers(wrap(headers, name, value));
        publish(publishing, self.options.deadline, to, message.payload(), properties).await
    }

    /// Declares a queue whose messages live for at least `after` and then return. Each power of two of milliseconds has
    /// its own queue: in a queue with mixed delays, a message would wait behind a longer one.
    async fn retry_queue(&self, channel: &Channel, after: Duration) -> Result<String, RabbitMqError> {
        let millis =
            u32::try_from(after.as_millis()).unwrap_or(u32::MAX / 2).clamp(16, u32::MAX / 2).next_power_of_two();
        let name = format!("{}.retry.{millis}", self.options.queue);
        let arguments = [
            ("x-queue-type", text("quorum")),
            ("x-message-ttl", AMQPValue::LongLongInt(millis.into())),
            ("x-dead-letter-exchange", text(&retry_exchange(&self.options.queue))),
            ("x-dead-letter-routing-key", text(&self.options.queue)),
            // The broker keeps a message until the target queue has confirmed it. This strategy requires
            // `reject-publish`.
            ("x-dead-letter-strategy", text("at-least-once")),
            ("x-overflow", text("reject-publish")),
        ];
        declare(channel, self.options.deadline, &name, &arguments).await?;
        Ok(name)
    }
}

fn deliver(receipt: Receipt) -> Delivery<Message, Receipt> {
    Delivery { message: Arc::clone(&receipt.message), failures: receipt.failures, receipt }
}

fn receive(delivered: Delivered, link: &Arc<Link>, queue: &str) -> Receipt {
    let Delivered { properties, data, acker, exchange, .. } = delivered;
    let id = properties.message_id().as_ref().map(ToString::to_string).unwrap_or_default();
    let all = properties.headers().clone().unwrap_or_default();
    // Other messages came from another publisher, who may use the same header names for other purposes.
    let is_retry = exchange.as_str() == retry_exchange(queue);
    let (failures, headers) = if is_retry { unwrap(&all) } else { (0, all) };
    let mut message = Message::new(id, data);
    for (name, value) in headers.inner() {
        // Only text values become headers of the message. Other values stay in `headers` for later readers.
        if let AMQPValue::LongString(value) = value {
            message = message.with_header(name.as_str(), String::from_utf8_lossy(value.as_bytes()));
        }
    }
    let properties = named(&properties);
    Receipt { acker, link: Arc::clone(link), message: Arc::new(message), properties, headers, failures }
}

impl fmt::Debug for RabbitMq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitMq").field("options", &self.options).finish_non_exhaustive()
    }
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receipt")
            .field("message", &self.message)
            .field("failures", &self.failures)
            .finish_non_exhaustive()
    }
}
