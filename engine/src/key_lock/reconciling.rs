//! A lock that has the user's reconciler settle an abandoned key.

use std::panic::AssertUnwindSafe;

use actix::prelude::*;
use futures_util::FutureExt as _;
use tokio::time::timeout;
use tracing::error;

use super::{KeyLock, Role};
use crate::backend::{
    Lookup, RecordView, Reply, Request, Resolution, Resolve, ResolveStep, Resolved, StateView, StepResolution,
    StoreError,
};
use crate::reconcile::Reconciler;
use crate::record::{Owner, Progress, StepName, StepRecord, StepRun, StoreTime};
use crate::{AbandonedClaim, AbandonedStep, Attempt, EventKind, FencingToken, ReconcileOutcome};

/// An indeterminate key that the reconciler is asked about.
pub(crate) struct Reconciling {
    pub(super) attempt: Attempt,
    /// The reconciler's outcome applies to this holder's claim and to no other.
    abandoned_by: Owner,
    reconciler: Reconciler,
    /// The step that the reconciler is asked about, if it is asked about a step.
    step: Option<(StepName, StepRun, FencingToken)>,
}

impl Reconciling {
    pub(crate) fn new(attempt: Attempt, abandoned_by: Owner, reconciler: Reconciler) -> Self {
        Self { attempt, abandoned_by, reconciler, step: None }
    }
}

/// What the reconciler said, and what the store answered.
enum Reconciled {
    Found(Result<Option<RecordView>, StoreError>),
    Outcome(ReconcileOutcome),
    Resolved(Result<Resolved, StoreError>),
}

impl Message for Reconciled {
    type Result = ();
}

impl KeyLock {
    /// Looks for steps of the key whose outcome is unknown. The reconciler is asked about each of them first.
    pub(super) fn reconcile(&mut self, ctx: &mut Context<Self>) {
        self.is_reusable = false;
        let lock = ctx.address();
        let reply = Reply::new(move |found| drop(lock.try_send(Reconciled::Found(found))));
        self.neighbours.ask_store(Request::Lookup(Lookup { key: self.key.clone() }, reply));
    }

    fn on_found(&mut self, found: Result<Option<RecordView>, StoreError>, ctx: &mut Context<Self>) {
        let view = match found {
            Ok(Some(view)) if view.state == StateView::Indeterminate => view,
            // The key was settled in the meantime. The waiting callers ask again.
            Ok(_) => return self.retire(None, ctx),
            Err(_) => {
                self.tell(EventKind::StoreFailed);
                return self.stay_indeterminate(ctx);
            }
        };
        let is_open = |step: &&StepRecord| {
            step.progress == Progress::Begun && step.reruns_until.is_none_or(|until| until < StoreTime::END)
        };
        let steps = view.steps.as_deref();
        let open = steps.and_then(|steps| steps.list.iter().find(is_open).map(|step| (step, steps.life)));
        let derivation = &self.neighbours.shared.settings.derivation;
        let step = open.map(|(StepRecord { name, attempt, .. }, life)| {
            let key = (!name.is_hashed()).then(|| derivation.derive(&self.key, name.as_str()));
            AbandonedStep { name: name.clone(), attempt: *attempt, key, life }
        });
        let Role::Reconciling(reconciling) = &mut self.role else { return };
        reconciling.step = open.map(|(step, life)| (step.name.clone(), step.run, life));
        self.ask_reconciler(step, ctx);
    }

    fn ask_reconciler(&self, step: Option<AbandonedStep>, ctx: &mut Context<Self>) {
        let Role::Reconciling(Reconciling { attempt, reconciler, .. }) = &self.role else { return };
        let abandoned = AbandonedClaim { key: self.key.clone(), attempt: *attempt, step };
        let limit = self.neighbours.shared.settings.reconcile_limit;
        let (reconciler, lock) = (reconciler.clone(), ctx.address());
        actix_rt::spawn(async move {
            let key = abandoned.key.clone();
            // An inner block, so that a panic before the user's first await is also caught.
            let asking = async move { reconciler.ask(abandoned).await };
            let outcome = match timeout(limit, AssertUnwindSafe(asking).catch_unwind()).await {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(_)) => {
                    error!(%key, "the reconciler panicked; the key stays indeterminate");
                    ReconcileOutcome::Unknown
                }
                Err(_) => {
                    error!(%key, ?limit, "the reconciler took too long; the key stays indeterminate");
                    ReconcileOutcome::Unknown
                }
            };
            // If the lock is gone, its arbiter has ended.
            let _ = lock.try_send(Reconciled::Outcome(outcome));
        });
    }

    fn on_outcome(&mut self, reconciled: ReconcileOutcome, ctx: &mut Context<Self>) {
        let Role::Reconciling(Reconciling { attempt, abandoned_by, step, .. }) = &self.role else { return };
        let lock = ctx.address();
        let reply = Reply::new(move |answer| drop(lock.try_send(Reconciled::Resolved(answer))));
        if let Some((name, run, life)) = step {
            let with = match reconciled {
                ReconcileOutcome::Completed(outcome) => StepResolution::Complete { outcome },
                ReconcileOutcome::NotDone => StepResolution::Release,
                ReconcileOutcome::Unknown => return self.stay_indeterminate(ctx),
            };
            let (key, name) = (self.key.clone(), name.clone());
            let message = ResolveStep { key, name, run: Some(*run), life: Some(*life), with };
            return self.neighbours.ask_store(Request::ResolveStep(Box::new(message), reply));
        }
        let (attempt, owner) = (Some(*attempt), Some(*abandoned_by));
        let with = match reconciled {
            ReconcileOutcome::Completed(outcome) => {
                Resolution::Complete { outcome, retention: self.neighbours.shared.settings.policy.retention }
            }
            ReconcileOutcome::NotDone => Resolution::Release,
            ReconcileOutcome::Unknown => return self.stay_indeterminate(ctx),
        };
        self.neighbours.ask_store(Request::Resolve(Resolve { key: self.key.clone(), attempt, owner, with }, reply));
    }

    fn on_resolved(&mut self, answer: Result<Resolved, StoreError>, ctx: &mut Context<Self>) {
        match answer {
            Ok(Resolved::Resolved) => {
                self.tell(EventKind::Reconciled);
                match &self.role {
                    // Another step, or the key itself, may still be unsettled.
                    Role::Reconciling(Reconciling { step: Some(_), .. }) => self.reconcile(ctx),
                    _ => self.retire(None, ctx),
                }
            }
            // Another process settled it first. The waiting callers ask again.
            Ok(Resolved::NotIndeterminate) => self.retire(None, ctx),
            // A step that was allowed to run again until its time ran out.
            Ok(Resolved::UnsettledStep { .. }) => self.stay_indeterminate(ctx),
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
            Reconciled::Found(found) => self.on_found(found, ctx),
            Reconciled::Outcome(outcome) => self.on_outcome(outcome, ctx),
            Reconciled::Resolved(answer) => self.on_resolved(answer, ctx),
        }
    }
}
