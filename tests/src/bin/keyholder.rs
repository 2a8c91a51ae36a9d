//! A process that uses an engine on a store, for tests that kill it, pause it, or set its clock.
//!
//! Usage: `keyholder STORE LEASE_MS [OUTSIDE]`. The store is an SQLite file or a URL. With a URL, `OUTSIDE` is the
//! SQLite file of all effects outside the store. The process reads one command per line, and answers in lines:
//!
//! - `run KEY rerun|hold quick|stall|wait`: runs an operation. `stall` makes it last until `go`; `wait` makes the call
//!   wait for another holder. The process answers `began KEY ATTEMPT` when the operation begins, then `ran KEY VALUE`,
//!   `replayed KEY VALUE`, or `refused KEY WHY`. The value is the process's id.
//! - `order KEY`: inserts a row into the table `orders` in the transaction that completes the key.
//! - `order-unguarded KEY`: inserts the row in a separate transaction without an engine, as the control.
//! - `checkout KEY hold|rerun|transaction|heedless quick|before-STEP|in-STEP`: runs an operation of the steps
//!   `reserve`, `charge` and `mail` under Resume. Each step inserts a row into the table `effects`, in its transaction
//!   or in another file, `FILE.outside`. `heedless` is `hold` with an operation that ignores every error and continues
//!   with its next step; it prints `lost KEY STEP` when a step was refused. The process prints `step KEY STEP ATTEMPT`
//!   when a step runs, and `stalled KEY` before a step, or in it after its effect, until `go`.
//! - `settle KEY`: settles the key's unsettled step according to the table, and answers `settled KEY STEP`.
//! - `go`: lets stalled operations end.
//! - `clock`: answers `clock SECONDS`, the wall-clock time as the process sees it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a process of the tests: what fails fails the test")]
#![expect(clippy::print_stdout, reason = "its output is its interface")]

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use oncekey::record::StoreTime;
use oncekey::{
    Claim, Engine, Error, Fingerprint, Key, OnAbandoned, Outcome, RunError, Step, StepError, StepOptions, StepPolicy,
};
use tests::shared_store::engine_on;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::sync::Notify;

fn report<E: std::fmt::Display>(key: &Key, result: Result<Outcome<u32>, RunError<E>>) {
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
    report::<diesel::result::Error>(&key, result);
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
    report::<diesel::result::Error>(&key, result);
}

/// Inserts an effect outside the store. It is visible as soon as it has happened.
fn effect(connection: &mut SqliteConnection, key: &str, step: &str) -> QueryResult<usize> {
    diesel::sql_query("INSERT INTO effects (key, step) VALUES (?, ?)")
        .bind::<diesel::sql_types::Text, _>(key)
        .bind::<diesel::sql_types::Text, _>(step)
        .execute(connection)
}

/// How a checkout runs its steps, and where it stalls.
#[derive(Clone)]
struct Checkout {
    /// The connection for all effects outside the store.
    outside: Arc<Mutex<SqliteConnection>>,
    kind: String,
    stalls: String,
    go: Arc<Notify>,
}

impl Checkout {
    async fn stall(&self, point: String, key: &str) {
        if self.stalls == point {
            println!("stalled {key}");
            self.go.notified().await;
        }
    }

    async fn one(&self, claim: &Claim, name: &'static str) -> Result<(), StepError<String>> {
        let key = claim.key().idempotency_key().to_owned();
        self.stall(format!("before-{name}"), &key).await;
        if self.kind == "transaction" {
            let step = claim.step_in_transaction(name, move |tx: &mut SqliteConnection, step| {
                println!("step {key} {name} {}", step.attempt());
                effect(tx, &key, name).map_err(|error| error.to_string())
            });
            return step.await.map(drop);
        }
        let run = async |step: Step| {
            println!("step {key} {name} {}", step.attempt());
            let (outside, of) = (Arc::clone(&self.outside), key.clone());
            // This runs off the arbiter, which renews the leases.
            let writing = tokio::task::spawn_blocking(move || effect(&mut outside.lock().unwrap(), &of, name));
            writing.await.unwrap().map_err(|error| error.to_string())?;
            self.stall(format!("in-{name}"), &key).await;
            Ok::<u32, String>(std::process::id())
        };
        let policy = if self.kind == "rerun" { StepPolicy::Rerun } else { StepPolicy::Hold };
        let options = StepOptions::new(name).policy(policy);
        claim.step_with(options, run).await.map(drop)
    }
}

async fn checkout(engine: Engine, key: Key, checkout: Checkout) {
    let engine = engine.with_on_abandoned(OnAbandoned::Resume);
    let result = engine.run_local(key.clone(), Fingerprint::of(b"asked"), move |claim| async move {
        let mut result = Ok(std::process::id());
        for name in ["reserve", "charge", "mail"] {
            let Err(error) = checkout.one(&claim, name).await else { continue };
            let is_heedless = checkout.kind == "heedless";
            if is_heedless && error == StepError::Lost {
                println!("lost {} {name}", claim.key().idempotency_key());
            }
            result = Err(format!("{error:?}"));
            if !is_heedless {
                break;
            }
        }
        result
    });
    report(&key, result.await);
}

/// Settles a step, like an operator who has asked the provider.
async fn settle(engine: Engine, key: Key, file: String) {
    let found = engine.lookup(&key).await.unwrap().expect("a record");
    let step = found.steps.as_ref().and_then(|steps| steps.unsettled(StoreTime::END)).expect("an unsettled step");
    let happened: i64 = diesel::dsl::sql::<diesel::sql_types::BigInt>("SELECT count(*) FROM effects WHERE key = ")
        .bind::<diesel::sql_types::Text, _>(key.idempotency_key().to_owned())
        .sql(" AND step = ")
        .bind::<diesel::sql_types::Text, _>(step.name.as_str().to_owned())
        .get_result(&mut connect(&file))
        .unwrap();
    let outcome = (happened > 0).then_some(&0_u32);
    engine.resolve_step(&key, step.name.as_str(), outcome).await.unwrap();
    println!("settled {} {}", key.idempotency_key(), step.name);
}

fn connect(file: &str) -> SqliteConnection {
    let mut connection = SqliteConnection::establish(file).expect("the file opens");
    connection
        .batch_execute(
            "PRAGMA busy_timeout = 10000; PRAGMA synchronous = OFF; CREATE TABLE IF NOT EXISTS orders (key TEXT NOT NULL);
             CREATE TABLE IF NOT EXISTS effects (key TEXT NOT NULL, step TEXT NOT NULL)",
        )
        .expect("the tables");
    connection
}

#[actix_rt::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let (store, lease) =
        (arguments.next().expect("STORE"), arguments.next().expect("LEASE_MS").parse().expect("a number"));
    let outside_file = arguments.next().unwrap_or_else(|| format!("{store}.outside"));
    let engine = engine_on(&store, Duration::from_millis(lease)).await;
    // Orders are rows of the store's file if the store is a file.
    let mut unguarded = connect(if store.contains(':') { &outside_file } else { &store });
    let outside = Arc::new(Mutex::new(connect(&outside_file)));
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
            ["checkout", key, kind, stalls] => {
                let (kind, stalls) = (kind.to_owned(), stalls.to_owned());
                let steps = Checkout { outside: Arc::clone(&outside), kind, stalls, go: Arc::clone(&go) };
                actix_rt::spawn(checkout(engine.clone(), Key::new("checkout", key).unwrap(), steps));
            }
            ["settle", key] => {
                actix_rt::spawn(settle(engine.clone(), Key::new("checkout", key).unwrap(), outside_file.clone()));
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

/// Reads standard input on a separate thread, because a blocked arbiter could not do anything else.
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
