//! A while in which nothing is taken.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// The source or the store is away. A source that goes on failing is asked ever more rarely, at last each 5 s.
#[derive(Debug, Default)]
pub(super) struct Pause {
    until: Option<Instant>,
    errors: u32,
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

    pub(super) fn at_least(&mut self, delay: Duration) {
        self.until = self.until.max(Some(Instant::now() + delay));
    }

    pub(super) fn after_error(&mut self) {
        self.at_least((Duration::from_millis(50) * 2_u32.saturating_pow(self.errors)).min(Duration::from_secs(5)));
        self.errors = (self.errors + 1).min(10);
    }

    pub(super) fn forget_errors(&mut self) {
        self.errors = 0;
    }
}
