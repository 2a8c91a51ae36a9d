//! How a store can fail.

use crate::CorruptOutcome;

/// A step that a store did not execute, or that it may or may not have executed.
///
/// The engine distinguishes two kinds. If [`is_unknown`](Self::is_unknown) is true, the step may have been executed,
/// and the same owner sends it again before anything else. After any other error, it was not executed.
///
/// The texts never contain a credential: a backend strips them from its driver's messages.
///
/// ```
/// use oncekey::backend::StoreError;
///
/// assert!(StoreError::unknown("the connection broke after COMMIT was sent").is_unknown());
/// assert!(!StoreError::unavailable("connection refused").is_unknown());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The store could not be reached. The step was not executed.
    #[error("the store can't be reached: {0}")]
    Unavailable(String),
    /// The step was sent, and no answer arrived before the engine's deadline for store calls.
    #[error("the store did not confirm the step, which may have been taken: {0}")]
    Unknown(String),
    /// The backend accepts no more work at the moment. The step was not executed.
    #[error("the store is overloaded: {0}")]
    Overloaded(String),
    /// The store has no room for another record. The step was not executed. No existing record is evicted for it.
    #[error("the store is full: {0}")]
    Full(String),
    /// The store cannot be written to. The step was not executed.
    #[error("the store refuses to be written to: {0}")]
    ReadOnly(String),
    /// The store that was opened is gone, or something else is in its place. The step was not executed. Another process
    /// may find other records there. Put the store back, or restart the process on what is there now.
    #[error("the store is not what was opened: {0}")]
    Replaced(String),
    /// The stored bytes of the key cannot be read as a record.
    #[error("the stored record is corrupt or foreign: {0}")]
    Corrupt(String),
    /// The outcome that is stored, or is to be stored, does not belong to the key.
    #[error("the stored outcome can't be read: {0}")]
    Outcome(CorruptOutcome),
    /// The transaction ended before the outcome of its operation was written: by a statement of the operation that
    /// commits, or by a deadlock whose error the operation ignored. The outcome was not written. **The operation's
    /// writes may be committed in part.** The same call would fail in the same way again.
    #[error(
        "the operation's transaction ended before its outcome was written, by a COMMIT, a DDL statement or a deadlock that \
         the operation did not report: what it wrote may be committed in part"
    )]
    TransactionEnded,
    /// The backend does not support this.
    #[error("this store does not support {0}")]
    Unsupported(&'static str),
}

impl StoreError {
    /// Returns an error for a store that could not be reached.
    pub fn unavailable(what: impl ToString) -> Self {
        Self::Unavailable(what.to_string())
    }

    /// Returns an error for a step that was sent and got no answer.
    pub fn unknown(what: impl ToString) -> Self {
        Self::Unknown(what.to_string())
    }

    /// Returns an error for stored bytes that cannot be read.
    pub fn corrupt(what: impl ToString) -> Self {
        Self::Corrupt(what.to_string())
    }

    /// Returns whether the step may have been executed despite the error.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown(_))
    }

    /// Returns whether the same step may succeed later without intervention.
    pub fn is_transient(&self) -> bool {
        !matches!(self, Self::Corrupt(_) | Self::Outcome(_) | Self::TransactionEnded | Self::Unsupported(_))
    }
}
