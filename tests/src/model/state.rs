//! The state of the whole system: the store, the processes, and the messages between them.

use super::{Ghost, Life, Stored, ghost::Owners};

/// The name of a barrier: the bytes of an owner.
pub type Name = [u8; oncekey::record::Owner::LEN];

/// The state at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    /// The store's records, by key.
    pub records: Vec<Option<Stored>>,
    /// The truth about each key, independent of the store.
    pub ghosts: Vec<Ghost>,
    /// The processes.
    pub processes: Vec<Process>,
    /// Requests on their way to the store. Their order means nothing: any may be executed next.
    pub wire: Vec<Wire>,
    /// The number of calls so far.
    pub calls: u8,
    /// The number of owners so far. Each acquire has its own.
    pub owners: u8,
    /// The number of faults so far.
    pub faults: u8,
}

/// One process, with its claims from the moment it asks for one until it is settled or withdrawn.
///
/// For each key it has at most one acquire in flight, and at most one claim that other calls can join: see
/// [`Job::is_routed`]. Calls cannot join a claim that is being withdrawn, so another call may ask for the key in the
/// meantime.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Process {
    /// The claims. Their order means nothing.
    pub jobs: Vec<Job>,
}

/// A call on its way through the engine.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Job {
    /// The index of its key.
    pub key: u8,
    /// Its owner. Each acquire has its own.
    pub owner: u8,
    /// Its progress.
    pub phase: Phase,
    /// The store's answer, if the process has not received it yet.
    pub answer: Option<Heard>,
    /// Whether another call of this process waits for the answer, and shares its result.
    pub joined: bool,
    /// Whether the process renews the claim.
    pub is_renewed: bool,
    /// Whether the operation has asked for a confirmation.
    pub confirm: Confirm,
}

impl Job {
    /// Returns a call that asks for its key.
    pub fn asking(key: u8, owner: u8) -> Self {
        let (phase, confirm) = (Phase::Asking, Confirm::NotAsked);
        Self { key, owner, phase, answer: None, joined: false, is_renewed: true, confirm }
    }

    /// Returns whether other calls of the key join this one.
    pub fn is_routed(&self) -> bool {
        self.phase != Phase::Settling(Ask::Withdraw)
    }
}

/// A confirmation: the operation asks once whether its claim is still valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Confirm {
    /// No confirmation was requested, or it was answered.
    NotAsked,
    /// A renewal that may answer is in flight. In the protocol it is sent for the confirmation.
    Waiting {
        /// Whether the operation waits for it.
        asked: bool,
        /// Ticks since it was sent.
        age: i8,
        /// The store's answer, if the process has not received it yet.
        answer: Option<bool>,
    },
}

/// The progress of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// The call has asked for its key.
    Asking,
    /// The call has its claim. Its effect may have happened.
    Working {
        /// Whether the effect has happened.
        did: bool,
    },
    /// The call has asked the store to end its claim.
    Settling(Ask),
}

/// A process's request to the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Wire {
    /// The request.
    pub ask: Ask,
    /// The key.
    pub key: u8,
    /// The owner.
    pub owner: u8,
}

/// A request of a process to the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Ask {
    /// See [`oncekey::backend::Acquire`].
    Acquire {
        /// The barrier that the acquire names.
        past: Option<Name>,
    },
    /// See [`oncekey::backend::Renew`].
    Renew,
    /// A renewal that was sent for a confirmation and answers it.
    Confirm,
    /// See [`oncekey::backend::Complete`].
    Complete,
    /// See [`oncekey::backend::CompleteInTransaction`].
    Transact,
    /// A transaction that is only rolled back, to learn whether an earlier one was committed.
    Probe,
    /// See [`oncekey::backend::Release`].
    Release,
    /// See [`oncekey::backend::Hold`].
    Hold,
    /// See [`oncekey::backend::Withdraw`]. It is unknown whether the claim was granted.
    Withdraw,
    /// A reconciler's resolution of this owner's claim. See [`oncekey::backend::Resolve`].
    Word {
        /// Whether the effect happened.
        happened: bool,
        /// The attempt to resolve.
        attempt: u8,
    },
}

/// An answer as a process understands it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Heard {
    /// The claim is granted, or is still valid.
    Yes,
    /// The key is free behind a barrier of this name. The process asks again, past the barrier.
    Withdrawn(Name),
    /// The claim is not granted, or no longer exists: it was settled or lost.
    No,
}

impl State {
    /// Sends a request. The wire is sorted, because the order of sending makes no difference.
    pub fn send(&mut self, ask: Ask, key: u8, owner: u8) {
        let sent = Wire { ask, key, owner };
        let place = self.wire.partition_point(|there| *there < sent);
        self.wire.insert(place, sent);
    }

    /// Ends the barriers that have nothing left to refuse. A tick is longer than a barrier stands, but no message that
    /// it refuses is in transit for longer than that.
    pub fn lifts_barriers(&mut self) {
        for ((place, ghost), key) in self.records.iter_mut().zip(&self.ghosts).zip(0..) {
            let keeps_out = |request: &Wire| {
                request.key == key && matches!(request.ask, Ask::Acquire { .. }) && ghost.withdrawn.has(request.owner)
            };
            if self.wire.iter().any(keeps_out) {
                continue;
            }
            if let Some(record) = place {
                record.barrier = None;
                if record.life == Life::Vacant {
                    *place = None;
                }
            }
        }
    }

    /// Returns the owners of which something is left at a key.
    pub fn owners_at(&self, key: u8) -> Owners {
        let mut left = Owners::default();
        let found = self.records[usize::from(key)].as_ref().filter(|found| found.life != Life::Vacant);
        let on_the_wire = self.wire.iter().filter(|request| request.key == key).map(|request| request.owner);
        let at_work = self.jobs().filter(|job| job.key == key).map(|job| job.owner);
        on_the_wire.chain(at_work).chain(found.map(|found| found.owner)).for_each(|owner| left.add(owner));
        left
    }

    /// Returns a new owner.
    pub fn next_owner(&mut self) -> u8 {
        self.owners += 1;
        self.owners - 1
    }

    /// Returns all calls in flight.
    pub fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.processes.iter().flat_map(|process| &process.jobs)
    }

    /// Returns the call of this owner, if its process still knows it.
    pub fn job_of(&mut self, owner: u8) -> Option<&mut Job> {
        self.processes.iter_mut().flat_map(|process| &mut process.jobs).find(|job| job.owner == owner)
    }

    /// Returns the call that waits for the answer to a request, if it still does.
    pub fn waiting_for(&mut self, request: Wire) -> Option<&mut Job> {
        self.job_of(request.owner).filter(|job| {
            let awaits = match job.phase {
                Phase::Asking => matches!(request.ask, Ask::Acquire { .. }),
                Phase::Settling(ask) => ask == request.ask,
                Phase::Working { .. } => false,
            };
            awaits && job.answer.is_none()
        })
    }
}
