//! The real engine in a simulated world: its actors on a virtual clock, a store that loses and delays, processes that
//! crash and pause, all decided by one seed.
//!
//! A run has three parts. In the first everything goes wrong that can, while clients call. Then the faults end, the last
//! late messages arrive, and what was under way comes to its end: what a process that lives knows of a key must have reached
//! the store by then. At last every key is called once more: it must have exactly one outcome, and none may
//! be stuck. The [world](World) holds what really happened, and compares.
//!
//! Some operations never return. The run limit ends their claims, and nobody waits for them at the end.
//!
//! In every fourth world processes live and the store answers; only claims go astray. There an operation that may be rerun
//! never runs twice at once.

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

use oncekey::{Abandoned, Engine, OnAbandoned};

/// What a simulated process is set up with. The faults take longer than the lease, and so may an answer.
pub const LEASE: Duration = Duration::from_millis(600);
/// One or the other, by the seed: an answer that outlasts the lease, or a request that outlasts its sender.
const STORE_DEADLINES: [Duration; 2] = [Duration::from_millis(400), Duration::from_millis(550)];
/// Short, so that operations pass it while things go wrong. In a calm world none does but one that never returns.
const RUN_LIMITS: [Duration; 2] = [Duration::from_secs(3), Duration::from_secs(8)];
const SETTLING_LIMIT: Duration = Duration::from_millis(1_500);
const CHAOS: Duration = Duration::from_secs(6);
/// No message is on its way for longer.
const LATEST: Duration = Duration::from_secs(180);
/// A caller that is busy hears of its grant within this time, and not before its lease is over.
const BUSIEST: Duration = Duration::from_millis(2_500);
const PROCESSES: usize = 3;
const KEYS: usize = 16;
const CLIENTS: usize = 5;

/// How a run went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The seed that it came from.
    pub seed: u64,
    /// A digest of all that happened, in its order.
    pub trace: u64,
    /// How many things happened.
    pub events: u64,
    /// Calls that clients made, and how many got an outcome.
    pub calls: u64,
    /// Calls that ended with an outcome.
    pub answered: u64,
    /// Effects, over all keys.
    pub effects: u64,
    /// Faults that struck, by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// What was promised and did not hold.
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

/// Runs what a test does itself in a world, on the same virtual clock.
pub fn on_virtual_time<T>(seed: u64, act: impl AsyncFnOnce(Shared) -> T) -> T {
    oncekey::simulation::seed(seed);
    actix_rt::System::with_tokio_rt(runtime).block_on(async move { act(World::shared(seed, None)).await })
}

/// A simulated process, in its present life.
#[derive(Debug, Clone)]
pub struct Process {
    /// Its engine.
    pub engine: Engine,
    /// What its store knows of it.
    pub life: Arc<Life>,
}

impl Process {
    /// Starts one.
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
            .reconciler(move |abandoned: Abandoned| {
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

/// All keys, each with what is done under it.
pub fn keys() -> Vec<(oncekey::Key, Mode)> {
    (0..KEYS).map(|number| (oncekey::Key::new("simulation", number).unwrap(), MODES[number % MODES.len()])).collect()
}
