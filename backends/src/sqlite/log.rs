//! Watches the length of the write-ahead log, which SQLite can't write back while a reader stays in its transaction.
//!
//! SQLite restarts its log once the database file holds all of it and no connection reads from it. While one connection
//! stays in a read transaction, every commit makes the log longer, until the disk is full. Then SQLite refuses
//! completions too, and their outcomes are lost. So the backend refuses new claims before that. Requests that continue
//! or end a claim still work: they write little, and the number of claims limits theirs.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use oncekey::backend::StoreError;
use tracing::{error, info, warn};

use super::identity::beside;

/// How often the writer checks the log's length.
const LOOKED_AT_EVERY: Duration = Duration::from_secs(1);

/// The same while new claims are refused, so that claims resume soon after the reader has ended.
const LOOKED_AT_WHILE_REFUSING: Duration = Duration::from_millis(100);

/// How long a check may wait for readers that are about to end. Other requests wait as long.
const WAITS_FOR_READERS_MS: u32 = 20;

/// The writer warns about a log of this length, whatever its limit.
const ALWAYS_LONG: u64 = 256 << 20;

/// Returns the path of a database's log.
pub(super) fn log_of(database: &Path) -> PathBuf {
    beside(database, "-wal")
}

/// Returns the length from which the writer warns about a log with this limit.
pub(super) fn long(limit: u64) -> u64 {
    (limit / 4).min(ALWAYS_LONG)
}

/// The last known state of the log's length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Short,
    /// A reader keeps it long, and the writer has warned about it.
    Long,
    /// The writer refuses new claims.
    TooLong {
        bytes: u64,
    },
}

/// The writer's watch over the log.
pub(super) struct Log {
    path: PathBuf,
    limit: u64,
    /// `busy_timeout` of the connection. A check changes it for its own duration.
    busy_timeout: Duration,
    looked: Instant,
    state: State,
}

#[derive(QueryableByName)]
struct Checkpoint {
    /// Whether something kept the checkpoint from finishing.
    #[diesel(sql_type = BigInt)]
    busy: i64,
    /// The log's pages; -1 while another connection runs a checkpoint.
    #[diesel(sql_type = BigInt)]
    log: i64,
}

#[derive(QueryableByName)]
struct PageSize {
    #[diesel(sql_type = BigInt)]
    page_size: i64,
}

impl Log {
    pub(super) fn new(database: &Path, limit: u64, busy_timeout: Duration) -> Self {
        Self { path: log_of(database), limit, busy_timeout, looked: Instant::now(), state: State::Short }
    }

    /// Returns the error for new claims while the log is beyond its limit.
    pub(super) fn refusal(&self) -> Option<StoreError> {
        let State::TooLong { bytes } = self.state else { return None };
        Some(StoreError::Full(format!(
            "its write-ahead log has {bytes} bytes, and may have {}: a connection that stays in a read transaction keeps \
             SQLite from writing it back. Nothing ran. End that transaction (a long SELECT or backup, a statement that was \
             not read to its end), or set a higher wal_limit",
            self.limit
        )))
    }

    /// Whether the writer refuses new claims because of a check that may be out of date.
    pub(super) fn is_to_be_looked_at_first(&self) -> bool {
        matches!(self.state, State::TooLong { .. }) && self.is_due()
    }

    fn is_due(&self) -> bool {
        let every = match self.state {
            State::Short | State::Long => LOOKED_AT_EVERY,
            State::TooLong { .. } => LOOKED_AT_WHILE_REFUSING,
        };
        self.looked.elapsed() >= every
    }

    /// Checks the log's length when it is due. Writes a long log back and cuts it, if no reader prevents that. Call it
    /// outside a transaction.
    ///
    /// # Errors
    /// After an error, discard the connection.
    pub(super) fn watch(&mut self, connection: &mut SqliteConnection) -> QueryResult<()> {
        if !self.is_due() {
            return Ok(());
        }
        self.looked = Instant::now();
        // The file is as long as the log has ever been since it was last cut.
        let file = std::fs::metadata(&self.path).map_or(0, |log| log.len());
        let bytes = if file < long(self.limit) { Some(file) } else { self.write_back(connection)? };
        if let Some(bytes) = bytes {
            self.note(bytes);
        }
        Ok(())
    }

    /// Writes the log back as far as its readers allow. Returns the remaining length; `None` while another connection
    /// runs a checkpoint.
    fn write_back(&self, connection: &mut SqliteConnection) -> QueryResult<Option<u64>> {
        // This writes back most of the log, and blocks no other connection.
        checkpoint(connection, "PASSIVE");
        connection.batch_execute(&format!("PRAGMA busy_timeout = {WAITS_FOR_READERS_MS}"))?;
        let ended = checkpoint(connection, "TRUNCATE");
        let millis = i32::try_from(self.busy_timeout.as_millis()).unwrap_or(i32::MAX);
        connection.batch_execute(&format!("PRAGMA busy_timeout = {millis}"))?;
        let Some(Checkpoint { busy, log }) = ended else { return Ok(None) };
        let Ok(pages) = u64::try_from(log) else { return Ok(None) };
        if busy == 0 {
            return Ok(Some(0));
        }
        let page: PageSize = diesel::sql_query("PRAGMA page_size").get_result(connection)?;
        // Each page in the log has a header of 24 bytes.
        Ok(Some(pages.saturating_mul(u64::try_from(page.page_size).unwrap_or(4_096) + 24)))
    }

    fn note(&mut self, bytes: u64) {
        let state = match bytes {
            bytes if bytes >= self.limit => State::TooLong { bytes },
            bytes if bytes >= long(self.limit) => State::Long,
            _ => State::Short,
        };
        let (was, limit, log) = (std::mem::replace(&mut self.state, state), self.limit, self.path.display());
        match (was, state) {
            (State::Short, State::Long) => warn!(
                bytes,
                limit,
                %log,
                "the SQLite write-ahead log grows, since a connection stays in a read transaction: new claims are refused \
                 from the limit on"
            ),
            (State::Short | State::Long, State::TooLong { .. }) => error!(
                bytes,
                limit,
                %log,
                "the SQLite write-ahead log is beyond its limit, since a connection stays in a read transaction: new claims \
                 are refused until it ends"
            ),
            (State::TooLong { .. }, State::Long) => {
                info!(bytes, limit, %log, "the SQLite write-ahead log is below its limit again: new claims are taken");
            }
            (State::Long | State::TooLong { .. }, State::Short) => {
                info!(bytes, limit, %log, "the SQLite write-ahead log was written back: its readers have ended");
            }
            (State::Short, State::Short)
            | (State::Long, State::Long)
            | (State::TooLong { .. }, State::TooLong { .. }) => {}
        }
    }
}

/// Runs a checkpoint as far as it gets. A failure (for example a full disk) only leaves the log as long as it is.
fn checkpoint(connection: &mut SqliteConnection, how: &str) -> Option<Checkpoint> {
    let done = diesel::sql_query(format!("PRAGMA main.wal_checkpoint({how})")).get_result(connection);
    done.inspect_err(|error| warn!(%error, how, "the SQLite write-ahead log can't be written back")).ok()
}
