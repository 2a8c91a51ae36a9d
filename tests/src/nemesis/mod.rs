//! Faults of real processes, servers and connections against two shops on one store, and a checker of the results.
//!
//! Clients order and pay, each with its own key, and retry until they get an answer. In the meantime faults kill the
//! shops, pause them past their lease, kill and pause the server, and cut and black-hole connections. At the end the
//! [`checker`] compares what every client saw with the shop's ledger.
//!
//! - [`stores`]: the store under test, its server, and the faults that it offers.
//! - [`proxy`]: the network between the shops and the server.
//! - [`apps`]: the two shops.
//! - [`faults`]: what strikes which part, and when.
//! - [`workload`] and [`history`]: the clients, and what they saw.
//! - [`connections`]: a client's connections to the shops, which it keeps.
//! - [`checker`] and [`report`]: the evaluation.
//!
//! Operations of several steps have separate runs: [`checkouts`] in shops that are killed between and inside steps, and
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

/// The plan of a run.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// The store.
    pub store: Kind,
    /// How long faults strike.
    pub duration: Duration,
    /// The seed of the run. It determines what happens when, as far as real processes allow.
    pub seed: u64,
    /// Removes the guard: every attempt has its own key. Such a run must show doubles.
    pub control: bool,
    /// How many clients run at once.
    pub clients: usize,
}

/// The lease of a claim. It is short, so that many lapse.
pub const LEASE: Duration = Duration::from_millis(400);
/// How long the shops wait for their store's answer. The engine derives it from [`LEASE`].
pub const STORE_DEADLINE: Duration = Duration::from_millis(266);
/// How long the clients may still retry after the last fault. A key without an answer by then is stuck.
const RECOVERY: Duration = Duration::from_secs(90);

/// Runs a plan.
///
/// # Panics
/// If the store or the shops cannot be started, or do not come back.
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
    // The faults end first, so that everything works again when the clients make their last retries.
    faults.end();
    stop.store(true, Ordering::SeqCst);
    let history = runtime.block_on(working).unwrap();
    let worked = began.elapsed();

    let findings = runtime.block_on(checker::check(&history, &apps, plan.store, plan.control));
    Report { plan, worked, history, findings, faults: counts.all(plan.store) }
}
