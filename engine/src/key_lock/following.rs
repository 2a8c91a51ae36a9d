//! A lock that follows a claim held elsewhere, so that waiting callers on this arbiter learn when it ends.

use std::time::Duration;

use actix::prelude::*;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{KeyLock, Role};
use crate::backend::{Changed, Persist, Reply, StoreError, Watch};
use crate::call::after;

/// A claim of another arbiter, process or machine.
pub(crate) struct Following {
    /// When the claim's lease ends, unless its holder renews it.
    lease_ends: Instant,
    /// Dropping it ends the watch.
    watching: Option<oneshot::Sender<()>>,
}

/// How long after a lease's end to ask again: the store's clock counts whole milliseconds.
const AFTER_LEASE: Duration = Duration::from_millis(2);
/// How long to wait before asking again if the watch failed.
const AFTER_FAILURE: Duration = Duration::from_millis(100);

impl Following {
    pub(crate) fn new(lease_left: Duration) -> Self {
        Self { lease_ends: after(lease_left), watching: None }
    }

    pub(super) fn lease_left(&self) -> Duration {
        self.lease_ends.saturating_duration_since(Instant::now())
    }
}

/// The key changed, or the watch failed.
struct Watched(Result<Changed, StoreError>);

impl Message for Watched {
    type Result = ();
}

impl KeyLock {
    /// Watches the key until it changes, or until its lease may have lapsed.
    pub(super) fn follow(&mut self, ctx: &mut Context<Self>) {
        let Role::Following(following) = &mut self.role else { return };
        self.is_reusable = false;
        let (watching, ended) = oneshot::channel();
        following.watching = Some(watching);
        let message = Watch { key: self.key.clone(), limit: following.lease_left().saturating_add(AFTER_LEASE) };
        let lock = ctx.address();
        // If the lock is gone, no caller waits any more.
        let reply = Reply::new(move |answer| drop(lock.try_send(Watched(answer))));
        // If the backend has ended, the watch is dropped, and its reply reports that.
        let _ = self.neighbours.store.try_send(Persist::Watch(message, reply, ended));
    }
}

impl Handler<Watched> for KeyLock {
    type Result = ();

    /// Makes the waiting callers ask again. If the key is still in progress, the supervisor starts another lock to
    /// follow it.
    fn handle(&mut self, Watched(answer): Watched, ctx: &mut Self::Context) {
        let retire = |lock: &mut Self, ctx: &mut Context<Self>| {
            if matches!(lock.role, Role::Following(_)) {
                lock.retire(None, ctx);
            }
        };
        match answer {
            Ok(Changed) => retire(self, ctx),
            Err(_) => drop(ctx.run_later(AFTER_FAILURE, retire)),
        }
    }
}
