//! The messages of an operation's steps. Each one is atomic with its check of the parent.

use std::time::Duration;

use super::transaction::TransactionOperation;
use crate::record::{Owner, SealedOutcome, StepName, StepRun};
use crate::{Attempt, FencingToken, Fingerprint, Key, StepPolicy};

/// Begins a step, or returns what is known about it.
///
/// ```
/// # use std::time::Duration;
/// # use oncekey::{Key, StepPolicy, backend::BeginStep, record::{Owner, StepName}};
/// let message = BeginStep {
///     key: Key::new("checkout", 17)?,
///     owner: Owner::random(),
///     name: StepName::new("charge")?,
///     fingerprint: None,
///     number: 1,
///     policy: StepPolicy::Hold,
///     retention: Duration::from_secs(86_400),
/// };
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BeginStep {
    /// The parent's key.
    pub key: Key,
    /// The parent's holder.
    pub owner: Owner,
    /// The step.
    pub name: StepName,
    /// The fingerprint of the step's request, if the caller gave one.
    pub fingerprint: Option<Fingerprint>,
    /// A number that rises with every step that this claim begins. A message that is sent again keeps its number.
    pub number: u32,
    /// What to do if the step begins and its result stays unknown.
    pub policy: StepPolicy,
    /// How long the parent is kept once it is released with steps.
    pub retention: Duration,
}

/// The answer to [`BeginStep`].
///
/// ```
/// # use oncekey::backend::StepBegun;
/// assert_ne!(StepBegun::Lost, StepBegun::Mismatch);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepBegun {
    /// The sender runs the step.
    Begun {
        /// How often the step has begun.
        attempt: Attempt,
        /// This run.
        run: StepRun,
        /// The parent's life, to which the step's outcome is bound.
        life: FencingToken,
    },
    /// The step was completed before.
    Completed {
        /// Its outcome.
        outcome: SealedOutcome,
        /// The parent's life, to which the outcome is bound.
        life: FencingToken,
    },
    /// The parent is not in progress under the sender's claim, or the message was late. Nothing was changed.
    Lost,
    /// The step was called before with another fingerprint.
    Mismatch,
    /// An earlier run of the step began, its result is unknown, and the step may not run again.
    Unsettled,
    /// The parent has [`Steps::MAX`](crate::record::Steps::MAX) steps.
    TooMany,
}

/// Records a step's outcome.
///
/// ```
/// # use oncekey::{FencingToken, Key, backend::CompleteStep, record::{SealedOutcome, StepName, StepRun}};
/// let key = Key::new("checkout", 17)?;
/// let life = FencingToken::new(1);
/// let message = CompleteStep {
///     outcome: SealedOutcome::tombstone(&key),
///     key,
///     life,
///     name: StepName::new("charge")?,
///     run: StepRun { token: life, number: 1 },
/// };
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompleteStep {
    /// The parent's key.
    pub key: Key,
    /// The parent's life.
    pub life: FencingToken,
    /// The step.
    pub name: StepName,
    /// The run that has this outcome.
    pub run: StepRun,
    /// The outcome to replay.
    pub outcome: SealedOutcome,
}

/// The answer to [`CompleteStep`].
///
/// ```
/// # use oncekey::backend::StepCompleted;
/// assert_ne!(StepCompleted::Stored, StepCompleted::Lost);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepCompleted {
    /// The outcome is stored.
    Stored,
    /// The step is gone, another run of it has begun, or it was resolved. Nothing was changed.
    Lost,
}

/// Records that a run of a step had no effect: it returned an error, or it never began.
///
/// ```
/// # use std::time::Duration;
/// # use oncekey::{FencingToken, Key, backend::FailStep, record::{Owner, StepName, StepRun}};
/// let message = FailStep {
///     key: Key::new("checkout", 17)?,
///     owner: Owner::random(),
///     name: StepName::new("charge")?,
///     run: StepRun { token: FencingToken::new(1), number: 1 },
///     retention: Duration::from_secs(86_400),
/// };
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailStep {
    /// The parent's key.
    pub key: Key,
    /// The parent's holder. Its begin message may still arrive.
    pub owner: Owner,
    /// The step.
    pub name: StepName,
    /// The run.
    pub run: StepRun,
    /// How long the parent is kept once it is released with steps.
    pub retention: Duration,
}

/// The answer to [`FailStep`].
///
/// ```
/// # use oncekey::backend::StepFailed;
/// let failed = StepFailed::Failed;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepFailed {
    /// That run has no outcome and never will have one.
    Failed,
    /// That run was committed by its transaction.
    Completed {
        /// Its outcome.
        outcome: SealedOutcome,
        /// The parent's life, to which the outcome is bound.
        life: FencingToken,
    },
}

/// Runs a step's operation in a transaction of the record's database and completes the step in that same transaction.
///
/// The store checks the parent before the operation and, under the parent's lock, before the commit. It holds that lock
/// only for the commit, so the parent's renewals and other steps continue while the operation runs.
///
/// ```
/// # use std::time::Duration;
/// # use oncekey::{FencingToken, Key, backend::CommitStep, record::{Owner, StepName}};
/// let step = CommitStep {
///     key: Key::new("checkout", 17)?,
///     owner: Owner::random(),
///     name: StepName::new("order")?,
///     fingerprint: None,
///     number: 1,
///     life: FencingToken::new(1),
///     retention: Duration::from_secs(86_400),
/// };
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitStep {
    /// The parent's key.
    pub key: Key,
    /// The parent's holder.
    pub owner: Owner,
    /// The step.
    pub name: StepName,
    /// The fingerprint of the step's request, if the caller gave one.
    pub fingerprint: Option<Fingerprint>,
    /// A number that rises with every step that this claim begins.
    pub number: u32,
    /// The parent's life: the life of its steps, or the fencing token of this claim if there are no steps yet.
    pub life: FencingToken,
    /// How long the parent is kept once it is released with steps.
    pub retention: Duration,
}

/// A [`CommitStep`] with the operation to run.
///
/// ```
/// # use std::time::Duration;
/// # use oncekey::{FencingToken, Key};
/// # use oncekey::backend::{CommitStep, StepInTransaction, TransactionOperation};
/// # use oncekey::record::{Owner, SealedOutcome, StepName};
/// # struct Connection;
/// let key = Key::new("checkout", 17)?;
/// let outcome = SealedOutcome::tombstone(&key);
/// let step = CommitStep {
///     key,
///     owner: Owner::random(),
///     name: StepName::new("order")?,
///     fingerprint: None,
///     number: 1,
///     life: FencingToken::new(1),
///     retention: Duration::from_secs(86_400),
/// };
/// let operation = TransactionOperation::new(|connection: &mut Connection| Ok(outcome));
/// let message = StepInTransaction { step, operation };
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct StepInTransaction {
    /// The step and the claim that it belongs to.
    pub step: CommitStep,
    /// The operation that runs inside the transaction and returns the outcome.
    pub operation: TransactionOperation,
}

/// The answer to [`StepInTransaction`].
///
/// ```
/// # use oncekey::backend::StepCommitted;
/// assert_ne!(StepCommitted::Lost, StepCommitted::RolledBack);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepCommitted {
    /// The operation's writes and this outcome are committed.
    Stored {
        /// The outcome.
        outcome: SealedOutcome,
        /// The parent's life, to which the outcome is bound.
        life: FencingToken,
    },
    /// The step was completed before. The operation did not run, or was rolled back.
    Completed {
        /// The outcome.
        outcome: SealedOutcome,
        /// The parent's life, to which the outcome is bound.
        life: FencingToken,
    },
    /// The parent is not in progress under the sender's claim. The operation did not run, or was rolled back.
    Lost,
    /// The step was called before with another fingerprint.
    Mismatch,
    /// An earlier run of the step began, its result is unknown, and the step may not run again.
    Unsettled,
    /// The parent has [`Steps::MAX`](crate::record::Steps::MAX) steps.
    TooMany,
    /// The operation failed or panicked, and its writes are rolled back.
    RolledBack,
    /// The operation asked for another type of connection than the store has, and did not run.
    WrongConnection {
        /// The type that the operation asked for.
        wanted: &'static str,
    },
}

/// Settles a step whose result is unknown.
///
/// ```
/// # use oncekey::{Key, backend::{ResolveStep, StepResolution}, record::StepName};
/// let message = ResolveStep {
///     key: Key::new("checkout", 17)?,
///     name: StepName::new("charge")?,
///     run: None,
///     life: None,
///     with: StepResolution::Release,
/// };
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolveStep {
    /// The parent's key.
    pub key: Key,
    /// The step.
    pub name: StepName,
    /// The run to settle; `None` for whichever is unsettled.
    pub run: Option<StepRun>,
    /// The parent's life to settle; `None` for any.
    pub life: Option<FencingToken>,
    /// How to settle the step.
    pub with: StepResolution,
}

/// How an unsettled step is settled.
///
/// ```
/// # use oncekey::backend::StepResolution;
/// assert_eq!(StepResolution::Release, StepResolution::Release);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepResolution {
    /// The step's effect happened, and this is its outcome.
    Complete {
        /// The outcome to replay.
        outcome: SealedOutcome,
    },
    /// The step's effect did not happen, and the step may run again.
    Release,
}
