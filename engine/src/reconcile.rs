//! The user's word on keys whose holder went away without one.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use crate::record::SealedOutcome;
use crate::{Attempt, Key};

/// A key whose effect may or may not have happened.
///
/// ```
/// use oncekey::{Abandoned, Attempt, Key};
///
/// let abandoned = Abandoned { key: Key::new("charge", "r-1")?, attempt: Attempt::FIRST };
/// # Ok::<(), oncekey::KeyError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Abandoned {
    /// The key.
    pub key: Key,
    /// The claim whose outcome nobody knows.
    pub attempt: Attempt,
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
