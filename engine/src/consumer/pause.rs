//! A pause in which a processor takes no messages.

use std::time::Duration;

use backon::ExponentialBackoff;
use tokio::time::{Instant, sleep_until};

use super::backoff;

/// A pause because the source or the store is unavailable. Delays after errors of the source grow to at most 5 s.
#[derive(Debug, Default)]
pub(super) struct Pause {
    until: Option<Instant>,
    /// The delays after consecutive errors of the source.
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

    /// Adds jitter, so that processors that found their store unavailable do not return to it together.
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
