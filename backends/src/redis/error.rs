//! What opening the store can fail with, and what the server's errors mean for a step.

use oncekey::backend::StoreError;
use redis::{RedisError, ServerError, ServerErrorKind};

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

/// Why a command has no answer.
#[derive(Debug, Clone)]
pub(super) enum Failure {
    /// The server does not know the script: nothing was done.
    NoScript,
    /// The connection broke, before or after the server took the command.
    Broken(String),
    /// No answer came in time.
    Silent(String),
    /// There was no connection to send it on, or the server refused it by an error of its own: nothing was done.
    Refused(StoreError),
}

impl Failure {
    /// What the server's own error means.
    pub(super) fn of_server(error: &ServerError) -> Self {
        if error.kind() == Some(ServerErrorKind::NoScript) {
            return Self::NoScript;
        }
        let text = match error.details() {
            Some(details) => format!("{} {details}", error.code()),
            None => error.code().to_owned(),
        };
        Self::Refused(match error.code() {
            "OOM" => StoreError::Full(text),
            "READONLY" | "MISCONF" => StoreError::ReadOnly(text),
            "WRONGTYPE" => StoreError::corrupt("a key in Redis holds something else than a record"),
            // LOADING, MASTERDOWN, CLUSTERDOWN, TRYAGAIN, BUSY, NOREPLICAS, and what an operator has to mend: NOPERM, NOAUTH.
            _ => StoreError::unavailable(text),
        })
    }

    /// What befell a command that was sent.
    pub(super) fn of_sent(error: RedisError) -> Self {
        match ServerError::try_from(error) {
            Ok(error) => Self::of_server(&error),
            Err(error) if error.is_timeout() => Self::Silent(error.to_string()),
            Err(error) => Self::Broken(error.to_string()),
        }
    }

    /// What is in the way of a connection.
    pub(super) fn of_connecting(error: RedisError) -> Self {
        match ServerError::try_from(error) {
            Ok(error) => Self::of_server(&error),
            Err(error) => Self::Refused(StoreError::unavailable(error)),
        }
    }

    pub(super) fn is_read_only(&self) -> bool {
        matches!(self, Self::Refused(StoreError::ReadOnly(_)))
    }

    /// A read that was not answered changed nothing.
    pub(super) fn of_read(self) -> StoreError {
        match self.into() {
            StoreError::Unknown(text) => StoreError::Unavailable(text),
            other => other,
        }
    }
}

/// By itself it says nothing of a step that was sent before: the step's [`StepState`](oncekey::backend::StepState) does.
impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NoScript => Self::unavailable("Redis forgets its scripts as soon as it is sent them"),
            Failure::Broken(text) | Failure::Silent(text) => Self::Unknown(text),
            Failure::Refused(error) => error,
        }
    }
}
