//! What an error of the engine affects: the one place that decides.

use crate::Error;
use crate::backend::StoreError;
use crate::node::ALL_CALLS;

/// Whom an error concerns. Nobody else waits for it, and nobody else's attempts are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Affects {
    /// Nobody: the message is finished.
    Nobody,
    /// The message, which no retry helps: it becomes a dead letter.
    Message,
    /// The message, which a retry may help: the failure counts as one of its attempts.
    Attempt,
    /// The message's key, which another caller holds, or held while this one ran. The store counts its attempts.
    Key,
    /// The key or the scope, which is at a limit of its own: the failure counts, the message waits ever longer, and nobody
    /// else does.
    Limit,
    /// Every message: the store or the whole engine can't take one now. The processor pauses, and nothing counts.
    Store,
    /// Every message, since the engine ends here: the message is given back.
    Shutdown,
}

impl Affects {
    /// Of an error other than [`Error::Indeterminate`], for which the user's policy decides.
    pub(super) fn of(error: &Error) -> Self {
        match error {
            // It was done, and its outcome was too large to keep, or is of an older type.
            Error::OutcomeNotKept | Error::OutcomeUnreadable(_) => Self::Nobody,
            // None of them becomes another by waiting.
            Error::Mismatch
            | Error::Corrupt(_)
            | Error::Fingerprint(_)
            | Error::Unserializable(_)
            | Error::Indeterminate { .. } => Self::Message,
            // The setup may be put right meanwhile, and so may the rows that a constraint speaks of.
            Error::Panicked | Error::NoSuchTransaction { .. } | Error::CommitRefused(_) => Self::Attempt,
            Error::InProgress { .. } | Error::ClaimLost => Self::Key,
            Error::Overloaded { what, .. } if *what != ALL_CALLS => Self::Limit,
            Error::Overloaded { .. } => Self::Store,
            Error::Store(error) => Self::of_store(error),
            // What ran is not stored. The next delivery learns from the key what became of it.
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
            | StoreError::ReadOnly(_) => Self::Store,
        }
    }

    /// Whether the processor takes no further messages for a while.
    pub(super) fn pauses(self) -> bool {
        matches!(self, Self::Store | Self::Shutdown)
    }
}
