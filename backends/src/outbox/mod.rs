//! An outbox: messages that commit with the rows of their transaction and are published afterwards.
//!
//! A job can't change rows and send a message atomically: it may die in between. So it writes the message into a table,
//! in its own transaction, and a [`Relay`] publishes it later: at least once, in order, and from one process at a time.
//! Each message has a unique **id**. The next consumer uses it as the idempotency key, so the message takes effect
//! once.
//!
//! **One relay publishes at a time**, in whatever process and on whatever machine it runs. Its turn is a lease of some
//! seconds in the database, so if a relay's machine dies, another relay takes over within the lease. (An SQLite file
//! belongs to one machine; there the turn is a lock that the operating system releases when the process ends.) A
//! waiting relay reads one row from time to time, on a connection that it returns to its pool.
//!
//! **The relay parks a row that can't be read as a message**: it moves the row to `oncekey_outbox_parked`, with the
//! reason, calls [`Relay::on_parked`], and continues with the next row. `parked` lists such rows, and `retry` puts them
//! back.
//!
//! **Tables.** Opening the outbox creates its tables. Alternatively, create them with your own tools from
//! [`schema`](crate::schema()); then use `migrate(false)`, and a role that may not create tables.
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
//! // In this process or another, as long as it runs:
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
//! **Order.** Messages are published in the order of the numbers that the database gave them. SQLite has one writer, so
//! this is the order of the commits. On PostgreSQL and MySQL, two concurrent transactions may commit in another order
//! than that of their numbers. If one message must come after another, its transaction must wait for the other one (on
//! a locked row) before it writes the message. The messages of one transaction keep their order everywhere.

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
/// use oncekey_backends::outbox::OutboxMessage;
///
/// let posted = OutboxMessage { number: 1, topic: "mails".into(), message: Message::new("mail-17", "to: ada") };
/// assert_eq!(posted.message.id(), "mail-17");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxMessage {
    /// The message's position in the order.
    pub number: i64,
    /// The destination, as the writer named it.
    pub topic: String,
    /// The message.
    pub message: Message,
}

/// Why the outbox's tables can't be used.
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

/// A row without its number.
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

/// A row as stored. A row that can't be read as a message must not keep the rows after it from being read.
type Row = (i64, Vec<u8>, Vec<u8>, Vec<u8>, Vec<u8>);

/// A row that can't be read as a message.
///
/// ```
/// use oncekey_backends::outbox::Unfit;
///
/// let unfit = Unfit { number: 7, reason: "its headers are no JSON object of texts".into() };
/// assert_eq!(unfit.number, 7);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfit {
    /// The row's position in the order.
    pub number: i64,
    /// What is wrong with the row.
    pub reason: String,
}

fn posted((number, id, topic, payload, headers): Row) -> Result<OutboxMessage, Unfit> {
    let unfit = |what: &str, error: &dyn std::fmt::Display| Unfit { number, reason: format!("{what}: {error}") };
    let text = |what: &str, bytes: Vec<u8>| {
        String::from_utf8(bytes).map_err(|error| unfit(&format!("its {what} is not UTF-8"), &error))
    };
    let headers: BTreeMap<String, String> =
        serde_json::from_slice(&headers).map_err(|error| unfit("its headers are no JSON object of texts", &error))?;
    let message = Message::new(text("id", id)?, payload);
    let message = headers.into_iter().fold(message, |message, (name, value)| message.with_header(name, value));
    Ok(OutboxMessage { number, topic: text("topic", topic)?, message })
}

/// A message that was parked because it can't be published.
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
    /// The row's position in the order, to which it returns.
    pub number: i64,
    /// The message's id, as far as it is readable.
    pub id: String,
    /// The message's topic, as far as it is readable.
    pub topic: String,
    /// Why the row was parked.
    pub reason: String,
}

fn parked((number, id, topic, reason): (i64, Vec<u8>, Vec<u8>, Vec<u8>)) -> Parked {
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Parked { number, id: text(id), topic: text(topic), reason: text(reason) }
}

/// Returns the numbers as a list for a statement.
fn listed(numbers: &[i64]) -> String {
    numbers.iter().map(i64::to_string).collect::<Vec<_>>().join(", ")
}
