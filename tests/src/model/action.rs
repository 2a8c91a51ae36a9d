//! What can happen, and what it does.

use stateright::{Model, Property};

use super::state::Heard;
use super::store::Answer;
use super::{
    Ask, Bounds, Ghost, Job, Life, Mode, Mutation, Phase, Process, Protocol, State, Stored, Transition, properties,
};

/// One thing that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// An idle process calls.
    Call {
        /// Which.
        process: u8,
        /// For which key.
        key: u8,
    },
    /// A process has its outside effect.
    Work(u8),
    /// A process settles its claim by this.
    Settle(u8, Ask),
    /// A process renews its claim.
    Renew(u8),
    /// The store takes a request, by its place on the wire.
    Take(u8),
    /// A process hears what the store answered.
    Hear(u8),
    /// A fault: the store takes a request that will come once more.
    TakeTwice(u8),
    /// A fault: a request is lost.
    Lose(u8),
    /// A fault: a process stops waiting for an answer, whether the request was taken or not.
    TimeOut(u8),
    /// A fault: a process forgets all that it was doing.
    Crash(u8),
    /// A reconciler sends its word on an indeterminate key, which is the truth.
    Resolve(u8),
    /// The store purges a key whose time is over.
    Purge(u8),
    /// Time passes, for leases, retentions and all who pause.
    Tick,
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let Bounds { processes, keys, .. } = self.bounds;
        vec![State {
            records: vec![None; keys.len()],
            ghosts: vec![Ghost::default(); keys.len()],
            processes: vec![Process::default(); usize::from(processes)],
            wire: Vec::new(),
            calls: 0,
            faults: 0,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let faulty = state.faults < self.bounds.faults;
        for (process, at) in state.processes.iter().zip(0..) {
            let Some(job) = &process.job else {
                let first_idle = state.processes[..usize::from(at)].iter().all(|process| process.job.is_some());
                if first_idle && state.calls < self.bounds.calls {
                    actions.extend((0..self.bounds.keys.len() as u8).map(|key| Action::Call { process: at, key }));
                }
                continue;
            };
            if job.answer.is_some() {
                actions.push(Action::Hear(at));
            }
            self.work(state, job, at, actions);
            if faulty {
                actions.push(Action::Crash(at));
                if !matches!(job.phase, Phase::Working { .. }) {
                    actions.push(Action::TimeOut(at));
                }
            }
        }
        for (request, at) in state.wire.iter().zip(0..) {
            if at > 0 && state.wire[usize::from(at) - 1] == *request {
                continue;
            }
            actions.push(Action::Take(at));
            if faulty {
                actions.extend([Action::Lose(at), Action::TakeTwice(at)]);
            }
        }
        for key in 0..self.bounds.keys.len() as u8 {
            let found = state.records[usize::from(key)].as_ref();
            if found.is_some() && self.store.purged(found, key).as_ref() != found {
                actions.push(Action::Purge(key));
            }
            if self.may_resolve(state, key).is_some() {
                actions.push(Action::Resolve(key));
            }
        }
        if state.records.iter().flatten().any(|record| record.clone().aged() != *record) {
            actions.push(Action::Tick);
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        match action {
            Action::Call { process, key } => {
                let owner = state.calls;
                state.calls += 1;
                state.processes[usize::from(process)].job =
                    Some(Job { key, owner, phase: Phase::Asking, answer: None });
                state.send(Ask::Acquire, key, owner);
            }
            Action::Work(process) => {
                let job = state.processes[usize::from(process)].job.as_mut()?;
                job.phase = Phase::Working { did: true };
                let key = job.key;
                state.ghosts[usize::from(key)].effect(self.store.mode(key));
            }
            Action::Settle(process, ask) => settle(&mut state, process, ask)?,
            Action::Renew(process) => {
                let job = state.processes[usize::from(process)].job.as_ref()?;
                let (key, owner) = (job.key, job.owner);
                state.send(Ask::Renew, key, owner);
            }
            Action::Take(at) => {
                self.take(&mut state, at);
                state.wire.remove(usize::from(at));
            }
            Action::TakeTwice(at) => {
                state.faults += 1;
                self.take(&mut state, at);
            }
            Action::Lose(at) => {
                state.faults += 1;
                state.wire.remove(usize::from(at));
            }
            Action::Hear(process) => self.hear(&mut state, process)?,
            Action::TimeOut(process) => {
                state.faults += 1;
                self.time_out(&mut state, process)?;
            }
            Action::Crash(process) => {
                state.faults += 1;
                state.processes[usize::from(process)].job = None;
            }
            Action::Resolve(key) => self.resolve(&mut state, key)?,
            Action::Purge(key) => {
                let place = &mut state.records[usize::from(key)];
                let purged = self.store.purged(place.as_ref(), key);
                self.note(if purged.is_some() { Transition::Lapse } else { Transition::Expire });
                if purged.is_none() && state.ghosts[usize::from(key)].claimant.is_some() {
                    forget(&mut state.ghosts[usize::from(key)], self.store.mode(key), place.as_ref());
                }
                *place = purged;
            }
            Action::Tick => {
                for record in &mut state.records {
                    *record = record.take().map(Stored::aged);
                }
                state.ghosts.iter_mut().for_each(Ghost::ages);
            }
        }
        // Processes are alike but for their calls: their order is no difference worth exploring.
        state.processes.sort_unstable();
        for ((ghost, record), key) in state.ghosts.iter_mut().zip(&state.records).zip(0..) {
            let now = self.store.now(record.as_ref(), key);
            if now.is_none() && record.is_some() {
                forget(ghost, self.store.mode(key), record.as_ref());
            }
            ghost.compares(now.as_ref());
        }
        (state != *before).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all()
    }
}

/// A claim that may be rerun, and that nobody came for in its time, is no more.
fn forget(ghost: &mut Ghost, mode: Mode, record: Option<&Stored>) {
    let claimed = matches!(record, Some(Stored { life: Life::Claimed { left: ..=0, hold: false }, .. }));
    if claimed && mode != Mode::Hold && ghost.lease == 0 {
        *ghost = Ghost { broken: ghost.broken, ..Ghost::default() };
    }
}

fn settle(state: &mut State, process: u8, ask: Ask) -> Option<()> {
    let job = state.processes[usize::from(process)].job.as_mut()?;
    (job.phase, job.answer) = (Phase::Settling(ask), None);
    let (key, owner) = (job.key, job.owner);
    state.send(ask, key, owner);
    Some(())
}

impl Protocol {
    /// What a process can do of its own accord with its claim.
    fn work(&self, state: &State, job: &Job, at: u8, actions: &mut Vec<Action>) {
        let mode = self.store.mode(job.key);
        let renews = match job.phase {
            Phase::Working { did } => {
                match (mode, did) {
                    (Mode::Transaction, _) => actions.push(Action::Settle(at, Ask::Transact)),
                    (_, true) => actions.push(Action::Settle(at, Ask::Complete)),
                    (_, false) => actions.push(Action::Work(at)),
                }
                if !did {
                    actions.push(Action::Settle(at, Ask::Release));
                }
                if mode == Mode::Hold {
                    actions.push(Action::Settle(at, Ask::Hold));
                }
                true
            }
            Phase::Settling(ask) => matches!(ask, Ask::Complete | Ask::Transact | Ask::Probe),
            Phase::Asking => false,
        };
        let renewing = state.wire.iter().any(|request| request.owner == job.owner && request.ask == Ask::Renew);
        let worn = matches!(&state.records[usize::from(job.key)], Some(Stored { life: Life::Claimed { left, .. }, .. }) if *left < super::LEASE);
        if renews && !renewing && worn {
            actions.push(Action::Renew(at));
        }
    }

    fn take(&self, state: &mut State, at: u8) {
        let request = state.wire[usize::from(at)];
        let key = usize::from(request.key);
        let before = state.records[key].clone();
        let (after, answer) = self.store.take(before.as_ref(), request.ask, request.key, request.owner);
        let mode = self.store.mode(request.key);
        let ghost = &mut state.ghosts[key];
        self.note(ghost.observes(mode, request.ask, request.owner, answer, before.as_ref(), after.as_ref()));
        state.records[key] = after;
        if let Some(job) = state.waiting_for(request) {
            let yes = matches!(answer, Answer::Claimed { .. } | Answer::RolledBack);
            job.answer = Some(if yes { Heard::Yes } else { Heard::No });
        }
    }

    fn hear(&self, state: &mut State, process: u8) -> Option<()> {
        let place = &mut state.processes[usize::from(process)].job;
        let job = place.as_mut()?;
        match (job.phase, job.answer.take()?) {
            (Phase::Asking, Heard::Yes) => job.phase = Phase::Working { did: false },
            // The transaction was not committed: its holder gives the claim up.
            (Phase::Settling(Ask::Probe), Heard::Yes) => settle(state, process, Ask::Release)?,
            _ => *place = None,
        }
        Some(())
    }

    /// A process that has heard nothing asks again, as its owner; of a transaction it asks what became of it.
    fn time_out(&self, state: &mut State, process: u8) -> Option<()> {
        let job = state.processes[usize::from(process)].job.as_ref()?;
        let again = match job.phase {
            Phase::Asking => Ask::Recover,
            Phase::Settling(Ask::Transact) if !self.store.is(Mutation::CommitRepeatedBlindly) => Ask::Probe,
            Phase::Settling(ask) => ask,
            Phase::Working { .. } => return None,
        };
        settle(state, process, again)
    }

    /// Whether an operator can know what became of an indeterminate key, and whether its effect happened: nobody must
    /// be at work on it any more.
    fn may_resolve(&self, state: &State, key: u8) -> Option<bool> {
        let now = self.store.now(state.records[usize::from(key)].as_ref(), key)?;
        let working = state
            .processes
            .iter()
            .filter_map(|process| process.job.as_ref())
            .any(|job| job.owner == now.owner && !matches!(job.phase, Phase::Settling(_)));
        let to_come = state
            .wire
            .iter()
            .any(|request| request.owner == now.owner && matches!(request.ask, Ask::Transact | Ask::Word { .. }));
        let indeterminate = now.life == Life::Indeterminate;
        (indeterminate && !working && !to_come).then_some(state.ghosts[usize::from(key)].effects > 0)
    }

    fn resolve(&self, state: &mut State, key: u8) -> Option<()> {
        let happened = self.may_resolve(state, key)?;
        let Stored { attempt, owner, .. } = state.records[usize::from(key)].clone()?;
        state.send(Ask::Word { happened, attempt }, key, owner);
        Some(())
    }
}
