//! What opening the store can fail with.

use std::error::Error as _;

/// Why a PostgreSQL database could not be opened as a store. No text of it holds the password.
///
/// ```
/// # #[actix_rt::main] async fn main() {
/// use oncekey_backends::postgres::{PostgresBackend, PostgresOpenError};
///
/// let error = PostgresBackend::open("postgres://u:secret@[/shop").await.unwrap_err();
/// assert!(matches!(error, PostgresOpenError::Url(_)));
/// assert!(!error.to_string().contains("secret"));
/// # }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PostgresOpenError {
    /// The URL can't be read. What is wrong with it is told without quoting it.
    #[error("the PostgreSQL URL can't be read: {0}")]
    Url(&'static str),
    /// The certificates to verify the server by can't be read.
    #[error("the certificates for TLS can't be read: {0}")]
    Certificates(String),
    /// The server can't be reached, or refuses the connection.
    #[error("PostgreSQL can't be reached: {0}")]
    Unreachable(String),
    /// A pooler shares the server's connections by transaction or by statement.
    #[error(
        "a pooler shares PostgreSQL's connections by transaction, where neither a session's settings nor its prepared \
         statements hold: give this store the server's own address, or a pool in session mode (PgBouncer: pool_mode = session)"
    )]
    Pooler,
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
    /// The table could not be made or brought up to date. Nothing was changed.
    #[error("the table {table} could not be brought up to date: {reason}")]
    Migration {
        /// The table.
        table: String,
        /// What the server said.
        reason: String,
    },
}

impl PostgresOpenError {
    /// The server refused something.
    pub(super) fn failed(reason: String) -> Self {
        Self::Unreachable(reason).or_pooler()
    }

    /// A statement that was prepared in another process, or a name that another client has prepared in this one: only a
    /// pooler does that.
    pub(super) fn or_pooler(self) -> Self {
        let is_pooler = match &self {
            Self::Unreachable(reason) | Self::Migration { reason, .. } => reason.contains("prepared statement \""),
            _ => false,
        };
        if is_pooler { Self::Pooler } else { self }
    }
}

/// An error and what it came of, in one line. The driver keeps the reason in its sources.
pub(super) fn chain(error: &tokio_postgres::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}
