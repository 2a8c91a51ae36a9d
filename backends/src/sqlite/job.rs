//! One step on its way to a thread and back.
//!
//! Two sides may answer a step: the thread that takes it, and the future that waits for it, when the engine drops that at
//! its deadline. They share the reply in a slot, and who comes first takes it. A step that no thread has begun when its
//! future is dropped is never begun; its answer is then a definite "not taken", however long a lock held by another
//! process keeps the writer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use oncekey::backend::{Reply, StoreError};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::session::{NotCommitted, Session};

/// A step, its types erased.
pub(super) trait Job: Send {
    /// Whether somebody still waits for the answer.
    fn is_wanted(&self) -> bool;
    /// Takes the step, unless nobody waits for it, and keeps the answer until [`settle`](Self::settle).
    fn run(&mut self, session: &mut Session) -> Ran;
    /// Whether it runs code of a user's inside the transaction, and can run only once.
    fn is_operation(&self) -> bool;
    /// Gives the answer, or what has become of the transaction that the step was part of.
    fn settle(self: Box<Self>, fate: Result<(), &NotCommitted>);
    /// The transaction that it was part of is rolled back, and the step is to be taken again.
    fn undone(&mut self);
    /// Answers that the step was not taken.
    fn refuse(self: Box<Self>, error: StoreError);
    /// Answers that SQLite refused to commit what this step wrote: an operation's own failure, or the step's refusal.
    fn commit_refused(self: Box<Self>, error: StoreError);
}

/// What became of [`Job::run`].
#[derive(Debug)]
pub(super) enum Ran {
    /// Nobody waited for it.
    Abandoned,
    /// It has an answer.
    Done,
    /// It has an error for an answer.
    Failed(StoreError),
}

struct Slot<Answer> {
    /// `None` once it is answered. It knows whether the step was begun.
    reply: Mutex<Option<Reply<Answer>>>,
    open: Arc<Open>,
}

impl<Answer> Slot<Answer> {
    fn begin(&self) -> bool {
        match self.reply.lock().as_mut() {
            Some(reply) => {
                reply.state().sent();
                true
            }
            None => false,
        }
    }

    /// Gives the store's answer.
    fn settle(&self, answer: Result<Answer, StoreError>) {
        self.answer(|reply| reply.send(answer));
    }

    /// Ends a step that has no answer.
    fn fail(&self, error: StoreError) {
        self.answer(|reply| reply.fail(error));
    }

    /// Outside the lock: what a reply does is its maker's affair.
    fn answer(&self, answer: impl FnOnce(Reply<Answer>)) {
        let reply = self.reply.lock().take();
        if let Some(reply) = reply {
            answer(reply);
            self.open.one_less();
        }
    }
}

/// The waiting side of a slot.
trait Abandon: Send + Sync {
    fn abandon(&self);
}

impl<Answer> Abandon for Slot<Answer> {
    fn abandon(&self) {
        self.answer(|mut reply| {
            let error = if reply.state().may_have_been_executed() {
                StoreError::unknown("the deadline passed before the commit was confirmed")
            } else {
                StoreError::unavailable("the deadline passed before the database could be asked")
            };
            reply.fail(error);
        });
    }
}

struct StepJob<Answer, Take> {
    take: Take,
    slot: Arc<Slot<Answer>>,
    answer: Option<Result<Answer, StoreError>>,
    /// Of a user's operation: the answer when its commit is refused.
    when_refused: Option<Answer>,
}

impl<Answer, Take> Job for StepJob<Answer, Take>
where
    Answer: Send,
    Take: FnMut(&mut Session) -> Result<Answer, StoreError> + Send,
{
    fn is_wanted(&self) -> bool {
        self.slot.reply.lock().is_some()
    }

    fn run(&mut self, session: &mut Session) -> Ran {
        if !self.slot.begin() {
            return Ran::Abandoned;
        }
        let answer = self.answer.insert((self.take)(session));
        answer.as_ref().err().map_or(Ran::Done, |error| Ran::Failed(error.clone()))
    }

    fn is_operation(&self) -> bool {
        self.when_refused.is_some()
    }

    fn settle(mut self: Box<Self>, fate: Result<(), &NotCommitted>) {
        match (self.answer.take(), fate) {
            (Some(answer), Ok(())) => self.slot.settle(answer),
            // What a step was refused for does not change with the fate of its neighbours.
            (Some(Err(error)), Err(_)) => self.slot.settle(Err(error)),
            (_, Err(NotCommitted::RolledBack(error) | NotCommitted::Refused(error))) => {
                self.slot.settle(Err(error.clone()))
            }
            (_, Err(NotCommitted::Unknown(error))) => self.slot.fail(error.clone()),
            (None, Ok(())) => {}
        }
    }

    fn undone(&mut self) {
        if let Some(reply) = self.slot.reply.lock().as_mut() {
            reply.state().refused();
        }
    }

    fn refuse(self: Box<Self>, error: StoreError) {
        self.slot.settle(Err(error));
    }

    fn commit_refused(mut self: Box<Self>, error: StoreError) {
        // What the operation answered by itself before the commit stands: it had rolled back to its savepoint.
        let answer = match self.answer.take() {
            Some(Err(error)) => Err(error),
            _ => self.when_refused.take().ok_or(error),
        };
        self.slot.settle(answer);
    }
}

/// A thread that loses a job to a panic leaves nobody waiting.
impl<Answer, Take> Drop for StepJob<Answer, Take> {
    fn drop(&mut self) {
        self.slot.abandon();
    }
}

/// How many of a batch's steps have no answer yet.
#[derive(Debug, Default)]
struct Open {
    steps: AtomicUsize,
    none: Notify,
}

impl Open {
    fn one_less(&self) {
        if self.steps.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.none.notify_one();
        }
    }
}

/// The steps of one batch, seen from the waiting side. Dropping it abandons those that have no answer.
pub(super) struct Batch {
    open: Arc<Open>,
    slots: Vec<Arc<dyn Abandon>>,
}

impl Batch {
    pub(super) fn with_capacity(steps: usize) -> Self {
        Self { open: Arc::default(), slots: Vec::with_capacity(steps) }
    }

    /// Makes a job of a step whose answer this batch waits for. `when_refused` makes it a user's operation.
    pub(super) fn job<Answer: Send + 'static>(
        &mut self,
        reply: Reply<Answer>,
        when_refused: Option<Answer>,
        take: impl FnMut(&mut Session) -> Result<Answer, StoreError> + Send + 'static,
    ) -> Box<dyn Job> {
        self.open.steps.fetch_add(1, Ordering::AcqRel);
        let slot = Arc::new(Slot { reply: Mutex::new(Some(reply)), open: Arc::clone(&self.open) });
        self.slots.push(Arc::clone(&slot) as Arc<dyn Abandon>);
        Box::new(StepJob { take, slot, answer: None, when_refused })
    }

    /// Resolves when every step has its answer.
    pub(super) async fn answered(self) {
        while self.open.steps.load(Ordering::Acquire) > 0 {
            self.open.none.notified().await;
        }
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.slots.iter().for_each(|slot| slot.abandon());
    }
}
