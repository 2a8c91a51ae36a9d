//! The grant of a running operation: its right to run, and its duty to settle the claim.

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

/// The address of the actor that keeps a claim. It is shared because cloning an actix address allocates twice.
pub(crate) type ClaimAddr = Arc<Recipient<ToClaim>>;

/// A message to a claim. It carries the claim's address, so that the store's answers can be sent back there.
pub(crate) struct ToClaim {
    pub(crate) what: What,
    pub(crate) claim: ClaimAddr,
}

impl Message for ToClaim {
    type Result = ();
}

impl ToClaim {
    /// Sends a message. Fails if the actor is gone because its arbiter has ended or the actor has panicked.
    pub(crate) fn send(claim: &ClaimAddr, what: What) -> Result<(), Error> {
        claim.try_send(Self { what, claim: Arc::clone(claim) }).map_err(|_| Error::Stopped)
    }
}

/// The content of a message to a claim.
pub(crate) enum What {
    /// The holder settles its claim.
    Settle { settlement: Settlement, reply: Answer<Result<Settled, Error>> },
    /// The holder is gone without settling its claim.
    Abandon { began: bool },
    /// The holder asks whether the claim still stands.
    Confirm(oneshot::Sender<Result<(), Error>>),
    /// The claim is old enough to check its lease.
    Tick,
    /// Asks the store for the request of the claim's phase.
    Ask,
    /// Starts the operation's run limit.
    LimitRun(Duration),
    /// The operation calls one of its steps. Boxed, since most operations have none.
    Step(Box<StepCall>),
    /// An answer of the store.
    Answered(Answered),
}

/// The store's answer to a claim's request.
pub(crate) enum Answered {
    Renewed {
        sent: Instant,
        /// The holder that asked for this renewal; `None` for the heartbeat.
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

/// How a holder settles its claim.
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
    /// Something may have happened. The key becomes indeterminate, whatever the claim's policy says.
    Hold,
    /// The operation ended without reporting what happened: the claim's `OnAbandoned` decides.
    Abandon,
}

impl Settlement {
    fn is_in_transaction(&self) -> bool {
        matches!(self, Self::CompleteInTransaction { .. })
    }
}

/// The result of a settlement.
#[derive(Debug)]
pub(crate) enum Settled {
    /// The claim has ended.
    Done,
    /// The transaction committed with this outcome.
    Committed(SealedOutcome),
    /// The transaction was rolled back, and the claim still stands.
    RolledBack,
}

/// One caller's right to run the operation, and its duty to settle the key.
///
/// If a grant is dropped unsettled, its claim settles itself. A claim whose operation never began is released. A claim
/// whose operation was dropped midway is settled by its [`OnAbandoned`](crate::OnAbandoned), at once and not only when
/// its lease lapses.
#[derive(Debug)]
pub(crate) struct Grant {
    claim: ClaimAddr,
    pub(crate) attempt: Attempt,
    pub(crate) token: FencingToken,
    pub(crate) owner: Owner,
    /// When the claim was requested. Its first lease counts from here.
    asked_at: Instant,
    lease: Duration,
    run_limit: Option<Duration>,
    began: bool,
    settled: bool,
    /// The answer to a settlement whose caller has not read it yet, and may never read it if its future is dropped.
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

    /// Returns whether this grant no longer has to settle its claim.
    #[cfg(feature = "web")]
    pub(crate) fn is_settled(&self) -> bool {
        self.settled
    }

    /// Marks the operation as begun. Call it before the operation's first action. A grant older than its lease is
    /// confirmed first: its holder may have slept while the lease lapsed and another holder took over.
    ///
    /// # Errors
    /// The claim is lost, or the store did not confirm it in time. The operation must not run.
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

    /// Starts the run limit here: while a grant waits for its turn, nothing runs.
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

    /// Settles the claim, and waits until the store has accepted the settlement.
    ///
    /// After `Ok(Settled::RolledBack)`, and after errors of a transaction, the claim still stands and must be settled
    /// again. After any other result it has ended.
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

    /// Returns the error for a claim actor that stopped before it answered. If the operation began, nobody knows its
    /// result.
    fn stopped(&self, in_transaction: bool) -> Error {
        if !self.began {
            return Error::Stopped;
        }
        let unknown = StoreError::unknown("its arbiter has stopped");
        if in_transaction { Error::CommitUnknown(unknown) } else { Error::OutcomeNotStored(unknown) }
    }

    /// Settles the claim. The answer goes to a plain thread, which passes it to [`note`](Self::note).
    pub(crate) fn settle_for_thread(
        &mut self,
        settlement: Settlement,
        answers: &crossbeam_channel::Sender<(usize, Result<Settled, Error>)>,
        number: usize,
    ) -> Result<(), Error> {
        let in_transaction = settlement.is_in_transaction();
        self.send(settlement, Answer::Thread(answers.clone(), number)).map_err(|_| self.stopped(in_transaction))
    }

    /// Releases the claim, if it still stands.
    pub(crate) async fn release_if_held(&mut self) -> Result<(), Error> {
        if self.settled {
            return Ok(());
        }
        self.settle(Settlement::Release).await.map(drop)
    }

    /// Leaves the key as it is. Used only by a planted bug.
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

/// Maps a failed confirmation before the operation began to an error that says that nothing ran.
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
        // An answer arrived but was not read. After a rollback the claim stands, and this grant must still settle it.
        if let Some(mut unread) = self.unread.take() {
            unread.close();
            if let Ok(settled) = unread.try_recv() {
                let _ = self.note(settled);
            }
        }
        if !self.settled && !planted!(DroppedGrantForgotten) {
            // If the actor is gone, its arbiter is too, and the claim is left to its lease.
            let _ = ToClaim::send(&self.claim, What::Abandon { began: self.began });
        }
    }
}
