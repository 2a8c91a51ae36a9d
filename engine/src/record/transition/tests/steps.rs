//! The promises about steps, in examples and in random lives of a key. Each planted bug must break one of them.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;
use crate::backend::{
    BeginStep, CommitStep, CompleteStep, FailStep, ResolveStep, StepBegun, StepCommitted, StepCompleted, StepFailed,
    StepResolution,
};
use crate::derived_key::KeyDerivation;
use crate::planted::{Bug, with};
use crate::record::{Binding, Progress, StepName, StepRun, Steps};
use crate::{CorruptOutcome, StepPolicy};

mod random;

fn fresh() -> Machine {
    Machine { key: Key::new("s", "k").unwrap(), now: StoreTime::from_millis(1_000_000), record: None }
}

fn name(name: &str) -> StepName {
    StepName::new(name).unwrap()
}

impl Machine {
    fn waits(&mut self, millis: u64) {
        self.now = self.now.after(Duration::from_millis(millis));
    }

    fn asks(&mut self, owner: u8, for_what: u8) -> Acquired {
        let message = Acquire {
            key: self.key.clone(),
            fingerprint: Fingerprint::of(&[for_what]),
            owner: by(owner),
            lease: Duration::from_millis(LEASE),
            on_abandoned: OnAbandoned::Resume,
            past_withdrawal: self
                .record
                .as_ref()
                .and_then(|record| record.barrier.as_deref())
                .map(|barrier| Box::new(barrier.withdrawn)),
        };
        let step = acquire(self.record.as_ref(), self.now, &message);
        self.apply(step)
    }

    /// Claims the key, and returns the steps that the claim brought.
    fn claims(&mut self, owner: u8) -> Option<Box<Steps>> {
        match self.asks(owner, 0) {
            Acquired::Claimed { steps, .. } => steps,
            other => panic!("{other:?}"),
        }
    }

    fn begins(&mut self, owner: u8, step: &str, number: u32, policy: StepPolicy) -> StepBegun {
        let message = BeginStep {
            key: self.key.clone(),
            owner: by(owner),
            name: name(step),
            fingerprint: None,
            number,
            policy,
            retention: Duration::from_millis(RETENTION),
        };
        let step = begin_step(self.record.as_ref(), self.now, &message);
        self.apply(step)
    }

    fn ends(&mut self, run: StepRun, life: FencingToken, step: &str, value: u64) -> StepCompleted {
        let bound_to = name(step);
        let outcome = SealedOutcome::of_value(Binding::step(&self.key, life, &bound_to), &value).unwrap();
        let message = CompleteStep { key: self.key.clone(), life, name: name(step), run, outcome };
        let step = complete_step(self.record.as_ref(), self.now, &message);
        self.apply(step)
    }

    fn fails(&mut self, owner: u8, run: StepRun, step: &str) -> StepFailed {
        let retention = Duration::from_millis(RETENTION);
        let message = FailStep { key: self.key.clone(), owner: by(owner), name: name(step), run, retention };
        let step = fail_step(self.record.as_ref(), self.now, &message);
        self.apply(step)
    }

    /// Runs a step to its end.
    fn does(&mut self, owner: u8, step: &str, number: u32) -> (StepRun, FencingToken) {
        let begun = self.begins(owner, step, number, StepPolicy::Hold);
        let StepBegun::Begun { run, life, .. } = begun else { panic!("{begun:?}") };
        assert_eq!(self.ends(run, life, step, u64::from(number)), StepCompleted::Stored);
        (run, life)
    }

    fn releases(&mut self, owner: u8) -> Released {
        let step = release(self.record.as_ref(), self.now, &Release { key: self.key.clone(), owner: by(owner) });
        self.apply(step)
    }

    fn commits(&mut self, owner: u8, step: &str, number: u32, life: FencingToken) -> StepCommitted {
        let outcome = SealedOutcome::tombstone(&self.key);
        let retention = Duration::from_millis(RETENTION);
        let (key, owner, name) = (self.key.clone(), by(owner), name(step));
        let message = CommitStep { key, owner, name, fingerprint: None, number, life, retention };
        let step = commit_step(self.record.as_ref(), self.now, &message, &outcome);
        self.apply(step)
    }

    fn completes(&mut self, owner: u8) -> Completed {
        let outcome = SealedOutcome::tombstone(&self.key);
        let retention = Duration::from_millis(RETENTION);
        let message = Complete { key: self.key.clone(), owner: by(owner), outcome, retention };
        let step = complete(self.record.as_ref(), self.now, &message);
        self.apply(step)
    }

    fn is_renewed(&mut self, owner: u8) -> bool {
        let message = Renew { key: self.key.clone(), owner: by(owner), lease: Duration::from_millis(LEASE) };
        let step = renew(self.record.as_ref(), self.now, &message);
        self.apply(step) == Renewed::Renewed
    }

    fn settles(&mut self, step: &str, with: StepResolution) -> Resolved {
        let message = ResolveStep { key: self.key.clone(), name: name(step), run: None, life: None, with };
        let step = resolve_step(self.record.as_ref(), self.now, &message);
        self.apply(step)
    }

    fn is_removed(&mut self) -> Removed {
        let step = remove(self.record.as_ref(), self.now, &Remove { key: self.key.clone() });
        self.apply(step)
    }
}

/// Returns the names of the completed steps.
fn completed(steps: Option<&Steps>) -> Vec<&str> {
    let list = steps.map_or(&[][..], |steps| &steps.list);
    let is_completed = |step: &&crate::record::StepRecord| matches!(step.progress, Progress::Completed(_));
    list.iter().filter(is_completed).map(|step| step.name.as_str()).collect()
}

#[test]
fn e26_a_stale_parent_begins_no_step() {
    let mut machine = fresh();
    assert_eq!(machine.claims(1), None);
    let (_, life) = machine.does(1, "charge", 1);
    machine.waits(LEASE);
    for taken_over in [false, true] {
        if taken_over {
            assert_eq!(completed(machine.claims(2).as_deref()), ["charge"]);
        }
        for step in ["charge", "mail"] {
            assert_eq!(machine.begins(1, step, 2, StepPolicy::Rerun), StepBegun::Lost, "{step}");
            assert_eq!(machine.commits(1, step, 2, life), StepCommitted::Lost, "{step}");
        }
    }
    machine.does(2, "mail", 1);
    assert!(matches!(machine.begins(2, "charge", 2, StepPolicy::Hold), StepBegun::Completed { .. }));
}

/// A step that was running when its holder lost the claim may record its outcome until another run of the step begins.
#[test]
fn e26_the_outcome_of_a_lost_holder_counts_until_the_step_begins_again() {
    for begins_again in [false, true] {
        let mut machine = fresh();
        machine.claims(1);
        let StepBegun::Begun { run, life, .. } = machine.begins(1, "charge", 1, StepPolicy::Rerun) else { panic!() };
        machine.waits(LEASE);
        assert_eq!(completed(machine.claims(2).as_deref()), [""; 0]);
        if begins_again {
            assert!(matches!(machine.begins(2, "charge", 1, StepPolicy::Rerun), StepBegun::Begun { .. }));
            assert_eq!(machine.ends(run, life, "charge", 17), StepCompleted::Lost);
        } else {
            assert_eq!(machine.ends(run, life, "charge", 17), StepCompleted::Stored);
            assert!(matches!(machine.begins(2, "charge", 1, StepPolicy::Rerun), StepBegun::Completed { .. }));
        }
    }
}

#[test]
fn e26_an_older_life_replays_nothing() {
    let ends: [fn(&mut Machine); 4] = [
        |machine| assert_eq!(machine.completes(1), Completed::Stored),
        |machine| assert_eq!(machine.releases(1), Released::Released),
        |machine| assert_eq!(machine.is_removed(), Removed::Removed),
        // No caller returns for the record.
        |machine| machine.waits(crate::record::ABANDONED_CLAIM_KEPT.as_millis() as u64 + LEASE),
    ];
    for end in ends {
        let mut machine = fresh();
        machine.claims(1);
        let (run, life) = machine.does(1, "charge", 1);
        end(&mut machine);
        machine.waits(RETENTION);
        assert_eq!(machine.now_record(), None);
        assert_eq!(machine.claims(2), None);
        let begun = machine.begins(2, "charge", 1, StepPolicy::Hold);
        assert!(
            matches!(begun, StepBegun::Begun { attempt: Attempt::FIRST, life: new, .. } if new > life),
            "{begun:?}"
        );
        assert_eq!(machine.ends(run, life, "charge", 17), StepCompleted::Lost);
    }
}

#[test]
fn e26_no_step_expires_before_its_parent() {
    let mut machine = fresh();
    machine.claims(1);
    machine.does(1, "charge", 1);
    for _ in 0..3 * RETENTION / LEASE {
        machine.waits(LEASE - 1);
        assert!(machine.is_renewed(1));
        assert!(matches!(machine.begins(1, "charge", 2, StepPolicy::Hold), StepBegun::Completed { .. }));
    }
    machine.waits(LEASE);
    assert_eq!(completed(machine.claims(2).as_deref()), ["charge"]);
    let step = hold(machine.record.as_ref(), machine.now, &Hold { key: machine.key.clone(), owner: by(2) });
    assert_eq!(machine.apply(step), Held::Held);
    machine.waits(10 * RETENTION);
    assert_eq!(completed(machine.now_record().unwrap().steps.as_deref()), ["charge"]);
    // A released record is kept for its retention from here, and every change of a step restarts that time.
    let release = Resolve { key: machine.key.clone(), attempt: None, owner: None, with: Resolution::Release };
    let step = resolve(machine.record.as_ref(), machine.now, &release);
    assert_eq!(machine.apply(step), Resolved::Resolved);
    machine.waits(RETENTION - 1);
    assert_eq!(completed(machine.now_record().unwrap().steps.as_deref()), ["charge"]);
    machine.waits(1);
    assert_eq!(machine.now_record(), None);
}

#[test]
fn e26_a_released_key_takes_no_other_request() {
    let mut machine = fresh();
    machine.claims(1);
    machine.does(1, "charge", 1);
    assert_eq!(machine.releases(1), Released::Released);
    assert_eq!(machine.asks(2, 1), Acquired::Mismatch);
    assert_eq!(completed(machine.claims(2).as_deref()), ["charge"]);
    assert_eq!(machine.asks(3, 1), Acquired::Mismatch);
}

#[test]
fn e26_a_dropped_step_outranks_the_release_of_its_parent() {
    let within = Duration::from_millis(LEASE / 2);
    for (policy, is_free) in
        [(StepPolicy::Hold, false), (StepPolicy::Rerun, true), (StepPolicy::RerunWithin(within), false)]
    {
        let mut machine = fresh();
        machine.claims(1);
        assert!(matches!(machine.begins(1, "charge", 1, policy), StepBegun::Begun { .. }));
        machine.waits(LEASE / 2);
        if is_free {
            assert_eq!(machine.releases(1), Released::Released);
            assert!(matches!(machine.asks(2, 0), Acquired::Claimed { .. }));
            continue;
        }
        assert_eq!(machine.releases(1), Released::Unsettled { step: name("charge") });
        assert!(matches!(machine.asks(2, 0), Acquired::Indeterminate { .. }), "{policy:?}");
        machine.waits(100 * RETENTION);
        assert!(matches!(machine.asks(2, 0), Acquired::Indeterminate { .. }), "{policy:?}");
        let release = Resolve { key: machine.key.clone(), attempt: None, owner: None, with: Resolution::Release };
        let step = resolve(machine.record.as_ref(), machine.now, &release);
        assert_eq!(machine.apply(step), Resolved::UnsettledStep { step: name("charge") });
        assert_eq!(machine.settles("charge", StepResolution::Release), Resolved::Resolved);
        assert!(matches!(machine.asks(2, 0), Acquired::Claimed { .. }), "{policy:?}");
        assert!(matches!(machine.begins(2, "charge", 1, policy), StepBegun::Begun { .. }));
    }
}

#[test]
fn e26_a_release_keeps_the_steps() {
    let mut machine = fresh();
    machine.claims(1);
    machine.does(1, "reserve", 1);
    let StepBegun::Begun { run, .. } = machine.begins(1, "charge", 2, StepPolicy::Hold) else { panic!() };
    assert_eq!(machine.fails(1, run, "charge"), StepFailed::Failed);
    assert_eq!(machine.releases(1), Released::Released);
    assert_eq!(machine.releases(1), Released::Released, "it is sent again");
    assert_eq!(machine.now_record().unwrap().state.name(), "released");
    assert_eq!(completed(machine.claims(2).as_deref()), ["reserve"]);
    assert!(matches!(machine.begins(2, "reserve", 1, StepPolicy::Hold), StepBegun::Completed { .. }));
    // A failed step left nothing, so no record is kept for it alone.
    let mut machine = fresh();
    machine.claims(1);
    let StepBegun::Begun { run, .. } = machine.begins(1, "charge", 1, StepPolicy::Hold) else { panic!() };
    assert_eq!(machine.fails(1, run, "charge"), StepFailed::Failed);
    assert_eq!(machine.releases(1), Released::Released);
    assert_eq!(machine.now_record(), None);
}

#[test]
fn e26_the_steps_of_two_keys_share_no_name() {
    let keys = [("s", "k"), ("s", "l"), ("t", "k")].map(|(scope, key)| Key::new(scope, key).unwrap());
    let (lives, names) = ([1, 2].map(FencingToken::new), ["charge", "mail"].map(name));
    let bindings: Vec<_> = keys
        .iter()
        .flat_map(|key| lives.iter().flat_map(|life| names.iter().map(|name| Binding::step(key, *life, name))))
        .chain(keys.iter().map(Binding::from))
        .collect();
    for (at, bound_to) in bindings.iter().enumerate() {
        let outcome = SealedOutcome::of_value(*bound_to, &17).unwrap();
        for (other, read_as) in bindings.iter().enumerate() {
            let read = outcome.value::<u32>(*read_as);
            assert_eq!(read, if at == other { Ok(Some(17)) } else { Err(CorruptOutcome::Checksum) }, "{at} as {other}");
        }
    }
    let derivation = KeyDerivation::default();
    let derived: std::collections::BTreeSet<_> = keys
        .iter()
        .flat_map(|key| names.iter().map(|name| derivation.derive(key, name.as_str()).to_string()))
        .collect();
    assert_eq!(derived.len(), keys.len() * names.len());
}

#[test]
fn e26_no_step_outlives_its_record() {
    let mut machine = fresh();
    // A barrier keeps the record after its life is over.
    let step = withdraw(None, machine.now, &Withdraw { key: machine.key.clone(), owner: by(9) });
    machine.apply(step);
    machine.claims(1);
    machine.does(1, "charge", 1);
    assert_eq!(machine.is_removed(), Removed::Removed);
    let vacant = machine.record.clone().unwrap();
    assert_eq!((vacant.state.name(), vacant.steps), ("vacant", None));
    assert_eq!(machine.claims(2), None);
    // Withdraw a claim whose steps left nothing.
    let StepBegun::Begun { run, .. } = machine.begins(2, "charge", 1, StepPolicy::Hold) else { panic!() };
    assert_eq!(machine.fails(2, run, "charge"), StepFailed::Failed);
    let message = Withdraw { key: machine.key.clone(), owner: by(2) };
    let step = withdraw(machine.record.as_ref(), machine.now, &message);
    machine.apply(step);
    let vacant = machine.record.clone().unwrap();
    assert_eq!((vacant.state.name(), vacant.steps), ("vacant", None));
}

/// Each planted bug breaks an example and, where chance can reach it, a promise in a random life.
#[test]
fn e26_each_planted_error_is_noticed() {
    let examples: [(Bug, fn()); 8] = [
        (Bug::StaleParentBeginsStep, e26_a_stale_parent_begins_no_step),
        (Bug::OlderLifeReplays, e26_an_older_life_replays_nothing),
        (Bug::OneStepExpires, e26_no_step_expires_before_its_parent),
        (Bug::ReleasedKeyTakesAnotherBody, e26_a_released_key_takes_no_other_request),
        (Bug::DroppedStepReleased, e26_a_dropped_step_outranks_the_release_of_its_parent),
        (Bug::StepsForgottenAtRelease, e26_a_release_keeps_the_steps),
        (Bug::StepsShareAName, e26_the_steps_of_two_keys_share_no_name),
        (Bug::OrphanLeft, e26_no_step_outlives_its_record),
    ];
    for (bug, example) in examples {
        example();
        assert!(with(bug, || catch_unwind(AssertUnwindSafe(example))).is_err(), "no example notices {bug:?}");
        // This bug involves another key, and a random life has only one.
        if bug != Bug::StepsShareAName {
            let noticed = with(bug, || (0..5_000).find_map(|seed| random::life(seed).err()));
            assert!(noticed.is_some(), "no random life notices {bug:?}");
        }
    }
}
