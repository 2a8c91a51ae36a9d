//! Settlements that the store has not accepted within the settling limit. The engine keeps retrying them, within
//! bounds.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts the pending settlements over all arbiters of an engine.
#[derive(Debug)]
pub(crate) struct PendingSettlements {
    max_count: usize,
    max_bytes: usize,
    /// Counted by [`PendingKind`]. A long outage leaves many claims on which nothing ran; they do not use up the places
    /// for outcomes.
    counts: [AtomicUsize; 2],
    bytes: AtomicUsize,
    gauge: metrics::Gauge,
}

/// What a pending settlement does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PendingKind {
    /// It reports what an operation did.
    Ends,
    /// It frees a key on which nothing happened.
    Frees,
}

/// One pending settlement, which counts until it is dropped.
#[derive(Debug)]
pub(crate) struct Pending {
    all: Arc<PendingSettlements>,
    kind: PendingKind,
    bytes: usize,
}

impl PendingSettlements {
    pub(crate) fn new(max_count: usize, max_bytes: usize) -> Arc<Self> {
        let gauge = metrics::gauge!("oncekey_pending_settlements");
        Arc::new(Self { max_count, max_bytes, counts: Default::default(), bytes: AtomicUsize::new(0), gauge })
    }

    /// Counts a settlement that keeps `bytes` bytes. Returns `None` if it would exceed a bound.
    pub(crate) fn take(self: &Arc<Self>, kind: PendingKind, bytes: usize) -> Option<Pending> {
        // Added before the check, so that two arbiters never exceed a bound together.
        let count = self.counts[kind as usize].fetch_add(1, Ordering::Relaxed) + 1;
        let kept = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let pending = Pending { all: Arc::clone(self), kind, bytes };
        self.gauge.set(self.count() as f64);
        (count <= self.max_count && kept <= self.max_bytes).then_some(pending)
    }

    pub(crate) fn count(&self) -> usize {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.all.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.all.counts[self.kind as usize].fetch_sub(1, Ordering::Relaxed);
        self.all.gauge.set(self.all.count() as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e21_pending_settlements_are_bounded_by_count_and_by_bytes() {
        let all = PendingSettlements::new(2, 100);
        let one = all.take(PendingKind::Ends, 60).unwrap();
        assert!(all.take(PendingKind::Ends, 41).is_none());
        let two = all.take(PendingKind::Ends, 40).unwrap();
        assert!(all.take(PendingKind::Ends, 0).is_none());
        let frees = [(); 2].map(|()| all.take(PendingKind::Frees, 0).unwrap());
        assert!(all.take(PendingKind::Frees, 0).is_none());
        assert_eq!(all.count(), 4);
        drop(frees);
        assert!(all.take(PendingKind::Ends, 0).is_none(), "each kind has places of its own");
        drop((one, two));
        assert_eq!((all.count(), all.bytes.load(Ordering::Relaxed)), (0, 0));
    }
}
