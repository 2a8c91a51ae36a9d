//! The protocol between the engine and a store, and the trait that the author of a backend implements.
//!
//! Each message is **one atomic step at the store**, conditional on what it expects to find and timed by the store's
//! clock. [`record::transition`](crate::record::transition) defines what each step does, and the [conformance
//! suite](crate::conformance) checks it. The guide [writing a backend](crate::guide::writing_a_backend) builds a
//! complete one.

mod actor;
mod error;
mod find;
mod finding;
mod message;
mod record_view;
mod request;
mod step_message;
mod step_state;
mod transaction;

pub(crate) use actor::{BackendActor, Persist};
pub use error::StoreError;
pub use find::{Filter, Find, Found, StateName, find_by_listing};
pub use finding::Finding;
pub use message::{
    Acquire, Acquired, Changed, Complete, Completed, Held, Hold, List, Lookup, Purge, Purged, Release, Released,
    Remove, Removed, Renew, Renewed, Resolution, Resolve, Resolved, Stats, StoreStats, Watch, Withdraw, Withdrawn,
};
pub use record_view::{RecordView, StateView};
pub use request::{Reply, Request};
pub use step_message::{
    BeginStep, CommitStep, CompleteStep, FailStep, ResolveStep, StepBegun, StepCommitted, StepCompleted, StepFailed,
    StepInTransaction, StepResolution,
};
pub use step_state::StepState;
pub use transaction::{CompleteInTransaction, CompletedInTransaction, OperationFailure, TransactionOperation};

use std::future::Future;
use std::time::Duration;

use futures_util::future::join_all;

/// A store of records.
///
/// The value is a handle: it is cheap to clone, and all threads share it. Every arbiter's backend actor calls
/// [`session`](Self::session) once and keeps the result.
///
/// The futures run on that arbiter and need not be `Send`. The engine gives every call a deadline, so a future may be
/// **dropped at any point**. A step whose future was dropped may or may not have been executed. Its owner must be able
/// to repeat it or to [withdraw](Self::withdraw) it, even if it takes effect late.
///
/// You implement the methods named after the messages. If your store benefits from batches (a pipeline, or one
/// transaction for all queued steps), implement [`execute`](Self::execute) as well.
///
/// ```
/// use oncekey::backend::{Backend, StoreError, Stats};
///
/// async fn completed<B: Backend>(backend: &B) -> Result<u64, StoreError> {
///     Ok(backend.stats(Stats).await?.completed)
/// }
/// ```
pub trait Backend: Clone + Send + Sync + 'static {
    /// Returns the handle for one arbiter. The engine calls this on that arbiter's thread, so a backend with one
    /// connection per arbiter can open it here.
    #[must_use]
    fn session(&self) -> Self {
        self.clone()
    }

    /// Returns how many batches one arbiter may have in flight at this store. At that limit, new steps gather into the
    /// next batch, so a lower limit means larger batches.
    fn max_in_flight_batches(&self) -> usize {
        usize::MAX
    }

    /// Returns the minimum number of steps per batch when the engine spreads queued steps over the batches that may be
    /// in flight. The default never spreads, which suits a store where one large batch costs less than two small ones.
    ///
    /// A store that can process one batch while the engine reads another's answers benefits from a small value: with
    /// all steps in one batch, each side would wait for the other.
    fn min_batch_size(&self) -> usize {
        usize::MAX
    }

    /// Claims a key, or returns what stands in the way. See
    /// [`transition::acquire`](crate::record::transition::acquire).
    fn acquire(&self, message: Acquire) -> impl Future<Output = Result<Acquired, StoreError>>;

    /// Renews a lease. See [`transition::renew`](crate::record::transition::renew).
    fn renew(&self, message: Renew) -> impl Future<Output = Result<Renewed, StoreError>>;

    /// Stores an outcome. See [`transition::complete`](crate::record::transition::complete).
    fn complete(&self, message: Complete) -> impl Future<Output = Result<Completed, StoreError>>;

    /// Runs an operation and stores its outcome in one transaction, if the store has transactions.
    fn complete_in_transaction(
        &self,
        message: CompleteInTransaction,
    ) -> impl Future<Output = Result<CompletedInTransaction, StoreError>> {
        drop(message);
        std::future::ready(Err(StoreError::Unsupported("operations in its own transaction")))
    }

    /// Releases a claim. See [`transition::release`](crate::record::transition::release).
    fn release(&self, message: Release) -> impl Future<Output = Result<Released, StoreError>>;

    /// Withdraws a claim that may or may not be in the store, so that it can no longer take effect. See
    /// [`transition::withdraw`](crate::record::transition::withdraw).
    fn withdraw(&self, message: Withdraw) -> impl Future<Output = Result<Withdrawn, StoreError>>;

    /// Makes a claim indeterminate. See [`transition::hold`](crate::record::transition::hold).
    fn hold(&self, message: Hold) -> impl Future<Output = Result<Held, StoreError>>;

    /// Settles an indeterminate key. See [`transition::resolve`](crate::record::transition::resolve).
    fn resolve(&self, message: Resolve) -> impl Future<Output = Result<Resolved, StoreError>>;

    /// Begins a step of an operation, or returns what is known about it. See
    /// [`transition::begin_step`](crate::record::transition::begin_step).
    ///
    /// A backend without steps keeps the default of this and of the other step methods.
    fn begin_step(&self, message: BeginStep) -> impl Future<Output = Result<StepBegun, StoreError>> {
        drop(message);
        std::future::ready(Err(NO_STEPS))
    }

    /// Records a step's outcome. See [`transition::complete_step`](crate::record::transition::complete_step).
    fn complete_step(&self, message: CompleteStep) -> impl Future<Output = Result<StepCompleted, StoreError>> {
        drop(message);
        std::future::ready(Err(NO_STEPS))
    }

    /// Records that a run of a step had no effect. See
    /// [`transition::fail_step`](crate::record::transition::fail_step).
    fn fail_step(&self, message: FailStep) -> impl Future<Output = Result<StepFailed, StoreError>> {
        drop(message);
        std::future::ready(Err(NO_STEPS))
    }

    /// Runs a step's operation and stores its outcome in one transaction, if the store has transactions. See
    /// [`transition::commit_step`](crate::record::transition::commit_step).
    fn step_in_transaction(
        &self,
        message: StepInTransaction,
    ) -> impl Future<Output = Result<StepCommitted, StoreError>> {
        drop(message);
        std::future::ready(Err(StoreError::Unsupported("steps in its own transactions")))
    }

    /// Settles a step whose result is unknown. See
    /// [`transition::resolve_step`](crate::record::transition::resolve_step).
    fn resolve_step(&self, message: ResolveStep) -> impl Future<Output = Result<Resolved, StoreError>> {
        drop(message);
        std::future::ready(Err(NO_STEPS))
    }

    /// Reads one record as it stands now. An expired record is `None`, and a lapsed claim under Hold is indeterminate.
    fn lookup(&self, message: Lookup) -> impl Future<Output = Result<Option<RecordView>, StoreError>>;

    /// Removes a record, whatever its state.
    fn remove(&self, message: Remove) -> impl Future<Output = Result<Removed, StoreError>>;

    /// Reads up to `limit` records after a key, in the order of the stored keys.
    fn list(&self, message: List) -> impl Future<Output = Result<Vec<RecordView>, StoreError>>;

    /// Reads one page of the records that match a filter, in the order of the stored keys.
    ///
    /// The default reads through all records. A store with an index for the filter should override it.
    fn find(&self, message: Find) -> impl Future<Output = Result<Found, StoreError>> {
        find_by_listing(self, message)
    }

    /// Reads the settings of the store's servers, and reports those that are not as they should be. The default reports
    /// none.
    fn examine(&self) -> impl Future<Output = Result<Vec<Finding>, StoreError>> {
        std::future::ready(Ok(Vec::new()))
    }

    /// Removes up to `limit` expired records.
    fn purge(&self, message: Purge) -> impl Future<Output = Result<Purged, StoreError>>;

    /// Counts the records.
    fn stats(&self, message: Stats) -> impl Future<Output = Result<StoreStats, StoreError>>;

    /// Resolves when the key is no longer in progress, whoever changed it, and at once if it is not in progress now. It
    /// may resolve too early. Its only deadline is that the engine drops it.
    ///
    /// The default reads the record about every 30 ms. A store that can notify (LISTEN/NOTIFY, pub/sub) should override
    /// it.
    fn watch(&self, message: Watch) -> impl Future<Output = Result<Changed, StoreError>> {
        watch_by_polling(self, message)
    }

    /// Executes a batch of steps, in order for each key, and answers each one. The default executes them concurrently.
    ///
    /// One bad step must not fail its neighbours. [`Request::Watch`] is never part of a batch, because it may take
    /// long.
    fn execute(&self, batch: Vec<Request>) -> impl Future<Output = ()> {
        async move {
            let _: Vec<()> = join_all(batch.into_iter().map(|request| request.dispatch(self))).await;
        }
    }
}

/// The answer of a backend that keeps no steps.
const NO_STEPS: StoreError = StoreError::Unsupported("steps");

/// Reads a key at intervals with jitter until it is no longer in progress. This is [`Backend::watch`] for stores that
/// cannot notify.
///
/// # Errors
/// Those of [`Backend::lookup`].
///
/// ```
/// # use oncekey::{Key, backend::{Backend, StoreError, Watch, watch_by_polling}};
/// async fn wait_for<B: Backend>(backend: &B, key: Key) -> Result<(), StoreError> {
///     watch_by_polling(backend, Watch { key, limit: std::time::Duration::from_secs(10) }).await?;
///     Ok(())
/// }
/// ```
pub async fn watch_by_polling(backend: &impl Backend, message: Watch) -> Result<Changed, StoreError> {
    loop {
        let found = backend.lookup(Lookup { key: message.key.clone() }).await?;
        if !found.is_some_and(|view| matches!(view.state, StateView::InProgress { .. })) {
            return Ok(Changed);
        }
        // Jitter keeps the waiting callers of many processes from reading at the same moment.
        tokio::time::sleep(Duration::from_millis(rand::random_range(20..40))).await;
    }
}
