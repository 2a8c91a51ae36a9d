//! Brokers in unusual states: a lost group, deleted entries, and a pull that is still open at the end.

use std::time::Duration;

use oncekey::consumer::nats::async_nats::jetstream;
use oncekey::consumer::nats::{NatsJetStream, async_nats};
use oncekey::consumer::redis_streams::{RedisStreams, redis};
use oncekey::consumer::{Delivery, Disposition, Message, Source};
use tests::broker::{Broker as _, CONSUMER, GROUP, QUEUE, STREAM};
use tests::process::PATIENCE;
use tests::server::{Nats, Redis};
use tokio::time::timeout;

async fn next<S: Source<Message = Message>>(source: &S) -> Delivery<Message, S::Receipt> {
    timeout(PATIENCE, source.next()).await.expect("a message comes").unwrap().unwrap()
}

fn numbered(numbers: std::ops::Range<u32>) -> Vec<Message> {
    numbers.map(|number| Message::new(number.to_string(), "mail")).collect()
}

/// Messages that were added after the group was lost, and before it is created again, are not missed.
#[actix_rt::test]
async fn j05_a_group_that_is_gone_begins_again_where_it_was() {
    let redis = Redis::start();
    redis.publish(&numbered(0..3)).await;
    let client = redis::Client::open(redis.url()).unwrap();
    let source = RedisStreams::builder(client.clone(), QUEUE, GROUP, "mailer-1").from_now_on().open().await.unwrap();
    redis.publish(&numbered(3..5)).await;
    for id in ["3", "4"] {
        let taken = next(&source).await;
        assert_eq!(taken.message.id(), id);
        source.settle(taken.receipt, Disposition::Ack).await.unwrap();
    }
    redis.cli(&["XGROUP", "DESTROY", QUEUE, GROUP]);
    redis.publish(&numbered(5..7)).await;
    for id in ["5", "6"] {
        assert_eq!(next(&source).await.message.id(), id);
    }
    // The server comes back without its data, so the stream is a different one now.
    redis.cli(&["DEL", QUEUE]);
    redis.cli(&["XADD", QUEUE, "1-1", "id", "7", "payload", "mail"]);
    assert_eq!(next(&source).await.message.id(), "7");
}

/// An entry that is deleted while it is pending is dropped, and delays nothing.
#[actix_rt::test]
async fn j05_entries_that_are_deleted_while_they_are_pending_hold_up_nobody() {
    let redis = Redis::start();
    redis.publish(&numbered(0..4)).await;
    let client = redis::Client::open(redis.url()).unwrap();
    let first = RedisStreams::builder(client.clone(), QUEUE, GROUP, "mailer-1").open().await.unwrap();
    let taken = next(&first).await;
    // This is as if its process died: nothing is given back.
    drop(first);
    let entries = redis.cli(&["XRANGE", QUEUE, "-", "+"]);
    let ids: Vec<&str> = entries.lines().filter(|line| line.contains('-')).collect();
    for id in &ids[..2] {
        redis.cli(&["XDEL", QUEUE, id]);
    }
    let again = RedisStreams::builder(client, QUEUE, GROUP, "mailer-1").open().await.unwrap();
    for id in ["2", "3"] {
        let taken = next(&again).await;
        assert_eq!(taken.message.id(), id);
        again.settle(taken.receipt, Disposition::Ack).await.unwrap();
    }
    again.close().await;
    assert_eq!((redis.left().await, taken.message.id()), (0, "0"));
}

/// If Redis cannot keep a dead letter, the message stays pending, and is not acknowledged instead.
#[actix_rt::test]
async fn j08_a_dead_letter_that_redis_can_not_keep_leaves_its_message_pending() {
    let redis = Redis::start();
    let forged = Message::new("0", "mail").with_header("oncekey-error", "forged").with_header("id", "forged");
    redis.publish(&[forged]).await;
    let client = redis::Client::open(redis.url()).unwrap();
    let source = RedisStreams::builder(client, QUEUE, GROUP, "mailer-1").open().await.unwrap();
    let taken = next(&source).await;
    assert_eq!(taken.message.id(), "0");
    let dead = || Disposition::DeadLetter { reason: "no route".to_owned() };
    redis.cli(&["SET", "orders.dead", "a text"]);
    for _ in 0..2 {
        assert!(source.settle(taken.receipt.clone(), dead()).await.is_err());
        assert_eq!(redis.left().await, 1);
    }
    redis.cli(&["DEL", "orders.dead"]);
    source.settle(taken.receipt, dead()).await.unwrap();
    assert_eq!(redis.left().await, 0);
    let letter = redis.cli(&["XRANGE", "orders.dead", "-", "+"]);
    let fields: Vec<&str> = letter.lines().map(str::trim).collect();
    let of = |name: &str| fields.iter().position(|field| field == &name).map(|at| fields[at + 1]);
    assert_eq!((of("id"), of("oncekey-error")), (Some("0"), Some("no route")));
    assert_eq!(of("oncekey-header-oncekey-error"), Some("forged"));
    source.close().await;
}

/// Messages that are given back while the processor ends go to other consumers at once, and not to the pull that is
/// still open here.
#[actix_rt::test]
async fn j05_what_nats_redelivers_while_a_consumer_ends_goes_to_another() {
    let nats = Nats::start();
    nats.publish(&numbered(0..20)).await;
    // This time is so long that a message that waits here unseen fails the test.
    let open = async || {
        let client = async_nats::connect(nats.url()).await.unwrap();
        let builder = NatsJetStream::builder(client, STREAM, CONSUMER).ack_wait(Duration::from_secs(600));
        builder.open().await.unwrap()
    };
    let ending = open().await;
    let taken = next(&ending).await;
    ending.end_intake().await;
    ending.settle(taken.receipt, Disposition::RetryLater { after: Duration::ZERO, failed: false }).await.unwrap();
    let other = open().await;
    let mut ids = Vec::new();
    for _ in 0..20 {
        let taken = next(&other).await;
        ids.push(taken.message.id().parse::<u32>().unwrap());
        other.settle(taken.receipt, Disposition::Ack).await.unwrap();
    }
    ids.sort_unstable();
    assert_eq!(ids, (0..20).collect::<Vec<_>>());
    ending.close().await;
}

/// Headers on which the server acts come from the publishing alone, and not from the dead letter.
#[actix_rt::test]
async fn j08_a_nats_dead_letter_has_the_original_s_headers_under_a_prefix_only() {
    let nats = Nats::start();
    let expecting = Message::new("1", "mail")
        .with_header("Nats-Expected-Stream", STREAM)
        .with_header("Oncekey-Error", "forged")
        .with_header("subject", "forged");
    nats.publish(&[expecting]).await;
    let client = async_nats::connect(nats.url()).await.unwrap();
    let source = NatsJetStream::builder(client.clone(), STREAM, CONSUMER).open().await.unwrap();
    let taken = next(&source).await;
    assert_eq!(taken.message.header("subject"), Some(QUEUE));
    source.settle(taken.receipt, Disposition::DeadLetter { reason: "no\nroute".to_owned() }).await.unwrap();
    let stream = jetstream::new(client).get_stream(format!("dead_{STREAM}_{CONSUMER}")).await.unwrap();
    let letter = stream.get_raw_message(1).await.unwrap();
    let header = |name: &str| letter.headers.get(name).map(ToString::to_string);
    assert_eq!(header("Oncekey-Error").as_deref(), Some("no route"));
    assert_eq!(header("Oncekey-Header-Oncekey-Error").as_deref(), Some("forged"));
    assert_eq!(header("Oncekey-Header-Nats-Expected-Stream").as_deref(), Some(STREAM));
    assert_eq!(header("Nats-Expected-Stream"), None);
    source.close().await;
    assert_eq!(nats.left().await, 0);
}

/// A header that NATS cannot carry is an error for its publisher.
#[actix_rt::test]
async fn j07_a_header_that_nats_can_not_carry_is_an_error() {
    let nats = Nats::start();
    nats.publish(&[]).await;
    let client = async_nats::connect(nats.url()).await.unwrap();
    let publisher = oncekey::consumer::nats::NatsPublisher::new(client, QUEUE);
    for message in [
        Message::new("1", "mail").with_header("tenant", "a\r\nb"),
        Message::new("1", "mail").with_header("a tenant", "a"),
        Message::new("1\n2", "mail"),
    ] {
        assert!(publisher.publish(&message).await.is_err());
    }
}
