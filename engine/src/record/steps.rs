//! The steps of an operation, as its record keeps them.
//!
//! Steps belong to their parent's record, and share its life, lease and expiry. They match by name, never by order.

use std::fmt;
use std::time::Duration;

use super::{Attempt, FencingToken, SealedOutcome, StoreTime};
use crate::Fingerprint;

/// The name of a step, unique in its operation.
///
/// A name has 1 to 200 bytes of UTF-8 without control characters. Names that begin with `#` are reserved for the
/// digests with which [`key_hashing`](crate::EngineBuilder::key_hashing) replaces names.
///
/// ```
/// use oncekey::record::StepName;
///
/// assert_eq!(StepName::new("charge")?.as_str(), "charge");
/// assert!(StepName::new("").is_err());
/// assert!(StepName::new("#1").is_err());
/// # Ok::<(), oncekey::record::StepNameError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StepName(Box<str>);

/// Why a text is not a valid step name.
///
/// ```
/// use oncekey::record::{StepName, StepNameError};
///
/// assert_eq!(StepName::new(""), Err(StepNameError::Empty));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StepNameError {
    /// The name is empty.
    #[error("the step's name is empty")]
    Empty,
    /// The name is too long.
    #[error("the step's name has {0} bytes; the limit is {max}", max = StepName::MAX_LEN)]
    TooLong(usize),
    /// The name contains a control character.
    #[error("the step's name has a control character")]
    Control,
    /// The name begins with `#`.
    #[error("the step's name begins with '#', which is reserved for digests")]
    Reserved,
}

impl StepName {
    /// The length limit of a name, in bytes.
    pub const MAX_LEN: usize = 200;

    /// Checks a step's name.
    ///
    /// # Errors
    /// The text is empty, is longer than [`MAX_LEN`](Self::MAX_LEN) bytes, contains a control character, or begins with
    /// `#`.
    pub fn new(name: impl AsRef<str>) -> Result<Self, StepNameError> {
        let name = name.as_ref();
        if name.starts_with(Self::DIGEST) {
            return Err(StepNameError::Reserved);
        }
        Self::from_stored(name)
    }

    const DIGEST: char = '#';

    /// Restores a name that was read from a store.
    ///
    /// # Errors
    /// The text is not a valid name.
    ///
    /// ```
    /// # use oncekey::record::StepName;
    /// assert!(StepName::from_stored("charge").is_ok());
    /// assert!(StepName::from_stored("charge\0").is_err());
    /// ```
    pub fn from_stored(name: &str) -> Result<Self, StepNameError> {
        if name.is_empty() {
            Err(StepNameError::Empty)
        } else if name.len() > Self::MAX_LEN {
            Err(StepNameError::TooLong(name.len()))
        } else if name.chars().any(char::is_control) {
            Err(StepNameError::Control)
        } else {
            Ok(Self(name.into()))
        }
    }

    /// Returns the name that replaces another one in the store.
    pub(crate) fn hashed(digest: &str) -> Self {
        Self(format!("{}{digest}", Self::DIGEST).into())
    }

    /// Returns whether the name is a digest read from a store.
    pub(crate) fn is_hashed(&self) -> bool {
        self.0.starts_with(Self::DIGEST)
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for StepName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One run of a step: the fencing token of the claim that began it, and a number that rises with every step that this
/// claim begins.
///
/// Runs of one step are ordered. A store refuses a message of a run that is not above the last one it has seen, so a
/// `BeginStep` that arrives late never takes effect.
///
/// ```
/// use oncekey::FencingToken;
/// use oncekey::record::StepRun;
///
/// let first = StepRun { token: FencingToken::new(7), number: 2 };
/// assert!(first < StepRun { token: FencingToken::new(8), number: 1 });
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StepRun {
    /// The fencing token of the parent's claim.
    pub token: FencingToken,
    /// The number of this step among the steps that the claim begins.
    pub number: u32,
}

/// How far a step has progressed.
///
/// ```
/// use oncekey::record::Progress;
///
/// assert_ne!(Progress::Begun, Progress::Failed);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// The step began. Whether its effect happened is unknown until its outcome is stored.
    Begun,
    /// The step is done. This outcome answers every later call.
    Completed(SealedOutcome),
    /// The last run had no effect, so the step may run again. The record is kept for its [run](StepRun).
    Failed,
}

impl Progress {
    /// Returns the name, as lists and logs show it.
    ///
    /// ```
    /// assert_eq!(oncekey::record::Progress::Begun.name(), "begun");
    /// ```
    pub fn name(&self) -> &'static str {
        match self {
            Self::Begun => "begun",
            Self::Completed(_) => "completed",
            Self::Failed => "failed",
        }
    }
}

/// The record that a store keeps for one step.
///
/// ```
/// use oncekey::{Attempt, FencingToken};
/// use oncekey::record::{Progress, StepName, StepRecord, StepRun, StoreTime};
///
/// let step = StepRecord {
///     name: StepName::new("charge")?,
///     fingerprint: None,
///     attempt: Attempt::FIRST,
///     run: StepRun { token: FencingToken::new(1), number: 1 },
///     began_at: StoreTime::from_millis(1_000),
///     reruns_until: None,
///     progress: Progress::Begun,
/// };
/// assert!(step.is_unsettled(StoreTime::from_millis(1_001)));
/// # Ok::<(), oncekey::record::StepNameError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepRecord {
    /// The step's name.
    pub name: StepName,
    /// The fingerprint of the step's request, if the caller gave one.
    pub fingerprint: Option<Fingerprint>,
    /// How often the step has begun.
    pub attempt: Attempt,
    /// The latest run. Only this run may record an outcome.
    pub run: StepRun,
    /// When the step first began.
    pub began_at: StoreTime,
    /// Until when a run of unknown effect may be repeated; `None` for never.
    pub reruns_until: Option<StoreTime>,
    /// How far the step has progressed.
    pub progress: Progress,
}

impl StepRecord {
    /// Returns whether the step began, its result is unknown, and it may not run again. Such a step makes its parent
    /// indeterminate.
    pub fn is_unsettled(&self, now: StoreTime) -> bool {
        self.progress == Progress::Begun && self.reruns_until.is_none_or(|until| until <= now)
    }
}

/// The steps of one record.
///
/// ```
/// use std::time::Duration;
/// use oncekey::FencingToken;
/// use oncekey::record::Steps;
///
/// let steps = Steps { life: FencingToken::new(1), retention: Duration::from_secs(60), list: Vec::new() };
/// assert!(steps.get(&oncekey::record::StepName::new("charge")?).is_none());
/// # Ok::<(), oncekey::record::StepNameError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Steps {
    /// The parent's life: the fencing token of the claim that began its first step. A step of another life does not
    /// belong to this record.
    pub life: FencingToken,
    /// How long the record is kept after a release, counted from its last change.
    pub retention: Duration,
    /// The steps, each name once, in the order in which they first began.
    pub list: Vec<StepRecord>,
}

impl Steps {
    /// The maximum number of steps in one record. It bounds what a claim has to read.
    pub const MAX: usize = 1_000;

    /// Returns the step with this name.
    pub fn get(&self, name: &StepName) -> Option<&StepRecord> {
        self.list.iter().find(|step| step.name == *name)
    }

    pub(super) fn get_mut(&mut self, name: &StepName) -> Option<&mut StepRecord> {
        self.list.iter_mut().find(|step| step.name == *name)
    }

    /// Returns the first step that makes the parent indeterminate.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use oncekey::FencingToken;
    /// # use oncekey::record::{Steps, StoreTime};
    /// let steps = Steps { life: FencingToken::new(1), retention: Duration::from_secs(60), list: Vec::new() };
    /// assert_eq!(steps.unsettled(StoreTime::from_millis(0)), None);
    /// ```
    pub fn unsettled(&self, now: StoreTime) -> Option<&StepRecord> {
        self.list.iter().find(|step| step.is_unsettled(now))
    }

    /// Returns whether the passage of time, or the end of its claim, may make the parent indeterminate. The parent must
    /// not expire then.
    pub(super) fn may_be_unsettled(&self) -> bool {
        let is_bounded = |step: &StepRecord| step.reruns_until.is_none_or(|until| until < StoreTime::END);
        self.list.iter().any(|step| step.progress == Progress::Begun && is_bounded(step))
    }

    /// Returns whether a release must keep the steps. A failed step leaves nothing to keep.
    pub(super) fn is_worth_keeping(&self) -> bool {
        self.list.iter().any(|step| step.progress != Progress::Failed)
    }

    /// Returns the total size of all names and outcomes, in bytes.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use oncekey::{FencingToken, record::Steps};
    /// let steps = Steps { life: FencingToken::new(1), retention: Duration::from_secs(60), list: Vec::new() };
    /// assert_eq!(steps.bytes(), 0);
    /// ```
    pub fn bytes(&self) -> usize {
        let bytes = |step: &StepRecord| {
            let outcome = match &step.progress {
                Progress::Completed(outcome) => outcome.as_stored().len(),
                Progress::Begun | Progress::Failed => 0,
            };
            size_of::<StepRecord>() + step.name.as_str().len() + outcome
        };
        self.list.iter().map(bytes).sum()
    }
}
