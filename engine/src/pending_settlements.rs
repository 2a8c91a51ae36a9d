//! Settlements that the store has not taken within the settling limit. The engine goes on trying, within bounds.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts them over all arbiters of an engine.
#[derive(Debug)]
pub(crate) struct PendingSettlements {
    max_count: usize,
    max_bytes: usize,
    count: AtomicUsize,
    bytes: AtomicUsize,
    gauge: metrics::Gauge,
}

/// One pending settlement; no longer counted when it is dropped.
#[derive(Debug)]
pub(crate) struct Pending {
    all: Arc<PendingSettlements>,
    bytes: usize,
}

impl PendingSettlements {
    pub(crate) fn new(max_count: usize, max_bytes: usize) -> Arc<Self> {
        let gauge = metrics::gauge!("oncekey_pending_settlements");
        Arc::new(Self { max_count, max_bytes, count: AtomicUsize::new(0), bytes: AtomicUsize::new(0), gauge })
    }

    /// Counts one that keeps so many bytes; `None` if that would pass a bound.
    pub(crate) fn take(self: &Arc<Self>, bytes: usize) -> Option<Pending> {
        // Added first, so that two arbiters never pass a bound together.
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let kept = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let pending = Pending { all: Arc::clone(self), bytes };
        self.gauge.set(count as f64);
        (count <= self.max_count && kept <= self.max_bytes).then_some(pending)
    }

    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.all.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.all.gauge.set((self.all.count.fetch_sub(1, Ordering::Relaxed) - 1) as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e21_pending_settlements_are_bounded_by_count_and_by_bytes() {
        let all = PendingSettlements::new(2, 100);
        let one = all.take(60).unwrap();
        assert!(all.take(41).is_none());
        let two = all.take(40).unwrap();
        assert!(all.take(0).is_none());
        assert_eq!(all.count(), 2);
        drop((one, two));
        assert_eq!((all.count(), all.bytes.load(Ordering::Relaxed)), (0, 0));
    }
}
