//! One claim: from the store's grant, or from a request whose answer was lost, until it is settled.

use std::time::Duration;

use actix::prelude::*;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::grant::{Answered, ClaimAddr, Settled, Settlement};
use super::lease::Lease;
use super::phase::{Completing, Holding, Phase, Releasing, bring, transaction};
use super::steps::StepTable;
use crate::answer::Answer;
use crate::backend::{Completed, CompletedInTransaction, Held, Persist, Released, Renew, Renewed, Request, StoreError};
use crate::pending_settlements::Pending;
use crate::permit::Permit;
use crate::record::{Owner, SealedOutcome, Steps};
use crate::shared::Shared;
use crate::{Error, EventKind, FencingToken, Key, OnAbandoned, chance};

pub(super) type ToHolder = Answer<Result<Settled, Error>>;

/// What a claim uses on its arbiter.
pub(crate) struct Arbiter<'a> {
    pub(crate) key: &'a Key,
    pub(crate) shared: &'a Shared,
    pub(crate) store: &'a Recipient<Persist>,
}

/// What the claim's actor does next.
#[derive(Debug)]
#[must_use]
pub(crate) enum Next {
    /// Nothing: an answer or a message will arrive.
    Wait,
    /// Call [`Claim::ask_again`] after this pause.
    AskAgain(Duration),
    /// Call [`Claim::ask_for_step`] with this number after this pause.
    AskForStep(Duration, u32),
    /// Another holder has the key. Callers of the key ask the store again; the claim stays until its operation ends.
    LetGo,
    /// The claim has ended. The callers that wait for its key get this outcome, or ask for the key again.
    Ended(Option<SealedOutcome>),
}

/// A claim that the store has granted to this arbiter, or may have granted.
pub(crate) struct Claim {
    owner: Owner,
    on_abandoned: OnAbandoned,
    lease: Lease,
    phase: Phase,
    /// How many renewals the store has not yet answered.
    renewals_in_flight: u32,
    /// Gets the result of the settlement. `None` once it has been sent, or if nobody asked for it.
    holder: Option<ToHolder>,
    /// Set if the store did not accept the settlement at the first try. Boxed, since most claims never need it.
    failing: Option<Box<Failing>>,
    /// The call's permit among those that its arbiter admits.
    permit: Option<Permit>,
    /// The steps of the claim's operation. Boxed, since most operations have none.
    steps: Option<Box<StepTable>>,
}

/// The retries of a settlement, or of the end of a step, that the store has not accepted yet.
pub(super) struct Failing {
    pub(super) since: Instant,
    pub(super) failures: u32,
    /// Past the settling limit: its place among the pending settlements.
    pub(super) pending: Option<Pending>,
}

/// The log target for claims on which nothing happened, from the decision to free them until the store has done so.
const FREEING: &str = "oncekey::freeing";

/// The longest pause between two tries, before and after the settling limit.
const LONGEST_PAUSE: Duration = Duration::from_millis(1_280);
const LONGEST_PAUSE_PENDING: Duration = Duration::from_secs(10);

impl Claim {
    /// Creates a claim that the store has granted.
    pub(crate) fn granted(
        owner: Owner,
        on_abandoned: OnAbandoned,
        asked_at: Instant,
        permit: Permit,
        steps: Option<Box<Steps>>,
    ) -> Self {
        let (lease, permit) = (Lease::new(asked_at), Some(permit));
        let steps = steps.map(|steps| Box::new(StepTable::of(*steps)));
        Self { permit, steps, ..Self::new(owner, on_abandoned, lease, Phase::Running) }
    }

    /// Creates a claim to withdraw, because its answer was lost or came too late. [`ask_again`](Self::ask_again) starts
    /// the withdrawal.
    pub(crate) fn to_withdraw(key: &Key, owner: Owner, on_abandoned: OnAbandoned) -> Self {
        log_to_be_freed(key);
        let lease = Lease::new(Instant::now());
        Self::new(owner, on_abandoned, lease, Phase::Withdrawing)
    }

    fn new(owner: Owner, on_abandoned: OnAbandoned, lease: Lease, phase: Phase) -> Self {
        Self {
            owner,
            on_abandoned,
            lease,
            phase,
            renewals_in_flight: 0,
            holder: None,
            failing: None,
            permit: None,
            steps: None,
        }
    }

    /// Returns whether the claim may never have reached the store. What the key was last used for is then unknown.
    pub(crate) fn is_withdrawing(&self) -> bool {
        matches!(self.phase, Phase::Withdrawing)
    }

    pub(super) fn owner(&self) -> Owner {
        self.owner
    }

    pub(super) fn policy(&self) -> OnAbandoned {
        self.on_abandoned
    }

    pub(super) fn is_running(&self) -> bool {
        self.phase.is_running()
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lease.is_lost()
    }

    /// Returns whether the operation runs in the transaction that completes the claim.
    pub(super) fn is_in_transaction(&self) -> bool {
        matches!(self.phase, Phase::Committing | Phase::Probing)
    }

    /// Frees the permit, because no caller waits for the claim any longer.
    pub(super) fn frees_its_permit(&mut self) {
        self.permit = None;
    }

    pub(super) fn steps(&self) -> Option<&StepTable> {
        self.steps.as_deref()
    }

    pub(super) fn steps_mut(&mut self) -> Option<&mut StepTable> {
        self.steps.as_deref_mut()
    }

    pub(super) fn steps_or_new(&mut self, token: FencingToken) -> &mut StepTable {
        self.steps.get_or_insert_with(|| Box::new(StepTable::new(token)))
    }

    pub(crate) fn lease_left(&self, shared: &Shared) -> Duration {
        self.lease.left(shared.settings.lease)
    }

    /// Renews the lease if the heartbeat is due.
    pub(crate) fn tick(&mut self, arbiter: &Arbiter<'_>, claim: &ClaimAddr) {
        if self.phase.renews() && self.lease.is_due(arbiter.lease()) {
            let sent = self.lease.asks();
            self.renew(arbiter, claim, sent, None);
        }
    }

    /// Asks the store, on the holder's behalf, whether the claim still stands. Only a renewal sent now can prove it.
    pub(crate) fn confirm(
        &mut self,
        reply: oneshot::Sender<Result<(), Error>>,
        arbiter: &Arbiter<'_>,
        claim: &ClaimAddr,
    ) {
        if self.lease.is_lost() || !self.phase.is_running() {
            return drop(reply.send(Err(Error::ClaimLost)));
        }
        self.renew(arbiter, claim, Instant::now(), Some(reply));
    }

    fn renew(
        &mut self,
        arbiter: &Arbiter<'_>,
        claim: &ClaimAddr,
        sent: Instant,
        confirming: Option<oneshot::Sender<Result<(), Error>>>,
    ) {
        self.renewals_in_flight += 1;
        let message = Renew { key: arbiter.key.clone(), owner: self.owner, lease: arbiter.lease() };
        let bring = bring(claim, move |answer| Answered::Renewed { sent, confirming, answer });
        arbiter.ask_store(Request::Renew(message, bring));
    }

    fn on_renewed(
        &mut self,
        sent: Instant,
        answer: Result<Renewed, StoreError>,
        arbiter: &Arbiter<'_>,
    ) -> Result<(), Error> {
        match answer {
            Ok(Renewed::Renewed) => {
                self.lease.renewed(sent);
                if Lease::proves(sent, arbiter.lease()) {
                    return Ok(());
                }
                let what = "the answer to a renewal took longer than the lease";
                Err(Error::Store(StoreError::unknown(what)))
            }
            Ok(Renewed::Lost) => {
                // A settlement in flight may have just ended the claim.
                if self.phase.is_running() && self.lease.loses() {
                    arbiter.tell(EventKind::Lost);
                }
                Err(Error::ClaimLost)
            }
            Err(error) => {
                arbiter.tell(EventKind::StoreFailed);
                Err(Error::Store(error))
            }
        }
    }

    /// Settles the claim for its holder, once the running steps have ended.
    pub(crate) fn settle(
        &mut self,
        settlement: Settlement,
        reply: Option<ToHolder>,
        arbiter: &Arbiter<'_>,
        claim: &ClaimAddr,
    ) -> Next {
        // Past the run limit, the claim has already ended and does not wait for its steps.
        let ready = if self.phase.is_running() {
            self.wait_for_steps(settlement, reply, arbiter)
        } else {
            Some((settlement, reply))
        };
        match ready {
            Some((settlement, reply)) => self.settle_now(settlement, reply, arbiter, claim),
            None => Next::Wait,
        }
    }

    pub(super) fn settle_now(
        &mut self,
        settlement: Settlement,
        reply: Option<ToHolder>,
        arbiter: &Arbiter<'_>,
        claim: &ClaimAddr,
    ) -> Next {
        if !self.phase.is_running() {
            // The run limit has ended the claim.
            if let Some(reply) = reply {
                reply.send(Err(Error::ClaimLost));
            }
            return Next::Wait;
        }
        self.holder = reply;
        self.failing = None;
        self.phase = match settlement {
            Settlement::Complete { outcome, retention } => {
                let retention = if planted!(RetentionFromTheStart) {
                    retention.saturating_sub(arbiter.lease() - self.lease.left(arbiter.lease()))
                } else {
                    retention
                };
                Phase::Completing(Completing { outcome, retention })
            }
            Settlement::CompleteInTransaction { operation, retention } => {
                arbiter.ask_store(transaction(arbiter.key.clone(), self.owner, operation, retention, claim));
                Phase::Committing
            }
            Settlement::Release => {
                log_to_be_freed(arbiter.key);
                Phase::Releasing(Releasing { on_abandoned: self.on_abandoned })
            }
            Settlement::Hold => Self::holding(self.on_abandoned),
            Settlement::Abandon => self.abandoned(),
        };
        self.ask_again(arbiter, claim);
        Next::Wait
    }

    fn holding(on_abandoned: OnAbandoned) -> Phase {
        Phase::Holding(Holding { on_abandoned, is_stored: false })
    }

    fn abandoned(&self) -> Phase {
        match self.on_abandoned {
            OnAbandoned::Hold => Self::holding(OnAbandoned::Hold),
            OnAbandoned::Rerun | OnAbandoned::Resume => Phase::Abandoning,
        }
    }

    /// Settles the claim of a holder that disappeared before it settled the claim itself.
    pub(crate) fn abandon(&mut self, began: bool, arbiter: &Arbiter<'_>, claim: &ClaimAddr) -> Next {
        let settlement = if began { Settlement::Abandon } else { Settlement::Release };
        if self.phase.is_running() { self.settle(settlement, None, arbiter, claim) } else { Next::Wait }
    }

    /// Ends the claim at its run limit. The operation continues, but what it reports later changes nothing. Its running
    /// steps may still record their outcomes.
    pub(crate) fn end_run(&mut self, arbiter: &Arbiter<'_>, claim: &ClaimAddr) -> Next {
        if !self.phase.is_running() {
            return Next::Wait;
        }
        if let Some(next) = self.ends_in_time(arbiter, claim) {
            return next;
        }
        warn!(key = %arbiter.key, "an operation has passed its run limit; its claim is settled as abandoned");
        arbiter.tell(EventKind::RunLimit);
        self.permit = None;
        // A running step may still report its result. The claim sends that to the store even after its own end.
        self.settle_now(Settlement::Abandon, None, arbiter, claim)
    }

    /// Sends the request of the current settlement, for the first time or again.
    pub(crate) fn ask_again(&mut self, arbiter: &Arbiter<'_>, claim: &ClaimAddr) {
        if let Some(request) = self.phase.request(arbiter.key, self.owner, claim) {
            arbiter.ask_store(request);
        }
    }

    /// Handles an answer of the store.
    pub(crate) fn answered(&mut self, answered: Answered, arbiter: &Arbiter<'_>, claim: &ClaimAddr) -> Next {
        match answered {
            Answered::Renewed { sent, confirming, answer } => {
                let was_lost = self.lease.is_lost();
                let mut confirmed = self.on_renewed(sent, answer, arbiter);
                if !self.phase.is_running() {
                    // The claim has ended in the meantime, for example at its run limit.
                    confirmed = confirmed.and(Err(Error::ClaimLost));
                }
                if let Some(reply) = confirming {
                    // The asker may have left.
                    let _ = reply.send(confirmed);
                }
                self.renewals_in_flight = self.renewals_in_flight.saturating_sub(1);
                if self.renewals_in_flight == 0 && self.phase.is_held() {
                    self.ask_again(arbiter, claim);
                }
                if self.lease.is_lost() && !was_lost { Next::LetGo } else { Next::Wait }
            }
            Answered::Completed(Ok(Completed::Stored)) => {
                let outcome = match &self.phase {
                    Phase::Completing(Completing { outcome, .. }) => Some(outcome.clone()),
                    _ => None,
                };
                arbiter.tell(EventKind::Completed);
                self.ends(Ok(Settled::Done), outcome)
            }
            Answered::CompletedInTransaction(Ok(CompletedInTransaction::Stored { outcome })) => {
                arbiter.tell(EventKind::Completed);
                self.ends(Ok(Settled::Committed(outcome.clone())), Some(outcome))
            }
            Answered::CompletedInTransaction(Ok(CompletedInTransaction::RolledBack)) => {
                let settled = match self.phase {
                    // The store did not refuse the commit: it never received it, or could not confirm it in time.
                    Phase::Probing => {
                        let what = "the commit was not confirmed in time, and the transaction was rolled back";
                        Err(Error::Store(StoreError::unavailable(what)))
                    }
                    _ => Ok(Settled::RolledBack),
                };
                self.runs_on(settled, Settlement::Release, arbiter, claim)
            }
            Answered::CompletedInTransaction(Ok(CompletedInTransaction::WrongConnection { wanted })) => {
                let what = "its transactions have connections of another type".to_owned();
                self.runs_on(Err(Error::NoSuchTransaction { wanted, what }), Settlement::Release, arbiter, claim)
            }
            Answered::Completed(Ok(Completed::Lost))
            | Answered::CompletedInTransaction(Ok(CompletedInTransaction::Lost))
            | Answered::Held(Ok(Held::Lost)) => {
                if self.lease.loses() {
                    arbiter.tell(EventKind::Lost);
                }
                self.ends(Err(Error::ClaimLost), None)
            }
            Answered::Step(answered) => self.step_answered(*answered, arbiter, claim),
            Answered::Released(Ok(Released::Unsettled { step })) => {
                warn!(key = %arbiter.key, %step, "the operation ended, but the result of its step is unknown");
                arbiter.tell(EventKind::Held);
                self.ends(Ok(Settled::Done), None)
            }
            // "Lost" is equally good: this arbiter no longer holds the claim.
            Answered::Released(Ok(_)) | Answered::Lapsed(Ok(_)) => {
                if let Phase::Releasing(_) = self.phase {
                    log_freed(arbiter.key);
                }
                arbiter.tell(EventKind::Released);
                self.ends(Ok(Settled::Done), None)
            }
            Answered::Withdrawn(Ok(_)) => {
                log_freed(arbiter.key);
                arbiter.tell(EventKind::Withdrawn);
                self.ends(Ok(Settled::Done), None)
            }
            // A renewal that the store executes after the hold undoes the hold for one lease. The hold is sent once
            // more when the last renewal is answered.
            Answered::Held(Ok(Held::Held)) if self.renewals_in_flight > 0 => {
                self.phase = Phase::Holding(Holding { on_abandoned: self.on_abandoned, is_stored: true });
                self.tell_holder(Ok(Settled::Done));
                Next::Wait
            }
            Answered::Held(Ok(Held::Held)) => {
                arbiter.tell(EventKind::Held);
                self.ends(Ok(Settled::Done), None)
            }
            Answered::Completed(Err(error))
            | Answered::CompletedInTransaction(Err(error))
            | Answered::Released(Err(error))
            | Answered::Lapsed(Err(error))
            | Answered::Withdrawn(Err(error))
            | Answered::Held(Err(error)) => self.on_failure(error, arbiter, claim),
        }
    }

    fn ends(&mut self, settled: Result<Settled, Error>, outcome: Option<SealedOutcome>) -> Next {
        self.permit = None;
        self.tell_holder(settled);
        Next::Ended(outcome)
    }

    /// Sends the result to the holder. Returns whether the holder received it.
    fn tell_holder(&mut self, settled: Result<Settled, Error>) -> bool {
        self.holder.take().is_some_and(|holder| holder.send(settled))
    }

    /// Continues after a transaction that did not complete the claim. The claim stands, and its holder decides what to
    /// do next. If the holder has left, `otherwise` settles the claim.
    fn runs_on(
        &mut self,
        settled: Result<Settled, Error>,
        otherwise: Settlement,
        arbiter: &Arbiter<'_>,
        claim: &ClaimAddr,
    ) -> Next {
        let heard = self.tell_holder(settled);
        self.phase = Phase::Running;
        self.failing = None;
        if heard { Next::Wait } else { self.settle(otherwise, None, arbiter, claim) }
    }

    /// Handles a settlement that the store did not accept or did not answer. Repeating the same request with the same
    /// owner is safe. The claim repeats it for as long as the process lives, because nothing else knows how this claim
    /// is to end.
    fn on_failure(&mut self, error: StoreError, arbiter: &Arbiter<'_>, claim: &ClaimAddr) -> Next {
        arbiter.tell(EventKind::StoreFailed);
        if let Phase::Committing = self.phase {
            if !error.is_unknown() || planted!(UnknownCommitTakenForNo) {
                // If the operation ended its transaction itself, its writes may be partly committed.
                let otherwise = match error {
                    StoreError::TransactionEnded => Settlement::Hold,
                    _ => Settlement::Release,
                };
                return self.runs_on(Err(Error::Store(error)), otherwise, arbiter, claim);
            }
            // Nothing else may be done until it is known whether the transaction was committed.
            self.phase = Phase::Probing;
        }
        let failing = self.failing.get_or_insert_with(|| Box::new(Failing::new()));
        failing.failures += 1;
        let is_past_the_limit = failing.pending.is_none()
            && failing.failures > 2
            && failing.since.elapsed() >= arbiter.shared.settings.settling_limit;
        if planted!(CompletionNotRetried) || !error.is_transient() {
            self.report(error, arbiter);
            return Next::Ended(None);
        }
        if is_past_the_limit {
            self.report(error, arbiter);
            let pending = arbiter.shared.pending.take(self.phase.kind(), self.phase.bytes());
            if pending.is_none() || planted!(PendingSettlementDropped) {
                warn!(key = %arbiter.key, "too many settlements are pending; this claim is left to its lease");
                arbiter.tell(EventKind::SettlementDropped);
                return Next::Ended(None);
            }
            if let Some(failing) = &mut self.failing {
                failing.pending = pending;
            }
        } else if self.phase.holder_is_told_at_once() {
            self.tell_holder(Ok(Settled::Done));
        }
        Next::AskAgain(self.failing.as_deref().map_or(Duration::ZERO, Failing::pause))
    }

    /// Reports a settlement past its limit to the holder, which does not wait any longer.
    fn report(&mut self, error: StoreError, arbiter: &Arbiter<'_>) {
        warn!(key = %arbiter.key, %error, "the store has not taken a settlement within the limit");
        let (event, error) = self.phase.report(error);
        if let Some(event) = event {
            arbiter.tell(event);
        }
        self.permit = None;
        self.tell_holder(if planted!(LostCompletionSwallowed) { Ok(Settled::Done) } else { Err(error) });
    }
}

impl Failing {
    pub(super) fn new() -> Self {
        Self { since: Instant::now(), failures: 0, pending: None }
    }

    /// Returns a growing pause with jitter of up to half, so that many claims that lost one store do not retry in step.
    pub(super) fn pause(&self) -> Duration {
        let longest = if self.pending.is_some() { LONGEST_PAUSE_PENDING } else { LONGEST_PAUSE };
        Duration::from_millis(20 << self.failures.min(9)).min(longest).mul_f64(chance::between(0.5, 1.0))
    }
}

impl Arbiter<'_> {
    fn lease(&self) -> Duration {
        self.shared.settings.lease
    }

    pub(super) fn ask_store(&self, request: Request) {
        // If the backend has ended, the request is dropped, and its reply reports that.
        let _ = self.store.try_send(Persist::Step(request));
    }

    pub(super) fn tell(&self, kind: EventKind) {
        self.shared.events.tell(kind, self.key);
    }
}

/// Logs that a claim on which nothing happened is to be freed. If the process is killed before the next such line, the
/// key lapses as if its operation had begun; the log distinguishes the two cases.
fn log_to_be_freed(key: &Key) {
    debug!(target: FREEING, %key, "the claim is to be freed: nothing happened by it");
}

fn log_freed(key: &Key) {
    debug!(target: FREEING, %key, "the claim is freed");
}
