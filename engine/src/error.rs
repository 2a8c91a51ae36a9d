//! What a call can fail with.

use std::time::Duration;

use crate::backend::StoreError;
use crate::record::CorruptOutcome;
use crate::{Attempt, FingerprintError, UnreadableOutcome};

/// Why the engine did not give an outcome.
///
/// [`has_run`](Self::has_run) tells whether this call's operation ran all the same.
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
    /// Another caller is working on the key.
    #[error("a request with this idempotency key is in progress: retry in a moment")]
    InProgress {
        /// How long the other's lease still holds: after this the key is settled or abandoned.
        lease_left: Duration,
    },
    /// The key was used for something else.
    #[error("the idempotency key was used before, for a different request: use a new key for a new request")]
    Mismatch,
    /// The effect of an earlier call may or may not have happened.
    #[error(
        "it is not known whether an earlier request with this idempotency key had its effect (attempt {attempt}): it \
         waits to be resolved"
    )]
    Indeterminate {
        /// The claim whose outcome nobody knows.
        attempt: Attempt,
    },
    /// The operation was done before, and its outcome was too large to keep.
    #[error("the request was carried out before, but its outcome was not kept: it is not run again")]
    OutcomeNotKept,
    /// The store could not be asked, or did not answer. This call ran nothing, and never will: a claim that the store may
    /// hold for it is withdrawn.
    #[error("the idempotency store failed, and nothing was run: {0}")]
    Store(StoreError),
    /// What is stored for the key is no outcome of it. This call ran nothing.
    #[error("the stored outcome can't be replayed, and nothing was run: {0}")]
    Corrupt(#[from] CorruptOutcome),
    /// The work of the key is finished, and its stored outcome can't be read as the type that this call asked for. This
    /// call ran nothing. [`UnreadableOutcome::read`] reads the outcome as another type.
    #[error(transparent)]
    OutcomeUnreadable(Box<UnreadableOutcome>),
    /// A limit of the engine is reached. This call ran nothing.
    #[error("the idempotency engine is at its limit of {limit} {what}: retry in a moment")]
    Overloaded {
        /// What is limited.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// The engine takes no new calls.
    #[error("the idempotency engine is shutting down: retry elsewhere, or in a moment")]
    ShuttingDown,
    /// The actor that had the call in hand is gone: its thread ended.
    #[error("the idempotency engine stopped with the call in hand: retry it")]
    Stopped,
    /// **The operation ran**, and its outcome could not be stored within the limit for that. The engine keeps trying for as
    /// long as the process lives.
    #[error("the operation ran, but its outcome could not be stored: {0}")]
    OutcomeNotStored(StoreError),
    /// The transaction's operation may have run, and **it is not known whether it was committed**: the store did not say,
    /// within the limit for that. The engine keeps asking, and settles the key when the store answers. Retry with the same
    /// key to learn the outcome.
    #[error(
        "it is not known whether the operation's transaction was committed: retry with the same idempotency key to learn \
         its outcome ({0})"
    )]
    CommitUnknown(StoreError),
    /// **The operation ran**, and the database refused to commit its transaction: a constraint that is checked at the
    /// commit, or a statement whose failure the operation passed over. Everything was rolled back.
    #[error("the database refused to commit the operation's transaction, and rolled it back: {0}")]
    CommitRefused(String),
    /// **The operation ran**, but its claim had been lost by then: to another caller, to an operator, or to the run limit.
    /// Its outcome was not stored. What it wrote in a transaction of the store was rolled back.
    #[error("the operation ran, but its claim was lost before its outcome could be stored")]
    ClaimLost,
    /// **The operation ran**, and panicked. The key was settled as [`OnAbandoned`](crate::OnAbandoned) says.
    #[error("the operation panicked")]
    Panicked,
    /// **The operation ran**, and its outcome can't be serialized. The key is indeterminate.
    #[error("the operation ran, but its outcome can't be serialized: {0}")]
    Unserializable(String),
    /// What was asked can't be serialized to make its fingerprint. This call ran nothing.
    #[error("the fingerprint can't be made: {0}")]
    Fingerprint(String),
    /// The store has no transactions on connections of the type that the operation asked for.
    #[error("the store can't run an operation on a {wanted}: {what}")]
    NoSuchTransaction {
        /// The type of connection that the operation asked for.
        wanted: &'static str,
        /// What the store said.
        what: String,
    },
}

impl Error {
    /// Whether the operation of this call ran, or may have run, whatever became of its outcome.
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

    /// Whether the same call may succeed a moment later.
    ///
    /// ```
    /// use oncekey::Error;
    ///
    /// assert!(Error::ShuttingDown.is_passing());
    /// assert!(!Error::Mismatch.is_passing());
    /// ```
    pub fn is_passing(&self) -> bool {
        match self {
            Self::InProgress { .. } | Self::Overloaded { .. } | Self::ShuttingDown | Self::Stopped => true,
            Self::Store(error) => error.is_passing(),
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

/// Why [`Engine::run`](crate::Engine::run) gave no outcome: the engine's reason, or the operation's own error.
///
/// ```
/// use oncekey::{Error, RunError};
///
/// let error: RunError<std::io::Error> = Error::Mismatch.into();
/// assert!(matches!(error, RunError::Engine(Error::Mismatch)));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RunError<E> {
    /// The operation ran and failed. The key was settled as [`OnAbandoned`](crate::OnAbandoned) says.
    #[error("the operation failed: {0}")]
    Operation(E),
    /// The engine's reason.
    #[error(transparent)]
    Engine(#[from] Error),
}
