//! Runs an operation once and returns a typed outcome.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::{Instrument as _, debug_span};

use super::{Claim, Engine};
use crate::call::Admitted;
use crate::claims::{Grant, Settlement};
use crate::detach::{self, DetachOnDrop};
use crate::record::SealedOutcome;
use crate::shared::Shared;
use crate::{
    CallPolicy, CorruptOutcome, Error, EventKind, Fingerprint, Key, OnFailure, RunError, ToFingerprint,
    UnreadableOutcome,
};

/// The outcome of a call: the operation's value, and whether this call ran it.
///
/// ```
/// use oncekey::Outcome;
///
/// let outcome = Outcome::Replayed("sent");
/// assert!(outcome.is_replay());
/// assert_eq!(outcome.into_inner(), "sent");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome<T> {
    /// This call ran the operation.
    Ran(T),
    /// An earlier call ran the operation. This is its value.
    Replayed(T),
}

impl<T> Outcome<T> {
    /// Returns the value, whichever call ran the operation.
    pub fn into_inner(self) -> T {
        match self {
            Self::Ran(value) | Self::Replayed(value) => value,
        }
    }

    /// Returns whether an earlier call ran the operation.
    pub fn is_replay(&self) -> bool {
        matches!(self, Self::Replayed(_))
    }
}

impl Engine {
    /// Runs `operation` once for `key`, and returns its outcome to this call and to every later one.
    ///
    /// `fingerprint` describes the request: anything that serializes, or a [`Fingerprint`](crate::Fingerprint). The
    /// engine refuses a later call that uses the key with another fingerprint. The store keeps the outcome as JSON, so
    /// that a later version of the program can read it.
    ///
    /// The engine stores the outcome before this method returns, and returns the value as read back from the stored
    /// form. The first answer and every replay are therefore equal. For a value that JSON can't keep (a NaN, a
    /// `Some(())`), the method returns [`Error::Unserializable`] before anything is stored, and the key becomes
    /// indeterminate.
    ///
    /// An operation's `Err` states that nothing happened: the engine settles the key by [`OnFailure`] and returns the
    /// error. A panic states nothing, so [`OnAbandoned`](crate::OnAbandoned) decides, as after a crash.
    ///
    /// # Cancel safety
    /// Dropping the future before the operation began withdraws the call. Once the operation has begun, it continues in
    /// its own task, and its outcome is stored.
    ///
    /// # Errors
    /// [`RunError::Operation`] with the operation's own error, or [`RunError::Engine`] with the engine's error.
    ///
    /// ```
    /// # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use oncekey::{Engine, Error, Key, Outcome, RunError};
    /// # use oncekey_backends::MemoryBackend;
    /// # let engine = Engine::builder(MemoryBackend::new()).start()?;
    /// let key = Key::new("mail", 17)?;
    /// let send = |_claim| async { Ok::<_, std::io::Error>("sent".to_owned()) };
    ///
    /// assert_eq!(engine.run(key.clone(), &"to: ada", send).await?, Outcome::Ran("sent".into()));
    /// assert_eq!(engine.run(key.clone(), &"to: ada", send).await?, Outcome::Replayed("sent".into()));
    /// let other = engine.run(key, &"to: eve", send).await;
    /// assert!(matches!(other, Err(RunError::Engine(Error::Mismatch))));
    /// # Ok(()) }
    /// ```
    pub async fn run<T, E, F, Fut>(
        &self,
        key: Key,
        fingerprint: impl ToFingerprint,
        operation: F,
    ) -> Result<Outcome<T>, RunError<E>>
    where
        F: FnOnce(Claim) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
        T: Serialize + DeserializeOwned + Send + 'static,
        E: Send + 'static,
    {
        // Computed before the first await, so that this future is `Send` even if the borrowed request is not `Sync`.
        let fingerprint = fingerprint.to_fingerprint().map_err(Error::from);
        let node = self.nodes.current()?;
        match self.begin(&node, key.clone(), fingerprint?, &self.policy).await? {
            Admitted::Replay(outcome) => Ok(Outcome::Replayed(replayed(&key, &outcome)?)),
            Admitted::Unguarded => {
                let here = Arc::clone(&node);
                let running = async move { run_unguarded(&node.shared, key, operation).await };
                let go_on = move |rest: Pin<Box<_>>| drop(here.runtime.spawn(rest));
                DetachOnDrop::new(running, go_on).await
            }
            Admitted::Granted(grant) => {
                let (policy, here) = (self.policy, Arc::clone(&node));
                let running = async move { run_granted(&node.shared, &policy, key, grant, operation).await };
                let go_on = move |rest: Pin<Box<_>>| drop(here.runtime.spawn(rest));
                DetachOnDrop::new(running, go_on).await
            }
        }
    }

    /// [`run`](Self::run), with a reader for outcomes that an older version of the program stored as an `Old`.
    ///
    /// It calls `read_old` only for a stored outcome that can't be read as a `T` but can be read as an `Old`.
    ///
    /// # Cancel safety
    /// As for [`run`](Self::run).
    ///
    /// # Errors
    /// As for [`run`](Self::run); [`Error::OutcomeUnreadable`] if the outcome is of neither type.
    ///
    /// ```
    /// # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use oncekey::{Engine, Key, Outcome};
    /// # use oncekey_backends::MemoryBackend;
    /// # let engine = Engine::builder(MemoryBackend::new()).start()?;
    /// let key = Key::new("mail", 17)?;
    /// engine.run(key.clone(), &(), |_| async { Ok::<_, std::io::Error>(17_u64) }).await?;
    ///
    /// // The next version stores a string.
    /// let send = |_claim| async { Ok::<_, std::io::Error>("mail 18".to_owned()) };
    /// let again = engine.run_or_read(key, &(), send, |number: u64| format!("mail {number}")).await?;
    /// assert_eq!(again, Outcome::Replayed("mail 17".into()));
    /// # Ok(()) }
    /// ```
    pub async fn run_or_read<Old, T, E, F, Fut>(
        &self,
        key: Key,
        fingerprint: impl ToFingerprint,
        operation: F,
        read_old: impl FnOnce(Old) -> T,
    ) -> Result<Outcome<T>, RunError<E>>
    where
        F: FnOnce(Claim) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
        T: Serialize + DeserializeOwned + Send + 'static,
        E: Send + 'static,
        Old: DeserializeOwned,
    {
        or_read(self.run(key, fingerprint, operation).await, read_old)
    }

    /// Runs several calls at once, and sends their claims and outcomes to the store together.
    /// [`run_all_blocking`](Self::run_all_blocking) does the same on a plain thread.
    ///
    /// The operations run concurrently in the caller's task; each receives its call's number. The results are in the
    /// order of the calls. A call that is refused or fails does not affect the others. Two calls with one key are two
    /// callers of that key: the second is refused as in progress, waits, or replays, as the policy says.
    ///
    /// # Cancel safety
    /// As for [`run`](Self::run), for each call.
    ///
    /// # Errors
    /// For each call, as for [`run`](Self::run).
    ///
    /// ```
    /// # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use oncekey::{Engine, Fingerprint, Key, Outcome};
    /// # use oncekey_backends::MemoryBackend;
    /// # let engine = Engine::builder(MemoryBackend::new()).start()?;
    /// let orders = [17, 18, 19];
    /// let calls = orders.map(|order| Ok((Key::new("mail", order)?, Fingerprint::of(&[order]))));
    /// let calls = calls.into_iter().collect::<Result<Vec<_>, oncekey::KeyError>>()?;
    /// let sent = engine
    ///     .run_all(calls, move |number, _claim| async move { Ok::<_, std::io::Error>(orders[number]) })
    ///     .await;
    /// assert!(sent.iter().zip(orders).all(|(sent, order)| matches!(sent, Ok(Outcome::Ran(ran)) if *ran == order)));
    /// # Ok(()) }
    /// ```
    pub async fn run_all<T, E, F, Fut>(
        &self,
        calls: Vec<(Key, Fingerprint)>,
        operation: F,
    ) -> Vec<Result<Outcome<T>, RunError<E>>>
    where
        F: Fn(usize, Claim) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
        T: Serialize + DeserializeOwned + Send + 'static,
        E: Send + 'static,
    {
        let operation = Arc::new(operation);
        let running = calls.into_iter().enumerate().map(|(number, (key, fingerprint))| {
            let operation = Arc::clone(&operation);
            // The operation is called inside the async block, so that the engine also catches a panic in the call
            // itself.
            self.run(key, fingerprint, move |claim| async move { operation(number, claim).await })
        });
        join_all(running).await
    }

    /// [`run`](Self::run) for operations that can't leave their thread because they hold an `Rc`, an `HttpRequest` or
    /// the like.
    ///
    /// # Cancel safety
    /// On an arbiter, as for [`run`](Self::run). On any other thread, dropping the future also drops the operation, and
    /// the engine settles its claim by [`OnAbandoned`](crate::OnAbandoned).
    ///
    /// # Errors
    /// As for [`run`](Self::run).
    ///
    /// ```
    /// # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use std::{cell::Cell, rc::Rc};
    /// # use oncekey::{Engine, Key};
    /// # use oncekey_backends::MemoryBackend;
    /// # let engine = Engine::builder(MemoryBackend::new()).start()?;
    /// let sent = Rc::new(Cell::new(0));
    /// let counter = Rc::clone(&sent);
    /// engine
    ///     .run_local(Key::new("mail", 17)?, &"to: ada", move |_claim| async move {
    ///         counter.set(counter.get() + 1);
    ///         Ok::<_, std::io::Error>(())
    ///     })
    ///     .await?;
    /// assert_eq!(sent.get(), 1);
    /// # Ok(()) }
    /// ```
    pub async fn run_local<T, E, F, Fut>(
        &self,
        key: Key,
        fingerprint: impl ToFingerprint,
        operation: F,
    ) -> Result<Outcome<T>, RunError<E>>
    where
        F: FnOnce(Claim) -> Fut + 'static,
        Fut: Future<Output = Result<T, E>> + 'static,
        T: Serialize + DeserializeOwned + 'static,
        E: 'static,
    {
        let fingerprint = fingerprint.to_fingerprint().map_err(Error::from)?;
        let node = self.nodes.current()?;
        match self.begin(&node, key.clone(), fingerprint, &self.policy).await? {
            Admitted::Replay(outcome) => Ok(Outcome::Replayed(replayed(&key, &outcome)?)),
            Admitted::Unguarded => {
                let running = async move { run_unguarded(&node.shared, key, operation).await };
                let go_on = |rest: Pin<Box<_>>| detach::go_on_here(Box::pin(async move { drop(rest.await) }));
                DetachOnDrop::new(running, go_on).await
            }
            Admitted::Granted(grant) => {
                let policy = self.policy;
                let running = async move { run_granted(&node.shared, &policy, key, grant, operation).await };
                let go_on = |rest: Pin<Box<_>>| detach::go_on_here(Box::pin(async move { drop(rest.await) }));
                DetachOnDrop::new(running, go_on).await
            }
        }
    }
}

pub(super) fn replayed<T: DeserializeOwned>(key: &Key, outcome: &SealedOutcome) -> Result<T, Error> {
    // The value's `Deserialize` is user code.
    let value = catch_unwind(AssertUnwindSafe(|| outcome.value(key)));
    match value.unwrap_or(Err(CorruptOutcome::Content)) {
        Ok(value) => value.ok_or(Error::OutcomeNotKept),
        // The outcome is intact, but of another type.
        Err(CorruptOutcome::Content | CorruptOutcome::OtherKind) => {
            Err(Error::OutcomeUnreadable(Box::new(UnreadableOutcome::new::<T>(key, outcome))))
        }
        Err(corrupt) => Err(corrupt.into()),
    }
}

/// Reads a replay of an older type with `read_old`.
pub(crate) fn or_read<Old: DeserializeOwned, T, E>(
    outcome: Result<Outcome<T>, RunError<E>>,
    read_old: impl FnOnce(Old) -> T,
) -> Result<Outcome<T>, RunError<E>> {
    match outcome {
        Err(RunError::Engine(Error::OutcomeUnreadable(unreadable))) => match unreadable.read() {
            Ok(old) => Ok(Outcome::Replayed(read_old(old))),
            Err(_) => Err(RunError::Engine(Error::OutcomeUnreadable(unreadable))),
        },
        other => other,
    }
}

/// Returns the outcome to store for a value, and the value as read back from it, so that the first answer and every
/// replay are equal.
pub(super) fn sealed<T: Serialize + DeserializeOwned>(key: &Key, value: &T) -> Result<(T, SealedOutcome), Error> {
    let unserializable = |error: &dyn std::fmt::Display| Error::Unserializable(error.to_string());
    let outcome = SealedOutcome::of_value(key, value).map_err(|error| unserializable(&error))?;
    let value = outcome.read_back().map_err(|error| unserializable(&error))?;
    Ok((value, outcome))
}

async fn run_unguarded<T, E, F, Fut>(shared: &Shared, key: Key, operation: F) -> Result<Outcome<T>, RunError<E>>
where
    F: FnOnce(Claim) -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    let running = async move { operation(Claim::unguarded(key, &shared.settings.derivation)).await };
    match AssertUnwindSafe(running).catch_unwind().await {
        Ok(Ok(value)) => Ok(Outcome::Ran(value)),
        Ok(Err(error)) => Err(RunError::Operation(error)),
        Err(_) => Err(RunError::Engine(Error::Panicked)),
    }
}

async fn run_granted<T, E, F, Fut>(
    shared: &Shared,
    policy: &CallPolicy,
    key: Key,
    mut grant: Grant,
    operation: F,
) -> Result<Outcome<T>, RunError<E>>
where
    F: FnOnce(Claim) -> Fut,
    Fut: Future<Output = Result<T, E>>,
    T: Serialize + DeserializeOwned,
{
    let derivation = &shared.settings.derivation;
    let claim = Claim::completed_by_its_operation(key.clone(), &grant, policy.retention, derivation);
    let span = debug_span!("operation", %key, attempt = %grant.attempt);
    grant.begin().await?;
    // The operation is called inside the async block, so that a panic before its first await is also caught.
    let running = async move { operation(claim).await };
    let result = AssertUnwindSafe(running).catch_unwind().instrument(span).await;
    settle(shared, policy, &key, &mut grant, result).await
}

/// Settles a claim by the result of its operation.
async fn settle<T: Serialize + DeserializeOwned, E>(
    shared: &Shared,
    policy: &CallPolicy,
    key: &Key,
    grant: &mut Grant,
    result: Result<Result<T, E>, Box<dyn Any + Send>>,
) -> Result<Outcome<T>, RunError<E>> {
    if planted!(PanicLeavesTheKey) && result.is_err() {
        grant.forget();
        return Err(RunError::Engine(Error::Panicked));
    }
    let (settlement, answer) = settlement(shared, key, policy, result);
    match (grant.settle(settlement).await, answer) {
        (Ok(_), answer) => answer,
        // The caller gets the operation's own error. An event reports that the claim could not be settled.
        (Err(_), Err(error)) => Err(error),
        (Err(error), Ok(_)) => Err(RunError::Engine(error)),
    }
}

/// Returns how to settle the claim, and what the caller gets if the store accepts the settlement.
pub(super) fn settlement<T: Serialize + DeserializeOwned, E>(
    shared: &Shared,
    key: &Key,
    policy: &CallPolicy,
    result: Result<Result<T, E>, Box<dyn Any + Send>>,
) -> (Settlement, Result<Outcome<T>, RunError<E>>) {
    let on_failure = match policy.on_failure {
        OnFailure::Release => Settlement::Release,
        OnFailure::Hold => Settlement::Hold,
    };
    match result {
        // The value's `Serialize` and `Deserialize` are user code.
        Ok(Ok(value)) => match catch_unwind(AssertUnwindSafe(|| sealed(key, &value))) {
            Ok(Ok((value, outcome))) => {
                (Settlement::Complete { outcome, retention: policy.retention }, Ok(Outcome::Ran(value)))
            }
            // The effect has happened, but no replay can return its value. Hold keeps the operation from running again.
            Ok(Err(error)) => (Settlement::Hold, Err(RunError::Engine(error))),
            Err(_) => {
                shared.events.tell(EventKind::Panicked, key);
                (Settlement::Hold, Err(RunError::Engine(Error::Panicked)))
            }
        },
        Ok(Err(error)) => (on_failure, Err(RunError::Operation(error))),
        Err(_) => {
            shared.events.tell(EventKind::Panicked, key);
            (Settlement::Abandon, Err(RunError::Engine(Error::Panicked)))
        }
    }
}
