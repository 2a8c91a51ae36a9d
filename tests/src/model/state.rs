//! The state of the whole: the store, the processes, and the messages between them.

use super::{Ghost, Stored};

/// All that there is at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    /// What the store keeps, by key.
    pub records: Vec<Option<Stored>>,
    /// What is true of each key, whatever the store says.
    pub ghosts: Vec<Ghost>,
    /// Who calls.
    pub processes: Vec<Process>,
    /// Requests on their way to the store, in an order without meaning: any may be taken next.
    pub wire: Vec<Wire>,
    /// Calls made so far.
    pub calls: u8,
    /// Faults that struck so far.
    pub faults: u8,
}

/// One process: what it is doing, if anything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Process {
    /// The call that it works on.
    pub job: Option<Job>,
}

/// A call on its way through the engine.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Job {
    /// Its key, as a place among the keys.
    pub key: u8,
    /// Its owner: each call has one of its own.
    pub owner: u8,
    /// How far it is.
    pub phase: Phase,
    /// What the store has answered and the process has not heard yet.
    pub answer: Option<Heard>,
}

/// How far a call is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// It has asked for its key.
    Asking,
    /// It has its claim, and has had its effect or not.
    Working {
        /// Whether the effect has happened.
        did: bool,
    },
    /// It has asked the store to end its claim.
    Settling(Ask),
}

/// A process's request to the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Wire {
    /// What is asked.
    pub ask: Ask,
    /// Of which key.
    pub key: u8,
    /// By whom.
    pub owner: u8,
}

/// What a process asks of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Ask {
    /// See [`oncekey::backend::Acquire`].
    Acquire,
    /// See [`oncekey::backend::Renew`].
    Renew,
    /// See [`oncekey::backend::Complete`].
    Complete,
    /// See [`oncekey::backend::CompleteInTransaction`].
    Transact,
    /// The transaction that is only rolled back, to learn whether an earlier one was committed.
    Probe,
    /// See [`oncekey::backend::Release`].
    Release,
    /// See [`oncekey::backend::Hold`].
    Hold,
    /// A release of a claim of which it is unknown whether it was granted.
    Recover,
    /// A reconciler's word on the claim of this owner. See [`oncekey::backend::Resolve`].
    Word {
        /// Whether the effect happened.
        happened: bool,
        /// The attempt that the word is about.
        attempt: u8,
    },
}

/// What a process makes of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Heard {
    /// The claim is granted, or still stands.
    Yes,
    /// The claim is not granted, or is no more: settled or lost.
    No,
}

impl State {
    /// Sends a request. Which order equal sets were sent in makes no difference.
    pub fn send(&mut self, ask: Ask, key: u8, owner: u8) {
        let sent = Wire { ask, key, owner };
        let place = self.wire.partition_point(|there| *there < sent);
        self.wire.insert(place, sent);
    }

    /// The call that waits for the answer to a request, if it still does.
    pub fn waiting_for(&mut self, request: Wire) -> Option<&mut Job> {
        let mut jobs = self.processes.iter_mut().filter_map(|process| process.job.as_mut());
        jobs.find(|job| {
            let awaits = match job.phase {
                Phase::Asking => Ask::Acquire,
                Phase::Settling(ask) => ask,
                Phase::Working { .. } => return false,
            };
            job.owner == request.owner && awaits == request.ask && job.answer.is_none()
        })
    }
}
