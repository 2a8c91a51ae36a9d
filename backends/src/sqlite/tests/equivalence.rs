//! The file does what the transitions say, over random lives of one key with steps.

use std::collections::BTreeMap;

use oncekey::backend::{
    BeginStep, CommitStep, Complete, CompleteStep, FailStep, Hold, Release, Remove, Renew, Resolution, Resolve,
    ResolveStep, StepResolution, Withdraw,
};
use oncekey::record::{SealedOutcome, StepName, StepRun};
use oncekey::{FencingToken, StepPolicy};

use super::steps::session;
use super::*;

/// Numbers that are the same in every run of the test.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        // Xorshift: good enough to choose messages.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize].clone()
    }
}

/// A file, and the record that it should have.
struct Both {
    session: super::super::session::Session,
    key: Key,
    now: StoreTime,
    model: Option<Record>,
    number: u32,
    met: BTreeMap<String, u32>,
}

macro_rules! both {
    ($both:ident, $outcomes:expr, $name:literal, $transition:expr) => {{
        let (transition, now) = ($transition, $both.now);
        let expected = transition($both.model.as_ref(), now);
        let found = $both.session.step(&$both.key, $outcomes, |found, _| transition(found, now)).unwrap();
        assert_eq!(found, expected.answer, "{} on {:?}", $name, $both.model);
        let answer = format!("{:?}", expected.answer);
        let answer = answer.split(&[' ', '(', '{'][..]).next().unwrap_or_default();
        *$both.met.entry(format!("{} {answer}", $name)).or_default() += 1;
        match expected.write {
            Write::Nothing => {}
            Write::Put(record) => $both.model = Some(record),
            Write::Delete => $both.model = None,
        }
    }};
}

impl Both {
    fn message(&mut self, chance: &mut Chance, owners: &[Owner; 3]) {
        let key = self.key.clone();
        let millis = Duration::from_millis(chance.of(&[0, 50, 10_000, 1_000_000]));
        // Mostly the holder's, or else nearly every message is refused.
        let holder = self.model.as_ref().map(|record| record.owner).filter(|_| chance.below(8) > 0);
        let owner = holder.unwrap_or_else(|| chance.of(owners));
        let name = StepName::new(chance.of(&["a", "b", "c"])).unwrap();
        let steps = self.model.as_ref().and_then(|record| record.steps.clone());
        let token = self.model.as_ref().map_or(FencingToken::ZERO, |record| record.token);
        self.number += chance.below(3) as u32;
        let number = self.number;
        let run = steps.as_ref().and_then(|steps| steps.get(&name)).map(|step| step.run);
        let run = run.filter(|_| chance.below(4) > 0).unwrap_or(StepRun { token, number });
        let life = steps.as_ref().map_or(token, |steps| steps.life);
        let life = if chance.below(8) == 0 { token } else { life };
        let fingerprint = chance.of(&[None, None, None, Some(Fingerprint::of(b"step"))]);
        let outcome = SealedOutcome::of_value(&key, &chance.below(1_000)).unwrap();
        let attempt = None;
        match chance.below(18) {
            0 | 1 => {
                let fingerprint = Fingerprint::of(chance.of(&[b"asked", b"asked", b"asked", b"other"]));
                let on_abandoned = chance.of(&[OnAbandoned::Hold, OnAbandoned::Rerun, OnAbandoned::Resume]);
                let barrier = self.model.as_ref().and_then(|record| record.barrier.as_deref());
                let past_withdrawal =
                    barrier.map(|barrier| Box::new(barrier.withdrawn)).filter(|_| chance.below(4) > 0);
                let message = Acquire { key, fingerprint, owner, lease: millis, on_abandoned, past_withdrawal };
                both!(self, Outcomes::All, "acquire", |found: Option<&Record>, now: StoreTime| transition::acquire(
                    found, now, &message
                ));
            }
            2 => {
                let message = Renew { key, owner, lease: millis };
                both!(self, Outcomes::None, "renew", |found: Option<&Record>, now: StoreTime| transition::renew(
                    found, now, &message
                ));
            }
            3 => {
                let message = Complete { key, owner, outcome, retention: millis };
                both!(self, Outcomes::None, "complete", |found: Option<&Record>, now: StoreTime| transition::complete(
                    found, now, &message
                ));
            }
            4 => {
                let message = Release { key, owner };
                both!(self, Outcomes::None, "release", |found: Option<&Record>, now: StoreTime| transition::release(
                    found, now, &message
                ));
            }
            5 if chance.below(3) == 0 => {
                let message = Withdraw { key, owner };
                both!(self, Outcomes::None, "withdraw", |found: Option<&Record>, now: StoreTime| transition::withdraw(
                    found, now, &message
                ));
            }
            6 if chance.below(3) == 0 => {
                let message = Remove { key };
                both!(self, Outcomes::None, "remove", |found: Option<&Record>, now: StoreTime| transition::remove(
                    found, now, &message
                ));
            }
            7 if chance.below(2) == 0 => {
                let message = Hold { key, owner };
                both!(self, Outcomes::None, "hold", |found: Option<&Record>, now: StoreTime| transition::hold(
                    found, now, &message
                ));
            }
            7 | 8 if chance.below(2) == 0 => {
                let complete = Resolution::Complete { outcome, retention: millis };
                let message = Resolve { key, attempt, owner: None, with: chance.of(&[Resolution::Release, complete]) };
                both!(self, Outcomes::None, "resolve", |found: Option<&Record>, now: StoreTime| transition::resolve(
                    found, now, &message
                ));
            }
            5..=9 | 14..=15 => {
                let policies = [StepPolicy::Hold, StepPolicy::Rerun, StepPolicy::RerunWithin(millis)];
                let (policy, retention) = (chance.of(&policies), millis);
                let message = BeginStep { key, owner, name, fingerprint, number, policy, retention };
                let outcomes = Outcomes::Of(&message.name);
                both!(self, outcomes, "begin", |found: Option<&Record>, now: StoreTime| transition::begin_step(
                    found, now, &message
                ));
            }
            10 | 16 => {
                let message = CompleteStep { key, life, name, run, outcome };
                let outcomes = Outcomes::Of(&message.name);
                both!(self, outcomes, "end", |found: Option<&Record>, now: StoreTime| transition::complete_step(
                    found, now, &message
                ));
            }
            11 => {
                let message = FailStep { key, owner, name, run, retention: millis };
                let outcomes = Outcomes::Of(&message.name);
                both!(self, outcomes, "fail", |found: Option<&Record>, now: StoreTime| transition::fail_step(
                    found, now, &message
                ));
            }
            12 | 17 => {
                let message = CommitStep { key, owner, name, fingerprint, number, life, retention: millis };
                let outcomes = Outcomes::Of(&message.name);
                both!(self, outcomes, "commit", |found: Option<&Record>, now: StoreTime| transition::commit_step(
                    found, now, &message, &outcome
                ));
            }
            _ => {
                let with = chance.of(&[StepResolution::Release, StepResolution::Complete { outcome }]);
                let (run, life) = (chance.of(&[None, Some(run)]), chance.of(&[None, Some(life)]));
                let message = ResolveStep { key, name, run, life, with };
                let outcomes = Outcomes::Of(&message.name);
                both!(self, outcomes, "resolve step", |found: Option<&Record>, now: StoreTime| {
                    transition::resolve_step(found, now, &message)
                });
            }
        }
    }
}

#[test]
fn e26_the_file_does_what_the_transitions_say() {
    let mut met = BTreeMap::new();
    for seed in 1..=300 {
        let (session, claim, _) = session();
        let mut both =
            Both { session, key: claim.key.clone(), now: StoreTime::from_millis(1), model: None, number: 1, met };
        let start = Remove { key: claim.key.clone() };
        let far = StoreTime::END;
        both.session.step(&claim.key, Outcomes::None, |found, _| transition::remove(found, far, &start)).unwrap();
        let mut chance = Chance(u64::wrapping_mul(seed, 0x9E37_79B9_7F4A_7C15));
        let owners = [Owner::random(), Owner::random(), Owner::random()];
        for _ in 0..80 {
            both.now = both.now.after(Duration::from_millis(chance.of(&[
                0,
                0,
                0,
                1,
                1,
                1,
                5,
                5,
                5,
                60,
                60,
                20_000,
                100_000,
                100_000_000,
            ])));
            both.message(&mut chance, &owners);
            let found = records::find(&mut both.session.connection, &both.key, Outcomes::All).unwrap();
            assert_eq!(found.map(|found| found.record), both.model);
            let steps =
                both.model.as_ref().and_then(|record| record.steps.as_ref()).map_or(0, |steps| steps.list.len());
            assert_eq!(super::steps::rows(&mut both.session), steps as i64, "rows of steps");
        }
        met = both.met;
    }
    // It went through all of it.
    for answer in [
        "acquire Claimed",
        "acquire Indeterminate",
        "acquire Mismatch",
        "begin Begun",
        "begin Completed",
        "begin Lost",
        "begin Mismatch",
        "begin Unsettled",
        "commit Stored",
        "commit Completed",
        "end Stored",
        "end Lost",
        "fail Failed",
        "fail Completed",
        "release Released",
        "release Unsettled",
        "resolve UnsettledStep",
        "resolve step Resolved",
        "withdraw Withdrawn",
    ] {
        assert!(met.get(answer).is_some_and(|times| *times > 1), "{answer} is missing in {met:#?}");
    }
}
