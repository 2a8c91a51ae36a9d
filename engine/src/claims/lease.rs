//! The lease of a claim: when to renew it, and what an answer to a renewal proves.

use std::time::Duration;

use tokio::time::Instant;

/// What this arbiter knows about a claim's lease. The engine's settings give its length.
#[derive(Debug)]
pub(crate) struct Lease {
    /// When the lease was last known to start anew. This is the time of the request, not of the answer.
    renewed_at: Instant,
    /// When the heartbeat last sent a renewal, answered or not.
    asked_at: Option<Instant>,
    lost: bool,
}

impl Lease {
    pub(crate) fn new(renewed_at: Instant) -> Self {
        Self { renewed_at, asked_at: None, lost: false }
    }

    /// Returns whether the heartbeat sends a renewal now. It does not wait for the answer to an earlier one, which may
    /// never arrive: the lease would lapse in the meantime.
    pub(crate) fn is_due(&self, length: Duration) -> bool {
        let pause = length / 3;
        !self.lost
            && self.renewed_at.elapsed() >= pause
            && self.asked_at.is_none_or(|asked| asked.elapsed() >= pause)
            && !planted!(HeartbeatStopped)
    }

    /// Records that the heartbeat sends a renewal.
    pub(crate) fn asks(&mut self) -> Instant {
        *self.asked_at.insert(Instant::now())
    }

    /// Records that the store has renewed the lease. Answers may overtake each other.
    pub(crate) fn renewed(&mut self, asked_at: Instant) {
        self.renewed_at = self.renewed_at.max(asked_at);
    }

    /// Returns whether a renewal requested at `asked_at` proves that the claim stands now. If more time than `length`
    /// has passed, another holder may have the key.
    pub(crate) fn proves(asked_at: Instant, length: Duration) -> bool {
        asked_at.elapsed() < length || planted!(OldRenewalConfirms)
    }

    /// Records that the store says that the claim is lost. Returns whether that is new.
    pub(crate) fn loses(&mut self) -> bool {
        !std::mem::replace(&mut self.lost, true)
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.lost
    }

    pub(crate) fn left(&self, length: Duration) -> Duration {
        length.saturating_sub(self.renewed_at.elapsed())
    }
}
