//! A lock that has an abandoned key settled by the user's reconciler.

use std::panic::AssertUnwindSafe;

use actix::prelude::*;
use futures_util::FutureExt as _;
use tokio::time::timeout;
use tracing::error;

use super::{KeyLock, Role};
use crate::backend::{Reply, Request, Resolution, Resolve, Resolved, StoreError};
use crate::reconcile::Reconciler;
use crate::record::Owner;
use crate::{Abandoned, Attempt, EventKind, Verdict};

/// An indeterminate key that the reconciler is asked about.
pub(crate) struct Reconciling {
    pub(super) attempt: Attempt,
    /// The reconciler's answer is about this holder's claim and no other.
    abandoned_by: Owner,
    reconciler: Reconciler,
}

impl Reconciling {
    pub(crate) fn new(attempt: Attempt, abandoned_by: Owner, reconciler: Reconciler) -> Self {
        Self { attempt, abandoned_by, reconciler }
    }
}

/// What the reconciler said, and what the store made of it.
enum Reconciled {
    Verdict(Verdict),
    Resolved(Result<Resolved, StoreError>),
}

impl Message for Reconciled {
    type Result = ();
}

impl KeyLock {
    pub(super) fn reconcile(&mut self, ctx: &mut Context<Self>) {
        let Role::Reconciling(Reconciling { attempt, reconciler, .. }) = &self.role else { return };
        self.is_reusable = false;
        let abandoned = Abandoned { key: self.key.clone(), attempt: *attempt };
        let limit = self.neighbours.shared.settings.reconcile_limit;
        let (reconciler, lock) = (reconciler.clone(), ctx.address());
        actix_rt::spawn(async move {
            let key = abandoned.key.clone();
            // An inner block, so that a panic before the user's first await is caught as well.
            let asking = async move { reconciler.ask(abandoned).await };
            let verdict = match timeout(limit, AssertUnwindSafe(asking).catch_unwind()).await {
                Ok(Ok(verdict)) => verdict,
                Ok(Err(_)) => {
                    error!(%key, "the reconciler panicked; the key stays indeterminate");
                    Verdict::Unknown
                }
                Err(_) => {
                    error!(%key, ?limit, "the reconciler took too long; the key stays indeterminate");
                    Verdict::Unknown
                }
            };
            // If the lock is gone, its arbiter has ended.
            let _ = lock.try_send(Reconciled::Verdict(verdict));
        });
    }

    fn on_verdict(&mut self, verdict: Verdict, ctx: &mut Context<Self>) {
        let Role::Reconciling(Reconciling { attempt, abandoned_by, .. }) = &self.role else { return };
        let (attempt, owner) = (Some(*attempt), Some(*abandoned_by));
        let with = match verdict {
            Verdict::Completed(outcome) => {
                Resolution::Complete { outcome, retention: self.neighbours.shared.settings.policy.retention }
            }
            Verdict::NotDone => Resolution::Release,
            Verdict::Unknown => return self.stay_indeterminate(ctx),
        };
        let lock = ctx.address();
        let reply = Reply::new(move |answer| drop(lock.try_send(Reconciled::Resolved(answer))));
        self.neighbours.ask_store(Request::Resolve(Resolve { key: self.key.clone(), attempt, owner, with }, reply));
    }

    fn on_resolved(&mut self, answer: Result<Resolved, StoreError>, ctx: &mut Context<Self>) {
        match answer {
            Ok(Resolved::Resolved) => {
                self.tell(EventKind::Reconciled);
                self.retire(None, ctx);
            }
            // Another process was faster: the waiting callers ask again.
            Ok(Resolved::NotIndeterminate) => self.retire(None, ctx),
            Err(_) => {
                self.tell(EventKind::StoreFailed);
                self.stay_indeterminate(ctx);
            }
        }
    }

    fn stay_indeterminate(&mut self, ctx: &mut Context<Self>) {
        for waiter in self.waiters.take() {
            self.refuse(waiter);
        }
        self.retire(None, ctx);
    }
}

impl Handler<Reconciled> for KeyLock {
    type Result = ();

    fn handle(&mut self, reconciled: Reconciled, ctx: &mut Self::Context) {
        match reconciled {
            Reconciled::Verdict(verdict) => self.on_verdict(verdict, ctx),
            Reconciled::Resolved(answer) => self.on_resolved(answer, ctx),
        }
    }
}
