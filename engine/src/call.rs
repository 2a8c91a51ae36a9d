//! A call on its way through the engine: what it asks, and what it is told.

use std::time::Duration;

use actix::prelude::*;
use tokio::time::Instant;

use crate::answer::Answer;
use crate::claims::Grant;
use crate::permit::Permit;
use crate::record::SealedOutcome;
use crate::{CallPolicy, Error, Fingerprint, Key, OnAbandoned, OnInProgress, OnStoreFailure};

/// Asks the supervisor for a key.
#[derive(Debug)]
pub(crate) struct Begin {
    pub(crate) key: Key,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) on_abandoned: OnAbandoned,
    pub(crate) on_store_failure: OnStoreFailure,
    /// Until when the call waits for another at work on its key; `None` if it does not wait.
    pub(crate) wait_until: Option<Instant>,
    pub(crate) run_limit: Option<Duration>,
    pub(crate) reply: Answer<Decision>,
    /// Counted while the call is anywhere in the engine.
    pub(crate) permit: Permit,
}

impl Message for Begin {
    type Result = ();
}

impl Begin {
    pub(crate) fn new(
        key: Key,
        fingerprint: Fingerprint,
        policy: &CallPolicy,
        reply: Answer<Decision>,
        permit: Permit,
    ) -> Self {
        let wait_until = match policy.on_in_progress {
            OnInProgress::Reject => None,
            OnInProgress::Wait(limit) => Some(after(limit)),
        };
        Self {
            key,
            fingerprint,
            on_abandoned: policy.on_abandoned.unwrap_or_default(),
            on_store_failure: policy.on_store_failure,
            wait_until,
            run_limit: policy.run_limit,
            reply,
            permit,
        }
    }

    /// Answers a call that is over. Its place is free before its caller can know: a caller that is answered on another
    /// thread may be back at once.
    pub(crate) fn answer(self, decision: Decision) {
        let Self { reply, permit, .. } = self;
        drop(permit);
        reply.send(decision);
    }

    pub(crate) fn refuse(self, error: Error) {
        self.answer(Err(error));
    }
}

/// Thirty years, which fit into every system's clock. What is longer never ends.
pub(crate) const NEVER: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

/// The time after so long.
pub(crate) fn after(time: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(time).unwrap_or_else(|| now + NEVER)
}

/// What a call is told.
pub(crate) type Decision = Result<Admitted, Error>;

/// What a call may do.
#[derive(Debug)]
pub(crate) enum Admitted {
    /// Run the operation, and settle the grant.
    Granted(Grant),
    /// Take this outcome: it was done before.
    Replay(SealedOutcome),
    /// Run the operation without a guard.
    Unguarded,
}
