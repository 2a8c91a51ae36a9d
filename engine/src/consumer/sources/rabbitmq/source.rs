//! Consuming a queue.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::StreamExt as _;
use lapin::message::Delivery as Delivered;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions, ExchangeDeclareOptions, QueueBindOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Acker, BasicProperties, Channel, Connection, Consumer, ExchangeKind};
use tokio::sync::{Mutex, Notify};
use tokio::time::{Instant, sleep_until};

use super::link::{confirming, connect, declare, publish, text, within};
use super::{RabbitMqBuilder, RabbitMqError};
use crate::consumer::later::Later;
use crate::consumer::{Delivery, Disposition, Message, Source};

/// How often the job failed.
const FAILURES: &str = "oncekey-failures";
/// Why a message is a dead letter.
const ERROR: &str = "oncekey-error";
/// How long a message stays in hand that the broker took nowhere else.
const AFTER_A_REFUSAL: Duration = Duration::from_secs(1);

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
    /// Messages that are kept in hand until they are tried again. They are the connection's: when it ends, the broker gives
    /// them again.
    later: parking_lot::Mutex<Later<Instant, Receipt>>,
    /// Told of each message that begins to wait, and of a channel that ended: who takes messages may be asleep until a
    /// later time, or for ever.
    changed: Notify,
}

/// One connection: what it delivered can be settled by it alone.
struct Session {
    connection: Connection,
    consumer: Consumer,
    publishing: Channel,
}

/// What a message of this source is settled by.
pub struct Receipt {
    acker: Acker,
    publishing: Channel,
    message: Arc<Message>,
    properties: BasicProperties,
    failures: u32,
}

impl RabbitMq {
    /// A consumer of `queue`; see [`RabbitMqBuilder`].
    ///
    /// # Errors
    /// The URI is none.
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
}

impl Session {
    async fn begin(options: &RabbitMqBuilder) -> Result<Self, RabbitMqError> {
        let RabbitMqBuilder { uri, queue, dead, prefetch, classic, deadline } = options;
        let limit = *deadline;
        let connection = connect(uri, limit).await?;
        let publishing = confirming(&connection, limit).await?;
        let quorum = [("x-queue-type", text("quorum"))];
        declare(&publishing, limit, queue, if *classic { &[] } else { &quorum }).await?;
        declare(&publishing, limit, dead, &quorum).await?;
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
        let channel = within(limit, "opening a channel", connection.create_channel()).await?;
        within(limit, "setting the prefetch", channel.basic_qos(*prefetch, BasicQosOptions::default())).await?;
        let consuming = channel.basic_consume(
            queue.as_str().into(),
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let consumer = within(limit, "consuming", consuming).await?;
        Ok(Self { connection, consumer, publishing })
    }
}

impl Source for RabbitMq {
    type Message = Message;
    type Receipt = Receipt;
    type Error = RabbitMqError;

    async fn next(&self) -> Result<Option<Delivery<Message, Receipt>>, RabbitMqError> {
        let mut session = self.session.lock().await;
        let open = match &mut *session {
            Some(open) => open,
            // The broker has given what the last connection had to others, or gives it again here.
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
                () = self.changed.notified() => {
                    if open.publishing.status().connected() {
                        continue;
                    }
                    // Nothing can be put aside any more. What is in hand comes again by the connection's end.
                    None
                }
                taken = open.consumer.next() => taken,
            };
            let error = match taken {
                Some(Ok(delivered)) => return Ok(Some(deliver(receive(delivered, &open.publishing)))),
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
        let moved = match disposition {
            Disposition::Ack => Ok(()),
            Disposition::RetryLater { after, failed: false } if after.is_zero() => {
                let requeue = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
                return within(limit, "giving a message back", receipt.acker.nack(requeue)).await.map(drop);
            }
            Disposition::RetryLater { after, failed: false } => {
                self.keep(receipt, after);
                return Ok(());
            }
            Disposition::RetryLater { after, failed: true } => self.put_off(&receipt, after).await,
            Disposition::DeadLetter { reason } => self.put_aside(&receipt, &reason).await,
        };
        if let Err(error) = moved {
            // The broker would leave it with this connection, unacknowledged, for as long as that lasts.
            self.keep(receipt, AFTER_A_REFUSAL);
            return Err(error);
        }
        within(limit, "acknowledging a message", receipt.acker.ack(BasicAckOptions::default())).await.map(drop)
    }

    /// The broker gives what is not settled to others as soon as the connection ends.
    async fn close(&self) {
        if let Some(Session { connection, .. }) = self.session.lock().await.take() {
            // If it can't be told, it finds out.
            let _ = within(self.options.deadline, "closing", connection.close(200, "the consumer ends".into())).await;
        }
    }
}

impl RabbitMq {
    /// Keeps a message in hand until it is delivered again.
    fn keep(&self, receipt: Receipt, after: Duration) {
        if receipt.publishing.status().connected() {
            self.later.lock().insert(Instant::now() + after, receipt);
        }
        self.changed.notify_one();
    }

    /// Publishes a message whose job failed to where it waits for its retry.
    async fn put_off(&self, receipt: &Receipt, after: Duration) -> Result<(), RabbitMqError> {
        let queue = self.retry_queue(&receipt.publishing, after).await?;
        let failures = receipt.failures.saturating_add(1);
        self.publish_again(receipt, ("", &queue), (FAILURES, AMQPValue::LongLongInt(failures.into()))).await
    }

    /// Publishes a message to the dead letters.
    async fn put_aside(&self, receipt: &Receipt, reason: &str) -> Result<(), RabbitMqError> {
        self.publish_again(receipt, (&self.options.dead, ""), (ERROR, text(reason))).await
    }

    async fn publish_again(
        &self,
        Receipt { publishing, message, properties, .. }: &Receipt,
        to: (&str, &str),
        (name, value): (&str, AMQPValue),
    ) -> Result<(), RabbitMqError> {
        let mut headers = properties.headers().clone().unwrap_or_default();
        headers.insert(name.into(), value);
        let properties = properties.clone().with_headers(headers);
        publish(publishing, self.options.deadline, to, message.payload(), properties).await
    }

    /// A queue whose messages live for at least `after`, and then return. One for each power of two of milliseconds: in
    /// a queue of several delays a message would wait behind a longer one.
    async fn retry_queue(&self, channel: &Channel, after: Duration) -> Result<String, RabbitMqError> {
        let millis =
            u32::try_from(after.as_millis()).unwrap_or(u32::MAX / 2).clamp(16, u32::MAX / 2).next_power_of_two();
        let name = format!("{}.retry.{millis}", self.options.queue);
        let arguments = [
            ("x-queue-type", text("quorum")),
            ("x-message-ttl", AMQPValue::LongLongInt(millis.into())),
            ("x-dead-letter-exchange", text("")),
            ("x-dead-letter-routing-key", text(&self.options.queue)),
            // Kept until the other queue has it; that asks for the second.
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

fn receive(delivered: Delivered, publishing: &Channel) -> Receipt {
    let Delivered { properties, data, acker, .. } = delivered;
    let id = properties.message_id().as_ref().map(ToString::to_string).unwrap_or_default();
    let mut message = Message::new(id, data);
    let mut failures = 0;
    for (name, value) in properties.headers().iter().flat_map(|headers| headers.inner()) {
        match (name.as_str(), value) {
            (FAILURES, AMQPValue::LongLongInt(count)) => failures = u32::try_from(*count).unwrap_or(0),
            (name, AMQPValue::LongString(value)) => {
                message = message.with_header(name, String::from_utf8_lossy(value.as_bytes()));
            }
            // What is no text is no header here; it stays with the message for whoever reads it next.
            _ => {}
        }
    }
    Receipt { acker, publishing: publishing.clone(), message: Arc::new(message), properties, failures }
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
