//! The engine's events as a channel.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use crate::{Event, EventKind, Key, Observer};

/// An owned [`Event`], which can leave its arbiter.
///
/// ```
/// use oncekey::{EventKind, Key, consumer::TappedEvent};
///
/// let event = TappedEvent { kind: EventKind::Hit, key: Key::new("mail", 17)?, operator: None };
/// assert_eq!(event.kind.name(), "hit");
/// # Ok::<(), oncekey::KeyError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TappedEvent {
    /// What happened.
    pub kind: EventKind,
    /// The key that it concerns.
    pub key: Key,
    /// The operator who caused it; see [`Event::operator`].
    pub operator: Option<String>,
}

/// The receiving end of [`event_channel`].
#[derive(Clone)]
pub struct EventTap {
    events: Receiver<TappedEvent>,
    dropped: Arc<AtomicU64>,
}

/// Creates a channel that carries the engine's events to one of your threads. Pass the observer to
/// [`EngineBuilder::observer`](crate::EngineBuilder::observer), and keep the tap.
///
/// The channel holds up to `capacity` events. If it is full, the engine **drops the event and counts it**, because it
/// never waits for an observer.
///
/// ```
/// use oncekey::{Engine, EventKind, Key, consumer::event_channel};
/// use oncekey_backends::MemoryBackend;
///
/// let (observer, tap) = event_channel(1_000);
/// let engine = Engine::builder(MemoryBackend::new()).observer(observer).start()?;
/// engine.run_blocking(Key::new("mail", 17)?, &(), |_| Ok::<_, std::io::Error>(()))?;
/// assert_eq!(tap.events().recv()?.kind, EventKind::Miss);
/// assert_eq!(tap.dropped(), 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn event_channel(capacity: usize) -> (impl Observer + fmt::Debug, EventTap) {
    let (sender, events) = bounded(capacity);
    let dropped = Arc::new(AtomicU64::new(0));
    (Tapped { sender, dropped: Arc::clone(&dropped) }, EventTap { events, dropped })
}

impl EventTap {
    /// Returns the receiver of the events. You may clone it: each event goes to one receiver.
    pub fn events(&self) -> &Receiver<TappedEvent> {
        &self.events
    }

    /// Returns how many events were dropped because the channel was full or had no receiver.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for EventTap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventTap").field("waiting", &self.events.len()).field("dropped", &self.dropped()).finish()
    }
}

#[derive(Debug)]
struct Tapped {
    sender: Sender<TappedEvent>,
    dropped: Arc<AtomicU64>,
}

impl Observer for Tapped {
    fn on_event(&self, event: &Event<'_>) {
        let tapped =
            TappedEvent { kind: event.kind, key: event.key.clone(), operator: event.operator.map(str::to_owned) };
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = self.sender.try_send(tapped) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}
