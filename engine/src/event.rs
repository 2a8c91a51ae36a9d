//! What the engine did, told to the user's observers, to `tracing` and to the `metrics` facade.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, error, info, warn};

use crate::Key;

/// One thing that the engine did for a key.
///
/// ```
/// use oncekey::{Event, EventKind, Key};
///
/// let key = Key::new("mail", 17)?;
/// let event = Event::new(EventKind::Hit, &key);
/// assert_eq!((event.kind.name(), event.operator), ("hit", None));
/// # Ok::<(), oncekey::KeyError>(())
/// ```
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Event<'a> {
    /// What was done.
    pub kind: EventKind,
    /// For which key.
    pub key: &'a Key,
    /// The operator who settled the key, of [`EventKind::Resolved`] and [`EventKind::StepResolved`], where the caller of
    /// the engine named one.
    pub operator: Option<&'a str>,
}

impl<'a> Event<'a> {
    /// An event without an operator.
    pub fn new(kind: EventKind, key: &'a Key) -> Self {
        Self { kind, key, operator: None }
    }

    /// The same event, with the operator who caused it.
    ///
    /// ```
    /// # use oncekey::{Event, EventKind, Key};
    /// let key = Key::new("mail", 17)?;
    /// assert_eq!(Event::new(EventKind::Resolved, &key).by("ada").operator, Some("ada"));
    /// # Ok::<(), oncekey::KeyError>(())
    /// ```
    #[must_use]
    pub fn by(self, operator: impl Into<Option<&'a str>>) -> Self {
        Self { operator: operator.into(), ..self }
    }
}

/// What the engine did.
///
/// ```
/// use oncekey::EventKind;
///
/// assert_eq!(EventKind::OutcomeNotStored.name(), "outcome_not_stored");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EventKind {
    /// A fresh key was claimed: its operation runs.
    Miss,
    /// A stored outcome was replayed.
    Hit,
    /// A call met another at work on its key, and was turned away.
    Conflict,
    /// A call met another at work on its key, and waits.
    Wait,
    /// A call asked for something else under a used key.
    Mismatch,
    /// A lapsed claim of another holder was taken over.
    Takeover,
    /// An outcome was stored.
    Completed,
    /// A claim was given up: the key is free.
    Released,
    /// A claim was made indeterminate by its holder's word.
    Held,
    /// A call met an indeterminate key.
    Indeterminate,
    /// An indeterminate key was settled by the reconciler.
    Reconciled,
    /// A holder found that its claim was lost.
    Lost,
    /// An outcome could not be stored within the settling limit. The engine keeps trying.
    OutcomeNotStored,
    /// The store failed to answer a call.
    StoreFailed,
    /// A claim whose answer was lost is withdrawn: nothing began on it, and it can no longer arrive.
    Withdrawn,
    /// An operation has passed its run limit; its claim was settled as abandoned.
    RunLimit,
    /// A settlement that the store did not take is given up, because too many are pending. Its claim is left to its
    /// lease.
    SettlementDropped,
    /// An operation runs without a guard, because the store is away and the call's policy says so.
    Unguarded,
    /// An operation panicked.
    Panicked,
    /// A call was turned away at a limit.
    Overloaded,
    /// A step ran, and its outcome is stored.
    StepCompleted,
    /// A step was answered with the outcome of an earlier run.
    StepReplayed,
    /// A step ended without an outcome: it panicked, its future was dropped, or its outcome could not be stored.
    StepUnsettled,
    /// An operation completed, and did not ask for a step that an earlier attempt left.
    StepNotAsked,
    /// An operation completed under [`OnAbandoned::Resume`](crate::OnAbandoned::Resume) without a step: a crash would have
    /// run all of it again.
    ResumeWithoutSteps,
    /// An operator settled an indeterminate key.
    Resolved,
    /// An operator settled a step whose result was unknown.
    StepResolved,
}

impl EventKind {
    pub(crate) const ALL: [Self; 27] = [
        Self::Miss,
        Self::Hit,
        Self::Conflict,
        Self::Wait,
        Self::Mismatch,
        Self::Takeover,
        Self::Completed,
        Self::Released,
        Self::Held,
        Self::Indeterminate,
        Self::Reconciled,
        Self::Lost,
        Self::OutcomeNotStored,
        Self::StoreFailed,
        Self::Withdrawn,
        Self::RunLimit,
        Self::SettlementDropped,
        Self::Unguarded,
        Self::Panicked,
        Self::Overloaded,
        Self::StepCompleted,
        Self::StepReplayed,
        Self::StepUnsettled,
        Self::StepNotAsked,
        Self::ResumeWithoutSteps,
        Self::Resolved,
        Self::StepResolved,
    ];

    /// The name, as logs and metrics show it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Miss => "miss",
            Self::Hit => "hit",
            Self::Conflict => "conflict",
            Self::Wait => "wait",
            Self::Mismatch => "mismatch",
            Self::Takeover => "takeover",
            Self::Completed => "completed",
            Self::Released => "released",
            Self::Held => "held",
            Self::Indeterminate => "indeterminate",
            Self::Reconciled => "reconciled",
            Self::Lost => "lost",
            Self::OutcomeNotStored => "outcome_not_stored",
            Self::StoreFailed => "store_failed",
            Self::Withdrawn => "withdrawn",
            Self::RunLimit => "run_limit",
            Self::SettlementDropped => "settlement_dropped",
            Self::Unguarded => "unguarded",
            Self::Panicked => "panicked",
            Self::Overloaded => "overloaded",
            Self::StepCompleted => "step_completed",
            Self::StepReplayed => "step_replayed",
            Self::StepUnsettled => "step_unsettled",
            Self::StepNotAsked => "step_not_asked",
            Self::ResumeWithoutSteps => "resume_without_steps",
            Self::Resolved => "resolved",
            Self::StepResolved => "step_resolved",
        }
    }
}

/// Hears of every [`Event`]. It is called on the arbiter that did the thing, and must not block.
///
/// Closures are observers:
///
/// ```
/// use oncekey::{Event, EventKind, Observer};
///
/// fn alarm() -> impl Observer {
///     |event: &Event<'_>| {
///         if event.kind == EventKind::OutcomeNotStored {
///             eprintln!("look at {}", event.key);
///         }
///     }
/// }
/// # let _ = alarm();
/// ```
pub trait Observer: Send + Sync + 'static {
    /// Takes notice. A panic in here is caught and logged.
    fn on_event(&self, event: &Event<'_>);
}

impl<F: Fn(&Event<'_>) + Send + Sync + 'static> Observer for F {
    fn on_event(&self, event: &Event<'_>) {
        self(event);
    }
}

/// Tells everybody who listens.
pub(crate) struct Events {
    observers: Vec<Arc<dyn Observer>>,
    /// Made once, by kind: finding a counter by its name costs more than all else that a replay does.
    counters: [metrics::Counter; EventKind::ALL.len()],
    /// For the console.
    #[cfg(feature = "web")]
    pub(crate) activity: Arc<crate::activity::Activity>,
}

impl Events {
    pub(crate) fn new(observers: Vec<Arc<dyn Observer>>) -> Self {
        let counters = EventKind::ALL.map(|kind| metrics::counter!("oncekey_events_total", "event" => kind.name()));
        Self {
            observers,
            counters,
            #[cfg(feature = "web")]
            activity: Arc::default(),
        }
    }

    pub(crate) fn tell(&self, kind: EventKind, key: &Key) {
        self.tell_of(Event::new(kind, key));
    }

    /// A batch of steps was answered after so long.
    pub(crate) fn batch_took(&self, took: Duration) {
        #[cfg(feature = "web")]
        self.activity.count_batch(took);
        #[cfg(not(feature = "web"))]
        let _ = took;
    }

    pub(crate) fn tell_of(&self, event: Event<'_>) {
        let Event { kind, key, operator } = event;
        self.counters[kind as usize].increment(1);
        #[cfg(feature = "web")]
        self.activity.count(kind);
        match kind {
            EventKind::OutcomeNotStored
            | EventKind::Lost
            | EventKind::RunLimit
            | EventKind::SettlementDropped
            | EventKind::Unguarded
            | EventKind::Panicked
            | EventKind::StepUnsettled
            | EventKind::StepNotAsked
            | EventKind::ResumeWithoutSteps => {
                warn!(%key, event = kind.name(), "oncekey");
            }
            EventKind::Resolved | EventKind::StepResolved => info!(%key, operator, event = kind.name(), "oncekey"),
            _ => debug!(%key, event = kind.name(), "oncekey"),
        }
        for observer in &self.observers {
            if catch_unwind(AssertUnwindSafe(|| observer.on_event(&event))).is_err() {
                error!(event = kind.name(), "an observer panicked");
            }
        }
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("observers", &self.observers.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_stand_at_their_kinds() {
        for (at, kind) in EventKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, at, "{kind:?}");
        }
    }
}
