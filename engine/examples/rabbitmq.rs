//! A mail for each order, over RabbitMQ: an order that is published twice is mailed once.
//!
//! ```text
//! cargo run -p oncekey --features rabbitmq --example rabbitmq -- amqp://127.0.0.1:5672/%2f
//! ```

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::time::Duration;

use oncekey::consumer::rabbitmq::{RabbitMq, RabbitPublisher};
use oncekey::consumer::{Message, MessageKey, Processor, job};
use oncekey::{Engine, Key};
use oncekey_backends::MemoryBackend;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Order {
    number: u64,
    to: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "amqp://127.0.0.1:5672/%2f".to_owned());
    // It declares the queue, which must be there before something is published.
    let source = RabbitMq::builder(&url, "orders")?.open().await?;
    let publisher = RabbitPublisher::new(&url, "", "orders")?;
    for number in [17, 18, 17] {
        let order = Order { number, to: "ada".to_owned() };
        publisher.publish(&Message::json(format!("order-{number}"), &order)?).await?;
    }

    // Where an outcome must outlive the process, another backend stands here.
    let engine = Engine::builder(MemoryBackend::new()).start()?;
    let mail = job(
        |message: &Message| {
            let order: Order = message.parse()?;
            Ok(MessageKey::new(Key::new("mail", order.number)?, &order)?)
        },
        |call, message| async move {
            call.run(move |claim| async move {
                let order: Order = message.parse()?;
                println!("mail for order {} to {}, attempt {}", order.number, order.to, claim.attempt());
                Ok::<_, serde_json::Error>(order.number)
            })
            .await
        },
    );
    let until = tokio::time::sleep(Duration::from_secs(2));
    let processed = Processor::new(engine, source, mail).run(until).await;
    println!("{} mailed, {} delivered again", processed.ran, processed.replayed);
    Ok(())
}
