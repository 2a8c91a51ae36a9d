//! What a call says about the cases in which it can't simply run.

use std::time::Duration;

/// What becomes of a call whose key another caller is working on.
///
/// ```
/// use std::time::Duration;
/// use oncekey::OnInProgress;
///
/// assert_eq!(OnInProgress::default(), OnInProgress::Reject);
/// let patient = OnInProgress::Wait(Duration::from_secs(10));
/// # let _ = patient;
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnInProgress {
    /// It is told so at once: [`Error::InProgress`](crate::Error::InProgress). The default.
    #[default]
    Reject,
    /// It waits for the outcome, up to this long. If the other's operation fails, a waiting call takes its turn.
    Wait(Duration),
}

/// What a lapsed lease means: its holder has crashed, hangs, or has lost the store, and the effect of its operation may
/// or may not have happened.
///
/// The word of the call that made the claim is stored with it, and decides.
///
/// ```
/// use oncekey::OnAbandoned;
///
/// assert_eq!(OnAbandoned::default(), OnAbandoned::Hold);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum OnAbandoned {
    /// The next call takes the claim over, with the next attempt number: **at least once**. For operations that may run
    /// twice, or whose effect is fenced by the attempt, or that commit nothing before their outcome.
    Rerun,
    /// The key becomes indeterminate until the reconciler or an operator resolves it: **at most once**. The default.
    #[default]
    Hold,
    /// The next call claims the key again, its completed [steps](crate::Claim::step) replay, and the operation continues.
    /// A step that was running follows its own [`StepPolicy`]: under Hold it makes the key indeterminate.
    ///
    /// It is for operations whose every effect is a step. What an operation does outside of its steps is repeated.
    Resume,
}

/// What to do when a step began and its result is unknown: its process crashed, the step panicked, its future
/// was dropped, or its outcome could not be stored.
///
/// ```
/// use oncekey::StepPolicy;
///
/// assert_eq!(StepPolicy::default(), StepPolicy::Hold);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum StepPolicy {
    /// The step is not run again, and its operation's key is indeterminate until the step is resolved: **at most once**.
    /// The default.
    #[default]
    Hold,
    /// The step is run again: **at least once**, or exactly once where the provider takes the step's
    /// [derived key](crate::Step::key) as its idempotency key.
    Rerun,
    /// As `Rerun`, for so long from the step's first attempt on, by the store's clock. Later, `Hold` applies. Use the time
    /// for which the provider remembers idempotency keys.
    RerunWithin(Duration),
}

/// What becomes of a claim whose operation returned an error or panicked. The caller gets the error either way.
///
/// ```
/// use oncekey::OnFailure;
///
/// assert_eq!(OnFailure::default(), OnFailure::Release);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// The key is free at once: a retry runs the operation again. The default.
    #[default]
    Release,
    /// The key becomes indeterminate: the operation may have had its effect before it failed.
    Hold,
}

/// What becomes of a call when the store can't be asked.
///
/// ```
/// use oncekey::OnStoreFailure;
///
/// assert_eq!(OnStoreFailure::default(), OnStoreFailure::Reject);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnStoreFailure {
    /// It fails with [`Error::Store`](crate::Error::Store), and nothing runs. The default.
    #[default]
    Reject,
    /// The operation runs **without a guard**: it may run twice, and its outcome is not kept.
    Run,
}

/// The policies of a call. An [`Engine`](crate::Engine) handle carries them; its `with_…` methods give a handle with
/// others.
///
/// ```
/// use oncekey::CallPolicy;
///
/// assert_eq!(CallPolicy::default().retention.as_secs(), 24 * 60 * 60);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallPolicy {
    /// How long the outcome is kept, counted from its completion. Default: 24 hours.
    pub retention: Duration,
    /// See [`OnInProgress`].
    pub on_in_progress: OnInProgress,
    /// See [`OnAbandoned`]. `None`, the default, is [`Rerun`](OnAbandoned::Rerun) for operations in a transaction of the
    /// store, whose crash commits nothing, and [`Hold`](OnAbandoned::Hold) for all others.
    pub on_abandoned: Option<OnAbandoned>,
    /// See [`OnFailure`].
    pub on_failure: OnFailure,
    /// See [`OnStoreFailure`].
    pub on_store_failure: OnStoreFailure,
    /// How long an operation may run, from its begin, before its claim is settled as abandoned. The engine cannot stop it; it
    /// stops renewing the lease, settles the key by [`OnAbandoned`], and tells waiting callers. What the operation reports
    /// later is [`Error::ClaimLost`](crate::Error::ClaimLost). `None`, the default, is no limit. A transaction of the store has none.
    pub run_limit: Option<Duration>,
}

impl Default for CallPolicy {
    fn default() -> Self {
        Self {
            retention: Duration::from_secs(24 * 60 * 60),
            on_in_progress: OnInProgress::default(),
            on_abandoned: None,
            on_failure: OnFailure::default(),
            on_store_failure: OnStoreFailure::default(),
            run_limit: None,
        }
    }
}
