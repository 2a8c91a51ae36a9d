//! The state of the whole: the store, the processes, and the messages between them.

use super::{Ghost, Life, Stored, ghost::Owners};

/// The name of a barrier: the bytes of an owner.
pub type Name = [u8; oncekey::record::Owner::LEN];

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
    /// Owners given out so far: each acquire has one of its own.
    pub owners: u8,
    /// Faults that struck so far.
    pub faults: u8,
}

/// One process: its claims, from the moment it asks for one until it is settled or withdrawn.
///
/// It has at most one acquire of a key in flight, and at most one claim of a key that takes calls in: see
/// [`Job::is_routed`]. A claim that is being withdrawn does not, so that another call may ask for the key meanwhile.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Process {
    /// The claims, in an order without meaning.
    pub jobs: Vec<Job>,
}

/// A call on its way through the engine.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Job {
    /// Its key, as a place among the keys.
    pub key: u8,
    /// Its owner: each acquire has one of its own.
    pub owner: u8,
    /// How far it is.
    pub phase: Phase,
    /// What the store has answered and the process has not heard yet.
    pub answer: Option<Heard>,
    /// Whether another call of this process waits for its answer, and shares its fate.
    pub joined: bool,
    /// Whether the claim is among those that the process renews.
    pub is_renewed: bool,
    /// Whether the operation has asked for a confirmation.
    pub confirm: Confirm,
}

impl Job {
    /// A call that asks for its key.
    pub fn asking(key: u8, owner: u8) -> Self {
        let (phase, confirm) = (Phase::Asking, Confirm::NotAsked);
        Self { key, owner, phase, answer: None, joined: false, is_renewed: true, confirm }
    }

    /// Whether other calls of the key join this one.
    pub fn is_routed(&self) -> bool {
        self.phase != Phase::Settling(Ask::Withdraw)
    }
}

/// A confirmation: the operation asks once whether its claim still stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Confirm {
    /// Not asked for, or answered.
    NotAsked,
    /// A renewal that may answer is under way. In the protocol it is sent for the confirmation.
    Waiting {
        /// Whether the operation waits for it.
        asked: bool,
        /// Ticks since it was sent.
        age: i8,
        /// What the store has answered and the process has not heard yet.
        answer: Option<bool>,
    },
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
    Acquire {
        /// The barrier that it was sent past.
        past: Option<Name>,
    },
    /// See [`oncekey::backend::Renew`].
    Renew,
    /// A renewal that was sent for a confirmation, and answers it.
    Confirm,
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
    /// See [`oncekey::backend::Withdraw`]: it is unknown whether the claim was granted.
    Withdraw,
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
    /// The key is free behind a barrier of this name: the process asks again, past it.
    Withdrawn(Name),
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

    /// Ends the barriers behind which nothing is left to keep out: a tick is longer than they stand, but no message that
    /// one of them keeps out is on its way for longer than that.
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

    /// The owners of whom something is left at a key.
    pub fn owners_at(&self, key: u8) -> Owners {
        let mut left = Owners::default();
        let found = self.records[usize::from(key)].as_ref().filter(|found| found.life != Life::Vacant);
        let on_the_wire = self.wire.iter().filter(|request| request.key == key).map(|request| request.owner);
        let at_work = self.jobs().filter(|job| job.key == key).map(|job| job.owner);
        on_the_wire.chain(at_work).chain(found.map(|found| found.owner)).for_each(|owner| left.add(owner));
        left
    }

    /// The next owner.
    pub fn next_owner(&mut self) -> u8 {
        self.owners += 1;
        self.owners - 1
    }

    /// All calls on their way.
    pub fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.processes.iter().flat_map(|process| &process.jobs)
    }

    /// The call of this owner, if its process still knows of it.
    pub fn job_of(&mut self, owner: u8) -> Option<&mut Job> {
        self.processes.iter_mut().flat_map(|process| &mut process.jobs).find(|job| job.owner == owner)
    }

    /// The call that waits for the answer to a request, if it still does.
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
