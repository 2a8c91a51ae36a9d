//! The supervisor of one arbiter: it routes calls by key, owns the key locks, and drains them at the end.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::prelude::*;
use tokio::sync::oneshot;
use tracing::{debug, error};

use crate::backend::{Acquire, Acquired, Persist, Purge, Purged, Reply, Request, StoreError};
use crate::call::{Admitted, Begin, Grant};
use crate::key_lock::{Following, Holding, Join, KeyLock, LockAddr, Part, Reconciling, Role, Tick};
use crate::reconcile::Reconciler;
use crate::record::Owner;
use crate::resting::Resting;
use crate::shared::Shared;
use crate::{Attempt, Error, EventKind, Fingerprint, Key, KeyHasher, OnStoreFailure};

/// Whom the actors of one arbiter talk to.
pub(crate) struct Neighbours {
    pub(crate) shared: Arc<Shared>,
    store: Recipient<Persist>,
    supervisor: Arc<Addr<Supervisor>>,
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
    neighbours: Rc<Neighbours>,
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
                neighbours: Rc::new(Neighbours { shared, store, supervisor }),
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

    /// Asks the store for the key. An answer that settles the call goes straight to its caller; one that needs a lock
    /// comes back here.
    fn acquire(&mut self, call: Begin) {
        let owner = Owner::random();
        let message = Acquire {
            key: call.key.clone(),
            fingerprint: call.fingerprint,
            owner,
            lease: self.neighbours.shared.settings.lease,
            on_abandoned: call.on_abandoned,
        };
        let (supervisor, shared) = (Arc::clone(&self.neighbours.supervisor), Arc::clone(&self.neighbours.shared));
        let asked_at = Instant::now();
        let reply = Reply::new(move |answer| {
            if let Some((call, answer)) = answer_or_pass_on(&shared, call, answer) {
                // A supervisor that has ended leaves the claim to its lease, and the caller hears that it stopped.
                let _ = supervisor.try_send(AcquireAnswered { call, owner, asked_at, answer });
            }
        });
        self.neighbours.ask_store(Request::Acquire(message, reply));
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
        let Some(lock) = self.resting.take() else { return KeyLock::start(Rc::clone(&self.neighbours), part) };
        match lock.try_send(part) {
            Ok(()) => lock,
            Err(SendError::Closed(part) | SendError::Full(part)) => KeyLock::start(Rc::clone(&self.neighbours), part),
        }
    }

    fn on_acquired(&mut self, AcquireAnswered { call, owner, asked_at, answer }: AcquireAnswered) {
        match answer {
            NeedsLock::Claimed { attempt, took_over } => {
                let kind = if took_over { EventKind::Takeover } else { EventKind::Miss };
                self.neighbours.shared.events.tell(kind, &call.key);
                let Begin { key, fingerprint, on_abandoned, reply, permit, .. } = call;
                let role = Role::Holding(Holding::granted(owner, on_abandoned, asked_at));
                let lock = self.lock(key, fingerprint, asked_at, role, Vec::new());
                // If the caller has gone, the grant gives itself up.
                reply.send(Ok(Admitted::Granted(Grant::new(lock, attempt, permit))));
            }
            NeedsLock::ToFollow { .. } | NeedsLock::ToReconcile { .. } if self.locks.contains_key(&call.key) => {
                self.begin(call);
            }
            NeedsLock::ToFollow { lease_left } => {
                let role = Role::Following(Following::new(lease_left));
                self.lock(call.key.clone(), call.fingerprint, asked_at, role, vec![call]);
            }
            NeedsLock::ToReconcile { attempt, reconciler } => {
                let role = Role::Reconciling(Reconciling::new(attempt, reconciler));
                self.lock(call.key.clone(), call.fingerprint, asked_at, role, vec![call]);
            }
            NeedsLock::ToTakeBack(error) => {
                let role = Role::Holding(Holding::unheard(owner, call.on_abandoned));
                self.lock(call.key.clone(), call.fingerprint, asked_at, role, Vec::new());
                answer_store_failure(&self.neighbours.shared, call, error);
            }
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

    fn end_if_drained(&mut self) {
        if self.locks.is_empty() {
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
            if supervisor.ending && supervisor.locks.is_empty() {
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

/// An answer to an acquire that needs a lock.
struct AcquireAnswered {
    call: Begin,
    owner: Owner,
    asked_at: Instant,
    answer: NeedsLock,
}

enum NeedsLock {
    Claimed {
        attempt: Attempt,
        took_over: bool,
    },
    /// Another holds it, and the call waits.
    ToFollow {
        lease_left: Duration,
    },
    ToReconcile {
        attempt: Attempt,
        reconciler: Reconciler,
    },
    /// The claim may stand, for nobody: it is taken back as soon as the store hears of it.
    ToTakeBack(StoreError),
}

/// Answers the call, unless that takes a lock.
fn answer_or_pass_on(shared: &Shared, call: Begin, answer: Result<Acquired, StoreError>) -> Option<(Begin, NeedsLock)> {
    let refuse = |call: Begin, kind, error| {
        shared.events.tell(kind, &call.key);
        call.refuse(error);
        None
    };
    match answer {
        Ok(Acquired::Claimed { attempt, took_over }) => Some((call, NeedsLock::Claimed { attempt, took_over })),
        Ok(Acquired::Completed { outcome }) => {
            shared.events.tell(EventKind::Hit, &call.key);
            call.reply.send(Ok(Admitted::Replay(outcome)));
            None
        }
        Ok(Acquired::InProgress { lease_left }) => match call.wait_until {
            Some(_) => Some((call, NeedsLock::ToFollow { lease_left })),
            None => refuse(call, EventKind::Conflict, Error::InProgress { lease_left }),
        },
        Ok(Acquired::Mismatch) => refuse(call, EventKind::Mismatch, Error::Mismatch),
        Ok(Acquired::Indeterminate { attempt }) => match shared.settings.reconciler.clone() {
            Some(reconciler) => Some((call, NeedsLock::ToReconcile { attempt, reconciler })),
            None => refuse(call, EventKind::Indeterminate, Error::Indeterminate { attempt }),
        },
        Err(error) if error.is_unknown() => Some((call, NeedsLock::ToTakeBack(error))),
        Err(error) => {
            answer_store_failure(shared, call, error);
            None
        }
    }
}

fn answer_store_failure(shared: &Shared, call: Begin, error: StoreError) {
    shared.events.tell(EventKind::StoreFailed, &call.key);
    if call.on_store_failure == OnStoreFailure::Run && error.is_passing() {
        shared.events.tell(EventKind::Unguarded, &call.key);
        call.reply.send(Ok(Admitted::Unguarded));
    } else {
        call.refuse(Error::Store(error));
    }
}

impl Message for AcquireAnswered {
    type Result = ();
}

impl Handler<AcquireAnswered> for Supervisor {
    type Result = ();

    fn handle(&mut self, answered: AcquireAnswered, _: &mut Self::Context) {
        self.on_acquired(answered);
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
        if !self.draining.is_empty() {
            self.end_if_drained();
        }
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

/// Tells when no key is in flight here any more.
pub(crate) struct Drain(pub(crate) oneshot::Sender<()>);

impl Message for Drain {
    type Result = ();
}

impl Handler<Drain> for Supervisor {
    type Result = ();

    fn handle(&mut self, Drain(waiting): Drain, _: &mut Self::Context) {
        self.draining.push(waiting);
        self.end_if_drained();
    }
}

/// How many keys are in flight here.
pub(crate) struct CountInFlight;

impl Message for CountInFlight {
    type Result = usize;
}

impl Handler<CountInFlight> for Supervisor {
    type Result = usize;

    fn handle(&mut self, _: CountInFlight, _: &mut Self::Context) -> usize {
        self.locks.len()
    }
}

/// The engine is dropped: end as soon as nothing is in flight.
pub(crate) struct End;

impl Message for End {
    type Result = ();
}

impl Handler<End> for Supervisor {
    type Result = ();

    fn handle(&mut self, _: End, ctx: &mut Self::Context) {
        self.ending = true;
        if self.locks.is_empty() {
            ctx.stop();
        }
    }
}

impl fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Supervisor").field("keys", &self.locks.len()).finish_non_exhaustive()
    }
}
