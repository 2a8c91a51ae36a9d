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
