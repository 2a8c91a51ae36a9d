//! A process that uses an engine on an SQLite file, for tests that kill it, pause it, or set its clock.
//!
//! Usage: `keyholder FILE LEASE_MS`. It reads commands, a line each, and answers in lines:
//!
//! - `run KEY rerun|hold quick|stall|wait`: runs an operation; `stall` makes it last until `go`, `wait` has the call wait
//!   for another's. `began KEY ATTEMPT` when the operation begins, then `ran KEY VALUE`, `replayed KEY VALUE`, or
//!   `refused KEY WHY`. The value is the process's id.
//! - `order KEY`: inserts a row into the table `orders` in the transaction that completes the key.
//! - `order-unguarded KEY`: inserts the row in a transaction of its own, with no engine: the control.
//! - `go`: lets stalled operations end.
//! - `clock`: `clock SECONDS`, what the process takes for the wall clock's time.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a process of the tests: what fails fails the test")]
#![expect(clippy::print_stdout, reason = "its output is its interface")]

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use oncekey::{Engine, Error, Fingerprint, Key, OnAbandoned, Outcome, RunError};
use oncekey_backends::SqliteBackend;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::sync::Notify;

fn report(key: &Key, result: Result<Outcome<u32>, RunError<diesel::result::Error>>) {
    let key = key.idempotency_key();
    match result {
        Ok(Outcome::Ran(value)) => println!("ran {key} {value}"),
        Ok(Outcome::Replayed(value)) => println!("replayed {key} {value}"),
        Err(RunError::Engine(Error::InProgress { lease_left })) => {
            println!("refused {key} InProgress {}", lease_left.as_millis());
        }
        Err(RunError::Engine(error)) => println!("refused {key} {error:?}"),
        Err(RunError::Operation(error)) => println!("failed {key} {error}"),
    }
}

async fn run(engine: Engine, key: Key, mode: String, go: Arc<Notify>) {
    let engine = if mode == "wait" { engine.with_wait(Duration::from_secs(60)) } else { engine };
    let result = engine
        .run(key.clone(), Fingerprint::of(b"asked"), move |claim| async move {
            println!("began {} {}", claim.key().idempotency_key(), claim.attempt());
            if mode == "stall" {
                go.notified().await;
            }
            Ok(std::process::id())
        })
        .await;
    report(&key, result);
}

async fn order(engine: Engine, key: Key) {
    let result = engine
        .run_in_transaction(key.clone(), Fingerprint::of(b"asked"), |tx: &mut SqliteConnection, claim| {
            diesel::sql_query("INSERT INTO orders (key) VALUES (?)")
                .bind::<diesel::sql_types::Text, _>(claim.key().idempotency_key())
                .execute(tx)?;
            Ok(std::process::id())
        })
        .await;
    report(&key, result);
}

#[actix_rt::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let (file, lease) =
        (arguments.next().expect("FILE"), arguments.next().expect("LEASE_MS").parse().expect("a number"));
    let backend = SqliteBackend::open(&file).expect("the store opens");
    let mut unguarded = SqliteConnection::establish(&file).expect("the file opens");
    unguarded
        .batch_execute("PRAGMA busy_timeout = 10000; CREATE TABLE IF NOT EXISTS orders (key TEXT NOT NULL)")
        .expect("the table of orders");
    let engine = Engine::builder(backend).lease(Duration::from_millis(lease)).start().expect("the engine starts");
    let go = Arc::new(Notify::new());
    println!("ready");

    let mut lines = BufReader::new(tokio_stdin()).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["run", key, policy, mode] => {
                let policy = if policy == "rerun" { OnAbandoned::Rerun } else { OnAbandoned::Hold };
                let engine = engine.with_on_abandoned(policy);
                actix_rt::spawn(run(engine, Key::new("process", key).unwrap(), mode.to_owned(), Arc::clone(&go)));
            }
            ["order", key] => drop(actix_rt::spawn(order(engine.clone(), Key::new("orders", key).unwrap()))),
            ["order-unguarded", key] => {
                let inserted = diesel::sql_query("INSERT INTO orders (key) VALUES (?)")
                    .bind::<diesel::sql_types::Text, _>(key)
                    .execute(&mut unguarded);
                inserted.expect("the row");
                println!("ran {key} {}", std::process::id());
            }
            ["go"] => go.notify_waiters(),
            ["clock"] => {
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
                println!("clock {}", now.as_secs());
            }
            _ => println!("unknown {line}"),
        }
    }
}

/// Standard input, read on a thread of its own: a blocked arbiter would serve nobody.
fn tokio_stdin() -> tokio::io::DuplexStream {
    let (here, there) = tokio::io::duplex(4_096);
    let handle = tokio::runtime::Handle::current();
    std::thread::spawn(move || {
        use tokio::io::AsyncWriteExt as _;
        let mut there = there;
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if handle.block_on(there.write_all(format!("{line}\n").as_bytes())).is_err() {
                return;
            }
        }
    });
    here
}
