//! The policies of a call: what happens when the operation can't simply run.

use std::time::Duration;

/// What happens to a call whose key another caller holds.
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
    /// The call returns [`Error::InProgress`](crate::Error::InProgress) at once. The default.
    #[default]
    Reject,
    /// The call waits up to this long for the outcome. If the other caller's operation fails, one of the waiting calls
    /// claims the key.
    Wait(Duration),
}

/// What a lapsed lease means. The holder has crashed, hangs, or can't reach the store, so the effect of its operation
/// may or may not have happened.
///
/// The store keeps the policy of the call that made the claim, and that policy decides.
///
/// ```
/// use oncekey::OnAbandoned;
///
/// assert_eq!(OnAbandoned::default(), OnAbandoned::Hold);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum OnAbandoned {
    /// The next call takes the claim over with the next attempt number: **at least once**. Use it for operations that
    /// may run twice, that fence their effect by the attempt, or that commit nothing before their outcome.
    Rerun,
    /// The key becomes indeterminate until the reconciler or an operator resolves it: **at most once**. The default.
    #[default]
    Hold,
    /// The next call claims the key again, the completed [steps](crate::Claim::step) replay, and the operation
    /// continues. A step that was running follows its own [`StepPolicy`]; under `Hold` it makes the key indeterminate.
    ///
    /// Use it for operations whose every effect is a step: the operation repeats whatever it does outside its steps.
    Resume,
}

/// What to do when a step began and its result is unknown: its process crashed, it panicked, its future was dropped, or
/// its outcome could not be stored.
///
/// ```
/// use oncekey::StepPolicy;
///
/// assert_eq!(StepPolicy::default(), StepPolicy::Hold);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum StepPolicy {
    /// The step does not run again. The operation's key is indeterminate until the step is resolved: **at most once**.
    /// The default.
    #[default]
    Hold,
    /// The step runs again: **at least once**, or exactly once if the provider accepts the step's
    /// [derived key](crate::Step::key) as its idempotency key.
    Rerun,
    /// The step runs again, as under `Rerun`, until this long after its first attempt, by the store's clock. After
    /// that, `Hold` applies. Use the time for which the provider remembers idempotency keys.
    RerunWithin(Duration),
}

/// What happens to a claim whose operation returned an error. The caller gets the error either way. After a panic,
/// [`OnAbandoned`] decides.
///
/// ```
/// use oncekey::OnFailure;
///
/// assert_eq!(OnFailure::default(), OnFailure::Release);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// The key is free at once, and a retry runs the operation again. The default.
    #[default]
    Release,
    /// The key becomes indeterminate: the operation may have had its effect before it failed.
    Hold,
}

/// What happens to a call when the store is unavailable.
///
/// ```
/// use oncekey::OnStoreFailure;
///
/// assert_eq!(OnStoreFailure::default(), OnStoreFailure::Reject);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnStoreFailure {
    /// The call fails with [`Error::Store`](crate::Error::Store), and nothing runs. The default.
    #[default]
    Reject,
    /// The operation runs **unguarded**: it may run twice, and its outcome is not kept.
    Run,
}

/// The policies of a call. An [`Engine`](crate::Engine) handle carries them; its `with_…` methods return a handle with
/// other policies.
///
/// ```
/// use oncekey::CallPolicy;
///
/// assert_eq!(CallPolicy::default().retention.as_secs(), 24 * 60 * 60);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallPolicy {
    /// How long the store keeps the outcome, counted from its completion. Default: 24 hours.
    pub retention: Duration,
    /// See [`OnInProgress`].
    pub on_in_progress: OnInProgress,
    /// See [`OnAbandoned`]. `None`, the default, means [`Rerun`](OnAbandoned::Rerun) for operations in a transaction of
    /// the store, which commit nothing when they crash, and [`Hold`](OnAbandoned::Hold) for all others.
    pub on_abandoned: Option<OnAbandoned>,
    /// See [`OnFailure`].
    pub on_failure: OnFailure,
    /// See [`OnStoreFailure`].
    pub on_store_failure: OnStoreFailure,
    /// How long an operation may run, from its start, before the engine settles its claim as abandoned. The engine
    /// can't stop the operation. It stops renewing the lease, settles the key by [`OnAbandoned`], and notifies the
    /// waiting callers. If the operation returns later, its caller gets [`Error::ClaimLost`](crate::Error::ClaimLost).
    /// `None`, the default, means no limit. Operations in a transaction of the store have no run limit.
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
