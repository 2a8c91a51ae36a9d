//! The protocol between the engine and a store, and the trait that a store's author implements.
//!
//! Each message is **one atomic step at the store**, conditional on what it expects to find, and timed by the store's
//! clock. [`record::transition`](crate::record::transition) defines what each step does; the
//! [conformance suite](crate::conformance) checks it. The guide to [writing a backend](crate::guide::writing_a_backend)
//! walks through a whole one.

mod actor;
mod error;
mod find;
mod finding;
mod message;
mod request;
mod step_message;
mod step_state;
mod transaction;

pub(crate) use actor::{BackendActor, Persist};
pub use error::StoreError;
pub use find::{Filter, Find, Found, StateName, find_by_listing};
pub use finding::Finding;
pub use message::{
    Acquire, Acquired, Changed, Complete, Completed, Held, Hold, List, Lookup, Purge, Purged, RecordView, Release,
    Released, Remove, Removed, Renew, Renewed, Resolution, Resolve, Resolved, StateView, Stats, StoreStats, Watch,
    Withdraw, Withdrawn,
};
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
/// The value is a handle: cheap to clone, and shared by all threads. Every arbiter's backend actor calls
/// [`session`](Self::session) once and keeps what it gives.
///
/// The futures run on that arbiter and need not be `Send`. They may be **dropped at any point**: the engine gives every
/// call a deadline. A step whose future was dropped may have been executed or not, and a late effect of it must be one
/// that its owner can repeat or [withdraw](Self::withdraw).
///
/// A user implements the methods named after the messages. One that gains by batching (a pipeline, one transaction for
/// all that waits) implements [`execute`](Self::execute) as well.
///
/// ```
/// use oncekey::backend::{Backend, StoreError, Stats};
///
/// async fn completed<B: Backend>(backend: &B) -> Result<u64, StoreError> {
///     Ok(backend.stats(Stats).await?.completed)
/// }
/// ```
pub trait Backend: Clone + Send + Sync + 'static {
    /// The handle for one arbiter, made on that arbiter's thread: a backend with a connection of its own for each
    /// arbiter makes it here.
    #[must_use]
    fn session(&self) -> Self {
        self.clone()
    }

    /// How many batches an arbiter may have under way at this store at once. While that many are, what comes in
    /// gathers into the next batch: fewer means larger batches.
    fn batches_under_way(&self) -> usize {
        usize::MAX
    }

    /// What waits is spread over the batches that may be under way, but into none of fewer steps than this. The default
    /// never spreads: for a store to which one large batch costs less than two small ones.
    ///
    /// A store that works on one batch while the engine takes the answers of another gains by a small figure: both are
    /// at work, where with all steps in one batch each waits for the other.
    fn smallest_batch(&self) -> usize {
        usize::MAX
    }

    /// Claims a key, or tells what stands in the way. See [`transition::acquire`](crate::record::transition::acquire).
    fn acquire(&self, message: Acquire) -> impl Future<Output = Result<Acquired, StoreError>>;

    /// Lengthens a lease. See [`transition::renew`](crate::record::transition::renew).
    fn renew(&self, message: Renew) -> impl Future<Output = Result<Renewed, StoreError>>;

    /// Stores an outcome. See [`transition::complete`](crate::record::transition::complete).
    fn complete(&self, message: Complete) -> impl Future<Output = Result<Completed, StoreError>>;

    /// Runs an operation and stores its outcome in one transaction, where the store has transactions.
    fn complete_in_transaction(
        &self,
        message: CompleteInTransaction,
    ) -> impl Future<Output = Result<CompletedInTransaction, StoreError>> {
        drop(message);
        std::future::ready(Err(StoreError::Unsupported("operations in its own transaction")))
    }

    /// Gives a claim up. See [`transition::release`](crate::record::transition::release).
    fn release(&self, message: Release) -> impl Future<Output = Result<Released, StoreError>>;

    /// Takes a claim back that may or may not be in the store, so that it can no longer arrive. See
    /// [`transition::withdraw`](crate::record::transition::withdraw).
    fn withdraw(&self, message: Withdraw) -> impl Future<Output = Result<Withdrawn, StoreError>>;

    /// Makes a claim indeterminate. See [`transition::hold`](crate::record::transition::hold).
    fn hold(&self, message: Hold) -> impl Future<Output = Result<Held, StoreError>>;

    /// Settles an indeterminate key. See [`transition::resolve`](crate::record::transition::resolve).
    fn resolve(&self, message: Resolve) -> impl Future<Output = Result<Resolved, StoreError>>;

    /// Begins a step of an operation, or says what is known of it. See
    /// [`transition::begin_step`](crate::record::transition::begin_step).
    ///
    /// A backend without steps leaves this and the other methods of steps as they are.
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

    /// Runs a step's operation and stores its outcome in one transaction, where the store has transactions. See
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

    /// Reads one record as it stands now: an expired one is `None`, a lapsed claim to be held is indeterminate.
    fn lookup(&self, message: Lookup) -> impl Future<Output = Result<Option<RecordView>, StoreError>>;

    /// Removes a record, whatever its state.
    fn remove(&self, message: Remove) -> impl Future<Output = Result<Removed, StoreError>>;

    /// Reads up to `limit` records after a key, in the order of the stored keys.
    fn list(&self, message: List) -> impl Future<Output = Result<Vec<RecordView>, StoreError>>;

    /// Reads a page of the records that match a filter, in the order of the stored keys.
    ///
    /// The default looks through all records. A store with an index for the filter does better.
    fn find(&self, message: Find) -> impl Future<Output = Result<Found, StoreError>> {
        find_by_listing(self, message)
    }

    /// Reads the settings of the store's servers, and reports those that are not as they should be. The default reports
    /// none.
    fn examine(&self) -> impl Future<Output = Result<Vec<Finding>, StoreError>> {
        std::future::ready(Ok(Vec::new()))
    }

    /// Removes up to `limit` records whose time is over.
    fn purge(&self, message: Purge) -> impl Future<Output = Result<Purged, StoreError>>;

    /// Counts the records.
    fn stats(&self, message: Stats) -> impl Future<Output = Result<StoreStats, StoreError>>;

    /// Resolves when the key is no longer in progress, whoever changed it; at once if it is not in progress now. It may
    /// resolve too early, and has no deadline but being dropped.
    ///
    /// The default looks every 30 ms or so. A store that can tell (LISTEN/NOTIFY, pub/sub) does better.
    fn watch(&self, message: Watch) -> impl Future<Output = Result<Changed, StoreError>> {
        watch_by_polling(self, message)
    }

    /// Takes a whole batch of steps, in order for each key, and answers each. The default takes them side by side.
    ///
    /// One bad step must not fail its neighbours. [`Request::Watch`] is never part of a batch: it may take long.
    fn execute(&self, batch: Vec<Request>) -> impl Future<Output = ()> {
        async move {
            let _: Vec<()> = join_all(batch.into_iter().map(|request| request.dispatch(self))).await;
        }
    }
}

/// What a backend says that keeps no steps.
const NO_STEPS: StoreError = StoreError::Unsupported("steps");

/// Looks at a key at intervals with jitter until it is no longer in progress: [`Backend::watch`] for stores that can't
/// tell.
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
        // Jitter keeps the waiters of many processes from looking in step.
        tokio::time::sleep(Duration::from_millis(rand::random_range(20..40))).await;
    }
}
