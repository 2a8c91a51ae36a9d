//! The phases of a claim. Each phase states whether the lease is renewed, what the store is asked for, and what the
//! holder gets when the store does not accept it.

use std::sync::Arc;
use std::time::Duration;

use super::grant::{Answered, ClaimAddr, ToClaim, What};
use crate::backend::{
    Complete, CompleteInTransaction, Hold, Release, Renew, Reply, Request, StoreError, TransactionOperation, Withdraw,
};
use crate::pending_settlements::PendingKind;
use crate::record::{Owner, SealedOutcome};
use crate::{Error, EventKind, Key, OnAbandoned};

/// The phase of a claim.
pub(crate) enum Phase {
    /// The claim's operation runs, or is about to.
    Running,
    Completing(Completing),
    Committing,
    Probing,
    Releasing(Releasing),
    Abandoning,
    Holding(Holding),
    Withdrawing,
}

/// The properties of a phase.
struct Traits {
    renews: bool,
    /// The holder need not wait until the store accepts it, because the holder has its own error to return.
    holder_is_told_at_once: bool,
}

/// The outcome is being sent to the store.
pub(crate) struct Completing {
    pub(crate) outcome: SealedOutcome,
    pub(crate) retention: Duration,
}

/// The claim is being released: nothing happened.
pub(crate) struct Releasing {
    pub(crate) on_abandoned: OnAbandoned,
}

/// Something may have happened: the key is to become indeterminate.
pub(crate) struct Holding {
    pub(crate) on_abandoned: OnAbandoned,
    /// The store has already accepted the hold once.
    pub(crate) is_stored: bool,
}

impl Phase {
    fn traits(&self) -> Traits {
        match self {
            Self::Running | Self::Completing(_) | Self::Committing | Self::Probing => {
                Traits { renews: true, holder_is_told_at_once: false }
            }
            // If the lease lapsed under Rerun before the store accepted the hold, another caller could take over,
            // contrary to what the operation reported. Under Hold, a lapse has the same result as the hold.
            Self::Holding(Holding { on_abandoned, is_stored }) => Traits {
                renews: *on_abandoned != OnAbandoned::Hold && !is_stored && !planted!(HoldNotRenewed),
                holder_is_told_at_once: true,
            },
            // Nothing happened. A lapse under Rerun frees the key, which is right. Under Hold it would make a key
            // indeterminate on which nothing happened.
            Self::Releasing(Releasing { on_abandoned }) => {
                Traits { renews: *on_abandoned == OnAbandoned::Hold, holder_is_told_at_once: true }
            }
            // The lease is meant to end.
            Self::Abandoning => Traits { renews: false, holder_is_told_at_once: true },
            // No caller holds the claim. A renewal would need the store just as the withdrawal does, so it would gain
            // nothing.
            Self::Withdrawing => Traits { renews: false, holder_is_told_at_once: false },
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        matches!(self, Self::Running)
    }

    /// Returns whether the store has accepted the hold, and a renewal may undo it.
    pub(crate) fn is_held(&self) -> bool {
        matches!(self, Self::Holding(Holding { is_stored: true, .. }))
    }

    pub(crate) fn renews(&self) -> bool {
        self.traits().renews
    }

    pub(crate) fn holder_is_told_at_once(&self) -> bool {
        self.traits().holder_is_told_at_once
    }

    /// Returns the kind of settlement that it counts as past the settling limit.
    pub(crate) fn kind(&self) -> PendingKind {
        match self {
            Self::Releasing(_) | Self::Withdrawing => PendingKind::Frees,
            _ => PendingKind::Ends,
        }
    }

    /// Returns how many bytes it keeps until the store accepts them.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Completing(Completing { outcome, .. }) => outcome.as_stored().len(),
            _ => 0,
        }
    }

    /// Returns what to report if the store has not accepted it within the limit.
    pub(crate) fn report(&self, error: StoreError) -> (Option<EventKind>, Error) {
        match self {
            Self::Completing(_) => (Some(EventKind::OutcomeNotStored), Error::OutcomeNotStored(error)),
            Self::Committing | Self::Probing => (Some(EventKind::OutcomeNotStored), Error::CommitUnknown(error)),
            _ => (None, Error::Store(error)),
        }
    }

    /// Returns the request for the store, which may be repeated. `None` if there is nothing to ask, or if the request
    /// can be sent only once because it carries a user's operation.
    pub(crate) fn request(&self, key: &Key, owner: Owner, claim: &ClaimAddr) -> Option<Request> {
        let key = key.clone();
        Some(match self {
            Self::Running | Self::Committing => return None,
            Self::Completing(Completing { outcome, retention }) => Request::Complete(
                Complete { key, owner, outcome: outcome.clone(), retention: *retention },
                bring(claim, Answered::Completed),
            ),
            Self::Probing => transaction(key, owner, TransactionOperation::probe(), Duration::ZERO, claim),
            Self::Releasing(_) => Request::Release(Release { key, owner }, bring(claim, Answered::Released)),
            Self::Abandoning => {
                let ends_now = Renew { key, owner, lease: Duration::ZERO };
                Request::Renew(ends_now, bring(claim, Answered::Lapsed))
            }
            Self::Holding(_) => Request::Hold(Hold { key, owner }, bring(claim, Answered::Held)),
            Self::Withdrawing => Request::Withdraw(Withdraw { key, owner }, bring(claim, Answered::Withdrawn)),
        })
    }
}

/// Returns the request that runs the user's operation in the store's transaction.
pub(crate) fn transaction(
    key: Key,
    owner: Owner,
    operation: TransactionOperation,
    retention: Duration,
    claim: &ClaimAddr,
) -> Request {
    let message = CompleteInTransaction { key, owner, retention, operation };
    Request::CompleteInTransaction(message, bring(claim, Answered::CompletedInTransaction))
}

/// Returns a reply that sends the answer back to the claim. If the claim's actor is gone, nothing can use the answer.
pub(crate) fn bring<T: 'static>(
    claim: &ClaimAddr,
    answered: impl FnOnce(Result<T, StoreError>) -> Answered + Send + 'static,
) -> Reply<T> {
    let claim = Arc::clone(claim);
    Reply::new(move |answer| drop(ToClaim::send(&claim, What::Answered(answered(answer)))))
}
