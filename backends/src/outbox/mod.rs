//! An outbox: messages that commit with the rows of their transaction, and are published afterwards.
//!
//! A job that changes rows and sends a message can't do both at once: it may die in between. So it writes the message
//! into a table, in its own transaction, and a [`Relay`] publishes it later: at least once, in order, by one process at a
//! time. Each message has an **id** of its own, which the next consumer takes for its key, and so has its effect once.
//!
//! **One relay publishes at a time**, whichever process or machine it is on: its turn is a lease of seconds in the database,
//! so that a relay whose machine died is replaced within the lease. (An SQLite file is of one machine, where the turn is a
//! lock that the operating system ends with the process.) A waiting relay reads one row now and then, on a connection that
//! goes back to its pool.
//!
//! **A row that can't be read as a message is parked**: it moves to `oncekey_outbox_parked`, with the reason, the relay goes
//! on behind it, and [`Relay::on_parked`] hears of it. `parked` lists such rows, `retry` puts them back.
//!
//! **Tables.** The outbox's tables are made when it is opened, or by your own tools from [`schema`](crate::schema()): then
//! `migrate(false)` is right, and a role without the right to make tables.
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
pub(crate) mod mysql;
#[cfg(feature = "postgres")]
pub(crate) mod postgres;
mod relay;
#[cfg(any(feature = "mysql", feature = "postgres"))]
mod sql;
#[cfg(feature = "sqlite")]
pub(crate) mod sqlite;
mod table;

#[cfg(feature = "mysql")]
pub use mysql::{MysqlOutbox, MysqlOutboxBuilder};
#[cfg(feature = "postgres")]
pub use postgres::{PostgresOutbox, PostgresOutboxBuilder};
pub use relay::{Relay, Table};
#[cfg(feature = "sqlite")]
pub use sqlite::{SqliteOutbox, SqliteOutboxBuilder};

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

fn headers_of(message: &Message) -> diesel::QueryResult<String> {
    let headers = serde_json::to_string(message.headers());
    headers.map_err(|error| diesel::result::Error::SerializationError(Box::new(error)))
}

fn row(topic: &str, message: &Message) -> diesel::QueryResult<New> {
    use diesel::ExpressionMethods as _;

    let headers = headers_of(message)?;
    Ok((
        oncekey_outbox::message_id.eq(message.id().to_owned()),
        oncekey_outbox::topic.eq(topic.to_owned()),
        oncekey_outbox::payload.eq(message.payload().to_vec()),
        oncekey_outbox::headers.eq(headers),
    ))
}

/// A row as it stands in the table: what can't be read as a message must not keep those behind it from being read.
type Row = (i64, Vec<u8>, Vec<u8>, Vec<u8>, Vec<u8>);

/// A row that is no message.
///
/// ```
/// use oncekey_backends::outbox::Unfit;
///
/// let unfit = Unfit { number: 7, reason: "its headers are no JSON object of texts".into() };
/// assert_eq!(unfit.number, 7);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfit {
    /// Its place in the order.
    pub number: i64,
    /// What is wrong with it.
    pub reason: String,
}

fn posted((number, id, topic, payload, headers): Row) -> Result<Posted, Unfit> {
    let unfit = |what: &str, error: &dyn std::fmt::Display| Unfit { number, reason: format!("{what}: {error}") };
    let text = |what: &str, bytes: Vec<u8>| {
        String::from_utf8(bytes).map_err(|error| unfit(&format!("its {what} is not UTF-8"), &error))
    };
    let headers: BTreeMap<String, String> =
        serde_json::from_slice(&headers).map_err(|error| unfit("its headers are no JSON object of texts", &error))?;
    let message = Message::new(text("id", id)?, payload);
    let message = headers.into_iter().fold(message, |message, (name, value)| message.with_header(name, value));
    Ok(Posted { number, topic: text("topic", topic)?, message })
}

/// A message that was set apart, since it can't be published.
///
/// ```
/// # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use oncekey_backends::outbox::SqliteOutbox;
///
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("shop.db");
/// let outbox = SqliteOutbox::open(&path)?;
/// for parked in outbox.parked(100).await? {
///     println!("{} ({}): {}", parked.number, parked.id, parked.reason);
///     outbox.retry(vec![parked.number]).await?;
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parked {
    /// Its place in the order, to which it returns.
    pub number: i64,
    /// The message's id, as far as it can be read.
    pub id: String,
    /// The message's topic, as far as it can be read.
    pub topic: String,
    /// Why it was parked.
    pub reason: String,
}

fn parked((number, id, topic, reason): (i64, Vec<u8>, Vec<u8>, Vec<u8>)) -> Parked {
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Parked { number, id: text(id), topic: text(topic), reason: text(reason) }
}

/// Numbers as they stand in a statement.
fn listed(numbers: &[i64]) -> String {
    numbers.iter().map(i64::to_string).collect::<Vec<_>>().join(", ")
}
