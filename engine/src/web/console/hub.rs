//! State that all consoles of an engine share: the plots of the last hour, and the last count of the store.

use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use parking_lot::Mutex;
use tracing::error;

use super::census::Census;
use crate::activity::{Activity, KINDS, Totals};

/// The time that one point of a plot covers.
pub(super) const BUCKET: Duration = Duration::from_secs(10);
/// The number of points in the last hour.
pub(super) const BUCKETS: usize = 360;

/// The shared state of one engine's consoles. It takes about 30 KB, however long the engine runs.
#[derive(Debug)]
pub(crate) struct Hub {
    activity: Arc<Activity>,
    history: Mutex<History>,
    pub(super) census: tokio::sync::Mutex<Option<Census>>,
    /// Dropped with the engine, which ends the sampling thread.
    _ended: Sender<()>,
}

impl Hub {
    /// Starts counting events, and the thread that adds the counts to the plots.
    pub(crate) fn start(activity: Arc<Activity>) -> Arc<Self> {
        activity.turn_on();
        let (ended, engine) = bounded::<()>(0);
        let history = Mutex::new(History::new(Instant::now(), activity.totals()));
        let hub = Arc::new(Self { activity, history, census: tokio::sync::Mutex::default(), _ended: ended });
        let weak = Arc::downgrade(&hub);
        // This needs a thread, because no arbiter lives as long as the engine. It works for a few microseconds every
        // ten seconds.
        let sampler = thread::Builder::new().name("oncekey-activity".to_owned()).spawn(move || {
            while engine.recv_timeout(BUCKET) == Err(RecvTimeoutError::Timeout) {
                let Some(hub) = Weak::upgrade(&weak) else { return };
                hub.sample(Instant::now());
            }
        });
        if let Err(error) = sampler {
            error!(%error, "the thread of the console's plots can't be started: they move only while somebody looks");
        }
        hub
    }

    fn sample(&self, now: Instant) {
        let totals = self.activity.totals();
        self.history.lock().take_in(now, totals);
    }

    /// Returns the last hour until now.
    pub(super) fn plots(&self) -> Vec<Series> {
        self.sample(Instant::now());
        self.history.lock().series()
    }
}

/// A ring of counts, one for each ten seconds.
#[derive(Debug)]
struct History {
    started: Instant,
    seen: Totals,
    ring: Box<[Totals; BUCKETS]>,
    /// The number of the current bucket since the start, not wrapped.
    at: u64,
}

impl History {
    fn new(started: Instant, seen: Totals) -> Self {
        Self { started, seen, ring: Box::new([Totals::default(); BUCKETS]), at: 0 }
    }

    fn take_in(&mut self, now: Instant, totals: Totals) {
        let bucket = now.saturating_duration_since(self.started).as_secs() / BUCKET.as_secs();
        let skipped = bucket.saturating_sub(self.at).min(BUCKETS as u64);
        self.at = self.at.max(bucket);
        for back in 0..skipped {
            self.ring[(self.at - back) as usize % BUCKETS] = Totals::default();
        }
        let current = &mut self.ring[self.at as usize % BUCKETS];
        for (count, (total, seen)) in current.events.iter_mut().zip(totals.events.into_iter().zip(self.seen.events)) {
            *count += total.saturating_sub(seen);
        }
        current.batches += totals.batches.saturating_sub(self.seen.batches);
        current.micros += totals.micros.saturating_sub(self.seen.micros);
        self.seen = totals;
    }

    /// Returns the buckets from the oldest to the newest.
    fn buckets(&self) -> impl Iterator<Item = &Totals> {
        (0..BUCKETS).map(|later| &self.ring[(self.at as usize + 1 + later) % BUCKETS])
    }

    fn series(&self) -> Vec<Series> {
        let events = KINDS.iter().enumerate().map(|(kind, name)| {
            let values: Vec<u64> = self.buckets().map(|bucket| bucket.events[kind]).collect();
            Series { id: name.name(), sum: values.iter().sum(), values }
        });
        let micros: Vec<u64> =
            self.buckets().map(|bucket| bucket.micros.checked_div(bucket.batches).unwrap_or(0)).collect();
        let (all, batches) = self
            .buckets()
            .fold((0_u64, 0_u64), |(all, batches), bucket| (all + bucket.micros, batches + bucket.batches));
        let store = Series { id: "store", sum: all.checked_div(batches).unwrap_or(0), values: micros };
        events.chain([store]).collect()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Series {
    /// The event's name, or `store`.
    pub(super) id: &'static str,
    /// The sum over the hour. For the store, the mean duration of its batches in microseconds.
    pub(super) sum: u64,
    /// One value per [`BUCKET`], the oldest first. For the store, means in microseconds.
    pub(super) values: Vec<u64>,
}

impl Series {
    pub(super) fn peak(&self) -> u64 {
        self.values.iter().copied().max().unwrap_or(0)
    }

    /// Returns the corners of a line through the values, for a drawing of [`BUCKETS`] by 100. It leaves out points
    /// inside a level stretch.
    pub(super) fn points(&self) -> String {
        use std::fmt::Write as _;

        let peak = self.peak().max(1) as f64;
        let mut points = String::new();
        for (at, value) in self.values.iter().enumerate() {
            let is_level = at > 0 && self.values[at - 1] == *value && self.values.get(at + 1) == Some(value);
            if !is_level {
                let height = 98.0 - *value as f64 / peak * 96.0;
                let gap = if points.is_empty() { "" } else { " " };
                // Writing to a `String` cannot fail.
                let _ = write!(points, "{gap}{at},{height:.1}");
            }
        }
        points
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(first: u64) -> Totals {
        Totals { events: std::array::from_fn(|at| if at == 0 { first } else { 0 }), ..Totals::default() }
    }

    #[test]
    fn counts_go_to_their_ten_seconds_and_leave_after_an_hour() {
        let start = Instant::now();
        let mut history = History::new(start, totals(5));
        history.take_in(start, totals(7));
        history.take_in(start + BUCKET * 2, totals(8));
        let series = history.series().remove(0);
        assert_eq!((series.id, series.sum, series.peak()), ("miss", 3, 2));
        assert_eq!(series.values[BUCKETS - 3..], [2, 0, 1]);
        // The last moment at which the first ten seconds are part of the hour, and the first at which they are not.
        history.take_in(start + BUCKET * (BUCKETS as u32 - 1), totals(8));
        assert_eq!(history.series()[0].sum, 3);
        history.take_in(start + BUCKET * BUCKETS as u32, totals(8));
        assert_eq!(history.series()[0].sum, 1);
        // No samples were taken for days.
        history.take_in(start + BUCKET * 100_000, totals(9));
        assert_eq!(history.series()[0].values[BUCKETS - 2..], [0, 1]);
        assert_eq!(history.series()[0].sum, 1);
    }

    #[test]
    fn the_stores_time_is_a_mean() {
        let start = Instant::now();
        let mut history = History::new(start, Totals::default());
        history.take_in(start, Totals { batches: 2, micros: 600, ..Totals::default() });
        history.take_in(start + BUCKET, Totals { batches: 3, micros: 1_500, ..Totals::default() });
        let store = history.series().pop().unwrap();
        assert_eq!((store.id, store.sum, store.peak()), ("store", 500, 900));
        assert_eq!(store.values[BUCKETS - 2..], [300, 900]);
    }

    #[test]
    fn a_line_has_its_corners_alone() {
        let mut values = vec![0; BUCKETS];
        values[100] = 4;
        let series = Series { id: "hit", sum: 4, values };
        assert_eq!(series.points(), "0,98.0 99,98.0 100,2.0 101,98.0 359,98.0");
    }
}
