//! Who does what to whom, and when: one thread for each shop, one for the server, one for the network.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::LEASE;
use super::apps::Apps;
use super::stores::{Kind, Store};

/// What can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL for a shop.
    KillsApp,
    /// SIGSTOP for a shop, until its leases have lapsed.
    PausesApp,
    /// A client's connection, cut before the answer.
    CutsClient,
    /// SIGKILL for the server.
    KillsServer,
    /// SIGSTOP for the server.
    PausesServer,
    /// All connections to the server, cut.
    CutsConnections,
    /// All connections to the server, swallowed.
    BlackHole,
    /// A lock or a pause that stops every write and still lets reads pass, until after the store deadline.
    StallsWrites,
    /// Commits that wait for a standby that is not there. Reads go on, and do not see them.
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

    /// Whether it can strike such a store. SQLite has neither a server nor connections; commits wait for a standby on
    /// PostgreSQL alone.
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

/// How often each has struck.
#[derive(Debug, Default)]
pub struct Counts([AtomicU64; Fault::ALL.len()]);

impl Counts {
    pub(super) fn add(&self, fault: Fault) {
        self.0[fault as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Each that applies to the store, with how often it has struck.
    pub fn all(&self, store: Kind) -> Vec<(Fault, u64)> {
        let applies = Fault::ALL.into_iter().filter(|fault| fault.applies_to(store));
        applies.map(|fault| (fault, self.0[fault as usize].load(Ordering::Relaxed))).collect()
    }
}

/// What one thread does, again and again.
type Strike = Box<dyn FnMut(&mut Beat, &mut StdRng) + Send>;

/// The threads at work.
#[derive(Debug)]
pub struct Faults {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Faults {
    /// Lets them loose.
    pub fn begin(seed: u64, store: &Arc<Store>, apps: &Arc<Apps>, counts: &Arc<Counts>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        let mut thread = |number: u64, mut strike: Strike| {
            let (stop, mut rng) = (Arc::clone(&stop), StdRng::seed_from_u64(seed ^ (number << 32)));
            threads.push(std::thread::spawn(move || {
                let mut beat = Beat::start();
                while !stop.load(Ordering::SeqCst) {
                    strike(&mut beat, &mut rng);
                }
            }));
        };
        for number in 0..2 {
            let (apps, counts) = (Arc::clone(apps), Arc::clone(counts));
            thread(number as u64, Box::new(move |beat, rng| strike_app(beat, rng, &apps, number, &counts)));
        }
        let (of_writes, counted) = (Arc::clone(store), Arc::clone(counts));
        thread(4, Box::new(move |beat, rng| strike_writes(beat, rng, &of_writes, &counted)));
        if store.server.is_some() {
            let (of_server, counted) = (Arc::clone(store), Arc::clone(counts));
            thread(2, Box::new(move |beat, rng| strike_server(beat, rng, &of_server, &counted)));
            let (of_network, counted) = (Arc::clone(store), Arc::clone(counts));
            thread(3, Box::new(move |beat, rng| strike_network(beat, rng, &of_network, &counted)));
        }
        Self { stop, threads }
    }

    /// Ends them; what they struck is whole again when this returns.
    ///
    /// # Panics
    /// If one of them did.
    pub fn end(self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().expect("a fault could not be undone");
        }
    }
}

/// When a thread strikes: every 0.9 s or so, however long the last fault took to undo. Two kinds in turns make some 330
/// of each in ten minutes, and between two faults there is time for operations.
struct Beat(Instant);

impl Beat {
    const EVERY: Range<u64> = 700..1_100;
    /// What struck comes back to work first.
    const LEAST_REST: Range<u64> = 100..300;

    fn start() -> Self {
        Self(Instant::now())
    }

    fn wait(&mut self, rng: &mut StdRng) {
        self.0 = (self.0 + millis(rng, Self::EVERY)).max(Instant::now() + millis(rng, Self::LEAST_REST));
        sleep(self.0.saturating_duration_since(Instant::now()));
    }
}

fn strike_app(beat: &mut Beat, rng: &mut StdRng, apps: &Apps, number: usize, counts: &Counts) {
    beat.wait(rng);
    apps.kill(number);
    counts.add(Fault::KillsApp);
    beat.wait(rng);
    // Past the lease, and past the sweep after it.
    apps.pause(number, LEASE + LEASE / 5 + millis(rng, 0..100));
    counts.add(Fault::PausesApp);
}

fn strike_server(beat: &mut Beat, rng: &mut StdRng, store: &Store, counts: &Counts) {
    let Some(server) = &store.server else { return };
    beat.wait(rng);
    {
        let mut server = server.write();
        server.kill();
        server.restart();
        counts.add(Fault::KillsServer);
    }
    beat.wait(rng);
    let mut server = server.write();
    server.pause();
    sleep(millis(rng, 100..300));
    server.resume();
    counts.add(Fault::PausesServer);
}

/// Past the store deadline of the shops, which is two thirds of their lease: answers are lost, and what was sent is
/// executed after its caller has been answered.
fn strike_writes(beat: &mut Beat, rng: &mut StdRng, store: &Store, counts: &Counts) {
    beat.wait(rng);
    // The server may be down: then nothing is stalled, and nothing counts.
    if store.stall_writes(LEASE + millis(rng, 0..300)) {
        counts.add(Fault::StallsWrites);
    }
    if Fault::StallsCommits.applies_to(store.kind()) {
        beat.wait(rng);
        if store.stall_commits(LEASE + millis(rng, 0..300)) {
            counts.add(Fault::StallsCommits);
        }
    }
}

fn strike_network(beat: &mut Beat, rng: &mut StdRng, store: &Store, counts: &Counts) {
    let Some(proxy) = &store.proxy else { return };
    beat.wait(rng);
    // Only what struck something counts. While the server comes back there is nothing to cut: soon there is.
    for _ in 0..100 {
        if proxy.cut() > 0 {
            counts.add(Fault::CutsConnections);
            break;
        }
        sleep(Duration::from_millis(10));
    }
    beat.wait(rng);
    proxy.begin_black_hole();
    sleep(millis(rng, 100..300));
    if proxy.end_black_hole(rng.random_bool(0.5)) > 0 {
        counts.add(Fault::BlackHole);
    }
}

fn millis(rng: &mut StdRng, range: Range<u64>) -> Duration {
    Duration::from_millis(rng.random_range(range))
}
