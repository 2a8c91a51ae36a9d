//! A call to the engine on behalf of a message.

use std::any::Any;
use std::future::Future;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::MessageKey;
use crate::engine::or_read;
use crate::{Claim, Engine, Fingerprint, Key, Outcome, RunError};

/// Why a job returned no value.
///
/// ```
/// use oncekey::consumer::JobError;
///
/// assert_eq!(JobError::Failed("no route").to_string(), "no route");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JobError<E> {
    /// The job's own error.
    #[error("{0}")]
    Failed(E),
    /// The job did not run: too many earlier attempts died with their process or lost their claim.
    #[error("given up: {attempts} attempts had begun before, and did not end; the last ended with its process")]
    GivenUp {
        /// The number of attempts before this one.
        attempts: u32,
    },
}

/// What a [`Job`](super::Job) returns: the engine's decision.
pub type JobResult<T, E> = Result<Outcome<T>, RunError<JobError<E>>>;

/// A prepared call to the engine, with its key and fingerprint set. The job chooses how its operation runs.
///
/// | | effect after a crash |
/// |---|---|
/// | [`run`](Self::run) | at most once, or at least once: as [`OnAbandoned`](crate::OnAbandoned) says |
/// | [`run_in_transaction`](Self::run_in_transaction), [`run_in_async_transaction`](Self::run_in_async_transaction) | exactly once |
///
/// ```
/// # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use oncekey::{Engine, consumer::{MessageKey, job}};
/// # let _ = job(
/// #   |order: &u64| Ok(MessageKey::new(oncekey::Key::new("mail", order)?, order)?),
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
    /// How many times the job has failed for this message.
    pub(super) failures: u32,
    pub(super) max_attempts: u32,
}

impl Call {
    /// Creates a call outside a processor, for code that holds a message itself, such as a relay that does the next
    /// consumer's work. This call does not count attempts.
    ///
    /// ```
    /// # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use oncekey::{Engine, Key, consumer::{Call, MessageKey}};
    /// # use oncekey_backends::MemoryBackend;
    /// let engine = Engine::builder(MemoryBackend::new()).start()?;
    /// let call = Call::new(engine, MessageKey::new(Key::new("mail", 17)?, &"to: ada")?);
    /// let sent = call.run(|_claim| async { Ok::<_, std::io::Error>("sent".to_owned()) }).await?;
    /// assert_eq!(sent.into_inner(), "sent");
    /// # Ok(()) }
    /// ```
    pub fn new(engine: Engine, identity: MessageKey) -> Self {
        let MessageKey { key, fingerprint } = identity;
        Self { engine, key, fingerprint, failures: 0, max_attempts: u32::MAX }
    }

    /// Returns the key that the job read from the message.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Returns how many times the job has failed for this message.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Makes the call follow policies that differ from the engine handle's: see [`Engine::with_policy`].
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

    /// Calls [`Engine::run`] for the message.
    ///
    /// # Cancel safety
    /// As for [`Engine::run`].
    ///
    /// # Errors
    /// As for [`Engine::run`], and [`JobError::GivenUp`] if too many attempts ended with their process.
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

    /// Calls [`Engine::run_or_read`] for the message, with a reader for outcomes of an older type.
    ///
    /// A processor acknowledges a finished message whatever the type of its outcome. Use this method in jobs that need
    /// the value.
    ///
    /// # Cancel safety
    /// As for [`Engine::run`].
    ///
    /// # Errors
    /// As for [`Engine::run_or_read`], and [`JobError::GivenUp`] if too many attempts ended with their process.
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

    /// Calls [`Engine::run_in_transaction`] for the message. Writes through the connection happen **exactly once**.
    ///
    /// # Cancel safety
    /// As for [`Engine::run`].
    ///
    /// # Errors
    /// As for [`Engine::run_in_transaction`], and [`JobError::GivenUp`] if too many attempts ended with their process.
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

    /// Calls [`Engine::run_in_async_transaction`] for the message. Writes through the connection happen **exactly
    /// once**.
    ///
    /// # Cancel safety
    /// As for [`Engine::run`].
    ///
    /// # Errors
    /// As for [`Engine::run_in_async_transaction`], and [`JobError::GivenUp`] if too many attempts ended with their
    /// process.
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

/// The attempts that count against the maximum.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attempts {
    pub(super) failures: u32,
    pub(super) max: u32,
}

impl Attempts {
    /// Gives up if a takeover has reached the maximum. Each takeover means that an attempt died with its process or
    /// lost its claim.
    pub(super) fn check<E>(self, claim: &Claim) -> Result<(), JobError<E>> {
        let taken_over = u32::try_from(claim.attempt().get().saturating_sub(1)).unwrap_or(u32::MAX);
        let attempts = self.failures.saturating_add(taken_over);
        if taken_over > 0 && attempts >= self.max { Err(JobError::GivenUp { attempts }) } else { Ok(()) }
    }
}
