//! Counts how messages were settled.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Disposition;

/// The counts of one processor, shared by everything that settles its messages.
#[derive(Debug)]
pub(super) struct Tally {
    pub(super) ran: Count,
    pub(super) replayed: Count,
    pub(super) retried: Count,
    pub(super) dead: Count,
    pub(super) given_back: Count,
    pub(super) unsettled: Count,
}

/// A count for this processor, which also feeds the `metrics` facade.
#[derive(Debug)]
pub(super) struct Count {
    here: AtomicU64,
    metric: Metric,
}

struct Metric(metrics::Counter);

impl std::fmt::Debug for Metric {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Counter")
    }
}

impl Count {
    fn new(settled: &'static str) -> Self {
        let metric = Metric(metrics::counter!("oncekey_messages_total", "settled" => settled));
        Self { here: AtomicU64::new(0), metric }
    }

    pub(super) fn add(&self) {
        self.here.fetch_add(1, Ordering::Relaxed);
        self.metric.0.increment(1);
    }

    pub(super) fn get(&self) -> u64 {
        self.here.load(Ordering::Relaxed)
    }
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            ran: Count::new("ran"),
            replayed: Count::new("replayed"),
            retried: Count::new("retried"),
            dead: Count::new("dead_letter"),
            given_back: Count::new("given_back"),
            unsettled: Count::new("unsettled"),
        }
    }
}

impl Tally {
    pub(super) fn count(&self, disposition: &Disposition, is_replay: bool) {
        match disposition {
            Disposition::Ack if is_replay => self.replayed.add(),
            Disposition::Ack => self.ran.add(),
            Disposition::RetryLater { .. } => self.retried.add(),
            Disposition::DeadLetter { .. } => self.dead.add(),
        }
    }
}
