//! Decides what an error of the engine affects. No other code decides this.

use crate::Error;
use crate::backend::StoreError;
use crate::node::ALL_CALLS;

/// What an error concerns. No other message waits for it or counts an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Affects {
    /// Nothing: the message is finished.
    Nobody,
    /// The message, and no retry helps: it becomes a dead letter.
    Message,
    /// The message, and a retry may help: the failure counts as one of its attempts.
    Attempt,
    /// The message's key, which another caller holds or took over while this one ran. The store counts the attempts.
    Key,
    /// A key or scope that has reached its own limit. The failure counts and the message's delay grows. No other
    /// message waits.
    Limit,
    /// Every message: the store or the whole engine cannot process any now. The processor pauses, and nothing counts.
    Store,
    /// Every message, because the engine is shutting down: messages are given back.
    Shutdown,
}

impl Affects {
    /// Classifies an error. For [`Error::Indeterminate`], the user's policy can override the result.
    pub(super) fn of(error: &Error) -> Self {
        match error {
            // The operation ran. Its outcome was too large to keep, or has an older type.
            Error::OutcomeNotKept | Error::OutcomeUnreadable(_) => Self::Nobody,
            // Waiting does not resolve any of these.
            Error::Mismatch
            | Error::Corrupt(_)
            | Error::Fingerprint(_)
            | Error::Unserializable(_)
            | Error::Indeterminate { .. } => Self::Message,
            // A retry may succeed: someone may fix the setup, or change the rows that violate the constraint.
            Error::Panicked | Error::NoSuchTransaction { .. } | Error::CommitRefused(_) => Self::Attempt,
            Error::InProgress { .. } | Error::ClaimLost => Self::Key,
            Error::Overloaded { what, .. } if *what != ALL_CALLS => Self::Limit,
            Error::Overloaded { .. } => Self::Store,
            Error::Store(error) => Self::of_store(error),
            // The operation ran, but its outcome may not be stored. The next delivery learns the state from the key.
            Error::OutcomeNotStored(error) | Error::CommitUnknown(error) => match Self::of_store(error) {
                Self::Message => Self::Attempt,
                other => other,
            },
            Error::ShuttingDown | Error::Stopped => Self::Shutdown,
        }
    }

    fn of_store(error: &StoreError) -> Self {
        match error {
            StoreError::Corrupt(_) | StoreError::Outcome(_) => Self::Message,
            StoreError::Unsupported(_) | StoreError::TransactionEnded => Self::Attempt,
            StoreError::Unavailable(_)
            | StoreError::Unknown(_)
            | StoreError::Overloaded(_)
            | StoreError::Full(_)
            | StoreError::ReadOnly(_)
            | StoreError::Replaced(_) => Self::Store,
        }
    }

    /// Returns whether the processor takes no new messages for a while.
    pub(super) fn pauses(self) -> bool {
        matches!(self, Self::Store | Self::Shutdown)
    }
}
