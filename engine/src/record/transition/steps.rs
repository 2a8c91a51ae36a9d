//! The transitions of an operation's steps. Each one is atomic with its check of the parent.

use std::time::Duration;

use super::{Step, owned, put, unchanged};
use crate::backend::{
    BeginStep, CommitStep, CompleteStep, FailStep, ResolveStep, Resolved, StepBegun, StepCommitted, StepCompleted,
    StepFailed, StepResolution,
};
use crate::record::{
    Attempt, Owner, Progress, Record, SealedOutcome, State, StepName, StepRecord, StepRun, Steps, StoreTime,
};
use crate::{FencingToken, Fingerprint, StepPolicy};

/// Begins a step, or returns what is known about it.
///
/// A step begins or replays only while its parent is in progress under the sender's claim and within its lease. A
/// holder that has lost its claim is therefore refused **before** the step's effect.
pub fn begin_step(found: Option<&Record>, now: StoreTime, message: &BeginStep) -> Step<StepBegun> {
    let BeginStep { name, fingerprint, number, policy, retention, .. } = message;
    let Some(record) = live(found, now, message.owner) else { return unchanged(StepBegun::Lost) };
    let run = StepRun { token: record.token, number: *number };
    let (attempt, began_at) = match next(record, now, name, fingerprint.as_ref(), run) {
        Next::Run { attempt, began_at } => (attempt, began_at),
        Next::IsRunning { attempt } => {
            return unchanged(StepBegun::Begun { attempt, run, life: life_of(record) });
        }
        Next::Completed(outcome) => return unchanged(StepBegun::Completed { outcome, life: life_of(record) }),
        Next::Mismatch => return unchanged(StepBegun::Mismatch),
        Next::Unsettled => return unchanged(StepBegun::Unsettled),
        Next::Stale => return unchanged(StepBegun::Lost),
        Next::TooMany => return unchanged(StepBegun::TooMany),
    };
    let reruns_until = match policy {
        StepPolicy::Hold => None,
        StepPolicy::Rerun => Some(StoreTime::END),
        StepPolicy::RerunWithin(limit) => Some(began_at.after(*limit)),
    };
    let step = StepRecord {
        name: name.clone(),
        fingerprint: *fingerprint,
        attempt,
        run,
        began_at,
        reruns_until,
        progress: Progress::Begun,
    };
    put(with_step(record, step, *retention), StepBegun::Begun { attempt, run, life: life_of(record) })
}

/// Records a step's outcome.
///
/// The outcome is a fact. It is recorded even if the claim that began the step is lost, until another run of the step
/// begins.
pub fn complete_step(found: Option<&Record>, now: StoreTime, message: &CompleteStep) -> Step<StepCompleted> {
    let CompleteStep { life, name, run, outcome, .. } = message;
    let Some((record, step)) = step_of(found, now, name).filter(|(record, _)| life_of(record) == *life) else {
        return unchanged(StepCompleted::Lost);
    };
    match &step.progress {
        _ if step.run != *run => unchanged(StepCompleted::Lost),
        Progress::Completed(_) => unchanged(StepCompleted::Stored),
        Progress::Failed => unchanged(StepCompleted::Lost),
        Progress::Begun => {
            let step = StepRecord { progress: Progress::Completed(outcome.clone()), ..step.clone() };
            put(replaced(record, step, now), StepCompleted::Stored)
        }
    }
}

/// Records that a run of a step had no effect: it returned an error, or it never began.
///
/// Afterwards a [`BeginStep`] of the same run can no longer take effect.
pub fn fail_step(found: Option<&Record>, now: StoreTime, message: &FailStep) -> Step<StepFailed> {
    let FailStep { owner, name, run, retention, .. } = message;
    let Some((record, step)) = step_of(found, now, name) else {
        // While the claim stands, the begin message may still arrive.
        return match owned(found, now, *owner).filter(|record| matches!(record.state, State::InProgress { .. })) {
            Some(record) if record.token == run.token => {
                let step = StepRecord {
                    name: name.clone(),
                    fingerprint: None,
                    attempt: Attempt::new(0),
                    run: *run,
                    began_at: now,
                    reruns_until: None,
                    progress: Progress::Failed,
                };
                put(with_step(record, step, *retention), StepFailed::Failed)
            }
            _ => unchanged(StepFailed::Failed),
        };
    };
    let failed = || StepRecord { run: *run, progress: Progress::Failed, ..step.clone() };
    match &step.progress {
        // A transaction whose commit got no answer has completed the step.
        Progress::Completed(outcome) if step.run == *run => {
            unchanged(StepFailed::Completed { outcome: outcome.clone(), life: life_of(record) })
        }
        Progress::Begun if step.run == *run => put(replaced(record, failed(), now), StepFailed::Failed),
        Progress::Failed if step.run < *run => put(replaced(record, failed(), now), StepFailed::Failed),
        // The earlier run's effect stays unknown.
        Progress::Begun if step.run < *run => {
            put(replaced(record, StepRecord { run: *run, ..step.clone() }, now), StepFailed::Failed)
        }
        _ => unchanged(StepFailed::Failed),
    }
}

/// Checks whether a transaction may complete a step. The backend calls this before the operation runs, and again before
/// it commits.
///
/// `Err` is the answer that ends the transaction.
pub fn may_commit_step(found: Option<&Record>, now: StoreTime, message: &CommitStep) -> Result<(), StepCommitted> {
    committable(found, now, message).map(drop)
}

/// Completes a step at the end of the transaction that made its writes. Any answer except
/// [`Stored`](StepCommitted::Stored) rolls the transaction back.
pub fn commit_step(
    found: Option<&Record>,
    now: StoreTime,
    message: &CommitStep,
    outcome: &SealedOutcome,
) -> Step<StepCommitted> {
    let (record, run, attempt) = match committable(found, now, message) {
        Ok(committable) => committable,
        Err(answer) => return unchanged(answer),
    };
    let CommitStep { name, fingerprint, retention, .. } = message;
    let step = StepRecord {
        name: name.clone(),
        fingerprint: *fingerprint,
        attempt,
        run,
        began_at: now,
        reruns_until: None,
        progress: Progress::Completed(outcome.clone()),
    };
    let stored = StepCommitted::Stored { outcome: outcome.clone(), life: life_of(record) };
    put(with_step(record, step, *retention), stored)
}

/// Returns the parent, the run and the attempt of a step that may be committed.
fn committable<'a>(
    found: Option<&'a Record>,
    now: StoreTime,
    message: &CommitStep,
) -> Result<(&'a Record, StepRun, Attempt), StepCommitted> {
    let CommitStep { owner, name, fingerprint, number, life, .. } = message;
    let Some(record) = live(found, now, *owner).filter(|record| life_of(record) == *life) else {
        return Err(StepCommitted::Lost);
    };
    let run = StepRun { token: record.token, number: *number };
    match next(record, now, name, fingerprint.as_ref(), run) {
        Next::Run { attempt, .. } => Ok((record, run, attempt)),
        Next::IsRunning { attempt } => Ok((record, run, attempt.next())),
        Next::Completed(outcome) => Err(StepCommitted::Completed { outcome, life: life_of(record) }),
        Next::Mismatch => Err(StepCommitted::Mismatch),
        Next::Unsettled => Err(StepCommitted::Unsettled),
        Next::Stale => Err(StepCommitted::Lost),
        Next::TooMany => Err(StepCommitted::TooMany),
    }
}

/// Settles a step whose result is unknown. When no unsettled step is left, the parent is free to continue.
pub fn resolve_step(found: Option<&Record>, now: StoreTime, message: &ResolveStep) -> Step<Resolved> {
    let ResolveStep { name, run, life, with, .. } = message;
    let is_meant = |(record, step): &(&Record, &StepRecord)| {
        record.is_indeterminate(now)
            && life.is_none_or(|life| life == life_of(record))
            && run.is_none_or(|run| run == step.run)
            && step.progress == Progress::Begun
    };
    let Some((record, step)) = step_of(found, now, name).filter(is_meant) else {
        return unchanged(Resolved::NotIndeterminate);
    };
    let progress = match with {
        StepResolution::Complete { outcome } => Progress::Completed(outcome.clone()),
        StepResolution::Release => Progress::Failed,
    };
    put(replaced(record, StepRecord { progress, ..step.clone() }, now), Resolved::Resolved)
}

/// What a call of a step leads to.
enum Next {
    Run {
        attempt: Attempt,
        began_at: StoreTime,
    },
    /// This run has already begun: the message was sent again.
    IsRunning {
        attempt: Attempt,
    },
    Completed(SealedOutcome),
    Mismatch,
    Unsettled,
    /// The message arrived late.
    Stale,
    TooMany,
}

fn next(record: &Record, now: StoreTime, name: &StepName, asked: Option<&Fingerprint>, run: StepRun) -> Next {
    let steps = record.steps.as_deref();
    let is_over = |step: &&StepRecord| {
        let retention = steps.map_or(Duration::ZERO, |steps| steps.retention);
        planted!(OneStepExpires) && step.began_at.after(retention) <= now
    };
    let Some(step) = steps.and_then(|steps| steps.get(name)).filter(|step| !is_over(step)) else {
        let is_full = steps.is_some_and(|steps| steps.list.len() >= Steps::MAX);
        return if is_full { Next::TooMany } else { Next::Run { attempt: Attempt::FIRST, began_at: now } };
    };
    let asks_otherwise = step.fingerprint.as_ref() != asked;
    match &step.progress {
        Progress::Begun if step.run == run => Next::IsRunning { attempt: step.attempt },
        Progress::Begun | Progress::Failed if step.run >= run => Next::Stale,
        // The last run had no effect, so the name may be used for another request.
        Progress::Failed => Next::Run { attempt: step.attempt.next(), began_at: now },
        _ if asks_otherwise => Next::Mismatch,
        Progress::Completed(outcome) => Next::Completed(outcome.clone()),
        Progress::Begun if step.is_unsettled(now) => Next::Unsettled,
        Progress::Begun => Next::Run { attempt: step.attempt.next(), began_at: step.began_at },
    }
}

/// Returns the record if it is in progress under `owner` and its lease holds.
fn live(found: Option<&Record>, now: StoreTime, owner: Owner) -> Option<&Record> {
    let any = planted!(StaleParentBeginsStep);
    let is_live =
        |record: &&Record| matches!(record.state, State::InProgress { lease_until, .. } if lease_until > now || any);
    owned(found, now, super::anyone_if(any, found, owner)).filter(is_live)
}

fn step_of<'a>(found: Option<&'a Record>, now: StoreTime, name: &StepName) -> Option<(&'a Record, &'a StepRecord)> {
    let record = found.filter(|record| !super::is_free(record, now))?;
    Some((record, record.steps.as_ref()?.get(name)?))
}

/// Returns the life that a record's steps carry: the token of the claim that began the first step.
fn life_of(record: &Record) -> FencingToken {
    record.steps.as_ref().map_or(record.token, |steps| steps.life)
}

/// Returns the record with `step` added, or in place of the earlier step of that name.
fn with_step(record: &Record, step: StepRecord, retention: Duration) -> Record {
    let new = || Box::new(Steps { life: record.token, retention, list: Vec::new() });
    let mut steps = record.steps.clone().unwrap_or_else(new);
    match steps.get_mut(&step.name) {
        Some(earlier) => *earlier = step,
        None => steps.list.push(step),
    }
    Record { steps: Some(steps), ..record.clone() }
}

/// Returns the record with a changed step. The retention of a released parent restarts here.
fn replaced(record: &Record, step: StepRecord, now: StoreTime) -> Record {
    let retention = record.steps.as_ref().map_or(Duration::ZERO, |steps| steps.retention);
    let mut record = with_step(record, step, retention);
    match &mut record.state {
        State::Released { expires_at } => *expires_at = (*expires_at).max(now.after(retention)),
        // An unsettled step may have kept a claim that lapsed long ago. Without it the claim expires, and a retry would
        // begin without its steps. So the time counts from here.
        State::InProgress { lease_until, .. } => *lease_until = (*lease_until).max(now),
        _ => {}
    }
    record
}
