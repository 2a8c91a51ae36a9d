//! An outbox: messages that commit with the rows of their transaction, and are published afterwards.
//!
//! A job that changes rows and sends a message can't do both at once: it may die in between. So it writes the message
//! into a table, in its own transaction, and a [`Relay`] publishes it later: at least once, in order, by one process at a
//! time. Each message has an **id** of its own, which the next consumer takes for its key, and so has its effect once.
//!
//! ```
//! # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use diesel::connection::SimpleConnection as _;
//! use diesel::prelude::*;
//! use oncekey::consumer::Message;
//! use oncekey::{Engine, Key};
//! use oncekey_backends::SqliteBackend;
//! use oncekey_backends::outbox::SqliteOutbox;
//!
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("shop.db");
//! # SqliteConnection::establish(path.to_str().ok_or("UTF-8")?)?.batch_execute("CREATE TABLE orders (item TEXT)")?;
//! let engine = Engine::builder(SqliteBackend::open(&path)?).start()?;
//! let outbox = SqliteOutbox::open(&path)?;
//! engine
//!     .run_in_transaction(Key::new("orders", 17)?, &"book", |tx: &mut SqliteConnection, _claim| {
//!         tx.batch_execute("INSERT INTO orders VALUES ('book')")?;
//!         SqliteOutbox::write(tx, "mails", &Message::new("mail-17", "to: ada"))
//!     })
//!     .await?;
//!
//! // In this process or another, for as long as it lives:
//! let relayed = outbox
//!     .relay()
//!     .run(
//!         async |posted| {
//!             println!("to {}: {:?}", posted.topic, posted.message);
//!             Ok::<_, std::io::Error>(())
//!         },
//!         tokio::time::sleep(std::time::Duration::from_millis(300)),
//!     )
//!     .await;
//! assert_eq!(relayed, 1);
//! # Ok(()) }
//! ```
//!
//! **Order.** Messages are published by the numbers that the database gave them. SQLite has one writer, so that this is
//! the order of the commits. On PostgreSQL and MySQL two transactions that run side by side may commit in another order
//! than they were numbered in; where one must come after the other, have it wait for the other (a locked row) before it
//! writes its message. The messages of one transaction keep their order everywhere.

#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "postgres")]
mod postgres;
mod relay;
#[cfg(feature = "sqlite")]
mod sqlite;
mod table;
#[cfg(any(feature = "mysql", feature = "postgres"))]
mod turn;

#[cfg(feature = "mysql")]
pub use mysql::MysqlOutbox;
#[cfg(feature = "postgres")]
pub use postgres::PostgresOutbox;
pub use relay::{Relay, Table};
#[cfg(feature = "sqlite")]
pub use sqlite::SqliteOutbox;

use std::collections::BTreeMap;

use oncekey::consumer::Message;

use table::oncekey_outbox;

/// A message in the outbox.
///
/// ```
/// use oncekey::consumer::Message;
/// use oncekey_backends::outbox::Posted;
///
/// let posted = Posted { number: 1, topic: "mails".into(), message: Message::new("mail-17", "to: ada") };
/// assert_eq!(posted.message.id(), "mail-17");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Posted {
    /// Its place in the order.
    pub number: i64,
    /// Where it is to go, in the words of whoever wrote it.
    pub topic: String,
    /// The message.
    pub message: Message,
}

/// Why the outbox's table can't be used.
///
/// ```
/// use oncekey_backends::outbox::SqliteOutbox;
///
/// assert!(SqliteOutbox::open("/no/such/folder/shop.db").is_err());
/// ```
#[derive(Debug, thiserror::Error)]
#[error("the outbox: {what} failed: {reason}")]
pub struct OutboxError {
    what: &'static str,
    reason: String,
}

fn failed<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> OutboxError {
    move |error| OutboxError { what, reason: error.to_string() }
}

/// A row, without its number.
type New = (
    diesel::dsl::Eq<oncekey_outbox::message_id, String>,
    diesel::dsl::Eq<oncekey_outbox::topic, String>,
    diesel::dsl::Eq<oncekey_outbox::payload, Vec<u8>>,
    diesel::dsl::Eq<oncekey_outbox::headers, String>,
);

fn row(topic: &str, message: &Message) -> diesel::QueryResult<New> {
    use diesel::ExpressionMethods as _;

    let headers = serde_json::to_string(message.headers());
    let headers = headers.map_err(|error| diesel::result::Error::SerializationError(Box::new(error)))?;
    Ok((
        oncekey_outbox::message_id.eq(message.id().to_owned()),
        oncekey_outbox::topic.eq(topic.to_owned()),
        oncekey_outbox::payload.eq(message.payload().to_vec()),
        oncekey_outbox::headers.eq(headers),
    ))
}

type Row = (i64, String, String, Vec<u8>, String);

fn posted((number, id, topic, payload, headers): Row) -> Result<Posted, OutboxError> {
    let headers: BTreeMap<String, String> = serde_json::from_str(&headers).map_err(failed("reading headers"))?;
    let message =
        headers.into_iter().fold(Message::new(id, payload), |message, (name, value)| message.with_header(name, value));
    Ok(Posted { number, topic, message })
}
