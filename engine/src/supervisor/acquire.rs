//! Asking the store for a key, and what its answer leads to.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use actix::prelude::*;
use tokio::time::Instant;

use super::Supervisor;
use super::ending::AcquireEnded;
use crate::backend::{Acquire, Acquired, Reply, Request, StoreError};
use crate::call::{Admitted, Begin, Grant};
use crate::key_lock::{Following, Holding, Reconciling, Role};
use crate::reconcile::Reconciler;
use crate::record::Owner;
use crate::shared::Shared;
use crate::{Attempt, Error, EventKind, OnStoreFailure};

impl Supervisor {
    /// Asks the store for the key. An answer that settles the call goes straight to its caller; one that needs a lock
    /// comes back here.
    pub(super) fn acquire(&mut self, call: Begin) {
        self.acquire_past(call, None);
    }

    fn acquire_past(&mut self, call: Begin, past_withdrawal: Option<Owner>) {
        let owner = Owner::random();
        let message = Acquire {
            key: call.key.clone(),
            fingerprint: call.fingerprint,
            owner,
            lease: self.neighbours.shared.settings.lease,
            on_abandoned: call.on_abandoned,
            past_withdrawal,
        };
        // One count for all that the answer needs, and one that no other arbiter shares.
        let (neighbours, asked_at) = (Arc::clone(&self.neighbours), Instant::now());
        self.neighbours.acquiring.fetch_add(1, Ordering::AcqRel);
        let reply = Reply::new(move |answer| match answer_or_pass_on(&neighbours.shared, call, answer) {
            // A supervisor that has ended leaves the claim to its lease, and the caller hears that it stopped.
            Some((call, answer)) => neighbours.tell_supervisor(AcquireAnswered { call, owner, asked_at, answer }),
            None => {
                neighbours.acquiring.fetch_sub(1, Ordering::AcqRel);
                if neighbours.shared.is_closing() {
                    neighbours.tell_supervisor(AcquireEnded);
                }
            }
        });
        self.neighbours.ask_store(Request::Acquire(message, reply));
    }

    fn on_acquired(&mut self, AcquireAnswered { call, owner, asked_at, answer }: AcquireAnswered) {
        let answer = match answer {
            // What was granted so long ago may have lapsed since, and been resolved by somebody who saw no sign of a
            // holder: nothing may begin under it any more.
            NeedsLock::Claimed { .. }
                if asked_at.elapsed() >= self.neighbours.shared.settings.lease && !planted!(LateGrantUsed) =>
            {
                NeedsLock::ToTakeBack(StoreError::unknown("its answer to the claim took longer than the claim's lease"))
            }
            answer => answer,
        };
        match answer {
            NeedsLock::Claimed { attempt, took_over } => {
                let kind = if took_over { EventKind::Takeover } else { EventKind::Miss };
                self.neighbours.shared.events.tell(kind, &call.key);
                let Begin { key, fingerprint, on_abandoned, reply, permit, .. } = call;
                let role = Role::Holding(Holding::granted(owner, on_abandoned, asked_at));
                let lock = self.lock(key, fingerprint, asked_at, role, Vec::new());
                // If the caller has gone, the grant gives itself up.
                reply.send(Ok(Admitted::Granted(Grant::new(lock, attempt, owner, permit))));
            }
            NeedsLock::ToFollow { .. } | NeedsLock::ToReconcile { .. } if self.locks.contains_key(&call.key) => {
                self.begin(call);
            }
            NeedsLock::ToAskAgain { withdrawn } => self.acquire_past(call, Some(withdrawn)),
            NeedsLock::ToFollow { lease_left } => {
                let role = Role::Following(Following::new(lease_left));
                self.lock(call.key.clone(), call.fingerprint, asked_at, role, vec![call]);
            }
            NeedsLock::ToReconcile { attempt, abandoned_by, reconciler } => {
                let role = Role::Reconciling(Reconciling::new(attempt, abandoned_by, reconciler));
                self.lock(call.key.clone(), call.fingerprint, asked_at, role, vec![call]);
            }
            NeedsLock::ToTakeBack(error) => {
                let role = Role::Holding(Holding::unheard(owner, call.on_abandoned));
                self.lock(call.key.clone(), call.fingerprint, asked_at, role, Vec::new());
                answer_store_failure(&self.neighbours.shared, call, error);
            }
        }
    }
}

/// An answer to an acquire that needs a lock.
struct AcquireAnswered {
    call: Begin,
    owner: Owner,
    asked_at: Instant,
    answer: NeedsLock,
}

enum NeedsLock {
    /// A claim of the key was withdrawn a short while ago: the next message names it.
    ToAskAgain {
        withdrawn: Owner,
    },
    Claimed {
        attempt: Attempt,
        took_over: bool,
    },
    /// Another holds it, and the call waits.
    ToFollow {
        lease_left: Duration,
    },
    ToReconcile {
        attempt: Attempt,
        abandoned_by: Owner,
        reconciler: Reconciler,
    },
    /// The claim may stand, for nobody: it is taken back as soon as the store hears of it.
    ToTakeBack(StoreError),
}

/// Answers the call, unless that takes a lock.
fn answer_or_pass_on(shared: &Shared, call: Begin, answer: Result<Acquired, StoreError>) -> Option<(Begin, NeedsLock)> {
    let refuse = |call: Begin, kind, error| {
        shared.events.tell(kind, &call.key);
        call.refuse(error);
        None
    };
    match answer {
        Ok(Acquired::Claimed { attempt, took_over, .. }) => Some((call, NeedsLock::Claimed { attempt, took_over })),
        Ok(Acquired::Completed { outcome }) => {
            shared.events.tell(EventKind::Hit, &call.key);
            call.reply.send(Ok(Admitted::Replay(outcome)));
            None
        }
        Ok(Acquired::InProgress { lease_left }) => match call.wait_until {
            Some(_) => Some((call, NeedsLock::ToFollow { lease_left })),
            None => refuse(call, EventKind::Conflict, Error::InProgress { lease_left }),
        },
        Ok(Acquired::Mismatch) => refuse(call, EventKind::Mismatch, Error::Mismatch),
        Ok(Acquired::Indeterminate { attempt, owner: abandoned_by }) => match shared.settings.reconciler.clone() {
            Some(reconciler) => Some((call, NeedsLock::ToReconcile { attempt, abandoned_by, reconciler })),
            None => refuse(call, EventKind::Indeterminate, Error::Indeterminate { attempt }),
        },
        Ok(Acquired::Withdrawn { owner }) => Some((call, NeedsLock::ToAskAgain { withdrawn: owner })),
        Err(error) if error.is_unknown() && !planted!(UnknownTakenForNo) => Some((call, NeedsLock::ToTakeBack(error))),
        Err(error) => {
            answer_store_failure(shared, call, error);
            None
        }
    }
}

fn answer_store_failure(shared: &Shared, call: Begin, error: StoreError) {
    shared.events.tell(EventKind::StoreFailed, &call.key);
    let may_run = call.on_store_failure == OnStoreFailure::Run || planted!(UnguardedWithoutLeave);
    if may_run && error.is_passing() {
        shared.events.tell(EventKind::Unguarded, &call.key);
        call.reply.send(Ok(Admitted::Unguarded));
    } else {
        call.refuse(Error::from(error));
    }
}

impl Message for AcquireAnswered {
    type Result = ();
}

impl Handler<AcquireAnswered> for Supervisor {
    type Result = ();

    fn handle(&mut self, answered: AcquireAnswered, _: &mut Self::Context) {
        self.neighbours.acquiring.fetch_sub(1, Ordering::AcqRel);
        self.on_acquired(answered);
        self.end_if_drained();
    }
}
