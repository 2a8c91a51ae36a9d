//! The steps of a claim's operation: those recorded by earlier attempts, and those that run now.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::warn;

use super::claim::{Arbiter, Claim, Failing, Next, ToHolder};
use super::grant::{Answered, ClaimAddr, Settlement, ToClaim, What};
use super::phase::bring;
use crate::backend::{
    BeginStep, CommitStep, CompleteStep, FailStep, Request, StepBegun, StepCommitted, StepCompleted, StepFailed,
    StepInTransaction, StoreError, TransactionOperation,
};
use crate::claims::Settled;
use crate::pending_settlements::PendingKind;
use crate::record::{Binding, Owner, Progress, SealedOutcome, StepName, StepRecord, StepRun, Steps};
use crate::{Attempt, Error, EventKind, FencingToken, Fingerprint, OnAbandoned, StepPolicy};

/// An operation's request about one of its steps.
pub(crate) enum StepCall {
    /// To run the step here, or to return its outcome.
    Begin { step: NamedStep, reply: oneshot::Sender<Result<BegunStep, StepRefusal>> },
    /// To run the step in a transaction of the store, after `Begin` answered [`BegunStep::Transact`].
    Transact {
        number: u32,
        operation: TransactionOperation,
        reply: oneshot::Sender<Result<StepCommitted, StepRefusal>>,
    },
    /// The step has ended.
    End { number: u32, end: StepEnd },
}

/// A step as its operation names it.
pub(crate) struct NamedStep {
    /// The name as the store knows it, like all names here.
    pub(crate) name: StepName,
    /// The names that the step had in earlier versions of the program.
    pub(crate) formerly: Vec<StepName>,
    pub(crate) fingerprint: Option<Fingerprint>,
    pub(crate) policy: StepPolicy,
    pub(crate) is_transactional: bool,
    /// The claim's fencing token.
    pub(crate) token: FencingToken,
    pub(crate) retention: Duration,
}

/// How a step ended.
pub(crate) enum StepEnd {
    Completed(SealedOutcome, oneshot::Sender<Result<(), StepRefusal>>),
    /// With an error: nothing happened.
    Failed(oneshot::Sender<Result<(), StepRefusal>>),
    /// It panicked, or its future was dropped: what happened is unknown.
    Dropped,
    /// Its caller left before its operation began.
    NotBegun,
}

/// The answer to [`StepCall::Begin`].
pub(crate) enum BegunStep {
    Run { name: StepName, attempt: Attempt, life: FencingToken, end: EndOnDrop },
    Transact { name: StepName, life: FencingToken, end: EndOnDrop },
    Replay { name: StepName, life: FencingToken, outcome: SealedOutcome },
}

/// Why a step did not run, or was not recorded.
#[derive(Debug)]
pub(crate) enum StepRefusal {
    Lost,
    InTransaction,
    Mismatch,
    Unsettled,
    TooMany,
    /// A step of this name is running.
    Running,
    TooLarge,
    Store(StoreError),
    NotStored(StoreError),
}

/// The store's answer about a step.
pub(crate) struct StepAnswered {
    number: u32,
    answer: StepAnswer,
}

enum StepAnswer {
    Begun(Result<StepBegun, StoreError>),
    Completed(Result<StepCompleted, StoreError>),
    Failed(Result<StepFailed, StoreError>),
    Committed(Result<StepCommitted, StoreError>),
}

/// The steps of one claim.
pub(super) struct StepTable {
    life: FencingToken,
    /// The steps that earlier attempts and this one have recorded.
    known: Vec<Known>,
    running: Vec<Running>,
    last_number: u32,
    /// The settlement of the claim, which waits for the running steps.
    settlement: Option<Waiting>,
    /// The run limit has passed. No further step begins, and the claim ends without waiting for running steps. Their
    /// results still reach the store.
    is_over: bool,
}

struct Waiting {
    settlement: Settlement,
    reply: Option<ToHolder>,
    since: Instant,
}

struct Known {
    name: StepName,
    fingerprint: Option<Fingerprint>,
    progress: Progress,
    was_asked: bool,
}

struct Running {
    step: NamedStep,
    run: StepRun,
    work: Work,
    /// Set if the store did not accept the step's end at the first try.
    failing: Option<Failing>,
}

enum Work {
    Beginning(oneshot::Sender<Result<BegunStep, StepRefusal>>),
    /// The step's operation runs.
    Working,
    Completing(SealedOutcome, Option<oneshot::Sender<Result<(), StepRefusal>>>),
    /// The step had no effect. The store has to learn that, or else the step's begin could still arrive.
    Failing(Option<oneshot::Sender<Result<(), StepRefusal>>>),
    Committing(oneshot::Sender<Result<StepCommitted, StepRefusal>>),
    /// It is unknown whether the step's transaction was committed.
    Probing(oneshot::Sender<Result<StepCommitted, StepRefusal>>, StoreError),
}

impl StepTable {
    pub(super) fn new(life: FencingToken) -> Self {
        Self { life, known: Vec::new(), running: Vec::new(), last_number: 0, settlement: None, is_over: false }
    }

    /// Creates the table of a claim that found steps of earlier attempts.
    pub(super) fn of(steps: Steps) -> Self {
        let known = steps.list.into_iter().map(|StepRecord { name, fingerprint, progress, .. }| Known {
            name,
            fingerprint,
            progress,
            was_asked: false,
        });
        let known = known.collect();
        Self { known, ..Self::new(steps.life) }
    }

    fn at(&mut self, number: u32) -> Option<&mut Running> {
        self.running.iter_mut().find(|running| running.run.number == number)
    }

    fn take(&mut self, number: u32) -> Option<Running> {
        let at = self.running.iter().position(|running| running.run.number == number)?;
        Some(self.running.swap_remove(at))
    }

    /// Takes the claim's settlement, if it no longer has to wait.
    fn take_settlement(&mut self) -> Option<Waiting> {
        let is_over = self.is_over;
        let waits_for = |running: &Running| !(is_over && matches!(running.work, Work::Beginning(_) | Work::Working));
        let waits = self.running.iter().any(waits_for);
        self.settlement.take_if(|_| !waits)
    }

    /// Returns the name under which a step is kept: an earlier name, if the step was renamed since.
    fn stored_name(&self, step: &NamedStep) -> StepName {
        let is_known = |name: &&StepName| {
            let of_running = self.running.iter().any(|running| running.step.name == **name);
            of_running || self.known.iter().any(|known| known.name == **name)
        };
        let names = [&step.name].into_iter().chain(&step.formerly);
        names.clone().find(is_known).unwrap_or(&step.name).clone()
    }

    fn keep(&mut self, completed: Known) {
        match self.known.iter_mut().find(|known| known.name == completed.name) {
            Some(known) => *known = completed,
            None => self.known.push(completed),
        }
    }
}

impl Running {
    /// Reports to the step's caller, which does not wait any longer, that the store has not accepted the step's end.
    fn report(&mut self, error: StoreError) {
        let reply = match &mut self.work {
            Work::Completing(_, reply) | Work::Failing(reply) => reply.take(),
            Work::Probing(..) => {
                let Work::Probing(reply, _) = std::mem::replace(&mut self.work, Work::Failing(None)) else { return };
                return drop(reply.send(Err(StepRefusal::NotStored(error))));
            }
            Work::Beginning(_) | Work::Working | Work::Committing(_) => None,
        };
        if let Some(reply) = reply {
            let _ = reply.send(Err(StepRefusal::NotStored(error)));
        }
    }

    /// Returns the kind of settlement that the step's end counts as past the settling limit.
    fn kind(&self) -> PendingKind {
        match self.work {
            Work::Failing(_) => PendingKind::Frees,
            _ => PendingKind::Ends,
        }
    }

    /// Returns how many bytes it keeps until the store accepts them.
    fn bytes(&self) -> usize {
        match &self.work {
            Work::Completing(outcome, _) => outcome.as_stored().len(),
            _ => 0,
        }
    }

    /// Returns the request for the store, for the first time or again.
    fn request(&self, key: &crate::Key, owner: Owner, life: FencingToken, claim: &ClaimAddr) -> Option<Request> {
        let (key, name, number) = (key.clone(), self.step.name.clone(), self.run.number);
        let NamedStep { fingerprint, policy, retention, .. } = self.step;
        let about = move |answer: StepAnswer| Answered::Step(Box::new(StepAnswered { number, answer }));
        Some(match &self.work {
            Work::Working | Work::Committing(_) => return None,
            Work::Beginning(_) => Request::BeginStep(
                Box::new(BeginStep { key, owner, name, fingerprint, number, policy, retention }),
                bring(claim, move |answer| about(StepAnswer::Begun(answer))),
            ),
            Work::Completing(outcome, _) => Request::CompleteStep(
                Box::new(CompleteStep { key, life, name, run: self.run, outcome: outcome.clone() }),
                bring(claim, move |answer| about(StepAnswer::Completed(answer))),
            ),
            Work::Failing(_) | Work::Probing(..) => Request::FailStep(
                Box::new(FailStep { key, owner, name, run: self.run, retention }),
                bring(claim, move |answer| about(StepAnswer::Failed(answer))),
            ),
        })
    }

    /// Returns the record of this step once it has completed with `outcome`.
    fn completed(&self, outcome: SealedOutcome) -> Known {
        Known {
            name: self.step.name.clone(),
            fingerprint: self.step.fingerprint,
            progress: Progress::Completed(outcome),
            was_asked: true,
        }
    }
}

impl Claim {
    /// Handles an operation's call for a step.
    pub(crate) fn step(&mut self, call: StepCall, arbiter: &Arbiter<'_>, claim: &ClaimAddr) -> Next {
        match call {
            StepCall::Begin { step, reply } => self.begin_step(step, reply, arbiter, claim),
            StepCall::Transact { number, operation, reply } => {
                let owner = self.owner();
                let Some(table) = self.steps_mut() else { return Next::Wait };
                let life = table.life;
                if let Some(running) = table.at(number) {
                    let NamedStep { name, fingerprint, retention, .. } = &running.step;
                    let (key, name) = (arbiter.key.clone(), name.clone());
                    let (fingerprint, retention) = (*fingerprint, *retention);
                    let step = CommitStep { key, owner, name, fingerprint, number, life, retention };
                    running.work = Work::Committing(reply);
                    let answered = move |answer| {
                        Answered::Step(Box::new(StepAnswered { number, answer: StepAnswer::Committed(answer) }))
                    };
                    let message = Box::new(StepInTransaction { step, operation });
                    arbiter.ask_store(Request::StepInTransaction(message, bring(claim, answered)));
                }
                Next::Wait
            }
            StepCall::End { number, end } => {
                let limit = arbiter.shared.settings.max_step_bytes;
                let life = self.steps_mut().map(|table| table.life);
                if let Some(running) = self.steps_mut().and_then(|table| table.at(number)) {
                    running.work = match end {
                        StepEnd::Completed(outcome, reply) if outcome.as_stored().len() > limit => {
                            // The step is done, and a retry gets the same error.
                            let life = life.unwrap_or(running.run.token);
                            let bound_to = Binding::step(arbiter.key, life, &running.step.name);
                            drop(reply.send(Err(StepRefusal::TooLarge)));
                            Work::Completing(SealedOutcome::tombstone(bound_to), None)
                        }
                        StepEnd::Completed(outcome, reply) => Work::Completing(outcome, Some(reply)),
                        StepEnd::Failed(reply) => Work::Failing(Some(reply)),
                        // Nothing is in the store, because the step has not reached its transaction.
                        StepEnd::NotBegun if running.step.is_transactional => {
                            return self.step_ended(number, None, arbiter, claim);
                        }
                        StepEnd::NotBegun => Work::Failing(None),
                        // The transaction continues without its caller.
                        StepEnd::Dropped if matches!(running.work, Work::Committing(_) | Work::Probing(..)) => {
                            return Next::Wait;
                        }
                        StepEnd::Dropped => {
                            if !running.step.is_transactional {
                                arbiter.tell(EventKind::StepUnsettled);
                            }
                            return self.step_ended(number, None, arbiter, claim);
                        }
                    };
                }
                self.ask_for_step(number, arbiter, claim);
                Next::Wait
            }
        }
    }

    fn begin_step(
        &mut self,
        mut step: NamedStep,
        reply: oneshot::Sender<Result<BegunStep, StepRefusal>>,
        arbiter: &Arbiter<'_>,
        claim: &ClaimAddr,
    ) -> Next {
        let refuse = |reply: oneshot::Sender<_>, refusal| {
            // The caller may have left.
            let _ = reply.send(Err(refusal));
            Next::Wait
        };
        if self.is_in_transaction() {
            return refuse(reply, StepRefusal::InTransaction);
        }
        let is_fresh = self.lease_left(arbiter.shared) > Duration::ZERO;
        let is_lost = self.is_lost() || !self.is_running();
        let table = self.steps_or_new(step.token);
        if is_lost || table.settlement.is_some() {
            return refuse(reply, StepRefusal::Lost);
        }
        step.name = table.stored_name(&step);
        if table.running.iter().any(|running| running.step.name == step.name) {
            return refuse(reply, StepRefusal::Running);
        }
        let life = table.life;
        if let Some(known) = table.known.iter_mut().find(|known| known.name == step.name) {
            known.was_asked = true;
            // An earlier attempt or this claim has completed the step. If the lease may have lapsed, the store has to
            // decide.
            if let Progress::Completed(outcome) = &known.progress
                && is_fresh
            {
                let (at_rest, key) = (&arbiter.shared.settings.at_rest, arbiter.key);
                let is_same = match (step.fingerprint, known.fingerprint) {
                    (Some(asked), Some(stored)) => asked == stored || at_rest.is_of(key, asked, stored),
                    (None, None) => true,
                    _ => false,
                };
                let answer = if is_same {
                    arbiter.tell(EventKind::StepReplayed);
                    Ok(BegunStep::Replay { name: step.name, life, outcome: outcome.clone() })
                } else {
                    Err(StepRefusal::Mismatch)
                };
                let _ = reply.send(answer);
                return Next::Wait;
            }
        }
        table.last_number += 1;
        let (number, token) = (table.last_number, step.token);
        let run = StepRun { token, number };
        if step.is_transactional {
            let begun = BegunStep::Transact { name: step.name.clone(), life, end: EndOnDrop::new(claim, number) };
            table.running.push(Running { step, run, work: Work::Working, failing: None });
            // If the caller has left, the guard in the message ends the step.
            let _ = reply.send(Ok(begun));
            return Next::Wait;
        }
        table.running.push(Running { step, run, work: Work::Beginning(reply), failing: None });
        self.ask_for_step(number, arbiter, claim);
        Next::Wait
    }

    /// Sends the step's request, for the first time or again.
    pub(crate) fn ask_for_step(&mut self, number: u32, arbiter: &Arbiter<'_>, claim: &ClaimAddr) {
        let owner = self.owner();
        let Some(table) = self.steps_mut() else { return };
        let life = table.life;
        if let Some(request) = table.at(number).and_then(|running| running.request(arbiter.key, owner, life, claim)) {
            arbiter.ask_store(request);
        }
    }

    /// Handles the store's answer about a step.
    pub(crate) fn step_answered(&mut self, answered: StepAnswered, arbiter: &Arbiter<'_>, claim: &ClaimAddr) -> Next {
        let StepAnswered { number, answer } = answered;
        let Some(running) = self.steps_mut().and_then(|table| table.at(number)) else { return Next::Wait };
        match answer {
            StepAnswer::Begun(answer) => self.step_begun(number, answer, arbiter, claim),
            StepAnswer::Completed(Ok(answer)) => {
                let Work::Completing(outcome, reply) = std::mem::replace(&mut running.work, Work::Working) else {
                    return Next::Wait;
                };
                let (told, kept) = match answer {
                    StepCompleted::Stored => {
                        arbiter.tell(EventKind::StepCompleted);
                        (Ok(()), Some(running.completed(outcome)))
                    }
                    StepCompleted::Lost => (Err(StepRefusal::Lost), None),
                };
                if let Some(reply) = reply {
                    let _ = reply.send(told);
                }
                self.step_ended(number, kept, arbiter, claim)
            }
            StepAnswer::Failed(Ok(answer)) => {
                match (std::mem::replace(&mut running.work, Work::Working), answer) {
                    (Work::Failing(Some(reply)), _) => drop(reply.send(Ok(()))),
                    (Work::Probing(reply, _), StepFailed::Completed { outcome, life }) => {
                        let kept = running.completed(outcome.clone());
                        drop(reply.send(Ok(StepCommitted::Stored { outcome, life })));
                        return self.step_ended(number, Some(kept), arbiter, claim);
                    }
                    (Work::Probing(reply, error), StepFailed::Failed) => {
                        drop(reply.send(Err(StepRefusal::Store(StoreError::unavailable(error)))));
                    }
                    _ => {}
                }
                self.step_ended(number, None, arbiter, claim)
            }
            StepAnswer::Committed(answer) => self.step_committed(number, answer, arbiter, claim),
            StepAnswer::Completed(Err(error)) | StepAnswer::Failed(Err(error)) => {
                self.step_not_taken(number, error, arbiter, claim)
            }
        }
    }

    fn step_begun(
        &mut self,
        number: u32,
        answer: Result<StepBegun, StoreError>,
        arbiter: &Arbiter<'_>,
        claim: &ClaimAddr,
    ) -> Next {
        let Some(table) = self.steps_mut() else { return Next::Wait };
        let is_over = table.is_over;
        let Some(running) = table.at(number) else { return Next::Wait };
        let Work::Beginning(reply) = std::mem::replace(&mut running.work, Work::Working) else { return Next::Wait };
        let name = running.step.name.clone();
        let (told, kept) = match answer {
            Ok(StepBegun::Begun { .. }) if is_over => {
                // Nothing ran.
                let _ = reply.send(Err(StepRefusal::Lost));
                return self.step(StepCall::End { number, end: StepEnd::NotBegun }, arbiter, claim);
            }
            Ok(StepBegun::Begun { attempt, life, .. }) => {
                // If the caller has left, or leaves before it reads this, the guard in the message ends the step.
                let _ = reply.send(Ok(BegunStep::Run { name, attempt, life, end: EndOnDrop::new(claim, number) }));
                return Next::Wait;
            }
            Ok(StepBegun::Completed { outcome, life }) => {
                arbiter.tell(EventKind::StepReplayed);
                let kept = running.completed(outcome.clone());
                (Ok(BegunStep::Replay { name, life, outcome }), Some(kept))
            }
            Ok(StepBegun::Lost) => (Err(StepRefusal::Lost), None),
            Ok(StepBegun::Mismatch) => (Err(StepRefusal::Mismatch), None),
            Ok(StepBegun::Unsettled) => (Err(StepRefusal::Unsettled), None),
            Ok(StepBegun::TooMany) => (Err(StepRefusal::TooMany), None),
            Err(error) => {
                arbiter.tell(EventKind::StoreFailed);
                let is_unknown = error.is_unknown();
                let _ = reply.send(Err(StepRefusal::Store(error)));
                if is_unknown && !planted!(UnknownStepTakenForNo) {
                    // The step's begin may be in the store, and nothing ran.
                    return self.step(StepCall::End { number, end: StepEnd::NotBegun }, arbiter, claim);
                }
                return self.step_ended(number, None, arbiter, claim);
            }
        };
        let _ = reply.send(told);
        self.step_ended(number, kept, arbiter, claim)
    }

    fn step_committed(
        &mut self,
        number: u32,
        answer: Result<StepCommitted, StoreError>,
        arbiter: &Arbiter<'_>,
        claim: &ClaimAddr,
    ) -> Next {
        let Some(running) = self.steps_mut().and_then(|table| table.at(number)) else { return Next::Wait };
        let Work::Committing(reply) = std::mem::replace(&mut running.work, Work::Working) else { return Next::Wait };
        let kept = match &answer {
            Ok(StepCommitted::Stored { outcome, .. }) => {
                arbiter.tell(EventKind::StepCompleted);
                Some(running.completed(outcome.clone()))
            }
            Ok(StepCommitted::Completed { outcome, .. }) => {
                arbiter.tell(EventKind::StepReplayed);
                Some(running.completed(outcome.clone()))
            }
            Err(error) if error.is_unknown() => {
                arbiter.tell(EventKind::StoreFailed);
                running.work = Work::Probing(reply, error.clone());
                self.ask_for_step(number, arbiter, claim);
                return Next::Wait;
            }
            _ => None,
        };
        let _ = reply.send(answer.map_err(StepRefusal::Store));
        self.step_ended(number, kept, arbiter, claim)
    }

    /// Handles an end of a step that the store did not accept. The store is asked again, because nothing else knows how
    /// the step ended.
    fn step_not_taken(&mut self, number: u32, error: StoreError, arbiter: &Arbiter<'_>, claim: &ClaimAddr) -> Next {
        arbiter.tell(EventKind::StoreFailed);
        let limit = arbiter.shared.settings.settling_limit;
        let waits_too_long = self.steps_mut().and_then(|table| table.settlement.as_ref());
        let waits_too_long = waits_too_long.is_some_and(|waiting| waiting.since.elapsed() >= limit);
        let Some(running) = self.steps_mut().and_then(|table| table.at(number)) else { return Next::Wait };
        let failing = running.failing.get_or_insert_with(Failing::new);
        failing.failures += 1;
        let is_past_the_limit = waits_too_long || failing.since.elapsed() >= limit;
        if !error.is_transient() {
            running.report(error);
            arbiter.tell(EventKind::StepUnsettled);
            return self.step_ended(number, None, arbiter, claim);
        }
        let mut goes_on = true;
        if is_past_the_limit && failing.pending.is_none() {
            warn!(key = %arbiter.key, %error, "the store has not taken the end of a step within the limit");
            running.report(error.clone());
            let pending = arbiter.shared.pending.take(running.kind(), running.bytes());
            goes_on = pending.is_some() && !planted!(PendingSettlementDropped);
            running.failing.get_or_insert_with(Failing::new).pending = pending;
        }
        let pause = running.failing.as_ref().map_or(Duration::ZERO, Failing::pause);
        self.tell_who_waits(&error, is_past_the_limit, arbiter);
        if goes_on {
            return Next::AskForStep(pause, number);
        }
        warn!(key = %arbiter.key, "too many settlements are pending; a step is left as the store has it");
        arbiter.tell(EventKind::SettlementDropped);
        arbiter.tell(EventKind::StepUnsettled);
        self.step_ended(number, None, arbiter, claim)
    }

    /// Tells the holder that waits for the claim's settlement that it takes longer.
    fn tell_who_waits(&mut self, error: &StoreError, is_past_the_limit: bool, arbiter: &Arbiter<'_>) {
        let Some(waiting) = self.steps_mut().and_then(|table| table.settlement.as_mut()) else { return };
        let told = match &waiting.settlement {
            Settlement::Complete { .. } if is_past_the_limit => Err(Error::OutcomeNotStored(error.clone())),
            Settlement::Complete { .. } | Settlement::CompleteInTransaction { .. } => return,
            // The holder has its own error to return.
            Settlement::Release | Settlement::Hold | Settlement::Abandon => Ok(Settled::Done),
        };
        let Some(reply) = waiting.reply.take() else { return };
        if told.is_err() {
            arbiter.tell(EventKind::OutcomeNotStored);
        }
        reply.send(told);
        self.frees_its_permit();
    }

    /// Removes a step that is no longer running. The claim's settlement may have waited for it.
    fn step_ended(&mut self, number: u32, kept: Option<Known>, arbiter: &Arbiter<'_>, claim: &ClaimAddr) -> Next {
        let Some(table) = self.steps_mut() else { return Next::Wait };
        table.take(number);
        if let Some(known) = kept {
            table.keep(known);
        }
        self.settle_if_steps_ended(arbiter, claim)
    }

    fn settle_if_steps_ended(&mut self, arbiter: &Arbiter<'_>, claim: &ClaimAddr) -> Next {
        match self.steps_mut().and_then(StepTable::take_settlement) {
            Some(Waiting { settlement, reply, .. }) => self.settle_now(settlement, reply, arbiter, claim),
            None => Next::Wait,
        }
    }

    /// Handles the run limit. An operation that has returned is within the limit. Its settlement no longer waits for
    /// the steps that it left running, but results that are already known must reach the store first. Returns `None`
    /// if the operation has not returned.
    pub(super) fn ends_in_time(&mut self, arbiter: &Arbiter<'_>, claim: &ClaimAddr) -> Option<Next> {
        let table = self.steps_mut()?;
        table.is_over = true;
        let has_returned = table.settlement.is_some();
        has_returned.then(|| self.settle_if_steps_ended(arbiter, claim))
    }

    /// Returns whether the result of a step has yet to reach the store.
    pub(crate) fn has_running_steps(&self) -> bool {
        self.steps().is_some_and(|table| !table.running.is_empty())
    }

    /// Keeps the claim's settlement until its steps have ended. Returns it if no step runs.
    pub(super) fn wait_for_steps(
        &mut self,
        settlement: Settlement,
        reply: Option<ToHolder>,
        arbiter: &Arbiter<'_>,
    ) -> Option<(Settlement, Option<ToHolder>)> {
        let completes = matches!(settlement, Settlement::Complete { .. } | Settlement::CompleteInTransaction { .. });
        let resumes = self.policy() == OnAbandoned::Resume;
        let Some(table) = self.steps_mut() else {
            if completes && resumes {
                arbiter.tell(EventKind::ResumeWithoutSteps);
            }
            return Some((settlement, reply));
        };
        if completes && table.known.iter().any(|known| !known.was_asked && known.progress != Progress::Failed) {
            arbiter.tell(EventKind::StepNotAsked);
        }
        if table.running.is_empty() {
            return Some((settlement, reply));
        }
        table.settlement = Some(Waiting { settlement, reply, since: Instant::now() });
        None
    }
}

/// Tells the claim how a step ended if nothing else does: its caller left before it began, its operation panicked, or
/// its future was dropped.
pub(crate) struct EndOnDrop {
    claim: ClaimAddr,
    number: u32,
    /// What a drop reports.
    otherwise: Option<StepEnd>,
}

impl EndOnDrop {
    fn new(claim: &ClaimAddr, number: u32) -> Self {
        Self { claim: Arc::clone(claim), number, otherwise: Some(StepEnd::NotBegun) }
    }

    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    /// Marks the step as begun. From here on, a drop reports that the result is unknown.
    pub(crate) fn begin(&mut self) {
        self.otherwise = Some(StepEnd::Dropped);
    }

    /// Disarms the guard, because the claim already knows that the step has ended.
    pub(crate) fn disarm(mut self) {
        self.otherwise = None;
    }

    /// Ends the step.
    pub(crate) fn end(mut self, end: StepEnd) -> Result<(), Error> {
        self.otherwise = None;
        let number = self.number;
        ToClaim::send(&self.claim, What::Step(Box::new(StepCall::End { number, end })))
    }
}

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        if let Some(end) = self.otherwise.take() {
            let end = StepCall::End { number: self.number, end };
            // If the claim's actor is gone, the step stays as the store has it.
            let _ = ToClaim::send(&self.claim, What::Step(Box::new(end)));
        }
    }
}
