//! A consumer process, for tests that kill it. Each message must leave one row in the table `effects`.
//!
//! Usage: `consumer URL NAME MODE FILE WORK_MS`. The URL's scheme names the broker; the queue, stream or group are
//! those of [`tests::broker`]. The mode says how the row is written:
//!
//! - `transaction`: in the transaction that completes the message's key
//! - `hold`, `rerun`: in a separate commit, inside an operation of the engine with that policy
//! - `unguarded`: in a separate commit, without an engine, as the control
//!
//! The first attempt on a message with the payload `poison` dead-letters it, and leaves a row in `tries` instead. Each
//! time the broker refuses a dead letter, a row in `refusals` records it.
//!
//! The acknowledgement of each third message is lost once, so the message is redelivered after its effect. The process
//! prints `ready` and, after SIGTERM, `ended` with what it did.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a process of the tests: what fails fails the test")]
#![expect(clippy::print_stdout, reason = "its output is its interface")]

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use oncekey::consumer::nats::{NatsJetStream, async_nats};
use oncekey::consumer::rabbitmq::RabbitMq;
use oncekey::consumer::redis_streams::{RedisStreams, redis};
use oncekey::consumer::{
    Call, Delivery, Disposition, IdentifyError, Job, JobResult, Message, MessageKey, Processor, RetryPolicy, Source,
};
use oncekey::{Engine, OnAbandoned};
use oncekey_backends::SqliteBackend;
use tests::broker::{CONSUMER, GROUP, QUEUE, STREAM};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

#[derive(Clone)]
struct Settings {
    mode: String,
    file: String,
    work: Duration,
}

#[actix_rt::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, name, mode, file, work] = arguments.as_slice() else { unreachable!("URL NAME MODE FILE WORK_MS") };
    let work = Duration::from_millis(work.parse().expect("a number"));
    let settings = Settings { mode: mode.clone(), file: file.clone(), work };
    // The broker may be down at this moment.
    if url.starts_with("redis:") {
        let client = redis::Client::open(url.as_str()).expect("a URL");
        let open = async || {
            let builder = RedisStreams::builder(client.clone(), QUEUE, GROUP, name);
            builder.claim_after(Duration::from_secs(1)).open().await
        };
        consume(until_open(open).await, settings).await;
    } else if url.starts_with("amqp:") {
        let open = async || RabbitMq::builder(url, QUEUE)?.open().await;
        consume(until_open(open).await, settings).await;
    } else {
        let client = until_open(async || async_nats::connect(url).await).await;
        let open = async || {
            let builder = NatsJetStream::builder(client.clone(), STREAM, CONSUMER);
            builder.ack_wait(Duration::from_secs(2)).open().await
        };
        consume(until_open(open).await, settings).await;
    }
}

async fn until_open<T, E: std::fmt::Display>(open: impl AsyncFn() -> Result<T, E>) -> T {
    loop {
        match open().await {
            Ok(opened) => return opened,
            Err(error) => println!("not open: {error}"),
        }
        sleep(Duration::from_millis(100)).await;
    }
}

fn insert(connection: &mut SqliteConnection, table: &str, id: &str) -> QueryResult<usize> {
    let row = diesel::sql_query(format!("INSERT INTO {table} VALUES (?)"));
    row.bind::<diesel::sql_types::Text, _>(id).execute(connection)
}

/// The tables, written in separate commits and off the arbiter.
#[derive(Clone)]
struct Tables(Arc<Mutex<SqliteConnection>>);

impl Tables {
    fn open(file: &str) -> Self {
        let mut own = SqliteConnection::establish(file).expect("the file opens");
        own.batch_execute("PRAGMA busy_timeout = 20000").expect("a setting");
        Self(Arc::new(Mutex::new(own)))
    }

    async fn insert(&self, table: &'static str, id: String) -> Result<(), String> {
        let own = self.0.clone();
        let inserting = move || insert(&mut own.lock().expect("no panic"), table, &id);
        let inserted = tokio::task::spawn_blocking(inserting).await;
        inserted.expect("no panic").map(|_| ()).map_err(|error| error.to_string())
    }
}

/// Writes a message's row.
struct Effect {
    mode: String,
    work: Duration,
    tables: Tables,
}

impl Job<Message> for Effect {
    type Output = ();
    type Error = String;

    fn identify(&self, message: &Message) -> Result<MessageKey, IdentifyError> {
        Ok(message.identity("effect")?)
    }

    async fn perform(&self, call: Call, message: Arc<Message>) -> JobResult<(), String> {
        let (id, work, tables) = (message.id().to_owned(), self.work, self.tables.clone());
        sleep(work / 2).await;
        let rerun = |call: Call| call.with(|engine| engine.with_on_abandoned(OnAbandoned::Rerun));
        let done = if message.payload() == "poison" {
            let trying = rerun(call).run(move |_| async move {
                tables.insert("tries", id).await?;
                Err(NO_ROUTE.to_owned())
            });
            trying.await
        } else if self.mode == "transaction" {
            call.run_in_transaction(move |tx: &mut SqliteConnection, _| {
                insert(tx, "effects", &id).map(|_| ()).map_err(|error| error.to_string())
            })
            .await
        } else {
            let call = if self.mode == "hold" { call } else { rerun(call) };
            call.run(move |_| async move {
                tables.insert("effects", id).await?;
                // If the process is killed here, the effect has happened and no outcome records it.
                sleep(work).await;
                Ok(())
            })
            .await
        };
        // If the process is killed here, the outcome is stored and the message is not acknowledged.
        sleep(work / 2).await;
        done
    }

    fn is_poison(&self, error: &String) -> bool {
        error == NO_ROUTE
    }
}

const NO_ROUTE: &str = "no route";

async fn consume(source: impl Source<Message = Message>, settings: Settings) {
    let Settings { mode, file, work } = settings;
    let tables = Tables::open(&file);
    let source = Forgetful { source, forgotten: Mutex::default(), tables: tables.clone() };
    let mut terminate = signal(SignalKind::terminate()).expect("signals can be handled");
    if mode == "unguarded" {
        println!("ready");
        loop {
            let Ok(Some(Delivery { message, receipt, .. })) = source.next().await else { continue };
            tables.insert("effects", message.id().to_owned()).await.expect("the row");
            // A message that cannot be settled is redelivered.
            let _ = source.settle((receipt.0, message.clone()), Disposition::Ack).await;
        }
    }
    let backend = SqliteBackend::builder(&file).busy_timeout(Duration::from_secs(10)).open().expect("the store opens");
    // The lease is short, so that keys held by a killed process are soon free. The store deadline, two thirds of it,
    // leaves time for a busy disk.
    let engine = Engine::builder(backend).lease(Duration::from_secs(3));
    let engine = engine.start().expect("the engine starts");
    println!("ready");
    let processed = Processor::new(engine.clone(), source, Effect { mode, work, tables })
        .concurrency(16)
        .retry(RetryPolicy {
            max_attempts: 1_000,
            in_flight_delay: Duration::from_millis(200),
            ..RetryPolicy::default()
        })
        .drain_limit(Duration::from_secs(10))
        .run(async {
            terminate.recv().await;
        })
        .await;
    engine.shutdown(Duration::from_secs(10)).await;
    println!("ended {processed:?}");
}

/// Loses the first acknowledgement of each third message, and records each refused dead letter.
struct Forgetful<S> {
    source: S,
    forgotten: Mutex<HashSet<String>>,
    tables: Tables,
}

impl<S: Source<Message = Message>> Source for Forgetful<S> {
    type Message = Message;
    type Receipt = (S::Receipt, Arc<Message>);
    type Error = S::Error;

    async fn next(&self) -> Result<Option<Delivery<Message, Self::Receipt>>, S::Error> {
        let taken = self.source.next().await?;
        Ok(taken.map(|Delivery { message, receipt, failures }| Delivery {
            receipt: (receipt, message.clone()),
            message,
            failures,
        }))
    }

    async fn settle(&self, (receipt, message): Self::Receipt, disposition: Disposition) -> Result<(), S::Error> {
        let is_third = message.id().parse::<u64>().is_ok_and(|number| number.is_multiple_of(3));
        let is_lost = disposition == Disposition::Ack
            && is_third
            && self.forgotten.lock().expect("no panic").insert(message.id().to_owned());
        let lost = Disposition::RetryLater { after: Duration::ZERO, failed: false };
        let is_letter = matches!(disposition, Disposition::DeadLetter { .. });
        let settled = self.source.settle(receipt, if is_lost { lost } else { disposition }).await;
        if is_letter && settled.is_err() {
            self.tables.insert("refusals", message.id().to_owned()).await.expect("the row");
        }
        settled
    }

    fn can_settle(&self, (receipt, _): &Self::Receipt) -> bool {
        self.source.can_settle(receipt)
    }

    async fn end_intake(&self) {
        self.source.end_intake().await;
    }

    async fn close(&self) {
        self.source.close().await;
    }
}
