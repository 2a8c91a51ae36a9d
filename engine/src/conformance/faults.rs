//! A store that fails, made by a wrapper around the real backend.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use super::{LONG, SHORT, Store, fingerprint, fresh_key, until};
use crate::backend::{
    Acquire, Acquired, Backend, BeginStep, Changed, Complete, CompleteInTransaction, CompleteStep, Completed,
    CompletedInTransaction, FailStep, Find, Finding, Found, Held, Hold, List, Lookup, Purge, Purged, RecordView,
    Release, Released, Remove, Removed, Renew, Renewed, Resolve, ResolveStep, Resolved, Stats, StepBegun,
    StepCommitted, StepCompleted, StepFailed, StepInTransaction, StoreError, StoreStats, Watch, Withdraw, Withdrawn,
};
use crate::{Engine, Error, EventKind, OnAbandoned, OnStoreFailure, Outcome, RunError};

/// How a step fails.
///
/// ```
/// use oncekey::conformance::Fault;
///
/// assert_ne!(Fault::Down, Fault::BlackHole);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The store refuses the connection. The step is not executed.
    Down,
    /// The step is sent but not executed, and no answer ever comes.
    BlackHole,
    /// The step is executed, and its answer is lost.
    LosesAnswer,
}

/// The steps that a [`Fault`] strikes.
///
/// ```
/// # use oncekey::conformance::Steps;
/// assert_ne!(Steps::All, Steps::Acquire);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Steps {
    /// Every step.
    All,
    /// `Acquire` alone.
    Acquire,
    /// `Complete` alone.
    Complete,
    /// `Release` alone.
    Release,
    /// `Withdraw` alone.
    Withdraw,
    /// `Renew` alone.
    Renew,
    /// `Hold` alone.
    Hold,
    /// `BeginStep` alone.
    BeginStep,
    /// `CompleteStep` alone.
    CompleteStep,
    /// `FailStep` alone.
    FailStep,
}

/// A real store whose steps fail on demand. It counts the failures.
///
/// ```
/// use oncekey::conformance::{Fault, Faulty, Steps};
/// use oncekey_backends::MemoryBackend;
///
/// let store = Faulty::new(MemoryBackend::new());
/// store.strike(Steps::All, Fault::Down);
/// assert_eq!(store.struck(), 0);
/// store.heal();
/// ```
#[derive(Clone)]
pub struct Faulty<B> {
    store: B,
    faults: Arc<Faults>,
}

#[derive(Default)]
struct Faults {
    active: Mutex<Vec<(Steps, Fault)>>,
    struck: AtomicUsize,
    /// How often each of [`Steps`] was requested.
    asked: [AtomicUsize; 10],
}

impl<B> Faulty<B> {
    /// Wraps a store. It has no faults at first.
    pub fn new(store: B) -> Self {
        Self { store, faults: Arc::default() }
    }

    /// Makes these steps fail from now on. Earlier faults stay.
    pub fn strike(&self, steps: Steps, fault: Fault) {
        self.faults.active.lock().push((steps, fault));
    }

    /// Removes all faults.
    pub fn heal(&self) {
        self.faults.active.lock().clear();
    }

    /// Returns how many steps have failed.
    pub fn struck(&self) -> usize {
        self.faults.struck.load(Ordering::Relaxed)
    }

    /// Returns how often the engine has requested such a step. [`Steps::All`] counts the steps that have no variant of
    /// their own.
    pub fn asked(&self, steps: Steps) -> usize {
        self.faults.asked[steps as usize].load(Ordering::Relaxed)
    }

    async fn take<T>(&self, kind: Steps, step: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        self.faults.asked[kind as usize].fetch_add(1, Ordering::Relaxed);
        let is_meant = |(steps, _): &&(Steps, Fault)| *steps == Steps::All || *steps == kind;
        let last = self.faults.active.lock().iter().rfind(is_meant).copied();
        let Some((_, fault)) = last else { return step.await };
        self.faults.struck.fetch_add(1, Ordering::Relaxed);
        match fault {
            Fault::Down => Err(StoreError::unavailable("a fault of the check: down")),
            Fault::BlackHole => std::future::pending().await,
            Fault::LosesAnswer => {
                step.await?;
                Err(StoreError::unknown("a fault of the check: the answer was lost"))
            }
        }
    }
}

impl<B: fmt::Debug> fmt::Debug for Faulty<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faulty").field("store", &self.store).field("struck", &self.struck()).finish_non_exhaustive()
    }
}

impl<B: Backend> Backend for Faulty<B> {
    fn session(&self) -> Self {
        Self { store: self.store.session(), faults: Arc::clone(&self.faults) }
    }

    async fn acquire(&self, message: Acquire) -> Result<Acquired, StoreError> {
        self.take(Steps::Acquire, self.store.acquire(message)).await
    }

    async fn renew(&self, message: Renew) -> Result<Renewed, StoreError> {
        self.take(Steps::Renew, self.store.renew(message)).await
    }

    async fn complete(&self, message: Complete) -> Result<Completed, StoreError> {
        self.take(Steps::Complete, self.store.complete(message)).await
    }

    async fn complete_in_transaction(
        &self,
        message: CompleteInTransaction,
    ) -> Result<CompletedInTransaction, StoreError> {
        self.take(Steps::Complete, self.store.complete_in_transaction(message)).await
    }

    async fn release(&self, message: Release) -> Result<Released, StoreError> {
        self.take(Steps::Release, self.store.release(message)).await
    }

    async fn withdraw(&self, message: Withdraw) -> Result<Withdrawn, StoreError> {
        self.take(Steps::Withdraw, self.store.withdraw(message)).await
    }

    async fn hold(&self, message: Hold) -> Result<Held, StoreError> {
        self.take(Steps::Hold, self.store.hold(message)).await
    }

    async fn resolve(&self, message: Resolve) -> Result<Resolved, StoreError> {
        self.take(Steps::All, self.store.resolve(message)).await
    }

    async fn begin_step(&self, message: BeginStep) -> Result<StepBegun, StoreError> {
        self.take(Steps::BeginStep, self.store.begin_step(message)).await
    }

    async fn complete_step(&self, message: CompleteStep) -> Result<StepCompleted, StoreError> {
        self.take(Steps::CompleteStep, self.store.complete_step(message)).await
    }

    async fn fail_step(&self, message: FailStep) -> Result<StepFailed, StoreError> {
        self.take(Steps::FailStep, self.store.fail_step(message)).await
    }

    async fn step_in_transaction(&self, message: StepInTransaction) -> Result<StepCommitted, StoreError> {
        self.take(Steps::CompleteStep, self.store.step_in_transaction(message)).await
    }

    async fn resolve_step(&self, message: ResolveStep) -> Result<Resolved, StoreError> {
        self.take(Steps::All, self.store.resolve_step(message)).await
    }

    async fn lookup(&self, message: Lookup) -> Result<Option<RecordView>, StoreError> {
        self.take(Steps::All, self.store.lookup(message)).await
    }

    async fn remove(&self, message: Remove) -> Result<Removed, StoreError> {
        self.take(Steps::All, self.store.remove(message)).await
    }

    async fn list(&self, message: List) -> Result<Vec<RecordView>, StoreError> {
        self.take(Steps::All, self.store.list(message)).await
    }

    async fn find(&self, message: Find) -> Result<Found, StoreError> {
        self.take(Steps::All, self.store.find(message)).await
    }

    async fn examine(&self) -> Result<Vec<Finding>, StoreError> {
        self.take(Steps::All, self.store.examine()).await
    }

    async fn purge(&self, message: Purge) -> Result<Purged, StoreError> {
        self.take(Steps::All, self.store.purge(message)).await
    }

    async fn stats(&self, message: Stats) -> Result<StoreStats, StoreError> {
        self.take(Steps::All, self.store.stats(message)).await
    }

    async fn watch(&self, message: Watch) -> Result<Changed, StoreError> {
        self.take(Steps::All, self.store.watch(message)).await
    }
}

type Ran = Result<Outcome<u32>, RunError<()>>;

/// Runs an operation, and returns whether it was executed.
async fn run(engine: &Engine, key: &crate::Key) -> (Ran, bool) {
    let executed = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&executed);
    let ran = engine
        .run(key.clone(), fingerprint(), move |_| async move {
            flag.store(true, Ordering::Relaxed);
            Ok(17)
        })
        .await;
    (ran, executed.load(Ordering::Relaxed))
}

/// E11: nothing runs while the store is down, and everything runs once it is back, without intervention.
pub async fn e11_a_store_that_is_down_runs_nothing(store: &Store) {
    let faulty = Faulty::new(store.connect().await);
    let engine = Engine::builder(faulty.clone()).start().unwrap();
    let key = fresh_key();
    faulty.strike(Steps::All, Fault::Down);
    let (ran, executed) = run(&engine, &key).await;
    assert!(matches!(ran, Err(RunError::Engine(Error::Store(StoreError::Unavailable(_))))), "{ran:?}");
    assert!(!executed && faulty.struck() > 0);
    faulty.heal();
    assert_eq!(run(&engine, &key).await.0.unwrap(), Outcome::Ran(17));
}

/// E11: a store that does not answer meets the engine's deadline. Nothing runs, and once the store answers again, no
/// key is left claimed.
pub async fn e11_a_black_hole_meets_its_deadline_and_leaves_no_claim(store: &Store) {
    let faulty = Faulty::new(store.connect().await);
    let engine = Engine::builder(faulty.clone()).store_deadline(SHORT).start().unwrap();
    let key = fresh_key();
    faulty.strike(Steps::All, Fault::BlackHole);
    let asked = Instant::now();
    let (ran, executed) = run(&engine, &key).await;
    assert!(matches!(&ran, Err(RunError::Engine(Error::Store(error))) if error.is_unknown()), "{ran:?}");
    assert!(asked.elapsed() >= SHORT && asked.elapsed() < 10 * SHORT, "it was told after {:?}", asked.elapsed());
    assert!(!executed && faulty.struck() > 0);
    faulty.heal();
    until("the recovery", async || run(&engine, &key).await.0.is_ok()).await;
}

/// E11: a claim whose answer was lost is withdrawn, so the next call need not wait for its lease.
pub async fn e11_a_lost_answer_to_an_acquire_leaves_no_claim(store: &Store) {
    let faulty = Faulty::new(store.connect().await);
    let engine = Engine::builder(faulty.clone()).lease(LONG).start().unwrap();
    let key = fresh_key();
    faulty.strike(Steps::Acquire, Fault::LosesAnswer);
    let (ran, executed) = run(&engine, &key).await;
    assert!(matches!(&ran, Err(RunError::Engine(Error::Store(error))) if error.is_unknown()), "{ran:?}");
    assert!(!executed && faulty.struck() == 1);
    faulty.heal();
    until("the claim's end", async || run(&engine, &key).await.0.is_ok()).await;
    assert_eq!(run(&engine, &key).await.0.unwrap(), Outcome::Replayed(17));
}

/// E11: a claim that may or may not have been made is being withdrawn. Until that is done, a different request under
/// its key gets "retry later", not a mismatch.
pub async fn e11_a_claim_being_taken_back_makes_no_mismatch(store: &Store) {
    let faulty = Faulty::new(store.connect().await);
    let engine = Engine::builder(faulty.clone()).lease(LONG).start().unwrap();
    let key = fresh_key();
    let ask = async |what: &str| engine.run(key.clone(), &what, |_| async { Ok::<_, ()>(17) }).await;
    faulty.strike(Steps::Acquire, Fault::LosesAnswer);
    faulty.strike(Steps::Withdraw, Fault::Down);
    let lost = ask("something else").await;
    assert!(matches!(&lost, Err(RunError::Engine(Error::Store(error))) if error.is_unknown()), "{lost:?}");
    until("the taking back", async || faulty.struck() > 1).await;
    let meanwhile = ask("what is meant").await;
    assert!(matches!(meanwhile, Err(RunError::Engine(Error::Store(_)))), "{meanwhile:?}");
    faulty.heal();
    until("the claim's end", async || ask("what is meant").await.is_ok()).await;
}

/// E11: nothing runs unguarded unless the call's policy says so, and an event then reports it.
pub async fn e11_run_unguarded_only_where_the_policy_says_so(store: &Store) {
    let faulty = Faulty::new(store.connect().await);
    let unguarded = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&unguarded);
    let engine = Engine::builder(faulty.clone())
        .observer(move |event: &crate::Event<'_>| {
            counter.fetch_add(usize::from(event.kind == EventKind::Unguarded), Ordering::Relaxed);
        })
        .start()
        .unwrap();
    let key = fresh_key();
    faulty.strike(Steps::All, Fault::Down);
    assert!(!run(&engine, &key).await.1, "it ran without a guard");
    let (ran, executed) = run(&engine.with_on_store_failure(OnStoreFailure::Run), &key).await;
    assert_eq!((ran.unwrap(), executed), (Outcome::Ran(17), true));
    assert_eq!(unguarded.load(Ordering::Relaxed), 1);
}

/// E12: the engine retries a completion that the store refuses, and keeps renewing the lease, until the store accepts
/// it.
pub async fn e12_a_completion_is_retried_while_its_lease_is_renewed(store: &Store) {
    let faulty = Faulty::new(store.connect().await);
    let engine = Engine::builder(faulty.clone()).lease(SHORT).on_abandoned(OnAbandoned::Rerun).start().unwrap();
    let key = fresh_key();
    faulty.strike(Steps::Complete, Fault::Down);
    let running = {
        let (engine, key) = (engine.clone(), key.clone());
        actix_rt::spawn(async move { run(&engine, &key).await })
    };
    until("several tries", async || faulty.struck() >= 3).await;
    // This takes longer than the lease: only its renewal keeps other callers from taking the key over.
    let other = store.engine(|builder| builder).await;
    let until_lapsed = Instant::now() + 3 * SHORT;
    while Instant::now() < until_lapsed {
        let (ran, executed) = run(&other, &key).await;
        assert!(matches!(ran, Err(RunError::Engine(Error::InProgress { .. }))) && !executed, "{ran:?}");
        tokio::time::sleep(SHORT / 6).await;
    }
    faulty.heal();
    let (ran, executed) = running.await.unwrap();
    assert_eq!((ran.unwrap(), executed), (Outcome::Ran(17), true));
    assert_eq!(run(&other, &key).await.0.unwrap(), Outcome::Replayed(17));
}

/// E12, E21: past the limit, a completion that cannot be stored is reported to its caller and as an event. The engine
/// keeps the claim and continues to retry, so the outcome is stored once the store is back.
pub async fn e12_a_completion_that_is_given_up_is_reported(store: &Store) {
    let faulty = Faulty::new(store.connect().await);
    let reported = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&reported);
    let engine = Engine::builder(faulty.clone())
        .lease(SHORT)
        .settling_limit(SHORT)
        .observer(move |event: &crate::Event<'_>| {
            counter.fetch_add(usize::from(event.kind == EventKind::OutcomeNotStored), Ordering::Relaxed);
        })
        .start()
        .unwrap();
    let key = fresh_key();
    faulty.strike(Steps::Complete, Fault::Down);
    let (ran, executed) = run(&engine, &key).await;
    assert!(matches!(ran, Err(RunError::Engine(Error::OutcomeNotStored(_)))), "{ran:?}");
    assert!(executed && faulty.struck() > 2);
    assert_eq!(reported.load(Ordering::Relaxed), 1);
    assert_eq!(engine.pending_settlements(), 1);
    // This takes longer than the lease: the engine still renews the claim.
    let until_lapsed = Instant::now() + 2 * SHORT;
    while Instant::now() < until_lapsed {
        let (ran, executed) = run(&engine, &key).await;
        assert!(matches!(ran, Err(RunError::Engine(Error::InProgress { .. }))) && !executed, "{ran:?}");
        tokio::time::sleep(SHORT / 6).await;
    }
    faulty.heal();
    until("the outcome", async || matches!(run(&engine, &key).await, (Ok(Outcome::Replayed(17)), false))).await;
    assert_eq!(engine.pending_settlements(), 0);
}

/// E12: a completion whose answer was lost is found to be stored, and the caller notices nothing.
pub async fn e12_a_lost_answer_to_a_completion_is_found_again(store: &Store) {
    let faulty = Faulty::new(store.connect().await);
    let engine = Engine::builder(faulty.clone()).start().unwrap();
    let key = fresh_key();
    faulty.strike(Steps::Complete, Fault::LosesAnswer);
    let running = {
        let (engine, key) = (engine.clone(), key.clone());
        actix_rt::spawn(async move { run(&engine, &key).await })
    };
    until("a lost answer", async || faulty.struck() >= 1).await;
    faulty.heal();
    let (ran, executed) = running.await.unwrap();
    assert_eq!((ran.unwrap(), executed), (Outcome::Ran(17), true));
    assert_eq!(run(&engine, &key).await.0.unwrap(), Outcome::Replayed(17));
}
