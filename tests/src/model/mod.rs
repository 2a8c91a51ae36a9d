//! A model of the record's life, explored state by state.
//!
//! Processes call, work, crash and pause; their messages are lost, repeated and late; time passes. The store's steps are
//! not a description of the product's: they **are** [`oncekey::record::transition`], so that model and product can't
//! drift apart. What the promises need to know beside the record (whose claim stands, how often an effect happened) is
//! kept by a ghost that the steps never see.
//!
//! Time counts in ticks relative to now, so that the states are finitely many. What is bounded is said by [`Bounds`].
//!
//! A barrier stands for minutes and a tick is half a day. What the barrier relies on is that no message is on its way for
//! longer than it stands. So the model turns this around: a tick ends a barrier only when no acquire of a withdrawn owner is
//! on its way to the key any more, and until then time may pass behind it. See [`State::lifts_barriers`].

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

/// What a key's operations are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mode {
    /// An outside effect, at most once.
    Hold,
    /// An outside effect that may be rerun, at least once.
    Rerun,
    /// An effect in the transaction that stores the outcome, exactly once.
    Transaction,
}

/// How far the model is explored.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// How many processes.
    pub processes: u8,
    /// The keys, by what is done under them.
    pub keys: &'static [Mode],
    /// How many calls the processes make, taken together.
    pub calls: u8,
    /// How many faults strike: crashes, lost or repeated requests, answers that are lost or not heard in time.
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
    /// The protocol as it is.
    pub fn new(bounds: Bounds) -> Self {
        Self::mutated(bounds, None)
    }

    /// The protocol with an error planted.
    pub fn mutated(bounds: Bounds, mutation: Option<Mutation>) -> Self {
        Self { bounds, store: Store::new(bounds.keys, mutation), seen: [const { AtomicU64::new(0) }; _] }
    }

    fn note(&self, transition: Transition) {
        self.seen[transition as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How often each transition was taken.
    pub fn seen(&self) -> impl Iterator<Item = (Transition, u64)> {
        Transition::ALL
            .into_iter()
            .map(|transition| (transition, self.seen[transition as usize].load(Ordering::Relaxed)))
    }
}
