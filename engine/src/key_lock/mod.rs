//! One key's state machine while the key is in flight: an actor that lives from the claim to its end.
//!
//! A lock plays one of three roles. It **holds** a claim for a caller of this arbiter ([`holding`]): it renews the
//! lease, lets other callers of the key wait, and settles the claim. It **follows** a claim that is held elsewhere, for
//! callers here that wait ([`following`]). Or it has an abandoned key **reconciled** ([`reconciling`]).
//!
//! It ends by a handshake. When its role is played it tells the supervisor, which forgets the address; what came in
//! meanwhile is still answered or handed back, and when the last address is dropped, actix ends the actor. Under load the
//! supervisor lets it rest for a moment instead, and gives it the next key: see [`Resting`](crate::resting::Resting).

mod following;
mod holding;
mod part;
mod reconciling;

use std::fmt;
use std::sync::Arc;

use actix::prelude::*;
use tokio::time::Instant;

use crate::backend::{
    Changed, Completed, CompletedInTransaction, Held, Released, Renewed, Request, Resolved, StoreError, Withdrawn,
};
use crate::call::{Admitted, Answer, Begin, Settled, Settlement};
use crate::record::SealedOutcome;
use crate::shared::CountedLock;
use crate::supervisor::{Neighbours, Retired};
use crate::{Error, EventKind, Fingerprint, Key, Verdict};

pub(crate) use following::Following;
pub(crate) use holding::Holding;
pub(crate) use part::Part;
pub(crate) use reconciling::Reconciling;

/// A lock's address, shared: a clone of an actix `Addr` allocates twice.
pub(crate) type LockAddr = Arc<Addr<KeyLock>>;

/// Owned by its arbiter's supervisor, which alone starts it, and which it tells when it is done.
pub(crate) struct KeyLock {
    key: Key,
    /// Tells this lock from a later one of the same key.
    id: u64,
    neighbours: Arc<Neighbours>,
    fingerprint: Fingerprint,
    role: Role,
    waiters: Vec<Begin>,
    /// Whether another key may follow this one here: not once a timer was set, or an address given away that the
    /// supervisor does not count, since what comes by them could come in the time of the other key.
    may_rest: bool,
    _counted: CountedLock,
}

/// A lock that keeps more than this of its last outcome is not worth keeping.
const LARGEST_KEPT_OUTCOME: usize = 4_096;

/// What the lock is there for.
pub(crate) enum Role {
    Holding(Holding),
    Following(Following),
    Reconciling(Reconciling),
    /// The role is played: what still comes in gets this outcome, or goes back to the supervisor.
    Retired(Option<SealedOutcome>),
}

impl KeyLock {
    /// Starts a lock on the current arbiter.
    pub(crate) fn start(neighbours: Arc<Neighbours>, part: Part) -> LockAddr {
        let Part { key, id, fingerprint, role, waiting: waiters } = part;
        let counted = CountedLock::new(&neighbours.shared);
        let lock = Self { key, id, neighbours, fingerprint, role, waiters, may_rest: true, _counted: counted };
        Arc::new(Self::create(|ctx| {
            // Before the first message, not in `started`: admission is counted elsewhere, and this bound must never be
            // the one that is met.
            ctx.set_mailbox_capacity(usize::MAX >> 3);
            lock
        }))
    }

    fn ask_store(&self, request: Request) {
        self.neighbours.ask_store(request);
    }

    fn tell(&self, kind: EventKind) {
        self.neighbours.shared.events.tell(kind, &self.key);
    }

    /// Ends the lock. Whoever waits takes this outcome, or goes back to the supervisor to try again.
    fn retire(&mut self, outcome: Option<SealedOutcome>) {
        let mut resubmit = std::mem::take(&mut self.waiters);
        if planted!(WaitersNotWoken) {
            std::mem::forget(std::mem::take(&mut resubmit));
        }
        if let Some(outcome) = &outcome {
            for waiter in resubmit.drain(..) {
                self.tell(EventKind::Hit);
                waiter.reply.send(Ok(Admitted::Replay(outcome.clone())));
            }
        }
        let is_small = outcome.as_ref().is_none_or(|outcome| outcome.as_stored().len() <= LARGEST_KEPT_OUTCOME);
        let may_rest = self.may_rest && is_small;
        self.role = Role::Retired(outcome);
        self.neighbours.tell_supervisor(Retired { key: self.key.clone(), id: self.id, resubmit, may_rest });
    }

    /// Takes a call in that asks for what this lock's key is already being asked for.
    fn add_waiter(&mut self, call: Begin, ctx: &mut Context<Self>) {
        let Some(until) = call.wait_until else {
            return self.refuse(call);
        };
        let limit = self.neighbours.shared.settings.max_waiters_per_key;
        if self.waiters.len() >= limit {
            // Those that went away without a word make room first.
            self.waiters.retain(|waiter| !waiter.reply.is_closed());
        }
        if self.waiters.len() >= limit && !planted!(WaitersNotCapped) {
            self.tell(EventKind::Overloaded);
            return call.refuse(Error::Overloaded { what: "callers waiting for one key", limit });
        }
        self.tell(EventKind::Wait);
        self.waiters.push(call);
        self.may_rest = false;
        ctx.run_later(until.saturating_duration_since(Instant::now()), |lock, _| lock.dismiss_late_waiters());
    }

    fn dismiss_late_waiters(&mut self) {
        let now = Instant::now();
        let (late, waiting): (Vec<_>, Vec<_>) =
            self.waiters.drain(..).partition(|waiter| waiter.wait_until.is_some_and(|until| until <= now));
        self.waiters = waiting;
        for waiter in late {
            self.refuse(waiter);
        }
        if self.waiters.is_empty() && matches!(self.role, Role::Following(_)) {
            self.retire(None);
        }
    }

    /// Turns away a call that does not wait, or has waited long enough.
    fn refuse(&self, call: Begin) {
        let (kind, error) = match &self.role {
            Role::Reconciling(reconciling) => {
                (EventKind::Indeterminate, Error::Indeterminate { attempt: reconciling.attempt })
            }
            Role::Holding(holding) => {
                let lease_left = holding.lease_left(self.neighbours.shared.settings.lease);
                (EventKind::Conflict, Error::InProgress { lease_left })
            }
            Role::Following(following) => {
                (EventKind::Conflict, Error::InProgress { lease_left: following.lease_left() })
            }
            // Unreachable by construction, and harmless: a call that meets a retired lock goes back.
            Role::Retired(_) => return self.neighbours.tell_supervisor(call),
        };
        self.tell(kind);
        call.refuse(error);
    }
}

impl Actor for KeyLock {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.play(ctx);
    }
}

/// Another call for the lock's key.
pub(crate) struct Join(pub(crate) Begin);

impl Message for Join {
    type Result = ();
}

impl KeyLock {
    fn take_in(&mut self, call: Begin, ctx: &mut Context<Self>) {
        match &self.role {
            Role::Retired(Some(outcome)) if call.fingerprint == self.fingerprint => {
                self.tell(EventKind::Hit);
                call.reply.send(Ok(Admitted::Replay(outcome.clone())));
            }
            // The supervisor reads this lock's farewell first, and then starts anew with the call.
            Role::Retired(_) => self.neighbours.tell_supervisor(call),
            // Whether that claim ever stood, and so what the key was last used for, nobody here knows.
            Role::Holding(holding) if holding.is_recovering() && !planted!(MismatchWhileTakingBack) => {
                call.refuse(Error::Store(StoreError::unavailable("an earlier claim of the key is being taken back")));
            }
            _ if call.fingerprint != self.fingerprint => {
                self.tell(EventKind::Mismatch);
                call.refuse(Error::Mismatch);
            }
            _ => self.add_waiter(call, ctx),
        }
    }
}

impl Handler<Join> for KeyLock {
    type Result = ();

    fn handle(&mut self, Join(call): Join, ctx: &mut Self::Context) {
        self.take_in(call, ctx);
    }
}

/// The holder's word on its claim.
pub(crate) struct Settle {
    pub(crate) settlement: Settlement,
    pub(crate) reply: Answer<Result<Settled, Error>>,
    pub(crate) lock: LockAddr,
}

impl Message for Settle {
    type Result = ();
}

/// The holder is gone without a word.
pub(crate) struct Abandon {
    pub(crate) began: bool,
    pub(crate) lock: LockAddr,
}

impl Message for Abandon {
    type Result = ();
}

/// The supervisor's sweep has found this lock old enough to look at its lease.
pub(crate) struct Tick(pub(crate) LockAddr);

impl Message for Tick {
    type Result = ();
}

/// The holder wants to be sure, now, that the claim is still its own.
pub(crate) struct Confirm {
    pub(crate) reply: tokio::sync::oneshot::Sender<Result<(), Error>>,
    pub(crate) lock: LockAddr,
}

impl Message for Confirm {
    type Result = ();
}

/// An answer of the store, or of the user's reconciler.
pub(crate) enum Answered {
    Renewed { sent: Instant, answer: Result<Renewed, StoreError> },
    Completed(Result<Completed, StoreError>),
    CompletedInTransaction(Result<CompletedInTransaction, StoreError>),
    Released(Result<Released, StoreError>),
    Withdrawn(Result<Withdrawn, StoreError>),
    Held(Result<Held, StoreError>),
    Watched(Result<Changed, StoreError>),
    Verdict(Verdict),
    Resolved(Result<Resolved, StoreError>),
}

/// Brings an answer back to the lock that asked.
pub(crate) struct Bring {
    answered: Answered,
    lock: LockAddr,
}

impl Message for Bring {
    type Result = ();
}

impl Bring {
    /// Brings `answered` to `lock`; if the lock is gone, so is whoever could use the answer.
    pub(crate) fn to(lock: LockAddr, answered: Answered) {
        let message = Self { answered, lock: Arc::clone(&lock) };
        let _ = lock.try_send(message);
    }
}

impl Handler<Bring> for KeyLock {
    type Result = ();

    fn handle(&mut self, Bring { answered, lock }: Bring, ctx: &mut Self::Context) {
        match answered {
            Answered::Watched(answer) => self.on_watched(answer, ctx),
            Answered::Verdict(verdict) => self.on_verdict(verdict, lock),
            Answered::Resolved(answer) => self.on_resolved(answer),
            of_the_claim => self.on_claim_answered(of_the_claim, lock, ctx),
        }
    }
}

impl fmt::Debug for KeyLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyLock").field("key", &self.key).finish_non_exhaustive()
    }
}
