//! The suite that every backend must pass, both the shipped ones and yours.
//!
//! It checks the engine's contract, line by line, on a store of your choice: concurrent claims from several threads,
//! each with its own connection, lapsing leases, and lost answers. Call [`suite`] to run everything in one test, or
//! [`conformance_tests!`](crate::conformance_tests) for one named test per check.
//!
//! ```
//! use oncekey::conformance::{self, Capabilities};
//! use oncekey_backends::MemoryBackend;
//!
//! # #[cfg(not(doctest))] // The whole suite takes a while; each backend's tests run it.
//! #[actix_rt::test]
//! async fn conforms() {
//!     let store = MemoryBackend::new();
//!     conformance::suite(move || std::future::ready(store.clone()), Capabilities::all()).await;
//! }
//! ```
//!
//! You pass a function that connects to the store. It is called many times, also on other threads, and all its
//! connections must reach **the same records**. The checks use fresh keys and need no empty store. But nobody else may
//! use the store while [`e14`](e14_expired_records_are_purged_in_bounded_batches) counts what is purged.
//!
//! Some checks need separate processes (`kill -9`, clocks that differ) and are not possible here. The project's `tests`
//! package makes them for the shipped backends.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed check is a panic, as in any test")]

mod any;
mod claims;
mod faults;
mod finding;
mod leaving;
mod limits;
mod operations;
mod records;
mod step_calls;
mod steps;
mod transactions;
mod waiting;

pub use claims::*;
pub use faults::*;
pub use finding::*;
pub use leaving::*;
pub use limits::*;
pub use operations::*;
pub use records::*;
pub use step_calls::*;
pub use steps::*;
pub use transactions::*;
pub use waiting::*;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::{FutureExt as _, LocalBoxFuture};

use any::AnyBackend;

use crate::backend::{Acquire, Acquired, Backend};
use crate::record::{Owner, PayloadKind, SealedOutcome};
use crate::{Engine, EngineBuilder, Fingerprint, Key, OnAbandoned};

/// The optional abilities of a store.
///
/// ```
/// use oncekey::conformance::Capabilities;
///
/// assert!(Capabilities::all().transactions);
/// assert!(!Capabilities::without_transactions().transactions);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// The store can run an operation in the transaction that completes its record.
    pub transactions: bool,
    /// The store removes expired records by itself, so a purge finds nothing to do.
    pub expires_by_itself: bool,
    /// The store keeps the steps of operations.
    pub steps: bool,
}

impl Capabilities {
    /// Returns every ability. Expired records wait for a purge.
    pub fn all() -> Self {
        Self { transactions: true, expires_by_itself: false, steps: true }
    }

    /// Returns every ability except [`transactions`](Self::transactions).
    pub fn without_transactions() -> Self {
        Self { transactions: false, ..Self::all() }
    }

    /// Returns the same abilities without [`steps`](Self::steps).
    ///
    /// ```
    /// # use oncekey::conformance::Capabilities;
    /// assert!(!Capabilities::all().without_steps().steps);
    /// ```
    #[must_use]
    pub fn without_steps(self) -> Self {
        Self { steps: false, ..self }
    }

    /// Returns the same abilities for a store that removes expired records without a purge.
    ///
    /// ```
    /// # use oncekey::conformance::Capabilities;
    /// assert!(Capabilities::all().expiring_by_itself().expires_by_itself);
    /// ```
    #[must_use]
    pub fn expiring_by_itself(self) -> Self {
        Self { expires_by_itself: true, ..self }
    }
}

/// Connects to the store under test. Every function that returns a future of a backend implements it.
///
/// ```
/// # use oncekey::conformance::Connect;
/// # use oncekey_backends::MemoryBackend;
/// fn takes(_: impl Connect) {}
/// takes(|| async { MemoryBackend::new() });
/// ```
pub trait Connect: Clone + Send + Sync + 'static {
    /// The backend.
    type Backend: Backend;

    /// Returns a new connection to the same records.
    fn connect(&self) -> impl Future<Output = Self::Backend>;
}

impl<F, Fut, B> Connect for F
where
    F: Fn() -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = B>,
    B: Backend,
{
    type Backend = B;

    fn connect(&self) -> impl Future<Output = B> {
        self()
    }
}

/// The store under test.
///
/// ```
/// # use oncekey::conformance::{Capabilities, Store};
/// # use oncekey_backends::MemoryBackend;
/// let store = Store::new(|| async { MemoryBackend::new() }, Capabilities::without_transactions());
/// ```
#[derive(Clone)]
pub struct Store {
    connect: Arc<dyn Fn() -> LocalBoxFuture<'static, AnyBackend> + Send + Sync>,
    capabilities: Capabilities,
}

impl Store {
    /// Describes the store that `connect` reaches.
    pub fn new(connect: impl Connect, capabilities: Capabilities) -> Self {
        let connect = move || {
            let connect = connect.clone();
            async move { AnyBackend::new(connect.connect().await) }.boxed_local()
        };
        Self { connect: Arc::new(connect), capabilities }
    }

    async fn connect(&self) -> AnyBackend {
        (self.connect)().await
    }

    /// Starts an engine on a new connection.
    async fn engine(&self, set_up: impl FnOnce(EngineBuilder<AnyBackend>) -> EngineBuilder<AnyBackend>) -> Engine {
        set_up(Engine::builder(self.connect().await)).start().unwrap()
    }

    /// Runs `work` on `threads` threads at once, each an arbiter with its own connection, and returns their results.
    fn on_threads<T, W, Fut>(&self, threads: usize, work: W) -> Vec<T>
    where
        T: Send + 'static,
        W: Fn(AnyBackend, usize) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = T> + 'static,
    {
        let barrier = Arc::new(std::sync::Barrier::new(threads));
        let spawned: Vec<_> = (0..threads)
            .map(|thread| {
                let (connect, work, barrier) = (self.connect.clone(), work.clone(), barrier.clone());
                std::thread::spawn(move || {
                    actix_rt::System::new().block_on(async move {
                        let backend = connect().await;
                        barrier.wait();
                        work(backend, thread).await
                    })
                })
            })
            .collect();
        spawned.into_iter().map(|thread| thread.join().expect("a thread of the check failed")).collect()
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("capabilities", &self.capabilities).finish_non_exhaustive()
    }
}

/// Long enough that nothing lapses by itself during a check.
const LONG: Duration = Duration::from_secs(60);
/// Short enough to wait for.
const SHORT: Duration = Duration::from_millis(300);

fn fresh_key() -> Key {
    Key::new("conformance", format_args!("{:032x}", rand::random::<u128>())).unwrap()
}

fn fingerprint() -> Fingerprint {
    Fingerprint::of(b"what was asked")
}

fn outcome(key: &Key, text: &str) -> SealedOutcome {
    SealedOutcome::seal(key, PayloadKind::Json, |bytes| bytes.extend_from_slice(text.as_bytes()))
}

/// Returns an acquire of `key` by a new owner.
fn acquire(key: &Key, lease: Duration, on_abandoned: OnAbandoned) -> Acquire {
    Acquire {
        key: key.clone(),
        fingerprint: fingerprint(),
        owner: Owner::random(),
        lease,
        on_abandoned,
        past_withdrawal: None,
    }
}

/// Claims `key` and returns the owner.
async fn claim(backend: &impl Backend, key: &Key, lease: Duration, on_abandoned: OnAbandoned) -> Owner {
    let message = acquire(key, lease, on_abandoned);
    let owner = message.owner;
    let answer = backend.acquire(message).await.unwrap();
    assert!(matches!(answer, Acquired::Claimed { .. }), "a fresh key was not claimed: {answer:?}");
    owner
}

/// Waits until `condition` holds, which needs only time. Panics if it takes far too long.
async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition().await {
        assert!(Instant::now() < deadline, "{what} did not come to pass");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Passes every check's name to a macro, after the given tokens. This is the only list of the suite.
#[doc(hidden)]
#[macro_export]
macro_rules! __for_each_conformance_check {
    ($callback:path, $($given:tt)*) => {
        $callback! {
            $($given)*
            e01_one_of_many_acquires_wins
            e01_one_of_many_calls_runs
            e01_callers_of_one_arbiter_share_one_claim
            e02_a_completed_key_replays_until_its_retention_ends
            e02_retention_begins_with_the_completion
            e03_another_fingerprint_is_a_mismatch
            e04_a_renewed_lease_holds
            e04_a_long_operation_keeps_its_key
            e05_a_lapsed_lease_is_taken_over_where_it_may_be_rerun
            e05_a_lapsed_lease_is_indeterminate_where_it_is_held
            e05_resolve_settles_an_indeterminate_key
            e05_the_reconciler_settles_an_abandoned_key
            e06_a_stale_owner_changes_nothing
            e06_steps_can_be_repeated_by_their_owner
            e06_a_late_owner_completes_what_nobody_took_over
            e07_release_frees_at_once
            e08_a_waiter_on_this_arbiter_gets_the_outcome
            e08_a_waiter_elsewhere_gets_the_outcome_soon
            e08_past_its_limit_a_waiter_is_told_in_progress
            e08_waiters_are_capped
            e08_a_waiter_takes_its_turn_after_a_failure
            e08_a_lost_claim_holds_no_callers
            e09_an_error_frees_the_key_or_holds_it
            e09_a_panic_is_settled_as_a_crash_and_answers_waiting_callers
            e09_a_panic_of_the_value_is_an_error
            e10_a_dropped_caller_does_not_stop_its_operation
            e10_a_dropped_caller_does_not_stop_an_unguarded_operation
            e10_a_call_that_is_dropped_early_leaves_no_claim
            e11_a_store_that_is_down_runs_nothing
            e11_a_black_hole_meets_its_deadline_and_leaves_no_claim
            e11_a_lost_answer_to_an_acquire_leaves_no_claim
            e11_a_claim_being_taken_back_makes_no_mismatch
            e11_run_unguarded_only_where_the_policy_says_so
            e12_a_completion_is_retried_while_its_lease_is_renewed
            e12_a_completion_that_is_given_up_is_reported
            e12_a_lost_answer_to_a_completion_is_found_again
            e13_a_corrupt_outcome_is_an_error
            e14_expired_records_are_purged_in_bounded_batches
            e14_list_pages_through_the_records
            e14_find_pages_by_state
            e15_a_reached_limit_is_overloaded_at_once
            e16_shutdown_lets_what_is_in_flight_finish
            e16_shutdown_leaves_the_rest_at_its_limit
            e16_a_draining_engine_answers_what_it_can
            e16_after_the_shutdown_nothing_runs_unguarded
            e18_the_outcome_commits_with_the_operation
            e18_a_failed_transaction_leaves_the_claim
            e19_a_key_on_which_nothing_began_ends_free
            e19_a_lost_answer_stays_unknown
            e20_a_withdrawn_claim_never_lands
            e20_a_withdrawal_leaves_another_holder_alone
            e20_a_withdrawn_takeover_never_lands
            e21_what_the_process_knows_is_settled_after_a_long_outage
            e21_the_bound_drops_settlements_and_reports_each
            e22_a_confirmation_asks_by_itself
            e22_a_lost_claim_is_not_confirmed
            e23_a_run_limit_ends_the_claim
            e23_a_run_limit_counts_from_the_begin
            e24_a_replay_equals_the_first_answer
            e24_a_value_that_cannot_be_stored_is_an_error
            e25_a_fencing_token_never_goes_back
            e25_the_operation_has_its_fencing_token
            e26_a_step_begins_and_completes_once
            e26_a_takeover_brings_the_steps
            e26_an_unsettled_step_makes_its_parent_indeterminate
            e26_a_step_that_may_run_again_does
            e26_a_released_parent_keeps_its_steps
            e26_a_failed_run_never_lands
            e26_steps_end_with_their_parent
            e26_a_parent_has_a_bounded_number_of_steps
            e26_a_step_commits_with_its_rows
            e26_a_retry_continues_where_the_last_try_ended
            e26_a_stale_holder_begins_no_step
            e26_what_is_not_known_of_a_step_outranks_the_result
            e26_lost_answers_change_nothing
            e21_what_the_process_knows_of_a_step_is_settled_after_a_long_outage
            e26_a_step_whose_caller_left_before_it_began_leaves_nothing
            e26_a_step_that_outlasts_the_run_limit_keeps_its_outcome
            e23_past_the_run_limit_nobody_waits_for_a_step
            e26_misuse_is_an_error_at_once
            e26_an_outcome_that_cannot_be_kept_is_the_same_error_twice
            e26_the_reconciler_is_asked_per_step
            e28_a_caller_that_leaves_holds_nothing
            e28_a_caller_that_leaves_while_the_store_is_asked_holds_nothing
        }
    };
}

macro_rules! suite_of {
    ($store:ident $($check:ident)*) => {
        $(
            tracing::info!(check = stringify!($check), "conformance");
            $check(&$store).await;
        )*
    };
}

/// Runs every check, one after the other. Call it on an arbiter (`#[actix_rt::test]`).
///
/// # Panics
/// Panics at the first failed check, with what was expected.
pub async fn suite(connect: impl Connect, capabilities: Capabilities) {
    let store = Store::new(connect, capabilities);
    __for_each_conformance_check!(suite_of, store);
}

/// Generates a `#[test]` for each check, in a module with the given name. A failure then carries the name of the
/// contract line.
///
/// ```
/// use oncekey::conformance::Capabilities;
/// use oncekey_backends::MemoryBackend;
///
/// oncekey::conformance_tests!(memory, Capabilities::without_transactions(), {
///     let store = MemoryBackend::new();
///     move || std::future::ready(store.clone())
/// });
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! conformance_tests {
    ($module:ident, $capabilities:expr, $connect:expr) => {
        mod $module {
            use super::*;

            $crate::__for_each_conformance_check!($crate::__conformance_tests, ($capabilities)($connect));
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_tests {
    (($capabilities:expr) ($connect:expr) $($check:ident)*) => {
        $(
            #[test]
            fn $check() {
                let store = $crate::conformance::Store::new($connect, $capabilities);
                $crate::conformance::on_an_arbiter(async move { $crate::conformance::$check(&store).await });
            }
        )*
    };
}

/// Runs a check on its own arbiter.
#[doc(hidden)]
pub fn on_an_arbiter(check: impl Future<Output = ()>) {
    actix_rt::System::new().block_on(check);
}
