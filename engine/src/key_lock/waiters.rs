//! The calls that wait for a key, and the single timer that they share.

use actix::prelude::*;
use tokio::time::Instant;

use super::{KeyLock, Role};
use crate::call::Begin;
use crate::{Error, EventKind};

/// The waiting calls. Each holds only its permit and its caller's reply channel.
#[derive(Default)]
pub(super) struct Waiters {
    calls: Vec<Begin>,
    /// The timer for the earliest wait limit.
    timer: Option<(Instant, SpawnHandle)>,
}

impl From<Vec<Begin>> for Waiters {
    fn from(calls: Vec<Begin>) -> Self {
        Self { calls, timer: None }
    }
}

impl Waiters {
    pub(super) fn take(&mut self) -> Vec<Begin> {
        std::mem::take(&mut self.calls)
    }

    pub(super) fn stop_timer(&mut self) -> Option<SpawnHandle> {
        self.timer.take().map(|(_, handle)| handle)
    }

    /// Drops the calls whose caller has left.
    fn prune(&mut self) {
        self.calls.retain(|call| !call.reply.is_closed());
    }
}

impl KeyLock {
    /// Lets a call wait, or refuses it if its policy is not to wait.
    pub(super) fn wait(&mut self, call: Begin, ctx: &mut Context<Self>) {
        if call.wait_until.is_none() {
            return self.refuse(call);
        }
        let limit = self.neighbours.shared.settings.max_waiters_per_key;
        if self.waiters.calls.len() >= limit {
            self.waiters.prune();
        }
        if self.waiters.calls.len() >= limit && !planted!(WaitersNotCapped) {
            self.tell(EventKind::Overloaded);
            return call.refuse(Error::Overloaded { what: "callers waiting for one key", limit });
        }
        self.tell(EventKind::Wait);
        self.waiters.calls.push(call);
        self.set_timer(ctx);
    }

    /// Sets the timer to the earliest limit, unless it is already set.
    fn set_timer(&mut self, ctx: &mut Context<Self>) {
        let Some(earliest) = self.waiters.calls.iter().filter_map(|call| call.wait_until).min() else { return };
        if let Some((at, handle)) = self.waiters.timer {
            if at <= earliest {
                return;
            }
            ctx.cancel_future(handle);
        }
        self.is_reusable = false;
        let handle = ctx.run_later(earliest.saturating_duration_since(Instant::now()), |lock, ctx| {
            lock.waiters.timer = None;
            lock.dismiss_late(ctx);
        });
        self.waiters.timer = Some((earliest, handle));
    }

    fn dismiss_late(&mut self, ctx: &mut Context<Self>) {
        let now = Instant::now();
        let is_late = |call: &mut Begin| call.wait_until.is_some_and(|until| until <= now);
        let late: Vec<_> = self.waiters.calls.extract_if(.., is_late).collect();
        late.into_iter().for_each(|call| self.refuse(call));
        self.set_timer(ctx);
        self.leave_if_nobody_waits(ctx);
    }

    /// Retires a lock that only follows another holder's claim once no call waits here.
    fn leave_if_nobody_waits(&mut self, ctx: &mut Context<Self>) {
        if self.waiters.calls.is_empty() && matches!(self.role, Role::Following(_)) {
            self.retire(None, ctx);
        }
    }
}

/// Reports that a waiting caller has left.
pub(crate) struct Left;

impl Message for Left {
    type Result = ();
}

impl Handler<Left> for KeyLock {
    type Result = ();

    fn handle(&mut self, _: Left, ctx: &mut Self::Context) {
        if planted!(LeftWaitersKept) {
            return;
        }
        self.waiters.prune();
        self.leave_if_nobody_waits(ctx);
    }
}
