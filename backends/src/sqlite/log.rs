//! The length of the write-ahead log, which a reader that stays in its transaction keeps from being written back.
//!
//! SQLite starts its log anew once all of it is in the database file and nobody reads from it. As long as one connection
//! stays in a read transaction, every commit makes the log longer, until the disk is full: then a completion is refused as
//! well, and its outcome is lost. So new claims are refused before that. What continues or ends a claim still goes through:
//! it writes little, and there is no more of it than there are claims.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use oncekey::backend::StoreError;
use tracing::{error, info, warn};

use super::identity::beside;

/// How often its length is looked at.
const LOOKED_AT_EVERY: Duration = Duration::from_secs(1);

/// The same while new claims are refused, so that they go on soon after the reader has ended.
const LOOKED_AT_WHILE_REFUSING: Duration = Duration::from_millis(100);

/// How long a look may wait for readers that are about to end. The other steps wait as long.
const WAITS_FOR_READERS_MS: u32 = 20;

/// A log of this length is warned of, whatever its limit.
const ALWAYS_LONG: u64 = 256 << 20;

/// Where the log of a database is.
pub(super) fn log_of(database: &Path) -> PathBuf {
    beside(database, "-wal")
}

/// From which length a log with this limit is warned of.
pub(super) fn long(limit: u64) -> u64 {
    (limit / 4).min(ALWAYS_LONG)
}

/// What is known of the log's length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Short,
    /// A reader keeps it long, which has been warned of.
    Long,
    /// New claims are refused.
    TooLong {
        bytes: u64,
    },
}

/// The writer's watch over the log.
pub(super) struct Log {
    path: PathBuf,
    limit: u64,
    /// `busy_timeout`, which a look changes for itself.
    busy_timeout: Duration,
    looked: Instant,
    state: State,
}

#[derive(QueryableByName)]
struct Checkpoint {
    /// Whether something kept it from being finished.
    #[diesel(sql_type = BigInt)]
    busy: i64,
    /// The log's pages; -1 where another connection is at it.
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

    /// What new claims are refused with, while the log is beyond its limit.
    pub(super) fn refusal(&self) -> Option<StoreError> {
        let State::TooLong { bytes } = self.state else { return None };
        Some(StoreError::Full(format!(
            "its write-ahead log has {bytes} bytes, and may have {}: a connection that stays in a read transaction keeps \
             SQLite from writing it back. Nothing ran. End that transaction (a long SELECT or backup, a statement that was \
             not read to its end), or set a higher wal_limit",
            self.limit
        )))
    }

    /// Whether new claims are refused by what may not hold any more.
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

    /// Looks at the log's length, now and then. A long one is written back and cut, if no reader is in the way. Call it
    /// outside of a transaction.
    ///
    /// # Errors
    /// The connection is to be given up.
    pub(super) fn watch(&mut self, connection: &mut SqliteConnection) -> QueryResult<()> {
        if !self.is_due() {
            return Ok(());
        }
        self.looked = Instant::now();
        // The file is as long as the log ever was since it was last cut.
        let file = std::fs::metadata(&self.path).map_or(0, |log| log.len());
        let bytes = if file < long(self.limit) { Some(file) } else { self.write_back(connection)? };
        if let Some(bytes) = bytes {
            self.note(bytes);
        }
        Ok(())
    }

    /// Writes the log back as far as its readers allow. Returns how long it still is; `None` while another connection is at
    /// it.
    fn write_back(&self, connection: &mut SqliteConnection) -> QueryResult<Option<u64>> {
        // By far the most of it, and nobody waits for that.
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
        // Each page has a header of 24 bytes.
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

/// Does what it can. A failure (a disk without room, for one) leaves the log as long as it is, which is what counts.
fn checkpoint(connection: &mut SqliteConnection, how: &str) -> Option<Checkpoint> {
    let done = diesel::sql_query(format!("PRAGMA main.wal_checkpoint({how})")).get_result(connection);
    done.inspect_err(|error| warn!(%error, how, "the SQLite write-ahead log can't be written back")).ok()
}
