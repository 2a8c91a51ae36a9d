//! The step messages behind the settings of this module. Parent and name are rewritten, and each outcome is sealed for
//! its parent, its life and its name.

use std::convert::Infallible;

use super::{AtRest, Names};
use crate::FencingToken;
use crate::backend::{
    BeginStep, CommitStep, CompleteStep, FailStep, OperationFailure, ResolveStep, StepBegun, StepCommitted, StepFailed,
    StepInTransaction, StepResolution, StoreError,
};
use crate::record::{Binding, CorruptOutcome, Progress, SealedOutcome, StepName, Steps};

/// The names of a step, as the sender and as the store know them.
#[derive(Clone)]
pub(super) struct StepNames {
    parent: Names,
    plain: StepName,
    stored: StepName,
}

impl StepNames {
    fn plain(&self, life: FencingToken) -> Binding<'_> {
        Binding::step(&self.parent.plain, life, &self.plain)
    }

    fn stored(&self, life: FencingToken) -> Binding<'_> {
        Binding::step(&self.parent.stored, life, &self.stored)
    }
}

impl AtRest {
    fn step_names(&self, key: crate::Key, name: StepName) -> StepNames {
        let stored = self.step_name(&key, name.clone());
        StepNames { parent: self.names(key), plain: name, stored }
    }

    fn seal_step(
        &self,
        names: &StepNames,
        life: FencingToken,
        outcome: &SealedOutcome,
    ) -> Result<SealedOutcome, StoreError> {
        Ok(self.seal_bound(names.plain(life), names.stored(life), outcome)?)
    }

    fn open_step(
        &self,
        names: &StepNames,
        life: FencingToken,
        outcome: &SealedOutcome,
    ) -> Result<SealedOutcome, StoreError> {
        Ok(self.open_bound(names.plain(life), names.stored(life), outcome)?)
    }

    pub(super) fn begin_step(&self, mut message: BeginStep) -> (BeginStep, StepNames) {
        let names = self.step_names(message.key, message.name);
        message.fingerprint = message.fingerprint.map(|asked| self.fingerprint(&names.parent, asked));
        (message.key, message.name) = (names.parent.stored.clone(), names.stored.clone());
        (message, names)
    }

    pub(super) fn step_begun(&self, names: &StepNames, answer: StepBegun) -> Result<StepBegun, StoreError> {
        Ok(match answer {
            StepBegun::Completed { outcome, life } => {
                StepBegun::Completed { outcome: self.open_step(names, life, &outcome)?, life }
            }
            other => other,
        })
    }

    pub(super) fn complete_step(&self, message: CompleteStep) -> Result<CompleteStep, StoreError> {
        let names = self.step_names(message.key, message.name);
        let outcome = self.seal_step(&names, message.life, &message.outcome)?;
        Ok(CompleteStep { key: names.parent.stored, name: names.stored, outcome, ..message })
    }

    pub(super) fn fail_step(&self, message: FailStep) -> (FailStep, StepNames) {
        let names = self.step_names(message.key, message.name);
        (FailStep { key: names.parent.stored.clone(), name: names.stored.clone(), ..message }, names)
    }

    pub(super) fn step_failed(&self, names: &StepNames, answer: StepFailed) -> Result<StepFailed, StoreError> {
        Ok(match answer {
            StepFailed::Completed { outcome, life } => {
                StepFailed::Completed { outcome: self.open_step(names, life, &outcome)?, life }
            }
            StepFailed::Failed => StepFailed::Failed,
        })
    }

    pub(super) fn step_in_transaction(&self, message: StepInTransaction) -> (StepInTransaction, StepNames) {
        let StepInTransaction { mut step, operation } = message;
        let names = self.step_names(step.key, step.name);
        let (at_rest, sealed_for, life) = (self.clone(), names.clone(), step.life);
        let seal = move |outcome: SealedOutcome| {
            at_rest.seal_step(&sealed_for, life, &outcome).map_err(|_| OperationFailure::RollBack)
        };
        step.fingerprint = step.fingerprint.map(|asked| self.fingerprint(&names.parent, asked));
        let step = CommitStep { key: names.parent.stored.clone(), name: names.stored.clone(), ..step };
        (StepInTransaction { step, operation: operation.and_then(seal) }, names)
    }

    pub(super) fn step_committed(&self, names: &StepNames, answer: StepCommitted) -> Result<StepCommitted, StoreError> {
        Ok(match answer {
            StepCommitted::Stored { outcome, life } => {
                StepCommitted::Stored { outcome: self.open_step(names, life, &outcome)?, life }
            }
            StepCommitted::Completed { outcome, life } => {
                StepCommitted::Completed { outcome: self.open_step(names, life, &outcome)?, life }
            }
            other => other,
        })
    }

    pub(super) fn resolve_step(&self, message: ResolveStep) -> Result<ResolveStep, StoreError> {
        let names = self.step_names(message.key, message.name);
        let with = match (message.with, message.life) {
            (StepResolution::Complete { outcome }, Some(life)) => {
                StepResolution::Complete { outcome: self.seal_step(&names, life, &outcome)? }
            }
            (StepResolution::Complete { .. }, None) => {
                return Err(StoreError::Unsupported("an outcome for a step whose parent's life is not named"));
            }
            (StepResolution::Release, _) => StepResolution::Release,
        };
        Ok(ResolveStep { key: names.parent.stored, name: names.stored, with, ..message })
    }

    /// Opens the steps that a claim returns. They keep their names in the store, and are sealed for these names.
    pub(super) fn open_steps(&self, names: &Names, steps: &mut Steps) -> Result<(), StoreError> {
        self.each_opened(names, steps, |opened| Ok(opened?))
    }

    /// Opens steps for inspection. A step that cannot be read must not hide the others.
    pub(super) fn show_steps(&self, names: &Names, steps: &mut Steps) {
        let Ok(()) = self.each_opened(names, steps, |opened| {
            Ok::<_, Infallible>(opened.unwrap_or_else(|_| SealedOutcome::unreadable()))
        });
    }

    fn each_opened<E>(
        &self,
        names: &Names,
        steps: &mut Steps,
        take: impl Fn(Result<SealedOutcome, CorruptOutcome>) -> Result<SealedOutcome, E>,
    ) -> Result<(), E> {
        for step in &mut steps.list {
            if let Progress::Completed(outcome) = &mut step.progress {
                let plain = Binding::step(&names.plain, steps.life, &step.name);
                let stored = Binding::step(&names.stored, steps.life, &step.name);
                *outcome = take(self.open_bound(plain, stored, outcome))?;
            }
        }
        Ok(())
    }
}
