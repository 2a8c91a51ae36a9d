//! What opening the store can fail with, and what the server's errors mean for a step.

use oncekey::backend::StoreError;
use redis::{RedisError, ServerError};

/// Why a Redis could not be opened as a store. No text of it holds the password.
///
/// ```
/// # #[actix_rt::main] async fn main() {
/// use oncekey_backends::redis::{RedisBackend, RedisOpenError};
///
/// let error = RedisBackend::open("redis://:secret@[/0").await.unwrap_err();
/// assert!(matches!(error, RedisOpenError::Url(_)));
/// assert!(!error.to_string().contains("secret"));
/// # }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RedisOpenError {
    /// The URL can't be read. What is wrong with it is told without quoting it.
    #[error("the Redis URL can't be read: {0}")]
    Url(&'static str),
    /// The certificates to verify the server by can't be read.
    #[error("the certificates for TLS can't be read: {0}")]
    Certificates(String),
    /// The server can't be reached, or refuses the connection.
    #[error("Redis can't be reached: {0}")]
    Unreachable(String),
    /// The server lacks `SET … NX GET`.
    #[error("Redis 7.0 or later, or Valkey, is needed; {server} has version {found}")]
    TooOld {
        /// Which of the servers.
        server: String,
        /// The version that it has.
        found: String,
    },
    /// The server would evict records when its memory is full, and what is evicted runs again.
    #[error(
        "maxmemory-policy of {server} is {found}: Redis would evict records before their time, and what they guard would \
         run again; set it to noeviction, or accept that by accept_eviction (in a URL: ?accept=eviction)"
    )]
    Eviction {
        /// Which of the servers.
        server: String,
        /// The policy that it has.
        found: String,
    },
    /// The server does not show its settings, so that nobody knows what it promises.
    #[error(
        "the settings of {server} can't be read ({reason}), so that nobody knows whether it evicts records or forgets them; \
         allow CONFIG GET, or vouch for them by accept_unread_settings (in a URL: ?accept=unread-settings)"
    )]
    UnreadSettings {
        /// Which of the servers.
        server: String,
        /// What the server said.
        reason: String,
    },
}

/// A step that the server refused by an error of its own: it was not taken.
pub(super) fn refused(error: &ServerError) -> StoreError {
    let text = match error.details() {
        Some(details) => format!("{} {details}", error.code()),
        None => error.code().to_owned(),
    };
    match error.code() {
        "OOM" => StoreError::Full(text),
        "READONLY" | "MISCONF" => StoreError::ReadOnly(text),
        "WRONGTYPE" => StoreError::corrupt("a key in Redis holds something else than a record"),
        // LOADING, MASTERDOWN, CLUSTERDOWN, TRYAGAIN, BUSY, NOREPLICAS, and what an operator has to mend: NOPERM, NOAUTH.
        _ => StoreError::unavailable(text),
    }
}

/// A step whose answer did not come: only a server's own error says that it was not taken.
pub(super) fn failed(error: RedisError) -> StoreError {
    match ServerError::try_from(error) {
        Ok(error) => refused(&error),
        Err(error) => StoreError::unknown(&error),
    }
}
