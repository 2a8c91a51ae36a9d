//! The faults: one thread for the shops, one for the server, one for the network, and one for each kind of stall.
//!
//! Faults come in rounds of less than two seconds, which makes more than 300 of each kind in ten minutes. In each round
//! all threads begin at about the same moment, so that faults overlap. The rest of the round is for operations.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::apps::Apps;
use super::proxy::Proxy;
use super::stores::{Kind, Store};
use super::{LEASE, STORE_DEADLINE};

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Kills a shop with SIGKILL.
    KillsApp,
    /// Pauses a shop with SIGSTOP, until its leases have lapsed.
    PausesApp,
    /// Cuts a client's connection before the answer.
    CutsClient,
    /// Kills the server with SIGKILL.
    KillsServer,
    /// Pauses the server with SIGSTOP.
    PausesServer,
    /// Cuts all connections of a shop to the server.
    CutsConnections,
    /// Swallows everything on all connections of a shop to the server.
    BlackHole,
    /// Stops every write, by a lock or a pause, but lets reads pass, until after the store deadline.
    StallsWrites,
    /// Makes commits wait for a standby that is not there. Reads continue, and do not see the commits.
    StallsCommits,
}

impl Fault {
    const ALL: [Self; 9] = [
        Self::KillsApp,
        Self::PausesApp,
        Self::CutsClient,
        Self::KillsServer,
        Self::PausesServer,
        Self::CutsConnections,
        Self::BlackHole,
        Self::StallsWrites,
        Self::StallsCommits,
    ];

    /// Returns whether the fault can strike such a store. SQLite has neither a server nor connections, and only
    /// PostgreSQL's commits wait for a standby.
    pub fn applies_to(self, store: Kind) -> bool {
        match self {
            Self::KillsApp | Self::PausesApp | Self::CutsClient | Self::StallsWrites => true,
            Self::StallsCommits => store == Kind::Postgres,
            Self::KillsServer | Self::PausesServer | Self::CutsConnections | Self::BlackHole => store.has_server(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::KillsApp => "kill -9 of a shop",
            Self::PausesApp => "SIGSTOP of a shop past its lease",
            Self::CutsClient => "client's connection cut",
            Self::KillsServer => "kill -9 of the server",
            Self::PausesServer => "SIGSTOP of the server",
            Self::CutsConnections => "connections to the server cut",
            Self::BlackHole => "connections to the server black-holed",
            Self::StallsWrites => "writes stalled, reads go on",
            Self::StallsCommits => "commits wait for an absent standby",
        })
    }
}

/// How often each fault has struck.
#[derive(Debug, Default)]
pub struct Counts([AtomicU64; Fault::ALL.len()]);

impl Counts {
    pub(super) fn add(&self, fault: Fault) {
        self.0[fault as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Returns each fault that applies to the store, with how often it has struck.
    pub fn all(&self, store: Kind) -> Vec<(Fault, u64)> {
        let applies = Fault::ALL.into_iter().filter(|fault| fault.applies_to(store));
        applies.map(|fault| (fault, self.0[fault as usize].load(Ordering::Relaxed))).collect()
    }
}

/// What one thread does in each round.
type Strike = Box<dyn FnMut(Round, &mut StdRng) + Send>;

/// The running threads.
#[derive(Debug)]
pub struct Faults {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Faults {
    /// Starts the faults.
    pub fn begin(seed: u64, store: &Arc<Store>, apps: &Arc<Apps>, counts: &Arc<Counts>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        let mut thread = |number: u64, mut strike: Strike| {
            let (stop, mut rng) = (Arc::clone(&stop), StdRng::seed_from_u64(seed ^ (number << 32)));
            threads.push(std::thread::spawn(move || {
                let mut rounds = Rounds::start();
                while !stop.load(Ordering::SeqCst) {
                    strike(rounds.next(&mut rng), &mut rng);
                }
            }));
        };
        let (apps, counted) = (Arc::clone(apps), Arc::clone(counts));
        thread(0, Box::new(move |round, rng| strike_app(round, rng, &apps, &counted)));
        for (fault, number) in [(Fault::StallsWrites, 4), (Fault::StallsCommits, 5)] {
            if fault.applies_to(store.kind()) {
                let (store, counts) = (Arc::clone(store), Arc::clone(counts));
                thread(number, Box::new(move |_, rng| strike_with_stall(rng, fault, &store, &counts)));
            }
        }
        if store.kind().has_server() {
            let (of_server, counted) = (Arc::clone(store), Arc::clone(counts));
            thread(2, Box::new(move |_, rng| strike_server(rng, &of_server, &counted)));
            let (of_network, counted) = (Arc::clone(store), Arc::clone(counts));
            thread(3, Box::new(move |round, rng| strike_network(round, rng, &of_network, &counted)));
        }
        Self { stop, threads }
    }

    /// Ends the faults. When this returns, everything works again.
    ///
    /// # Panics
    /// If one of the threads panicked.
    pub fn end(self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().expect("a fault could not be undone");
        }
    }
}

/// The number of a round.
type Round = u64;

/// When a thread strikes. All threads count the same rounds.
struct Rounds {
    number: Round,
    began: Instant,
}

impl Rounds {
    /// This makes 315 rounds in ten minutes.
    const EVERY: Duration = Duration::from_millis(1_900);
    /// How far apart the threads of one round begin, in milliseconds.
    const SPREAD: Range<u64> = 0..150;
    /// The minimum pause between two rounds of one thread, in milliseconds, so that its victim works again.
    const LEAST_REST: Range<u64> = 100..300;

    fn start() -> Self {
        Self { number: 0, began: Instant::now() }
    }

    /// Waits for the next round. A thread whose last fault took longer to undo than the round is late, and catches up.
    fn next(&mut self, rng: &mut StdRng) -> Round {
        self.number += 1;
        let begins = self.began + Self::EVERY * self.number as u32 + millis(rng, Self::SPREAD);
        let rested = Instant::now() + millis(rng, Self::LEAST_REST);
        sleep(begins.max(rested).saturating_duration_since(Instant::now()));
        self.number
    }
}

/// Waits between two faults of one thread in one round.
fn rest(rng: &mut StdRng) {
    sleep(millis(rng, 20..120));
}

/// Returns the shop that a round strikes. The other shop continues to work, and may take over.
fn victim(round: Round) -> usize {
    usize::from(round.is_multiple_of(2))
}

fn strike_app(round: Round, rng: &mut StdRng, apps: &Apps, counts: &Counts) {
    apps.kill(victim(round));
    counts.add(Fault::KillsApp);
    rest(rng);
    // The pause outlasts the lease, and the sweep after it.
    apps.pause(victim(round), LEASE + LEASE / 5 + millis(rng, 0..100));
    counts.add(Fault::PausesApp);
}

/// Strikes the server. A pause may overlap with a stall of writes, but a kill and a stall wait for each other.
fn strike_server(rng: &mut StdRng, store: &Store, counts: &Counts) {
    let kills = || {
        store.kill_server();
        counts.add(Fault::KillsServer);
    };
    let pauses = |rng: &mut StdRng| {
        for _ in 0..TRIED {
            let time = millis(rng, 100..300);
            if store.strikes(|| store.pause_server(time)) {
                return counts.add(Fault::PausesServer);
            }
            rest(rng);
        }
    };
    if rng.random_bool(0.5) {
        kills();
        rest(rng);
        pauses(rng);
    } else {
        pauses(rng);
        rest(rng);
        kills();
    }
}

/// Returns a time past the shops' store deadline: answers are lost, and requests are executed after their callers were
/// answered. Every fourth time it is past the lease too, so that claims lapse.
fn stall(rng: &mut StdRng) -> Duration {
    if rng.random_bool(0.25) { LEASE + millis(rng, 0..150) } else { STORE_DEADLINE + millis(rng, 40..120) }
}

fn strike_with_stall(rng: &mut StdRng, fault: Fault, store: &Store, counts: &Counts) {
    // If the server is down or nothing writes to it, nothing is stalled and nothing counts. The fault tries again.
    for _ in 0..TRIED {
        let time = stall(rng);
        let stalls =
            || if fault == Fault::StallsCommits { store.stall_commits(time) } else { store.stall_writes(time) };
        if store.strikes(stalls) {
            return counts.add(fault);
        }
        rest(rng);
    }
}

/// How often a fault without effect is tried in one round.
const TRIED: usize = 3;

/// Strikes mostly one shop's network, and sometimes both.
fn strike_network(round: Round, rng: &mut StdRng, store: &Store, counts: &Counts) {
    let struck = if rng.random_bool(0.25) { 0..2 } else { victim(round)..victim(round) + 1 };
    let networks = &store.networks()[struck];
    // Only cuts that struck a connection count. While the server restarts there is nothing to cut yet.
    for _ in 0..100 {
        if networks.iter().map(Proxy::cut).sum::<usize>() > 0 {
            counts.add(Fault::CutsConnections);
            break;
        }
        sleep(Duration::from_millis(10));
    }
    rest(rng);
    for _ in 0..TRIED {
        networks.iter().for_each(Proxy::begin_black_hole);
        sleep(millis(rng, 100..300));
        let and_cut = rng.random_bool(0.5);
        if networks.iter().map(|network| network.end_black_hole(and_cut)).sum::<u64>() > 0 {
            return counts.add(Fault::BlackHole);
        }
        rest(rng);
    }
}

fn millis(rng: &mut StdRng, range: Range<u64>) -> Duration {
    Duration::from_millis(rng.random_range(range))
}
