//! The engine's events. The engine reports each one to the user's observers, to `tracing` and to the `metrics` facade.

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
    /// What the engine did.
    pub kind: EventKind,
    /// The key that the event concerns.
    pub key: &'a Key,
    /// The operator who settled the key, if the caller named one. Set only for [`EventKind::Resolved`] and
    /// [`EventKind::StepResolved`].
    pub operator: Option<&'a str>,
}

impl<'a> Event<'a> {
    /// Creates an event without an operator.
    pub fn new(kind: EventKind, key: &'a Key) -> Self {
        Self { kind, key, operator: None }
    }

    /// Returns the same event with the operator who caused it.
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
    /// A caller claimed a fresh key, and its operation runs.
    Miss,
    /// The engine replayed a stored outcome.
    Hit,
    /// The engine refused a call because another caller holds its key.
    Conflict,
    /// A call waits because another caller holds its key.
    Wait,
    /// A call reused a key with a different fingerprint.
    Mismatch,
    /// A caller took over another holder's lapsed claim.
    Takeover,
    /// The store has stored an outcome.
    Completed,
    /// A claim was released, and its key is free.
    Released,
    /// The holder of a claim made it indeterminate.
    Held,
    /// A call found its key indeterminate.
    Indeterminate,
    /// The reconciler settled an indeterminate key.
    Reconciled,
    /// A holder found that it had lost its claim.
    Lost,
    /// An outcome could not be stored within the settling limit. The engine keeps retrying.
    OutcomeNotStored,
    /// The store failed to answer a call.
    StoreFailed,
    /// The engine withdrew a claim whose answer was lost. Nothing began under the claim, and it can no longer arrive.
    Withdrawn,
    /// An operation passed its run limit, and the engine settled its claim as abandoned.
    RunLimit,
    /// The engine gave up a settlement that the store had not accepted, because too many are pending. The claim is left
    /// to its lease.
    SettlementDropped,
    /// An operation runs unguarded, because the store is unavailable and the call's policy allows it.
    Unguarded,
    /// An operation panicked.
    Panicked,
    /// The engine refused a call because a limit was reached.
    Overloaded,
    /// A step ran, and its outcome is stored.
    StepCompleted,
    /// The engine replayed the outcome of an earlier run of a step.
    StepReplayed,
    /// A step ended without an outcome: it panicked, its future was dropped, or its outcome could not be stored.
    StepUnsettled,
    /// An operation completed without calling a step that an earlier attempt had recorded.
    StepNotAsked,
    /// An operation completed under [`OnAbandoned::Resume`](crate::OnAbandoned::Resume) without a step. After a crash,
    /// all of it would have run again.
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

    /// Returns the event's name in logs and metrics.
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

/// Receives every [`Event`]. The engine calls it on the arbiter that caused the event, so it must not block.
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
    /// Handles one event. The engine catches and logs a panic.
    fn on_event(&self, event: &Event<'_>);
}

impl<F: Fn(&Event<'_>) + Send + Sync + 'static> Observer for F {
    fn on_event(&self, event: &Event<'_>) {
        self(event);
    }
}

/// Sends events to the observers, to `tracing` and to the metrics.
pub(crate) struct Events {
    observers: Vec<Arc<dyn Observer>>,
    /// One counter per kind, created once: looking a counter up by its name costs more than the rest of a replay.
    counters: [metrics::Counter; EventKind::ALL.len()],
    /// The console's counts.
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

    /// Records how long the store took to answer a batch of steps.
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
