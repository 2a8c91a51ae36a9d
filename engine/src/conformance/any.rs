//! One type for all backends, so that the checks are compiled once and not once for each backend under test.

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

/// Any backend. Every method calls the backend's own, including its overridden defaults.
#[derive(Clone)]
pub(super) struct AnyBackend(Arc<dyn AsAny>);

impl AnyBackend {
    pub(super) fn new(backend: impl Backend) -> Self {
        Self(Arc::new(backend))
    }
}

macro_rules! any_backend {
    ($($method:ident($message:ty) -> $answer:ty;)*) => {
        /// [`Backend`] as an object-safe trait.
        trait AsAny: Send + Sync {
            fn session(&self) -> AnyBackend;
            fn max_in_flight_batches(&self) -> usize;
            fn min_batch_size(&self) -> usize;
            fn execute(&self, batch: Vec<Request>) -> LocalBoxFuture<'_, ()>;
            fn examine(&self) -> LocalBoxFuture<'_, Result<Vec<Finding>, StoreError>>;
            $(fn $method(&self, message: $message) -> LocalBoxFuture<'_, Result<$answer, StoreError>>;)*
        }

        impl<B: Backend> AsAny for B {
            fn session(&self) -> AnyBackend {
                AnyBackend::new(Backend::session(self))
            }

            fn max_in_flight_batches(&self) -> usize {
                Backend::max_in_flight_batches(self)
            }

            fn min_batch_size(&self) -> usize {
                Backend::min_batch_size(self)
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

            fn max_in_flight_batches(&self) -> usize {
                self.0.max_in_flight_batches()
            }

            fn min_batch_size(&self) -> usize {
                self.0.min_batch_size()
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
