//! Steps on a record that has steps. Each is decided from the whole family as the server returns it, and written if
//! nothing has changed since the read.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use oncekey::backend::{
    Acquire, Acquired, BeginStep, FailStep, Lookup, RecordView, Release, Released, Reply, Resolve, ResolveStep,
    Resolved, StepBegun, StepFailed, StepState, StoreError, Withdraw, Withdrawn,
};
use oncekey::record::{Owner, StepRun, StoreTime};
use oncekey::{Attempt, FencingToken, Key, StepPolicy};
use parking_lot::Mutex;
use redis::{Cmd, Value as Answer};

use super::acquire::{Next, read_found};
use super::answer::{bytes_or_nil, unexpected};
use super::error::Failure;
use super::family::{Decision, Plan, Seen, StepsPlan};
use super::family_script as script;
use super::field::{asked, until};
use super::step::{Names, Work, answer, next_of_acquire};
use super::value::{Barrier, Claim, LONGEST, millis, owned_by};

/// How often a message may find its data changed before it gives up. Each time, another message was executed.
const TRIES: u32 = 64;
/// The most claims with steps that are remembered.
const REMEMBERED: usize = 10_000;

/// The claims that are known to have steps. Their messages carry both keys from the start. For a claim that is missing
/// here, a message costs one more round trip and nothing else.
#[derive(Debug, Default)]
pub(super) struct WithSteps {
    owners: Mutex<HashSet<Owner>>,
    /// The number of claims. If it is zero, no arbiter takes the lock.
    count: AtomicUsize,
}

impl WithSteps {
    pub(super) fn add(&self, owner: Owner) {
        self.change(|owners| {
            if owners.len() >= REMEMBERED {
                owners.clear();
            }
            owners.insert(owner);
        });
    }

    pub(super) fn has(&self, owner: Owner) -> bool {
        self.count.load(Ordering::Relaxed) > 0 && self.owners.lock().contains(&owner)
    }

    pub(super) fn forget(&self, owner: Owner) {
        if self.count.load(Ordering::Relaxed) > 0 {
            self.change(|owners| {
                owners.remove(&owner);
            });
        }
    }

    fn change(&self, change: impl FnOnce(&mut HashSet<Owner>)) {
        let mut owners = self.owners.lock();
        change(&mut owners);
        self.count.store(owners.len(), Ordering::Relaxed);
    }
}

/// A message about a family, and its progress.
pub(super) struct FamilyStep {
    message: Message,
    stage: Stage,
    tries: u32,
}

/// The request.
pub(super) enum Message {
    Acquire(Acquire, Reply<Acquired>),
    Begin(Box<BeginStep>, Reply<StepBegun>),
    Fail(Box<FailStep>, Reply<StepFailed>),
    ResolveStep(Box<ResolveStep>, Reply<Resolved>),
    Resolve(Resolve, Reply<Resolved>),
    Release(Release, Reply<Released>),
    Withdraw(Withdraw, Reply<Withdrawn>),
    /// The claim of an acquire that was sent twice, and the acquire's answer after the withdrawal.
    Bar(Withdraw, Acquired, Reply<Acquired>),
    Lookup(Lookup, Reply<Option<RecordView>>),
}

enum Stage {
    Read,
    /// The first attempt of a step. The script decides by itself if the step is new.
    Begin,
    Write(Box<Plan>, Told),
}

/// The message's answer after the write.
enum Told {
    Acquired(Acquired),
    Begun(StepBegun),
    Failed(StepFailed),
    Resolved(Resolved),
    Released(Released),
    Withdrawn,
    View(Option<RecordView>),
}

/// The next action for a message.
enum Turn {
    Tell(Told),
    Write(Plan, Told),
    /// The record has no steps, or none any more.
    Alone,
}

impl From<Message> for Work {
    fn from(mut message: Message) -> Self {
        // What was sent so far had no effect, and the next command only reads.
        message.state().refused();
        let stage = if matches!(message, Message::Begin(..)) { Stage::Begin } else { Stage::Read };
        Self::Family(Box::new(FamilyStep { message, stage, tries: 0 }))
    }
}

impl Message {
    fn key(&self) -> &Key {
        match self {
            Self::Acquire(Acquire { key, .. }, _)
            | Self::Resolve(Resolve { key, .. }, _)
            | Self::Release(Release { key, .. }, _)
            | Self::Withdraw(Withdraw { key, .. }, _)
            | Self::Bar(Withdraw { key, .. }, ..)
            | Self::Lookup(Lookup { key }, _) => key,
            Self::Begin(message, _) => &message.key,
            Self::Fail(message, _) => &message.key,
            Self::ResolveStep(message, _) => &message.key,
        }
    }

    fn state(&mut self) -> &mut StepState {
        match self {
            Self::Acquire(_, reply) | Self::Bar(_, _, reply) => reply.state(),
            Self::Begin(_, reply) => reply.state(),
            Self::Fail(_, reply) => reply.state(),
            Self::ResolveStep(_, reply) | Self::Resolve(_, reply) => reply.state(),
            Self::Release(_, reply) => reply.state(),
            Self::Withdraw(_, reply) => reply.state(),
            Self::Lookup(_, reply) => reply.state(),
        }
    }

    fn fail(self, error: StoreError) -> Option<Work> {
        match self {
            Self::Acquire(_, reply) | Self::Bar(_, _, reply) => answer(reply, Err(error)),
            Self::Begin(_, reply) => answer(reply, Err(error)),
            Self::Fail(_, reply) => answer(reply, Err(error)),
            Self::ResolveStep(_, reply) | Self::Resolve(_, reply) => answer(reply, Err(error)),
            Self::Release(_, reply) => answer(reply, Err(error)),
            Self::Withdraw(_, reply) => answer(reply, Err(error)),
            Self::Lookup(_, reply) => answer(reply, Err(error)),
        }
        None
    }

    fn tell(self, told: Told, names: &Names, again: bool) -> Option<Work> {
        match (self, told) {
            (Self::Acquire(message, reply), Told::Acquired(acquired)) => {
                if let Acquired::Claimed { steps: Some(_), .. } = acquired {
                    names.with_steps.add(message.owner);
                }
                return next_of_acquire(message, Ok(Next::Answer(acquired)), again, reply);
            }
            (Self::Begin(message, reply), Told::Begun(begun)) => {
                names.with_steps.add(message.owner);
                reply.send(Ok(begun));
            }
            (Self::Fail(_, reply), Told::Failed(failed)) => reply.send(Ok(failed)),
            (Self::ResolveStep(_, reply) | Self::Resolve(_, reply), Told::Resolved(resolved)) => {
                reply.send(Ok(resolved));
            }
            (Self::Release(message, reply), Told::Released(released)) => {
                names.with_steps.forget(message.owner);
                reply.send(Ok(released));
            }
            (Self::Withdraw(_, reply), Told::Withdrawn) => reply.send(Ok(Withdrawn)),
            (Self::Bar(_, acquired, reply), Told::Withdrawn) => reply.send(Ok(acquired)),
            (Self::Lookup(_, reply), Told::View(view)) => reply.send(Ok(view)),
            (message, _) => return message.fail(unexpected()),
        }
        None
    }

    /// Hands the message to the scripts for records without steps.
    fn alone(self) -> Work {
        match self {
            Self::Acquire(message, reply) => Work::Acquire(message, FencingToken::ZERO, reply),
            Self::Resolve(message, reply) => Work::Inspect(message, reply),
            Self::Release(message, reply) => Work::Release(message, reply),
            Self::Withdraw(message, reply) => Work::Withdraw(message, reply),
            Self::Bar(message, acquired, reply) => Work::Bar(message, acquired, reply),
            Self::Lookup(message, reply) => Work::Lookup(message, reply),
            message @ (Self::Begin(..) | Self::Fail(..) | Self::ResolveStep(..)) => message.into(),
        }
    }

    fn decide(&self, seen: &Seen, again: bool) -> Result<Turn, StoreError> {
        fn turn<T>(decision: Decision<T>, told: impl FnOnce(T) -> Told) -> Turn {
            let Decision { plan, answer } = decision;
            match plan {
                Some(plan) => Turn::Write(plan, told(answer)),
                None => Turn::Tell(told(answer)),
            }
        }
        Ok(match self {
            // These may write the record's first step.
            Self::Begin(message, _) => turn(seen.begin(message)?, Told::Begun),
            Self::Fail(message, _) => turn(seen.fail(message)?, Told::Failed),
            Self::ResolveStep(message, _) => turn(seen.resolve_step(message)?, Told::Resolved),
            Self::Lookup(..) => Turn::Tell(Told::View(seen.view()?)),
            _ if !seen.has_steps() => Turn::Alone,
            Self::Acquire(message, _) => {
                let found = seen.met.as_ref().map(|met| read_found(message, met.bytes.clone())).transpose()?;
                if let Some(Next::Answer(acquired)) = found {
                    return Ok(Turn::Tell(Told::Acquired(acquired)));
                }
                let barrier = again.then(|| Barrier::of(message.owner));
                turn(seen.acquire(message, barrier)?, Told::Acquired)
            }
            Self::Resolve(message, _) => turn(seen.resolve(message)?, Told::Resolved),
            Self::Release(message, _) => turn(seen.release(message)?, Told::Released),
            Self::Withdraw(message, _) | Self::Bar(message, ..) => {
                Turn::Write(seen.withdraw(message)?, Told::Withdrawn)
            }
        })
    }
}

impl FamilyStep {
    /// Returns what is known about the command in flight; `None` for a command that only reads.
    pub(super) fn state(&mut self) -> Option<&mut StepState> {
        match self.stage {
            Stage::Read => None,
            Stage::Begin | Stage::Write(..) => Some(self.message.state()),
        }
    }

    /// Returns whether the command may be sent again after its connection broke. A repeated resolve would be told that
    /// it came too late.
    pub(super) fn is_repeatable(&self) -> bool {
        let is_word = matches!(self.message, Message::Resolve(..) | Message::ResolveStep(..));
        !is_word || matches!(self.stage, Stage::Read)
    }

    pub(super) fn compose(&self, names: &Names, whole: bool) -> Cmd {
        let key = self.message.key();
        let (parent, steps) = (names.of(key), names.steps_of(key));
        let keys = [parent.as_slice(), steps.as_slice()];
        match (&self.stage, &self.message) {
            (Stage::Begin, Message::Begin(message, _)) => {
                let BeginStep { owner, name, fingerprint, number, policy, retention, .. } = &**message;
                let mut command = script::BEGIN_STEP.call_for(&keys, whole);
                command.arg(&owned_by(*owner)).arg(name.as_str()).arg(asked(*fingerprint)).arg(&number.to_be_bytes());
                match policy {
                    StepPolicy::Hold => command.arg(&until(None)).arg(""),
                    StepPolicy::RerunWithin(limit) if *limit < LONGEST => command.arg("").arg(limit_millis(*limit)),
                    StepPolicy::Rerun | StepPolicy::RerunWithin(_) => command.arg(&until(Some(StoreTime::END))).arg(""),
                };
                command.arg(millis(*retention));
                command
            }
            (Stage::Write(plan, _), _) => {
                let script = if plan.starts_work { &script::CLAIM_FAMILY } else { &script::WRITE_FAMILY };
                let mut command = script.call_for(&keys, whole);
                let before = plan.before.map(|before| before.as_millis().to_string()).unwrap_or_default();
                command.arg("").arg(&plan.met).arg(plan.met_expiry).arg(&plan.met_family).arg(before);
                command.arg(plan.value.as_deref().unwrap_or_default());
                // An unchanged expiry is not set again, so rounding errors can't add up.
                let expiry = if plan.expiry == plan.met_expiry { String::new() } else { plan.expiry.to_string() };
                command.arg(expiry).arg(if plan.is_end { names.channel.as_bytes() } else { b"" });
                command.arg(match plan.steps {
                    StepsPlan::Keep => "keep",
                    StepsPlan::Drop => "drop",
                    StepsPlan::Anew => "anew",
                });
                for (name, field) in &plan.fields {
                    command.arg(name).arg(field);
                }
                command
            }
            (_, message) => read(names, key, message.looking(), whole),
        }
    }

    pub(super) fn hear(self, names: &Names, heard: Result<Answer, Failure>, again: bool) -> Option<Work> {
        let Self { message, stage, tries } = self;
        let heard = match stage {
            Stage::Read => heard.map_err(Failure::of_read),
            _ => heard.map_err(StoreError::from),
        };
        let read = heard.and_then(|answer| Heard::read(&message, names, answer));
        let turn = match (read, stage) {
            (Err(error), _) => return message.fail(error),
            (Ok(Heard::Written), Stage::Write(_, told)) => Ok(Turn::Tell(told)),
            (Ok(Heard::Begun { token, life }), _) => Ok(begun(&message, token, life)),
            (Ok(Heard::Held(acquired)), _) => Ok(Turn::Tell(Told::Acquired(acquired))),
            (Ok(Heard::Seen(_)), _) if tries >= TRIES => {
                Err(StoreError::Overloaded("a record with steps is changed all the time".to_owned()))
            }
            (Ok(Heard::Seen(seen)), _) => message.decide(&seen, again),
            (Ok(Heard::Written), _) => Err(unexpected()),
        };
        match turn {
            Err(error) => message.fail(error),
            Ok(Turn::Tell(told)) => message.tell(told, names, again),
            Ok(Turn::Alone) => Some(message.alone()),
            Ok(Turn::Write(plan, told)) => {
                let stage = Stage::Write(Box::new(plan), told);
                Some(Work::Family(Box::new(Self { message, stage, tries: tries + 1 })))
            }
        }
    }
}

/// Answers a begin that its script has decided: the first run of a new step.
fn begun(message: &Message, token: FencingToken, life: FencingToken) -> Turn {
    let Message::Begin(message, _) = message else { return Turn::Alone };
    let run = StepRun { token, number: message.number };
    Turn::Tell(Told::Begun(StepBegun::Begun { attempt: Attempt::FIRST, run, life }))
}

impl Message {
    /// Returns the owner that reads. An acquire does not need the steps of another owner's live claim.
    fn looking(&self) -> Option<Owner> {
        match self {
            Self::Acquire(message, _) => Some(message.owner),
            _ => None,
        }
    }
}

/// Reads a whole family.
pub(super) fn read(names: &Names, key: &Key, claims: Option<Owner>, whole: bool) -> Cmd {
    let (parent, steps) = (names.of(key), names.steps_of(key));
    let mut command = script::READ_FAMILY.call_for(&[&parent, &steps], whole);
    match claims {
        Some(owner) => command.arg(&owned_by(owner)).arg("1"),
        None => command.arg("").arg(""),
    };
    command
}

/// Parses the record from the answer to [`read`].
pub(super) fn read_view(names: &Names, key: &Key, answer: Answer) -> Result<Option<RecordView>, StoreError> {
    let Answer::Array(mut parts) = answer else { return Err(unexpected()) };
    parts.drain(..parts.len().min(1));
    Seen::read(key, names.of(key), parts)?.view()
}

enum Heard {
    Written,
    Begun { token: FencingToken, life: FencingToken },
    Held(Acquired),
    Seen(Box<Seen>),
}

impl Heard {
    fn read(message: &Message, names: &Names, answer: Answer) -> Result<Self, StoreError> {
        let Answer::Array(mut parts) = answer else { return Err(unexpected()) };
        let mut rest = parts.split_off(parts.len().min(1)).into_iter();
        let Some(Answer::BulkString(word)) = parts.pop() else { return Err(unexpected()) };
        let key = message.key();
        match word.as_slice() {
            b"written" => Ok(Self::Written),
            b"found" | b"changed" => Ok(Self::Seen(Box::new(Seen::read(key, names.of(key), rest.collect())?))),
            b"begun" => {
                let (Some(Answer::BulkString(head)), Some(Answer::BulkString(life))) = (rest.next(), rest.next())
                else {
                    return Err(unexpected());
                };
                let Claim { token, .. } = Claim::decode(key, &head)?;
                let life = life.try_into().map_err(|_| unexpected())?;
                Ok(Self::Begun { token, life: FencingToken::new(u64::from_be_bytes(life)) })
            }
            b"held" => {
                let (Some(value), Some(Answer::Int(left))) = (rest.next(), rest.next()) else {
                    return Err(unexpected());
                };
                let bytes = bytes_or_nil(value)?.ok_or_else(unexpected)?;
                let Message::Acquire(message, _) = message else { return Err(unexpected()) };
                // This may be another claim than the one that was read.
                Ok(Self::Held(match read_found(message, bytes)? {
                    Next::Answer(acquired) => acquired,
                    _ => Acquired::InProgress { lease_left: Duration::from_millis(u64::try_from(left).unwrap_or(0)) },
                }))
            }
            _ => Err(unexpected()),
        }
    }
}

/// Returns whole milliseconds, rounded up. Zero stays zero.
fn limit_millis(limit: Duration) -> u64 {
    if limit.is_zero() { 0 } else { millis(limit) }
}
