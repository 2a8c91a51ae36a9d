//! The errors of opening a file, and the conversion of SQLite's errors into the store's.

use std::io;
use std::path::PathBuf;

use diesel::result::{DatabaseErrorKind, Error};
use oncekey::backend::StoreError;

/// Why an SQLite file could not be opened as a store.
///
/// ```
/// use oncekey_backends::{SqliteBackend, SqliteOpenError};
///
/// let error = SqliteBackend::open("/no/such/folder/keys.db").unwrap_err();
/// assert!(matches!(error, SqliteOpenError::Path { .. }));
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SqliteOpenError {
    /// The path leads nowhere: a folder in it does not exist or can't be entered.
    #[error("the path {} can't be followed: {source}", path.display())]
    Path {
        /// The path as given.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The path is not UTF-8, which Diesel requires.
    #[error("the path {} is not UTF-8", path.display())]
    NotUtf8 {
        /// The path.
        path: PathBuf,
    },
    /// The path asks for a database in memory. Each of this backend's connections would have a different one: use the
    /// memory backend.
    #[error("the store must be a file; for records in memory there is the memory backend")]
    InMemory,
    /// The file can't be opened or created.
    #[error("the file {} can't be opened: {reason}", path.display())]
    Unopenable {
        /// The file.
        path: PathBuf,
        /// SQLite's message.
        reason: String,
    },
    /// The file or its folder can't be written to.
    #[error("the file {} can't be written to: a store needs write access to it and to its folder", path.display())]
    ReadOnly {
        /// The file.
        path: PathBuf,
    },
    /// The file is not a database, or is damaged.
    #[error("the file {} is not an SQLite database, or is damaged: {reason}", path.display())]
    NotADatabase {
        /// The file.
        path: PathBuf,
        /// SQLite's message.
        reason: String,
    },
    /// Another connection held the file's lock for longer than the busy time-out.
    #[error("the file {} stayed locked by another connection for the whole busy time-out", path.display())]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// The disk has no room for the tables.
    #[error("there is no room for the tables in {}", path.display())]
    Full {
        /// The file.
        path: PathBuf,
    },
    /// The file has more than one name (hard links). SQLite keeps a write-ahead log and locks for each name. Processes
    /// that open the file by different names would claim the same keys.
    #[error(
        "the file {} has {names} names (hard links), and SQLite keeps a log and locks for each: remove the others, or copy \
         the file",
        path.display()
    )]
    Linked {
        /// The file.
        path: PathBuf,
        /// How many names it has.
        names: u64,
    },
    /// The file can't use the write-ahead-log mode that concurrent readers and a writer need, e.g. on a file system
    /// without shared memory.
    #[error("the file {} can't use a write-ahead log; its journal mode stays {mode:?}", path.display())]
    NoWriteAheadLog {
        /// The file.
        path: PathBuf,
        /// The mode it is in.
        mode: String,
    },
    /// A newer version of this library created the tables. This version would damage them.
    #[error(
        "the tables in {} have schema version {found}; this library knows versions up to {known}: use a newer one",
        path.display()
    )]
    NewerSchema {
        /// The file.
        path: PathBuf,
        /// The file's schema version.
        found: String,
        /// The newest version that this library knows.
        known: String,
    },
    /// The tables are missing or have an older version, and migrations are switched off.
    #[error(
        "the tables in {} have schema version {found} of {known}, and migrations are switched off", path.display()
    )]
    NotMigrated {
        /// The file.
        path: PathBuf,
        /// The file's schema version.
        found: String,
        /// The required version.
        known: String,
    },
    /// The tables could not be created or migrated. Nothing was changed.
    #[error("the tables in {} could not be brought up to date: {reason}", path.display())]
    Migration {
        /// The file.
        path: PathBuf,
        /// SQLite's message.
        reason: String,
    },
    /// The processes that use the file base its time on the time since boot, and this process can't read
    /// `/proc/sys/kernel/random/boot_id`. With a different clock it would end leases that they hold.
    #[error(
        "the clock of {} goes by the time since boot, and this process can't read /proc/sys/kernel/random/boot_id: give it \
         access to /proc",
        path.display()
    )]
    NoBootId {
        /// The file.
        path: PathBuf,
    },
    /// The file was moved or replaced while it was open, and can't be opened again.
    #[error("the file {} is not the one that was opened: {reason}", path.display())]
    Replaced {
        /// The file.
        path: PathBuf,
        /// What the backend found.
        reason: String,
    },
    /// A thread could not be started.
    #[error("a thread for the store could not be started: {0}")]
    Thread(#[source] io::Error),
}

/// Converts an error of reopening a connection. No request was executed.
pub(super) fn not_opened(error: &SqliteOpenError) -> StoreError {
    match error {
        SqliteOpenError::Replaced { reason, .. } => StoreError::Replaced(reason.clone()),
        error => StoreError::unavailable(error),
    }
}

/// The kinds of SQLite errors that need different answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Busy,
    ReadOnly,
    Full,
    Damaged,
    Unopenable,
    Constraint,
    Undecodable,
    Other,
}

/// Classifies an error by its message, since Diesel drops SQLite's code. The messages that matter are constants in
/// SQLite's source. Tests provoke them and pin their texts.
pub(super) fn kind(error: &Error) -> Kind {
    match error {
        Error::DatabaseError(
            DatabaseErrorKind::UniqueViolation
            | DatabaseErrorKind::ForeignKeyViolation
            | DatabaseErrorKind::NotNullViolation
            | DatabaseErrorKind::CheckViolation,
            _,
        ) => Kind::Constraint,
        Error::DatabaseError(_, information) => match information.message() {
            message if message.starts_with("database is locked") => Kind::Busy,
            message if message.starts_with("database table is locked") => Kind::Busy,
            message if message.starts_with("attempt to write a readonly database") => Kind::ReadOnly,
            message if message.starts_with("database or disk is full") => Kind::Full,
            message if message.starts_with("database disk image is malformed") => Kind::Damaged,
            message if message.starts_with("file is not a database") => Kind::Damaged,
            message if message.starts_with("unable to open database file") => Kind::Unopenable,
            _ => Kind::Other,
        },
        Error::DeserializationError(_) => Kind::Undecodable,
        _ => Kind::Other,
    }
}

/// Converts the error of a request that was certainly not executed.
pub(super) fn not_taken(error: &Error) -> StoreError {
    match kind(error) {
        Kind::ReadOnly => StoreError::ReadOnly(error.to_string()),
        Kind::Full => StoreError::Full(error.to_string()),
        Kind::Damaged | Kind::Undecodable => StoreError::corrupt(error),
        Kind::Busy | Kind::Unopenable | Kind::Constraint | Kind::Other => StoreError::unavailable(error),
    }
}

/// Converts an error of opening `path`.
pub(super) fn at_open(path: PathBuf, error: &Error) -> SqliteOpenError {
    let reason = error.to_string();
    match kind(error) {
        Kind::Busy => SqliteOpenError::Busy { path },
        Kind::ReadOnly => SqliteOpenError::ReadOnly { path },
        Kind::Full => SqliteOpenError::Full { path },
        Kind::Damaged => SqliteOpenError::NotADatabase { path, reason },
        Kind::Unopenable => SqliteOpenError::Unopenable { path, reason },
        Kind::Constraint | Kind::Undecodable | Kind::Other => SqliteOpenError::Migration { path, reason },
    }
}
