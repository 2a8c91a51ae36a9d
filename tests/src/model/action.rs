//! The actions of the model, and their effects.

use stateright::{Model, Property};

use super::state::Heard;
use super::store::Answer;
use super::{
    Ask, Bounds, Confirm, Ghost, Job, Life, Mode, Mutation, Name, Phase, Process, Protocol, State, Stored, Transition,
    properties,
};

/// A claim of a process, by their indices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Who {
    /// The index of the process.
    pub process: u8,
    /// The index of the claim in its process.
    pub job: u8,
}

/// One action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// An idle process makes a call.
    Call {
        /// The process.
        process: u8,
        /// The key.
        key: u8,
    },
    /// A process makes a call for a key that it already asks for or works on. The call waits, and shares the result of
    /// the other.
    Join(Who),
    /// A process performs its external effect.
    Work(Who),
    /// A process settles its claim with this request.
    Settle(Who, Ask),
    /// A process renews its claim.
    Renew(Who),
    /// An operation asks whether its claim is still valid.
    Confirm(Who),
    /// The operation receives the answer.
    HearConfirm(Who),
    /// The store executes a request, by its index on the wire.
    Take(u8),
    /// A process receives the store's answer.
    Hear(Who),
    /// A fault: the store executes a request that will arrive again.
    TakeTwice(u8),
    /// A fault: a request is lost.
    Lose(u8),
    /// A fault: a process stops waiting for an answer. The request may still be on its way and executed later, it may
    /// be lost, or it was executed and its answer is never received.
    TimeOut(Who),
    /// A fault: a process forgets everything that it was doing.
    Crash(u8),
    /// A reconciler resolves an indeterminate key, according to the truth.
    Resolve(u8),
    /// The store purges an expired key.
    Purge(u8),
    /// Time passes, for leases, retentions and paused processes.
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
            owners: 0,
            faults: 0,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let faulty = state.faults < self.bounds.faults;
        for (process, at) in state.processes.iter().zip(0..) {
            self.calls(state, at, actions);
            if faulty && !process.jobs.is_empty() {
                actions.push(Action::Crash(at));
            }
            for (job, number) in process.jobs.iter().zip(0..) {
                let who = Who { process: at, job: number };
                if job.answer.is_some() {
                    actions.push(Action::Hear(who));
                }
                self.work(state, job, who, actions);
                if faulty && !matches!(job.phase, Phase::Working { .. }) {
                    actions.push(Action::TimeOut(who));
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
        let ages = |record: &Stored| record.clone().aged() != *record || record.barrier.is_some();
        if state.records.iter().flatten().any(ages) {
            actions.push(Action::Tick);
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        match action {
            Action::Call { process, key } => {
                state.calls += 1;
                asks(&mut state, process, key, None);
            }
            Action::Join(who) => {
                state.calls += 1;
                at(&mut state, who)?.joined = true;
            }
            Action::Work(who) => {
                let job = at(&mut state, who)?;
                job.phase = Phase::Working { did: true };
                let key = job.key;
                state.ghosts[usize::from(key)].effect(self.store.mode(key));
            }
            Action::Settle(who, ask) => settle(&mut state, who, ask)?,
            Action::Renew(who) => {
                let job = at(&mut state, who)?;
                let (key, owner) = (job.key, job.owner);
                if self.store.is(Mutation::ConfirmByOlderRenewal) && job.confirm == Confirm::NotAsked {
                    job.confirm = Confirm::Waiting { asked: false, age: 0, answer: None };
                }
                state.send(Ask::Renew, key, owner);
            }
            Action::Confirm(who) => {
                let job = at(&mut state, who)?;
                let (key, owner) = (job.key, job.owner);
                match &mut job.confirm {
                    // The planted bug: a renewal already in flight answers the confirmation.
                    Confirm::Waiting { asked, .. } => *asked = true,
                    confirm => {
                        *confirm = Confirm::Waiting { asked: true, age: 0, answer: None };
                        state.send(Ask::Confirm, key, owner);
                    }
                }
            }
            Action::HearConfirm(who) => {
                let any_age = self.store.is(Mutation::ConfirmByOlderRenewal);
                let job = at(&mut state, who)?;
                let Confirm::Waiting { answer: Some(stands), age, .. } = job.confirm else { return None };
                let (key, owner) = (job.key, job.owner);
                job.confirm = Confirm::NotAsked;
                if stands && (age < super::LEASE || any_age) {
                    state.ghosts[usize::from(key)].confirms(owner);
                }
            }
            Action::Take(at) => {
                self.take(&mut state, at);
                state.wire.remove(usize::from(at));
            }
            Action::TakeTwice(at) => {
                state.faults += 1;
                let request = state.wire[usize::from(at)];
                if matches!(request.ask, Ask::Acquire { .. }) {
                    // The process treats the first answer as final, and may be gone when the second claim takes effect.
                    state.ghosts[usize::from(request.key)].excused.add(request.owner);
                }
                self.take(&mut state, at);
            }
            Action::Lose(at) => {
                state.faults += 1;
                state.wire.remove(usize::from(at));
            }
            Action::Hear(who) => self.hear(&mut state, who)?,
            Action::TimeOut(who) => {
                state.faults += 1;
                self.time_out(&mut state, who)?;
            }
            Action::Crash(process) => {
                state.faults += 1;
                for job in std::mem::take(&mut state.processes[usize::from(process)].jobs) {
                    state.ghosts[usize::from(job.key)].excused.add(job.owner);
                }
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
                state.lifts_barriers();
                for (place, ghost) in state.records.iter_mut().zip(&mut state.ghosts) {
                    ghost.ages(place.as_ref().is_some_and(|record| record.barrier.is_some()));
                    *place = place.take().map(Stored::aged);
                }
                for job in state.processes.iter_mut().flat_map(|process| &mut process.jobs) {
                    if let Confirm::Waiting { age, .. } = &mut job.confirm {
                        *age = (*age + 1).min(super::LEASE);
                    }
                }
            }
        }
        // Processes differ only in their calls, so their order makes no difference worth exploring.
        state.processes.iter_mut().for_each(|process| process.jobs.sort_unstable());
        state.processes.sort_unstable();
        for ((ghost, record), key) in state.ghosts.iter_mut().zip(&state.records).zip(0..) {
            let now = self.store.now(record.as_ref(), key);
            let is_there = record.as_ref().is_some_and(|record| record.life != Life::Vacant);
            if now.is_none() && is_there {
                forget(ghost, self.store.mode(key), record.as_ref());
            }
            ghost.compares(now.as_ref());
        }
        for key in 0..self.bounds.keys.len() as u8 {
            let left = state.owners_at(key);
            state.ghosts[usize::from(key)].keeps(left);
        }
        (state != *before).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all()
    }
}

/// Forgets a claim that may be rerun and that no caller took over in time.
fn forget(ghost: &mut Ghost, mode: Mode, record: Option<&Stored>) {
    let claimed = matches!(record, Some(Stored { life: Life::Claimed { left: ..=0, hold: false }, .. }));
    if claimed && mode != Mode::Hold && ghost.lease == 0 {
        ghost.ends();
    }
}

fn at(state: &mut State, who: Who) -> Option<&mut Job> {
    state.processes[usize::from(who.process)].jobs.get_mut(usize::from(who.job))
}

/// Makes a process send an acquire with a new owner.
fn asks(state: &mut State, process: u8, key: u8, past: Option<Name>) -> u8 {
    let owner = state.next_owner();
    state.processes[usize::from(process)].jobs.push(Job::asking(key, owner));
    state.send(Ask::Acquire { past }, key, owner);
    owner
}

fn settle(state: &mut State, who: Who, ask: Ask) -> Option<()> {
    let job = at(state, who)?;
    (job.phase, job.answer, job.confirm) = (Phase::Settling(ask), None, Confirm::NotAsked);
    let (key, owner) = (job.key, job.owner);
    state.send(ask, key, owner);
    Some(())
}

impl Protocol {
    /// Adds the calls that a process may make.
    fn calls(&self, state: &State, at: u8, actions: &mut Vec<Action>) {
        if state.calls == self.bounds.calls {
            return;
        }
        let jobs = &state.processes[usize::from(at)].jobs;
        if jobs.is_empty() {
            let first_idle = state.processes[..usize::from(at)].iter().all(|process| !process.jobs.is_empty());
            if first_idle {
                actions.extend((0..self.bounds.keys.len() as u8).map(|key| Action::Call { process: at, key }));
            }
            return;
        }
        for key in 0..self.bounds.keys.len() as u8 {
            let mut of_key = jobs.iter().zip(0..).filter(|(job, _)| job.key == key).peekable();
            if of_key.peek().is_none() {
                continue;
            }
            match of_key.find(|(job, _)| job.is_routed()) {
                Some((job, _)) if job.phase == Phase::Asking && self.store.is(Mutation::HeartbeatFollowsTheRoute) => {
                    actions.extend((jobs.len() < 2).then_some(Action::Call { process: at, key }));
                }
                Some((job, _)) if job.joined => {}
                Some((_, number)) => actions.push(Action::Join(Who { process: at, job: number })),
                // The previous claim is being withdrawn.
                None if jobs.len() < 2 => actions.push(Action::Call { process: at, key }),
                None => {}
            }
        }
    }

    /// Returns whether a process renews a claim whose lease is running out.
    pub(super) fn renews(&self, job: &Job) -> bool {
        let wants = match job.phase {
            Phase::Asking => false,
            Phase::Working { .. } => true,
            Phase::Settling(Ask::Hold) => !self.store.is(Mutation::HoldNotRenewed),
            Phase::Settling(ask) => matches!(ask, Ask::Complete | Ask::Transact | Ask::Probe),
        };
        wants && job.is_renewed
    }

    /// Adds what a process can do with its claim on its own initiative.
    fn work(&self, state: &State, job: &Job, at: Who, actions: &mut Vec<Action>) {
        let mode = self.store.mode(job.key);
        let on_the_wire = |ask| state.wire.iter().any(|request| request.owner == job.owner && request.ask == ask);
        if let Phase::Working { did } = job.phase {
            match (mode, did) {
                (Mode::Transaction, _) => actions.push(Action::Settle(at, Ask::Transact)),
                (_, true) => actions.push(Action::Settle(at, Ask::Complete)),
                (_, false) => actions.push(Action::Work(at)),
            }
            if !did {
                actions.push(Action::Settle(at, Ask::Release));
            }
            if mode != Mode::Transaction {
                actions.push(Action::Settle(at, Ask::Hold));
            }
            // Nobody takes over a claim under Hold or in a transaction.
            if mode == Mode::Rerun && !did {
                match job.confirm {
                    Confirm::Waiting { asked: true, answer: Some(_), .. } => actions.push(Action::HearConfirm(at)),
                    Confirm::Waiting { asked: true, answer: None, .. } => {}
                    Confirm::Waiting { asked: false, .. } => actions.push(Action::Confirm(at)),
                    Confirm::NotAsked if !on_the_wire(Ask::Confirm) => actions.push(Action::Confirm(at)),
                    Confirm::NotAsked => {}
                }
            }
        }
        let is_worn = matches!(&state.records[usize::from(job.key)], Some(Stored { life: Life::Claimed { left, .. }, .. }) if *left < super::LEASE);
        if self.renews(job) && !on_the_wire(Ask::Renew) && is_worn {
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
        let shown = |found: Option<&Stored>| self.store.now(found, request.key).and_then(Stored::shown);
        let (was, is) = (shown(before.as_ref()), shown(after.as_ref()));
        self.note(ghost.observes(mode, request.ask, request.owner, answer, was.as_ref(), is.as_ref()));
        state.records[key] = after;
        let by_any = self.store.is(Mutation::ConfirmByOlderRenewal) && request.ask == Ask::Renew;
        if (request.ask == Ask::Confirm || by_any)
            && let Some(Job { confirm: Confirm::Waiting { answer: heard @ None, .. }, .. }) =
                state.job_of(request.owner)
        {
            *heard = Some(answer == Answer::Done);
        }
        if let Some(job) = state.waiting_for(request) {
            job.answer = Some(match answer {
                Answer::Claimed { .. } | Answer::RolledBack => Heard::Yes,
                Answer::Withdrawn(name) => Heard::Withdrawn(name),
                _ => Heard::No,
            });
        }
    }

    fn hear(&self, state: &mut State, who: Who) -> Option<()> {
        let job = at(state, who)?;
        let (key, owner, joined) = (job.key, job.owner, job.joined);
        match (job.phase, job.answer.take()?) {
            (Phase::Asking, Heard::Yes) => {
                job.phase = Phase::Working { did: false };
                state.ghosts[usize::from(key)].began.add(owner);
                self.replaces(state, who, owner);
            }
            // The barrier refused the claim, so the process asks once more, with a new owner.
            (Phase::Asking, Heard::Withdrawn(name)) => {
                state.processes[usize::from(who.process)].jobs.remove(usize::from(who.job));
                let owner = asks(state, who.process, key, Some(name));
                state.job_of(owner)?.joined = joined;
            }
            // The transaction was not committed, so its holder releases the claim.
            (Phase::Settling(Ask::Probe), Heard::Yes) => settle(state, who, Ask::Release)?,
            (phase, _) => {
                state.processes[usize::from(who.process)].jobs.remove(usize::from(who.job));
                // The key is free again, so the waiting call asks for it. The waiting call shares every other result.
                if joined && phase == Phase::Settling(Ask::Release) {
                    asks(state, who.process, key, None);
                }
            }
        }
        Some(())
    }

    /// The planted bug: the claim that was answered last replaces the previous one, which is no longer renewed.
    fn replaces(&self, state: &mut State, who: Who, by: u8) {
        if self.store.is(Mutation::HeartbeatFollowsTheRoute) {
            let others = state.processes[usize::from(who.process)].jobs.iter_mut().filter(|job| job.owner != by);
            others.for_each(|job| job.is_renewed = false);
        }
    }

    /// Makes a process that got no answer ask again, as the same owner. For a transaction, it asks how the transaction
    /// ended. A claim on which nothing began is withdrawn, until that is answered.
    fn time_out(&self, state: &mut State, who: Who) -> Option<()> {
        let job = at(state, who)?;
        let again = match job.phase {
            Phase::Asking if self.store.is(Mutation::UnknownTakenForNo) => {
                state.processes[usize::from(who.process)].jobs.remove(usize::from(who.job));
                return Some(());
            }
            // A call that joined gets the same answer.
            Phase::Asking => {
                let owner = job.owner;
                job.joined = false;
                self.replaces(state, who, owner);
                Ask::Withdraw
            }
            Phase::Settling(Ask::Transact) if !self.store.is(Mutation::CommitRepeatedBlindly) => Ask::Probe,
            Phase::Settling(ask) => ask,
            Phase::Working { .. } => return None,
        };
        settle(state, who, again)
    }

    /// Returns whether an operator can know what happened to an indeterminate key, and whether its effect happened. No
    /// process may be working on the key any more.
    fn may_resolve(&self, state: &State, key: u8) -> Option<bool> {
        let now = self.store.now(state.records[usize::from(key)].as_ref(), key)?;
        let working = state.jobs().any(|job| job.owner == now.owner && !matches!(job.phase, Phase::Settling(_)));
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
