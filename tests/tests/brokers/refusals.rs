//! RabbitMQ does not take what is put aside: nothing is left in limbo for as long as the connection lasts.

use oncekey::consumer::rabbitmq::lapin::options::{QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions};
use oncekey::consumer::rabbitmq::lapin::types::{AMQPValue, FieldTable};
use oncekey::consumer::rabbitmq::lapin::{Channel, Connection, ConnectionProperties};
use oncekey::consumer::rabbitmq::{RabbitMq, RabbitMqError, Receipt};
use oncekey::consumer::{Delivery, Disposition, Message, Source as _};
use tests::broker::{Broker as _, Letter, QUEUE};
use tests::server::RabbitMqServer;
use tokio::time::timeout;

const DEAD: &str = "orders.dead";

async fn open_channel(server: &RabbitMqServer) -> Channel {
    let connection = Connection::connect(&server.url(), ConnectionProperties::default()).await.unwrap();
    connection.create_channel().await.unwrap()
}

async fn next(source: &RabbitMq) -> Delivery<Message, Receipt> {
    timeout(tests::process::PATIENCE, source.next()).await.expect("it is given again").unwrap().unwrap()
}

fn quorum() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    arguments
}

#[actix_rt::test]
async fn j02_a_dead_letter_that_no_queue_takes_is_given_again_until_one_does() {
    let server = RabbitMqServer::start();
    server.publish(&[Message::new("1", "poison")]).await;
    let source = RabbitMq::builder(&server.url(), QUEUE).unwrap().open().await.unwrap();
    let channel = open_channel(&server).await;
    channel.queue_delete(DEAD.into(), QueueDeleteOptions::default()).await.unwrap();

    let dead = || Disposition::DeadLetter { reason: "no route".to_owned() };
    let refused = source.settle(next(&source).await.receipt, dead()).await;
    assert!(matches!(refused, Err(RabbitMqError::NotTaken(_))), "{refused:?}");

    // On the same connection.
    let again = next(&source).await;
    assert_eq!((again.message.id(), again.failures), ("1", 0));
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(DEAD.into(), durable, quorum()).await.unwrap();
    let bind =
        channel.queue_bind(DEAD.into(), DEAD.into(), "".into(), QueueBindOptions::default(), FieldTable::default());
    bind.await.unwrap();
    source.settle(again.receipt, dead()).await.unwrap();
    assert_eq!(server.dead().await, [Letter { id: "1".to_owned(), error: "no route".to_owned() }]);
    source.close().await;
    assert_eq!(server.left().await, 0);
}

#[actix_rt::test]
async fn j02_a_retry_whose_queue_can_not_be_declared_is_given_again_on_a_new_connection() {
    const DELAY: std::time::Duration = std::time::Duration::from_millis(16);

    let server = RabbitMqServer::start();
    server.publish(&[Message::new("1", "mail")]).await;
    // Somebody else's, and of another form: the broker closes the channel on which it is asked for.
    let taken = format!("{QUEUE}.retry.16");
    let channel = open_channel(&server).await;
    channel.queue_declare(taken.as_str().into(), QueueDeclareOptions::default(), FieldTable::default()).await.unwrap();
    let source = RabbitMq::builder(&server.url(), QUEUE).unwrap().open().await.unwrap();

    let failed = || Disposition::RetryLater { after: DELAY, failed: true };
    let refused = source.settle(next(&source).await.receipt, failed()).await;
    assert!(matches!(refused, Err(RabbitMqError::Client { .. })), "{refused:?}");
    let ended = timeout(tests::process::PATIENCE, source.next()).await.expect("it is told");
    assert!(matches!(ended, Err(RabbitMqError::Ended(_))), "{ended:?}");

    let again = next(&source).await;
    channel.queue_delete(taken.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    source.settle(again.receipt, failed()).await.unwrap();
    let retried = next(&source).await;
    assert_eq!((retried.message.id(), retried.failures), ("1", 1));
    source.settle(retried.receipt, Disposition::Ack).await.unwrap();
    source.close().await;
    assert_eq!(server.left().await, 0);
}
