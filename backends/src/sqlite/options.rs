//! How a file is opened.

use std::path::PathBuf;
use std::time::Duration;

use super::{SqliteBackend, SqliteOpenError};

/// When SQLite forces what it commits to the disk (`PRAGMA synchronous`).
///
/// ```
/// use oncekey_backends::Synchronous;
///
/// assert_eq!(Synchronous::default(), Synchronous::Full);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Synchronous {
    /// At every commit: what was answered survives a power cut. The default.
    #[default]
    Full,
    /// At checkpoints only: faster, and a power cut or a crash of the operating system may take the last commits back,
    /// **so that operations run again that had been answered**. A crash of the process alone loses nothing.
    Normal,
}

/// Options for [`SqliteBackend::builder`]. Each has a default that is right for most.
///
/// ```
/// use std::time::Duration;
/// use oncekey_backends::SqliteBackend;
///
/// let folder = tempfile::tempdir()?;
/// let backend = SqliteBackend::builder(folder.path().join("keys.db"))
///     .busy_timeout(Duration::from_secs(1))
///     .queue_depth(4_096)
///     .open()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct SqliteBuilder {
    pub(super) path: PathBuf,
    pub(super) busy_timeout: Duration,
    pub(super) queue_depth: usize,
    pub(super) max_batch: usize,
    pub(super) synchronous: Synchronous,
    pub(super) readers: usize,
    pub(super) migrate: bool,
    pub(super) wal_limit: u64,
}

impl SqliteBuilder {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            busy_timeout: Duration::from_secs(5),
            queue_depth: 1_024,
            max_batch: 256,
            synchronous: Synchronous::Full,
            readers: 2,
            migrate: true,
            wal_limit: 4 << 30,
        }
    }

    /// How long the writer waits for another process's lock before the steps that wait are answered "unavailable".
    /// Default: 5 seconds.
    pub fn busy_timeout(mut self, limit: Duration) -> Self {
        self.busy_timeout = limit;
        self
    }

    /// How many steps may wait for the writer, and how many reads for the readers, before further ones are answered
    /// "overloaded". Default: 1024; at least 1.
    pub fn queue_depth(mut self, steps: usize) -> Self {
        self.queue_depth = steps.max(1);
        self
    }

    /// How many steps are committed together at most. Default: 256; at least 1.
    pub fn max_batch(mut self, steps: usize) -> Self {
        self.max_batch = steps.max(1);
        self
    }

    /// When commits are forced to the disk. Default: [`Synchronous::Full`].
    pub fn synchronous(mut self, when: Synchronous) -> Self {
        self.synchronous = when;
        self
    }

    /// How many bytes the write-ahead log may have before new claims are refused. Default: 4 GiB; at least 64 KiB;
    /// `u64::MAX` for no limit.
    ///
    /// SQLite can't write its log back while a connection stays in a read transaction: a long SELECT or backup, a tool that
    /// was left open. The log then grows with every commit until the disk is full, and a full disk refuses the outcomes of
    /// operations that have happened. Beyond this limit a new claim, a takeover included, ends as
    /// [`StoreError::Full`](oncekey::backend::StoreError::Full), and nothing runs. Everything that continues or ends a claim
    /// still goes through, and a replay is answered. When the reader has ended the backend writes the log back and takes
    /// claims again, within a second.
    ///
    /// The backend warns once, at a quarter of the limit and at 256 MiB at the latest. It looks once a second, so the log may
    /// get somewhat longer than this. What your application writes to the same file by itself counts, and is not refused.
    ///
    /// ```
    /// use oncekey_backends::SqliteBackend;
    ///
    /// let folder = tempfile::tempdir()?;
    /// let backend = SqliteBackend::builder(folder.path().join("keys.db")).wal_limit(1 << 30).open()?;
    /// # let _ = backend;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn wal_limit(mut self, bytes: u64) -> Self {
        self.wal_limit = bytes.max(64 << 10);
        self
    }

    /// How many threads read, each with a connection of its own. Default: 2, so that a long count does not hold up
    /// look-ups; at least 1.
    pub fn readers(mut self, threads: usize) -> Self {
        self.readers = threads.max(1);
        self
    }

    /// Whether [`open`](Self::open) makes and updates the tables; without, they must be there, as
    /// [`schema`](crate::schema()) gives them. Default: true.
    pub fn migrate(mut self, migrate: bool) -> Self {
        self.migrate = migrate;
        self
    }

    /// Opens the file; it is created, and its tables are made or brought up to date, where that is needed.
    ///
    /// A file that is open in this process already is shared: the options of its first opening hold.
    ///
    /// This reads and writes the file, and waits for other processes' locks up to the busy time-out: call it at start,
    /// not on an arbiter that serves.
    ///
    /// # Errors
    /// [`SqliteOpenError`] says what is in the way.
    pub fn open(self) -> Result<SqliteBackend, SqliteOpenError> {
        SqliteBackend::open_with(&self)
    }
}
