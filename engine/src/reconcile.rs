//! The user's word on keys whose holder went away without one.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use serde::Serialize;

use crate::record::{Binding, SealedOutcome, StepName};
use crate::{Attempt, DerivedKey, FencingToken, Key};

/// A key, or a step of it, whose effect may or may not have happened.
///
/// ```
/// use oncekey::{Abandoned, Attempt, Key};
///
/// let abandoned = Abandoned { key: Key::new("charge", "r-1")?, attempt: Attempt::FIRST, step: None };
/// assert!(abandoned.outcome(&"charge 17").is_ok());
/// # Ok::<(), oncekey::KeyError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Abandoned {
    /// The key.
    pub key: Key,
    /// The claim whose outcome nobody knows.
    pub attempt: Attempt,
    /// The step of the operation that is asked about; `None` where it is the operation itself.
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
    /// Its name, as the store has it: a digest under [`key_hashing`](crate::EngineBuilder::key_hashing).
    pub name: StepName,
    /// How often it has begun.
    pub attempt: Attempt,
    /// The key that it handed to its provider: ask the provider about this one. `None` where the store has only a digest of
    /// the name, which the key can't be derived from.
    pub key: Option<DerivedKey>,
    /// The parent's life, which the step's outcome is bound to.
    pub life: FencingToken,
}

impl Abandoned {
    /// The outcome to answer with, for a value that the operation or the step would have returned.
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

/// What a reconciler found out.
///
/// ```
/// use oncekey::{Key, Verdict};
/// use oncekey::record::SealedOutcome;
///
/// let key = Key::new("charge", "r-1")?;
/// let happened = Verdict::Completed(SealedOutcome::of_value(&key, &"charge 17")?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The effect happened, and this is its outcome: retries replay it.
    Completed(SealedOutcome),
    /// The effect did not happen, and never will: the key is free.
    NotDone,
    /// It can't be told yet: the key stays indeterminate.
    Unknown,
}

type Reconciling = Pin<Box<dyn Future<Output = Verdict> + Send>>;

/// The user's reconciler, as the builder took it.
#[derive(Clone)]
pub(crate) struct Reconciler(Arc<dyn Fn(Abandoned) -> Reconciling + Send + Sync>);

impl Reconciler {
    pub(crate) fn new<F, Fut>(reconcile: F) -> Self
    where
        F: Fn(Abandoned) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Verdict> + Send + 'static,
    {
        Self(Arc::new(move |abandoned| Box::pin(reconcile(abandoned))))
    }

    pub(crate) fn ask(&self, abandoned: Abandoned) -> Reconciling {
        (self.0)(abandoned)
    }
}

impl fmt::Debug for Reconciler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reconciler")
    }
}
