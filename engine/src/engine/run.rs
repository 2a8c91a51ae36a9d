//! Running an operation once, with a typed outcome.

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

/// What a call gives: the operation's value, and whether it ran now or before.
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
    /// The operation ran, by this call.
    Ran(T),
    /// An earlier call ran it: this is what it gave.
    Replayed(T),
}

impl<T> Outcome<T> {
    /// The value, either way.
    pub fn into_inner(self) -> T {
        match self {
            Self::Ran(value) | Self::Replayed(value) => value,
        }
    }

    /// Whether the operation ran before, and not now.
    pub fn is_replay(&self) -> bool {
        matches!(self, Self::Replayed(_))
    }
}

impl Engine {
    /// Runs `operation` once for `key`, and gives its outcome to this call and every later one.
    ///
    /// `fingerprint` is what is asked: anything that serializes, or a [`Fingerprint`](crate::Fingerprint). A later call
    /// that asks for something else under the same key is refused. The outcome is stored as JSON, so that a later version
    /// of the program can read it.
    ///
    /// The outcome is stored before this returns, and this call gets the value as it was read back from what is stored: the
    /// first answer and every replay are equal. A value that JSON can't keep (a NaN, a `Some(())`) is
    /// [`Error::Unserializable`] before anything is stored, and the key is then indeterminate.
    ///
    /// An operation's `Err` states that nothing happened: the key is settled as [`OnFailure`] says, and the error is
    /// returned. A panic states nothing, so [`OnAbandoned`](crate::OnAbandoned) decides as after a crash.
    ///
    /// # Cancel safety
    /// Dropping the future before the operation began withdraws the call. Once it began, the operation goes on in a task
    /// of its own and its outcome is stored.
    ///
    /// # Errors
    /// [`RunError::Operation`] with the operation's own error, or [`RunError::Engine`] with the engine's reason.
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
        // Made before the first await, so that what it borrows need not be `Sync` for this future to be `Send`.
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
    /// `read_old` is called only for a stored outcome that can't be read as a `T`, and can be read as an `Old`.
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
    /// // The next version stores a text.
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

    /// Runs several calls at once: their claims and outcomes are on their way to the store together.
    /// [`run_all_blocking`](Self::run_all_blocking) is the same for a plain thread.
    ///
    /// The operations run side by side in the caller's task; each gets its call's number. The results are in the order of
    /// the calls. A call that is refused, or fails, concerns no other. Two calls of one key are two callers of that key: the
    /// second is in flight elsewhere, waits, or replays, as the policy says.
    ///
    /// # Cancel safety
    /// As for [`run`](Self::run), for each call.
    ///
    /// # Errors
    /// Each call's as for [`run`](Self::run).
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
            // Called inside the block, which the engine polls with its guard against panics.
            self.run(key, fingerprint, move |claim| async move { operation(number, claim).await })
        });
        join_all(running).await
    }

    /// [`run`](Self::run) for operations that can't leave their thread: those that hold an `Rc`, an `HttpRequest`, ….
    ///
    /// # Cancel safety
    /// As for [`run`](Self::run), on an arbiter. On a thread that is none, an operation whose caller is dropped is torn
    /// down, and its claim is settled as its [`OnAbandoned`](crate::OnAbandoned) says.
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
    // The value's `Deserialize` is the user's code.
    let value = catch_unwind(AssertUnwindSafe(|| outcome.value(key)));
    match value.unwrap_or(Err(CorruptOutcome::Content)) {
        Ok(value) => value.ok_or(Error::OutcomeNotKept),
        // It is sound, and another type's.
        Err(CorruptOutcome::Content | CorruptOutcome::OtherKind) => {
            Err(Error::OutcomeUnreadable(Box::new(UnreadableOutcome::new::<T>(key, outcome))))
        }
        Err(corrupt) => Err(corrupt.into()),
    }
}

/// A replay that is of an older type, as the current one.
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

/// The outcome to store for a value, and the value as every replay will read it: what the caller gets now and what a
/// retry gets later are the same, by construction.
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
    // An inner block, so that a panic before the operation's first await is caught as well.
    let running = async move { operation(claim).await };
    let result = AssertUnwindSafe(running).catch_unwind().instrument(span).await;
    settle(shared, policy, &key, &mut grant, result).await
}

/// Settles a claim by what its operation gave.
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
        // The operation's own error is the one to tell: that its claim could not be given up is an event.
        (Err(_), Err(error)) => Err(error),
        (Err(error), Ok(_)) => Err(RunError::Engine(error)),
    }
}

/// What becomes of the claim, and what the caller is told if the store takes it.
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
        // The value's `Serialize` and `Deserialize` are the user's code.
        Ok(Ok(value)) => match catch_unwind(AssertUnwindSafe(|| sealed(key, &value))) {
            Ok(Ok((value, outcome))) => {
                (Settlement::Complete { outcome, retention: policy.retention }, Ok(Outcome::Ran(value)))
            }
            // The effect has happened, and can't be told to anybody else: it must not run again by itself.
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
