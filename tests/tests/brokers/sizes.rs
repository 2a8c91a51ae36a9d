//! Messages of every size that the broker accepts: empty ones, and ones to which nothing could be added.

use std::collections::BTreeMap;
use std::sync::Arc;

use oncekey::Engine;
use oncekey::consumer::{Call, Message, Processor, RetryPolicy, Source, job};
use oncekey_backends::MemoryBackend;
use tests::broker::Broker;
use tests::process::PATIENCE;
use tokio::time::{sleep, timeout};

/// The maximum that NATS accepts by default, headers included. RabbitMQ and Redis accept more.
const MEBIBYTE: usize = 1 << 20;

fn with_headers(id: &str, payload: Vec<u8>, count: usize) -> Message {
    let numbers = 0..count;
    numbers.fold(Message::new(id, payload), |message, number| message.with_header(format!("h{number}"), "v".repeat(32)))
}

/// Returns the messages by id. Each has a distinct payload, so that a wrongly assembled letter is noticed.
fn messages(url: &str) -> Vec<Message> {
    let bytes = |count: usize| (0..count).map(|number| (number % 251) as u8).collect::<Vec<u8>>();
    let is_nats = url.starts_with("nats:");
    // NATS counts the version's line, and the id's header with its line end.
    let largest = MEBIBYTE - "NATS/1.0\r\nNats-Msg-Id: largest\r\n\r\n".len();
    // A stream of NATS accepts 64 KiB of headers, a frame of RabbitMQ 128 KiB, and a script of Redis about 8,000
    // values.
    let many = if is_nats {
        1_500
    } else if url.starts_with("amqp:") {
        2_800
    } else {
        6_000
    };
    vec![
        Message::new("empty", ""),
        Message::new("small", "mail"),
        Message::new("largest", bytes(if is_nats { largest } else { 3 * MEBIBYTE + 7 })),
        with_headers("headers", bytes(100), 50),
        with_headers("many headers", bytes(100), many),
        with_headers("headers and payload", bytes(MEBIBYTE - 70_000), many),
    ]
}

pub(crate) async fn of_dead_letters(broker: impl Broker) {
    let messages = messages(&broker.url());
    broker.publish(&messages).await;
    consume(broker.source().await, &broker, &messages).await;
}

/// Consumes the messages. Each one fails once, is retried unchanged, and becomes a dead letter.
async fn consume(source: impl Source<Message = Message>, broker: &impl Broker, messages: &[Message]) {
    let expected: Arc<BTreeMap<String, Message>> =
        Arc::new(messages.iter().map(|message| (message.id().to_owned(), message.clone())).collect());
    let as_published = expected.clone();
    // This is longer than a header of NATS can be beside the largest payload.
    let reason = "no route ".repeat(300);
    let mail = job(
        |message: &Message| Ok(message.identity("mail")?),
        move |call: Call, message: Arc<Message>| {
            let (as_published, reason) = (as_published.clone(), reason.clone());
            async move {
                call.run(move |_| async move {
                    let published = &as_published[message.id()];
                    let is_same = published.payload() == message.payload()
                        && published.headers().iter().all(|(name, value)| message.header(name) == Some(value));
                    Err::<(), _>(if is_same { reason } else { "it was changed on its way".to_owned() })
                })
                .await
            }
        },
    );
    let delay = std::time::Duration::from_millis(20);
    let retry = RetryPolicy { max_attempts: 2, first_delay: delay, max_delay: delay, ..RetryPolicy::default() };
    let until = async {
        let is_settled = async || {
            let dead: Vec<String> = broker.dead().await.into_iter().map(|letter| letter.id).collect();
            expected.keys().all(|id| dead.contains(id)) && broker.left().await == 0
        };
        while !is_settled().await {
            sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    let engine = Engine::builder(MemoryBackend::new()).start().unwrap();
    let running = Processor::new(engine, source, mail).retry(retry).run(until);
    let Ok(processed) = timeout(2 * PATIENCE, running).await else {
        panic!(
            "of {:?} there are {:?}",
            expected.keys(),
            broker.dead().await.iter().map(|letter| &letter.id).collect::<Vec<_>>()
        )
    };
    assert_eq!((processed.dead, processed.unsettled), (messages.len() as u64, 0), "{processed:?}");
    let dead = broker.dead().await;
    assert!(dead.iter().all(|letter| letter.error.starts_with("no route")), "{dead:?}");
}
