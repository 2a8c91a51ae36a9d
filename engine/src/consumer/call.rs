//! One call of the engine on behalf of a message.

use std::any::Any;
use std::future::Future;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Identity;
use crate::engine::or_read;
use crate::{Claim, Engine, Fingerprint, Key, Outcome, RunError};

/// Why a job gave no value.
///
/// ```
/// use oncekey::consumer::JobError;
///
/// assert_eq!(JobError::Failed("no route").to_string(), "no route");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JobError<E> {
    /// Its own error.
    #[error("{0}")]
    Failed(E),
    /// It was not run: too many attempts before this one ended with their process, or with their claim lost.
    #[error("given up: {attempts} attempts had begun before, and did not end; the last ended with its process")]
    GivenUp {
        /// Attempts before this one.
        attempts: u32,
    },
}

/// What a [`Job`](super::Job) gives: the engine's decision.
pub type JobResult<T, E> = Result<Outcome<T>, RunError<JobError<E>>>;

/// One call of the engine, ready to be made: its key and fingerprint are set. The job chooses how its operation runs.
///
/// | | effect after a crash |
/// |---|---|
/// | [`run`](Self::run) | at most once, or at least once: as [`OnAbandoned`](crate::OnAbandoned) says |
/// | [`run_in_transaction`](Self::run_in_transaction), [`run_in_async_transaction`](Self::run_in_async_transaction) | exactly once |
///
/// ```
/// # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use oncekey::{Engine, consumer::{Identity, job}};
/// # let _ = job(
/// #   |order: &u64| Ok(Identity::new(oncekey::Key::new("mail", order)?, order)?),
/// |call: oncekey::consumer::Call, order: std::sync::Arc<u64>| async move {
///     call.run(move |claim| async move {
///         Ok::<_, std::io::Error>(format!("mail for order {order}, attempt {}", claim.attempt()))
///     })
///     .await
/// }
/// # );
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Call {
    pub(super) engine: Engine,
    pub(super) key: Key,
    pub(super) fingerprint: Fingerprint,
    /// How often the job failed for this message before.
    pub(super) failures: u32,
    pub(super) max_attempts: u32,
}

impl Call {
    /// A call outside of a processor, by whoever has a message in hand: a relay that does the next consumer's part itself.
    /// Attempts are not counted.
    ///
    /// ```
    /// # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use oncekey::{Engine, Key, consumer::{Call, Identity}};
    /// # use oncekey_backends::MemoryBackend;
    /// let engine = Engine::builder(MemoryBackend::new()).start()?;
    /// let call = Call::new(engine, Identity::new(Key::new("mail", 17)?, &"to: ada")?);
    /// let sent = call.run(|_claim| async { Ok::<_, std::io::Error>("sent".to_owned()) }).await?;
    /// assert_eq!(sent.into_inner(), "sent");
    /// # Ok(()) }
    /// ```
    pub fn new(engine: Engine, identity: Identity) -> Self {
        let Identity { key, fingerprint } = identity;
        Self { engine, key, fingerprint, failures: 0, max_attempts: u32::MAX }
    }

    /// The key that the job read from the message.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// How often the job failed for this message before.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Has the call follow other policies than the engine's handle: see [`Engine::with_policy`].
    ///
    /// ```
    /// # use oncekey::{OnAbandoned, consumer::Call};
    /// # fn example(call: Call) -> Call {
    /// call.with(|engine| engine.with_on_abandoned(OnAbandoned::Rerun))
    /// # }
    /// ```
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&Engine) -> Engine) -> Self {
        self.engine = change(&self.engine);
        self
    }

    /// [`Engine::run`] for the message.
    ///
    /// # Cancel safety
    /// As for [`Engine::run`].
    ///
    /// # Errors
    /// As for [`Engine::run`]; [`JobError::GivenUp`] if too many attempts ended with their process.
    pub async fn run<T, E, F, Fut>(self, operation: F) -> JobResult<T, E>
    where
        F: FnOnce(Claim) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
        T: Serialize + DeserializeOwned + Send + 'static,
        E: Send + 'static,
    {
        let attempts = self.attempts();
        let running = self.engine.run(self.key, self.fingerprint, move |claim| async move {
            attempts.check(&claim)?;
            operation(claim).await.map_err(JobError::Failed)
        });
        running.await
    }

    /// [`Engine::run_or_read`] for the message: with a reader for outcomes of an older type.
    ///
    /// A processor acknowledges a finished message whatever the type of its outcome. This is for jobs that use the value.
    ///
    /// # Cancel safety
    /// As for [`Engine::run`].
    ///
    /// # Errors
    /// As for [`Engine::run_or_read`]; [`JobError::GivenUp`] if too many attempts ended with their process.
    pub async fn run_or_read<Old, T, E, F, Fut>(self, operation: F, read_old: impl FnOnce(Old) -> T) -> JobResult<T, E>
    where
        F: FnOnce(Claim) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
        T: Serialize + DeserializeOwned + Send + 'static,
        E: Send + 'static,
        Old: DeserializeOwned,
    {
        or_read(self.run(operation).await, read_old)
    }

    /// [`Engine::run_in_transaction`] for the message: **exactly once** for what is written by the connection.
    ///
    /// # Cancel safety
    /// As for [`Engine::run`].
    ///
    /// # Errors
    /// As for [`Engine::run_in_transaction`]; [`JobError::GivenUp`] if too many attempts ended with their process.
    pub async fn run_in_transaction<C, T, E, F>(self, operation: F) -> JobResult<T, E>
    where
        C: Any,
        F: FnOnce(&mut C, &Claim) -> Result<T, E> + Send + 'static,
        T: Serialize + DeserializeOwned + Send + 'static,
        E: Send + 'static,
    {
        let attempts = self.attempts();
        let running = self.engine.run_in_transaction(self.key, self.fingerprint, move |tx: &mut C, claim| {
            attempts.check(claim)?;
            operation(tx, claim).map_err(JobError::Failed)
        });
        running.await
    }

    /// [`Engine::run_in_async_transaction`] for the message: **exactly once** for what is written by the connection.
    ///
    /// # Cancel safety
    /// As for [`Engine::run`].
    ///
    /// # Errors
    /// As for [`Engine::run_in_async_transaction`]; [`JobError::GivenUp`] if too many attempts ended with their process.
    pub async fn run_in_async_transaction<C, T, E, F>(self, mut operation: F) -> JobResult<T, E>
    where
        C: Any,
        F: AsyncFnMut(&mut C, &Claim) -> Result<T, E> + Send + 'static,
        T: Serialize + DeserializeOwned + Send + 'static,
        E: Send + 'static,
    {
        let attempts = self.attempts();
        let running =
            self.engine.run_in_async_transaction(self.key, self.fingerprint, async move |tx: &mut C, claim: &Claim| {
                attempts.check(claim)?;
                operation(tx, claim).await.map_err(JobError::Failed)
            });
        running.await
    }

    pub(super) fn attempts(&self) -> Attempts {
        Attempts { failures: self.failures, max: self.max_attempts }
    }
}

/// What counts against the cap of attempts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attempts {
    pub(super) failures: u32,
    pub(super) max: u32,
}

impl Attempts {
    /// Each takeover of the key is an attempt that ended with its process, or lost its claim.
    pub(super) fn check<E>(self, claim: &Claim) -> Result<(), JobError<E>> {
        let taken_over = u32::try_from(claim.attempt().get().saturating_sub(1)).unwrap_or(u32::MAX);
        let attempts = self.failures.saturating_add(taken_over);
        if taken_over > 0 && attempts >= self.max { Err(JobError::GivenUp { attempts }) } else { Ok(()) }
    }
}
