//! Turns each message into a command, and the server's answer into the message's answer or the next command.
//!
//! Most steps are one command. A step that finds a claim, or finds that its data has changed, needs another. All
//! further commands of a batch go out together.

use std::sync::Arc;
use std::time::{Duration, Instant};

use oncekey::backend::{
    Acquire, Acquired, Complete, CompleteStep, Completed, Held, Hold, Lookup, RecordView, Release, Released, Remove,
    Removed, Renew, Renewed, Reply, Request, Resolution, Resolve, Resolved, StepCompleted, StepState, StoreError,
    Withdraw, Withdrawn,
};
use oncekey::record::{Owner, WITHDRAWAL_KEPT};
use oncekey::{Attempt, FencingToken, Fingerprint, Key, OnAbandoned};
use redis::{Cmd, Value as Answer};

use super::acquire::{Next, claimed, claimed_first, is_own_claim, read_found, read_take_over};
use super::answer::{Found, Verdict, bytes_or_nil, read_record, table, unexpected, verdict};
use super::clock::Now;
use super::error::Failure;
use super::family_step::{FamilyStep, Message as OfFamily, WithSteps};
use super::script::{self, Step as Script};
use super::value::{Barrier, Claim, LONGEST, Met, Stored, Value, claim_millis, millis, owned_by};
use super::{family_script, slot};

/// The names of the store's keys, and the channel for announcements.
#[derive(Debug)]
pub(super) struct Names {
    pub(super) prefix: String,
    pub(super) channel: String,
    pub(super) with_steps: WithSteps,
}

impl Names {
    /// Returns the Redis key of a record.
    pub(super) fn of(&self, key: &Key) -> Vec<u8> {
        [self.prefix.as_bytes(), key.as_stored().as_bytes()].concat()
    }

    /// Returns the Redis key of a record's steps.
    pub(super) fn steps_of(&self, key: &Key) -> Vec<u8> {
        slot::steps_of(&self.of(key))
    }
}

/// A message in progress. Its reply's [`StepState`] records what is known about it.
pub(super) struct Step {
    names: Arc<Names>,
    work: Work,
    /// The server did not know the script, so the command carries its whole text.
    whole: bool,
    /// The command was sent before, and its connection broke. That copy may still arrive.
    again: bool,
    /// Replaces the reply's state while a command only reads, because a read changes nothing, whatever happens to it.
    reading: StepState,
    /// Until then, the command is sent again while the cluster has no node for it.
    until: Instant,
}

pub(super) enum Work {
    Acquire(Acquire, FencingToken, Reply<Acquired>),
    /// An acquire that the server refused for lack of memory, and that error. Reading an existing record needs no
    /// memory.
    Look(Acquire, StoreError, Reply<Acquired>),
    /// An acquire that found this claim or tombstone.
    TakeOver(Acquire, Met, FencingToken, Reply<Acquired>),
    /// An acquire that was sent twice and found a value that is not its own. Its first copy is withdrawn before it is
    /// answered.
    Bar(Withdraw, Acquired, Reply<Acquired>),
    Renew(Renew, Reply<Renewed>),
    Complete(Complete, Reply<Completed>),
    Release(Release, Reply<Released>),
    Withdraw(Withdraw, Reply<Withdrawn>),
    Hold(Hold, Reply<Held>),
    /// A resolve that must first read the record.
    Inspect(Resolve, Reply<Resolved>),
    Resolve(Resolve, Met, Reply<Resolved>),
    Lookup(Lookup, Reply<Option<RecordView>>),
    /// A remove that must first read the record.
    Find(Remove, Reply<Removed>),
    /// The value that was read, and the tombstone to replace it.
    Remove(Remove, Vec<u8>, Value, Reply<Removed>),
    CompleteStep(Box<CompleteStep>, Reply<StepCompleted>),
    /// A message about a record that has steps, or will have some.
    Family(Box<FamilyStep>),
}

impl Step {
    /// Creates a step. Returns the request if it is not a step on one key.
    #[expect(clippy::result_large_err, reason = "given back at once, to be taken elsewhere")]
    pub(super) fn begin(names: &Arc<Names>, request: Request, until: Instant) -> Result<Self, Request> {
        let work = match request {
            Request::Acquire(message, reply) => Work::Acquire(message, FencingToken::ZERO, reply),
            Request::Renew(message, reply) => Work::Renew(message, reply),
            Request::Complete(message, reply) => Work::Complete(message, reply),
            Request::Release(message, reply) => Work::Release(message, reply),
            Request::Withdraw(message, reply) => Work::Withdraw(message, reply),
            Request::Hold(message, reply) => Work::Hold(message, reply),
            Request::Resolve(message, reply) => Work::Inspect(message, reply),
            Request::Lookup(message, reply) => Work::Lookup(message, reply),
            Request::Remove(message, reply) => Work::Find(message, reply),
            Request::BeginStep(message, reply) => OfFamily::Begin(message, reply).into(),
            Request::CompleteStep(message, reply) => Work::CompleteStep(message, reply),
            Request::FailStep(message, reply) => OfFamily::Fail(message, reply).into(),
            Request::ResolveStep(message, reply) => OfFamily::ResolveStep(message, reply).into(),
            other => return Err(other),
        };
        Ok(Self { names: Arc::clone(names), work, whole: false, again: false, reading: StepState::default(), until })
    }

    /// Returns what is known about the command in flight and the commands before it.
    fn state(&mut self) -> &mut StepState {
        match &mut self.work {
            Work::Acquire(_, _, reply) | Work::TakeOver(_, _, _, reply) | Work::Bar(_, _, reply) => reply.state(),
            Work::Renew(_, reply) => reply.state(),
            Work::Complete(_, reply) => reply.state(),
            Work::Release(_, reply) => reply.state(),
            Work::Withdraw(_, reply) => reply.state(),
            Work::Hold(_, reply) => reply.state(),
            Work::Resolve(_, _, reply) => reply.state(),
            Work::Remove(_, _, _, reply) => reply.state(),
            Work::CompleteStep(_, reply) => reply.state(),
            Work::Family(step) => step.state().unwrap_or(&mut self.reading),
            Work::Look(..) | Work::Inspect(..) | Work::Lookup(..) | Work::Find(..) => &mut self.reading,
        }
    }

    /// Returns the command to send now, on an open connection. From here on it counts as sent.
    pub(super) fn depart(&mut self, now: Now) -> Cmd {
        let (command, state) = self.command(now);
        state.sent();
        command
    }

    /// Returns the command to send, and the state that records what happens to it.
    pub(super) fn command(&mut self, now: Now) -> (Cmd, &mut StepState) {
        match &mut self.work {
            Work::Acquire(_, token, _) => *token = token_after(None, now.micros),
            Work::TakeOver(message, met, token, _) => {
                let claim = met.value.claim;
                // The same owner asks again: its claim keeps its token.
                let is_own = is_own_claim(message, &met.value);
                *token = if is_own { claim.token } else { token_after(Some(claim.token), now.micros) };
            }
            // The removed value's token can't be read.
            Work::Remove(_, _, Value { claim: Claim { token, .. }, .. }, _) if *token == FencingToken::ZERO => {
                *token = token_after(None, now.micros);
            }
            _ => {}
        }
        (self.compose(now), self.state())
    }

    fn compose(&self, now: Now) -> Cmd {
        let (names, channel) = (&self.names, self.names.channel.as_bytes());
        let call = |script: &Script, key: &Key, owner: Owner| {
            let mut command = script.call(&names.of(key), self.whole);
            command.arg(&owned_by(owner));
            command
        };
        // If a claim is known to have steps, its messages carry both keys.
        let call_either = |alone: &Script, family: &Script, key: &Key, owner: Owner| {
            if !names.with_steps.has(owner) {
                return call(alone, key, owner);
            }
            let mut command = family.call_for(&[&names.of(key), &names.steps_of(key)], self.whole);
            command.arg(&owned_by(owner));
            command
        };
        match &self.work {
            Work::Acquire(message, token, _) => {
                // The first copy may arrive after this claim has ended. The key must still exist then.
                let barrier = self.again.then(|| Barrier::of(message.owner));
                let mut command = Cmd::with_capacity(7, 192);
                command.arg("SET").arg(names.of(&message.key));
                command.arg(claimed(message, Attempt::FIRST, *token, barrier));
                command.arg("NX").arg("GET").arg("PX").arg(claim_millis(message.lease, message.on_abandoned));
                command
            }
            Work::Look(Acquire { key, .. }, ..) => redis::cmd("GET").arg(names.of(key)).take(),
            Work::TakeOver(message, met, token, _) => {
                let (claim, met_barrier) = (met.value.claim, met.value.barrier);
                let is_own = is_own_claim(message, &met.value);
                let attempt = match met.value.state {
                    Stored::Withdrawn => Attempt::FIRST,
                    _ if is_own => claim.attempt,
                    _ => claim.attempt.next(),
                };
                // The count of one claim never goes back; another claim starts at zero.
                let barrier = if is_own { met_barrier } else { met_barrier.map(|met| Barrier::of(met.withdrawn)) };
                let barrier = barrier.or(self.again.then(|| Barrier::of(message.owner)));
                let held = Value { claim, has_steps: false, barrier: met_barrier, state: Stored::Indeterminate };
                let mut command = call(&script::TAKE_OVER, &message.key, message.owner);
                command.arg(&met.bytes).arg(claimed(message, attempt, *token, barrier));
                command.arg(claim_millis(message.lease, message.on_abandoned));
                command.arg(held.encode(&message.key)).arg(channel);
                command
            }
            Work::Renew(Renew { key, owner, lease }, _) => {
                let mut command = call_either(&script::RENEW, &family_script::RENEW_FAMILY, key, *owner);
                command.arg(millis(*lease)).arg(Stored::InProgress(OnAbandoned::Hold).encode(key, *owner));
                command
            }
            Work::Complete(Complete { key, owner, outcome, retention }, _) => {
                let mut command = call_either(&script::COMPLETE, &script::COMPLETE, key, *owner);
                let state = Stored::Completed(outcome.clone()).encode(key, *owner);
                command.arg(state).arg(millis(*retention)).arg(channel).arg(now.last_millis);
                command
            }
            Work::Release(Release { key, owner }, _) => {
                let mut command = call(&script::RELEASE, key, *owner);
                command.arg(channel).arg(Stored::Withdrawn.encode(key, *owner)).arg(now.last_millis);
                command
            }
            Work::Withdraw(Withdraw { key, owner }, _) | Work::Bar(Withdraw { key, owner }, ..) => {
                let mut command = call(&script::WITHDRAW, key, *owner);
                // The clock of the server has passed whatever token a vanished key had.
                let absent = tombstone(*owner, token_after(None, now.micros));
                command.arg(channel).arg(absent.encode(key)).arg(Stored::Withdrawn.encode(key, *owner));
                command.arg(&Barrier::names(key, *owner)).arg(now.last_millis);
                command
            }
            Work::Hold(Hold { key, owner }, _) => {
                let mut command = call_either(&script::HOLD, &family_script::HOLD_FAMILY, key, *owner);
                command.arg(Stored::Indeterminate.encode(key, *owner)).arg(channel);
                command
            }
            Work::Inspect(Resolve { key, .. }, _) | Work::Find(Remove { key }, _) => {
                redis::cmd("GET").arg(names.of(key)).take()
            }
            Work::Resolve(message, met, _) => {
                let Value { claim, barrier, .. } = met.value;
                let mut command = call(&script::RESOLVE, &message.key, claim.owner);
                command.arg(&met.bytes).arg(channel);
                match &message.with {
                    Resolution::Complete { outcome, retention } => {
                        let state = Stored::Completed(outcome.clone());
                        let settled = Value { claim, has_steps: false, barrier: None, state };
                        let least = if barrier.is_some() { WITHDRAWAL_KEPT } else { Duration::ZERO };
                        let life = life_of(claim.token, least.max(*retention), now);
                        command.arg(settled.encode(&message.key)).arg(life);
                    }
                    Resolution::Release => {
                        let freed = Value { claim, has_steps: false, barrier, state: Stored::Withdrawn };
                        command.arg(freed.encode(&message.key)).arg(life_of(claim.token, WITHDRAWAL_KEPT, now));
                    }
                }
                command
            }
            Work::Lookup(Lookup { key }, _) => script::READ.call(&names.of(key), self.whole),
            Work::Remove(Remove { key }, found, tombstone, _) => {
                // A value that can't be read may have had steps.
                let may_have_steps = Value::decode(key, found.clone()).map_or(true, |value| value.has_steps);
                let mut command = if may_have_steps {
                    script::REMOVE.call_for(&[&names.of(key), &names.steps_of(key)], self.whole)
                } else {
                    script::REMOVE.call(&names.of(key), self.whole)
                };
                command.arg("").arg(found).arg(channel).arg(tombstone.encode(key));
                command.arg(life_of(tombstone.claim.token, WITHDRAWAL_KEPT, now));
                command
            }
            Work::CompleteStep(message, _) => {
                let CompleteStep { key, life, name, run, outcome } = &**message;
                let keys = [names.of(key), names.steps_of(key)];
                let mut command = family_script::COMPLETE_STEP.call_for(&[&keys[0], &keys[1]], self.whole);
                let run = [&run.token.get().to_be_bytes()[..], &run.number.to_be_bytes()].concat();
                command
                    .arg("")
                    .arg(name.as_str())
                    .arg(&life.get().to_be_bytes())
                    .arg(run)
                    .arg(&outcome.as_stored()[..]);
                command
            }
            Work::Family(step) => step.compose(names, self.whole),
        }
    }

    /// Processes the server's answer. Returns `None` if the message is answered; otherwise the step that must be sent
    /// next.
    pub(super) fn hear(mut self, answer: Result<Answer, Failure>) -> Option<Self> {
        match &answer {
            Ok(_) => {}
            Err(Failure::NoScript | Failure::Refused(_) | Failure::Unfit(_)) => self.state().refused(),
            Err(Failure::Broken(_) | Failure::Adrift(_) | Failure::Silent(_)) => self.state().lost(),
        }
        match &answer {
            // From now on the server will know it.
            Err(Failure::NoScript) if !self.whole => return Some(Self { whole: true, ..self }),
            // The same owner can safely repeat the same step (for a claim's first copy, the `script` module explains
            // why). A repeated resolve would be told that it came too late.
            Err(Failure::Broken(_)) if !self.again && self.work.is_repeatable() => {
                return Some(Self { again: true, ..self });
            }
            // A shard fails over: retry for as long as an answer may take.
            Err(Failure::Adrift(_)) if Instant::now() < self.until && self.work.is_repeatable() => {
                return Some(Self { again: true, ..self });
            }
            _ => {}
        }
        let Self { names, work, again, reading, until, .. } = self;
        let work = work.hear(&names, answer, again)?;
        let mut step = Self { names, work, whole: false, again, reading, until };
        // Everything sent so far has been answered and had no effect.
        step.state().refused();
        Some(step)
    }
}

/// Returns the value that was read, or answers with the error.
macro_rules! or_refuse {
    ($reply:ident, $read:expr) => {
        match $read {
            Ok(read) => read,
            Err(error) => {
                answer($reply, Err(error));
                return None;
            }
        }
    };
}

/// Answers the message. An error that leaves the effect unknown is not an answer.
pub(super) fn answer<T>(reply: Reply<T>, answer: Result<T, StoreError>) {
    match answer {
        Err(error) if error.is_unknown() => reply.fail(error),
        answer => reply.send(answer),
    }
}

impl Work {
    /// Returns whether the command may be sent again after its connection broke.
    fn is_repeatable(&self) -> bool {
        match self {
            Self::Resolve(..) | Self::Remove(..) => false,
            Self::Family(step) => step.is_repeatable(),
            _ => true,
        }
    }

    /// Returns `None` if the message is answered; otherwise the work that remains.
    fn hear(self, names: &Names, heard: Result<Answer, Failure>, again: bool) -> Option<Work> {
        if let Self::Family(step) = self {
            return step.hear(names, heard, again);
        }
        // A command that only read changed nothing.
        let heard = match self {
            Self::Look(..) | Self::Inspect(..) | Self::Lookup(..) | Self::Find(..) => heard.map_err(Failure::of_read),
            _ => heard.map_err(StoreError::from),
        };
        match self {
            Self::Look(message, full, reply) => {
                let found = or_refuse!(reply, heard.and_then(bytes_or_nil));
                let next = match found.map(|bytes| read_found(&message, bytes)) {
                    Some(Ok(Next::TakeOver(met))) if met.value.state == Stored::Withdrawn => Err(full),
                    Some(next) => next,
                    None => Err(full),
                };
                next_of_acquire(message, next, again, reply)
            }
            Self::Acquire(message, token, reply) => {
                let heard = match heard {
                    // A replay, a mismatch and a claim in progress need no memory. Only a new claim does.
                    Err(full @ StoreError::Full(_)) => return Some(Self::Look(message, full, reply)),
                    heard => heard,
                };
                let found = or_refuse!(reply, heard.and_then(bytes_or_nil));
                let next = match found {
                    None => Ok(Next::Answer(claimed_first(token))),
                    Some(bytes) => read_found(&message, bytes),
                };
                next_of_acquire(message, next, again, reply)
            }
            Self::TakeOver(message, met, token, reply) => {
                let heard = or_refuse!(reply, heard);
                let next = read_take_over(&message, &met.value, token, heard);
                next_of_acquire(message, next, again, reply)
            }
            Self::Bar(message, acquired, reply) => {
                match or_refuse!(reply, heard.and_then(|heard| withdrawn(&message.key, heard))) {
                    Some(_) => reply.send(Ok(acquired)),
                    None => return Some(OfFamily::Bar(message, acquired, reply).into()),
                }
                None
            }
            Self::Renew(message, reply) => {
                match or_refuse!(reply, heard.and_then(|heard| verdict(&message.key, heard))) {
                    Verdict::Done => reply.send(Ok(Renewed::Renewed)),
                    Verdict::NotDone => reply.send(Ok(Renewed::Lost)),
                    Verdict::HasSteps => {
                        names.with_steps.add(message.owner);
                        return Some(Self::Renew(message, reply));
                    }
                }
                None
            }
            Self::Complete(message, reply) => {
                let verdict = or_refuse!(reply, heard.and_then(|heard| verdict(&message.key, heard)));
                if matches!(verdict, Verdict::HasSteps) {
                    names.with_steps.add(message.owner);
                    return Some(Self::Complete(message, reply));
                }
                names.with_steps.forget(message.owner);
                let is_done = matches!(verdict, Verdict::Done);
                reply.send(Ok(if is_done { Completed::Stored } else { Completed::Lost }));
                None
            }
            Self::Release(message, reply) => {
                match or_refuse!(reply, heard.and_then(|heard| verdict(&message.key, heard))) {
                    Verdict::Done => reply.send(Ok(Released::Released)),
                    Verdict::NotDone => reply.send(Ok(Released::Lost)),
                    Verdict::HasSteps => return Some(OfFamily::Release(message, reply).into()),
                }
                None
            }
            Self::Withdraw(message, reply) => {
                match or_refuse!(reply, heard.and_then(|heard| withdrawn(&message.key, heard))) {
                    Some(withdrawn) => reply.send(Ok(withdrawn)),
                    None => return Some(OfFamily::Withdraw(message, reply).into()),
                }
                None
            }
            Self::Hold(message, reply) => {
                match or_refuse!(reply, heard.and_then(|heard| verdict(&message.key, heard))) {
                    Verdict::Done => reply.send(Ok(Held::Held)),
                    Verdict::NotDone => reply.send(Ok(Held::Lost)),
                    Verdict::HasSteps => {
                        names.with_steps.add(message.owner);
                        return Some(Self::Hold(message, reply));
                    }
                }
                None
            }
            Self::CompleteStep(message, reply) => {
                let verdict = or_refuse!(reply, heard.and_then(|heard| verdict(&message.key, heard)));
                let is_done = matches!(verdict, Verdict::Done);
                reply.send(Ok(if is_done { StepCompleted::Stored } else { StepCompleted::Lost }));
                None
            }
            Self::Inspect(message, reply) => {
                let found = or_refuse!(reply, heard.and_then(bytes_or_nil));
                hear_inspect(message, found, reply)
            }
            Self::Resolve(message, _, reply) => {
                let (verdict, detail) = or_refuse!(reply, heard.and_then(table));
                match verdict.as_slice() {
                    b"resolved" => reply.send(Ok(Resolved::Resolved)),
                    b"changed" => {
                        let found = or_refuse!(reply, bytes_or_nil(detail));
                        return hear_inspect(message, found, reply);
                    }
                    b"held" => reply.send(Ok(Resolved::NotIndeterminate)),
                    _ => answer(reply, Err(unexpected())),
                }
                None
            }
            Self::Lookup(message, reply) => {
                match or_refuse!(reply, heard.and_then(|heard| read_record(&message.key, heard))) {
                    Found::Nothing => reply.send(Ok(None)),
                    Found::Record(view) => reply.send(Ok(Some(view))),
                    Found::Family => return Some(OfFamily::Lookup(message, reply).into()),
                }
                None
            }
            Self::Find(message, reply) => {
                let found = or_refuse!(reply, heard.and_then(bytes_or_nil));
                hear_find(message, found, reply)
            }
            Self::Remove(message, _, _, reply) => {
                let (verdict, detail) = or_refuse!(reply, heard.and_then(table));
                match verdict.as_slice() {
                    b"removed" => reply.send(Ok(Removed::Removed)),
                    b"changed" => {
                        let found = or_refuse!(reply, bytes_or_nil(detail));
                        return hear_find(message, found, reply);
                    }
                    _ => answer(reply, Err(unexpected())),
                }
                None
            }
            // Handled above.
            work @ Self::Family(_) => Some(work),
        }
    }
}

pub(super) fn next_of_acquire(
    message: Acquire,
    next: Result<Next, StoreError>,
    again: bool,
    reply: Reply<Acquired>,
) -> Option<Work> {
    match or_refuse!(reply, next) {
        Next::TakeOver(met) => return Some(Work::TakeOver(message, met, FencingToken::ZERO, reply)),
        Next::Family => return Some(OfFamily::Acquire(message, reply).into()),
        Next::Again => return Some(Work::Acquire(message, FencingToken::ZERO, reply)),
        Next::Answer(claimed @ Acquired::Claimed { .. }) => reply.send(Ok(claimed)),
        Next::Answer(acquired) if again => {
            let Acquire { key, owner, .. } = message;
            return Some(Work::Bar(Withdraw { key, owner }, acquired, reply));
        }
        Next::Answer(acquired) => reply.send(Ok(acquired)),
    }
    None
}

fn hear_inspect(message: Resolve, found: Option<Vec<u8>>, reply: Reply<Resolved>) -> Option<Work> {
    let Some(bytes) = found else {
        reply.send(Ok(Resolved::NotIndeterminate));
        return None;
    };
    let met = or_refuse!(reply, Met::read(&message.key, bytes));
    // A resolve of attempt 1 does not apply to attempt 2, nor to the first attempt of a later life of the key.
    let is_meant = message.attempt.is_none_or(|attempt| attempt == met.value.claim.attempt)
        && message.owner.is_none_or(|owner| owner == met.value.claim.owner);
    if is_meant && met.value.has_steps {
        return Some(OfFamily::Resolve(message, reply).into());
    }
    if is_meant && matches!(met.value.state, Stored::Indeterminate | Stored::InProgress(OnAbandoned::Hold)) {
        return Some(Work::Resolve(message, met, reply));
    }
    reply.send(Ok(Resolved::NotIndeterminate));
    None
}

/// Also removes a value that is no record.
fn hear_find(message: Remove, found: Option<Vec<u8>>, reply: Reply<Removed>) -> Option<Work> {
    let Some(bytes) = found else {
        reply.send(Ok(Removed::Absent));
        return None;
    };
    let tombstone = match Value::decode(&message.key, bytes.clone()) {
        Ok(Value { state: Stored::Withdrawn, .. }) => {
            reply.send(Ok(Removed::Absent));
            return None;
        }
        // An outcome does not say whether a barrier stands.
        Ok(Value { claim, state: Stored::Completed(_), .. }) => {
            Value { claim, has_steps: false, barrier: Some(Barrier::of(claim.owner)), state: Stored::Withdrawn }
        }
        Ok(Value { claim, barrier, .. }) => Value { claim, has_steps: false, barrier, state: Stored::Withdrawn },
        // Its token is set when the command is sent.
        Err(_) => tombstone(Owner::random(), FencingToken::ZERO),
    };
    Some(Work::Remove(message, bytes, tombstone, reply))
}

/// Returns a tombstone with only a barrier, for a key about which nothing is known.
fn tombstone(withdrawn: Owner, token: FencingToken) -> Value {
    // The fingerprint of the withdrawn claim is unknown.
    let fingerprint = Fingerprint::of(b"");
    let claim = Claim { owner: withdrawn, fingerprint, attempt: Attempt::FIRST, token };
    Value { claim, has_steps: false, barrier: Some(Barrier::of(withdrawn)), state: Stored::Withdrawn }
}

/// Parses the answer of `WITHDRAW`: the value that it found, or the tombstone that it left. Returns `None` for a record
/// that has steps.
fn withdrawn(key: &Key, heard: Answer) -> Result<Option<Withdrawn>, StoreError> {
    match verdict(key, heard)? {
        Verdict::Done => Ok(Some(Withdrawn)),
        Verdict::HasSteps => Ok(None),
        Verdict::NotDone => Err(StoreError::corrupt("a key in Redis is in no state that a record can be in")),
    }
}

/// Returns the token of a claim that replaces `previous`, at a time in microseconds.
fn token_after(previous: Option<FencingToken>, now: u64) -> FencingToken {
    let next = previous.map_or(0, |previous| previous.get().saturating_add(1));
    // As on every store, the token must fit a signed number.
    FencingToken::new(next.max(now).min(i64::MAX as u64))
}

/// Returns a key's time to live in milliseconds: at least as long as asked, and until the clock has passed its token.
fn life_of(token: FencingToken, asked: Duration, now: Now) -> u64 {
    let passed_at = token.get() / 1_000 + 1;
    millis(asked).max(passed_at.saturating_sub(now.last_millis).min(millis(LONGEST)))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const NOW: Now = Now { micros: 1_700_000_000_000_000, last_millis: 1_700_000_000_000 };

    fn claiming(until: Instant) -> (Step, mpsc::Receiver<Result<Acquired, StoreError>>) {
        let message = Acquire {
            key: Key::new("s", "k").unwrap(),
            fingerprint: Fingerprint::of(b"asked"),
            owner: Owner::random(),
            lease: Duration::from_secs(30),
            on_abandoned: OnAbandoned::Hold,
            past_withdrawal: None,
        };
        let (answer, heard) = mpsc::channel();
        let reply = Reply::new(move |result| answer.send(result).unwrap());
        let names =
            Arc::new(Names { prefix: "p:".to_owned(), channel: "c".to_owned(), with_steps: WithSteps::default() });
        let step = Step::begin(&names, Request::Acquire(message, reply), until);
        (step.unwrap_or_else(|_| panic!("an acquire is a step")), heard)
    }

    /// A cluster's driver also reports "no node" for a claim that is in flight. That claim may still arrive, so the
    /// next copy sets a barrier against it, and no later refusal means that nothing was executed.
    #[test]
    fn e19_a_claim_that_a_cluster_lost_stays_unknown() {
        let (mut step, heard) = claiming(Instant::now() + Duration::from_secs(60));
        step.depart(NOW);
        for _ in 0..3 {
            step = step.hear(Err(Failure::Adrift("CLUSTERDOWN".to_owned()))).unwrap();
            let again = format!("{:?}", step.depart(NOW).get_packed_command());
            let barrier = format!("{:?}", Barrier::names(&Key::new("s", "k").unwrap(), owner_of(&step)));
            assert!(again.contains(barrier.trim_matches(['[', ']'])), "{again}");
        }
        assert!(step.hear(Err(Failure::Refused(StoreError::unavailable("LOADING")))).is_none());
        assert!(heard.recv().unwrap().unwrap_err().is_unknown());
    }

    fn owner_of(step: &Step) -> Owner {
        match &step.work {
            Work::Acquire(message, ..) => message.owner,
            _ => panic!("it became another step"),
        }
    }

    #[test]
    fn e11_a_claim_that_a_cluster_has_no_node_for_ends_in_time() {
        let (mut step, heard) = claiming(Instant::now());
        step.depart(NOW);
        assert!(step.hear(Err(Failure::Adrift("CLUSTERDOWN".to_owned()))).is_none());
        assert!(heard.recv().unwrap().unwrap_err().is_unknown());
    }

    /// After a refusal for lack of memory, the next command is a read. Losing it leaves nothing unknown.
    #[test]
    fn e19_a_claim_without_memory_that_can_not_be_looked_up_was_not_executed() {
        let (mut step, heard) = claiming(Instant::now());
        step.depart(NOW);
        step = step.hear(Err(Failure::Refused(StoreError::Full("OOM".to_owned())))).unwrap();
        assert!(String::from_utf8_lossy(&step.depart(NOW).get_packed_command()).contains("GET"));
        assert!(step.hear(Err(Failure::Silent("no answer".to_owned()))).is_none());
        assert!(matches!(heard.recv().unwrap(), Err(StoreError::Unavailable(_))));
    }

    #[test]
    fn e25_a_key_lives_until_the_clock_has_passed_its_token() {
        let ahead = FencingToken::new(NOW.micros + 5_000_000);
        assert_eq!(life_of(ahead, Duration::from_secs(1), NOW), 5_001);
        assert_eq!(life_of(ahead, Duration::from_secs(60), NOW), 60_000);
        assert_eq!(life_of(FencingToken::new(17), Duration::from_secs(1), NOW), 1_000);
        assert_eq!(life_of(FencingToken::new(i64::MAX as u64), Duration::ZERO, NOW), millis(LONGEST));
    }
}
