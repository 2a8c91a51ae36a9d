//! RabbitMQ refuses what a settle needs. The same receipt settles the message later, on the same connection, and the
//! message is not redelivered for it.

use oncekey::consumer::rabbitmq::lapin::options::{
    BasicGetOptions, BasicPublishOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use oncekey::consumer::rabbitmq::lapin::types::{AMQPValue, FieldTable};
use oncekey::consumer::rabbitmq::lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};
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

async fn declare_dead_letters(channel: &Channel) {
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(DEAD.into(), durable, quorum()).await.unwrap();
    let bind =
        channel.queue_bind(DEAD.into(), DEAD.into(), "".into(), QueueBindOptions::default(), FieldTable::default());
    bind.await.unwrap();
}

fn dead() -> Disposition {
    Disposition::DeadLetter { reason: "no route".to_owned() }
}

#[actix_rt::test]
async fn j08_a_dead_letter_that_no_queue_takes_is_kept_until_one_does() {
    let server = RabbitMqServer::start();
    server.publish(&[Message::new("1", "poison")]).await;
    let source = RabbitMq::builder(&server.url(), QUEUE).unwrap().open().await.unwrap();
    let channel = open_channel(&server).await;
    channel.queue_delete(DEAD.into(), QueueDeleteOptions::default()).await.unwrap();

    let receipt = next(&source).await.receipt;
    let refused = source.settle(receipt.clone(), dead()).await;
    assert!(matches!(refused, Err(RabbitMqError::NotTaken(_))), "{refused:?}");
    assert!(source.can_settle(&receipt));
    declare_dead_letters(&channel).await;
    source.settle(receipt, dead()).await.unwrap();
    assert_eq!(server.dead().await, [Letter { id: "1".to_owned(), error: "no route".to_owned() }]);
    source.close().await;
    assert_eq!(server.left().await, 0);
}

/// The broker closes the channel that publishes to a missing exchange. The connection stays open.
#[actix_rt::test]
async fn j08_a_dead_letter_whose_exchange_is_gone_is_kept_until_it_is_back() {
    let server = RabbitMqServer::start();
    server.publish(&[Message::new("1", "poison"), Message::new("2", "mail")]).await;
    let source = RabbitMq::builder(&server.url(), QUEUE).unwrap().open().await.unwrap();
    let channel = open_channel(&server).await;
    channel.exchange_delete(DEAD.into(), ExchangeDeleteOptions::default()).await.unwrap();

    let receipt = next(&source).await.receipt;
    for _ in 0..3 {
        assert!(source.settle(receipt.clone(), dead()).await.is_err());
        assert!(source.can_settle(&receipt));
    }
    // Other messages continue.
    source.settle(next(&source).await.receipt, Disposition::Ack).await.unwrap();
    let durable =
        oncekey::consumer::rabbitmq::lapin::options::ExchangeDeclareOptions { durable: true, ..Default::default() };
    channel.exchange_declare(DEAD.into(), ExchangeKind::Fanout, durable, FieldTable::default()).await.unwrap();
    declare_dead_letters(&channel).await;
    source.settle(receipt, dead()).await.unwrap();
    assert_eq!(server.dead().await, [Letter { id: "1".to_owned(), error: "no route".to_owned() }]);
    source.close().await;
    assert_eq!(server.left().await, 0);
}

#[actix_rt::test]
async fn j08_a_retry_whose_queue_can_not_be_declared_is_kept_until_it_can() {
    const DELAY: std::time::Duration = std::time::Duration::from_millis(16);

    let server = RabbitMqServer::start();
    server.publish(&[Message::new("1", "mail")]).await;
    // The queue exists with another form: the broker closes the channel that declares it.
    let taken = format!("{QUEUE}.retry.16");
    let channel = open_channel(&server).await;
    channel.queue_declare(taken.as_str().into(), QueueDeclareOptions::default(), FieldTable::default()).await.unwrap();
    let source = RabbitMq::builder(&server.url(), QUEUE).unwrap().open().await.unwrap();

    let failed = || Disposition::RetryLater { after: DELAY, failed: true };
    let receipt = next(&source).await.receipt;
    let refused = source.settle(receipt.clone(), failed()).await;
    assert!(matches!(refused, Err(RabbitMqError::Client { .. })), "{refused:?}");
    assert!(source.can_settle(&receipt));
    channel.queue_delete(taken.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    source.settle(receipt, failed()).await.unwrap();
    let retried = next(&source).await;
    assert_eq!((retried.message.id(), retried.failures), ("1", 1));
    source.settle(retried.receipt, Disposition::Ack).await.unwrap();
    source.close().await;
    assert_eq!(server.left().await, 0);
}

/// A receipt belongs to its connection.
#[actix_rt::test]
async fn j08_a_receipt_is_void_once_its_connection_has_ended() {
    let mut server = RabbitMqServer::start();
    server.publish(&[Message::new("1", "mail")]).await;
    let source = RabbitMq::builder(&server.url(), QUEUE).unwrap().open().await.unwrap();
    let first = next(&source).await;
    server.kill_and_restart();
    assert!(source.settle(first.receipt.clone(), Disposition::Ack).await.is_err());
    assert!(!source.can_settle(&first.receipt));
    // The message is redelivered by itself, on the next connection.
    let again = timeout(tests::process::PATIENCE, async {
        loop {
            match source.next().await {
                Ok(again) => break again.unwrap(),
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
            }
        }
    });
    let again = again.await.unwrap();
    source.settle(again.receipt, Disposition::Ack).await.unwrap();
    source.close().await;
    assert_eq!(server.left().await, 0);
}

/// A publisher's headers and properties affect only its own publishing, and none of its headers can pass for the
/// source's.
#[actix_rt::test]
async fn j08_a_user_s_headers_and_properties_go_nowhere_but_under_their_prefix() {
    let server = RabbitMqServer::start();
    server.publish(&[]).await;
    let channel = open_channel(&server).await;
    let mut headers = FieldTable::default();
    headers.insert("oncekey-failures".into(), AMQPValue::LongLongInt(40));
    headers.insert("oncekey-error".into(), AMQPValue::LongString("forged".into()));
    headers.insert("tenant".into(), AMQPValue::LongString("a".into()));
    headers.insert("CC".into(), AMQPValue::FieldArray(vec![AMQPValue::LongString("elsewhere".into())].into()));
    let properties = BasicProperties::default()
        .with_message_id("1".into())
        .with_content_type("text/plain".into())
        .with_expiration("60000".into())
        .with_headers(headers);
    let published = channel.basic_publish("".into(), QUEUE.into(), BasicPublishOptions::default(), b"mail", properties);
    published.await.unwrap();

    let source = RabbitMq::builder(&server.url(), QUEUE).unwrap().open().await.unwrap();
    let first = next(&source).await;
    assert_eq!((first.failures, first.message.header("tenant")), (0, Some("a")));
    let failed = Disposition::RetryLater { after: std::time::Duration::from_millis(16), failed: true };
    source.settle(first.receipt, failed).await.unwrap();
    // After a retry, the job sees the same message.
    let second = next(&source).await;
    assert_eq!((second.failures, second.message.header("tenant")), (1, Some("a")));
    assert_eq!(second.message.headers(), first.message.headers());
    source.settle(second.receipt, dead()).await.unwrap();

    let letter = channel.basic_get(DEAD.into(), BasicGetOptions::default()).await.unwrap().unwrap();
    assert_eq!(
        (letter.properties.expiration(), letter.properties.content_type().as_ref().unwrap().as_str()),
        (&None, "text/plain")
    );
    let headers = letter.properties.headers().as_ref().unwrap().inner();
    let text = |name: &str| match headers.get(name) {
        Some(AMQPValue::LongString(text)) => Some(text.to_string()),
        _ => None,
    };
    assert_eq!(text("oncekey-error").as_deref(), Some("no route"));
    assert_eq!(text("oncekey-header-oncekey-error").as_deref(), Some("forged"));
    assert_eq!(text("oncekey-header-tenant").as_deref(), Some("a"));
    // The broker counts its deliveries.
    let others = headers.keys().filter(|name| !name.as_str().starts_with("oncekey-"));
    assert_eq!(others.map(|name| name.as_str()).collect::<Vec<_>>(), ["x-delivery-count"]);
    source.close().await;
}

/// The limit is set where the source declares the queue. A queue with another limit keeps it, and the source reports
/// it.
#[actix_rt::test]
async fn j08_the_limit_of_deliveries_is_set_at_the_declaration_or_reported() {
    let server = RabbitMqServer::start();
    let channel = open_channel(&server).await;
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare("plain".into(), durable, quorum()).await.unwrap();
    for (queue, limit, is_as_asked) in [
        ("limited", Some(3), true),
        ("limited", Some(3), true),
        ("limited", None, false),
        ("limited", Some(4), false),
        ("unlimited", None, true),
        ("unlimited", Some(3), false),
        ("plain", None, false),
        ("plain", Some(3), false),
    ] {
        let builder = RabbitMq::builder(&server.url(), queue).unwrap();
        let builder = if let Some(limit) = limit { builder.delivery_limit(limit) } else { builder };
        let source = builder.open().await.unwrap();
        assert_eq!(source.has_delivery_limit_asked_for().await, Some(is_as_asked), "{queue} {limit:?}");
        source.close().await;
    }
    // A queue of another type is different: the broker refuses it.
    assert!(RabbitMq::builder(&server.url(), "plain").unwrap().classic().open().await.is_err());
}

/// A message with a long delay that has not failed (an indeterminate key, a scope at its limit) takes no place of the
/// prefetch.
#[actix_rt::test]
async fn j09_messages_that_wait_for_long_do_not_use_up_the_prefetch() {
    const HOUR: std::time::Duration = std::time::Duration::from_secs(3_600);

    let server = RabbitMqServer::start();
    server.publish(&(0..12).map(|number| Message::new(number.to_string(), "mail")).collect::<Vec<_>>()).await;
    let source = RabbitMq::builder(&server.url(), QUEUE).unwrap().prefetch(2).open().await.unwrap();
    for number in 0..12 {
        let taken = next(&source).await;
        assert_eq!(taken.message.id(), number.to_string());
        let waits = Disposition::RetryLater { after: HOUR, failed: false };
        source.settle(taken.receipt, if number < 10 { waits } else { Disposition::Ack }).await.unwrap();
    }
    // With a shorter delay it is redelivered, and has not failed.
    server.publish(&[Message::new("12", "mail")]).await;
    let taken = next(&source).await;
    let waits = Disposition::RetryLater { after: std::time::Duration::from_secs(3), failed: false };
    source.settle(taken.receipt, waits).await.unwrap();
    let again = next(&source).await;
    assert_eq!((again.message.id(), again.failures), ("12", 0));
    source.settle(again.receipt, Disposition::Ack).await.unwrap();
    source.close().await;
}

/// The broker's limit counts deliveries that ended with their consumer, and not attempts. A job that fails more often
/// than the limit allows ends as a dead letter. The broker may drop a message that is given back more often.
#[actix_rt::test]
async fn j08_a_limit_of_deliveries_below_the_attempts_drops_no_message_whose_job_fails() {
    const LIMIT: u32 = 3;

    let server = RabbitMqServer::start();
    let open = async || {
        let builder = RabbitMq::builder(&server.url(), QUEUE).unwrap().delivery_limit(LIMIT);
        builder.open().await.unwrap()
    };
    let source = open().await;
    assert_eq!(source.has_delivery_limit_asked_for().await, Some(true));
    let publisher = oncekey::consumer::rabbitmq::RabbitPublisher::new(&server.url(), "", QUEUE).unwrap();
    publisher.publish(&Message::new("fails", "mail")).await.unwrap();
    for failures in 0..3 * LIMIT {
        let taken = next(&source).await;
        assert_eq!((taken.message.id(), taken.failures), ("fails", failures));
        let failed = Disposition::RetryLater { after: std::time::Duration::from_millis(16), failed: true };
        source.settle(taken.receipt, failed).await.unwrap();
    }
    source.settle(next(&source).await.receipt, dead()).await.unwrap();
    assert_eq!(server.dead().await.len(), 1);

    // A policy makes the broker route what it would drop to the dead letters.
    let policy = format!(r#"{{"dead-letter-exchange":"{DEAD}"}}"#);
    server.ctl(&["set_policy", "--apply-to", "queues", "dropped", &format!("^{QUEUE}$"), &policy]);
    publisher.publish(&Message::new("is given back", "mail")).await.unwrap();
    let give_back = || Disposition::RetryLater { after: std::time::Duration::ZERO, failed: false };
    for _ in 0..=LIMIT {
        source.settle(next(&source).await.receipt, give_back()).await.unwrap();
    }
    let channel = open_channel(&server).await;
    let mut dropped = None;
    while dropped.as_ref().is_none_or(|id| id != "is given back") {
        let letter = channel.basic_get(DEAD.into(), BasicGetOptions { no_ack: true }).await.unwrap();
        match letter {
            Some(letter) => dropped = letter.properties.message_id().as_ref().map(ToString::to_string),
            None => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
        }
    }
    source.close().await;
    assert_eq!(server.left().await, 0);
}

/// The broker never drops a message that is given back again and again.
#[actix_rt::test]
async fn j05_a_message_is_redelivered_as_often_as_it_takes() {
    let server = RabbitMqServer::start();
    server.publish(&[Message::new("1", "mail")]).await;
    let source = RabbitMq::builder(&server.url(), QUEUE).unwrap().open().await.unwrap();
    for _ in 0..50 {
        source
            .settle(next(&source).await.receipt, Disposition::RetryLater { after: Default::default(), failed: false })
            .await
            .unwrap();
    }
    source.settle(next(&source).await.receipt, Disposition::Ack).await.unwrap();
    source.close().await;
    assert_eq!(server.left().await, 0);
}
