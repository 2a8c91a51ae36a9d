//! Asks the store for keys, and acts on its answers. For each key, at most one request is in flight.

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::Supervisor;
use super::routes::Routes;
use crate::backend::{Acquire, Acquired, Lookup, RecordView, Reply, Request, StateView, StoreError};
use crate::call::{Admitted, Begin};
use crate::claims::{Claim, Grant, ToClaim, What};
use crate::key_lock::{Following, Reconciling, Role};
use crate::neighbours::{Neighbours, ToSupervisor};
use crate::reconcile::Reconciler;
use crate::record::{Owner, SealedOutcome, Steps};
use crate::shared::Shared;
use crate::{Attempt, Error, EventKind, FencingToken, OnStoreFailure};

/// What handles the store's answers, on whichever thread they arrive.
pub(super) struct Asker {
    pub(super) neighbours: Arc<Neighbours>,
    pub(super) supervisor: Addr<Supervisor>,
    /// Locked only briefly, and rarely by two threads at once: an answer that needs no lock actor removes its key's
    /// route on the thread where it arrives.
    pub(super) routes: Mutex<Routes>,
}

/// A call for which the store is being asked.
struct Asked {
    call: Begin,
    owner: Owner,
    asked_at: Instant,
}

impl Supervisor {
    /// Accepts a call. If the store is already being asked for the key, the call waits for that answer. If the key has
    /// a lock, the call goes there. Otherwise the store is asked.
    pub(super) fn begin(&mut self, call: Begin) {
        if call.reply.is_closed() {
            // The caller has left. Dropping the call frees what it held.
            return;
        }
        let is_closing = self.asker.neighbours.shared.is_closing();
        let is_routed = self.asker.routes.lock().is_routed(&call.key, !is_closing);
        if is_routed {
            let sent = self.asker.routes.lock().send(call);
            // The key's lock is gone, and the failed send has removed the key's route.
            if let Err(call) = sent {
                self.begin(call);
            }
        } else if is_closing {
            self.look_up(call);
        } else {
            self.acquire(call, Owner::random(), None);
        }
    }

    fn acquire(&self, call: Begin, owner: Owner, past_withdrawal: Option<Box<Owner>>) {
        let message = Acquire {
            key: call.key.clone(),
            fingerprint: call.fingerprint,
            owner,
            lease: self.asker.neighbours.shared.settings.lease,
            on_abandoned: call.on_abandoned,
            past_withdrawal,
        };
        // A single reference count covers everything that the answer needs, and no other arbiter shares it.
        let asker = Arc::clone(&self.asker);
        let asked = Asked { call, owner, asked_at: Instant::now() };
        let reply = Reply::new(move |answer| asker.on_answer(asked, answer));
        self.asker.neighbours.ask_store(Request::Acquire(message, reply));
    }

    /// Looks a key up while the engine accepts no new claims: completed keys still replay.
    fn look_up(&self, call: Begin) {
        let message = Lookup { key: call.key.clone() };
        let neighbours = Arc::clone(&self.asker.neighbours);
        let reply = Reply::new(move |found| replay_or_refuse(&neighbours.shared, call, found));
        self.asker.neighbours.ask_store(Request::Lookup(message, reply));
    }

    fn on_acquired(&mut self, AcquireAnswered { asked, answer }: AcquireAnswered) {
        let Asked { call, owner, asked_at } = asked;
        let lease = self.asker.neighbours.shared.settings.lease;
        match answer {
            NeedsLock::Claimed { attempt, token, took_over, steps } => {
                let kind = if took_over { EventKind::Takeover } else { EventKind::Miss };
                self.asker.neighbours.tell(kind, &call.key);
                let Begin { key, fingerprint, on_abandoned, reply, permit, run_limit, .. } = call;
                let claim = Claim::granted(owner, on_abandoned, asked_at, permit, steps);
                let claim = self.claim(key, fingerprint, asked_at, claim);
                let grant = Grant::new(claim, (attempt, token, owner), asked_at, lease, run_limit);
                // If the caller has left, the dropped grant settles itself.
                reply.send(Ok(Admitted::Granted(grant)));
            }
            // The retry uses a new owner, so that a late copy of the first message cannot pass for it.
            NeedsLock::Withdrawn { owner: withdrawn } => self.acquire(call, Owner::random(), Some(Box::new(withdrawn))),
            NeedsLock::ToFollow { lease_left } => {
                let role = Role::Following(Following::new(lease_left));
                self.lock(call.key.clone(), call.fingerprint, role, Some(call));
            }
            NeedsLock::ToReconcile { attempt, abandoned_by, reconciler } => {
                let role = Role::Reconciling(Reconciling::new(attempt, abandoned_by, reconciler));
                self.lock(call.key.clone(), call.fingerprint, role, Some(call));
            }
            NeedsLock::ToWithdraw(error) => {
                let waiting = self.asker.routes.lock().take_waiting(&call.key);
                let claim = Claim::to_withdraw(&call.key, owner, call.on_abandoned);
                let claim = self.claim(call.key.clone(), call.fingerprint, asked_at, claim);
                // The lock has just been started, so the send succeeds.
                let _ = ToClaim::send(&claim, What::Ask);
                for call in [call].into_iter().chain(waiting) {
                    answer_store_failure(&self.asker.neighbours.shared, call, error.clone());
                }
            }
        }
    }
}

/// An answer to an acquire that needs a lock.
pub(super) struct AcquireAnswered {
    asked: Asked,
    answer: NeedsLock,
}

enum NeedsLock {
    Claimed {
        attempt: Attempt,
        token: FencingToken,
        took_over: bool,
        steps: Option<Box<Steps>>,
    },
    /// A claim of the key was withdrawn recently. The acquire is sent again, past the withdrawal.
    Withdrawn {
        owner: Owner,
    },
    /// Another holder has the key, and the call waits.
    ToFollow {
        lease_left: Duration,
    },
    ToReconcile {
        attempt: Attempt,
        abandoned_by: Owner,
        reconciler: Reconciler,
    },
    /// The claim may be in the store, but no caller holds it. The engine withdraws it as soon as the store answers.
    ToWithdraw(StoreError),
}

/// An answer that ends the call.
#[derive(Clone)]
enum Final {
    Replay(SealedOutcome),
    Mismatch,
    InProgress { lease_left: Duration },
    Indeterminate { attempt: Attempt },
    Failed(StoreError),
}

impl Asker {
    /// Handles the store's answer, on whichever thread it arrives. An answer that ends the call goes straight to the
    /// caller; one that needs a lock goes to the supervisor.
    fn on_answer(&self, asked: Asked, answer: Result<Acquired, StoreError>) {
        let shared = &self.neighbours.shared;
        let last = match judge(shared, &asked, answer) {
            Ok(last) => last,
            Err(answer) => {
                // If the supervisor has ended, the claim is left to its lease, and the caller gets `Error::Stopped`.
                let _ = self.supervisor.try_send(AcquireAnswered { asked, answer });
                return;
            }
        };
        let waiting = self.routes.lock().answered(&asked.call.key);
        let fingerprint = asked.call.fingerprint;
        for call in waiting {
            let shares = match &last {
                Final::Failed(_) => Some(last.clone()),
                Final::Mismatch if call.fingerprint != fingerprint => None,
                // The record belongs to the fingerprint of the first call.
                _ if call.fingerprint != fingerprint => Some(Final::Mismatch),
                Final::InProgress { .. } if call.wait_until.is_some() => None,
                _ => Some(last.clone()),
            };
            match shares {
                Some(last) => answer_call(shared, call, last),
                // This call needs its own request to the store.
                None => self.neighbours.tell_supervisor(ToSupervisor::Resubmit(Box::new(call))),
            }
        }
        answer_call(shared, asked.call, last);
        if shared.is_closing() {
            let _ = self.supervisor.try_send(LooksDrained);
        }
    }
}

/// Returns what the answer means: the end of the call, or something that needs a lock.
fn judge(shared: &Shared, asked: &Asked, answer: Result<Acquired, StoreError>) -> Result<Final, NeedsLock> {
    match answer {
        Ok(Acquired::Claimed { attempt, token, took_over, steps }) => {
            Err(NeedsLock::Claimed { attempt, token, took_over, steps })
        }
        Ok(Acquired::Withdrawn { owner }) => Err(NeedsLock::Withdrawn { owner }),
        Ok(Acquired::Completed { outcome }) => Ok(Final::Replay(outcome)),
        // A caller that left while the store was asked does not wait.
        Ok(Acquired::InProgress { lease_left }) => match asked.call.wait_until {
            Some(_) if !asked.call.reply.is_closed() => Err(NeedsLock::ToFollow { lease_left }),
            _ => Ok(Final::InProgress { lease_left }),
        },
        Ok(Acquired::Mismatch) => Ok(Final::Mismatch),
        Ok(Acquired::Indeterminate { attempt, owner: abandoned_by }) => match shared.settings.reconciler.clone() {
            Some(reconciler) => Err(NeedsLock::ToReconcile { attempt, abandoned_by, reconciler }),
            None => Ok(Final::Indeterminate { attempt }),
        },
        Err(error) if error.is_unknown() && !planted!(UnknownTakenForNo) => Err(NeedsLock::ToWithdraw(error)),
        Err(error) => Ok(Final::Failed(error)),
    }
}

fn answer_call(shared: &Shared, call: Begin, last: Final) {
    let (kind, error) = match last {
        Final::Failed(error) => return answer_store_failure(shared, call, error),
        Final::Replay(outcome) => {
            shared.events.tell(EventKind::Hit, &call.key);
            call.answer(Ok(Admitted::Replay(outcome)));
            return;
        }
        Final::Mismatch => (EventKind::Mismatch, Error::Mismatch),
        Final::InProgress { lease_left } => (EventKind::Conflict, Error::InProgress { lease_left }),
        Final::Indeterminate { attempt } => (EventKind::Indeterminate, Error::Indeterminate { attempt }),
    };
    shared.events.tell(kind, &call.key);
    call.refuse(error);
}

fn answer_store_failure(shared: &Shared, call: Begin, error: StoreError) {
    shared.events.tell(EventKind::StoreFailed, &call.key);
    let may_run = call.on_store_failure == OnStoreFailure::Run || planted!(UnguardedWithoutLeave);
    if may_run && error.is_transient() {
        shared.events.tell(EventKind::Unguarded, &call.key);
        call.answer(Ok(Admitted::Unguarded));
    } else {
        call.refuse(Error::from(error));
    }
}

/// Ends a call that arrived while the engine drains.
fn replay_or_refuse(shared: &Shared, call: Begin, found: Result<Option<RecordView>, StoreError>) {
    let is_asked = |view: &RecordView| shared.settings.at_rest.is_of(&call.key, call.fingerprint, view.fingerprint);
    match found {
        Ok(Some(view)) if !is_asked(&view) => answer_call(shared, call, Final::Mismatch),
        Ok(Some(RecordView { state: StateView::Completed { outcome, .. }, .. })) => {
            answer_call(shared, call, Final::Replay(outcome));
        }
        Ok(_) => call.refuse(Error::ShuttingDown),
        // Nothing begins any more, not even an unguarded operation.
        Err(_) => {
            shared.events.tell(EventKind::StoreFailed, &call.key);
            call.refuse(Error::ShuttingDown);
        }
    }
}

impl Message for AcquireAnswered {
    type Result = ();
}

impl Handler<AcquireAnswered> for Supervisor {
    type Result = ();

    fn handle(&mut self, answered: AcquireAnswered, _: &mut Self::Context) {
        self.on_acquired(answered);
        self.end_if_drained();
    }
}

/// Sent when an answer has removed a route while the engine drains.
pub(super) struct LooksDrained;

impl Message for LooksDrained {
    type Result = ();
}

impl Handler<LooksDrained> for Supervisor {
    type Result = ();

    fn handle(&mut self, _: LooksDrained, _: &mut Self::Context) {
        self.end_if_drained();
    }
}
