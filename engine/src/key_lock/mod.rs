//! The state machine of one key: an actor that exists only while the key is in flight. Only the supervisor starts it.
//!
//! A lock has one of three roles. It keeps a [`Claim`] for a caller of this arbiter while other callers of the key
//! wait. It **follows** a claim held elsewhere, for callers that wait here ([`following`]). Or it has an abandoned key
//! **reconciled** ([`reconciling`]).
//!
//! A lock ends by a handshake. When its role has ended, it tells the supervisor, which drops the lock's address. The
//! lock hands back calls that arrive in the meantime. Actix ends the actor when its last address is dropped. Under
//! load, the supervisor keeps the lock for a moment instead and assigns the next key to it: see
//! [`IdleLocks`](crate::idle_locks::IdleLocks).

mod following;
mod reconciling;
mod waiters;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;

use crate::backend::StoreError;
use crate::call::{Admitted, Begin};
use crate::claims::{Answered, Arbiter, Claim, ClaimAddr, ClaimPlace, Next, ToClaim, What};
use crate::neighbours::{Neighbours, ToSupervisor};
use crate::record::SealedOutcome;
use crate::shared::CountedLock;
use crate::{Error, EventKind, Fingerprint, Key};

pub(crate) use following::Following;
pub(crate) use reconciling::Reconciling;
pub(crate) use waiters::Left;
use waiters::Waiters;

/// Its arbiter's supervisor owns it and alone starts it. The lock tells the supervisor when it has ended.
pub(crate) struct KeyLock {
    key: Key,
    /// Distinguishes this lock from a later one for the same key.
    id: u64,
    neighbours: Arc<Neighbours>,
    fingerprint: Fingerprint,
    role: Role,
    waiters: Waiters,
    /// The timer of the claim's run limit, if it has one.
    run_limit: Option<SpawnHandle>,
    /// Whether the supervisor sends callers of the key here. `false` once the claim is known to be lost.
    is_routed: bool,
    /// Whether the lock may be assigned another key. `false` once the lock has set a timer or given its address to
    /// something that the supervisor does not count, because a late message could then reach the lock after it has been
    /// assigned another key.
    is_reusable: bool,
    _counted: CountedLock,
}

/// The addresses of a lock.
pub(crate) struct Lock {
    pub(crate) address: Addr<KeyLock>,
    /// The same actor's address, for messages to the claim that it keeps.
    pub(crate) claim: ClaimAddr,
}

/// What a lock does for its key.
pub(crate) enum Role {
    /// The lock keeps a claim, which has this place among the arbiter's claims.
    Claim(Claim, ClaimPlace),
    Following(Following),
    Reconciling(Reconciling),
    /// The role has ended. A claim stays here while the store does not yet know how its steps ended.
    Retired(Option<Box<Claim>>),
}

/// A lock's work: given at its start, or when it is reused.
pub(crate) struct Assignment {
    pub(crate) key: Key,
    pub(crate) id: u64,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) role: Role,
    pub(crate) waiting: Vec<Begin>,
}

impl Message for Assignment {
    type Result = ();
}

impl Lock {
    /// Starts a lock on the current arbiter.
    pub(crate) fn start(neighbours: Arc<Neighbours>, assignment: Assignment) -> Self {
        let Assignment { key, id, fingerprint, role, waiting } = assignment;
        let counted = CountedLock::new(&neighbours.shared);
        let waiters = Waiters::from(waiting);
        let lock = KeyLock {
            key,
            id,
            neighbours,
            fingerprint,
            role,
            waiters,
            run_limit: None,
            is_routed: true,
            is_reusable: true,
            _counted: counted,
        };
        let address = KeyLock::create(|ctx| {
            // Set before the first message, not in `started`. Calls are admitted elsewhere, so the mailbox must never
            // reach a limit of its own.
            ctx.set_mailbox_capacity(usize::MAX >> 3);
            lock
        });
        let claim = Arc::new(address.clone().recipient());
        Self { address, claim }
    }
}

impl KeyLock {
    fn tell(&self, kind: EventKind) {
        self.neighbours.tell(kind, &self.key);
    }

    /// Begins the role that the lock has been assigned.
    fn begin(&mut self, ctx: &mut Context<Self>) {
        for call in self.waiters.take() {
            self.join(call, ctx);
        }
        match &self.role {
            Role::Claim(..) | Role::Retired(_) => {}
            Role::Following(_) => self.follow(ctx),
            Role::Reconciling(_) => self.reconcile(ctx),
        }
    }

    /// Ends the role. Waiting callers get `outcome`, or go back to the supervisor to try again.
    fn retire(&mut self, outcome: Option<&SealedOutcome>, ctx: &mut Context<Self>) {
        // A pending timer would keep the actor alive until it fires.
        let timers = [self.run_limit.take(), self.waiters.stop_timer()];
        for timer in timers.into_iter().flatten() {
            ctx.cancel_future(timer);
        }
        let mut resubmit = self.waiters.take();
        if planted!(WaitersNotWoken) {
            std::mem::forget(std::mem::take(&mut resubmit));
        }
        if let Some(outcome) = outcome {
            for waiter in resubmit.drain(..) {
                self.tell(EventKind::Hit);
                waiter.answer(Ok(Admitted::Replay(outcome.clone())));
            }
        }
        let (claim, ended) = match std::mem::replace(&mut self.role, Role::Retired(None)) {
            Role::Claim(claim, place) => (Some(place), claim.has_running_steps().then(|| Box::new(claim))),
            _ => (None, None),
        };
        self.role = Role::Retired(ended);
        let (key, id, is_reusable) = (self.key.clone(), self.id, self.is_reusable);
        self.neighbours.tell_supervisor(ToSupervisor::Retired { key, id, claim, resubmit, is_reusable });
    }

    /// Stops answering for the key: another holder has it and may have completed it. Calls that wait here ask the store
    /// again.
    fn let_go(&mut self, ctx: &mut Context<Self>) {
        (self.is_routed, self.is_reusable) = (false, false);
        if let Some(timer) = self.waiters.stop_timer() {
            ctx.cancel_future(timer);
        }
        let (key, id, resubmit) = (self.key.clone(), self.id, self.waiters.take());
        self.neighbours.tell_supervisor(ToSupervisor::LetGo { key, id, resubmit });
    }

    /// Accepts a call that asks for the lock's key.
    fn join(&mut self, call: Begin, ctx: &mut Context<Self>) {
        match &self.role {
            // The supervisor reads this lock's last message first, and then begins again with the call.
            _ if !self.is_routed || matches!(self.role, Role::Retired(_)) => {
                self.neighbours.tell_supervisor(ToSupervisor::Resubmit(Box::new(call)));
            }
            // It is unknown whether that claim ever reached the store, and so which fingerprint the key was last used
            // with.
            Role::Claim(claim, _) if claim.is_withdrawing() && !planted!(MismatchWhileTakingBack) => {
                call.refuse(Error::Store(StoreError::unavailable("an earlier claim of the key is being withdrawn")));
            }
            _ if call.fingerprint != self.fingerprint => {
                self.tell(EventKind::Mismatch);
                call.refuse(Error::Mismatch);
            }
            _ => self.wait(call, ctx),
        }
    }

    /// Refuses a call that does not wait, or that has waited until its limit.
    fn refuse(&self, call: Begin) {
        let (kind, error) = match &self.role {
            Role::Reconciling(reconciling) => {
                (EventKind::Indeterminate, Error::Indeterminate { attempt: reconciling.attempt })
            }
            Role::Claim(claim, _) => {
                (EventKind::Conflict, Error::InProgress { lease_left: claim.lease_left(&self.neighbours.shared) })
            }
            Role::Following(following) => {
                (EventKind::Conflict, Error::InProgress { lease_left: following.lease_left() })
            }
            // Unreachable by construction, and harmless: a call that meets a retired lock goes back to the supervisor.
            Role::Retired(_) => {
                return self.neighbours.tell_supervisor(ToSupervisor::Resubmit(Box::new(call)));
            }
        };
        self.tell(kind);
        call.refuse(error);
    }

    /// Runs `act` on the claim, and does what the claim asks for next.
    fn with_claim(
        &mut self,
        address: ClaimAddr,
        ctx: &mut Context<Self>,
        act: impl FnOnce(&mut Claim, &Arbiter<'_>, &ClaimAddr) -> Next,
    ) {
        let claim = match &mut self.role {
            Role::Claim(claim, _) => claim,
            Role::Retired(Some(claim)) => &mut **claim,
            _ => return,
        };
        let Neighbours { shared, store, .. } = &*self.neighbours;
        match act(claim, &Arbiter { key: &self.key, shared, store }, &address) {
            Next::Wait => {}
            Next::AskAgain(pause) => self.ask_again_after(pause, address, ctx),
            Next::AskForStep(pause, number) => self.ask_for_step_after(pause, number, address, ctx),
            Next::LetGo => self.let_go(ctx),
            Next::Ended(outcome) => self.retire(outcome.as_ref(), ctx),
        }
    }
}

impl KeyLock {
    fn ask_again_after(&mut self, pause: Duration, address: ClaimAddr, ctx: &mut Context<Self>) {
        self.is_reusable = false;
        ctx.run_later(pause, |lock, ctx| {
            // A claim that has ended sends only the requests of its steps.
            if let Role::Claim(..) = lock.role {
                lock.ask_again(address, ctx);
            }
        });
    }

    /// A separate method: in the generic `with_claim`, a closure that calls it again would be another type at every
    /// depth.
    fn ask_for_step_after(&mut self, pause: Duration, number: u32, address: ClaimAddr, ctx: &mut Context<Self>) {
        self.is_reusable = false;
        ctx.run_later(pause, move |lock, ctx| lock.ask_for_step(number, address, ctx));
    }

    fn ask_for_step(&mut self, number: u32, address: ClaimAddr, ctx: &mut Context<Self>) {
        self.with_claim(address, ctx, |claim, arbiter, address| {
            claim.ask_for_step(number, arbiter, address);
            Next::Wait
        });
    }

    fn ask_again(&mut self, address: ClaimAddr, ctx: &mut Context<Self>) {
        self.with_claim(address, ctx, |claim, arbiter, address| {
            claim.ask_again(arbiter, address);
            Next::Wait
        });
    }
}

impl Actor for KeyLock {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.begin(ctx);
    }
}

impl Handler<Assignment> for KeyLock {
    type Result = ();

    fn handle(&mut self, assignment: Assignment, ctx: &mut Self::Context) {
        // The mailbox has already delivered every message about the previous key.
        let Assignment { key, id, fingerprint, role, waiting } = assignment;
        (self.key, self.id, self.fingerprint, self.role) = (key, id, fingerprint, role);
        self.waiters = Waiters::from(waiting);
        self.begin(ctx);
    }
}

/// Another call for the lock's key.
pub(crate) struct Join(pub(crate) Begin);

impl Message for Join {
    type Result = ();
}

impl Handler<Join> for KeyLock {
    type Result = ();

    fn handle(&mut self, Join(call): Join, ctx: &mut Self::Context) {
        self.join(call, ctx);
    }
}

impl Handler<ToClaim> for KeyLock {
    type Result = ();

    fn handle(&mut self, ToClaim { what, claim: address }: ToClaim, ctx: &mut Self::Context) {
        let takes = match &self.role {
            Role::Claim(..) => true,
            Role::Retired(Some(_)) => matches!(what, What::Step(_) | What::Answered(Answered::Step(_))),
            _ => false,
        };
        if !takes {
            return refuse_late(what);
        }
        if let What::LimitRun(limit) = what {
            self.is_reusable = false;
            let timer = ctx.run_later(limit, |lock, ctx| {
                lock.run_limit = None;
                lock.with_claim(address, ctx, Claim::end_run);
            });
            self.run_limit = Some(timer);
            return;
        }
        if let What::Step(_) = what {
            // The step's answer could arrive after the lock has been assigned another key.
            self.is_reusable = false;
        }
        self.with_claim(address, ctx, |claim, arbiter, address| match what {
            What::Step(call) => claim.step(*call, arbiter, address),
            What::Settle { settlement, reply } => claim.settle(settlement, Some(reply), arbiter, address),
            What::Abandon { began } => claim.abandon(began, arbiter, address),
            What::Answered(answered) => claim.answered(answered, arbiter, address),
            What::Confirm(reply) => {
                claim.confirm(reply, arbiter, address);
                Next::Wait
            }
            What::Tick => {
                claim.tick(arbiter, address);
                Next::Wait
            }
            What::Ask => {
                claim.ask_again(arbiter, address);
                Next::Wait
            }
            // Handled above.
            What::LimitRun(_) => Next::Wait,
        });
    }
}

/// Answers a holder whose claim has ended.
fn refuse_late(what: What) {
    match what {
        What::Settle { reply, .. } => drop(reply.send(Err(Error::ClaimLost))),
        // The asker may have left.
        What::Confirm(reply) | What::Answered(Answered::Renewed { confirming: Some(reply), .. }) => {
            drop(reply.send(Err(Error::ClaimLost)));
        }
        // The dropped reply tells the step's caller that the claim is lost.
        What::Step(_) => {}
        What::Abandon { .. } | What::Answered(_) | What::Tick | What::Ask | What::LimitRun(_) => {}
    }
}

impl fmt::Debug for KeyLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyLock").field("key", &self.key).finish_non_exhaustive()
    }
}
