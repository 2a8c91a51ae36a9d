//! A call on its way through the engine: what it asks, what it is told, and the grant that a running operation holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use actix::prelude::*;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::backend::TransactionOperation;
use crate::key_lock::{Abandon, LockAddr, Settle};
use crate::record::{Owner, SealedOutcome};
use crate::scopes::Share;
use crate::{Attempt, CallPolicy, Error, Fingerprint, Key, OnAbandoned, OnInProgress, OnStoreFailure};

/// Asks the supervisor for a key.
#[derive(Debug)]
pub(crate) struct Begin {
    pub(crate) key: Key,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) on_abandoned: OnAbandoned,
    pub(crate) on_store_failure: OnStoreFailure,
    /// Until when the call waits for another at work on its key; `None` if it does not wait.
    pub(crate) wait_until: Option<Instant>,
    pub(crate) reply: Answer<Decision>,
    /// Counted while the call is anywhere in the engine.
    pub(crate) permit: Permit,
}

impl Message for Begin {
    type Result = ();
}

impl Begin {
    pub(crate) fn new(
        key: Key,
        fingerprint: Fingerprint,
        policy: &CallPolicy,
        reply: Answer<Decision>,
        permit: Permit,
    ) -> Self {
        let wait_until = match policy.on_in_progress {
            OnInProgress::Reject => None,
            // A limit beyond what the clock can hold is no limit worth counting: a century will do.
            OnInProgress::Wait(limit) => {
                Some(Instant::now().checked_add(limit).unwrap_or_else(|| Instant::now() + A_CENTURY))
            }
        };
        Self {
            key,
            fingerprint,
            on_abandoned: policy.on_abandoned.unwrap_or_default(),
            on_store_failure: policy.on_store_failure,
            wait_until,
            reply,
            permit,
        }
    }

    pub(crate) fn refuse(self, error: Error) {
        self.reply.send(Err(error));
    }
}

const A_CENTURY: std::time::Duration = std::time::Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// What a call is told.
pub(crate) type Decision = Result<Admitted, Error>;

/// What a call may do.
#[derive(Debug)]
pub(crate) enum Admitted {
    /// Run the operation, and settle the grant.
    Granted(Grant),
    /// Take this outcome: it was done before.
    Replay(SealedOutcome),
    /// Run the operation without a guard.
    Unguarded,
}

/// Where an answer goes: to a task, or to a plain thread that waits.
#[derive(Debug)]
pub(crate) enum Answer<T> {
    Task(oneshot::Sender<T>),
    /// One of several that the thread waits for, by its number.
    Thread(crossbeam_channel::Sender<(usize, T)>, usize),
}

impl<T> Answer<T> {
    /// Answers, and tells whether somebody listens. A [`Grant`] that nobody takes gives itself up when it is dropped
    /// here.
    pub(crate) fn send(self, answer: T) -> bool {
        match self {
            Self::Task(sender) => sender.send(answer).is_ok(),
            Self::Thread(sender, number) => sender.try_send((number, answer)).is_ok(),
        }
    }

    /// Whether the asker is known to have gone.
    pub(crate) fn is_closed(&self) -> bool {
        match self {
            Self::Task(sender) => sender.is_closed(),
            Self::Thread(..) => false,
        }
    }
}

/// One place among the calls that an arbiter admits; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    taken: Arc<AtomicUsize>,
    /// The place among those of its scope, where these are counted.
    _share: Option<Share>,
}

impl Permit {
    /// Takes a place, or tells that all `limit` are taken.
    pub(crate) fn take(taken: &Arc<AtomicUsize>, limit: usize, share: Option<Share>) -> Option<Self> {
        // One addition, and a second one only for those turned away: the counter may stand above the limit for a
        // moment, but no more than `limit` are ever admitted.
        if taken.fetch_add(1, Ordering::Relaxed) >= limit && !planted!(AdmissionNotCounted) {
            taken.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(Self { taken: Arc::clone(taken), _share: share })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How a holder ends its claim.
#[derive(Debug)]
pub(crate) enum Settlement {
    Complete { outcome: SealedOutcome, retention: std::time::Duration },
    CompleteInTransaction { operation: TransactionOperation, retention: std::time::Duration },
    Release,
    Hold,
}

/// What a holder is told of its settlement.
#[derive(Debug)]
pub(crate) enum Settled {
    /// Done: the claim is no more.
    Done,
    /// The transaction committed, with this outcome.
    Committed(SealedOutcome),
    /// The transaction was rolled back, and the claim still stands.
    RolledBack,
}

/// The right and the duty of one caller: to run the operation, and to settle the key.
///
/// Whoever drops it unsettled leaves its lock to do so: a claim whose operation never began is released, one whose
/// operation was torn down midway is settled as its [`OnAbandoned`] says, at once instead of when its lease lapses.
#[derive(Debug)]
pub(crate) struct Grant {
    lock: LockAddr,
    pub(crate) attempt: Attempt,
    pub(crate) owner: Owner,
    began: bool,
    settled: bool,
    _permit: Permit,
}

impl Grant {
    pub(crate) fn new(lock: LockAddr, attempt: Attempt, owner: Owner, permit: Permit) -> Self {
        Self { lock, attempt, owner, began: false, settled: false, _permit: permit }
    }

    pub(crate) fn lock(&self) -> &LockAddr {
        &self.lock
    }

    /// Whether the claim is no more this grant's to settle.
    #[cfg(feature = "web")]
    pub(crate) fn is_settled(&self) -> bool {
        self.settled
    }

    /// To be called before the operation's first step.
    pub(crate) fn begin(&mut self) {
        self.began = true;
    }

    /// Settles, and waits until the store has it.
    ///
    /// On `Ok(Settled::RolledBack)` and on errors of a transaction the claim still stands and is to be settled again;
    /// after anything else it is not.
    pub(crate) async fn settle(&mut self, settlement: Settlement) -> Result<Settled, Error> {
        let (sender, receiver) = oneshot::channel();
        self.send(settlement, Answer::Task(sender))?;
        let settled = receiver.await.unwrap_or(Err(Error::Stopped));
        self.note(settled)
    }

    /// Settles, and has the answer sent to a plain thread, which hands it to [`note`](Self::note).
    pub(crate) fn settle_for_thread(
        &mut self,
        settlement: Settlement,
        answers: &crossbeam_channel::Sender<(usize, Result<Settled, Error>)>,
        number: usize,
    ) -> Result<(), Error> {
        self.send(settlement, Answer::Thread(answers.clone(), number))
    }

    /// Gives the claim up, if it still stands.
    pub(crate) async fn release_if_held(&mut self) -> Result<(), Error> {
        if self.settled {
            return Ok(());
        }
        self.settle(Settlement::Release).await.map(drop)
    }

    /// Leaves the key as it is: an error of the planted kind.
    pub(crate) fn forget(&mut self) {
        self.settled = true;
    }

    fn send(&mut self, settlement: Settlement, reply: Answer<Result<Settled, Error>>) -> Result<(), Error> {
        self.settled = true;
        let message = Settle { settlement, reply, lock: Arc::clone(&self.lock) };
        self.lock.try_send(message).map_err(|_| Error::Stopped)
    }

    pub(crate) fn note(&mut self, settled: Result<Settled, Error>) -> Result<Settled, Error> {
        if let Ok(Settled::RolledBack) | Err(Error::Store(_) | Error::NoSuchTransaction { .. }) = settled {
            self.settled = false;
        }
        settled
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        if !self.settled && !planted!(DroppedGrantForgotten) {
            let message = Abandon { began: self.began, lock: Arc::clone(&self.lock) };
            // If the lock is gone its arbiter is, and the claim is left to its lease.
            let _ = self.lock.try_send(message);
        }
    }
}
