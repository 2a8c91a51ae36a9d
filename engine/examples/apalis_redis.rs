//! apalis on its Redis storage: it sends each mail once, even when a worker is killed (`kill -9`) and restarted.
//!
//! ```text
//! cargo run -p oncekey --features apalis --example apalis_redis -- redis://127.0.0.1:6379/ mails.db 20
//! ```
//!
//! It pushes the number of mails in its last argument, and works until you stop it. apalis gives the tasks of a dead worker
//! to another worker, or to this one after a restart. Then:
//!
//! - a mail whose worker died after it was sent has its outcome in the store: the task's function does not run again;
//! - a mail whose worker died while it was sent may have been sent or not. It is sent again under the same derived key, and
//!   the provider, which takes idempotency keys, sends one mail for both.

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use apalis_redis::{Config, RedisStorage};
use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use oncekey::consumer::MessageKey;
use oncekey::consumer::apalis::OncePerTask;
use oncekey::consumer::apalis::apalis_core::backend::TaskSink as _;
use oncekey::consumer::apalis::apalis_core::error::BoxDynError;
use oncekey::consumer::apalis::apalis_core::task::Task;
use oncekey::consumer::apalis::apalis_core::task::data::Data;
use oncekey::consumer::apalis::apalis_core::worker::builder::WorkerBuilder;
use oncekey::{Claim, Engine, Key, OnAbandoned};
use oncekey_backends::SqliteBackend;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Mail {
    order: u64,
    to: String,
}

/// Sends mails. It knows idempotency keys: of several requests with one key it fulfils one.
#[derive(Clone)]
struct Provider(Arc<Mutex<SqliteConnection>>);

impl Provider {
    fn open(file: &str) -> Result<Self, BoxDynError> {
        let mut sent = SqliteConnection::establish(file)?;
        sent.batch_execute(
            "PRAGMA busy_timeout = 10000; CREATE TABLE IF NOT EXISTS mails (key TEXT PRIMARY KEY, mail_order INTEGER NOT NULL)",
        )?;
        Ok(Self(Arc::new(Mutex::new(sent))))
    }

    fn send(&self, key: &str, mail: &Mail) -> QueryResult<usize> {
        let row = diesel::sql_query(format!("INSERT OR IGNORE INTO mails VALUES (?, {})", mail.order));
        let mut sent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        row.bind::<diesel::sql_types::Text, _>(key).execute(&mut *sent)
    }
}

/// The task's function. The layer adds the claim to the task's data.
async fn send(mail: Mail, claim: Data<Claim>, provider: Data<Provider>) -> Result<String, BoxDynError> {
    println!("sending {}", mail.order);
    let key = claim.derive_key("send").to_string();
    tokio::time::sleep(Duration::from_millis(30)).await;
    provider.send(&key, &mail)?;
    // Killed here, the mail is sent, and neither the engine nor apalis knows.
    tokio::time::sleep(Duration::from_millis(30)).await;
    println!("sent {}", mail.order);
    Ok(format!("mail for order {} to {}", mail.order, mail.to))
}

#[tokio::main]
async fn main() -> Result<(), BoxDynError> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().unwrap_or_else(|| "redis://127.0.0.1:6379/".to_owned());
    let file = arguments.next().unwrap_or_else(|| "mails.db".to_owned());
    let count: u64 = arguments.next().map_or(Ok(0), |count| count.parse())?;

    // A worker that has given no sign of life for two seconds is dead.
    let config = Config::default().queue("mails").heartbeat_interval(Duration::from_secs(1)).missed_heartbeats(2);
    let mut storage = RedisStorage::<Mail>::new(apalis_redis::connect(url).await?).with_config(config);
    for order in 0..count {
        storage.push(Mail { order, to: "ada".to_owned() }).await?;
    }

    // Each mail goes under its own key at the provider: it may be requested again.
    let engine = Engine::builder(SqliteBackend::open(&file)?)
        .lease(Duration::from_secs(2))
        .on_abandoned(OnAbandoned::Rerun)
        .start()?;
    let once = OncePerTask::new(engine, |task: &Task<Mail>| {
        Ok(MessageKey::new(Key::new("mail", task.args.order)?, &task.args)?)
    });
    // apalis refuses a name whose last worker may still be alive.
    let worker = WorkerBuilder::new(format!("mailer-{}", std::process::id()))
        .backend(storage)
        .data(Provider::open(&file)?)
        .layer(once)
        .build(send);
    worker.run().await?;
    Ok(())
}
