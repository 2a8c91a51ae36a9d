//! The outbox in an SQLite file.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use oncekey::consumer::Message;
use tokio::task::spawn_blocking;

use super::relay::{Relay, Table};
use super::{OutboxError, Posted, failed, oncekey_outbox, posted, row};

/// An outbox in an SQLite file, in the table `oncekey_outbox`. See the [module](super).
#[derive(Debug, Clone)]
pub struct SqliteOutbox {
    path: PathBuf,
}

/// The turn: a lock that the operating system ends with the process.
#[derive(Debug)]
pub struct Turn {
    connection: Option<OwnConnection>,
    _lock: File,
}

struct OwnConnection(SqliteConnection);

impl std::fmt::Debug for OwnConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SqliteConnection")
    }
}

impl SqliteOutbox {
    /// Opens the file, and makes the table if it is missing. This waits for other processes' locks: call it at start.
    ///
    /// # Errors
    /// The file can't be opened or written to.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OutboxError> {
        let outbox = Self { path: path.as_ref().to_owned() };
        let mut connection = outbox.connect()?;
        let table = include_str!("../../migrations/outbox/sqlite.sql");
        let made = connection.immediate_transaction(|connection| connection.batch_execute(table));
        made.map_err(failed("making the table"))?;
        Ok(outbox)
    }

    /// Writes a message by the connection of a transaction: it is published if that commits.
    ///
    /// # Errors
    /// The database's; the table is missing if the outbox was never opened.
    pub fn write(connection: &mut SqliteConnection, topic: &str, message: &Message) -> QueryResult<()> {
        diesel::insert_into(oncekey_outbox::table).values(row(topic, message)?).execute(connection).map(drop)
    }

    /// A relay of what is written here.
    pub fn relay(&self) -> Relay<Self> {
        Relay::new(self.clone())
    }

    fn connect(&self) -> Result<SqliteConnection, OutboxError> {
        let path = self.path.to_string_lossy();
        let mut connection = SqliteConnection::establish(&path).map_err(failed("opening the file"))?;
        let settings = "PRAGMA busy_timeout = 10000; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL";
        connection.batch_execute(settings).map_err(failed("setting the connection up"))?;
        Ok(connection)
    }
}

/// Runs `work` off the arbiter, with the turn's connection.
async fn on_connection<T: Send + 'static>(
    turn: &mut Turn,
    what: &'static str,
    work: impl FnOnce(&mut SqliteConnection) -> QueryResult<T> + Send + 'static,
) -> Result<T, OutboxError> {
    let lost = || OutboxError { what, reason: "the connection was lost".to_owned() };
    let mut connection = turn.connection.take().ok_or_else(lost)?;
    let done = spawn_blocking(move || {
        let done = work(&mut connection.0);
        (connection, done)
    });
    let (connection, done) = done.await.map_err(failed(what))?;
    turn.connection = Some(connection);
    done.map_err(failed(what))
}

impl Table for SqliteOutbox {
    type Turn = Turn;

    async fn take_turn(&self) -> Result<Option<Turn>, OutboxError> {
        let outbox = self.clone();
        let taken = spawn_blocking(move || {
            // Not the database itself, whose own locks it would get in the way of.
            let mut beside = outbox.path.clone().into_os_string();
            beside.push("-outbox");
            let lock = File::options().create(true).truncate(false).write(true).open(beside);
            let lock = lock.map_err(failed("opening the relays' lock"))?;
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(failed("locking out other relays")(error)),
            }
            Ok(Some(Turn { connection: Some(OwnConnection(outbox.connect()?)), _lock: lock }))
        });
        taken.await.map_err(failed("taking the turn"))?
    }

    async fn first(&self, turn: &mut Turn, limit: i64) -> Result<Vec<Posted>, OutboxError> {
        let rows = on_connection(turn, "reading", move |connection| {
            oncekey_outbox::table.order(oncekey_outbox::id).limit(limit).load(connection)
        });
        rows.await?.into_iter().map(posted).collect()
    }

    async fn remove(&self, turn: &mut Turn, numbers: Vec<i64>) -> Result<(), OutboxError> {
        on_connection(turn, "removing what is published", move |connection| {
            diesel::delete(oncekey_outbox::table.filter(oncekey_outbox::id.eq_any(numbers))).execute(connection)
        })
        .await
        .map(drop)
    }
}
