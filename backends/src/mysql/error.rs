//! What opening the store can fail with.

/// Why a MySQL or MariaDB database could not be opened as a store. No text of it holds the password.
///
/// ```
/// # #[actix_rt::main] async fn main() {
/// use oncekey_backends::mysql::{MysqlBackend, MysqlOpenError};
///
/// let error = MysqlBackend::open("mysql:/u:secret@h").await.unwrap_err();
/// assert!(matches!(error, MysqlOpenError::Url(_)));
/// assert!(!error.to_string().contains("secret"));
/// # }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MysqlOpenError {
    /// The URL can't be read. What is wrong with it is told without quoting it.
    #[error("the MySQL URL can't be read: {0}")]
    Url(&'static str),
    /// The certificates that are to be trusted can't be read.
    #[error("the certificates for MySQL can't be read: {0}")]
    Certificates(String),
    /// The server can't be reached, or refuses the connection.
    #[error("MySQL can't be reached: {0}")]
    Unreachable(String),
    /// The connections of the application's pool have a setting by which operations would run twice.
    #[error("the pool's connections have {setting} = {found}; this store needs {wanted}: set it for each connection")]
    Setting {
        /// The setting.
        setting: &'static str,
        /// The value that was found.
        found: String,
        /// What is needed.
        wanted: &'static str,
    },
    /// The table was made by a newer version of this library, which this one would damage.
    #[error("the table {table} has schema version {found}; this library knows versions up to {known}: use a newer one")]
    NewerSchema {
        /// The table.
        table: String,
        /// The version that it has.
        found: i64,
        /// The newest version known here.
        known: i64,
    },
    /// The table is missing or of an older version, and was not to be made.
    #[error("the table {table} has schema version {found} of {known}, and migrations are switched off")]
    NotMigrated {
        /// The table.
        table: String,
        /// The version that it has; 0 if it is missing.
        found: i64,
        /// The version that is needed.
        known: i64,
    },
    /// The table could not be made or brought up to date.
    #[error("the table {table} could not be brought up to date: {reason}")]
    Migration {
        /// The table.
        table: String,
        /// What the server said.
        reason: String,
    },
}
