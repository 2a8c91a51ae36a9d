//! The errors of a call.

use std::time::Duration;

use crate::backend::StoreError;
use crate::record::CorruptOutcome;
use crate::{Attempt, FingerprintError, UnreadableOutcome};

/// Why the engine returned no outcome.
///
/// [`has_run`](Self::has_run) returns whether this call ran its operation.
///
/// ```
/// use oncekey::Error;
///
/// assert!(!Error::Mismatch.has_run());
/// assert_eq!(
///     Error::Mismatch.to_string(),
///     "the idempotency key was used before, for a different request: use a new key for a new request",
/// );
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another caller holds the key, and its operation is running.
    #[error("a request with this idempotency key is in progress: retry in a moment")]
    InProgress {
        /// The time left on that caller's lease. After it, the key is settled or abandoned.
        lease_left: Duration,
    },
    /// An earlier request used the key with a different fingerprint.
    #[error("the idempotency key was used before, for a different request: use a new key for a new request")]
    Mismatch,
    /// The effect of an earlier call may or may not have happened.
    #[error(
        "it is not known whether an earlier request with this idempotency key had its effect (attempt {attempt}): it \
         waits to be resolved"
    )]
    Indeterminate {
        /// The attempt whose outcome is unknown.
        attempt: Attempt,
    },
    /// An earlier call ran the operation, and its outcome was too large to keep.
    #[error("the request was carried out before, but its outcome was not kept: it is not run again")]
    OutcomeNotKept,
    /// The store was unavailable or did not answer. This call ran nothing and never will: the engine withdraws any
    /// claim that the store may hold for it.
    #[error("the idempotency store failed, and nothing was run: {0}")]
    Store(StoreError),
    /// The bytes stored for the key are not an outcome of this key. This call ran nothing.
    #[error("the stored outcome can't be replayed, and nothing was run: {0}")]
    Corrupt(#[from] CorruptOutcome),
    /// The key's operation is finished, but its stored outcome can't be read as the type that this call asked for. This
    /// call ran nothing. [`UnreadableOutcome::read`] reads the outcome as another type.
    #[error(transparent)]
    OutcomeUnreadable(Box<UnreadableOutcome>),
    /// The engine has reached a limit. This call ran nothing.
    #[error("the idempotency engine is at its limit of {limit} {what}: retry in a moment")]
    Overloaded {
        /// What the limit counts.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// The engine is shutting down and accepts no new claims.
    #[error("the idempotency engine is shutting down: retry elsewhere, or in a moment")]
    ShuttingDown,
    /// The actor that was processing the call is gone, because its thread ended.
    #[error("the idempotency engine stopped while it was processing this call: retry it")]
    Stopped,
    /// **The operation ran**, but its outcome could not be stored within the
    /// [settling limit](crate::EngineBuilder::settling_limit). The engine keeps retrying for as long as the process
    /// lives.
    #[error("the operation ran, but its outcome could not be stored: {0}")]
    OutcomeNotStored(StoreError),
    /// The transaction's operation may have run, and **it is unknown whether it was committed**: the store did not say
    /// within the [settling limit](crate::EngineBuilder::settling_limit). The engine keeps asking, and settles the key
    /// when the store answers. Retry with the same key to learn the outcome.
    #[error(
        "it is not known whether the operation's transaction was committed: retry with the same idempotency key to learn \
         its outcome ({0})"
    )]
    CommitUnknown(StoreError),
    /// **The operation ran**, and the database refused to commit its transaction. Either a constraint failed at the
    /// commit, or the operation ignored a failed statement. Everything was rolled back.
    #[error("the database refused to commit the operation's transaction, and rolled it back: {0}")]
    CommitRefused(String),
    /// **The operation ran**, but it had lost its claim to another caller, to an operator or to the run limit. Its
    /// outcome was not stored. What it wrote in a transaction of the store was rolled back.
    #[error("the operation ran, but its claim was lost before its outcome could be stored")]
    ClaimLost,
    /// **The operation ran** and panicked. The engine settled the key by [`OnAbandoned`](crate::OnAbandoned), or rolled
    /// the transaction back and released the key.
    #[error("the operation panicked")]
    Panicked,
    /// **The operation ran**, but its outcome can't be serialized. The key is indeterminate, or the transaction was
    /// rolled back and the key released.
    #[error("the operation ran, but its outcome can't be serialized: {0}")]
    Unserializable(String),
    /// The request can't be serialized to compute its fingerprint. This call ran nothing.
    #[error("the fingerprint can't be made: {0}")]
    Fingerprint(String),
    /// The store has no transactions on the type of connection that the operation asked for.
    #[error("the store can't run an operation on a {wanted}: {what}")]
    NoSuchTransaction {
        /// The type of connection that the operation asked for.
        wanted: &'static str,
        /// The store's explanation.
        what: String,
    },
}

impl Error {
    /// Returns whether this call's operation ran or may have run, whatever happened to its outcome.
    pub fn has_run(&self) -> bool {
        matches!(
            self,
            Self::OutcomeNotStored(_)
                | Self::CommitUnknown(_)
                | Self::CommitRefused(_)
                | Self::ClaimLost
                | Self::Panicked
                | Self::Unserializable(_)
        )
    }

    /// Returns whether the same call may succeed a moment later.
    ///
    /// ```
    /// use oncekey::Error;
    ///
    /// assert!(Error::ShuttingDown.is_transient());
    /// assert!(!Error::Mismatch.is_transient());
    /// ```
    pub fn is_transient(&self) -> bool {
        match self {
            Self::InProgress { .. } | Self::Overloaded { .. } | Self::ShuttingDown | Self::Stopped => true,
            Self::Store(error) => error.is_transient(),
            _ => false,
        }
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Outcome(corrupt) => Self::Corrupt(corrupt),
            other => Self::Store(other),
        }
    }
}

impl From<FingerprintError> for Error {
    fn from(error: FingerprintError) -> Self {
        Self::Fingerprint(error.to_string())
    }
}

/// Why [`Engine::run`](crate::Engine::run) returned no outcome: an error of the engine, or the operation's own error.
///
/// ```
/// use oncekey::{Error, RunError};
///
/// let error: RunError<std::io::Error> = Error::Mismatch.into();
/// assert!(matches!(error, RunError::Engine(Error::Mismatch)));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RunError<E> {
    /// The operation ran and failed. The engine settled the key by [`OnFailure`](crate::OnFailure), or rolled the
    /// transaction back and released the key.
    #[error("the operation failed: {0}")]
    Operation(E),
    /// An error of the engine.
    #[error(transparent)]
    Engine(#[from] Error),
}
