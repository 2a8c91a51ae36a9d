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
use crate::key_lock::{Following, Holding, Join, KeyLock, LockAddr, Reconciling, Role, Tick};
use crate::record::Owner;
use crate::shared::Shared;
use crate::{Error, EventKind, Fingerprint, Key, KeyHasher, OnStoreFailure};

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
    keys: HashMap<Key, InFlight, KeyHasher>,
    next_lock_id: u64,
    purging: bool,
    /// Who waits for the last key to be settled.
    draining: Vec<oneshot::Sender<()>>,
    in_flight: metrics::Gauge,
    ending: bool,
}

/// A key that somebody on this arbiter is concerned with.
enum InFlight {
    /// The store is being asked for it. Calls that come in meanwhile share the answer.
    Acquiring { owner: Owner, asked_at: Instant, first: Begin, others: Vec<Begin> },
    /// A lock has it.
    Locked { lock: LockAddr, id: u64, since: Instant },
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
                keys: HashMap::default(),
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

    fn tell(&self, kind: EventKind, key: &Key) {
        self.neighbours.shared.events.tell(kind, key);
    }

    fn begin(&mut self, call: Begin) {
        if self.neighbours.shared.is_closing() {
            return call.refuse(Error::ShuttingDown);
        }
        match self.keys.entry(call.key.clone()) {
            Entry::Vacant(place) => {
                let (owner, asked_at) = (Owner::random(), Instant::now());
                let message = Acquire {
                    key: call.key.clone(),
                    fingerprint: call.fingerprint,
                    owner,
                    lease: self.neighbours.shared.settings.lease,
                    on_abandoned: call.on_abandoned,
                };
                place.insert(InFlight::Acquiring { owner, asked_at, first: call, others: Vec::new() });
                let (key, supervisor) = (message.key.clone(), Arc::clone(&self.neighbours.supervisor));
                let reply = Reply::new(move |answer| drop(supervisor.try_send(AcquireAnswered { key, answer })));
                self.neighbours.ask_store(Request::Acquire(message, reply));
            }
            Entry::Occupied(mut place) => match place.get_mut() {
                InFlight::Acquiring { others, .. } => {
                    let limit = self.neighbours.shared.settings.max_waiters_per_key;
                    if others.len() < limit {
                        others.push(call);
                    } else {
                        self.tell(EventKind::Overloaded, &call.key);
                        call.refuse(Error::Overloaded { what: "callers at once for one key", limit });
                    }
                }
                InFlight::Locked { lock, .. } => {
                    if let Err(SendError::Closed(Join(call)) | SendError::Full(Join(call))) = lock.try_send(Join(call))
                    {
                        // The lock's task is gone, by a panic: what it held is left to the lease.
                        error!(key = %call.key, "a key's lock is gone without a farewell");
                        place.remove();
                        self.begin(call);
                    }
                }
            },
        }
    }

    /// Starts a lock for `key` and gives it the calls that wait there.
    fn lock(&mut self, key: Key, fingerprint: Fingerprint, role: Role, waiting: Vec<Begin>) -> LockAddr {
        self.next_lock_id += 1;
        let id = self.next_lock_id;
        let lock = KeyLock::start(key.clone(), id, fingerprint, Rc::clone(&self.neighbours), role, waiting);
        self.keys.insert(key, InFlight::Locked { lock: Arc::clone(&lock), id, since: Instant::now() });
        lock
    }

    fn on_acquired(&mut self, key: Key, answer: Result<Acquired, StoreError>) {
        let Some(InFlight::Acquiring { owner, asked_at, first, others }) = self.keys.remove(&key) else { return };
        match answer {
            Ok(Acquired::Claimed { attempt, took_over }) => {
                self.tell(if took_over { EventKind::Takeover } else { EventKind::Miss }, &key);
                let role = Role::Holding(Holding::granted(owner, first.on_abandoned, asked_at));
                let Begin { fingerprint, reply, permit, .. } = first;
                let lock = self.lock(key, fingerprint, role, others);
                // If the caller has gone, the grant gives itself up.
                reply.send(Ok(Admitted::Granted(Grant::new(lock, attempt, permit))));
            }
            Ok(Acquired::Completed { outcome }) => {
                for call in self.same_request(first, others) {
                    self.tell(EventKind::Hit, &key);
                    call.reply.send(Ok(Admitted::Replay(outcome.clone())));
                }
            }
            Ok(Acquired::InProgress { lease_left }) => {
                let (fingerprint, calls) = (first.fingerprint, self.same_request(first, others));
                let now = Instant::now();
                let (waiting, impatient): (Vec<_>, Vec<_>) =
                    calls.into_iter().partition(|call| call.wait_until.is_some_and(|until| until > now));
                for call in impatient {
                    self.tell(EventKind::Conflict, &key);
                    call.refuse(Error::InProgress { lease_left });
                }
                if !waiting.is_empty() {
                    self.lock(key, fingerprint, Role::Following(Following::new(lease_left)), waiting);
                }
            }
            Ok(Acquired::Mismatch) => {
                // The others that ask the same are as wrong; one that asks for something else may be right.
                let (wrong, others): (Vec<_>, Vec<_>) =
                    others.into_iter().partition(|call| call.fingerprint == first.fingerprint);
                for call in std::iter::once(first).chain(wrong) {
                    self.tell(EventKind::Mismatch, &key);
                    call.refuse(Error::Mismatch);
                }
                others.into_iter().for_each(|call| self.begin(call));
            }
            Ok(Acquired::Indeterminate { attempt }) => {
                let (fingerprint, calls) = (first.fingerprint, self.same_request(first, others));
                if let Some(reconciler) = self.neighbours.shared.settings.reconciler.clone() {
                    let role = Role::Reconciling(Reconciling::new(attempt, reconciler));
                    self.lock(key, fingerprint, role, calls);
                } else {
                    for call in calls {
                        self.tell(EventKind::Indeterminate, &key);
                        call.refuse(Error::Indeterminate { attempt });
                    }
                }
            }
            Err(error) => self.on_acquire_failed(owner, first, others, error),
        }
    }

    /// Turns away the calls that ask for something else than the first, whose answer does not speak of them, and gives
    /// the rest.
    fn same_request(&self, first: Begin, others: Vec<Begin>) -> Vec<Begin> {
        let fingerprint = first.fingerprint;
        let (mut same, different): (Vec<_>, Vec<_>) =
            others.into_iter().partition(|call| call.fingerprint == fingerprint);
        for call in different {
            self.tell(EventKind::Mismatch, &call.key);
            call.refuse(Error::Mismatch);
        }
        same.insert(0, first);
        same
    }

    fn on_acquire_failed(&mut self, owner: Owner, first: Begin, others: Vec<Begin>, error: StoreError) {
        self.tell(EventKind::StoreFailed, &first.key);
        if error.is_unknown() {
            // The claim may stand, for nobody: it is taken back as soon as the store hears of it.
            let role = Role::Holding(Holding::unheard(owner, first.on_abandoned));
            self.lock(first.key.clone(), first.fingerprint, role, Vec::new());
        }
        for call in std::iter::once(first).chain(others) {
            match call.on_store_failure {
                OnStoreFailure::Run if error.is_passing() => {
                    self.tell(EventKind::Unguarded, &call.key);
                    call.reply.send(Ok(Admitted::Unguarded));
                }
                _ => call.refuse(Error::Store(error.clone())),
            }
        }
    }

    /// Wakes the locks whose lease has run for a while. Most keys are settled before a sweep ever meets them, and cost
    /// no timer of their own.
    fn sweep(&mut self) {
        self.in_flight.set(self.keys.len() as f64);
        let old = self.neighbours.shared.settings.lease / 3;
        self.keys.retain(|_, in_flight| match in_flight {
            InFlight::Locked { lock, since, .. } if since.elapsed() >= old => {
                lock.try_send(Tick(Arc::clone(lock))).is_ok()
            }
            _ => true,
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
        if self.keys.is_empty() {
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
            if supervisor.ending && supervisor.keys.is_empty() {
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

/// The store's answer to an acquire.
struct AcquireAnswered {
    key: Key,
    answer: Result<Acquired, StoreError>,
}

impl Message for AcquireAnswered {
    type Result = ();
}

impl Handler<AcquireAnswered> for Supervisor {
    type Result = ();

    fn handle(&mut self, AcquireAnswered { key, answer }: AcquireAnswered, _: &mut Self::Context) {
        self.on_acquired(key, answer);
    }
}

/// A lock's farewell: it answers no more for its key, and these calls are to be begun anew.
pub(crate) struct Retired {
    pub(crate) key: Key,
    pub(crate) id: u64,
    pub(crate) resubmit: Vec<Begin>,
}

impl Message for Retired {
    type Result = ();
}

impl Handler<Retired> for Supervisor {
    type Result = ();

    fn handle(&mut self, Retired { key, id, resubmit }: Retired, _: &mut Self::Context) {
        if let Entry::Occupied(place) = self.keys.entry(key)
            && matches!(place.get(), InFlight::Locked { id: current, .. } if *current == id)
        {
            place.remove();
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
        self.keys.len()
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
        if self.keys.is_empty() {
            ctx.stop();
        }
    }
}

impl fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Supervisor").field("keys", &self.keys.len()).finish_non_exhaustive()
    }
}
