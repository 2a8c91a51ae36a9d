//! One type for all backends, so that the checks are compiled once, and not once for each backend under test.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use futures_util::future::LocalBoxFuture;

use crate::backend::{
    Acquire, Acquired, Backend, BeginStep, Changed, Complete, CompleteInTransaction, CompleteStep, Completed,
    CompletedInTransaction, FailStep, Find, Finding, Found, Held, Hold, List, Lookup, Purge, Purged, RecordView,
    Release, Released, Remove, Removed, Renew, Renewed, Request, Resolve, ResolveStep, Resolved, Stats, StepBegun,
    StepCommitted, StepCompleted, StepFailed, StepInTransaction, StoreError, StoreStats, Watch, Withdraw, Withdrawn,
};

/// Any backend. Every method is the backend's own, its overridden defaults too.
#[derive(Clone)]
pub(super) struct AnyBackend(Arc<dyn AsAny>);

impl AnyBackend {
    pub(super) fn new(backend: impl Backend) -> Self {
        Self(Arc::new(backend))
    }
}

macro_rules! any_backend {
    ($($method:ident($message:ty) -> $answer:ty;)*) => {
        /// [`Backend`], as a trait that can be an object.
        trait AsAny: Send + Sync {
            fn session(&self) -> AnyBackend;
            fn batches_under_way(&self) -> usize;
            fn smallest_batch(&self) -> usize;
            fn execute(&self, batch: Vec<Request>) -> LocalBoxFuture<'_, ()>;
            fn examine(&self) -> LocalBoxFuture<'_, Result<Vec<Finding>, StoreError>>;
            $(fn $method(&self, message: $message) -> LocalBoxFuture<'_, Result<$answer, StoreError>>;)*
        }

        impl<B: Backend> AsAny for B {
            fn session(&self) -> AnyBackend {
                AnyBackend::new(Backend::session(self))
            }

            fn batches_under_way(&self) -> usize {
                Backend::batches_under_way(self)
            }

            fn smallest_batch(&self) -> usize {
                Backend::smallest_batch(self)
            }

            fn execute(&self, batch: Vec<Request>) -> LocalBoxFuture<'_, ()> {
                Box::pin(Backend::execute(self, batch))
            }

            fn examine(&self) -> LocalBoxFuture<'_, Result<Vec<Finding>, StoreError>> {
                Box::pin(Backend::examine(self))
            }

            $(
                fn $method(&self, message: $message) -> LocalBoxFuture<'_, Result<$answer, StoreError>> {
                    Box::pin(Backend::$method(self, message))
                }
            )*
        }

        impl Backend for AnyBackend {
            fn session(&self) -> Self {
                self.0.session()
            }

            fn batches_under_way(&self) -> usize {
                self.0.batches_under_way()
            }

            fn smallest_batch(&self) -> usize {
                self.0.smallest_batch()
            }

            fn execute(&self, batch: Vec<Request>) -> impl Future<Output = ()> {
                self.0.execute(batch)
            }

            fn examine(&self) -> impl Future<Output = Result<Vec<Finding>, StoreError>> {
                self.0.examine()
            }

            $(
                fn $method(&self, message: $message) -> impl Future<Output = Result<$answer, StoreError>> {
                    self.0.$method(message)
                }
            )*
        }
    };
}

any_backend! {
    acquire(Acquire) -> Acquired;
    renew(Renew) -> Renewed;
    complete(Complete) -> Completed;
    complete_in_transaction(CompleteInTransaction) -> CompletedInTransaction;
    release(Release) -> Released;
    withdraw(Withdraw) -> Withdrawn;
    hold(Hold) -> Held;
    resolve(Resolve) -> Resolved;
    begin_step(BeginStep) -> StepBegun;
    complete_step(CompleteStep) -> StepCompleted;
    fail_step(FailStep) -> StepFailed;
    step_in_transaction(StepInTransaction) -> StepCommitted;
    resolve_step(ResolveStep) -> Resolved;
    lookup(Lookup) -> Option<RecordView>;
    remove(Remove) -> Removed;
    list(List) -> Vec<RecordView>;
    find(Find) -> Found;
    purge(Purge) -> Purged;
    stats(Stats) -> StoreStats;
    watch(Watch) -> Changed;
}

impl fmt::Debug for AnyBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnyBackend")
    }
}
