//! A model of the record's life, explored state by state.
//!
//! Processes make calls, work, crash and pause. Their messages are lost, repeated and late, and time passes. The model
//! does not imitate the product's store steps: it calls [`oncekey::record::transition`] itself, so model and product
//! cannot drift apart. A ghost, which the steps never see, keeps what the promises need beside the record: whose claim
//! is valid, and how often an effect happened.
//!
//! Time counts in ticks relative to now, so the number of states is finite. [`Bounds`] lists what is bounded.
//!
//! A barrier stands for minutes, and a tick is half a day. The barrier relies on no message being in transit for longer
//! than it stands. The model turns this around: a tick ends a barrier only when no acquire of a withdrawn owner is in
//! transit to the key any more. Until then time may pass behind the barrier. See [`State::lifts_barriers`].

mod action;
mod explored;
mod ghost;
mod mutation;
mod properties;
mod state;
mod store;
mod transitions;

pub use action::{Action, Who};
pub use explored::{Explored, explore};
pub use ghost::{Broken, Ghost, Owners};
pub use mutation::Mutation;
pub use state::{Ask, Confirm, Job, Name, Phase, Process, State, Wire};
pub use store::{KEPT, LEASE, Life, RETENTION, Store, Stored};
pub use transitions::Transition;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// What the operations of a key do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mode {
    /// An external effect, at most once.
    Hold,
    /// An external effect that may be rerun, at least once.
    Rerun,
    /// An effect in the transaction that stores the outcome, exactly once.
    Transaction,
}

/// How far the model is explored.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// The number of processes.
    pub processes: u8,
    /// The keys, by the mode of their operations.
    pub keys: &'static [Mode],
    /// The total number of calls that the processes make.
    pub calls: u8,
    /// The number of faults: crashes, lost or repeated requests, and answers that are lost or too late.
    pub faults: u8,
}

impl fmt::Display for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { processes, keys, calls, faults } = self;
        write!(f, "{processes} processes, keys {keys:?}, {calls} calls, {faults} faults")
    }
}

/// The model: the protocol, or one of its mutations.
#[derive(Debug)]
pub struct Protocol {
    bounds: Bounds,
    store: Store,
    seen: [AtomicU64; Transition::ALL.len()],
}

impl Protocol {
    /// Returns the protocol without mutations.
    pub fn new(bounds: Bounds) -> Self {
        Self::mutated(bounds, None)
    }

    /// Returns the protocol with a planted bug.
    pub fn mutated(bounds: Bounds, mutation: Option<Mutation>) -> Self {
        Self { bounds, store: Store::new(bounds.keys, mutation), seen: [const { AtomicU64::new(0) }; _] }
    }

    fn note(&self, transition: Transition) {
        self.seen[transition as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Returns how often each transition was taken.
    pub fn seen(&self) -> impl Iterator<Item = (Transition, u64)> {
        Transition::ALL
            .into_iter()
            .map(|transition| (transition, self.seen[transition as usize].load(Ordering::Relaxed)))
    }
}
