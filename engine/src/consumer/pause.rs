//! A while in which nothing is taken.

use std::time::Duration;

use backon::ExponentialBackoff;
use tokio::time::{Instant, sleep_until};

use super::backoff;

/// The source or the store is away. A source that goes on failing is asked ever more rarely, at last each 5 s.
#[derive(Debug, Default)]
pub(super) struct Pause {
    until: Option<Instant>,
    /// The source's errors in a row.
    after_errors: Option<ExponentialBackoff>,
}

impl Pause {
    pub(super) fn is_on(&self) -> bool {
        self.until.is_some()
    }

    pub(super) async fn over(&self) {
        match self.until {
            Some(until) => sleep_until(until).await,
            None => std::future::pending().await,
        }
    }

    pub(super) fn end(&mut self) {
        self.until = None;
    }

    /// The delay has jitter: processors that found their store away don't come back to it together.
    pub(super) fn at_least(&mut self, delay: Duration) {
        self.until = self.until.max(Some(Instant::now() + backoff::spread(delay)));
    }

    pub(super) fn after_error(&mut self) {
        let longest = Duration::from_secs(5);
        let delays = self.after_errors.get_or_insert_with(|| backoff::delays(Duration::from_millis(100), longest));
        self.until = self.until.max(Some(Instant::now() + delays.next().unwrap_or(longest)));
    }

    pub(super) fn forget_errors(&mut self) {
        self.after_errors = None;
    }
}
