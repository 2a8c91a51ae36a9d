//! Options for opening a file.

use std::path::PathBuf;
use std::time::Duration;

use super::{SqliteBackend, SqliteOpenError};

/// When SQLite forces its commits to the disk (`PRAGMA synchronous`).
///
/// ```
/// use oncekey_backends::Synchronous;
///
/// assert_eq!(Synchronous::default(), Synchronous::Full);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Synchronous {
    /// At every commit: every answered request survives a power cut. The default.
    #[default]
    Full,
    /// At checkpoints only. This is faster, but a power cut or a crash of the operating system may undo the last
    /// commits, **so operations that were already answered run again**. A crash of the process alone loses nothing.
    Normal,
}

/// Options for [`SqliteBackend::builder`]. The defaults suit most applications.
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

    /// Sets how long the writer waits for another process's lock before it answers the waiting requests with
    /// "unavailable". Default: 5 seconds.
    pub fn busy_timeout(mut self, limit: Duration) -> Self {
        self.busy_timeout = limit;
        self
    }

    /// Sets how many requests may wait for the writer, and how many reads for the readers. Further ones get
    /// "overloaded". Default: 1024; at least 1.
    pub fn queue_depth(mut self, steps: usize) -> Self {
        self.queue_depth = steps.max(1);
        self
    }

    /// Sets the most requests that one commit includes. Default: 256; at least 1.
    pub fn max_batch(mut self, steps: usize) -> Self {
        self.max_batch = steps.max(1);
        self
    }

    /// Sets when SQLite forces commits to the disk. Default: [`Synchronous::Full`].
    pub fn synchronous(mut self, when: Synchronous) -> Self {
        self.synchronous = when;
        self
    }

    /// Sets the length in bytes that the write-ahead log may reach before the backend refuses new claims. Default: 4
    /// GiB; at least 64 KiB; `u64::MAX` for no limit.
    ///
    /// SQLite can't write its log back while a connection stays in a read transaction, such as a long SELECT, a backup
    /// or a tool that was left open. The log then grows with every commit until the disk is full, and a full disk
    /// refuses the outcomes of operations that have happened. Beyond this limit a new claim, a takeover included, fails
    /// with [`StoreError::Full`](oncekey::backend::StoreError::Full), and nothing runs. Everything that continues or
    /// ends a claim still works, and completed keys replay. When the reader has ended, the backend writes the log back
    /// and accepts claims again, within a second.
    ///
    /// The backend warns once, at a quarter of the limit and at 256 MiB at the latest. It checks once a second, so the
    /// log may get somewhat longer than this. Your application's own writes to the file count, but are not refused.
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

    /// Sets the number of threads that read, each with its own connection. Default: 2, so that a long count does not
    /// delay look-ups; at least 1.
    pub fn readers(mut self, threads: usize) -> Self {
        self.readers = threads.max(1);
        self
    }

    /// Sets whether [`open`](Self::open) creates and updates the tables. If not, they must exist as
    /// [`schema`](crate::schema()) defines them. Default: true.
    pub fn migrate(mut self, migrate: bool) -> Self {
        self.migrate = migrate;
        self
    }

    /// Opens the file. Creates it if it is missing, and creates or migrates its tables.
    ///
    /// If this process already has the file open, the backend shares it, and the options of the first opening apply.
    ///
    /// This reads and writes the file, and waits up to the busy time-out for other processes' locks. Call it at start,
    /// not on an arbiter that serves requests.
    ///
    /// # Errors
    /// [`SqliteOpenError`] says why the file can't be opened.
    pub fn open(self) -> Result<SqliteBackend, SqliteOpenError> {
        SqliteBackend::open_with(&self)
    }
}
