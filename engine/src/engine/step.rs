//! Runs parts of an operation once: [`Claim::step`] and its variants.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use super::Claim;
use crate::backend::StoreError;
use crate::claims::{BegunStep, ClaimAddr, EndOnDrop, NamedStep, StepCall, StepEnd, StepRefusal, ToClaim, What};
use crate::record::{Binding, SealedOutcome, StepName, StepNameError};
use crate::{
    Attempt, CorruptOutcome, DerivedKey, FencingToken, Fingerprint, FingerprintError, StepPolicy, ToFingerprint,
};

/// The step that the engine passes to the step's operation.
///
/// ```
/// # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use oncekey::{Engine, Key, StepError};
/// # use oncekey_backends::MemoryBackend;
/// # let engine = Engine::builder(MemoryBackend::new()).start()?;
/// # async fn charge(amount: u64, key: &str) -> Result<String, std::io::Error> { Ok(key.to_owned()) }
/// let charged = engine
///     .run(Key::new("checkout", 17)?, &1999, async move |claim| {
///         claim.step("charge", async |step| charge(1999, step.key().as_str()).await).await
///     })
///     .await?;
/// assert!(charged.into_inner().starts_with("oncekey1-"));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Step {
    name: StepName,
    /// The name that the store knows the step by.
    stored: StepName,
    key: DerivedKey,
    attempt: Attempt,
    token: FencingToken,
}

impl Step {
    /// Returns the idempotency key for the provider that performs this step: a [derived key](Claim::derive_key) of the
    /// step's name. It is the same at every attempt. A step that was [renamed](StepOptions::formerly) keeps the key of
    /// its old name.
    pub fn key(&self) -> &DerivedKey {
        &self.key
    }

    /// Returns the step's name.
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    pub(super) fn stored_name(&self) -> &StepName {
        &self.stored
    }

    /// Returns how often this step has begun. A number above 1 means that an earlier run failed or may have had its
    /// effect.
    pub fn attempt(&self) -> Attempt {
        self.attempt
    }

    /// Returns the fencing token of the claim that runs the step.
    pub fn fencing_token(&self) -> FencingToken {
        self.token
    }
}

/// A step's name and settings, for [`Claim::step_with`].
///
/// ```
/// use std::time::Duration;
/// use oncekey::{StepOptions, StepPolicy};
///
/// // Stripe remembers idempotency keys for 24 hours.
/// let charge = StepOptions::new("charge")
///     .fingerprint(&1999)
///     .policy(StepPolicy::RerunWithin(Duration::from_secs(23 * 60 * 60)))
///     .formerly("payment");
/// # let _ = charge;
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct StepOptions {
    name: String,
    formerly: Vec<String>,
    fingerprint: Option<Result<Fingerprint, String>>,
    policy: StepPolicy,
}

impl StepOptions {
    /// Creates a step of this name, without a fingerprint, under [`StepPolicy::Hold`].
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), formerly: Vec::new(), fingerprint: None, policy: StepPolicy::default() }
    }

    /// Sets the fingerprint of what the step is asked to do. A later call of the step with another fingerprint returns
    /// [`StepError::Mismatch`].
    pub fn fingerprint(mut self, fingerprint: impl ToFingerprint) -> Self {
        self.fingerprint = Some(fingerprint.to_fingerprint().map_err(|error: FingerprintError| error.to_string()));
        self
    }

    /// Sets what to do if the step begins and its result stays unknown. Default: [`StepPolicy::Hold`].
    pub fn policy(mut self, policy: StepPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Adds a name that the step had in an earlier version of the program. The step then finds a record under that
    /// name, and keeps that name's [key](Step::key) for the provider.
    pub fn formerly(mut self, name: impl Into<String>) -> Self {
        self.formerly.push(name.into());
        self
    }
}

impl From<&str> for StepOptions {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}

impl From<String> for StepOptions {
    fn from(name: String) -> Self {
        Self::new(name)
    }
}

/// Why a step returned no outcome.
///
/// [`has_run`](Self::has_run) returns whether this call ran the step's operation.
///
/// ```
/// use oncekey::StepError;
///
/// let error = StepError::<std::io::Error>::Lost;
/// assert!(!error.has_run());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StepError<E> {
    /// The step's operation ran and failed. The error is not kept, and the same name may be called again.
    #[error("the step failed: {0}")]
    Operation(E),
    /// The claim was lost, or its operation has returned. The step did not begin.
    #[error("the claim was lost before the step began, and the step did not run")]
    Lost,
    /// A step of the same name is running.
    #[error("a step of this name is running: give each item of a loop a name of its own")]
    Running,
    /// The step was called inside another step.
    #[error("a step can't contain a step: call it after the other one has returned")]
    Nested,
    /// The operation runs in the transaction that completes its claim, which commits all of its writes or none.
    #[error("an operation in a transaction has no steps: what it writes commits together")]
    InTransaction,
    /// The step was called before with another fingerprint.
    #[error("this step was called before, for something else: a name stands for one effect")]
    Mismatch,
    /// An earlier run of the step began, and its result is unknown. The step did not run again.
    #[error("it is not known whether an earlier run of this step had its effect: it waits to be resolved")]
    Unsettled,
    /// The operation has reached the maximum number of steps.
    #[error("the operation has {max} steps, and no more are kept", max = crate::record::Steps::MAX)]
    TooMany,
    /// The step ran, now or earlier, and its outcome exceeds [`max_step_bytes`](crate::EngineBuilder::max_step_bytes).
    /// The step is done and does not run again.
    #[error("the step is done, but its outcome was too large to keep")]
    TooLarge,
    /// The operation runs without a claim, because the store is unavailable. The step did not run.
    #[error("the operation runs unguarded, so nothing can keep its steps: the step did not run")]
    Unguarded,
    /// The name is not valid.
    #[error(transparent)]
    Name(#[from] StepNameError),
    /// The step's request can't be serialized to compute its fingerprint. The step did not run.
    #[error("the step's fingerprint can't be made: {0}")]
    Fingerprint(String),
    /// The store was unavailable or did not answer. The step did not run, or its transaction was rolled back.
    #[error("the idempotency store failed, and the step did not run: {0}")]
    Store(StoreError),
    /// **The step ran**, but its outcome could not be stored. Only the caller knows what happened.
    #[error("the step ran, but its outcome could not be stored: {0}")]
    OutcomeNotStored(StoreError),
    /// **The step ran**, but its outcome can't be serialized.
    #[error("the step ran, but its outcome can't be serialized: {0}")]
    Unserializable(String),
    /// The step is done, but its stored outcome can't be read as the requested type. The step did not run again.
    #[error("the step is done, but its stored outcome can't be read: {0}")]
    Corrupt(#[from] CorruptOutcome),
    /// The store has no transactions on the type of connection that the step asked for.
    #[error("the store can't run a step on a {wanted}: {what}")]
    NoSuchTransaction {
        /// The type of connection that the step asked for.
        wanted: &'static str,
        /// The store's explanation.
        what: String,
    },
    /// The step's operation panicked in its transaction, which was rolled back.
    #[error("the step panicked, and its transaction was rolled back")]
    Panicked,
    /// The claim's actor is gone, because its thread has ended.
    #[error("the idempotency engine stopped while it was processing this step: retry the operation")]
    Stopped,
}

impl<E> StepError<E> {
    /// Returns whether this call ran the step's operation, or may have run it.
    pub fn has_run(&self) -> bool {
        matches!(self, Self::Operation(_) | Self::TooLarge | Self::OutcomeNotStored(_) | Self::Unserializable(_))
    }

    pub(super) fn refused(refusal: StepRefusal) -> Self {
        match refusal {
            StepRefusal::Lost => Self::Lost,
            StepRefusal::InTransaction => Self::InTransaction,
            StepRefusal::Mismatch => Self::Mismatch,
            StepRefusal::Unsettled => Self::Unsettled,
            StepRefusal::TooMany => Self::TooMany,
            StepRefusal::Running => Self::Running,
            StepRefusal::TooLarge => Self::TooLarge,
            StepRefusal::Store(StoreError::Outcome(corrupt)) => Self::Corrupt(corrupt),
            StepRefusal::Store(error) => Self::Store(error),
            StepRefusal::NotStored(error) => Self::OutcomeNotStored(error),
        }
    }
}

impl Claim {
    /// Runs a part of the operation once and keeps its outcome. A retry of the operation gets that outcome and
    /// continues after it.
    ///
    /// Steps match by name, never by order. In a loop, put the item into the name and not its index. Independent steps
    /// may run concurrently, with `join!`. Every attempt repeats the code outside steps.
    ///
    /// A step begins through one atomic step of the store, which also requires that this claim holds the key. A holder
    /// that was paused past its lease is refused **before** its next effect.
    ///
    /// An `Err` states that nothing happened. It is not kept, and the same name may be called again; return a final
    /// refusal as `Ok`. A panic, a dropped future and a crash state nothing, so the step's [`StepPolicy`] decides. The
    /// default, `Hold`, makes the operation's key indeterminate. [`step_with`](Self::step_with) takes another policy.
    ///
    /// Use [`OnAbandoned::Resume`](crate::OnAbandoned::Resume) for an operation with steps, so that a retry after a
    /// crash continues.
    ///
    /// # Cancel safety
    /// Dropping the future before the operation began withdraws the step. Dropping it later leaves the step unsettled,
    /// as after a crash.
    ///
    /// # Errors
    /// [`StepError`], which distinguishes the step's own error from the engine's.
    ///
    /// ```
    /// # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use oncekey::{Engine, Key, OnAbandoned};
    /// # use oncekey_backends::MemoryBackend;
    /// # async fn charge(key: &str) -> Result<u64, std::io::Error> { Ok(17) }
    /// # async fn mail(charge: u64, key: &str) -> Result<(), std::io::Error> { Ok(()) }
    /// let engine = Engine::builder(MemoryBackend::new()).on_abandoned(OnAbandoned::Resume).start()?;
    /// engine
    ///     .run(Key::new("checkout", "r-1")?, &1999, async |claim| {
    ///         let charge = claim.step("charge", async |step| charge(step.key().as_str()).await).await?;
    ///         claim.step("mail", async |step| mail(charge, step.key().as_str()).await).await
    ///     })
    ///     .await?;
    /// # Ok(()) }
    /// ```
    pub async fn step<T, E, F, Fut>(&self, name: impl Into<String>, operation: F) -> Result<T, StepError<E>>
    where
        F: FnOnce(Step) -> Fut,
        Fut: Future<Output = Result<T, E>>,
        T: Serialize + DeserializeOwned,
    {
        self.step_with(StepOptions::new(name), operation).await
    }

    /// [`step`](Self::step) with a fingerprint, a policy, or earlier names.
    ///
    /// # Cancel safety
    /// As for [`step`](Self::step).
    ///
    /// # Errors
    /// As for [`step`](Self::step).
    ///
    /// ```
    /// # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use oncekey::{Engine, Key, OnAbandoned, StepOptions, StepPolicy};
    /// # use oncekey_backends::MemoryBackend;
    /// # async fn charge(amount: u64, key: &str) -> Result<u64, std::io::Error> { Ok(17) }
    /// # let engine = Engine::builder(MemoryBackend::new()).on_abandoned(OnAbandoned::Resume).start()?;
    /// engine
    ///     .run(Key::new("checkout", "r-1")?, &1999, async |claim| {
    ///         // The provider accepts the key, so it performs a repeated charge once.
    ///         let options = StepOptions::new("charge").fingerprint(&1999).policy(StepPolicy::Rerun);
    ///         claim.step_with(options, async |step| charge(1999, step.key().as_str()).await).await
    ///     })
    ///     .await?;
    /// # Ok(()) }
    /// ```
    pub async fn step_with<T, E, F, Fut>(&self, options: StepOptions, operation: F) -> Result<T, StepError<E>>
    where
        F: FnOnce(Step) -> Fut,
        Fut: Future<Output = Result<T, E>>,
        T: Serialize + DeserializeOwned,
    {
        let asked = self.ask_step(options, false)?;
        let ready = asked.about.ready(self, asked.answer.await)?;
        let Ready::Run { step, life, end } = ready else { return ready.replayed(self) };
        let id = id_of(asked.about.claim);
        let name = step.stored.clone();
        let result = {
            let mut running = pin!(async move { operation(step).await });
            poll_fn(|context| {
                let _inside = Inside::enter(id);
                running.as_mut().poll(context)
            })
            .await
        };
        let (sender, stored) = oneshot::channel();
        let (end_of, told) = ending(self, &name, life, result, sender)?;
        end.end(end_of).map_err(|_| StepError::Stopped)?;
        told_stored(stored.await, told)
    }

    /// [`step`](Self::step) for an operation on a plain thread, with the settings of [`step_with`](Self::step_with).
    ///
    /// Don't call it on an arbiter's thread: it blocks that thread, and the engine answers there.
    ///
    /// # Errors
    /// As for [`step`](Self::step).
    ///
    /// ```
    /// # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use oncekey::{Engine, Key, OnAbandoned};
    /// # use oncekey_backends::MemoryBackend;
    /// # let engine = Engine::builder(MemoryBackend::new()).on_abandoned(OnAbandoned::Resume).start()?;
    /// let thread = std::thread::spawn(move || {
    ///     engine.run_blocking(Key::new("checkout", "r-1").unwrap(), &1999, |claim| {
    ///         claim.step_blocking("charge", |step| Ok::<_, std::io::Error>(format!("charged as {}", step.key())))
    ///     })
    /// });
    /// # let charged = tokio::task::spawn_blocking(|| thread.join()).await?;
    /// # assert!(charged.unwrap()?.into_inner().starts_with("charged as oncekey1-"));
    /// # Ok(()) }
    /// ```
    pub fn step_blocking<T, E>(
        &self,
        options: impl Into<StepOptions>,
        operation: impl FnOnce(&Step) -> Result<T, E>,
    ) -> Result<T, StepError<E>>
    where
        T: Serialize + DeserializeOwned,
    {
        let asked = self.ask_step(options.into(), false)?;
        let ready = asked.about.ready(self, asked.answer.blocking_recv())?;
        let Ready::Run { step, life, end } = ready else { return ready.replayed(self) };
        let result = {
            let _inside = Inside::enter(id_of(asked.about.claim));
            // A panic passes through. The guard `end` tells the claim that the step is unsettled.
            operation(&step)
        };
        let (sender, stored) = oneshot::channel();
        let (end_of, told) = ending(self, &step.stored, life, result, sender)?;
        end.end(end_of).map_err(|_| StepError::Stopped)?;
        told_stored(stored.blocking_recv(), told)
    }

    /// Asks the claim's actor to begin a step.
    pub(super) fn ask_step<E>(&self, options: StepOptions, is_transactional: bool) -> Result<Asked<'_>, StepError<E>> {
        let StepOptions { name, formerly, fingerprint, policy } = options;
        let at_rest = self.derivation().at_rest();
        let stored = |name: &String| {
            let name = StepName::new(name)?;
            Ok::<_, StepNameError>((at_rest.step_name(self.key(), name.clone()), name))
        };
        let names = [&name].into_iter().chain(&formerly).map(stored).collect::<Result<Vec<_>, _>>()?;
        let fingerprint = fingerprint.transpose().map_err(StepError::Fingerprint)?;
        let claim = self.address().ok_or(StepError::Unguarded)?;
        if Inside::is(id_of(claim)) {
            return Err(StepError::Nested);
        }
        let mut stored = names.iter().map(|(stored, _)| stored.clone());
        let Some(name) = stored.next() else { return Err(StepNameError::Empty.into()) };
        let (token, retention) = (self.fencing_token(), self.retention());
        let formerly = stored.collect();
        let step = NamedStep { name, formerly, fingerprint, policy, is_transactional, token, retention };
        let (reply, answer) = oneshot::channel();
        let call = What::Step(Box::new(StepCall::Begin { step, reply }));
        ToClaim::send(claim, call).map_err(|_| StepError::Stopped)?;
        Ok(Asked { answer, about: About { claim, names } })
    }
}

/// A step that the claim's actor was asked to begin.
pub(super) struct Asked<'a> {
    pub(super) answer: oneshot::Receiver<Result<BegunStep, StepRefusal>>,
    pub(super) about: About<'a>,
}

pub(super) struct About<'a> {
    pub(super) claim: &'a ClaimAddr,
    /// Each name twice: as the store knows it, and as the operation does.
    names: Vec<(StepName, StepName)>,
}

/// A step for the caller to run, or its outcome.
pub(super) enum Ready {
    Run { step: Step, life: FencingToken, end: EndOnDrop },
    Transact { step: Step, life: FencingToken, end: EndOnDrop },
    Replay { name: StepName, life: FencingToken, outcome: SealedOutcome },
}

impl About<'_> {
    /// Turns the claim actor's answer into a step to run or an outcome to replay. A stopped actor drops its reply.
    pub(super) fn ready<E>(
        &self,
        claim: &Claim,
        answer: Result<Result<BegunStep, StepRefusal>, oneshot::error::RecvError>,
    ) -> Result<Ready, StepError<E>> {
        let begun = answer.unwrap_or(Err(StepRefusal::Lost)).map_err(StepError::refused)?;
        let step = |name: StepName, attempt| {
            let known = self.names.iter().find(|(stored, _)| *stored == name);
            let plain = known.map_or_else(|| name.clone(), |(_, plain)| plain.clone());
            let key = claim.derive_key(plain.as_str());
            Step { key, name: plain, stored: name, attempt, token: claim.fencing_token() }
        };
        Ok(match begun {
            BegunStep::Run { name, attempt, life, mut end } => {
                end.begin();
                Ready::Run { step: step(name, attempt), life, end }
            }
            BegunStep::Transact { name, life, end } => Ready::Transact { step: step(name, Attempt::FIRST), life, end },
            BegunStep::Replay { name, life, outcome } => Ready::Replay { name, life, outcome },
        })
    }
}

impl Ready {
    pub(super) fn replayed<T: DeserializeOwned, E>(self, claim: &Claim) -> Result<T, StepError<E>> {
        match self {
            Self::Replay { name, life, outcome } => read(claim, &name, life, &outcome),
            Self::Run { .. } | Self::Transact { .. } => Err(StepError::Stopped),
        }
    }
}

/// Reads a stored outcome, and catches a panic in the value's `Deserialize`, which is user code.
pub(super) fn read<T: DeserializeOwned, E>(
    claim: &Claim,
    name: &StepName,
    life: FencingToken,
    outcome: &SealedOutcome,
) -> Result<T, StepError<E>> {
    let bound_to = Binding::step(claim.key(), life, name);
    let value = catch_unwind(AssertUnwindSafe(|| outcome.value(bound_to))).unwrap_or(Err(CorruptOutcome::Content))?;
    value.ok_or(StepError::TooLarge)
}

/// Returns the outcome to store for a step's value, and the value as every replay will read it.
pub(super) fn sealed<T: Serialize + DeserializeOwned>(
    claim: &Claim,
    name: &StepName,
    life: FencingToken,
    value: &T,
) -> Result<(T, SealedOutcome), String> {
    // The value's `Serialize` and `Deserialize` are user code.
    let sealing = catch_unwind(AssertUnwindSafe(|| {
        let outcome = SealedOutcome::of_value(Binding::step(claim.key(), life, name), value)?;
        Ok::<_, serde_json::Error>((outcome.read_back()?, outcome))
    }));
    match sealing {
        Ok(sealed) => sealed.map_err(|error| error.to_string()),
        Err(_) => Err("its Serialize or Deserialize panicked".to_owned()),
    }
}

type Stored = oneshot::Sender<Result<(), StepRefusal>>;

/// Returns how a step with this result ends, and what its caller gets once the store has recorded that. An outcome that
/// can't be stored leaves the step unsettled.
fn ending<T: Serialize + DeserializeOwned, E>(
    claim: &Claim,
    name: &StepName,
    life: FencingToken,
    result: Result<T, E>,
    sender: Stored,
) -> Result<(StepEnd, Result<T, E>), StepError<E>> {
    match result {
        Ok(value) => {
            let (value, outcome) = sealed(claim, name, life, &value).map_err(StepError::Unserializable)?;
            Ok((StepEnd::Completed(outcome, sender), Ok(value)))
        }
        Err(error) => Ok((StepEnd::Failed(sender), Err(error))),
    }
}

fn told_stored<T, E>(
    stored: Result<Result<(), StepRefusal>, oneshot::error::RecvError>,
    told: Result<T, E>,
) -> Result<T, StepError<E>> {
    match (stored, told) {
        // The caller gets the step's own error, whatever the store answered.
        (_, Err(error)) => Err(StepError::Operation(error)),
        (Ok(Ok(())), Ok(value)) => Ok(value),
        // Another run of the step has begun, or somebody resolved it.
        (Ok(Err(StepRefusal::Lost)), Ok(_)) => {
            Err(StepError::OutcomeNotStored(StoreError::unavailable("the step was begun again or resolved meanwhile")))
        }
        (Ok(Err(refusal)), Ok(_)) => Err(StepError::refused(refusal)),
        (Err(_), Ok(_)) => Err(StepError::OutcomeNotStored(StoreError::unknown("the claim's actor has stopped"))),
    }
}

fn id_of(claim: &ClaimAddr) -> usize {
    Arc::as_ptr(claim) as usize
}

thread_local! {
    /// The claims whose steps are being polled on this thread.
    static INSIDE: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// While it exists, a call to another step of the claim counts as nested.
struct Inside;

impl Inside {
    fn enter(claim: usize) -> Self {
        INSIDE.with_borrow_mut(|inside| inside.push(claim));
        Self
    }

    fn is(claim: usize) -> bool {
        INSIDE.with_borrow(|inside| inside.contains(&claim))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.with_borrow_mut(|inside| {
            inside.pop();
        });
    }
}
