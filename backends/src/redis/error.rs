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
    /// The user may not run what ends a claim, or the server has no such command: operations would run, and their outcomes
    /// could not be stored.
    #[error(
        "what ends a claim can't be run on {server}: {commands}; allow EVAL, EVALSHA and the commands that the guide of Redis \
         lists, for keys with the store's prefix"
    )]
    Forbidden {
        /// Which of the servers.
        server: String,
        /// The commands, or what the server said.
        commands: String,
    },
    /// The server is a replica that takes writes. Its primary knows nothing of them, and would let others claim the same
    /// keys.
    #[error(
        "{server} is a replica that takes writes (replica-read-only no), of which its primary never hears: name the primary"
    )]
    WritableReplica {
        /// Which of the servers.
        server: String,
    },
}

/// Why a command has no answer.
#[derive(Debug, Clone)]
pub(super) enum Failure {
    /// The server does not know the script: nothing was done.
    NoScript,
    /// The connection broke, before or after the server took the command.
    Broken(String),
    /// No node of a cluster had the command's slot, or the driver lost the command while it looked for one.
    Adrift(String),
    /// No answer came in time.
    Silent(String),
    /// There was no connection to send it on, or the server refused it by an error of its own: nothing was done.
    Refused(StoreError),
    /// The server that was reached is not to be used as a store: nothing was sent to it.
    Unfit(Unfit),
}

/// Why a server is not to be used as a store.
#[derive(Debug, Clone)]
pub(super) enum Unfit {
    Eviction { server: String, found: String },
    UnreadSettings { server: String, reason: String },
    Forbidden { server: String, commands: String },
    WritableReplica { server: String },
}

impl From<Unfit> for RedisOpenError {
    fn from(unfit: Unfit) -> Self {
        match unfit {
            Unfit::Eviction { server, found } => Self::Eviction { server, found },
            Unfit::UnreadSettings { server, reason } => Self::UnreadSettings { server, reason },
            Unfit::Forbidden { server, commands } => Self::Forbidden { server, commands },
            Unfit::WritableReplica { server } => Self::WritableReplica { server },
        }
    }
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
            // The server checks these before it executes a command, or a script's only write.
            "LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" | "MOVED" | "ASK" | "CROSSSLOT" | "BUSY"
            | "NOREPLICAS" | "NOPERM" | "NOAUTH" | "ERR" => StoreError::unavailable(text),
            // A proxy's own error, or one of a later version: it does not prove that nothing was executed.
            _ => return Self::Broken(text),
        })
    }

    /// What befell a command that was sent into a cluster, where the driver's own errors stand in the answer's place. It
    /// gives a node's error as an error only if it would act on it by itself; others are values. So any other error of a
    /// server is the answer to a command of the driver's own, and says nothing of this one.
    pub(super) fn of_sent_into_cluster(error: RedisError) -> Self {
        match Self::of_sent(error) {
            Self::NoScript => Self::Broken("the cluster's driver met a script that is not known".to_owned()),
            Self::Refused(error) => Self::Broken(error.to_string()),
            failure => failure,
        }
    }

    /// What befell a command that was sent.
    pub(super) fn of_sent(error: RedisError) -> Self {
        match ServerError::try_from(error) {
            Ok(error) => Self::of_server(&error),
            Err(error) if error.is_timeout() => Self::Silent(error.to_string()),
            Err(error) => Self::Broken(error.to_string()),
        }
    }

    /// What is in the way of a connection. Whatever it is, no step was sent.
    pub(super) fn of_connecting(error: RedisError) -> Self {
        match ServerError::try_from(error).map(|error| Self::of_server(&error)) {
            Ok(Self::Broken(text)) => Self::Refused(StoreError::unavailable(text)),
            Ok(failure) => failure,
            Err(error) => Self::Refused(StoreError::unavailable(error)),
        }
    }

    /// Whether another server has taken this one's place. One that can't write to its disk (MISCONF) refuses writes as
    /// well, and a new connection would find the same server.
    pub(super) fn is_demoted(&self) -> bool {
        matches!(self, Self::Refused(StoreError::ReadOnly(text)) if text.starts_with("READONLY"))
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
            Failure::Broken(text) | Failure::Adrift(text) | Failure::Silent(text) => Self::Unknown(text),
            Failure::Refused(error) => error,
            Failure::Unfit(unfit) => Self::unavailable(RedisOpenError::from(unfit)),
        }
    }
}

#[cfg(test)]
mod tests {
    use redis::{ErrorKind, Value};

    use super::*;

    /// An error as the server writes it.
    fn server_error(line: &str) -> ServerError {
        let parsed = redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap();
        let Value::ServerError(error) = parsed else { panic!("{parsed:?}") };
        error
    }

    /// Only what the server says before it executes a command proves that it did not.
    #[test]
    fn e19_an_error_of_an_unknown_code_is_unknown() {
        for line in [
            "OOM command not allowed when used memory > 'maxmemory'.",
            "READONLY You can't write against a read only replica.",
            "MISCONF Redis is configured to save RDB snapshots",
            "WRONGTYPE Operation against a key",
            "LOADING Redis is loading the dataset in memory",
            "MASTERDOWN Link with MASTER is down",
            "CLUSTERDOWN The cluster is down",
            "TRYAGAIN Multiple keys request",
            "MOVED 1 127.0.0.1:1",
            "ASK 1 127.0.0.1:1",
            "CROSSSLOT Keys in request don't hash to the same slot",
            "BUSY Redis is busy running a script",
            "NOREPLICAS Not enough good replicas to write.",
            "NOPERM this user has no permissions",
            "NOAUTH Authentication required.",
            "ERR unknown command",
        ] {
            let failure = Failure::of_server(&server_error(line));
            assert!(matches!(failure, Failure::Refused(_)), "{line}: {failure:?}");
            assert!(!StoreError::from(failure).is_unknown(), "{line}");
        }
        assert!(matches!(Failure::of_server(&server_error("NOSCRIPT No matching script.")), Failure::NoScript));
        for line in ["UPSTREAM the proxy lost its server", "TIMEOUT waiting for the server", "EXECABORT Transaction"] {
            let failure = Failure::of_server(&server_error(line));
            assert!(matches!(failure, Failure::Broken(_)), "{line}: {failure:?}");
            assert!(StoreError::from(failure).is_unknown(), "{line}");
        }
    }

    /// In a cluster a refusal as an error was given to a command of the driver's own.
    #[test]
    fn e19_an_error_in_a_clusters_answers_place_is_unknown() {
        for line in ["NOPERM no permission for CLUSTER SLOTS", "NOAUTH Authentication required.", "ERR no cluster"] {
            let failure = Failure::of_sent_into_cluster(RedisError::from(server_error(line)));
            assert!(matches!(failure, Failure::Broken(_)), "{line}: {failure:?}");
        }
        // Before there is a connection nothing was sent, whatever the error.
        let connecting = Failure::of_connecting(RedisError::from(server_error("WRONGPASS invalid password")));
        assert!(!StoreError::from(connecting).is_unknown());
        let driver = RedisError::from((ErrorKind::Client, "no slot"));
        assert!(matches!(Failure::of_sent_into_cluster(driver), Failure::Broken(_)));
    }

    /// A full disk is the same server's after a new connection.
    #[test]
    fn e11_a_server_that_cannot_save_is_not_demoted() {
        assert!(Failure::of_server(&server_error("READONLY You can't write")).is_demoted());
        assert!(!Failure::of_server(&server_error("MISCONF errors writing to the disk")).is_demoted());
    }
}
