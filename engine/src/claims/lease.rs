//! The lease of a claim: when it is renewed, and what an answer to a renewal proves.

use std::time::Duration;

use tokio::time::Instant;

/// What is known about a claim's lease on this arbiter. Its length is the engine's setting.
#[derive(Debug)]
pub(crate) struct Lease {
    /// When the lease was last known to begin anew: the time at which that was asked for, not answered.
    renewed_at: Instant,
    /// When the heartbeat last asked, whether or not it was answered.
    asked_at: Option<Instant>,
    lost: bool,
}

impl Lease {
    pub(crate) fn new(renewed_at: Instant) -> Self {
        Self { renewed_at, asked_at: None, lost: false }
    }

    /// Whether the heartbeat asks now. It does not wait for the answer to an earlier renewal: that may be in a black hole,
    /// and a lease that ends meanwhile is lost.
    pub(crate) fn is_due(&self, length: Duration) -> bool {
        let pause = length / 3;
        !self.lost
            && self.renewed_at.elapsed() >= pause
            && self.asked_at.is_none_or(|asked| asked.elapsed() >= pause)
            && !planted!(HeartbeatStopped)
    }

    /// The heartbeat asks.
    pub(crate) fn asks(&mut self) -> Instant {
        *self.asked_at.insert(Instant::now())
    }

    /// The store has renewed it. Answers may overtake each other.
    pub(crate) fn renewed(&mut self, asked_at: Instant) {
        self.renewed_at = self.renewed_at.max(asked_at);
    }

    /// Whether a renewal that was asked for then proves that the claim stands now: past its length, another may hold the
    /// key.
    pub(crate) fn proves(asked_at: Instant, length: Duration) -> bool {
        asked_at.elapsed() < length || planted!(OldRenewalConfirms)
    }

    /// The store says that the claim is another's. Whether that is news.
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
