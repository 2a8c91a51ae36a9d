//! The error for finished work whose stored outcome has another type than the caller expects.

use std::any::type_name;
use std::fmt;

use serde::de::DeserializeOwned;

use crate::Key;
use crate::record::{CorruptOutcome, SealedOutcome};

/// The outcome of finished work that can't be read as the type that the caller asked for. The type has changed since
/// the outcome was stored, for example by a deploy.
///
/// The work does not run again. Read the outcome as the type that it was stored as, or give the new type's added fields
/// defaults (`#[serde(default)]`).
///
/// ```
/// # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use oncekey::{Engine, Error, Key, Outcome, RunError};
/// # use oncekey_backends::MemoryBackend;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct OldReceipt { id: u64 }
/// #[derive(Debug, Serialize, Deserialize)]
/// struct Receipt { id: u64, total: u64 }
///
/// let engine = Engine::builder(MemoryBackend::new()).start()?;
/// let key = Key::new("mail", 17)?;
/// engine.run(key.clone(), &(), |_| async { Ok::<_, std::io::Error>(OldReceipt { id: 17 }) }).await?;
///
/// let again = engine.run(key, &(), |_| async { Ok::<_, std::io::Error>(Receipt { id: 17, total: 0 }) }).await;
/// let Err(RunError::Engine(Error::OutcomeUnreadable(unreadable))) = again else { panic!("it has no total") };
/// assert_eq!(unreadable.key().to_string(), "mail/17");
/// assert_eq!(unreadable.read::<OldReceipt>()?.id, 17);
/// # Ok(()) }
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct UnreadableOutcome {
    key: Key,
    type_name: &'static str,
    outcome: SealedOutcome,
}

impl UnreadableOutcome {
    pub(crate) fn new<T>(key: &Key, outcome: &SealedOutcome) -> Self {
        Self { key: key.clone(), type_name: type_name::<T>(), outcome: outcome.clone() }
    }

    /// Returns the key of the finished work.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Returns the name of the type that the outcome can't be read as.
    pub fn type_name(&self) -> &'static str {
        self.type_name
    }

    /// Reads the outcome as another type.
    ///
    /// # Errors
    /// [`CorruptOutcome`] if the outcome can't be read as this type either.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, CorruptOutcome> {
        self.outcome.value(&self.key)?.ok_or(CorruptOutcome::Content)
    }
}

impl fmt::Display for UnreadableOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, type_name, .. } = self;
        write!(
            f,
            "the work of {key} is finished and does not run again, but its stored outcome can't be read as {type_name}: \
             read it as the type that it was stored as, or give the fields that {type_name} has gained a default",
        )
    }
}

/// Leaves the outcome out, because it may hold data that belongs in no log.
impl fmt::Debug for UnreadableOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnreadableOutcome")
            .field("key", &self.key)
            .field("type_name", &self.type_name)
            .finish_non_exhaustive()
    }
}

impl std::error::Error for UnreadableOutcome {}
