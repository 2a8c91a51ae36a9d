//! Messages about one key, each with its reply and the pure function that decides it.

use std::time::Duration;

use oncekey::backend::{
    Acquire, Acquired, BeginStep, Complete, CompleteStep, Completed, FailStep, Hold, Release, Remove, Renew, Reply,
    Request, Resolve, ResolveStep, StepBegun, StepCompleted, StepState, StoreError, Withdraw,
};
use oncekey::record::transition::{self, Write};
use oncekey::record::{ABANDONED_CLAIM_KEPT, Record, State, StepRun, StoreTime};
use oncekey::{Attempt, FencingToken, Key, OnAbandoned, StepPolicy};

use crate::columns::word_of;

/// A step that is not executed yet.
pub(crate) trait Step: Send {
    fn key(&self) -> &Key;

    /// Returns the group with which it is executed.
    fn group(&self) -> Group;

    /// Returns whether it must see the record's steps, of which only the life was read.
    fn must_see_steps(&self, found: &Record, now: StoreTime) -> bool;

    /// Returns its request in the form of a row, if that needs no read first.
    fn unseen(&self) -> Option<Unseen<'_>>;

    /// Returns what is known about it.
    fn state(&mut self) -> &mut StepState;

    /// Answers that its request was executed without a decision.
    fn done(self: Box<Self>, given: Given);

    /// Decides on the record that was found. Keeps the answer until [`answer`](Self::answer).
    fn decide(&mut self, found: Option<&Record>, now: StoreTime) -> Write;

    /// Sends the last decision's answer, after its write.
    fn answer(self: Box<Self>);

    /// Ends it with the store's own error: it was not executed this time.
    fn refuse(self: Box<Self>, error: StoreError);

    /// Ends it without an answer.
    fn fail(self: Box<Self>, error: StoreError);
}

/// The groups of steps that share statements and connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Group {
    /// Claims, which mostly insert.
    Claims,
    /// Settlements, which mostly update.
    Settlements,
    /// The begin of an operation's step, which inserts.
    Begins,
    /// All other messages about an operation's steps.
    Outcomes,
}

impl Group {
    pub(crate) const ALL: [Self; 4] = [Self::Claims, Self::Settlements, Self::Begins, Self::Outcomes];

    /// Returns whether these are messages about an operation's steps.
    pub(crate) fn is_of_steps(self) -> bool {
        matches!(self, Self::Begins | Self::Outcomes)
    }
}

/// What a statement without a read returned for a step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Given {
    /// The claim's fencing token.
    pub(crate) token: FencingToken,
    /// The life of the record's steps.
    pub(crate) life: FencingToken,
}

impl Given {
    pub(crate) const NOTHING: Self = Self { token: FencingToken::ZERO, life: FencingToken::ZERO };
}

/// The most frequent requests, each as the row of a statement.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Unseen<'a> {
    Claim(FirstClaim<'a>),
    Completion(Completion<'a>),
    Begin(FirstRun<'a>),
    StepCompletion(StepCompletion<'a>),
}

/// The claim of a key that has no record. Times are in milliseconds; the server adds them to its own time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FirstClaim<'a> {
    pub(crate) key: &'a str,
    pub(crate) fingerprint: &'a [u8],
    pub(crate) owner: &'a [u8],
    pub(crate) on_abandoned: i16,
    pub(crate) lease: i64,
    /// How long the record is kept, if it expires by itself.
    pub(crate) kept: Option<i64>,
}

impl<'a> FirstClaim<'a> {
    pub(crate) fn of(message: &'a Acquire) -> Self {
        let lease = millis(message.lease);
        Self {
            key: message.key.as_stored(),
            fingerprint: message.fingerprint.as_bytes(),
            owner: message.owner.as_bytes(),
            on_abandoned: word_of(message.on_abandoned),
            lease,
            kept: match message.on_abandoned {
                OnAbandoned::Rerun | OnAbandoned::Resume => Some(lease.saturating_add(millis(ABANDONED_CLAIM_KEPT))),
                OnAbandoned::Hold => None,
            },
        }
    }
}

/// Returns whole milliseconds, limited so that the server can add them to its time.
pub(super) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(i64::MAX).min(i64::MAX / 4)
}

/// The completion of a claim by its owner.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Completion<'a> {
    pub(crate) key: &'a str,
    pub(crate) owner: &'a [u8],
    pub(crate) outcome: &'a [u8],
    /// How long the record is kept, in milliseconds from the server's time.
    pub(crate) retention: i64,
}

impl<'a> Completion<'a> {
    pub(crate) fn of(message: &'a Complete) -> Self {
        Self {
            key: message.key.as_stored(),
            owner: message.owner.as_bytes(),
            outcome: message.outcome.as_stored(),
            retention: millis(message.retention),
        }
    }
}

/// The first run of an operation's step. Times are in milliseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FirstRun<'a> {
    pub(crate) key: &'a str,
    pub(crate) owner: &'a [u8],
    pub(crate) name: &'a str,
    pub(crate) fingerprint: Option<&'a [u8]>,
    pub(crate) number: i64,
    /// How long a run of unknown effect may be repeated, counted from the server's time: `None` for never, and
    /// [`i64::MAX`] for ever.
    pub(crate) reruns_for: Option<i64>,
    pub(crate) retention: i64,
}

impl<'a> FirstRun<'a> {
    fn of(message: &'a BeginStep) -> Self {
        Self {
            key: message.key.as_stored(),
            owner: message.owner.as_bytes(),
            name: message.name.as_str(),
            fingerprint: message.fingerprint.as_ref().map(|fingerprint| fingerprint.as_bytes().as_slice()),
            number: message.number.into(),
            reruns_for: match message.policy {
                StepPolicy::Hold => None,
                StepPolicy::Rerun => Some(i64::MAX),
                StepPolicy::RerunWithin(limit) => Some(millis(limit)),
            },
            retention: millis(message.retention),
        }
    }
}

/// The outcome of the last run of a step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StepCompletion<'a> {
    pub(crate) key: &'a str,
    pub(crate) life: i64,
    pub(crate) name: &'a str,
    pub(crate) run_token: i64,
    pub(crate) run_number: i64,
    pub(crate) outcome: &'a [u8],
}

impl<'a> StepCompletion<'a> {
    fn of(message: &'a CompleteStep) -> Self {
        let number = |token: FencingToken| i64::try_from(token.get()).unwrap_or(i64::MAX);
        Self {
            key: message.key.as_stored(),
            life: number(message.life),
            name: message.name.as_str(),
            run_token: number(message.run.token),
            run_number: message.run.number.into(),
            outcome: message.outcome.as_stored(),
        }
    }
}

struct Pending<M, A> {
    message: M,
    key: fn(&M) -> &Key,
    transition: fn(Option<&Record>, StoreTime, &M) -> transition::Step<A>,
    group: Group,
    /// Whether the decision depends on the steps of this record, which has not expired.
    sees_steps: fn(&M, &Record, StoreTime) -> bool,
    unseen: fn(&M) -> Option<Unseen<'_>>,
    done: Option<fn(&M, Given) -> A>,
    decided: Option<A>,
    reply: Reply<A>,
}

impl<M: Send, A: Send> Step for Pending<M, A> {
    fn key(&self) -> &Key {
        (self.key)(&self.message)
    }

    fn group(&self) -> Group {
        self.group
    }

    fn must_see_steps(&self, found: &Record, now: StoreTime) -> bool {
        // If the record seems to have expired, its steps decide whether it has, and they expire with it.
        found.steps.is_some()
            && ((self.sees_steps)(&self.message, found, now) || found.purge_at().is_some_and(|at| at <= now))
    }

    fn unseen(&self) -> Option<Unseen<'_>> {
        (self.unseen)(&self.message)
    }

    fn state(&mut self) -> &mut StepState {
        self.reply.state()
    }

    fn done(self: Box<Self>, given: Given) {
        if let Some(done) = self.done {
            self.reply.send(Ok(done(&self.message, given)));
        }
    }

    fn decide(&mut self, found: Option<&Record>, now: StoreTime) -> Write {
        let step = (self.transition)(found, now, &self.message);
        self.decided = Some(step.answer);
        step.write
    }

    fn answer(self: Box<Self>) {
        // Without a decision, the reply is dropped and answers "unknown".
        if let Some(decided) = self.decided {
            self.reply.send(Ok(decided));
        }
    }

    fn refuse(self: Box<Self>, error: StoreError) {
        self.reply.send(Err(error));
    }

    fn fail(self: Box<Self>, error: StoreError) {
        self.reply.fail(error);
    }
}

/// Returns whether the answer needs more than the record's own outcome.
fn is_open(record: &Record) -> bool {
    !matches!(record.state, State::Completed { .. })
}

/// Turns a request that a pure function decides into a step. Returns any other request.
#[expect(clippy::result_large_err, reason = "given back at once, to be taken elsewhere")]
pub(crate) fn step_of(request: Request) -> Result<Box<dyn Step>, Request> {
    macro_rules! pending {
        ($message:ident, $reply:ident, $type:ty, $transition:path) => {
            Pending {
                key: |message: &$type| &message.key,
                transition: $transition,
                group: Group::Settlements,
                sees_steps: |_, _, _| false,
                unseen: |_| None,
                done: None,
                decided: None,
                message: $message,
                reply: $reply,
            }
        };
    }
    Ok(match request {
        Request::Acquire(message, reply) => Box::new(Pending {
            group: Group::Claims,
            sees_steps: |message: &Acquire, record, now| match record.state {
                State::InProgress { lease_until, .. } => lease_until <= now || record.owner == message.owner,
                _ => is_open(record),
            },
            unseen: |message| Some(Unseen::Claim(FirstClaim::of(message))),
            done: Some(|_, Given { token, .. }| Acquired::Claimed {
                attempt: Attempt::FIRST,
                token,
                took_over: false,
                steps: None,
            }),
            ..pending!(message, reply, Acquire, transition::acquire)
        }),
        Request::Complete(message, reply) => Box::new(Pending {
            unseen: |message| Some(Unseen::Completion(Completion::of(message))),
            done: Some(|_, _| Completed::Stored),
            ..pending!(message, reply, Complete, transition::complete)
        }),
        Request::Renew(message, reply) => Box::new(pending!(message, reply, Renew, transition::renew)),
        Request::Release(message, reply) => Box::new(Pending {
            sees_steps: |_, record, _| is_open(record),
            ..pending!(message, reply, Release, transition::release)
        }),
        Request::Withdraw(message, reply) => Box::new(Pending {
            sees_steps: |_, record, _| is_open(record),
            ..pending!(message, reply, Withdraw, transition::withdraw)
        }),
        Request::Remove(message, reply) => {
            Box::new(Pending { sees_steps: |_, _, _| true, ..pending!(message, reply, Remove, transition::remove) })
        }
        Request::Hold(message, reply) => Box::new(pending!(message, reply, Hold, transition::hold)),
        Request::Resolve(message, reply) => Box::new(Pending {
            sees_steps: |_, record, _| is_open(record),
            ..pending!(message, reply, Resolve, transition::resolve)
        }),
        Request::BeginStep(message, reply) => {
            let message = *message;
            Box::new(Pending {
                group: Group::Begins,
                unseen: |message| Some(Unseen::Begin(FirstRun::of(message))),
                done: Some(|message, Given { token, life }| StepBegun::Begun {
                    attempt: Attempt::FIRST,
                    run: StepRun { token, number: message.number },
                    life,
                }),
                ..pending!(message, reply, BeginStep, transition::begin_step)
            })
        }
        Request::CompleteStep(message, reply) => {
            let message = *message;
            Box::new(Pending {
                group: Group::Outcomes,
                unseen: |message| Some(Unseen::StepCompletion(StepCompletion::of(message))),
                done: Some(|_, _| StepCompleted::Stored),
                ..pending!(message, reply, CompleteStep, transition::complete_step)
            })
        }
        Request::FailStep(message, reply) => {
            let message = *message;
            Box::new(Pending { group: Group::Outcomes, ..pending!(message, reply, FailStep, transition::fail_step) })
        }
        Request::ResolveStep(message, reply) => {
            let message = *message;
            Box::new(Pending {
                group: Group::Outcomes,
                ..pending!(message, reply, ResolveStep, transition::resolve_step)
            })
        }
        other => return Err(other),
    })
}

#[cfg(test)]
mod tests {
    use oncekey::Fingerprint;
    use oncekey::record::{Owner, StepName};

    use super::*;
    use crate::sql::row::Columns;
    use crate::sql::step_row::Family;

    /// A first claim equals what the protocol decides for a key without a record.
    #[test]
    fn a_first_claim_is_the_protocols() {
        let now = StoreTime::from_millis(1_000_000);
        for on_abandoned in [OnAbandoned::Rerun, OnAbandoned::Hold, OnAbandoned::Resume] {
            for lease in [Duration::from_micros(1), Duration::from_millis(1_500), Duration::from_secs(86_400)] {
                let message = Acquire {
                    key: Key::new("s", "k").unwrap(),
                    fingerprint: Fingerprint::of(b"asked"),
                    owner: Owner::random(),
                    lease,
                    on_abandoned,
                    past_withdrawal: None,
                };
                let step = transition::acquire(None, now, &message);
                let token = FencingToken::new(1_000_000_000);
                assert_eq!(
                    step.answer,
                    Acquired::Claimed { attempt: Attempt::FIRST, token, took_over: false, steps: None }
                );
                let Write::Put(record) = step.write else { panic!("{:?}", step.write) };
                let (decided, unseen) = (Columns::of(&message.key, &record), FirstClaim::of(&message));
                assert_eq!(
                    (decided.key, decided.owner, decided.fingerprint),
                    (unseen.key, unseen.owner, unseen.fingerprint)
                );
                assert_eq!((decided.state, decided.attempt, decided.outcome), (1, 1, None));
                assert_eq!(decided.on_abandoned, Some(unseen.on_abandoned));
                assert_eq!(decided.lease_until, Some(1_000_000 + unseen.lease));
                // The values that the statement computes from the server's time.
                assert_eq!((decided.fencing_token, decided.barrier_owner), (1_000_000 * 1_000, None));
                assert_eq!(decided.purge_at, unseen.kept.map(|kept| 1_000_000 + kept));
            }
        }
    }

    /// A first run equals what the protocol decides for a step that its record does not have.
    #[test]
    fn a_first_run_is_the_protocols() {
        let now = StoreTime::from_millis(1_000_000);
        let key = Key::new("s", "k").unwrap();
        let owner = Owner::random();
        let acquire = Acquire {
            key: key.clone(),
            fingerprint: Fingerprint::of(b"asked"),
            owner,
            lease: Duration::from_secs(30),
            on_abandoned: OnAbandoned::Resume,
            past_withdrawal: None,
        };
        let Write::Put(found) = transition::acquire(None, now, &acquire).write else { panic!("not claimed") };
        let policies = [StepPolicy::Hold, StepPolicy::Rerun, StepPolicy::RerunWithin(Duration::from_micros(1_500))];
        for (number, policy) in (1..).zip(policies) {
            let message = BeginStep {
                key: key.clone(),
                owner,
                name: StepName::new("charge").unwrap(),
                fingerprint: Some(Fingerprint::of(b"1999")),
                number,
                policy,
                retention: Duration::from_micros(59_999_500),
            };
            let Write::Put(record) = transition::begin_step(Some(&found), now, &message).write else {
                panic!("not begun")
            };
            let (decided, unseen) = (Family::of(&key, &found, &record), FirstRun::of(&message));
            let steps = decided.steps.unwrap();
            // The statement sets the life with the first step: the claim's token.
            assert_eq!((steps.life, steps.retention, steps.added), (1_000_000_000, unseen.retention, 1));
            let [change] = &decided.changes[..] else { panic!("{:?}", decided.changes) };
            assert!(change.was.is_none());
            let step = change.step;
            assert_eq!(
                (step.name, step.fingerprint, step.run_number),
                (unseen.name, unseen.fingerprint, unseen.number)
            );
            assert_eq!((step.life, step.run_token, step.attempt, step.state), (1_000_000_000, 1_000_000_000, 1, 1));
            assert_eq!((step.ordinal, step.began_at, step.outcome), (0, 1_000_000, None));
            let reruns_until = unseen.reruns_for.map(|limit| if limit == i64::MAX { limit } else { 1_000_000 + limit });
            assert_eq!(step.reruns_until, reruns_until);
            // Nothing else in the record changes, including the time of the next purge check.
            let before = Columns::of(&key, &found);
            assert_eq!((decided.row.purge_at, decided.row.lease_until), (before.purge_at, before.lease_until));
        }
    }
}
