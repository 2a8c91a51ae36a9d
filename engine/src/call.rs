//! A call on its way through the engine: the request and its decision.

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
    /// When the call stops waiting for the holder of its key; `None` if it does not wait.
    pub(crate) wait_until: Option<Instant>,
    pub(crate) run_limit: Option<Duration>,
    pub(crate) reply: Answer<Decision>,
    /// Counts the call while it is anywhere in the engine.
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

    /// Answers a finished call. It frees the call's permit first: a caller on another thread may call again as soon as
    /// it has the answer.
    pub(crate) fn answer(self, decision: Decision) {
        let Self { reply, permit, .. } = self;
        drop(permit);
        reply.send(decision);
    }

    pub(crate) fn refuse(self, error: Error) {
        self.answer(Err(error));
    }
}

/// Thirty years, which every system's clock can represent. Anything longer counts as no limit.
pub(crate) const NEVER: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

/// Returns the instant `time` from now.
pub(crate) fn after(time: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(time).unwrap_or_else(|| now + NEVER)
}

/// The decision on a call.
pub(crate) type Decision = Result<Admitted, Error>;

/// What a call may do.
#[derive(Debug)]
pub(crate) enum Admitted {
    /// Run the operation, and settle the grant.
    Granted(Grant),
    /// Return this outcome of an earlier call.
    Replay(SealedOutcome),
    /// Run the operation unguarded.
    Unguarded,
}
