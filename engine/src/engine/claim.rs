//! What an operation is handed.

use std::fmt;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::key_lock::{Confirm, LockAddr};
use crate::{Attempt, Error, Key};

/// The claim under which an operation runs.
///
/// Hand its [`key`](Self::key) and [`attempt`](Self::attempt) on to whatever the operation calls: a payment provider
/// takes the key as its own idempotency key, and a service that knows fencing refuses an attempt older than one that it
/// has seen.
///
/// ```
/// # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use oncekey::{Engine, Key};
/// # use oncekey_backends::MemoryBackend;
/// # let engine = Engine::builder(MemoryBackend::new()).start()?;
/// let outcome = engine
///     .run(Key::new("charge", "r-1")?, &1999, |claim| async move {
///         claim.confirm().await?; // the last moment before what can't be undone
///         Ok::<_, oncekey::Error>(format!("{} {}", claim.key(), claim.attempt()))
///     })
///     .await?;
/// assert_eq!(outcome.into_inner(), "charge/r-1 1");
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Claim {
    key: Key,
    attempt: Attempt,
    lock: Option<LockAddr>,
}

impl Claim {
    pub(crate) fn new(key: Key, attempt: Attempt, lock: LockAddr) -> Self {
        Self { key, attempt, lock: Some(lock) }
    }

    pub(crate) fn unguarded(key: Key) -> Self {
        Self { key, attempt: Attempt::FIRST, lock: None }
    }

    /// The key that is claimed.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// The fencing token of the claim: above 1 if an earlier holder's lease lapsed.
    pub fn attempt(&self) -> Attempt {
        self.attempt
    }

    /// Whether there is a claim at all: not where the store was away and
    /// [`OnStoreFailure::Run`](crate::OnStoreFailure::Run) let the operation run.
    pub fn is_guarded(&self) -> bool {
        self.lock.is_some()
    }

    /// Asks the store, now, whether the claim still stands, and renews its lease.
    ///
    /// The lease is renewed without this. It is for the moment before an effect that can't be undone, after a pause that
    /// may have been longer than the lease.
    ///
    /// # Errors
    /// [`Error::ClaimLost`] if another holder has the key by now; [`Error::Store`] if the store did not say.
    pub async fn confirm(&self) -> Result<(), Error> {
        let Some(lock) = &self.lock else { return Ok(()) };
        let (reply, confirmed) = oneshot::channel();
        let message = Confirm { reply, lock: Arc::clone(lock) };
        lock.try_send(message).map_err(|_| Error::Stopped)?;
        confirmed.await.unwrap_or(Err(Error::Stopped))
    }
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claim")
            .field("key", &self.key)
            .field("attempt", &self.attempt)
            .field("is_guarded", &self.is_guarded())
            .finish()
    }
}
