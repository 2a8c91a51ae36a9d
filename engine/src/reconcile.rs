//! The reconciler: user code that settles keys whose holder ended without reporting what happened.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use serde::Serialize;

use crate::record::{Binding, SealedOutcome, StepName};
use crate::{Attempt, DerivedKey, FencingToken, Key};

/// A key, or one of its steps, whose effect may or may not have happened.
///
/// ```
/// use oncekey::{AbandonedClaim, Attempt, Key};
///
/// let abandoned = AbandonedClaim { key: Key::new("charge", "r-1")?, attempt: Attempt::FIRST, step: None };
/// assert!(abandoned.outcome(&"charge 17").is_ok());
/// # Ok::<(), oncekey::KeyError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AbandonedClaim {
    /// The key.
    pub key: Key,
    /// The attempt whose outcome is unknown.
    pub attempt: Attempt,
    /// The step in question; `None` if it is the operation itself.
    pub step: Option<AbandonedStep>,
}

/// A [step](crate::Claim::step) whose effect may or may not have happened.
///
/// ```
/// use oncekey::{AbandonedStep, Attempt, FencingToken, record::StepName};
///
/// let step = AbandonedStep {
///     name: StepName::new("charge")?,
///     attempt: Attempt::FIRST,
///     key: None,
///     life: FencingToken::new(1),
/// };
/// # Ok::<(), oncekey::record::StepNameError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AbandonedStep {
    /// The step's name, as the store has it: a digest under [`key_hashing`](crate::EngineBuilder::key_hashing).
    pub name: StepName,
    /// How often the step has begun.
    pub attempt: Attempt,
    /// The derived key that the step passed to its provider: ask the provider about this key. `None` if the store has
    /// only a digest of the name, from which the key can't be derived.
    pub key: Option<DerivedKey>,
    /// The fencing token of the parent's life, to which the step's outcome is bound.
    pub life: FencingToken,
}

impl AbandonedClaim {
    /// Returns the outcome to resolve with, from a value that the operation or the step would have returned.
    ///
    /// # Errors
    /// A value that JSON can't hold: see [`SealedOutcome::of_value`].
    pub fn outcome<T: Serialize + ?Sized>(&self, value: &T) -> Result<SealedOutcome, serde_json::Error> {
        match &self.step {
            Some(step) => SealedOutcome::of_value(Binding::step(&self.key, step.life, &step.name), value),
            None => SealedOutcome::of_value(&self.key, value),
        }
    }
}

/// The finding of a reconciler.
///
/// ```
/// use oncekey::{Key, ReconcileOutcome};
/// use oncekey::record::SealedOutcome;
///
/// let key = Key::new("charge", "r-1")?;
/// let happened = ReconcileOutcome::Completed(SealedOutcome::of_value(&key, &"charge 17")?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReconcileOutcome {
    /// The effect happened, and this is its outcome. Retries replay it.
    Completed(SealedOutcome),
    /// The effect did not happen and never will. The key becomes free.
    NotDone,
    /// The result is still unknown. The key stays indeterminate.
    Unknown,
}

type Reconciling = Pin<Box<dyn Future<Output = ReconcileOutcome> + Send>>;

/// The user's reconciler, as passed to the builder.
#[derive(Clone)]
pub(crate) struct Reconciler(Arc<dyn Fn(AbandonedClaim) -> Reconciling + Send + Sync>);

impl Reconciler {
    pub(crate) fn new<F, Fut>(reconcile: F) -> Self
    where
        F: Fn(AbandonedClaim) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ReconcileOutcome> + Send + 'static,
    {
        Self(Arc::new(move |abandoned| Box::pin(reconcile(abandoned))))
    }

    pub(crate) fn ask(&self, abandoned: AbandonedClaim) -> Reconciling {
        (self.0)(abandoned)
    }
}

impl fmt::Debug for Reconciler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reconciler")
    }
}
