//! The errors of opening the store.

use std::error::Error as _;

use crate::sql::open_error;

open_error! {
    /// Why the backend could not open a PostgreSQL database as a store. No message contains the password.
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
    pub enum PostgresOpenError of "PostgreSQL" {
        /// A pooler shares the server's connections by transaction or by statement.
        #[error(
            "a pooler shares PostgreSQL's connections by transaction, where neither a session's settings nor its prepared \
             statements hold: give this store the server's own address, or a pool in session mode (PgBouncer: \
             pool_mode = session)"
        )]
        Pooler,
    }
}

impl PostgresOpenError {
    /// Returns the error for a request that the server refused.
    pub(super) fn failed(reason: String) -> Self {
        Self::Unreachable(reason).or_pooler()
    }

    /// Returns [`Pooler`](Self::Pooler) if the error is about a prepared statement that another session has prepared,
    /// or whose name is already in use here: only a pooler causes that.
    pub(super) fn or_pooler(self) -> Self {
        let is_pooler = match &self {
            Self::Unreachable(reason) | Self::Migration { reason, .. } => reason.contains("prepared statement \""),
            _ => false,
        };
        if is_pooler { Self::Pooler } else { self }
    }
}

/// Returns an error and its causes in one line. The driver puts the reason into the error's sources.
pub(super) fn chain(error: &tokio_postgres::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}
