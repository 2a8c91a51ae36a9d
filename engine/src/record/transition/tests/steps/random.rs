//! Random lives of one key, beside an account of what really happened that does not use the transitions.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// Random numbers that are the same in every run of the test.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }

    fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }
}

const NAMES: [(&str, StepPolicy); 3] =
    [("reserve", StepPolicy::Hold), ("charge", StepPolicy::Hold), ("mail", StepPolicy::Rerun)];

/// A run of a step in some process, until its operation has ended.
#[derive(Debug, Clone)]
struct Running {
    epoch: u32,
    owner: u8,
    name: usize,
    run: StepRun,
    life: FencingToken,
}

/// A message that will arrive, or arrive again.
#[derive(Debug, Clone)]
enum Sent {
    End(Running, u64),
    Fail(Running),
}

struct Account {
    machine: Machine,
    /// The number of the key's current life.
    epoch: u32,
    /// Whether an operator has just removed the record.
    is_removed: bool,
    /// The latest claim: its owner, and the end of its lease.
    holder: (u8, StoreTime),
    number: u32,
    running: Vec<Running>,
    wire: Vec<Sent>,
    effects: Vec<(u32, usize, u64)>,
    /// The outcomes of steps that attempts have received.
    told: BTreeMap<(u32, usize), u64>,
    /// Steps that may run only once, and whose result the store does not know.
    open: BTreeSet<(u32, usize)>,
}

/// Simulates 60 events. `Err` names the broken promise.
pub(super) fn life(seed: u64) -> Result<(), String> {
    let mut chance = Chance((seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let start = fresh();
    let holder = (0, start.now);
    let mut account = Account {
        machine: start,
        epoch: 0,
        is_removed: false,
        holder,
        number: 0,
        running: Vec::new(),
        wire: Vec::new(),
        effects: Vec::new(),
        told: BTreeMap::new(),
        open: BTreeSet::new(),
    };
    for _ in 0..60 {
        let (before, started) = (account.machine.now_record(), account.machine.now);
        account.is_removed = false;
        account.event(&mut chance)?;
        let after = account.machine.now_record();
        if before.is_some() && after.is_none() {
            account.epoch += 1;
        }
        // A completed step stays completed in the same life.
        let of = |record: &Option<Record>| record.as_ref().and_then(|record| record.steps.clone());
        let (done, still) = (of(&before), of(&after));
        let still = completed(still.as_deref());
        let may_end = account.is_removed || account.machine.now > started;
        if after.is_none() && !completed(done.as_deref()).is_empty() && !may_end {
            return Err("a key was freed, and its steps are gone".to_owned());
        }
        if after.is_some() && completed(done.as_deref()).iter().any(|name| !still.contains(name)) {
            return Err(format!("{:?} became {still:?}", completed(done.as_deref())));
        }
        if let Some(Record { state: State::Vacant { .. }, steps: Some(_), .. }) = &account.machine.record {
            return Err("a vacant record has steps".to_owned());
        }
    }
    Ok(())
}

impl Account {
    fn event(&mut self, chance: &mut Chance) -> Result<(), String> {
        let owner = if chance.one_in(3) { chance.below(3) as u8 } else { self.holder.0 };
        match chance.below(16) {
            0..3 => self.claim(chance.below(3) as u8, u8::from(chance.one_in(4)))?,
            3..7 => self.begin(owner, chance.below(NAMES.len()))?,
            7 | 8 => self.end(chance),
            9 | 10 => self.deliver(chance),
            11 => {
                let is_idle = !self.running.iter().any(|running| running.owner == owner);
                // The engine waits for the running steps before it settles their parent.
                if is_idle && self.machine.releases(owner) == Released::Released {
                    let is_open = self.open.iter().any(|(epoch, _)| *epoch == self.epoch);
                    if self.machine.now_record().is_some_and(|record| record.owner == by(owner)) && is_open {
                        return Err("a key was released with a step of unknown effect".to_owned());
                    }
                } else if is_idle && chance.one_in(4) {
                    self.machine.completes(owner);
                }
            }
            12 => self.settle(),
            13 if self.machine.is_renewed(owner) && owner == self.holder.0 => {
                self.holder.1 = self.machine.now.after(Duration::from_millis(LEASE));
            }
            14 if chance.one_in(6) => {
                self.is_removed = self.machine.is_removed() == Removed::Removed;
            }
            14 if chance.one_in(3) => {
                // Another process withdraws an unknown claim, on which nothing began.
                let message = Withdraw { key: self.machine.key.clone(), owner: by(9) };
                let step = withdraw(self.machine.record.as_ref(), self.machine.now, &message);
                self.machine.apply(step);
            }
            _ => {
                let waits = [1, LEASE / 2, LEASE, LEASE, RETENTION];
                self.machine.waits(waits[chance.below(waits.len())]);
            }
        }
        Ok(())
    }

    fn claim(&mut self, owner: u8, for_what: u8) -> Result<(), String> {
        let was_there = self.machine.now_record();
        // This test reuses owners, and an owner that still has a claim would repeat its request.
        if was_there.as_ref().is_some_and(|record| record.owner == by(owner)) {
            return Ok(());
        }
        let is_used_otherwise = was_there.is_some_and(|record| {
            record.fingerprint != Fingerprint::of(&[for_what]) && !completed(record.steps.as_deref()).is_empty()
        });
        let Acquired::Claimed { steps, .. } = self.machine.asks(owner, for_what) else { return Ok(()) };
        if is_used_otherwise {
            return Err("another request claimed a key with steps".to_owned());
        }
        self.holder = (owner, self.machine.now.after(Duration::from_millis(LEASE)));
        for step in steps.iter().flat_map(|steps| &steps.list) {
            if let Progress::Completed(outcome) = &step.progress {
                let name = NAMES.iter().position(|(name, _)| *name == step.name.as_str()).unwrap_or_default();
                self.is_told(name, outcome, steps.as_ref().map_or(FencingToken::ZERO, |steps| steps.life))?;
            }
        }
        Ok(())
    }

    fn begin(&mut self, owner: u8, name: usize) -> Result<(), String> {
        if self.running.iter().any(|running| running.owner == owner && running.name == name) {
            return Ok(());
        }
        self.number += 1;
        let (text, policy) = NAMES[name];
        let begun = self.machine.begins(owner, text, self.number, policy);
        if matches!(begun, StepBegun::Begun { .. } | StepBegun::Completed { .. })
            && (self.holder.0 != owner || self.holder.1 <= self.machine.now)
        {
            return Err(format!("{owner} began {text}, and the holder is {:?}", self.holder));
        }
        match begun {
            StepBegun::Begun { run, life, .. } => {
                self.running.push(Running { epoch: self.epoch, owner, name, run, life });
                if policy == StepPolicy::Hold {
                    self.open.insert((self.epoch, name));
                }
            }
            StepBegun::Completed { outcome, life } => self.is_told(name, &outcome, life)?,
            _ => {}
        }
        let once =
            |(epoch, step, _): &&(u32, usize, u64)| *epoch == self.epoch && *step == name && policy == StepPolicy::Hold;
        let is_again =
            self.running.iter().filter(|running| running.epoch == self.epoch && running.name == name).count();
        if policy == StepPolicy::Hold && is_again > 1 {
            return Err(format!("{text} runs twice at once"));
        }
        match self.effects.iter().find(once) {
            Some(_) if is_again > 0 => Err(format!("{text} runs again after its effect")),
            _ => Ok(()),
        }
    }

    /// Ends a step's operation: with an outcome, with an error, or without a report.
    fn end(&mut self, chance: &mut Chance) {
        if self.running.is_empty() {
            return;
        }
        let running = self.running.swap_remove(chance.below(self.running.len()));
        let value = self.effects.len() as u64 + 1;
        match chance.below(4) {
            0 | 1 => {
                self.effects.push((running.epoch, running.name, value));
                self.wire.push(Sent::End(running, value));
            }
            2 => self.wire.push(Sent::Fail(running)),
            _ if chance.one_in(2) => self.effects.push((running.epoch, running.name, value)),
            _ => {}
        }
    }

    /// Delivers a message to the store. The message may be lost, or arrive again.
    fn deliver(&mut self, chance: &mut Chance) {
        if self.wire.is_empty() {
            return;
        }
        let at = chance.below(self.wire.len());
        let sent = if chance.one_in(4) { self.wire[at].clone() } else { self.wire.swap_remove(at) };
        match sent {
            Sent::End(Running { epoch, name, run, life, .. }, value) => {
                if self.machine.ends(run, life, NAMES[name].0, value) == StepCompleted::Stored {
                    self.open.remove(&(epoch, name));
                }
            }
            Sent::Fail(Running { epoch, owner, name, run, .. }) => {
                self.machine.fails(owner, run, NAMES[name].0);
                // No other run of the step can have begun in the meantime.
                let is_last = !self.running.iter().any(|running| running.epoch == epoch && running.name == name);
                let has_effect = self.effects.iter().any(|(of, step, _)| *of == epoch && *step == name);
                if is_last && !has_effect {
                    self.open.remove(&(epoch, name));
                }
            }
        }
    }

    /// Settles the first unsettled step according to what really happened.
    fn settle(&mut self) {
        let Some(record) = self.machine.now_record() else { return };
        let unsettled = record.steps.as_ref().and_then(|steps| steps.unsettled(self.machine.now));
        let Some(step) = unsettled.map(|step| step.name.clone()) else { return };
        let life = record.steps.as_ref().map_or(FencingToken::ZERO, |steps| steps.life);
        let Some(name) = NAMES.iter().position(|(name, _)| *name == step.as_str()) else { return };
        if self.running.iter().any(|running| running.epoch == self.epoch && running.name == name) {
            return;
        }
        let happened = self.effects.iter().find(|(epoch, of, _)| *epoch == self.epoch && *of == name);
        let with = match happened {
            Some((.., value)) => {
                let bound_to = Binding::step(&self.machine.key, life, &step);
                StepResolution::Complete { outcome: SealedOutcome::of_value(bound_to, value).unwrap() }
            }
            None => StepResolution::Release,
        };
        if self.machine.settles(step.as_str(), with) == Resolved::Resolved {
            self.open.remove(&(self.epoch, name));
        }
    }

    /// Checks the outcome that an attempt receives: it must be an effect of this life, and equal what each earlier
    /// attempt received.
    fn is_told(&mut self, name: usize, outcome: &SealedOutcome, life: FencingToken) -> Result<(), String> {
        let text = NAMES[name].0;
        let bound_to = self::name(text);
        let value = outcome.value::<u64>(Binding::step(&self.machine.key, life, &bound_to));
        let value = value.ok().flatten().ok_or_else(|| format!("the outcome of {text} can't be read"))?;
        if !self.effects.contains(&(self.epoch, name, value)) {
            return Err(format!("{value} is told of {text}, which no effect of this life gave"));
        }
        match self.told.insert((self.epoch, name), value) {
            Some(other) if other != value => Err(format!("{value} is told of {text}, after {other}")),
            _ => Ok(()),
        }
    }
}

#[test]
fn e26_the_promises_of_steps_hold_in_random_lives() {
    for seed in 0..5_000 {
        if let Err(broken) = life(seed) {
            panic!("seed {seed}: {broken}");
        }
    }
}
