//! The outbox in an SQLite file.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};
use oncekey::consumer::Message;
use tokio::task::spawn_blocking;

use super::relay::{Relay, Table};
use super::table::as_bytes;
use super::{OutboxError, OutboxMessage, Parked, Unfit, failed, listed, oncekey_outbox, parked, posted, row};
use crate::sqlite::migration::has_table;

/// An outbox in an SQLite file, in the table `oncekey_outbox`. See the [module](super).
#[derive(Debug, Clone)]
pub struct SqliteOutbox {
    /// Has no symbolic links, because two names of one file must lead to one lock.
    path: PathBuf,
}

/// Options for [`SqliteOutbox::builder`].
#[derive(Debug, Clone)]
#[must_use]
pub struct SqliteOutboxBuilder {
    path: PathBuf,
    migrate: bool,
}

impl SqliteOutboxBuilder {
    /// Sets whether [`open`](Self::open) creates the tables. If false, they must already exist. Default: true.
    pub fn migrate(mut self, migrate: bool) -> Self {
        self.migrate = migrate;
        self
    }

    /// Opens the file. This blocks while other processes hold locks: call it at startup.
    ///
    /// # Errors
    /// Fails if the file can't be opened or written, or if tables are missing and `migrate` is false.
    pub fn open(self) -> Result<SqliteOutbox, OutboxError> {
        let mut connection = connect(&self.path)?;
        let missing = |connection: &mut SqliteConnection| {
            let mut missing = Vec::new();
            for (name, made) in TABLES {
                if !has_table(connection, name)? {
                    missing.push((name, made));
                }
            }
            QueryResult::Ok(missing)
        };
        let found = missing(&mut connection).map_err(failed("looking for the tables"))?;
        match found.first() {
            None => {}
            Some((name, _)) if !self.migrate => {
                let reason = format!("the table {name} is missing, and migrations are switched off");
                return Err(OutboxError { what: "looking for the tables", reason });
            }
            Some(_) => {
                let made = connection.immediate_transaction(|connection| {
                    missing(connection)?.into_iter().try_for_each(|(_, made)| connection.batch_execute(made))
                });
                made.map_err(failed("making the tables"))?;
            }
        }
        let path = self.path.canonicalize().map_err(failed("following the path"))?;
        Ok(SqliteOutbox { path })
    }
}

/// The turn: a lock that the operating system releases when the process ends.
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

const TABLES: [(&str, &str); 2] = [
    ("oncekey_outbox", include_str!("../../migrations/outbox/sqlite.sql")),
    ("oncekey_outbox_parked", include_str!("../../migrations/outbox/sqlite_parked.sql")),
];

/// Returns the tables as statements.
pub(crate) fn schema_text() -> String {
    TABLES.map(|(_, text)| text.trim_end().to_owned() + ";\n").concat()
}

fn connect(path: &Path) -> Result<SqliteConnection, OutboxError> {
    let path = path.to_string_lossy();
    let mut connection = SqliteConnection::establish(&path).map_err(failed("opening the file"))?;
    let settings = "PRAGMA busy_timeout = 10000; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL";
    connection.batch_execute(settings).map_err(failed("setting the connection up"))?;
    Ok(connection)
}

const PUT_BACK: &str = "INSERT INTO oncekey_outbox (id, message_id, topic, payload, headers) \
                        SELECT id, message_id, topic, payload, headers FROM oncekey_outbox_parked WHERE id IN";

impl SqliteOutbox {
    /// Opens the file, and creates the tables if they are missing. This blocks while other processes hold locks: call
    /// it at startup.
    ///
    /// # Errors
    /// Fails if the file can't be opened or written.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OutboxError> {
        Self::builder(path).open()
    }

    /// Returns options for opening an outbox.
    ///
    /// ```
    /// use oncekey_backends::outbox::SqliteOutbox;
    ///
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("shop.db");
    /// assert!(SqliteOutbox::builder(&path).migrate(false).open().is_err());
    /// let outbox = SqliteOutbox::builder(&path).open()?;
    /// # let _ = outbox;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn builder(path: impl AsRef<Path>) -> SqliteOutboxBuilder {
        SqliteOutboxBuilder { path: path.as_ref().to_owned(), migrate: true }
    }

    /// Writes a message on the connection of a transaction: it is published if the transaction commits.
    ///
    /// # Errors
    /// Returns the database's error. The table is missing if the outbox was never opened.
    pub fn write(connection: &mut SqliteConnection, topic: &str, message: &Message) -> QueryResult<()> {
        diesel::insert_into(oncekey_outbox::table).values(row(topic, message)?).execute(connection).map(drop)
    }

    /// Returns up to `limit` parked rows, in order.
    ///
    /// # Errors
    /// Fails if the file can't be read.
    pub async fn parked(&self, limit: u32) -> Result<Vec<Parked>, OutboxError> {
        use as_bytes::oncekey_outbox_parked::dsl::{id, message_id, oncekey_outbox_parked, reason, topic};

        let path = self.path.clone();
        let rows = spawn_blocking(move || {
            let mut connection = connect(&path)?;
            oncekey_outbox_parked
                .select((id, message_id, topic, reason))
                .order(id)
                .limit(i64::from(limit))
                .load(&mut connection)
                .map_err(failed("reading what is parked"))
        });
        Ok(rows.await.map_err(failed("reading what is parked"))??.into_iter().map(parked).collect())
    }

    /// Puts parked rows back in their places, where the relay reads them again. Ignores numbers that are not parked.
    ///
    /// # Errors
    /// Fails if the file can't be written. Nothing has changed then.
    pub async fn retry(&self, numbers: Vec<i64>) -> Result<(), OutboxError> {
        let path = self.path.clone();
        let done = spawn_blocking(move || {
            let (mut connection, numbers) = (connect(&path)?, listed(&numbers));
            let done = connection.immediate_transaction(|tx| {
                tx.batch_execute(&format!("{PUT_BACK} ({numbers})"))?;
                tx.batch_execute(&format!("DELETE FROM oncekey_outbox_parked WHERE id IN ({numbers})"))
            });
            done.map_err(failed("putting rows back"))
        });
        done.await.map_err(failed("putting rows back"))?
    }

    /// Returns a relay for this outbox.
    pub fn relay(&self) -> Relay<Self> {
        Relay::new(self.clone())
    }
}

/// Runs `work` outside the arbiter, with the turn's connection.
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

    async fn take_turn(&self, _: &str, _: Duration) -> Result<Option<Turn>, OutboxError> {
        let path = self.path.clone();
        let taken = spawn_blocking(move || {
            // A separate file, because a lock on the database file would conflict with the database's own locks.
            let mut beside = path.clone().into_os_string();
            beside.push("-outbox");
            let lock = File::options().create(true).truncate(false).write(true).open(beside);
            let lock = lock.map_err(failed("opening the relays' lock"))?;
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(failed("locking out other relays")(error)),
            }
            Ok(Some(Turn { connection: Some(OwnConnection(connect(&path)?)), _lock: lock }))
        });
        taken.await.map_err(failed("taking the turn"))?
    }

    /// If a statement was interrupted, its connection is gone, and the relay must take the turn again.
    async fn keep_turn(&self, turn: &mut Turn, _: &str, _: Duration) -> Result<bool, OutboxError> {
        Ok(turn.connection.is_some())
    }

    async fn give_turn_up(&self, turn: Turn, _: &str) -> Result<(), OutboxError> {
        drop(turn);
        Ok(())
    }

    async fn first(&self, turn: &mut Turn, limit: i64) -> Result<Vec<Result<OutboxMessage, Unfit>>, OutboxError> {
        let rows = on_connection(turn, "reading", move |connection| {
            let rows = as_bytes::oncekey_outbox::table.order(as_bytes::oncekey_outbox::id);
            rows.limit(limit).load(connection)
        });
        Ok(rows.await?.into_iter().map(posted).collect())
    }

    async fn remove(&self, turn: &mut Turn, numbers: Vec<i64>) -> Result<(), OutboxError> {
        on_connection(turn, "removing what is published", move |connection| {
            connection.batch_execute(&format!("DELETE FROM oncekey_outbox WHERE id IN ({})", listed(&numbers)))
        })
        .await
    }

    async fn park(&self, turn: &mut Turn, unfit: &Unfit) -> Result<(), OutboxError> {
        const SET_APART: &str = "INSERT INTO oncekey_outbox_parked (id, message_id, topic, payload, headers, reason, parked_at) \
                                 SELECT id, message_id, topic, payload, headers, ?, unixepoch() * 1000 \
                                 FROM oncekey_outbox WHERE id = ?";
        let Unfit { number, reason } = unfit.clone();
        on_connection(turn, "parking a row", move |connection| {
            connection.immediate_transaction(|tx| {
                diesel::sql_query(SET_APART).bind::<Text, _>(reason).bind::<BigInt, _>(number).execute(tx)?;
                tx.batch_execute(&format!("DELETE FROM oncekey_outbox WHERE id = {number}"))
            })
        })
        .await
    }
}
