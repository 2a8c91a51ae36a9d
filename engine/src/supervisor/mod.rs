//! The supervisor of one arbiter: it routes calls by key, owns the key locks, and drains them at the end.

mod acquire;
mod ending;

pub(crate) use ending::{CountInFlight, Drain, End};

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use actix::prelude::*;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::{debug, error};

use crate::backend::{Persist, Purge, Purged, Reply, Request, StoreError};
use crate::call::Begin;
use crate::key_lock::{Join, KeyLock, LockAddr, Part, Role, Tick};
use crate::resting::Resting;
use crate::shared::Shared;
use crate::{Error, Fingerprint, Key, KeyHasher};

/// Whom the actors of one arbiter talk to. Each arbiter has its own, so that counting the references to it is nobody
/// else's affair: what two threads count together costs each of them more than a message does.
pub(crate) struct Neighbours {
    pub(crate) shared: Arc<Shared>,
    store: Recipient<Persist>,
    supervisor: Arc<Addr<Supervisor>>,
    /// How many claims are on their way to the store and back: such a key is in flight, and has no lock yet.
    acquiring: AtomicUsize,
}

impl Neighbours {
    pub(crate) fn ask_store(&self, request: Request) {
        // A request that a dead backend can't take is dropped, and its reply answers "unknown".
        let _ = self.store.try_send(Persist(request));
    }

    /// Tells the supervisor, which outlives its locks; at its own end nobody is left to care.
    pub(crate) fn tell_supervisor<M>(&self, message: M)
    where
        M: Message<Result = ()> + Send + 'static,
        Supervisor: Handler<M>,
    {
        let _ = self.supervisor.try_send(message);
    }
}

/// One on each arbiter that uses the engine. It ends when the engine is dropped, or with its arbiter.
pub(crate) struct Supervisor {
    neighbours: Arc<Neighbours>,
    locks: HashMap<Key, Locked, KeyHasher>,
    resting: Resting,
    next_lock_id: u64,
    purging: bool,
    /// Who waits for the last key to be settled.
    draining: Vec<oneshot::Sender<()>>,
    in_flight: metrics::Gauge,
    ending: bool,
}

/// A key that has a lock on this arbiter.
struct Locked {
    lock: LockAddr,
    id: u64,
    since: Instant,
}

impl Supervisor {
    /// Starts one on the current arbiter.
    pub(crate) fn start(shared: Arc<Shared>, store: Recipient<Persist>) -> Arc<Addr<Self>> {
        let mut address = None;
        Self::create(|ctx| {
            // Admission is counted before a message is sent; this bound must never be the one that is met.
            ctx.set_mailbox_capacity(usize::MAX >> 3);
            let supervisor = Arc::new(ctx.address());
            address = Some(Arc::clone(&supervisor));
            Self {
                neighbours: Arc::new(Neighbours { shared, store, supervisor, acquiring: AtomicUsize::new(0) }),
                locks: HashMap::default(),
                resting: Resting::default(),
                next_lock_id: 0,
                purging: false,
                draining: Vec::new(),
                in_flight: metrics::gauge!("oncekey_keys_in_flight"),
                ending: false,
            }
        });
        // `create` has called the closure.
        address.unwrap_or_else(|| unreachable!("actix did not call the closure that makes the actor"))
    }

    fn begin(&mut self, call: Begin) {
        if self.neighbours.shared.is_closing() {
            return call.refuse(Error::ShuttingDown);
        }
        let Some(Locked { lock, .. }) = self.locks.get(&call.key) else { return self.acquire(call) };
        if let Err(SendError::Closed(Join(call)) | SendError::Full(Join(call))) = lock.try_send(Join(call)) {
            // The lock's task is gone, by a panic: what it held is left to the lease.
            error!(key = %call.key, "a key's lock is gone without a farewell");
            self.locks.remove(&call.key);
            self.acquire(call);
        }
    }

    /// Starts a lock for a key, and gives it the calls that wait there.
    ///
    /// If the key has one, it has played its role, and its farewell is on its way here: the new one takes its place.
    fn lock(
        &mut self,
        key: Key,
        fingerprint: Fingerprint,
        since: Instant,
        role: Role,
        waiting: Vec<Begin>,
    ) -> LockAddr {
        self.next_lock_id += 1;
        let id = self.next_lock_id;
        let part = Part { key: key.clone(), id, fingerprint, role, waiting };
        let lock = self.cast(part);
        self.locks.insert(key, Locked { lock: Arc::clone(&lock), id, since });
        lock
    }

    /// Gives a part to a lock that rests, or else to a new one.
    fn cast(&mut self, part: Part) -> LockAddr {
        let Some(lock) = self.resting.take() else { return KeyLock::start(Arc::clone(&self.neighbours), part) };
        match lock.try_send(part) {
            Ok(()) => lock,
            Err(SendError::Closed(part) | SendError::Full(part)) => KeyLock::start(Arc::clone(&self.neighbours), part),
        }
    }

    /// Wakes the locks whose lease has run for a while. Most keys are settled before a sweep ever meets them, and cost
    /// no timer of their own.
    fn sweep(&mut self) {
        self.resting.dismiss();
        self.in_flight.set(self.locks.len() as f64);
        let old = self.neighbours.shared.settings.lease / 3;
        // A lock that can't be told is gone, by a panic: what it held is left to its lease.
        self.locks.retain(|_, Locked { lock, since, .. }| {
            since.elapsed() < old || lock.try_send(Tick(Arc::clone(lock))).is_ok()
        });
        if self.neighbours.shared.takes_purge_turn() {
            self.purge();
        }
        self.end_if_drained();
    }

    fn purge(&mut self) {
        if std::mem::replace(&mut self.purging, true) {
            return;
        }
        let supervisor = Arc::clone(&self.neighbours.supervisor);
        let reply = Reply::new(move |answer| drop(supervisor.try_send(PurgeAnswered(answer))));
        let limit = self.neighbours.shared.settings.purge_limit;
        self.neighbours.ask_store(Request::Purge(Purge { limit }, reply));
    }

    fn in_flight(&self) -> usize {
        let acquiring = self.neighbours.acquiring.load(Ordering::Acquire);
        self.locks.len() + if planted!(ClaimOnItsWayForgotten) { 0 } else { acquiring }
    }

    fn end_if_drained(&mut self) {
        if !self.draining.is_empty() && self.in_flight() == 0 {
            for waiting in self.draining.drain(..) {
                // Whoever waited may have given up.
                let _ = waiting.send(());
            }
        }
    }
}

impl Actor for Supervisor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let every = (self.neighbours.shared.settings.lease / 6).clamp(Duration::from_millis(5), Duration::from_secs(1));
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

/// A lock's farewell: it answers no more for its key, and these calls are to be begun anew.
pub(crate) struct Retired {
    pub(crate) key: Key,
    pub(crate) id: u64,
    pub(crate) resubmit: Vec<Begin>,
    /// Whether the lock may be given another key.
    pub(crate) may_rest: bool,
}

impl Message for Retired {
    type Result = ();
}

impl Handler<Retired> for Supervisor {
    type Result = ();

    fn handle(&mut self, Retired { key, id, resubmit, may_rest }: Retired, _: &mut Self::Context) {
        if let Entry::Occupied(place) = self.locks.entry(key)
            && place.get().id == id
        {
            let Locked { lock, .. } = place.remove();
            if may_rest {
                self.resting.keep(lock);
            }
        }
        resubmit.into_iter().for_each(|call| self.begin(call));
        self.end_if_drained();
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
                // The next batch goes through the mailboxes like any message: the rest is served in between.
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
        f.debug_struct("Supervisor").field("keys", &self.locks.len()).finish_non_exhaustive()
    }
}
