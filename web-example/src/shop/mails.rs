//! Mails: one for each order, sent by the process that receives the outbox's message. "Sent" is a line in the shop's
//! database.
//!
//! The message commits with the order. The shop relays it over a Redis stream to a worker or, without a stream, does
//! the worker's part itself. Either process may be killed at any moment: the message is in the outbox, in the stream,
//! or done.

use std::sync::Arc;
use std::time::Duration;

use actix_web::{HttpResponse, web};
use diesel::sqlite::SqliteConnection;
use diesel::{ExpressionMethods as _, QueryDsl as _, Queryable, Selectable, SelectableHelper as _};
use diesel_async::{AsyncMysqlConnection, AsyncPgConnection};
use oncekey::consumer::redis_streams::{RedisPublisher, RedisStreams, redis};
use oncekey::consumer::{Call, IdentifyError, Job, JobResult, Message, MessageKey, Processed, Processor};
use oncekey::{Engine, Key, OnAbandoned};
use oncekey_backends::outbox::{MysqlOutbox, OutboxError, OutboxMessage, PostgresOutbox, Relay, SqliteOutbox, Table};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::Shop;
use super::database::{Database, DatabaseError, mails, now, on_database};
use crate::store::Home;

/// The outbox's topic, the stream's name, and the scope of the mails' keys.
const MAILS: &str = "mails";

/// The content of a mail.
#[derive(Debug, Serialize, Deserialize)]
struct Mail {
    order: i64,
}

/// Returns the message that commits with an order.
pub(super) fn message_for(order: i64) -> Result<Message, serde_json::Error> {
    Message::json(format!("mail-{order}"), &Mail { order })
}

/// Writes the message through the order's own connection.
pub(super) fn post(tx: &mut SqliteConnection, message: &Message) -> diesel::QueryResult<()> {
    SqliteOutbox::write(tx, MAILS, message)
}

pub(super) async fn post_pg(tx: &mut AsyncPgConnection, message: &Message) -> diesel::QueryResult<()> {
    PostgresOutbox::write(tx, MAILS, message).await
}

pub(super) async fn post_mysql(tx: &mut AsyncMysqlConnection, message: &Message) -> diesel::QueryResult<()> {
    MysqlOutbox::write(tx, MAILS, message).await
}

/// The outbox in the shop's database.
#[derive(Debug)]
pub(super) enum Outbox {
    Sqlite(SqliteOutbox),
    Postgres(PostgresOutbox),
    Mysql(MysqlOutbox),
}

impl Outbox {
    pub(super) async fn open(home: &Home) -> Result<Self, OutboxError> {
        Ok(match home {
            Home::File(path) => Self::Sqlite(SqliteOutbox::open(path)?),
            Home::Postgres(pool) => Self::Postgres(PostgresOutbox::open(pool.clone()).await?),
            Home::Mysql(pool) => Self::Mysql(MysqlOutbox::open(pool.clone()).await?),
        })
    }
}

/// Sends the mail of a message once: its line and its outcome share one commit.
#[derive(Debug, Clone)]
struct Mailer {
    database: Database,
}

impl Job<Message> for Mailer {
    type Output = i64;
    type Error = diesel::result::Error;

    fn identify(&self, message: &Message) -> Result<MessageKey, IdentifyError> {
        Ok(MessageKey::new(Key::new(MAILS, message.id())?, &message.parse::<Mail>()?)?)
    }

    async fn perform(&self, call: Call, message: Arc<Message>) -> JobResult<i64, diesel::result::Error> {
        // A message that is not a mail was refused when its key was read.
        let order = message.parse().map_or(0, |mail: Mail| mail.order);
        // This holds whatever the policy for orders is: nothing of a mail is committed before its outcome.
        let call = call.with(|engine| engine.with_on_abandoned(OnAbandoned::Rerun));
        let line = (mails::order_id.eq(order), mails::created_at.eq(now()));
        match &self.database {
            Database::Sqlite(_) => {
                call.run_in_transaction(move |tx: &mut SqliteConnection, _| {
                    diesel::RunQueryDsl::execute(diesel::insert_into(mails::table).values(line), tx).map(|_| order)
                })
                .await
            }
            Database::Postgres(_) => {
                call.run_in_async_transaction(async move |tx: &mut AsyncPgConnection, _| {
                    let insert = diesel::insert_into(mails::table).values(line.clone());
                    diesel_async::RunQueryDsl::execute(insert, tx).await.map(|_| order)
                })
                .await
            }
            Database::Mysql(_) => {
                call.run_in_async_transaction(async move |tx: &mut AsyncMysqlConnection, _| {
                    let insert = diesel::insert_into(mails::table).values(line.clone());
                    diesel_async::RunQueryDsl::execute(insert, tx).await.map(|_| order)
                })
                .await
            }
        }
    }
}

/// Relays the outbox for as long as the process lives: into the stream or, without one, directly to the mailer.
pub(crate) async fn relay(shop: web::Data<Shop>, engine: Engine, stream: Option<redis::Client>) {
    match &shop.outbox {
        None => {}
        Some(Outbox::Sqlite(outbox)) => relay_by(outbox.relay(), &shop.database, engine, stream).await,
        Some(Outbox::Postgres(outbox)) => relay_by(outbox.relay(), &shop.database, engine, stream).await,
        Some(Outbox::Mysql(outbox)) => relay_by(outbox.relay(), &shop.database, engine, stream).await,
    }
}

async fn relay_by<T: Table>(relay: Relay<T>, database: &Database, engine: Engine, stream: Option<redis::Client>) {
    let for_ever = std::future::pending();
    if let Some(client) = stream {
        let stream = RedisPublisher::new(client, MAILS);
        relay.run(async |posted: &OutboxMessage| stream.publish(&posted.message).await, for_ever).await;
        return;
    }
    let mailer = Mailer { database: database.clone() };
    let send = async |posted: &OutboxMessage| {
        let identity = mailer.identify(&posted.message).map_err(|error| error.to_string())?;
        let call = Call::new(engine.clone(), identity);
        // The message leaves the outbox only after it is sent.
        mailer.perform(call, Arc::new(posted.message.clone())).await.map_err(|error| error.to_string()).map(drop)
    };
    relay.run(send, for_ever).await;
}

/// Runs the worker, which takes mails from the stream until it receives a signal to end.
pub(crate) async fn work(
    shop: &Shop,
    engine: Engine,
    client: redis::Client,
    ready: impl FnOnce(),
    until: impl Future<Output = ()>,
) -> Processed {
    // A killed worker with the same name may have left unfinished mails. They are redelivered to this one.
    let open =
        || RedisStreams::builder(client.clone(), MAILS, "mailers", "worker").claim_after(Duration::from_secs(5)).open();
    let mut reported = None;
    let source = loop {
        match open().await {
            Ok(source) => break source,
            Err(error) => {
                let error = error.to_string();
                // Logs each reason once, and not every half second.
                if reported.as_ref() != Some(&error) {
                    warn!(%error, "the worker waits for the stream of mails");
                    reported = Some(error);
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    ready();
    let processor = Processor::new(engine, source, Mailer { database: shop.database.clone() });
    let processed = processor.drain_limit(Duration::from_secs(20)).run(until).await;
    info!(?processed, "the worker ends");
    processed
}

#[derive(Debug, Serialize, Queryable, Selectable)]
#[diesel(table_name = mails)]
struct Line {
    id: i64,
    order_id: i64,
    created_at: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Wanted {
    order: Option<i64>,
}

pub(super) async fn list(shop: web::Data<Shop>, wanted: web::Query<Wanted>) -> Result<HttpResponse, actix_web::Error> {
    let found: Result<Vec<Line>, DatabaseError> = match wanted.order {
        Some(order) => on_database!(
            &shop.database,
            load(mails::table.filter(mails::order_id.eq(order)).order(mails::id).select(Line::as_select()))
        ),
        None => on_database!(&shop.database, load(mails::table.order(mails::id).select(Line::as_select()))),
    };
    Ok(HttpResponse::Ok().json(found?))
}
