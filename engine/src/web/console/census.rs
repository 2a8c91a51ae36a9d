//! Periodic counts of what the store holds.

use std::time::{Duration, Instant};

use super::hub::Hub;
use crate::backend::{Filter, Finding, StateName};
use crate::{Engine, Error, Key};

/// How many stuck keys are counted one by one.
const COUNTED: usize = 1_000;
/// A count stays fresh for this many times its own duration, so counting costs at most one part in a hundred of the
/// time.
const ONE_PART_OF: u32 = 100;
const FRESH_AT_LEAST: Duration = Duration::from_secs(2);
const FRESH_AT_MOST: Duration = Duration::from_secs(300);

/// The store's state at one moment.
#[derive(Debug, Clone)]
pub(super) struct Census {
    pub(super) counts: Result<Counts, String>,
    /// How long the lookup of one key took. `None` if the store did not answer.
    pub(super) lookup: Option<Duration>,
    pub(super) findings: Vec<Finding>,
    pub(super) taken_at: Instant,
    fresh_for: Duration,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) in_flight: u64,
    pub(super) indeterminate: u64,
    /// Whether there may be more indeterminate keys.
    pub(super) is_least: bool,
    pub(super) completed: u64,
    pub(super) released: u64,
}

impl Hub {
    /// Returns the last count, or a new one if that is old. Concurrent callers share one count, however many pages are
    /// open.
    pub(super) async fn census(&self, engine: &Engine) -> Census {
        let mut last = self.census.lock().await;
        if let Some(census) = last.as_ref().filter(|census| census.taken_at.elapsed() < census.fresh_for) {
            return census.clone();
        }
        let census = Census::take(engine).await;
        *last = Some(census.clone());
        census
    }

    /// Makes the next page count again, after an operator has settled a key.
    pub(super) async fn forget_census(&self) {
        *self.census.lock().await = None;
    }
}

impl Census {
    async fn take(engine: &Engine) -> Self {
        let began = Instant::now();
        let counts = count(engine).await.map_err(|error| error.to_string());
        let findings = engine.doctor().await.unwrap_or_default();
        let fresh_for = (began.elapsed() * ONE_PART_OF).clamp(FRESH_AT_LEAST, FRESH_AT_MOST);
        Self { counts, lookup: probe(engine).await, findings, taken_at: Instant::now(), fresh_for }
    }
}

/// Times the lookup of a key that nobody uses.
async fn probe(engine: &Engine) -> Option<Duration> {
    let key = Key::new("oncekey-console", "probe").ok()?;
    let began = Instant::now();
    engine.lookup(&key).await.ok().map(|_| began.elapsed())
}

async fn count(engine: &Engine) -> Result<Counts, Error> {
    let stats = engine.stats().await?;
    // The store counts stored states. A claim whose lease lapsed after a crash is indeterminate too, but no stored
    // state says so, so these keys must be found one by one.
    let wanted = Filter { state: Some(StateName::Indeterminate), ..Filter::default() };
    let found = engine.find(wanted, None, COUNTED).await?;
    let lapsed = found.records.iter().filter(|view| view.lapsed_at.is_some()).count() as u64;
    let counted = found.records.len() as u64;
    Ok(Counts {
        in_flight: stats.in_progress.saturating_sub(lapsed),
        indeterminate: counted.max(stats.indeterminate),
        is_least: found.next.is_some(),
        completed: stats.completed,
        released: stats.released,
    })
}
