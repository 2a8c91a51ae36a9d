//! The state that all arbiters of an engine share: its settings, its counts, and whether it is shutting down.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::at_rest::AtRest;
use crate::derived_key::KeyDerivation;
use crate::event::Events;
use crate::pending_settlements::PendingSettlements;
use crate::reconcile::Reconciler;
use crate::{CallPolicy, chance};

/// The settings, fixed when the engine starts.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) policy: CallPolicy,
    pub(crate) lease: Duration,
    /// How long one store call may take.
    pub(crate) store_deadline: Duration,
    /// How long the engine retries a settlement that the store does not accept before it reports that.
    pub(crate) settling_limit: Duration,
    pub(crate) reconcile_limit: Duration,
    pub(crate) max_calls_per_arbiter: usize,
    pub(crate) max_calls_per_scope: Option<usize>,
    pub(crate) max_waiters_per_key: usize,
    pub(crate) max_step_bytes: usize,
    pub(crate) purge_every: Option<Duration>,
    pub(crate) purge_limit: usize,
    pub(crate) reconciler: Option<Reconciler>,
    pub(crate) at_rest: AtRest,
    pub(crate) derivation: KeyDerivation,
}

/// One for each engine.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) events: Events,
    closing: AtomicBool,
    started: Instant,
    /// The earliest time at which one of the arbiters may purge next, in milliseconds since `started`.
    next_purge: AtomicU64,
    /// The settlements that the engine retries past the settling limit.
    pub(crate) pending: Arc<PendingSettlements>,
    /// How many claims were in flight on arbiters that have stopped.
    left_by_arbiters: AtomicUsize,
    /// How many key lock actors are alive, over all arbiters.
    lock_actors: AtomicUsize,
    /// What all consoles of this engine share, once there is one.
    #[cfg(feature = "web")]
    console: std::sync::OnceLock<Arc<crate::web::ConsoleHub>>,
}

/// Counts a key lock actor while it is alive.
#[derive(Debug)]
pub(crate) struct CountedLock(Arc<Shared>);

impl CountedLock {
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        shared.lock_actors.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(shared))
    }
}

impl Drop for CountedLock {
    fn drop(&mut self) {
        self.0.lock_actors.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shared {
    pub(crate) fn new(settings: Settings, events: Events, pending: Arc<PendingSettlements>) -> Self {
        Self {
            settings,
            events,
            closing: AtomicBool::new(false),
            started: Instant::now(),
            next_purge: AtomicU64::new(0),
            pending,
            left_by_arbiters: AtomicUsize::new(0),
            lock_actors: AtomicUsize::new(0),
            #[cfg(feature = "web")]
            console: std::sync::OnceLock::new(),
        }
    }

    /// Returns what all consoles of this engine show. The first call starts the counting of activity.
    #[cfg(feature = "web")]
    pub(crate) fn console(&self) -> &Arc<crate::web::ConsoleHub> {
        self.console.get_or_init(|| crate::web::ConsoleHub::start(Arc::clone(&self.events.activity)))
    }

    /// Records that an arbiter has stopped with this many claims in flight.
    pub(crate) fn leave_to_their_lease(&self, claims: usize) {
        self.left_by_arbiters.fetch_add(claims, Ordering::Relaxed);
    }

    pub(crate) fn left_by_arbiters(&self) -> usize {
        self.left_by_arbiters.load(Ordering::Relaxed)
    }

    pub(crate) fn lock_actors(&self) -> usize {
        self.lock_actors.load(Ordering::Relaxed)
    }

    /// Returns whether the engine refuses new claims.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed) && !planted!(ShutdownTakesCalls)
    }

    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    /// Returns whether it is this caller's turn to purge: one arbiter of the process at a time, at intervals.
    pub(crate) fn takes_purge_turn(&self) -> bool {
        let Some(every) = self.settings.purge_every else { return false };
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let due = self.next_purge.load(Ordering::Relaxed);
        // The jitter makes processes that share a store drift apart.
        let next = now.saturating_add((every.as_millis() as f64 * chance::between(0.8, 1.2)) as u64);
        now >= due && self.next_purge.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}
