//! One request on its way to a thread and back.
//!
//! Two sides may answer a request: the thread that executes it, and the future that waits for it, which the engine
//! drops at its deadline. They share the reply in a slot, and the first to answer takes it. If the future is dropped
//! before a thread has begun the request, the request never begins. Its answer is then a definite "not executed",
//! however long another process's lock delays the writer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use oncekey::backend::{Reply, StoreError};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::session::{NotCommitted, Session};

/// A request with its types erased.
pub(super) trait Job: Send {
    /// Whether a caller still waits for the answer.
    fn is_wanted(&self) -> bool;
    /// Executes the request, unless no caller waits for it, and keeps the answer until [`settle`](Self::settle).
    fn run(&mut self, session: &mut Session) -> Ran;
    /// Whether it runs a user's code inside the transaction, and so can run only once.
    fn is_operation(&self) -> bool;
    /// Sends the answer, or the fate of the transaction that the request was part of.
    fn settle(self: Box<Self>, fate: Result<(), &NotCommitted>);
    /// Records that the transaction was rolled back. The request will run again.
    fn undone(&mut self);
    /// Answers that the request was not executed.
    fn refuse(self: Box<Self>, error: StoreError);
    /// Answers that SQLite refused to commit what this request wrote: with the operation's own failure, or the
    /// request's refusal.
    fn commit_refused(self: Box<Self>, error: StoreError);
}

/// The result of [`Job::run`].
#[derive(Debug)]
pub(super) enum Ran {
    /// No caller waited for it.
    Abandoned,
    /// It has an answer.
    Done,
    /// Its answer is an error.
    Failed(StoreError),
}

struct Slot<Answer> {
    /// `None` once it is answered. The reply knows whether the request has begun.
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

    /// Sends the store's answer.
    fn settle(&self, answer: Result<Answer, StoreError>) {
        self.answer(|reply| reply.send(answer));
    }

    /// Ends a request that has no answer.
    fn fail(&self, error: StoreError) {
        self.answer(|reply| reply.fail(error));
    }

    /// Answers outside the lock, because a reply may run any code of its maker.
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
    /// For a user's operation: the answer if its commit is refused.
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
            // A request's own refusal does not depend on the fate of its neighbours.
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
        // The operation's own answer from before the commit stands: it had rolled back to its savepoint.
        let answer = match self.answer.take() {
            Some(Err(error)) => Err(error),
            _ => self.when_refused.take().ok_or(error),
        };
        self.slot.settle(answer);
    }
}

/// Answers the caller if a thread loses a job to a panic.
impl<Answer, Take> Drop for StepJob<Answer, Take> {
    fn drop(&mut self) {
        self.slot.abandon();
    }
}

/// Counts the requests of a batch that have no answer yet.
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

/// The requests of one batch, from the waiting side. Dropping it abandons the requests that have no answer.
pub(super) struct Batch {
    open: Arc<Open>,
    slots: Vec<Arc<dyn Abandon>>,
}

impl Batch {
    pub(super) fn with_capacity(steps: usize) -> Self {
        Self { open: Arc::default(), slots: Vec::with_capacity(steps) }
    }

    /// Makes a job of a request whose answer this batch waits for. `when_refused` marks it as a user's operation.
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

    /// Resolves when every request has its answer.
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
