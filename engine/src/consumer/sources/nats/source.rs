//! Pulls messages from a stream.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::message::Acker;
use async_nats::jetstream::stream::{self, LastRawMessageErrorKind};
use async_nats::jetstream::{self, AckKind, Context};
use futures_util::future::FutureExt as _;
use futures_util::stream::StreamExt as _;
use tokio::sync::Mutex;

use super::letter::letter;
use super::publish::send;
use super::{NatsError, NatsJetStreamBuilder, failed};
use crate::consumer::backoff::bounded;
use crate::consumer::{Delivery, Disposition, Message, Source};

/// How long a message's failure count is kept after its last failure.
const FAILURES_KEPT: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// A durable pull consumer of a stream.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use oncekey::consumer::nats::{NatsJetStream, async_nats};
///
/// let client = async_nats::connect("127.0.0.1:4222").await?;
/// let source = NatsJetStream::builder(client, "ORDERS", "mailers").open().await?;
/// # Ok(()) }
/// ```
pub struct NatsJetStream {
    context: Context,
    options: NatsJetStreamBuilder,
    failures: stream::Stream,
    messages: Mutex<Option<pull::Stream>>,
}

/// Identifies a delivery of this source.
#[derive(Clone)]
pub struct Receipt {
    message: Arc<Message>,
    acker: Arc<Acker>,
    sequence: u64,
    failures: u32,
}

impl NatsJetStream {
    /// Returns a [`NatsJetStreamBuilder`] for a consumer of the stream.
    pub fn builder(client: async_nats::Client, stream: &str, consumer: &str) -> NatsJetStreamBuilder {
        NatsJetStreamBuilder::new(client, stream, consumer)
    }

    pub(super) async fn open(options: NatsJetStreamBuilder) -> Result<Self, NatsError> {
        let context = jetstream::new(options.client.clone());
        let name = format!("oncekey_{}_{}", options.stream, options.consumer);
        // Keeps the last count of each message. The client's key-value store would do the same, but it asks the server
        // for information that version 2.9 does not have.
        let failures = context.get_or_create_stream(stream::Config {
            subjects: vec![format!("{name}.*")],
            name,
            max_messages_per_subject: 1,
            max_age: FAILURES_KEPT,
            ..stream::Config::default()
        });
        let failures = failures.await.map_err(failed("making the stream of failures"))?;
        let dead = context.get_or_create_stream(stream::Config {
            name: options.dead.replace('.', "_"),
            subjects: vec![options.dead.clone()],
            ..stream::Config::default()
        });
        dead.await.map_err(failed("making the dead letters' stream"))?;
        let source = Self { context, options, failures, messages: Mutex::new(None) };
        let messages = source.pull().await?;
        *source.messages.lock().await = Some(messages);
        Ok(source)
    }

    /// Returns the subject that counts a message's failures.
    fn subject_of(&self, sequence: u64) -> String {
        format!("oncekey_{}_{}.{sequence}", self.options.stream, self.options.consumer)
    }

    async fn pull(&self) -> Result<pull::Stream, NatsError> {
        let NatsJetStreamBuilder { stream, consumer, filter, ack_wait, batch, .. } = &self.options;
        let found = self.context.get_stream(stream).await.map_err(failed("finding the stream"))?;
        let config = pull::Config {
            durable_name: Some(consumer.clone()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: *ack_wait,
            filter_subject: filter.clone(),
            // The source counts failures of the job, not deliveries, so the server must not limit deliveries.
            max_deliver: -1,
            ..pull::Config::default()
        };
        let consumer = found.get_or_create_consumer(consumer, config).await.map_err(failed("making the consumer"))?;
        let pulling = consumer
            .stream()
            .max_messages_per_batch(*batch)
            .expires(Duration::from_secs(10))
            .heartbeat(Duration::from_secs(2))
            .messages();
        pulling.await.map_err(failed("pulling messages"))
    }

    async fn deliver(&self, taken: jetstream::Message) -> Result<Delivery<Message, Receipt>, NatsError> {
        let (sequence, delivered) = {
            let info = taken.info().map_err(failed("reading a message's number"))?;
            (info.stream_sequence, info.delivered)
        };
        let mut failures = 0;
        if delivered > 1 {
            failures = match self.failures.get_last_raw_message_by_subject(&self.subject_of(sequence)).await {
                Ok(counted) => {
                    std::str::from_utf8(&counted.payload).ok().and_then(|count| count.parse().ok()).unwrap_or(0)
                }
                Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => 0,
                Err(error) => return Err(failed("looking failures up")(error)),
            };
        }
        let (taken, acker) = taken.split();
        let headers = taken.headers.unwrap_or_default();
        let id = headers.get(async_nats::header::NATS_MESSAGE_ID).map(ToString::to_string);
        let id = id.unwrap_or_else(|| format!("{}:{sequence}", self.options.stream));
        let mut message = Message::new(id, taken.payload);
        for (name, values) in headers.iter() {
            if let Some(value) = values.first() {
                message = message.with_header(name.to_string(), value.as_str());
            }
        }
        // Added last, so that a publisher's header of this name cannot replace it.
        let message = Arc::new(message.with_header("subject", taken.subject.to_string()));
        let acker = Arc::new(acker);
        Ok(Delivery {
            message: Arc::clone(&message),
            receipt: Receipt { message, acker, sequence, failures },
            failures,
        })
    }
}

impl Source for NatsJetStream {
    type Message = Message;
    type Receipt = Receipt;
    type Error = NatsError;

    async fn next(&self) -> Result<Option<Delivery<Message, Receipt>>, NatsError> {
        let mut messages = self.messages.lock().await;
        let open = match &mut *messages {
            Some(open) => open,
            None => messages.insert(self.pull().await?),
        };
        match open.next().await {
            // If the failure count cannot be read, the message is not delivered. The server sends it again after
            // `ack_wait`.
            Some(Ok(taken)) => self.deliver(taken).await.map(Some),
            Some(Err(error)) => {
                *messages = None;
                Err(failed("pulling messages")(error))
            }
            None => {
                *messages = None;
                Err(failed("pulling messages")("the consumer is gone"))
            }
        }
    }

    async fn settle(&self, receipt: Receipt, disposition: Disposition) -> Result<(), NatsError> {
        let settled = self.try_to_settle(&receipt, disposition).await;
        if settled.is_err() {
            // The processor tries again. Until then, `Progress` keeps the server from delivering the message again. If
            // this fails too, the server is unreachable, and `ack_wait` starts again when it returns.
            let _ = receipt.acker.ack_with(AckKind::Progress).await;
        }
        settled
    }

    async fn end_intake(&self) {
        self.give_back_pulled().await;
    }

    async fn close(&self) {
        self.give_back_pulled().await;
        let _ = self.options.client.flush().await;
    }
}

impl NatsJetStream {
    async fn try_to_settle(&self, receipt: &Receipt, disposition: Disposition) -> Result<(), NatsError> {
        let Receipt { message, acker, sequence, failures } = receipt;
        let kind = match disposition {
            Disposition::Ack => AckKind::Ack,
            Disposition::RetryLater { after, failed: is_failure } => {
                if is_failure {
                    let count = failures.saturating_add(1).to_string();
                    let counting = self.context.publish(self.subject_of(*sequence), count.into());
                    let counted = counting.await.map_err(failed("counting a failure"))?;
                    counted.await.map_err(failed("counting a failure"))?;
                }
                AckKind::Nak((!after.is_zero()).then_some(bounded(after)))
            }
            Disposition::DeadLetter { reason } => {
                self.put_aside(message, *sequence, &reason).await?;
                AckKind::Term
            }
        };
        acker.ack_with(kind).await.map_err(failed("settling a message"))?;
        if *failures > 0 && !matches!(kind, AckKind::Nak(_)) {
            // A count that cannot be deleted expires with its age.
            let _ = self.failures.purge().filter(self.subject_of(*sequence)).await;
        }
        Ok(())
    }

    async fn put_aside(&self, message: &Message, sequence: u64, reason: &str) -> Result<(), NatsError> {
        let once = format!("{}:{sequence}", self.options.stream);
        for (headers, part) in letter(message, &once, reason, self.options.client.max_payload())? {
            send(&self.context, &self.options.dead, headers, &part).await?;
        }
        Ok(())
    }

    /// Ends the pull, and gives back the messages that it has fetched.
    ///
    /// The pull must end first. While it is open, the server would send the returned messages to it again, and they
    /// would wait there unread until `ack_wait` has passed.
    async fn give_back_pulled(&self) {
        let Some(mut pulled) = self.messages.lock().await.take() else { return };
        let mut brought = Vec::new();
        while let Some(Some(taken)) = pulled.next().now_or_never() {
            brought.extend(taken.ok());
        }
        drop(pulled);
        for taken in brought {
            // If a message cannot be given back, the server delivers it again after `ack_wait`.
            let _ = taken.ack_with(AckKind::Nak(None)).await;
        }
    }
}

impl fmt::Debug for NatsJetStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsJetStream").field("options", &self.options).finish_non_exhaustive()
    }
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receipt")
            .field("sequence", &self.sequence)
            .field("failures", &self.failures)
            .finish_non_exhaustive()
    }
}
