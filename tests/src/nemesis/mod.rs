//! Faults of real processes, servers and connections against two shops on one store, and a checker of what came of it.
//!
//! Clients order and pay, each with a key of its own, and retry until they are answered. Meanwhile the shops are killed and
//! paused past their lease, the server under them is killed and paused, and connections are cut and black-holed. At the end the
//! [`checker`] compares what every client saw with what the shop's ledger holds.
//!
//! - [`stores`]: the store under test, its server, and what can be done to it.
//! - [`proxy`]: the network between the shops and the server.
//! - [`apps`]: the two shops.
//! - [`faults`]: who does what to whom, and when.
//! - [`workload`] and [`history`]: the clients, and what they saw.
//! - [`connections`]: a client's connections to the shops, which it keeps.
//! - [`checker`] and [`report`]: what it means.
//!
//! Operations of several steps have runs of their own: [`checkouts`] in shops that are killed between and inside of steps, and
//! [`stale`] holders, which were paused past their lease.

pub mod apps;
pub mod checker;
pub mod checkouts;
mod checkouts_report;
pub mod connections;
pub mod faults;
pub mod history;
mod ledger;
pub mod proxy;
pub mod report;
pub mod stale;
pub mod stores;
pub mod workload;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use apps::Apps;
use faults::Faults;
use report::Report;
use stores::{Kind, Store};

/// What to do.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// On which store.
    pub store: Kind,
    /// For how long faults strike.
    pub duration: Duration,
    /// What happens when follows from it, as far as real processes follow anything.
    pub seed: u64,
    /// Takes the guard away: every try has a key of its own. Such a run must show doubles.
    pub control: bool,
    /// How many clients work at once.
    pub clients: usize,
}

/// How long a claim holds: short, so that many lapse.
pub const LEASE: Duration = Duration::from_millis(400);
/// How long the shops wait for an answer of their store: what the engine makes of [`LEASE`].
pub const STORE_DEADLINE: Duration = Duration::from_millis(266);
/// How long the clients may still retry when the last fault is over. A key without an answer by then is stuck.
const RECOVERY: Duration = Duration::from_secs(90);

/// Runs a plan.
///
/// # Panics
/// If the store or the shops can't be started, or do not come back.
pub fn run(plan: Plan) -> Report {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::start(plan.store, folder.path()));
    let apps = Arc::new(Apps::open(folder.path(), store.urls(), LEASE));
    let counts = Arc::new(faults::Counts::default());
    let stop = Arc::new(AtomicBool::new(false));

    let began = Instant::now();
    let clients = workload::Clients {
        apps: Arc::clone(&apps),
        counts: Arc::clone(&counts),
        stop: Arc::clone(&stop),
        control: plan.control,
        seed: plan.seed,
        give_up_after: RECOVERY,
    };
    let working = runtime.spawn(clients.work(plan.clients));
    let faults = Faults::begin(plan.seed, &store, &apps, &counts);
    std::thread::sleep(plan.duration);
    // In this order: the clients' last retries meet a world that is whole again.
    faults.end();
    stop.store(true, Ordering::SeqCst);
    let history = runtime.block_on(working).unwrap();
    let worked = began.elapsed();

    let findings = runtime.block_on(checker::check(&history, &apps, plan.store, plan.control));
    Report { plan, worked, history, findings, faults: counts.all(plan.store) }
}
