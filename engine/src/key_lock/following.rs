//! A lock that follows a claim held elsewhere, so that callers here hear of its end.

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tokio::time::Instant;

use super::{Answered, Bring, KeyLock, Role};
use crate::backend::{Changed, Reply, Request, StoreError, Watch};

/// A claim of another arbiter, process or machine.
pub(crate) struct Following {
    /// When its lease ends, unless its holder renews it.
    lease_ends: Instant,
}

/// How long after a lease's end it is worth asking: the store's clock counts whole milliseconds.
const AFTER_LEASE: Duration = Duration::from_millis(2);
/// How long to wait before asking again when the store could not be watched.
const AFTER_FAILURE: Duration = Duration::from_millis(100);

impl Following {
    pub(crate) fn new(lease_left: Duration) -> Self {
        Self { lease_ends: Instant::now() + lease_left }
    }

    pub(super) fn lease_left(&self) -> Duration {
        self.lease_ends.saturating_duration_since(Instant::now())
    }
}

impl KeyLock {
    /// Watches the key until it changes, or until its lease may have lapsed.
    pub(super) fn follow(&mut self, ctx: &mut Context<Self>) {
        let Role::Following(following) = &self.role else { return };
        let limit = following.lease_left() + AFTER_LEASE;
        let lock = Arc::new(ctx.address());
        self.ask_store(Request::Watch(
            Watch { key: self.key.clone(), limit },
            Reply::new(move |answer| Bring::to(lock, Answered::Watched(answer))),
        ));
    }

    /// The key changed, or its lease ended: those who wait ask again. If it is still in progress, the supervisor starts
    /// another lock to follow it.
    pub(super) fn on_watched(&mut self, answer: Result<Changed, StoreError>, ctx: &mut Context<Self>) {
        if !matches!(self.role, Role::Following(_)) {
            return;
        }
        match answer {
            Ok(Changed) => self.retire(None),
            Err(_) => drop(ctx.run_later(AFTER_FAILURE, |lock, _| {
                if matches!(lock.role, Role::Following(_)) {
                    lock.retire(None);
                }
            })),
        }
    }
}
