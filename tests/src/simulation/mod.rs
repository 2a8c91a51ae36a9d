//! The real engine in a simulated world: its actors run on a virtual clock, the store loses and delays messages, and
//! processes crash and pause. One seed decides everything.
//!
//! A run has three parts. In the first, everything goes wrong that can, while clients make calls. Then the faults end,
//! the last late messages arrive, and everything in flight finishes. By then, whatever a living process knows about a
//! key must have reached the store. Finally every key is called once more: it must have exactly one outcome, and none
//! may be stuck. The [world](World) keeps what really happened, and compares.
//!
//! Some operations never return. The run limit ends their claims, and nothing waits for them at the end.
//!
//! In every fourth world processes live and the store answers; only claims go astray. In such a world, an operation
//! that may be rerun never runs twice at the same time.

mod chaos;
mod checkouts;
mod clients;
mod store;
mod value;
mod world;

pub use clients::call;
pub use store::SimulatedStore;
pub use value::Value;
pub use world::{Fault, Life, Mode, Sabotage, Shared, World};

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use oncekey::{AbandonedClaim, Engine, OnAbandoned};

/// The lease of a simulated process. The faults take longer than the lease, and so may an answer.
pub const LEASE: Duration = Duration::from_millis(600);
/// The seed picks one of these: with one, an answer can outlast the lease; with the other, a request can outlast its
/// sender.
const STORE_DEADLINES: [Duration; 2] = [Duration::from_millis(400), Duration::from_millis(550)];
/// The limits are short, so that operations pass them while things go wrong. In a calm world only an operation that
/// never returns passes its limit.
const RUN_LIMITS: [Duration; 2] = [Duration::from_secs(3), Duration::from_secs(8)];
const SETTLING_LIMIT: Duration = Duration::from_millis(1_500);
const CHAOS: Duration = Duration::from_secs(6);
/// The maximum time that a message is in transit.
const LATEST: Duration = Duration::from_secs(180);
/// The maximum time after which a busy caller learns of its grant. It learns of it only after its lease is over.
const BUSIEST: Duration = Duration::from_millis(2_500);
const PROCESSES: usize = 3;
const KEYS: usize = 16;
const CLIENTS: usize = 5;

/// The result of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The seed that it came from.
    pub seed: u64,
    /// A digest of all events, in order.
    pub trace: u64,
    /// The number of events.
    pub events: u64,
    /// The number of calls that clients made.
    pub calls: u64,
    /// The number of calls that ended with an outcome.
    pub answered: u64,
    /// The number of effects, over all keys.
    pub effects: u64,
    /// The number of faults that struck, by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// The promises that did not hold.
    pub violations: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, trace, events, calls, answered, effects, faults, violations } = self;
        write!(
            f,
            "seed {seed}: trace {trace:016x}, {events} events, {calls} calls, {answered} answered, {effects} effects, {faults:?}"
        )?;
        violations.iter().try_for_each(|violation| write!(f, "\n    BROKEN: {violation}"))
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

/// Runs one seed.
pub fn run(seed: u64, sabotage: Option<Sabotage>) -> Report {
    oncekey::simulation::seed(seed);
    actix_rt::System::with_tokio_rt(runtime).block_on(async move {
        let world = World::shared(seed, sabotage);
        let processes: Vec<_> = (0..PROCESSES).map(|number| Process::start(&world, number)).collect();
        let processes = Arc::new(std::sync::Mutex::new(processes));
        let clients: Vec<_> =
            (0..CLIENTS).map(|_| actix_rt::spawn(clients::call_around(world.clone(), processes.clone()))).collect();
        let chaos = actix_rt::spawn(chaos::strike(world.clone(), processes.clone()));
        chaos.await.unwrap();
        for client in clients {
            client.await.unwrap();
        }
        world.heal();
        tokio::time::sleep(LATEST + SETTLING_LIMIT + 4 * LEASE).await;
        world.with(World::compares_what_is_known);
        clients::settle_all(&world, &processes).await;
        world.report(seed)
    })
}

/// Runs a test's own actions in a world, on the same virtual clock.
pub fn on_virtual_time<T>(seed: u64, act: impl AsyncFnOnce(Shared) -> T) -> T {
    oncekey::simulation::seed(seed);
    actix_rt::System::with_tokio_rt(runtime).block_on(async move { act(World::shared(seed, None)).await })
}

/// A simulated process in its current life.
#[derive(Debug, Clone)]
pub struct Process {
    /// Its engine.
    pub engine: Engine,
    /// What its store knows about it.
    pub life: Arc<Life>,
}

impl Process {
    /// Starts a process.
    pub fn start(world: &Shared, number: usize) -> Self {
        let life = world.is_born(number);
        let asked = world.clone();
        let engine = Engine::builder(SimulatedStore::new(world.clone(), life.clone()))
            .lease(LEASE)
            .store_deadline(STORE_DEADLINES[world.deadline()])
            .settling_limit(SETTLING_LIMIT)
            .run_limit(world.run_limit())
            .retention(Duration::from_secs(24 * 60 * 60))
            .on_abandoned(OnAbandoned::Hold)
            .reconciler(move |abandoned: AbandonedClaim| {
                let world = asked.clone();
                async move {
                    tokio::time::sleep(world.up_to(100)).await;
                    world.verdict(&abandoned)
                }
            })
            .start()
            .unwrap();
        Self { engine, life }
    }
}

const MODES: [Mode; 4] = [Mode::Hold, Mode::Transaction, Mode::Rerun, Mode::Steps];

/// Returns all keys, each with its mode.
pub fn keys() -> Vec<(oncekey::Key, Mode)> {
    (0..KEYS).map(|number| (oncekey::Key::new("simulation", number).unwrap(), MODES[number % MODES.len()])).collect()
}
