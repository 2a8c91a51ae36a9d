//! An engine's presence on one arbiter, and how a caller finds the right one.
//!
//! An arbiter is a node: its callers talk to its own supervisor, and no message crosses threads. Callers that are not
//! on an arbiter (on a plain tokio runtime or a plain thread) share one *home*, an arbiter thread that the engine owns
//! and starts at the first such call.

use std::cell::RefCell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use actix::prelude::*;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::error;

use crate::backend::{Backend, BackendActor, Persist, Reply, Request, StoreError};
use crate::bridge::Bridge;
use crate::permit::Permit;
use crate::scopes::Scopes;
use crate::shared::Shared;
use crate::supervisor::{Drain, End, Supervisor};
use crate::{Error, Key, detach};

/// Names the limit of all calls on an arbiter. Unlike the limit of a scope or a key, it concerns every caller.
pub(crate) const ALL_CALLS: &str = "calls on this arbiter";

/// One supervisor and one backend actor, on one arbiter.
pub(crate) struct Node {
    pub(crate) shared: Arc<Shared>,
    pub(crate) supervisor: Arc<Addr<Supervisor>>,
    store: Recipient<Persist>,
    /// The arbiter's runtime, on which operations continue after their caller has left.
    pub(crate) runtime: Handle,
    taken: Arc<AtomicUsize>,
    limit: usize,
    scopes: Option<Arc<Scopes>>,
    in_flight: Arc<AtomicUsize>,
}

impl Node {
    /// Starts a node on the current arbiter.
    fn start<B: Backend>(shared: &Arc<Shared>, backend: &B) -> Arc<Self> {
        let (session, at_rest) = (backend.session(), &shared.settings.at_rest);
        let store = if at_rest.is_on() {
            BackendActor::new(at_rest.protect(session), Arc::clone(shared)).launch()
        } else {
            BackendActor::new(session, Arc::clone(shared)).launch()
        };
        let in_flight = Arc::<AtomicUsize>::default();
        let node = Arc::new(Self {
            shared: Arc::clone(shared),
            supervisor: Supervisor::start(Arc::clone(shared), store.clone(), Arc::clone(&in_flight)),
            store,
            runtime: Handle::current(),
            taken: Arc::default(),
            limit: shared.settings.max_calls_per_arbiter,
            scopes: shared.settings.max_calls_per_scope.map(Scopes::new),
            in_flight,
        });
        detach::start_on_this_thread();
        node
    }

    /// Returns how many keys were in flight at the supervisor's last sweep.
    pub(crate) fn in_flight_at_last_sweep(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Admits a call, before any message is sent for it.
    pub(crate) fn admit(&self, key: &Key) -> Result<Permit, Error> {
        // The scope's limit comes first, so that a tenant over its limit takes nothing from the shared limit.
        let share = self.scopes.as_ref().map(|scopes| scopes.admit(key)).transpose()?;
        Permit::take(&self.taken, self.limit, share).ok_or(Error::Overloaded { what: ALL_CALLS, limit: self.limit })
    }

    /// Sends one message to the store and waits for its answer.
    pub(crate) async fn ask_store<T: Send + 'static>(
        &self,
        request: impl FnOnce(Reply<T>) -> Request,
    ) -> Result<T, StoreError> {
        self.persist(|reply| Persist::Step(request(reply))).await
    }

    pub(crate) async fn persist<T: Send + 'static>(
        &self,
        message: impl FnOnce(Reply<T>) -> Persist,
    ) -> Result<T, StoreError> {
        let (sender, receiver) = oneshot::channel();
        let message = message(Reply::new(move |answer| drop(sender.send(answer))));
        self.store.try_send(message).map_err(|_| StoreError::unavailable("its arbiter has stopped"))?;
        receiver.await.unwrap_or_else(|_| Err(StoreError::unknown("its arbiter has stopped")))
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("taken", &self.taken).finish_non_exhaustive()
    }
}

thread_local! {
    /// The nodes of this arbiter, by engine: a handful at most.
    static NODES: RefCell<Vec<(u64, Arc<Node>)>> = const { RefCell::new(Vec::new()) };
}

type StartNode = Arc<dyn Fn(&Arc<Shared>) -> Arc<Node> + Send + Sync>;

/// All nodes of one engine. Dropped with the engine's last handle.
pub(crate) struct Nodes {
    engine_id: u64,
    shared: Arc<Shared>,
    start: StartNode,
    home: Mutex<Option<Home>>,
    /// The nodes of all arbiters of the process. Locked only when an arbiter joins, or when all are asked.
    all: Arc<Mutex<Vec<Weak<Node>>>>,
}

/// The most calls of plain threads that may wait for the home arbiter. The channel is allocated at its full size.
const BRIDGE_DEPTH: usize = 10_000;

struct Home {
    node: Arc<Node>,
    bridge: Bridge,
    /// Dropping it tells the thread to end.
    _stop: oneshot::Sender<()>,
}

impl Nodes {
    pub(crate) fn new<B: Backend>(shared: Arc<Shared>, backend: B) -> Self {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        let all = Arc::<Mutex<Vec<Weak<Node>>>>::default();
        let joined = Arc::clone(&all);
        let start = move |shared: &Arc<Shared>| {
            let node = Node::start(shared, &backend);
            let mut nodes = joined.lock();
            nodes.retain(|node| node.strong_count() > 0);
            nodes.push(Arc::downgrade(&node));
            node
        };
        Self {
            engine_id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            shared,
            start: Arc::new(start),
            home: Mutex::new(None),
            all,
        }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(crate) fn all(&self) -> Vec<Arc<Node>> {
        self.all.lock().iter().filter_map(Weak::upgrade).collect()
    }

    /// Returns the node that serves the current thread.
    pub(crate) fn current(&self) -> Result<Arc<Node>, Error> {
        if let Some(node) = self.here() {
            return Ok(node);
        }
        if actix_rt::Arbiter::try_current().is_some() {
            // Actors can't start where an arbiter's thread runs another runtime, outside the arbiter's task set. Tokio
            // reports that only by a panic.
            if let Ok(node) = catch_unwind(AssertUnwindSafe(|| self.start_here())) {
                return Ok(node);
            }
        }
        self.home().map(|(node, _)| node)
    }

    /// Returns the node of this arbiter, and starts it if needed. The current thread must be inside a `LocalSet`, like
    /// every arbiter and every actix-web worker.
    #[cfg(feature = "web")]
    pub(crate) fn attach(&self) -> Arc<Node> {
        self.here().unwrap_or_else(|| self.start_here())
    }

    fn here(&self) -> Option<Arc<Node>> {
        let found = |nodes: &RefCell<Vec<(u64, Arc<Node>)>>| {
            let nodes = nodes.borrow();
            let (_, node) = nodes.iter().find(|(id, _)| *id == self.engine_id)?;
            // A supervisor that has ended in a panic is replaced.
            node.supervisor.connected().then(|| Arc::clone(node))
        };
        NODES.try_with(found).ok().flatten()
    }

    fn start_here(&self) -> Arc<Node> {
        let node = (self.start)(&self.shared);
        NODES.with_borrow_mut(|nodes| {
            nodes.retain(|(id, node)| *id != self.engine_id && node.supervisor.connected());
            nodes.push((self.engine_id, Arc::clone(&node)));
        });
        node
    }

    /// Returns the node for threads that are not arbiters, and the bridge for those that block.
    pub(crate) fn home(&self) -> Result<(Arc<Node>, Bridge), Error> {
        let mut home = self.home.lock();
        if let Some(Home { node, bridge, .. }) = &*home
            && node.supervisor.connected()
        {
            return Ok((Arc::clone(node), bridge.clone()));
        }
        let started = self.start_home()?;
        let found = (Arc::clone(&started.node), started.bridge.clone());
        *home = Some(started);
        Ok(found)
    }

    fn start_home(&self) -> Result<Home, Error> {
        let (ready, started) = crossbeam_channel::bounded(1);
        let (stop, stopped) = oneshot::channel::<()>();
        let (start, shared) = (Arc::clone(&self.start), Arc::clone(&self.shared));
        let thread = std::thread::Builder::new().name("oncekey-home".to_owned()).spawn(move || {
            actix_rt::System::new().block_on(async move {
                let node = start(&shared);
                let bridge = Bridge::start(
                    Arc::clone(&node.supervisor),
                    shared.settings.max_calls_per_arbiter.min(BRIDGE_DEPTH),
                );
                let supervisor = Arc::clone(&node.supervisor);
                if ready.send((node, bridge)).is_err() {
                    return;
                }
                // The engine has ended, whether the sender sent a value or was dropped.
                let _ = stopped.await;
                let (drained, all_settled) = oneshot::channel();
                if supervisor.try_send(Drain(drained)).is_ok() {
                    let _ = timeout(shared.settings.settling_limit, all_settled).await;
                }
            });
        });
        if let Err(error) = thread {
            error!(%error, "the thread for callers that are on no arbiter can't be started");
            return Err(Error::Stopped);
        }
        let (node, bridge) = started.recv().map_err(|_| Error::Stopped)?;
        Ok(Home { node, bridge, _stop: stop })
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        self.shared.close();
        for node in self.all() {
            // A node whose supervisor is gone needs no message.
            let _ = node.supervisor.try_send(End);
        }
    }
}

impl fmt::Debug for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nodes").field("shared", &self.shared).finish_non_exhaustive()
    }
}
