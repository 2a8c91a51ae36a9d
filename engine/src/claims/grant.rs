//! What a running operation holds: the right and the duty to settle its claim.

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::steps::{StepAnswered, StepCall};
use crate::answer::Answer;
use crate::backend::{
    Completed, CompletedInTransaction, Held, Released, Renewed, StoreError, TransactionOperation, Withdrawn,
};
use crate::record::{Owner, SealedOutcome};
use crate::{Attempt, Error, FencingToken};

/// The address of the actor that keeps a claim, shared: a clone of an actix address allocates twice.
pub(crate) type ClaimAddr = Arc<Recipient<ToClaim>>;

/// A message to a claim. It carries the claim's address, so that the answer to what the claim asks finds its way back.
pub(crate) struct ToClaim {
    pub(crate) what: What,
    pub(crate) claim: ClaimAddr,
}

impl Message for ToClaim {
    type Result = ();
}

impl ToClaim {
    /// Sends a message. It fails if the actor is gone: its arbiter has ended, or the actor panicked.
    pub(crate) fn send(claim: &ClaimAddr, what: What) -> Result<(), Error> {
        claim.try_send(Self { what, claim: Arc::clone(claim) }).map_err(|_| Error::Stopped)
    }
}

/// What a claim is told.
pub(crate) enum What {
    /// The holder ends its claim.
    Settle { settlement: Settlement, reply: Answer<Result<Settled, Error>> },
    /// The holder is gone without having said anything.
    Abandon { began: bool },
    /// The holder asks whether the claim still stands.
    Confirm(oneshot::Sender<Result<(), Error>>),
    /// The claim is old enough to look at its lease.
    Tick,
    /// Ask the store for the step of the claim's phase.
    Ask,
    /// The operation may run for so long.
    LimitRun(Duration),
    /// The operation asks for one of its steps. Boxed, since most operations have none.
    Step(Box<StepCall>),
    /// An answer of the store.
    Answered(Answered),
}

/// An answer of the store to what a claim asked.
pub(crate) enum Answered {
    Renewed {
        sent: Instant,
        /// Who asked for this renewal, if not the heartbeat.
        confirming: Option<oneshot::Sender<Result<(), Error>>>,
        answer: Result<Renewed, StoreError>,
    },
    Completed(Result<Completed, StoreError>),
    CompletedInTransaction(Result<CompletedInTransaction, StoreError>),
    Released(Result<Released, StoreError>),
    Lapsed(Result<Renewed, StoreError>),
    Withdrawn(Result<Withdrawn, StoreError>),
    Held(Result<Held, StoreError>),
    Step(Box<StepAnswered>),
}

/// How a holder ends its claim.
#[derive(Debug)]
pub(crate) enum Settlement {
    Complete {
        outcome: SealedOutcome,
        retention: Duration,
    },
    CompleteInTransaction {
        operation: TransactionOperation,
        retention: Duration,
    },
    /// Nothing happened.
    Release,
    /// Something may have happened, whatever the claim's policy says.
    Hold,
    /// The operation ended without reporting what happened: the claim's `OnAbandoned` decides.
    Abandon,
}

impl Settlement {
    fn is_in_transaction(&self) -> bool {
        matches!(self, Self::CompleteInTransaction { .. })
    }
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
/// If a grant is dropped unsettled, its claim settles itself: a claim whose operation never began is released; one whose
/// operation was torn down midway is settled as its [`OnAbandoned`](crate::OnAbandoned) says, at once instead of when its
/// lease lapses.
#[derive(Debug)]
pub(crate) struct Grant {
    claim: ClaimAddr,
    pub(crate) attempt: Attempt,
    pub(crate) token: FencingToken,
    pub(crate) owner: Owner,
    /// When the claim was asked for, from which its first lease counts.
    asked_at: Instant,
    lease: Duration,
    run_limit: Option<Duration>,
    began: bool,
    settled: bool,
    /// The answer to a settlement whose caller has not read it yet, and may never: its future can be dropped first.
    unread: Option<oneshot::Receiver<Result<Settled, Error>>>,
}

impl Grant {
    pub(crate) fn new(
        claim: ClaimAddr,
        (attempt, token, owner): (Attempt, FencingToken, Owner),
        asked_at: Instant,
        lease: Duration,
        run_limit: Option<Duration>,
    ) -> Self {
        let (began, settled, unread) = (false, false, None);
        Self { claim, attempt, token, owner, asked_at, lease, run_limit, began, settled, unread }
    }

    pub(crate) fn claim(&self) -> &ClaimAddr {
        &self.claim
    }

    /// Whether the claim is no more this grant's to settle.
    #[cfg(feature = "web")]
    pub(crate) fn is_settled(&self) -> bool {
        self.settled
    }

    /// To be called before the operation's first step. A grant older than its lease is confirmed first: its holder may
    /// have slept while the lease lapsed and another took over.
    ///
    /// # Errors
    /// The claim is lost, or the store did not confirm it in time. Nothing may run.
    pub(crate) async fn begin(&mut self) -> Result<(), Error> {
        if self.is_worn() {
            let (reply, confirmed) = oneshot::channel();
            ToClaim::send(&self.claim, What::Confirm(reply))?;
            not_begun(confirmed.await)?;
        }
        self.begins()
    }

    /// [`begin`](Self::begin) for a plain thread.
    pub(crate) fn begin_blocking(&mut self) -> Result<(), Error> {
        if self.is_worn() {
            let (reply, confirmed) = oneshot::channel();
            ToClaim::send(&self.claim, What::Confirm(reply))?;
            not_begun(confirmed.blocking_recv())?;
        }
        self.begins()
    }

    /// The run limit counts from here. A grant may wait for its turn: while it does, nothing runs.
    fn begins(&mut self) -> Result<(), Error> {
        if let Some(limit) = self.run_limit.filter(|_| !planted!(RunLimitForgotten)) {
            ToClaim::send(&self.claim, What::LimitRun(limit))?;
        }
        self.began = true;
        Ok(())
    }

    fn is_worn(&self) -> bool {
        self.asked_at.elapsed() >= self.lease && !planted!(LateGrantUsed)
    }

    /// Settles, and waits until the store has it.
    ///
    /// On `Ok(Settled::RolledBack)` and on errors of a transaction the claim still stands and is to be settled again;
    /// after anything else it is not.
    pub(crate) async fn settle(&mut self, settlement: Settlement) -> Result<Settled, Error> {
        let in_transaction = settlement.is_in_transaction();
        let (sender, receiver) = oneshot::channel();
        if self.send(settlement, Answer::Task(sender)).is_err() {
            return Err(self.stopped(in_transaction));
        }
        let settled = self.unread.insert(receiver).await;
        let settled = settled.unwrap_or_else(|_| Err(self.stopped(in_transaction)));
        self.unread = None;
        self.note(settled)
    }

    /// What it means that the claim's actor is gone before it answers: nothing is known of an operation that began.
    fn stopped(&self, in_transaction: bool) -> Error {
        if !self.began {
            return Error::Stopped;
        }
        let unknown = StoreError::unknown("its arbiter has stopped");
        if in_transaction { Error::CommitUnknown(unknown) } else { Error::OutcomeNotStored(unknown) }
    }

    /// Settles, and has the answer sent to a plain thread, which hands it to [`note`](Self::note).
    pub(crate) fn settle_for_thread(
        &mut self,
        settlement: Settlement,
        answers: &crossbeam_channel::Sender<(usize, Result<Settled, Error>)>,
        number: usize,
    ) -> Result<(), Error> {
        let in_transaction = settlement.is_in_transaction();
        self.send(settlement, Answer::Thread(answers.clone(), number)).map_err(|_| self.stopped(in_transaction))
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
        ToClaim::send(&self.claim, What::Settle { settlement, reply })
    }

    pub(crate) fn note(&mut self, settled: Result<Settled, Error>) -> Result<Settled, Error> {
        if let Ok(Settled::RolledBack) | Err(Error::Store(_) | Error::NoSuchTransaction { .. }) = settled {
            self.settled = false;
        }
        settled
    }
}

/// A claim that could not be confirmed before its operation began: nothing ran.
fn not_begun(confirmed: Result<Result<(), Error>, oneshot::error::RecvError>) -> Result<(), Error> {
    match confirmed.unwrap_or(Err(Error::Stopped)) {
        Err(Error::ClaimLost) => {
            Err(Error::Store(StoreError::unavailable("the claim lapsed before its operation began")))
        }
        other => other,
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        // An answer that arrived, and was not read: after a rollback the claim stands, and this grant still owes its end.
        if let Some(mut unread) = self.unread.take() {
            unread.close();
            if let Ok(settled) = unread.try_recv() {
                let _ = self.note(settled);
            }
        }
        if !self.settled && !planted!(DroppedGrantForgotten) {
            // If the actor is gone its arbiter is, and the claim is left to its lease.
            let _ = ToClaim::send(&self.claim, What::Abandon { began: self.began });
        }
    }
}
