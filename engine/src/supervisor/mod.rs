//! The supervisor of one arbiter. It routes calls by key, owns the claims and the key locks, and drains them at
//! shutdown.

mod acquire;
mod ending;
mod routes;

pub(crate) use ending::{CountInFlight, Drain, End};

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use actix::prelude::*;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::{debug, error};

use acquire::Asker;
use routes::Routes;

use crate::backend::{Persist, Purge, Purged, Reply, Request, StoreError};
use crate::call::Begin;
use crate::claims::{Claim, ClaimAddr, Claims};
use crate::idle_locks::IdleLocks;
use crate::key_lock::{Assignment, Lock, Role};
use crate::neighbours::{Neighbours, ToSupervisor};
use crate::shared::Shared;
use crate::{Fingerprint, Key};

/// Each arbiter that uses the engine has one supervisor. It ends when the engine is dropped, or with its arbiter.
pub(crate) struct Supervisor {
    asker: Arc<Asker>,
    /// The claims that this arbiter holds in the store. Heartbeat and drain follow these, not the routes.
    claims: Claims,
    idle: IdleLocks,
    next_lock_id: u64,
    purging: bool,
    /// Notified when the last key is settled.
    draining: Vec<oneshot::Sender<()>>,
    in_flight: metrics::Gauge,
    /// The number of keys in flight at the last sweep, for readers that ask while this thread is blocked.
    at_last_sweep: Arc<AtomicUsize>,
    ending: bool,
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.asker.neighbours.shared.leave_to_their_lease(self.claims.len());
    }
}

impl Supervisor {
    /// Starts a supervisor on the current arbiter.
    pub(crate) fn start(
        shared: Arc<Shared>,
        store: Recipient<Persist>,
        at_last_sweep: Arc<AtomicUsize>,
    ) -> Arc<Addr<Self>> {
        let mut address = None;
        Self::create(|ctx| {
            // Calls are admitted before a message is sent, so the mailbox must never reach a limit of its own.
            ctx.set_mailbox_capacity(usize::MAX >> 3);
            let supervisor = ctx.address();
            address = Some(Arc::new(supervisor.clone()));
            let neighbours = Arc::new(Neighbours { shared, store, supervisor: supervisor.clone().recipient() });
            Self {
                asker: Arc::new(Asker { neighbours, supervisor, routes: Mutex::new(Routes::default()) }),
                claims: Claims::default(),
                idle: IdleLocks::default(),
                next_lock_id: 0,
                purging: false,
                draining: Vec::new(),
                in_flight: metrics::gauge!("oncekey_keys_in_flight"),
                at_last_sweep,
                ending: false,
            }
        });
        // `create` has called the closure.
        address.unwrap_or_else(|| unreachable!("actix did not call the closure that makes the actor"))
    }

    /// Starts a lock that keeps a claim. The calls that wait for the store's answer about the key join it.
    fn claim(&mut self, key: Key, fingerprint: Fingerprint, since: Instant, claim: Claim) -> ClaimAddr {
        let role = Role::Claim(claim, self.claims.next_place());
        let address = self.lock(key, fingerprint, role, None);
        self.claims.insert(Arc::clone(&address), since);
        address
    }

    /// Starts a lock for a key, or reuses one. The lock takes the call, and the calls that wait for the store's answer.
    fn lock(&mut self, key: Key, fingerprint: Fingerprint, role: Role, call: Option<Begin>) -> ClaimAddr {
        self.next_lock_id += 1;
        let id = self.next_lock_id;
        let mut routes = self.asker.routes.lock();
        let mut waiting = routes.take_waiting(&key);
        if let Some(call) = call {
            waiting.insert(0, call);
        }
        let assignment = Assignment { key: key.clone(), id, fingerprint, role, waiting };
        let neighbours = &self.asker.neighbours;
        let lock = match self.idle.take() {
            None => Lock::start(Arc::clone(neighbours), assignment),
            Some(lock) => match lock.address.try_send(assignment) {
                Ok(()) => lock,
                Err(SendError::Closed(assignment) | SendError::Full(assignment)) => {
                    Lock::start(Arc::clone(neighbours), assignment)
                }
            },
        };
        let address = Arc::clone(&lock.claim);
        let replaced = routes.locked(key, lock, id);
        drop(routes);
        if let Some(replaced) = replaced.filter(|_| planted!(ClaimFollowsTheRoute)) {
            self.claims.forget(&replaced.claim);
        }
        address
    }

    /// Wakes the claims older than a third of the lease, ends the idle locks, and purges when it is this arbiter's
    /// turn.
    fn sweep(&mut self) {
        self.idle.dismiss();
        let in_flight = self.in_flight();
        self.in_flight.set(in_flight as f64);
        self.at_last_sweep.store(in_flight, Ordering::Relaxed);
        let shared = &self.asker.neighbours.shared;
        let lost = self.claims.tick(shared.settings.lease / 3);
        if lost > 0 {
            error!(claims = lost, "actors that kept claims are gone; what they held is left to its lease");
            self.asker.routes.lock().sweep();
        }
        if shared.takes_purge_turn() {
            self.purge();
        }
        self.end_if_drained();
    }

    fn purge(&mut self) {
        if std::mem::replace(&mut self.purging, true) {
            return;
        }
        let supervisor = self.asker.supervisor.clone();
        let reply = Reply::new(move |answer| drop(supervisor.try_send(PurgeAnswered(answer))));
        let neighbours = &self.asker.neighbours;
        let limit = neighbours.shared.settings.purge_limit;
        neighbours.ask_store(Request::Purge(Purge { limit }, reply));
    }

    /// Returns how many keys are in flight: asked for, claimed or waited for. Each has a route. A claim that had lost
    /// its route would still count.
    fn in_flight(&self) -> usize {
        if planted!(ClaimOnItsWayForgotten) {
            return self.claims.len();
        }
        self.asker.routes.lock().len().max(self.claims.len())
    }

    fn end_if_drained(&mut self) {
        if !self.draining.is_empty() && self.in_flight() == 0 {
            for waiting in self.draining.drain(..) {
                // The waiting task may have given up.
                let _ = waiting.send(());
            }
        }
    }
}

impl Actor for Supervisor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let every =
            (self.asker.neighbours.shared.settings.lease / 6).clamp(Duration::from_millis(5), Duration::from_secs(1));
        ctx.run_interval(every, |supervisor, ctx| {
            supervisor.sweep();
            if supervisor.ending && supervisor.in_flight() == 0 {
                ctx.stop();
            }
        });
    }
}

impl Handler<Begin> for Supervisor {
    type Result = ();

    fn handle(&mut self, call: Begin, _: &mut Self::Context) {
        self.begin(call);
    }
}

impl Handler<ToSupervisor> for Supervisor {
    type Result = ();

    fn handle(&mut self, message: ToSupervisor, _: &mut Self::Context) {
        match message {
            ToSupervisor::Resubmit(call) => self.begin(*call),
            ToSupervisor::LetGo { key, id, resubmit } => {
                drop(self.asker.routes.lock().retired(key, id));
                resubmit.into_iter().for_each(|call| self.begin(call));
            }
            ToSupervisor::Retired { key, id, claim, resubmit, is_reusable } => {
                if let Some(place) = claim {
                    self.claims.remove(place);
                }
                let lock = self.asker.routes.lock().retired(key, id);
                if let Some(lock) = lock.filter(|_| is_reusable) {
                    self.idle.keep(lock);
                }
                resubmit.into_iter().for_each(|call| self.begin(call));
                self.end_if_drained();
            }
        }
    }
}

/// Reports that a caller waiting for a key has left. The supervisor frees what the caller held.
pub(crate) struct CallerLeft(pub(crate) Key);

impl Message for CallerLeft {
    type Result = ();
}

impl Handler<CallerLeft> for Supervisor {
    type Result = ();

    fn handle(&mut self, CallerLeft(key): CallerLeft, _: &mut Self::Context) {
        self.asker.routes.lock().left(&key);
    }
}

struct PurgeAnswered(Result<Purged, StoreError>);

impl Message for PurgeAnswered {
    type Result = ();
}

impl Handler<PurgeAnswered> for Supervisor {
    type Result = ();

    fn handle(&mut self, PurgeAnswered(answer): PurgeAnswered, _: &mut Self::Context) {
        self.purging = false;
        match answer {
            Ok(Purged { removed, more }) => {
                debug!(removed, more, "purged expired records");
                // The next batch goes through the mailboxes like any message, so other work runs in between.
                if more {
                    self.purge();
                }
            }
            Err(error) => debug!(%error, "expired records could not be purged; it is tried again later"),
        }
    }
}

impl fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Supervisor").field("claims", &self.claims.len()).finish_non_exhaustive()
    }
}
