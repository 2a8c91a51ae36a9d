//! From a message to a command, and from what the server answers to the message's answer, or to the next command.
//!
//! Most steps are one command. One that meets a claim, or finds that something has changed meanwhile, is another: all
//! that a batch still has to say goes out together again.

use std::sync::Arc;
use std::time::Duration;

use oncekey::backend::{
    Acquire, Acquired, Complete, Completed, Held, Hold, Lookup, RecordView, Release, Released, Remove, Removed, Renew,
    Renewed, Reply, Request, Resolution, Resolve, Resolved, StoreError,
};
use oncekey::record::Owner;
use oncekey::{Attempt, Fingerprint, Key, OnAbandoned};
use redis::{Cmd, Value as Answer};

use super::answer::{bytes_or_nil, endless, read_record, table, unexpected, verdict};
use super::error::Failure;
use super::script::{self, Step as Script};
use super::value::{Claim, Stored, Value, claim_millis, millis, owned_by};

/// How long a withdrawn claim is kept from arriving: longer than a network or a paused server holds a command back.
const WITHDRAWN_KEPT: Duration = Duration::from_secs(600);

/// How the store names its keys, and where it announces changes.
#[derive(Debug)]
pub(super) struct Names {
    pub(super) prefix: String,
    pub(super) channel: String,
}

impl Names {
    /// The Redis key of a record.
    pub(super) fn of(&self, key: &Key) -> Vec<u8> {
        [self.prefix.as_bytes(), key.as_stored().as_bytes()].concat()
    }
}

/// A message on its way.
pub(super) struct Step {
    names: Arc<Names>,
    work: Work,
    /// The server did not know the script: its whole text goes along.
    whole: bool,
    /// It was sent before, and its connection broke of this: nobody knows whether it was taken.
    lost: Option<String>,
}

enum Work {
    Acquire(Acquire, Reply<Acquired>),
    /// An acquire that met this claim.
    TakeOver(Acquire, Met, Reply<Acquired>),
    Renew(Renew, Reply<Renewed>),
    Complete(Complete, Reply<Completed>),
    Release(Release, Reply<Released>),
    Hold(Hold, Reply<Held>),
    /// A resolve that has to see first what is to be resolved.
    Inspect(Resolve, Reply<Resolved>),
    Resolve(Resolve, Met, Reply<Resolved>),
    Lookup(Lookup, Reply<Option<RecordView>>),
    Remove(Remove, Reply<Removed>),
}

/// A value, and its bytes as they were found.
struct Met {
    value: Value,
    bytes: Vec<u8>,
}

impl Met {
    fn read(key: &Key, bytes: Vec<u8>) -> Result<Self, StoreError> {
        Ok(Self { value: Value::decode(key, bytes.clone())?, bytes })
    }
}

impl Step {
    /// Gives back a message that is no step of one key.
    #[expect(clippy::result_large_err, reason = "given back at once, to be taken elsewhere")]
    pub(super) fn begin(names: &Arc<Names>, request: Request) -> Result<Self, Request> {
        let work = match request {
            Request::Acquire(message, reply) => Work::Acquire(message, reply),
            Request::Renew(message, reply) => Work::Renew(message, reply),
            Request::Complete(message, reply) => Work::Complete(message, reply),
            Request::Release(message, reply) => Work::Release(message, reply),
            Request::Hold(message, reply) => Work::Hold(message, reply),
            Request::Resolve(message, reply) => Work::Inspect(message, reply),
            Request::Lookup(message, reply) => Work::Lookup(message, reply),
            Request::Remove(message, reply) => Work::Remove(message, reply),
            other => return Err(other),
        };
        Ok(Self { names: Arc::clone(names), work, whole: false, lost: None })
    }

    /// What to send.
    pub(super) fn command(&self) -> Cmd {
        let (names, channel) = (&self.names, self.names.channel.as_bytes());
        let call = |script: &Script, key: &Key, owner: Owner| {
            let mut command = script.call(&names.of(key), self.whole);
            command.arg(&owned_by(owner));
            command
        };
        match &self.work {
            Work::Acquire(message, _) => {
                let mut command = Cmd::with_capacity(7, 192);
                command.arg("SET").arg(names.of(&message.key)).arg(claimed(message, Attempt::FIRST));
                command.arg("NX").arg("GET").arg("PX").arg(claim_millis(message.lease, message.on_abandoned));
                command
            }
            Work::TakeOver(message, met, _) => {
                let claim = met.value.claim;
                let attempt = match met.value.state {
                    Stored::Withdrawn => Attempt::FIRST,
                    _ if claim.owner == message.owner => claim.attempt,
                    _ => claim.attempt.next(),
                };
                let held = Value { claim, state: Stored::Indeterminate };
                let mut command = call(&script::TAKE_OVER, &message.key, message.owner);
                command.arg(&met.bytes).arg(claimed(message, attempt));
                command.arg(claim_millis(message.lease, message.on_abandoned));
                command.arg(held.encode(&message.key)).arg(channel);
                command
            }
            Work::Renew(Renew { key, owner, lease }, _) => {
                let mut command = call(&script::RENEW, key, *owner);
                command.arg(millis(*lease)).arg(Stored::InProgress(OnAbandoned::Hold).encode(key, *owner));
                command
            }
            Work::Complete(Complete { key, owner, outcome, retention }, _) => {
                let mut command = call(&script::COMPLETE, key, *owner);
                let state = Stored::Completed(outcome.clone()).encode(key, *owner);
                command.arg(state).arg(millis(*retention)).arg(channel);
                command
            }
            Work::Release(Release { key, owner }, _) => {
                // Whatever it was claimed for.
                let claim = Claim { owner: *owner, fingerprint: Fingerprint::of(b""), attempt: Attempt::FIRST };
                let withdrawn = Value { claim, state: Stored::Withdrawn };
                let mut command = call(&script::RELEASE, key, *owner);
                command.arg(channel).arg(withdrawn.encode(key)).arg(millis(WITHDRAWN_KEPT));
                command
            }
            Work::Hold(Hold { key, owner }, _) => {
                let mut command = call(&script::HOLD, key, *owner);
                command.arg(Stored::Indeterminate.encode(key, *owner)).arg(channel);
                command
            }
            Work::Inspect(Resolve { key, .. }, _) => redis::cmd("GET").arg(names.of(key)).take(),
            Work::Resolve(message, met, _) => {
                let claim = met.value.claim;
                let mut command = call(&script::RESOLVE, &message.key, claim.owner);
                command.arg(&met.bytes).arg(channel);
                if let Resolution::Complete { outcome, retention } = &message.with {
                    let settled = Value { claim, state: Stored::Completed(outcome.clone()) };
                    command.arg(settled.encode(&message.key)).arg(millis(*retention));
                }
                command
            }
            Work::Lookup(Lookup { key }, _) => script::READ.call(&names.of(key), self.whole),
            Work::Remove(Remove { key }, _) => {
                let mut command = script::REMOVE.call(&names.of(key), self.whole);
                command.arg("").arg(channel);
                command
            }
        }
    }

    /// Takes the server's answer. `None`: the message is answered; else there is more to send.
    pub(super) fn hear(self, answer: Result<Answer, Failure>) -> Option<Self> {
        let Self { names, work, whole, lost } = self;
        let answer = match answer {
            // From now on the server will know it.
            Err(Failure::NoScript) if !whole => return Some(Self { names, work, whole: true, lost }),
            // The same step by the same owner is safe to repeat; somebody else's word would hear that it came too late.
            Err(Failure::Broken(why)) if lost.is_none() && !matches!(work, Work::Resolve(..) | Work::Remove(..)) => {
                return Some(Self { names, work, whole, lost: Some(why) });
            }
            // That it can't be sent again says nothing of the first time.
            Err(failure) if !failure.is_about_the_record() => match &lost {
                Some(why) => Err(Failure::Broken(why.clone())),
                None => Err(failure),
            },
            answer => answer,
        };
        work.hear(answer).map(|work| Self { names, work, whole: false, lost })
    }
}

/// Answers with an error, or gives what was read.
macro_rules! or_refuse {
    ($reply:ident, $read:expr) => {
        match $read {
            Ok(read) => read,
            Err(error) => {
                $reply.send(Err(error));
                return None;
            }
        }
    };
}

impl Work {
    /// `None`: the message is answered; else what there is more to say.
    fn hear(self, answer: Result<Answer, Failure>) -> Option<Work> {
        // What was only read was not changed.
        let answer = match self {
            Self::Inspect(..) | Self::Lookup(..) => answer.map_err(Failure::of_read),
            _ => answer.map_err(StoreError::from),
        };
        match self {
            Self::Acquire(message, reply) => {
                let found = or_refuse!(reply, answer.and_then(bytes_or_nil));
                hear_acquire(message, found, reply)
            }
            Self::TakeOver(message, met, reply) => {
                let answer = or_refuse!(reply, answer);
                hear_take_over(message, met, answer, reply)
            }
            Self::Renew(Renew { key, .. }, reply) => {
                let is_done = answer.and_then(|answer| verdict(&key, answer));
                reply.send(is_done.map(|done| if done { Renewed::Renewed } else { Renewed::Lost }));
                None
            }
            Self::Complete(Complete { key, .. }, reply) => {
                let is_done = answer.and_then(|answer| verdict(&key, answer));
                reply.send(is_done.map(|done| if done { Completed::Stored } else { Completed::Lost }));
                None
            }
            Self::Release(Release { key, .. }, reply) => {
                let is_done = answer.and_then(|answer| verdict(&key, answer));
                reply.send(is_done.map(|done| if done { Released::Released } else { Released::Lost }));
                None
            }
            Self::Hold(Hold { key, .. }, reply) => {
                let is_done = answer.and_then(|answer| verdict(&key, answer));
                reply.send(is_done.map(|done| if done { Held::Held } else { Held::Lost }));
                None
            }
            Self::Inspect(message, reply) => {
                let found = or_refuse!(reply, answer.and_then(bytes_or_nil));
                hear_inspect(message, found, reply)
            }
            Self::Resolve(message, _, reply) => {
                let (verdict, detail) = or_refuse!(reply, answer.and_then(table));
                match verdict.as_slice() {
                    b"resolved" => reply.send(Ok(Resolved::Resolved)),
                    b"changed" => {
                        let found = or_refuse!(reply, bytes_or_nil(detail));
                        return hear_inspect(message, found, reply);
                    }
                    b"held" => reply.send(Ok(Resolved::NotIndeterminate)),
                    _ => reply.send(Err(unexpected())),
                }
                None
            }
            Self::Lookup(Lookup { key }, reply) => {
                let read = answer.and_then(|answer| read_record(&key, answer));
                reply.send(read);
                None
            }
            Self::Remove(_, reply) => {
                reply.send(match answer {
                    Ok(Answer::Int(0)) => Ok(Removed::Absent),
                    Ok(Answer::Int(_)) => Ok(Removed::Removed),
                    Ok(_) => Err(unexpected()),
                    Err(error) => Err(error),
                });
                None
            }
        }
    }
}

/// What `SET NX GET` found, or what a script says is there by now.
fn hear_acquire(message: Acquire, found: Option<Vec<u8>>, reply: Reply<Acquired>) -> Option<Work> {
    let Some(bytes) = found else {
        reply.send(Ok(Acquired::Claimed { attempt: Attempt::FIRST, took_over: false }));
        return None;
    };
    hear_found(message, bytes, reply)
}

fn hear_found(message: Acquire, bytes: Vec<u8>, reply: Reply<Acquired>) -> Option<Work> {
    // Most of what is found is completed: its bytes are not copied.
    let is_completed = bytes.get(super::value::STATE_AT) == Some(&b'c');
    let met = if is_completed {
        Value::decode(&message.key, bytes).map(|value| Met { value, bytes: Vec::new() })
    } else {
        Met::read(&message.key, bytes)
    };
    let met = or_refuse!(reply, met);
    let claim = met.value.claim;
    let is_withdrawn = met.value.state == Stored::Withdrawn;
    if is_withdrawn && claim.owner == message.owner {
        reply.send(Err(StoreError::unknown("this claim was taken back before it arrived")));
        return None;
    }
    if !is_withdrawn && claim.fingerprint != message.fingerprint {
        reply.send(Ok(Acquired::Mismatch));
        return None;
    }
    match met.value.state {
        Stored::Completed(outcome) => reply.send(Ok(Acquired::Completed { outcome })),
        Stored::Indeterminate => reply.send(Ok(Acquired::Indeterminate { attempt: claim.attempt, owner: claim.owner })),
        Stored::InProgress(_) | Stored::Withdrawn => return Some(Work::TakeOver(message, met, reply)),
    }
    None
}

fn hear_take_over(message: Acquire, met: Met, answer: Answer, reply: Reply<Acquired>) -> Option<Work> {
    let (verdict, detail) = or_refuse!(reply, table(answer));
    let claim = met.value.claim;
    let is_own = claim.owner == message.owner;
    let took_over = !is_own && met.value.state != Stored::Withdrawn;
    let answer = match verdict.as_slice() {
        b"claimed" => {
            let attempt = match (took_over, is_own) {
                (true, _) => claim.attempt.next(),
                (false, true) => claim.attempt,
                (false, false) => Attempt::FIRST,
            };
            Ok(Acquired::Claimed { attempt, took_over })
        }
        b"held" => match detail {
            Answer::Int(left) => {
                Ok(Acquired::InProgress { lease_left: Duration::from_millis(u64::try_from(left).unwrap_or(0)) })
            }
            _ => Err(unexpected()),
        },
        b"indeterminate" => Ok(Acquired::Indeterminate { attempt: claim.attempt, owner: claim.owner }),
        b"endless" => Err(endless()),
        b"changed" => match bytes_or_nil(detail) {
            // Released meanwhile: from the beginning.
            Ok(None) => return Some(Work::Acquire(message, reply)),
            Ok(Some(bytes)) => return hear_found(message, bytes, reply),
            Err(error) => Err(error),
        },
        _ => Err(unexpected()),
    };
    reply.send(answer);
    None
}

fn hear_inspect(message: Resolve, found: Option<Vec<u8>>, reply: Reply<Resolved>) -> Option<Work> {
    let Some(bytes) = found else {
        reply.send(Ok(Resolved::NotIndeterminate));
        return None;
    };
    let met = or_refuse!(reply, Met::read(&message.key, bytes));
    // A word about attempt 1 says nothing of attempt 2, nor of the first attempt of a later life of the key.
    let is_meant = message.attempt.is_none_or(|attempt| attempt == met.value.claim.attempt)
        && message.owner.is_none_or(|owner| owner == met.value.claim.owner);
    if is_meant && matches!(met.value.state, Stored::Indeterminate | Stored::InProgress(OnAbandoned::Hold)) {
        return Some(Work::Resolve(message, met, reply));
    }
    reply.send(Ok(Resolved::NotIndeterminate));
    None
}

/// The value that claims a key.
fn claimed(message: &Acquire, attempt: Attempt) -> Vec<u8> {
    let claim = Claim { owner: message.owner, fingerprint: message.fingerprint, attempt };
    Value { claim, state: Stored::InProgress(message.on_abandoned) }.encode(&message.key)
}
