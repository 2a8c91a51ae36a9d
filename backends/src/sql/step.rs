//! Messages about one key, each with its reply and the pure function that decides it.

use oncekey::Key;
use oncekey::backend::{Acquire, Complete, Completed, Hold, Release, Renew, Reply, Request, Resolve, StoreError};
use oncekey::record::transition::{self, Write};
use oncekey::record::{Record, StoreTime};

/// A step that waits to be taken.
pub(crate) trait Step: Send {
    fn key(&self) -> &Key;

    /// Whether it asks for a claim. Those mostly insert, the others mostly update.
    fn is_acquire(&self) -> bool;

    /// The outcome to be stored, if that is what it asks for.
    fn completion(&self) -> Option<Completion<'_>>;

    /// Tells that what it asked for was done without a decision.
    fn done(self: Box<Self>);

    /// Decides on what was found; the answer is kept until [`answer`](Self::answer).
    fn decide(&mut self, found: Option<&Record>, now: StoreTime) -> Write;

    /// Tells what was decided last: its write is done.
    fn answer(self: Box<Self>);

    fn refuse(self: Box<Self>, error: StoreError);
}

/// What nearly every claim ends with, in the form of a statement's row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Completion<'a> {
    pub(crate) key: &'a str,
    pub(crate) owner: &'a [u8],
    pub(crate) outcome: &'a [u8],
    /// How long the record is kept, in milliseconds.
    pub(crate) retention: i64,
}

impl<'a> Completion<'a> {
    pub(crate) fn of(message: &'a Complete) -> Self {
        let millis = message.retention.as_nanos().div_ceil(1_000_000);
        Self {
            key: message.key.as_stored(),
            owner: message.owner.as_bytes(),
            outcome: message.outcome.as_stored(),
            // Added to the server's time by the server, where it must not overflow.
            retention: i64::try_from(millis).unwrap_or(i64::MAX).min(i64::MAX / 2),
        }
    }
}

struct Pending<M, A> {
    message: M,
    key: fn(&M) -> &Key,
    transition: fn(Option<&Record>, StoreTime, &M) -> transition::Step<A>,
    is_acquire: bool,
    completion: fn(&M) -> Option<Completion<'_>>,
    done: Option<A>,
    decided: Option<A>,
    reply: Reply<A>,
}

impl<M: Send, A: Send> Step for Pending<M, A> {
    fn key(&self) -> &Key {
        (self.key)(&self.message)
    }

    fn is_acquire(&self) -> bool {
        self.is_acquire
    }

    fn completion(&self) -> Option<Completion<'_>> {
        (self.completion)(&self.message)
    }

    fn done(self: Box<Self>) {
        if let Some(done) = self.done {
            self.reply.send(Ok(done));
        }
    }

    fn decide(&mut self, found: Option<&Record>, now: StoreTime) -> Write {
        let step = (self.transition)(found, now, &self.message);
        self.decided = Some(step.answer);
        step.write
    }

    fn answer(self: Box<Self>) {
        // Without a decision the reply is dropped, and answers "unknown".
        if let Some(decided) = self.decided {
            self.reply.send(Ok(decided));
        }
    }

    fn refuse(self: Box<Self>, error: StoreError) {
        self.reply.send(Err(error));
    }
}

/// A request that is decided by a pure function is a step; any other is given back.
#[expect(clippy::result_large_err, reason = "given back at once, to be taken elsewhere")]
pub(crate) fn step_of(request: Request) -> Result<Box<dyn Step>, Request> {
    macro_rules! pending {
        ($message:ident, $reply:ident, $type:ty, $transition:path) => {
            Pending {
                key: |message: &$type| &message.key,
                transition: $transition,
                is_acquire: false,
                completion: |_| None,
                done: None,
                decided: None,
                message: $message,
                reply: $reply,
            }
        };
    }
    Ok(match request {
        Request::Acquire(message, reply) => {
            Box::new(Pending { is_acquire: true, ..pending!(message, reply, Acquire, transition::acquire) })
        }
        Request::Complete(message, reply) => Box::new(Pending {
            completion: |message| Some(Completion::of(message)),
            done: Some(Completed::Stored),
            ..pending!(message, reply, Complete, transition::complete)
        }),
        Request::Renew(message, reply) => Box::new(pending!(message, reply, Renew, transition::renew)),
        Request::Release(message, reply) => Box::new(pending!(message, reply, Release, transition::release)),
        Request::Hold(message, reply) => Box::new(pending!(message, reply, Hold, transition::hold)),
        Request::Resolve(message, reply) => Box::new(pending!(message, reply, Resolve, transition::resolve)),
        other => return Err(other),
    })
}
