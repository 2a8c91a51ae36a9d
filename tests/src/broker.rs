//! Brokers as the suites use them, with one queue each, whatever the broker calls it.

use std::future::Future;
use std::time::{Duration, Instant};

use futures_util::stream::StreamExt as _;
use oncekey::consumer::nats::async_nats::jetstream::{self, stream};
use oncekey::consumer::nats::{NatsJetStream, NatsPublisher, async_nats};
use oncekey::consumer::rabbitmq::lapin::options::{BasicGetOptions, QueueBindOptions, QueueDeclareOptions};
use oncekey::consumer::rabbitmq::lapin::types::{AMQPValue, FieldTable};
use oncekey::consumer::rabbitmq::lapin::{Connection, ConnectionProperties};
use oncekey::consumer::rabbitmq::{RabbitMq, RabbitPublisher, lapin};
use oncekey::consumer::redis_streams::redis::streams::StreamRangeReply;
use oncekey::consumer::redis_streams::{RedisPublisher, RedisStreams, redis};
use oncekey::consumer::{Message, Source};
use tokio::time::timeout;

use crate::process::PATIENCE;
use crate::server::{Nats, RabbitMqServer, Redis};

/// The queue of RabbitMQ, and the stream of Redis.
pub const QUEUE: &str = "orders";
/// The consumer group of Redis.
pub const GROUP: &str = "mailers";
/// The stream of NATS.
pub const STREAM: &str = "ORDERS";
/// The consumer of NATS.
pub const CONSUMER: &str = "mailers";

/// A dead letter, by the message's id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// The message's id.
    pub id: String,
    /// Why the message was dead-lettered.
    pub error: String,
}

/// A broker that is started for a test.
#[expect(async_fn_in_trait, reason = "for the suites, on one thread")]
pub trait Broker {
    /// A consumer of its queue.
    type Source: Source<Message = Message>;
    /// Returns the URL for consumers.
    fn url(&self) -> String;
    /// Opens a consumer.
    async fn source(&self) -> Self::Source;
    /// Kills the broker with SIGKILL, and starts it again on the same data.
    fn kill_and_restart(&mut self);
    /// Creates the queue, and publishes messages.
    async fn publish(&self, messages: &[Message]);
    /// Returns how many messages are in the queue or delivered and unsettled, as far as the broker reports it.
    async fn left(&self) -> usize;
    /// Returns all dead letters. Do not call it while they are refused.
    async fn dead(&self) -> Vec<Letter>;
    /// Makes the broker refuse dead letters, or accept them again. It keeps those that it has.
    async fn refuse_dead_letters(&self, is_refused: bool);
}

impl Broker for Redis {
    type Source = RedisStreams;

    async fn source(&self) -> Self::Source {
        RedisStreams::builder(redis::Client::open(self.url()).unwrap(), QUEUE, GROUP, "mailer-1").open().await.unwrap()
    }

    fn url(&self) -> String {
        self.url()
    }

    fn kill_and_restart(&mut self) {
        self.kill();
        self.restart();
    }

    async fn publish(&self, messages: &[Message]) {
        let publisher = RedisPublisher::new(redis::Client::open(self.url()).unwrap(), QUEUE);
        all(messages, |message| publisher.publish(message)).await;
    }

    async fn left(&self) -> usize {
        let pending = self.cli(&["XPENDING", QUEUE, GROUP]);
        pending.lines().next().and_then(|count| count.trim().parse().ok()).unwrap_or(0)
    }

    async fn dead(&self) -> Vec<Letter> {
        let client = redis::Client::open(self.url()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let range = redis::cmd("XRANGE").arg(format!("{QUEUE}.dead")).arg("-").arg("+").to_owned();
        let found: StreamRangeReply = range.query_async(&mut connection).await.unwrap();
        let letters = found.ids.iter();
        letters
            .map(|entry| Letter { id: entry.get("id").unwrap(), error: entry.get("oncekey-error").unwrap() })
            .collect()
    }

    async fn refuse_dead_letters(&self, is_refused: bool) {
        // A key with the same name that holds no stream makes the broker refuse them.
        const REFUSE: &str = "if redis.call('TYPE', KEYS[1]).ok == 'string' then return end
            if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('RENAME', KEYS[1], KEYS[2]) end
            redis.call('SET', KEYS[1], 'a text')";
        const TAKE: &str = "redis.call('DEL', KEYS[1])
            if redis.call('EXISTS', KEYS[2]) == 1 then redis.call('RENAME', KEYS[2], KEYS[1]) end";
        let (dead, aside) = (format!("{QUEUE}.dead"), format!("{QUEUE}.dead.aside"));
        let answer = self.cli(&["EVAL", if is_refused { REFUSE } else { TAKE }, "2", &dead, &aside]);
        assert_eq!(answer, "", "{answer}");
    }
}

impl Broker for RabbitMqServer {
    type Source = RabbitMq;

    async fn source(&self) -> Self::Source {
        RabbitMq::builder(&self.url(), QUEUE).unwrap().open().await.unwrap()
    }

    fn url(&self) -> String {
        self.url()
    }

    fn kill_and_restart(&mut self) {
        self.kill();
        self.restart();
    }

    async fn publish(&self, messages: &[Message]) {
        // Opening the source creates the queue.
        let source = RabbitMq::builder(&self.url(), QUEUE).unwrap().open().await.unwrap();
        oncekey::consumer::Source::close(&source).await;
        let publisher = RabbitPublisher::new(&self.url(), "", QUEUE).unwrap();
        all(messages, |message| publisher.publish(message)).await;
    }

    async fn left(&self) -> usize {
        patiently(async || {
            let connection = Connection::connect(&self.url(), ConnectionProperties::default()).await?;
            let retries = (4..=17).map(|power| format!("{QUEUE}.retry.{}", 1_u32 << power));
            let mut left = 0;
            for queue in std::iter::once(QUEUE.to_owned()).chain(retries) {
                // Each queue gets its own channel, because asking for a missing queue closes the channel.
                let channel = connection.create_channel().await?;
                let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
                match channel.queue_declare(queue.as_str().into(), passive, FieldTable::default()).await {
                    Ok(found) => left += found.message_count() as usize,
                    Err(error) if error.to_string().contains("NOT_FOUND") => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(left)
        })
        .await
    }

    async fn dead(&self) -> Vec<Letter> {
        patiently(async || {
            let connection = Connection::connect(&self.url(), ConnectionProperties::default()).await?;
            let channel = connection.create_channel().await?;
            let mut letters = Vec::new();
            let queue = format!("{QUEUE}.dead");
            // Only a quorum queue with a leader answers.
            while let Some(letter) = channel.basic_get(queue.as_str().into(), BasicGetOptions::default()).await? {
                let id = letter.properties.message_id().as_ref().unwrap().to_string();
                let headers = letter.properties.headers().as_ref().unwrap();
                let Some(AMQPValue::LongString(error)) = headers.inner().get("oncekey-error") else {
                    panic!("a dead letter without its error: {headers:?}")
                };
                // The letter is not acknowledged: the end of the connection puts it back.
                letters.push(Letter { id, error: error.to_string() });
            }
            connection.close(200, "read".into()).await?;
            Ok(letters)
        })
        .await
    }

    /// Binds the exchange of the dead letters to a full queue instead of theirs. A consumer that opens binds theirs
    /// again. Until this is called once more, a letter is then both refused and kept.
    async fn refuse_dead_letters(&self, is_refused: bool) {
        let exchange = format!("{QUEUE}.dead");
        let (dead, full) = (exchange.as_str(), "full");
        patiently(async || {
            let connection = Connection::connect(&self.url(), ConnectionProperties::default()).await?;
            let channel = connection.create_channel().await?;
            let mut takes_nothing = FieldTable::default();
            takes_nothing.insert("x-max-length".into(), AMQPValue::LongLongInt(0));
            takes_nothing.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
            let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
            // The queue is never deleted: RabbitMQ confirms messages that it was about to route to a deleted queue.
            channel.queue_declare(full.into(), durable, takes_nothing).await?;
            let (bound, unbound) = if is_refused { (full, dead) } else { (dead, full) };
            let (as_usual, none) = (QueueBindOptions::default(), FieldTable::default());
            // The queues are never bound at the same time, because a refused letter would be kept as well.
            channel.queue_unbind(unbound.into(), dead.into(), "".into(), none.clone()).await?;
            channel.queue_bind(bound.into(), dead.into(), "".into(), as_usual, none).await?;
            connection.close(200, "told".into()).await
        })
        .await
    }
}

/// Retries a request to a RabbitMQ that may have just restarted. Its queues have no leaders for a while, and such a
/// queue refuses requests or never answers.
async fn patiently<T>(ask: impl AsyncFn() -> Result<T, lapin::Error>) -> T {
    let deadline = Instant::now() + 2 * PATIENCE;
    loop {
        match timeout(PATIENCE / 3, ask()).await {
            Ok(Ok(answer)) => return answer,
            Ok(Err(error)) => assert!(Instant::now() < deadline, "{error}"),
            Err(silent) => assert!(Instant::now() < deadline, "{silent}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

impl Broker for Nats {
    type Source = NatsJetStream;

    async fn source(&self) -> Self::Source {
        NatsJetStream::builder(async_nats::connect(self.url()).await.unwrap(), STREAM, CONSUMER).open().await.unwrap()
    }

    fn url(&self) -> String {
        self.url()
    }

    fn kill_and_restart(&mut self) {
        self.kill();
        self.restart();
    }

    async fn publish(&self, messages: &[Message]) {
        let client = async_nats::connect(self.url()).await.unwrap();
        let orders = stream::Config { name: STREAM.to_owned(), subjects: vec![QUEUE.to_owned()], ..Default::default() };
        jetstream::new(client.clone()).get_or_create_stream(orders).await.unwrap();
        let publisher = NatsPublisher::new(client, QUEUE);
        all(messages, |message| publisher.publish(message)).await;
    }

    async fn left(&self) -> usize {
        let Ok(client) = async_nats::connect(self.url()).await else { return usize::MAX };
        let stream = jetstream::new(client).get_stream(STREAM).await.unwrap();
        match stream.consumer_info(CONSUMER).await {
            Ok(info) => info.num_ack_pending + info.num_pending as usize,
            Err(_) => usize::MAX,
        }
    }

    async fn dead(&self) -> Vec<Letter> {
        let client = async_nats::connect(self.url()).await.unwrap();
        let Ok(stream) = jetstream::new(client).get_stream(format!("dead_{STREAM}_{CONSUMER}")).await else {
            return Vec::new();
        };
        let count = stream.get_info().await.unwrap().state;
        let mut letters = Vec::new();
        for sequence in count.first_sequence.max(1)..=count.last_sequence {
            let letter = stream.get_raw_message(sequence).await.unwrap();
            let header = |name: &str| letter.headers.get(name).unwrap().to_string();
            letters.push(Letter { id: header("Oncekey-Id"), error: header("Oncekey-Error") });
        }
        letters
    }

    /// Makes the stream of the dead letters listen to another subject.
    async fn refuse_dead_letters(&self, is_refused: bool) {
        let context = jetstream::new(async_nats::connect(self.url()).await.unwrap());
        let subject = format!("{}.{STREAM}.{CONSUMER}", if is_refused { "elsewhere" } else { "dead" });
        let name = format!("dead_{STREAM}_{CONSUMER}");
        context.update_stream(stream::Config { name, subjects: vec![subject], ..Default::default() }).await.unwrap();
    }
}

/// Publishes concurrently.
async fn all<Fut, E>(messages: &[Message], publish: impl Fn(&'static Message) -> Fut)
where
    Fut: Future<Output = Result<(), E>>,
    E: std::fmt::Display,
{
    // The messages live as long as the test's process.
    let messages: &'static [Message] = Box::leak(messages.to_vec().into_boxed_slice());
    let mut publishing = futures_util::stream::iter(messages).map(publish).buffer_unordered(200);
    while let Some(published) = publishing.next().await {
        published.unwrap_or_else(|error| panic!("{error}"));
    }
}
