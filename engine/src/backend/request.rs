//! Messages on their way to a store, each with the reply that takes its answer.

use std::fmt;

use super::transaction::{CompleteInTransaction, CompletedInTransaction};
use super::{
    Acquire, Acquired, Backend, BeginStep, Changed, Complete, CompleteStep, Completed, FailStep, Held, Hold, List,
    Lookup, Purge, Purged, RecordView, Release, Released, Remove, Removed, Renew, Renewed, Resolve, ResolveStep,
    Resolved, Stats, StepBegun, StepCommitted, StepCompleted, StepFailed, StepInTransaction, StepState, StoreError,
    StoreStats, Watch, Withdraw, Withdrawn,
};

/// Takes the answer to one message. You can move it to another thread and answer there.
///
/// It also carries what is known about the step, its [`StepState`]. A backend that sends steps by itself calls
/// [`sent`](StepState::sent) before a step leaves, and ends a step that has no answer with [`fail`](Self::fail).
///
/// Dropping a reply also answers it, so no caller waits forever if a backend loses a message. The answer is
/// [`StoreError::Unknown`] if the step may have been executed, or [`StoreError::Unavailable`] if it was never sent.
///
/// ```
/// use std::sync::mpsc;
/// use oncekey::backend::{Reply, StoreError};
///
/// let (tx, rx) = mpsc::channel();
/// let reply = Reply::new(move |answer| tx.send(answer).unwrap());
/// reply.send(Ok(17));
/// assert_eq!(rx.recv().unwrap(), Ok(17));
///
/// let (tx, rx) = mpsc::channel();
/// let mut reply = Reply::<u32>::new(move |answer| tx.send(answer).unwrap());
/// reply.state().sent();
/// drop(reply);
/// assert!(rx.recv().unwrap().unwrap_err().is_unknown());
/// ```
pub struct Reply<T>(Box<dyn Deliver<T>>);

/// A reply behind a single pointer. Requests move from mailbox to mailbox, so each byte of them costs.
trait Deliver<T>: Send {
    fn state(&mut self) -> &mut StepState;

    fn is_delivered(&self) -> bool;

    /// Delivers the answer. A second call does nothing.
    fn deliver(&mut self, answer: Result<T, StoreError>);
}

struct Pending<F> {
    state: StepState,
    deliver: Option<F>,
}

impl<T, F: FnOnce(Result<T, StoreError>) + Send> Deliver<T> for Pending<F> {
    fn state(&mut self) -> &mut StepState {
        &mut self.state
    }

    fn is_delivered(&self) -> bool {
        self.deliver.is_none()
    }

    fn deliver(&mut self, answer: Result<T, StoreError>) {
        if let Some(deliver) = self.deliver.take() {
            deliver(answer.map_err(|error| self.state.judge(error)));
        }
    }
}

impl<T> Reply<T> {
    /// Returns a reply that passes its answer to `deliver`.
    pub fn new(deliver: impl FnOnce(Result<T, StoreError>) + Send + 'static) -> Self {
        Self(Box::new(Pending { state: StepState::default(), deliver: Some(deliver) }))
    }

    /// Returns what is known about the step.
    ///
    /// ```
    /// use oncekey::backend::{Reply, StoreError};
    ///
    /// let mut reply = Reply::<u32>::new(|answer| assert!(answer.unwrap_err().is_unknown()));
    /// reply.state().sent();
    /// reply.fail(StoreError::unavailable("no connection could be opened to ask again"));
    /// ```
    pub fn state(&mut self) -> &mut StepState {
        self.0.state()
    }

    /// Delivers the store's answer to the step. An error is the store's own: it did not execute the step this time.
    pub fn send(mut self, answer: Result<T, StoreError>) {
        if answer.is_err() {
            self.0.state().refused();
        }
        self.0.deliver(answer);
    }

    /// Ends a step that has no answer, with the reason.
    pub fn fail(mut self, error: StoreError) {
        self.0.deliver(Err(error));
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        if !self.0.is_delivered() {
            self.0.deliver(Err(StoreError::unavailable("the deadline passed, or the backend dropped the message")));
        }
    }
}

impl<T> fmt::Debug for Reply<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reply")
    }
}

/// One message with its reply.
///
/// ```
/// use oncekey::backend::{Reply, Request, Stats};
///
/// let request = Request::Stats(Stats, Reply::new(|answer| println!("{answer:?}")));
/// assert_eq!(request.name(), "stats");
/// ```
#[derive(Debug)]
pub enum Request {
    /// See [`Acquire`].
    Acquire(Acquire, Reply<Acquired>),
    /// See [`Renew`].
    Renew(Renew, Reply<Renewed>),
    /// See [`Complete`].
    Complete(Complete, Reply<Completed>),
    /// See [`CompleteInTransaction`].
    CompleteInTransaction(CompleteInTransaction, Reply<CompletedInTransaction>),
    /// See [`Release`].
    Release(Release, Reply<Released>),
    /// See [`Withdraw`].
    Withdraw(Withdraw, Reply<Withdrawn>),
    /// See [`Hold`].
    Hold(Hold, Reply<Held>),
    /// See [`Resolve`].
    Resolve(Resolve, Reply<Resolved>),
    /// See [`BeginStep`]. The step messages are boxed, because most operations have no steps.
    BeginStep(Box<BeginStep>, Reply<StepBegun>),
    /// See [`CompleteStep`].
    CompleteStep(Box<CompleteStep>, Reply<StepCompleted>),
    /// See [`FailStep`].
    FailStep(Box<FailStep>, Reply<StepFailed>),
    /// See [`StepInTransaction`].
    StepInTransaction(Box<StepInTransaction>, Reply<StepCommitted>),
    /// See [`ResolveStep`].
    ResolveStep(Box<ResolveStep>, Reply<Resolved>),
    /// See [`Lookup`].
    Lookup(Lookup, Reply<Option<RecordView>>),
    /// See [`Remove`].
    Remove(Remove, Reply<Removed>),
    /// See [`List`].
    List(List, Reply<Vec<RecordView>>),
    /// See [`Purge`].
    Purge(Purge, Reply<Purged>),
    /// See [`Stats`].
    Stats(Stats, Reply<StoreStats>),
    /// See [`Watch`].
    Watch(Watch, Reply<Changed>),
}

impl Request {
    /// Returns the message's name, as logs show it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Acquire(..) => "acquire",
            Self::Renew(..) => "renew",
            Self::Complete(..) => "complete",
            Self::CompleteInTransaction(..) => "complete in transaction",
            Self::Release(..) => "release",
            Self::Withdraw(..) => "withdraw",
            Self::Hold(..) => "hold",
            Self::Resolve(..) => "resolve",
            Self::BeginStep(..) => "begin step",
            Self::CompleteStep(..) => "complete step",
            Self::FailStep(..) => "fail step",
            Self::StepInTransaction(..) => "step in transaction",
            Self::ResolveStep(..) => "resolve step",
            Self::Lookup(..) => "lookup",
            Self::Remove(..) => "remove",
            Self::List(..) => "list",
            Self::Purge(..) => "purge",
            Self::Stats(..) => "stats",
            Self::Watch(..) => "watch",
        }
    }

    /// Executes this one step with the method of `backend` named after the message, and passes its answer to the reply.
    ///
    /// A backend that batches some messages can pass the others to this method.
    ///
    /// ```
    /// # use oncekey::backend::{Backend, Request};
    /// async fn one_by_one(backend: &impl Backend, batch: Vec<Request>) {
    ///     for request in batch {
    ///         request.dispatch(backend).await;
    ///     }
    /// }
    /// ```
    pub async fn dispatch(self, backend: &impl Backend) {
        async fn ask<T>(mut reply: Reply<T>, step: impl Future<Output = Result<T, StoreError>>) {
            // A future that is dropped midway may have sent the step.
            reply.state().sent();
            reply.send(step.await);
        }

        match self {
            Self::Acquire(message, reply) => ask(reply, backend.acquire(message)).await,
            Self::Renew(message, reply) => ask(reply, backend.renew(message)).await,
            Self::Complete(message, reply) => ask(reply, backend.complete(message)).await,
            Self::CompleteInTransaction(message, reply) => ask(reply, backend.complete_in_transaction(message)).await,
            Self::Release(message, reply) => ask(reply, backend.release(message)).await,
            Self::Withdraw(message, reply) => ask(reply, backend.withdraw(message)).await,
            Self::Hold(message, reply) => ask(reply, backend.hold(message)).await,
            Self::Resolve(message, reply) => ask(reply, backend.resolve(message)).await,
            Self::BeginStep(message, reply) => ask(reply, backend.begin_step(*message)).await,
            Self::CompleteStep(message, reply) => ask(reply, backend.complete_step(*message)).await,
            Self::FailStep(message, reply) => ask(reply, backend.fail_step(*message)).await,
            Self::StepInTransaction(message, reply) => ask(reply, backend.step_in_transaction(*message)).await,
            Self::ResolveStep(message, reply) => ask(reply, backend.resolve_step(*message)).await,
            Self::Lookup(message, reply) => ask(reply, backend.lookup(message)).await,
            Self::Remove(message, reply) => ask(reply, backend.remove(message)).await,
            Self::List(message, reply) => ask(reply, backend.list(message)).await,
            Self::Purge(message, reply) => ask(reply, backend.purge(message)).await,
            Self::Stats(message, reply) => ask(reply, backend.stats(message)).await,
            Self::Watch(message, reply) => ask(reply, backend.watch(message)).await,
        }
    }
}
