//! What a store can fail with.

use crate::CorruptOutcome;

/// A step that a store did not take, or of which it is unknown whether it did.
///
/// The engine tells two kinds apart: after [`is_unknown`](Self::is_unknown) the step may have been taken, so that it is
/// sent again by the same owner before anything else is done; after any other it was not.
///
/// The texts never hold a credential: a backend strips them from what its driver says.
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
    /// The store could not be asked; the step was not taken.
    #[error("the store can't be reached: {0}")]
    Unavailable(String),
    /// The step was sent, and its answer was not heard before the engine's deadline for store calls.
    #[error("the store did not confirm the step, which may have been taken: {0}")]
    Unknown(String),
    /// The backend takes no more work at the moment; the step was not taken.
    #[error("the store is overloaded: {0}")]
    Overloaded(String),
    /// The store has no room for another record; the step was not taken. Nothing that is kept is evicted for it.
    #[error("the store is full: {0}")]
    Full(String),
    /// The store can't be written to; the step was not taken.
    #[error("the store refuses to be written to: {0}")]
    ReadOnly(String),
    /// What the store was opened on is gone, or something else stands in its place; the step was not taken. Another process
    /// may find other records there. Put it back, or restart the process on what is there now.
    #[error("the store is not what was opened: {0}")]
    Replaced(String),
    /// What is stored for the key can't be read as a record.
    #[error("the stored record is corrupt or foreign: {0}")]
    Corrupt(String),
    /// The outcome that is stored, or to be stored, is none of the key's.
    #[error("the stored outcome can't be read: {0}")]
    Outcome(CorruptOutcome),
    /// The transaction in which an operation ran had ended before its outcome was to be written: by a statement of the
    /// operation that commits, or by a deadlock whose error the operation has passed over. The outcome was not written.
    /// **What the operation wrote may be committed in part.** The same call would do the same again.
    #[error(
        "the operation's transaction ended before its outcome was written, by a COMMIT, a DDL statement or a deadlock that \
         the operation did not report: what it wrote may be committed in part"
    )]
    TransactionEnded,
    /// The backend has no such ability.
    #[error("this store does not support {0}")]
    Unsupported(&'static str),
}

impl StoreError {
    /// The store could not be asked.
    pub fn unavailable(what: impl ToString) -> Self {
        Self::Unavailable(what.to_string())
    }

    /// The step was sent, and its answer was not heard.
    pub fn unknown(what: impl ToString) -> Self {
        Self::Unknown(what.to_string())
    }

    /// What is stored can't be read.
    pub fn corrupt(what: impl ToString) -> Self {
        Self::Corrupt(what.to_string())
    }

    /// Whether the step may have been taken all the same.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown(_))
    }

    /// Whether the same step may succeed later without anybody's help.
    pub fn is_passing(&self) -> bool {
        !matches!(self, Self::Corrupt(_) | Self::Outcome(_) | Self::TransactionEnded | Self::Unsupported(_))
    }
}
