//! A broker refuses dead letters for a while. The jobs do not run for it, the other messages continue, and each letter
//! arrives.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use oncekey::Engine;
use oncekey::consumer::nats::{NatsJetStream, async_nats};
use oncekey::consumer::rabbitmq::RabbitMq;
use oncekey::consumer::redis_streams::{RedisStreams, redis};
use oncekey::consumer::{Call, Message, Processor, RetryPolicy, Source, job};
use oncekey_backends::MemoryBackend;
use tests::broker::{Broker, CONSUMER, GROUP, QUEUE, STREAM};
use tests::process::PATIENCE;
use tokio::time::{sleep, timeout};

const POISON: usize = 10;
const OTHERS: usize = 100;

pub(crate) async fn for_a_while(broker: impl Broker) {
    let poison = (0..POISON).map(|number| Message::new(format!("poison-{number}"), "poison"));
    let others = (0..OTHERS).map(|number| Message::new(number.to_string(), "mail"));
    broker.publish(&poison.chain(others).collect::<Vec<_>>()).await;
    let url = broker.url();
    if url.starts_with("redis:") {
        let client = redis::Client::open(url).unwrap();
        let source = RedisStreams::builder(client, QUEUE, GROUP, "mailer-1").open().await.unwrap();
        consume(source, &broker).await;
    } else if url.starts_with("amqp:") {
        let source = RabbitMq::builder(&url, QUEUE).unwrap().open().await.unwrap();
        consume(source, &broker).await;
    } else {
        let client = async_nats::connect(url).await.unwrap();
        // This is shorter than the refusal. The message is still not redelivered.
        let source =
            NatsJetStream::builder(client, STREAM, CONSUMER).ack_wait(Duration::from_secs(6)).open().await.unwrap();
        consume(source, &broker).await;
    }
}

async fn consume(source: impl Source<Message = Message>, broker: &impl Broker) {
    broker.refuse_dead_letters(true).await;
    let runs: Arc<Mutex<HashMap<String, u32>>> = Arc::default();
    let counted = runs.clone();
    let mail = job(
        |message: &Message| Ok(message.identity("mail")?),
        move |call: Call, message: Arc<Message>| {
            let counted = counted.clone();
            async move {
                call.run(move |_| async move {
                    *counted.lock().unwrap().entry(message.id().to_owned()).or_default() += 1;
                    if message.payload() == "poison" { Err("no route".to_owned()) } else { Ok(()) }
                })
                .await
            }
        },
    );
    let delay = Duration::from_millis(20);
    let retry = RetryPolicy { max_attempts: 2, first_delay: delay, max_delay: delay, ..RetryPolicy::default() };
    let engine = Engine::builder(MemoryBackend::new()).start().unwrap();
    let until = async {
        while {
            let runs = runs.lock().unwrap();
            runs.len() < POISON + OTHERS || runs.values().sum::<u32>() < (2 * POISON + OTHERS) as u32
        } {
            sleep(Duration::from_millis(10)).await;
        }
        // This is long enough for many refusals of each letter, and longer than NATS waits for an answer.
        sleep(Duration::from_secs(8)).await;
        broker.refuse_dead_letters(false).await;
        while broker.dead().await.len() < POISON {
            sleep(Duration::from_millis(50)).await;
        }
    };
    // There are fewer concurrent jobs than refused letters.
    let running = Processor::new(engine, source, mail).concurrency(4).retry(retry).run(until);
    let processed = match timeout(4 * PATIENCE, running).await {
        Ok(processed) => processed,
        Err(_) => {
            let (dead, left) = (broker.dead().await, broker.left().await);
            panic!("{:?} ran, {dead:?} are dead letters, and {left} are left", runs.lock().unwrap());
        }
    };
    assert_eq!((processed.ran, processed.dead, processed.unsettled), (OTHERS as u64, POISON as u64, 0));
    let runs = runs.lock().unwrap().clone();
    assert!(runs.iter().all(|(id, runs)| *runs == if id.starts_with("poison") { 2 } else { 1 }), "{runs:?}");
    let mut dead: Vec<String> = broker.dead().await.into_iter().map(|letter| letter.id).collect();
    dead.sort_unstable();
    assert_eq!(dead, (0..POISON).map(|number| format!("poison-{number}")).collect::<Vec<_>>());
    assert_eq!(broker.left().await, 0);
}
