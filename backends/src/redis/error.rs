//! Errors of opening the store, and what each server error means for a step.

use oncekey::backend::StoreError;
use redis::{RedisError, ServerError, ServerErrorKind};

/// Why the backend could not open a Redis server as a store. No message contains the password.
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
    /// The URL is invalid. The message describes the problem without quoting the URL.
    #[error("the Redis URL can't be read: {0}")]
    Url(&'static str),
    /// The certificates that verify the server can't be read.
    #[error("the certificates for TLS can't be read: {0}")]
    Certificates(String),
    /// The server can't be reached, or it refuses the connection.
    #[error("Redis can't be reached: {0}")]
    Unreachable(String),
    /// The server is too old: it lacks `SET … NX GET`.
    #[error("Redis 7.0 or later, or Valkey, is needed; {server} has version {found}")]
    TooOld {
        /// The server.
        server: String,
        /// The server's version.
        found: String,
    },
    /// The server would evict records when its memory is full. The operation of an evicted record would run again.
    #[error(
        "maxmemory-policy of {server} is {found}: Redis would evict records before their time, and what they guard would \
         run again; set it to noeviction, or accept that by accept_eviction (in a URL: ?accept=eviction)"
    )]
    Eviction {
        /// The server.
        server: String,
        /// The server's policy.
        found: String,
    },
    /// The server does not show its settings, so the backend can't tell whether it evicts or loses records.
    #[error(
        "the settings of {server} can't be read ({reason}), so that nobody knows whether it evicts records or forgets them; \
         allow CONFIG GET, or vouch for them by accept_unread_settings (in a URL: ?accept=unread-settings)"
    )]
    UnreadSettings {
        /// The server.
        server: String,
        /// The server's error message.
        reason: String,
    },
    /// The user lacks permission for a command that ends a claim, or the server does not have the command. Operations
    /// would run, and the backend could not store their outcomes.
    #[error(
        "what ends a claim can't be run on {server}: {commands}; allow EVAL, EVALSHA and the commands that the guide of Redis \
         lists, for keys with the store's prefix"
    )]
    Forbidden {
        /// The server.
        server: String,
        /// The refused commands, or the server's error message.
        commands: String,
    },
    /// The server is a writable replica. Its primary never receives the replica's writes, so it would let other callers
    /// claim the same keys.
    #[error(
        "{server} is a replica that takes writes (replica-read-only no), of which its primary never hears: name the primary"
    )]
    WritableReplica {
        /// The server.
        server: String,
    },
}

/// Why a command has no answer.
#[derive(Debug, Clone)]
pub(super) enum Failure {
    /// The server does not know the script. Nothing was executed.
    NoScript,
    /// The connection broke, before or after the server received the command.
    Broken(String),
    /// No node of the cluster owned the command's slot, or the driver lost the command while it looked for one.
    Adrift(String),
    /// No answer arrived before the deadline.
    Silent(String),
    /// There was no connection, or the server refused the command with an error. Nothing was executed.
    Refused(StoreError),
    /// The server must not be used as a store. Nothing was sent to it.
    Unfit(Unfit),
}

/// Why a server must not be used as a store.
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
    /// Classifies a server error.
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
            // The server makes these checks before it executes a command or a script's only write.
            "LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" | "MOVED" | "ASK" | "CROSSSLOT" | "BUSY"
            | "NOREPLICAS" | "NOPERM" | "NOAUTH" | "ERR" => StoreError::unavailable(text),
            // An unknown code may come from a proxy or from a later version. It does not prove that nothing was
            // executed.
            _ => return Self::Broken(text),
        })
    }

    /// Classifies the failure of a command sent into a cluster. The cluster driver returns a node's error as `Err` only
    /// if the driver handles that error itself; it returns all other node errors as values. So any other server error
    /// in `Err` answers one of the driver's own commands and says nothing about this one.
    pub(super) fn of_sent_into_cluster(error: RedisError) -> Self {
        match Self::of_sent(error) {
            Self::NoScript => Self::Broken("the cluster's driver met a script that is not known".to_owned()),
            Self::Refused(error) => Self::Broken(error.to_string()),
            failure => failure,
        }
    }

    /// Classifies the failure of a command that was sent.
    pub(super) fn of_sent(error: RedisError) -> Self {
        match ServerError::try_from(error) {
            Ok(error) => Self::of_server(&error),
            Err(error) if error.is_timeout() => Self::Silent(error.to_string()),
            Err(error) => Self::Broken(error.to_string()),
        }
    }

    /// Classifies a connection failure. Whatever the cause, no step was sent.
    pub(super) fn of_connecting(error: RedisError) -> Self {
        match ServerError::try_from(error).map(|error| Self::of_server(&error)) {
            Ok(Self::Broken(text)) => Self::Refused(StoreError::unavailable(text)),
            Ok(failure) => failure,
            Err(error) => Self::Refused(StoreError::unavailable(error)),
        }
    }

    /// Returns whether this server has been demoted to a replica. A server that can't write to its disk (MISCONF) also
    /// refuses writes, but a new connection would reach the same server.
    pub(super) fn is_demoted(&self) -> bool {
        matches!(self, Self::Refused(StoreError::ReadOnly(text)) if text.starts_with("READONLY"))
    }

    /// Converts the failure of a read. An unanswered read changed nothing.
    pub(super) fn of_read(self) -> StoreError {
        match self.into() {
            StoreError::Unknown(text) => StoreError::Unavailable(text),
            other => other,
        }
    }
}

/// Covers this command only. What is known about an earlier attempt of the step is in its
/// [`StepState`](oncekey::backend::StepState).
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

    /// Parses an error as the server writes it.
    fn server_error(line: &str) -> ServerError {
        let parsed = redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap();
        let Value::ServerError(error) = parsed else { panic!("{parsed:?}") };
        error
    }

    /// Only errors that the server reports before it executes a command prove that the command was not executed.
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

    /// In a cluster, a refusal in `Err` answers one of the driver's own commands.
    #[test]
    fn e19_an_error_in_a_clusters_answers_place_is_unknown() {
        for line in ["NOPERM no permission for CLUSTER SLOTS", "NOAUTH Authentication required.", "ERR no cluster"] {
            let failure = Failure::of_sent_into_cluster(RedisError::from(server_error(line)));
            assert!(matches!(failure, Failure::Broken(_)), "{line}: {failure:?}");
        }
        // Before a connection exists, nothing was sent, whatever the error.
        let connecting = Failure::of_connecting(RedisError::from(server_error("WRONGPASS invalid password")));
        assert!(!StoreError::from(connecting).is_unknown());
        let driver = RedisError::from((ErrorKind::Client, "no slot"));
        assert!(matches!(Failure::of_sent_into_cluster(driver), Failure::Broken(_)));
    }

    /// A new connection would reach the same server with the same full disk.
    #[test]
    fn e11_a_server_that_cannot_save_is_not_demoted() {
        assert!(Failure::of_server(&server_error("READONLY You can't write")).is_demoted());
        assert!(!Failure::of_server(&server_error("MISCONF errors writing to the disk")).is_demoted());
    }
}
