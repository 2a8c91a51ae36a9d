//! What the store can see: keys as keyed digests, and outcomes encrypted.
//!
//! Anyone who can read the store (from a backup, on a replica, as an administrator) can read the callers' keys and the
//! answers to them. Two independent settings prevent that:
//!
//! - [`KeyHashing`]: the store sees HMAC-SHA-256 digests instead of the scope and the key. The fingerprint is keyed
//!   too.
//! - `Encryption` (feature `encryption`): the store sees encrypted and authenticated outcomes, each bound to its key.
//!
//! The engine's callers, observers and logs still see the plain keys. Both settings work between the engine and its
//! backend, message by message, and every step remains one atomic step.
//!
//! ```
//! # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # fn secret(_: &str) -> [u8; 32] { [7; 32] }
//! use oncekey::{Engine, Key, Outcome, at_rest::KeyHashing};
//! use oncekey_backends::MemoryBackend;
//!
//! let engine =
//!     Engine::builder(MemoryBackend::new()).key_hashing(KeyHashing::hmac(secret("idempotency keys"))?).start()?;
//! let key = Key::new("mail", "ada@example.org")?;
//! engine.run(key.clone(), &"welcome", |_| async { Ok::<_, std::io::Error>("sent".to_owned()) }).await?;
//!
//! let stored = &engine.list(None, 1).await?[0].key;
//! assert!(stored.is_hashed() && !stored.as_stored().contains("ada"));
//! assert!(engine.lookup(&key).await?.is_some());
//! # Ok(()) }
//! ```
//!
//! For what this protects against, what it does not, and how to change secrets, see
//! [`guide::security`](crate::guide::security).

#[cfg(feature = "encryption")]
mod encryption;
mod hashing;
mod protected;
mod protected_steps;

#[cfg(feature = "encryption")]
pub use encryption::Encryption;
pub use hashing::{KeyHashing, SecretTooShort};
pub use protected::Protected;

use std::sync::Arc;

use crate::backend::{Backend, OperationFailure, StateView, StoreError, TransactionOperation};
use crate::record::{Binding, SealedOutcome, StepName};
use crate::{CorruptOutcome, Fingerprint, Key};

/// The settings of this module together, for a backend that you use without an engine. An engine takes them one by one:
/// [`EngineBuilder::key_hashing`](crate::EngineBuilder::key_hashing) and `EngineBuilder::encryption`.
///
/// ```
/// # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use oncekey::Key;
/// use oncekey::at_rest::{AtRest, KeyHashing};
/// use oncekey::backend::{Backend, Lookup};
/// use oncekey_backends::MemoryBackend;
///
/// let at_rest = AtRest::default().key_hashing(KeyHashing::hmac([7; 32])?);
/// let store = at_rest.protect(MemoryBackend::new());
/// assert_eq!(store.lookup(Lookup { key: Key::new("mail", 17)? }).await?, None);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct AtRest {
    hashing: Option<Arc<KeyHashing>>,
    #[cfg(feature = "encryption")]
    encryption: Option<Arc<Encryption>>,
}

/// The two names of one key.
#[derive(Clone)]
struct Names {
    /// The key as the caller knows it.
    plain: Key,
    /// The key as the store knows it.
    stored: Key,
}

impl AtRest {
    /// Makes the store see digests instead of keys.
    pub fn key_hashing(mut self, hashing: KeyHashing) -> Self {
        self.hashing = Some(Arc::new(hashing));
        self
    }

    /// Makes the store see encrypted outcomes.
    #[cfg(feature = "encryption")]
    pub fn encryption(mut self, encryption: Encryption) -> Self {
        self.encryption = Some(Arc::new(encryption));
        self
    }

    /// Returns the backend behind these settings.
    pub fn protect<B: Backend>(&self, backend: B) -> Protected<B> {
        Protected::new(backend, self.clone())
    }

    pub(crate) fn is_on(&self) -> bool {
        #[cfg(feature = "encryption")]
        if self.encryption.is_some() {
            return true;
        }
        self.hides_keys()
    }

    /// Returns whether a stored key hides its scope.
    pub(crate) fn hides_keys(&self) -> bool {
        self.hashing.is_some()
    }

    /// Returns whether two secrets share a number.
    pub(crate) fn is_ambiguous(&self) -> bool {
        #[cfg(feature = "encryption")]
        return self.encryption.as_ref().is_some_and(|encryption| encryption.has_ambiguous_id());
        #[cfg(not(feature = "encryption"))]
        false
    }

    fn names(&self, plain: Key) -> Names {
        let stored = match &self.hashing {
            Some(hashing) if !plain.is_hashed() => hashing.hash(&plain),
            // A key that was read from the store is its own name there.
            _ => plain.clone(),
        };
        Names { plain, stored }
    }

    /// Returns whether `stored`, as the store shows it, is the fingerprint `asked` under this key.
    pub(crate) fn is_of(&self, key: &Key, asked: Fingerprint, stored: Fingerprint) -> bool {
        self.fingerprint(&self.names(key.clone()), asked) == stored
    }

    fn fingerprint(&self, names: &Names, asked: Fingerprint) -> Fingerprint {
        match &self.hashing {
            Some(hashing) => hashing.fingerprint(&names.stored, &asked),
            None => asked,
        }
    }

    /// Returns the keyed digest from which a derived key is made, or `None` without key hashing.
    pub(crate) fn derived_key(&self, parts: &[u8]) -> Option<[u8; 32]> {
        self.hashing.as_ref().map(|hashing| hashing.derived_key(parts))
    }

    /// Returns the name of a step, as the store sees it.
    pub(crate) fn step_name(&self, key: &Key, name: StepName) -> StepName {
        match &self.hashing {
            Some(hashing) if !name.is_hashed() => hashing.step_name(&self.names(key.clone()).stored, &name),
            // A name that was read from the store is its own name there.
            _ => name,
        }
    }

    /// Returns the stored form of an outcome that was sealed for the plain key.
    ///
    /// The plain form's checksum covers the plain key. The stored form needs a new checksum, because a reader of
    /// the store could otherwise test guesses of the key against it.
    fn seal(&self, names: &Names, outcome: &SealedOutcome) -> Result<SealedOutcome, CorruptOutcome> {
        self.seal_bound((&names.plain).into(), (&names.stored).into(), outcome)
    }

    fn seal_bound(
        &self,
        plain: Binding<'_>,
        stored: Binding<'_>,
        outcome: &SealedOutcome,
    ) -> Result<SealedOutcome, CorruptOutcome> {
        #[cfg(feature = "encryption")]
        if let Some(encryption) = &self.encryption {
            return encryption.seal(stored, outcome.parts(plain)?);
        }
        outcome.move_to(plain, stored)
    }

    /// Returns the outcome, sealed for the plain key, from its stored form.
    fn open(&self, names: &Names, stored: &SealedOutcome) -> Result<SealedOutcome, CorruptOutcome> {
        self.open_bound((&names.plain).into(), (&names.stored).into(), stored)
    }

    fn open_bound(
        &self,
        plain: Binding<'_>,
        stored: Binding<'_>,
        outcome: &SealedOutcome,
    ) -> Result<SealedOutcome, CorruptOutcome> {
        #[cfg(feature = "encryption")]
        if let Some(encryption) = &self.encryption
            && let Some((tag, payload)) = encryption.open(stored, outcome)?
        {
            return Ok(SealedOutcome::assemble(plain, tag, |bytes| bytes.extend_from_slice(&payload)));
        }
        outcome.move_to(stored, plain)
    }

    /// Returns a state for display. An outcome that cannot be opened must not hide the rest of its record, nor the
    /// records after it.
    fn show(&self, names: &Names, state: StateView) -> StateView {
        match state {
            StateView::Completed { outcome, expires_in } => {
                let outcome = self.open(names, &outcome).unwrap_or_else(|_| SealedOutcome::unreadable());
                StateView::Completed { outcome, expires_in }
            }
            other => other,
        }
    }

    fn operation(&self, names: Names, operation: TransactionOperation) -> TransactionOperation {
        let at_rest = self.clone();
        operation.and_then(move |outcome| at_rest.seal(&names, &outcome).map_err(|_| OperationFailure::RollBack))
    }
}

impl From<CorruptOutcome> for StoreError {
    fn from(corrupt: CorruptOutcome) -> Self {
        Self::Outcome(corrupt)
    }
}
