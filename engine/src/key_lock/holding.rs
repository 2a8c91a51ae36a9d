//! A lock that holds a claim: heartbeat, settlement, and what follows when the store does not answer.

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tokio::time::Instant;
use tracing::warn;

use super::{Abandon, Answered, Bring, Confirm, KeyLock, LockAddr, Role, Settle, Tick};
use crate::backend::{
    Complete, CompleteInTransaction, Completed, CompletedInTransaction, Held, Hold, Release, Renew, Renewed, Reply,
    Request, StoreError, TransactionOperation, Withdraw, Withdrawn,
};
use crate::call::{Answer, Settled, Settlement};
use crate::record::{Owner, SealedOutcome};
use crate::{Error, EventKind, OnAbandoned, chance};

/// A claim that the store has granted to this lock, or may have.
pub(crate) struct Holding {
    owner: Owner,
    on_abandoned: OnAbandoned,
    /// When the lease was last known to begin anew: the time at which that was asked for, not answered.
    renewed_at: Instant,
    renewing: bool,
    /// Who waits to hear that the claim still stands.
    confirming: Vec<tokio::sync::oneshot::Sender<Result<(), Error>>>,
    lost: bool,
    settling: Option<Settling>,
}

struct Settling {
    step: SettlingStep,
    /// Who is told; `None` once it has been, or where nobody asked.
    reply: Option<Answer<Result<Settled, Error>>>,
    /// When the store first failed to take it.
    failing_since: Option<Instant>,
    tries: u32,
}

/// What is asked of the store until it answers. A transaction's operation can be sent only once: after an unknown
/// commit the record is read by its owner, which is what `Probe` does.
#[derive(Clone)]
enum SettlingStep {
    Complete {
        outcome: SealedOutcome,
        retention: Duration,
    },
    Transaction,
    Probe,
    Release,
    Hold,
    /// Takes back a claim of which it is unknown whether it was granted.
    Recover,
}

impl Settling {
    fn new(step: SettlingStep, reply: Option<Answer<Result<Settled, Error>>>) -> Self {
        Self { step, reply, failing_since: None, tries: 0 }
    }
}

impl Holding {
    /// A claim that was granted.
    pub(crate) fn granted(owner: Owner, on_abandoned: OnAbandoned, asked_at: Instant) -> Self {
        Self {
            owner,
            on_abandoned,
            renewed_at: asked_at,
            renewing: false,
            confirming: Vec::new(),
            lost: false,
            settling: None,
        }
    }

    /// A claim that may have been granted, but whose answer was not heard: it is to be taken back.
    pub(crate) fn unheard(owner: Owner, on_abandoned: OnAbandoned) -> Self {
        let settling = Settling::new(SettlingStep::Recover, None);
        Self { settling: Some(settling), ..Self::granted(owner, on_abandoned, Instant::now()) }
    }

    pub(super) fn is_recovering(&self) -> bool {
        self.settling.as_ref().is_some_and(|settling| matches!(settling.step, SettlingStep::Recover))
    }

    /// A claim that is being given up is not kept alive for it: if the store can't hear of it, the lease's end is next.
    fn wants_its_lease(&self) -> bool {
        self.settling.as_ref().is_none_or(|settling| {
            !matches!(settling.step, SettlingStep::Release | SettlingStep::Hold | SettlingStep::Recover)
        })
    }

    pub(super) fn lease_left(&self, lease: Duration) -> Duration {
        lease.saturating_sub(self.renewed_at.elapsed())
    }
}

impl Handler<Tick> for KeyLock {
    type Result = ();

    fn handle(&mut self, Tick(lock): Tick, _: &mut Self::Context) {
        let lease = self.neighbours.shared.settings.lease;
        if let Role::Holding(holding) = &self.role
            && holding.wants_its_lease()
            && !planted!(HeartbeatStopped)
            && holding.renewed_at.elapsed() >= lease / 3
        {
            self.renew(lock);
        }
    }
}

impl Handler<Confirm> for KeyLock {
    type Result = ();

    fn handle(&mut self, Confirm { reply, lock }: Confirm, _: &mut Self::Context) {
        match &mut self.role {
            Role::Holding(holding) if !holding.lost => {
                holding.confirming.push(reply);
                self.renew(lock);
            }
            _ => drop(reply.send(Err(Error::ClaimLost))),
        }
    }
}

impl KeyLock {
    fn renew(&mut self, lock: LockAddr) {
        let Role::Holding(holding) = &mut self.role else { return };
        if holding.renewing || holding.lost {
            return;
        }
        holding.renewing = true;
        let (key, owner, sent) = (self.key.clone(), holding.owner, Instant::now());
        let message = Renew { key, owner, lease: self.neighbours.shared.settings.lease };
        self.ask_store(Request::Renew(
            message,
            Reply::new(move |answer| Bring::to(lock, Answered::Renewed { sent, answer })),
        ));
    }

    fn on_renewed(&mut self, sent: Instant, answer: Result<Renewed, StoreError>) {
        let Role::Holding(holding) = &mut self.role else { return };
        holding.renewing = false;
        let confirming = std::mem::take(&mut holding.confirming);
        let answer = match answer {
            Ok(Renewed::Renewed) => {
                holding.renewed_at = sent;
                Ok(())
            }
            // While a settlement is under way the claim may be gone because it has just been settled.
            Ok(Renewed::Lost) if holding.settling.is_some() => Ok(()),
            Ok(Renewed::Lost) => {
                holding.lost = true;
                self.tell(EventKind::Lost);
                Err(Error::ClaimLost)
            }
            Err(error) => {
                self.tell(EventKind::StoreFailed);
                Err(Error::Store(error))
            }
        };
        for reply in confirming {
            let _ = reply.send(answer.clone());
        }
    }

    fn settle(&mut self, settlement: Settlement, reply: Option<Answer<Result<Settled, Error>>>, lock: LockAddr) {
        let Role::Holding(holding) = &mut self.role else {
            if let Some(reply) = reply {
                reply.send(Err(Error::ClaimLost));
            }
            return;
        };
        let since_the_start =
            if planted!(RetentionFromTheStart) { holding.renewed_at.elapsed() } else { Duration::ZERO };
        let begin = |step| holding.settling = Some(Settling::new(step, reply));
        match settlement {
            Settlement::Complete { outcome, retention } => {
                begin(SettlingStep::Complete { outcome, retention: retention.saturating_sub(since_the_start) })
            }
            Settlement::Release => begin(SettlingStep::Release),
            Settlement::Hold => begin(SettlingStep::Hold),
            Settlement::CompleteInTransaction { operation, retention } => {
                begin(SettlingStep::Transaction);
                return self.transact(operation, retention, lock);
            }
        }
        self.settle_step(lock);
    }

    fn transact(&mut self, operation: TransactionOperation, retention: Duration, lock: LockAddr) {
        let Role::Holding(holding) = &self.role else { return };
        let message = CompleteInTransaction { key: self.key.clone(), owner: holding.owner, retention, operation };
        let reply = Reply::new(move |answer| Bring::to(lock, Answered::CompletedInTransaction(answer)));
        self.ask_store(Request::CompleteInTransaction(message, reply));
    }

    /// Sends the step of the settlement that is under way, for the first time or again.
    pub(super) fn settle_step(&mut self, lock: LockAddr) {
        let Role::Holding(holding) = &mut self.role else { return };
        let (key, owner, Some(settling)) = (self.key.clone(), holding.owner, &mut holding.settling) else { return };
        settling.tries += 1;
        let request = match settling.step.clone() {
            SettlingStep::Complete { outcome, retention } => Request::Complete(
                Complete { key, owner, outcome, retention },
                Reply::new(move |answer| Bring::to(lock, Answered::Completed(answer))),
            ),
            SettlingStep::Probe => return self.transact(TransactionOperation::probe(), Duration::ZERO, lock),
            SettlingStep::Recover => Request::Withdraw(
                Withdraw { key, owner },
                Reply::new(move |answer| Bring::to(lock, Answered::Withdrawn(answer))),
            ),
            SettlingStep::Release => Request::Release(
                Release { key, owner },
                Reply::new(move |answer| Bring::to(lock, Answered::Released(answer))),
            ),
            SettlingStep::Hold => {
                Request::Hold(Hold { key, owner }, Reply::new(move |answer| Bring::to(lock, Answered::Held(answer))))
            }
            // Sent once, by `settle`.
            SettlingStep::Transaction => return,
        };
        self.ask_store(request);
    }

    /// Tells the holder, and ends its claim here.
    fn settled(&mut self, settled: Result<Settled, Error>, outcome: Option<SealedOutcome>) {
        self.tell_holder(settled);
        self.retire(outcome);
    }

    /// Whether the holder was there to hear it.
    fn tell_holder(&mut self, settled: Result<Settled, Error>) -> bool {
        match &mut self.role {
            Role::Holding(Holding { settling: Some(Settling { reply, .. }), .. }) => {
                reply.take().is_some_and(|reply| reply.send(settled))
            }
            _ => false,
        }
    }

    pub(super) fn on_claim_answered(&mut self, answered: Answered, lock: LockAddr, ctx: &mut Context<Self>) {
        if let Answered::Renewed { sent, answer } = answered {
            return self.on_renewed(sent, answer);
        }
        let Role::Holding(Holding { settling: Some(settling), .. }) = &mut self.role else { return };
        let step = settling.step.clone();
        match answered {
            Answered::Completed(Ok(Completed::Stored)) => {
                let SettlingStep::Complete { outcome, .. } = step else { return };
                self.tell(EventKind::Completed);
                self.settled(Ok(Settled::Done), Some(outcome));
            }
            Answered::Completed(Ok(Completed::Lost))
            | Answered::CompletedInTransaction(Ok(CompletedInTransaction::Lost)) => self.on_lost(),
            Answered::CompletedInTransaction(Ok(CompletedInTransaction::Stored { outcome })) => {
                self.tell(EventKind::Completed);
                self.settled(Ok(Settled::Committed(outcome.clone())), Some(outcome));
            }
            Answered::CompletedInTransaction(Ok(CompletedInTransaction::RolledBack)) => {
                self.keep_holding(Ok(Settled::RolledBack), lock);
            }
            Answered::CompletedInTransaction(Ok(CompletedInTransaction::WrongConnection { wanted })) => {
                let what = "its transactions have connections of another type".to_owned();
                self.keep_holding(Err(Error::NoSuchTransaction { wanted, what }), lock);
            }
            Answered::Released(Ok(_)) => {
                // Lost is as good: the claim is not ours. After an unheard answer it says that it is done.
                if !matches!(step, SettlingStep::Recover) {
                    self.tell(EventKind::Released);
                }
                self.settled(Ok(Settled::Done), None);
            }
            Answered::Withdrawn(Ok(Withdrawn)) => self.settled(Ok(Settled::Done), None),
            Answered::Held(Ok(Held::Held)) => {
                self.tell(EventKind::Held);
                self.settled(Ok(Settled::Done), None);
            }
            Answered::Held(Ok(Held::Lost)) => self.on_lost(),
            Answered::Completed(Err(error))
            | Answered::CompletedInTransaction(Err(error))
            | Answered::Released(Err(error))
            | Answered::Withdrawn(Err(error))
            | Answered::Held(Err(error)) => self.on_settling_failed(step, error, lock, ctx),
            Answered::Renewed { .. } | Answered::Watched(_) | Answered::Verdict(_) | Answered::Resolved(_) => {}
        }
    }

    fn on_lost(&mut self) {
        if let Role::Holding(holding) = &mut self.role
            && !std::mem::replace(&mut holding.lost, true)
        {
            self.tell(EventKind::Lost);
        }
        self.settled(Err(Error::ClaimLost), None);
    }

    /// The transaction is known not to have committed: its claim stands, and its holder decides what next. If the holder
    /// has gone meanwhile, nothing happened, and the key is free.
    fn keep_holding(&mut self, settled: Result<Settled, Error>, lock: LockAddr) {
        let heard = self.tell_holder(settled);
        if let Role::Holding(holding) = &mut self.role {
            holding.settling = None;
        }
        if !heard {
            self.settle(Settlement::Release, None, lock);
        }
    }

    /// The store did not take the step, or did not say. The same step by the same owner is safe to repeat, so it is,
    /// until the limit: while it lasts, the sweep keeps the lease renewed.
    fn on_settling_failed(&mut self, step: SettlingStep, error: StoreError, lock: LockAddr, ctx: &mut Context<Self>) {
        self.tell(EventKind::StoreFailed);
        if let SettlingStep::Transaction = step {
            if !error.is_unknown() || planted!(UnknownCommitTakenForNo) {
                return self.keep_holding(Err(Error::Store(error)), lock);
            }
            // Nothing else may be done until it is known whether it was committed.
            self.set_step(SettlingStep::Probe);
        }
        let limit = self.neighbours.shared.settings.settling_limit;
        let Role::Holding(Holding { settling: Some(settling), .. }) = &mut self.role else { return };
        let spent = settling.failing_since.get_or_insert_with(Instant::now).elapsed();
        let tries = settling.tries;
        if planted!(CompletionNotRetried) || !error.is_passing() || (spent >= limit && tries > 2) {
            return self.give_up(step, error);
        }
        // Who gives a claim up need not wait for the store to hear it: the caller of a failed operation has its error.
        if matches!(step, SettlingStep::Release | SettlingStep::Hold) {
            self.tell_holder(Ok(Settled::Done));
        }
        let pause = Duration::from_millis(20 << tries.min(6)).mul_f64(chance::between(0.5, 1.0));
        self.may_rest = false;
        ctx.run_later(pause, move |lock_actor, _| lock_actor.settle_step(lock));
    }

    fn set_step(&mut self, step: SettlingStep) {
        if let Role::Holding(Holding { settling: Some(settling), .. }) = &mut self.role {
            settling.step = step;
        }
    }

    /// Past the limit: the claim is left to its lease, and the loss is told.
    fn give_up(&mut self, step: SettlingStep, error: StoreError) {
        match step {
            SettlingStep::Complete { .. } | SettlingStep::Transaction | SettlingStep::Probe => {
                warn!(key = %self.key, %error, "an outcome could not be stored; its claim is left to its lease");
                self.tell(EventKind::OutcomeNotStored);
                let swallowed = planted!(LostCompletionSwallowed);
                self.settled(if swallowed { Ok(Settled::Done) } else { Err(Error::OutcomeNotStored(error)) }, None);
            }
            SettlingStep::Release | SettlingStep::Hold | SettlingStep::Recover => {
                warn!(key = %self.key, %error, "a claim could not be given up; it is left to its lease");
                self.settled(Err(Error::Store(error)), None);
            }
        }
    }
}

impl Handler<Settle> for KeyLock {
    type Result = ();

    fn handle(&mut self, Settle { settlement, reply, lock }: Settle, _: &mut Self::Context) {
        self.settle(settlement, Some(reply), lock);
    }
}

impl Handler<Abandon> for KeyLock {
    type Result = ();

    fn handle(&mut self, Abandon { began, lock }: Abandon, _: &mut Self::Context) {
        let Role::Holding(holding) = &self.role else { return };
        let settlement = match holding.on_abandoned {
            OnAbandoned::Hold if began => Settlement::Hold,
            _ => Settlement::Release,
        };
        self.settle(settlement, None, Arc::clone(&lock));
    }
}
