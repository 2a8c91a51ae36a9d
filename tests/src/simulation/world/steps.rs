//! The ledger of steps: what really happened under each name, and which outcomes operations received.

use std::collections::BTreeMap;

use oncekey::backend::{BeginStep, OperationFailure, StepBegun, StepCommitted, StepInTransaction};
use oncekey::record::{Progress, Record, State, transition};
use oncekey::{AbandonedClaim, AbandonedStep, Key, ReconcileOutcome};

use super::{Fault, Sabotage, Shared, Transaction, World};
use crate::simulation::checkouts::{self, StepKind};

#[derive(Debug, Default)]
pub(super) struct StepLedger {
    effects: Vec<(Key, String, u64)>,
    /// The first outcome that an operation received. Each later attempt must receive the same.
    told: BTreeMap<(Key, String), u64>,
    /// The step that each provider's key belongs to.
    derived: BTreeMap<String, (Key, String)>,
}

impl World {
    fn has_step_effect(&mut self, key: &Key, name: &str, kind: StepKind, value: u64) {
        self.note(format_args!("EFFECT of {key}, step {name}: {value}"));
        self.report.effects += 1;
        if kind != StepKind::Rerun && self.effect_of_step(key, name).is_some() {
            self.breaks(format!("the step {name} of {key} ({kind:?}) had its effect twice"));
        }
        self.steps.effects.push((key.clone(), name.to_owned(), value));
    }

    fn effect_of_step(&self, key: &Key, name: &str) -> Option<u64> {
        let found = self.steps.effects.iter().find(|(of, step, _)| of == key && step == name);
        found.map(|(_, _, value)| *value)
    }

    /// Begins a step, and checks that the store does not begin or replay one for a holder that has lost its claim.
    pub(in crate::simulation) fn begin_step(&mut self, message: &BeginStep) -> StepBegun {
        let (before, now) = (self.records.get(&message.key).cloned(), self.now());
        let (sender, mut message) = (message.owner, message.clone());
        if self.sabotage == Some(Sabotage::StepsUnfenced)
            && let Some(record) = &before
        {
            message.owner = record.owner;
        }
        let answer = self.step("begin step", &message.key, |found, now| transition::begin_step(found, now, &message));
        let is_holder = |record: &Record| {
            record.owner == sender && matches!(record.state, State::InProgress { lease_until, .. } if lease_until > now)
        };
        let is_granted = matches!(answer, StepBegun::Begun { .. } | StepBegun::Completed { .. });
        if is_granted && !before.as_ref().is_some_and(is_holder) {
            self.breaks(format!("a holder that has lost {} began its step {}", message.key, message.name));
        }
        answer
    }

    /// Runs a step's transaction, and commits it together with its outcome, or commits neither.
    pub(in crate::simulation) fn transact_step(&mut self, message: StepInTransaction) -> StepCommitted {
        let StepInTransaction { step, operation } = message;
        let (found, now) = (self.records.get(&step.key).cloned(), self.now());
        if let Err(answer) = transition::may_commit_step(found.as_ref(), now, &step) {
            self.note(format_args!("may not commit {} of {}: {answer:?}", step.name, step.key));
            return answer;
        }
        let fails = self.strikes(Fault::Failure, 5.0);
        let mut transaction = Transaction { value: self.next_value(), wrote: false, fails };
        match operation.run(&mut transaction) {
            Ok(outcome) => {
                let committed = self
                    .step("commit step", &step.key, |found, now| transition::commit_step(found, now, &step, &outcome));
                if matches!(committed, StepCommitted::Stored { .. }) && transaction.wrote {
                    self.has_step_effect(&step.key, step.name.as_str(), StepKind::Transaction, transaction.value);
                }
                committed
            }
            Err(OperationFailure::RollBack) => StepCommitted::RolledBack,
            Err(OperationFailure::WrongConnection { wanted }) => StepCommitted::WrongConnection { wanted },
        }
    }

    /// Checks what must hold of a record's steps after every change.
    pub(super) fn checks_steps(&mut self, name: &str, key: &Key, before: Option<&Record>, after: Option<&Record>) {
        let completed = |record: Option<&Record>| {
            let steps = record.and_then(|record| record.steps.as_ref()).map_or(&[][..], |steps| &steps.list);
            let outcomes = steps.iter().filter_map(|step| match &step.progress {
                Progress::Completed(outcome) => Some((step.name.clone(), outcome.clone())),
                _ => None,
            });
            outcomes.collect::<BTreeMap<_, _>>()
        };
        if let Some(Record { state: State::Vacant { .. }, steps: Some(_), .. }) = after {
            self.breaks(format!("{name} freed {key} and left its steps"));
        }
        // Nothing expires and no record is removed during a run.
        let after = completed(after);
        for (step, outcome) in completed(before) {
            if after.get(&step) != Some(&outcome) {
                self.breaks(format!("{name} lost or changed the outcome of the step {step} of {key}"));
            }
        }
    }

    /// Checks that each step of a finished checkout is done.
    pub(super) fn checks_finished(&mut self, key: &Key, value: u64) {
        let steps = checkouts::steps(key);
        for (name, _) in steps {
            if self.effect_of_step(key, name).is_none() {
                self.breaks(format!("{key} is finished, and its step {name} never happened"));
            }
        }
        let last = steps.last().map(|(name, _)| (key.clone(), (*name).to_owned(), value));
        if !last.is_some_and(|last| self.steps.effects.contains(&last)) {
            self.breaks(format!("{key} is told {value}, which no effect of its last step gave"));
        }
    }

    /// Returns whether an operation received a step's outcome, so that the key cannot be used for another request.
    pub(super) fn has_steps(&self, key: &Key) -> bool {
        self.steps.told.keys().any(|(of, _)| of == key)
    }
}

impl Shared {
    /// Performs an external effect of a step, and returns its value. Its provider receives the key `derived`.
    pub(in crate::simulation) fn step_effect(&self, key: &Key, name: &str, kind: StepKind, derived: &str) -> u64 {
        self.with(|world| {
            let value = world.next_value();
            world.has_step_effect(key, name, kind, value);
            let step = (key.clone(), name.to_owned());
            let known = world.steps.derived.entry(derived.to_owned()).or_insert_with(|| step.clone());
            if *known != step {
                let known = format!("{known:?}");
                world.breaks(format!("{step:?} hands its provider the key of {known}"));
            }
            value
        })
    }

    /// Records that an operation received a step's outcome.
    pub(in crate::simulation) fn is_told_of_step(&self, key: &Key, name: &str, value: u64) {
        self.with(|world| {
            world.note(format_args!("{key} is told {value} of its step {name}"));
            let step = (key.clone(), name.to_owned());
            if !world.steps.effects.contains(&(key.clone(), name.to_owned(), value)) {
                world.breaks(format!("{key} is told {value} of its step {name}, which no effect gave"));
            }
            match world.steps.told.insert(step, value) {
                Some(other) if other != value => {
                    world.breaks(format!("{key} is told {value} of its step {name}, and was told {other}"));
                }
                _ => {}
            }
        });
    }

    /// Returns what happened to a step, from the ledger and from the operations that still run.
    pub(super) fn verdict_of_step(&self, abandoned: &AbandonedClaim, step: &AbandonedStep) -> ReconcileOutcome {
        let key = &abandoned.key;
        self.with(|world| {
            // A running operation may be about to run its step.
            let may_come = world.working.iter().any(|engaged| engaged.key == *key)
                || world.promised.iter().any(|promise| promise.engaged.key == *key);
            let verdict = match world.effect_of_step(key, step.name.as_str()) {
                Some(value) => ReconcileOutcome::Completed(abandoned.outcome(&value).unwrap()),
                None if may_come => ReconcileOutcome::Unknown,
                None => ReconcileOutcome::NotDone,
            };
            world.note(format_args!("verdict on {key}, step {}: {verdict:?}", step.name));
            verdict
        })
    }
}
