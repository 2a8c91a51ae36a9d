//! Counts for the console: what the engine did, and how long its store took.
//!
//! Counting starts with the first console. From then on, an event costs one relaxed addition to a cache line that few
//! other threads write.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::EventKind;

/// Enough stripes that the threads of most machines do not share one.
const STRIPES: usize = 16;

/// The counted events, in the order in which the console shows them.
pub(crate) const KINDS: [EventKind; 7] = [
    EventKind::Miss,
    EventKind::Hit,
    EventKind::Conflict,
    EventKind::Mismatch,
    EventKind::Takeover,
    EventKind::Lost,
    EventKind::StoreFailed,
];

/// One set of counters. Aligned to two cache lines, since processors fetch lines in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Stripe([AtomicU64; KINDS.len()]);

/// Counters that only rise.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    is_on: AtomicBool,
    stripes: [Stripe; STRIPES],
    store: StoreTime,
}

#[derive(Debug, Default)]
struct StoreTime {
    batches: AtomicU64,
    micros: AtomicU64,
}

/// The counts so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// In the order of [`KINDS`].
    pub(crate) events: [u64; KINDS.len()],
    pub(crate) batches: u64,
    /// How long these batches took in total.
    pub(crate) micros: u64,
}

thread_local! {
    static STRIPE: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Returns the stripe of this thread.
fn stripe() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    // An ending thread has no thread-local value any more. Any stripe will do.
    let found = STRIPE.try_with(|stripe| {
        stripe.get().unwrap_or_else(|| {
            let taken = NEXT.fetch_add(1, Ordering::Relaxed) % STRIPES;
            stripe.set(Some(taken));
            taken
        })
    });
    found.unwrap_or(0)
}

impl Activity {
    /// Starts counting.
    pub(crate) fn turn_on(&self) {
        self.is_on.store(true, Ordering::Relaxed);
    }

    pub(crate) fn count(&self, kind: EventKind) {
        if self.is_on.load(Ordering::Relaxed)
            && let Some(at) = KINDS.iter().position(|counted| *counted == kind)
        {
            self.stripes[stripe()].0[at].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts a batch that did not finish at once.
    pub(crate) fn count_batch(&self, took: Duration) {
        if self.is_on.load(Ordering::Relaxed) {
            let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            self.store.micros.fetch_add(micros, Ordering::Relaxed);
            self.store.batches.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn totals(&self) -> Totals {
        let sum = |at: usize| self.stripes.iter().map(|stripe| stripe.0[at].load(Ordering::Relaxed)).sum();
        Totals {
            events: std::array::from_fn(sum),
            batches: self.store.batches.load(Ordering::Relaxed),
            micros: self.store.micros.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_counted_before_a_console_asks() {
        let activity = Activity::default();
        activity.count(EventKind::Miss);
        activity.count_batch(Duration::from_secs(1));
        assert_eq!(activity.totals(), Totals::default());
        activity.turn_on();
        activity.count(EventKind::Released);
        assert_eq!(activity.totals(), Totals::default());
    }

    #[test]
    fn the_counts_of_all_threads_are_summed() {
        let activity = Activity::default();
        activity.turn_on();
        std::thread::scope(|scope| {
            for _ in 0..2 * STRIPES {
                scope.spawn(|| KINDS.into_iter().for_each(|kind| activity.count(kind)));
            }
        });
        activity.count_batch(Duration::from_millis(2));
        let totals = activity.totals();
        assert_eq!(totals.events, [2 * STRIPES as u64; KINDS.len()]);
        assert_eq!((totals.batches, totals.micros), (1, 2_000));
    }
}
