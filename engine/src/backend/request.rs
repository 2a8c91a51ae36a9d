//! Messages on their way to a store, each with the place where its answer goes.

use std::fmt;

use super::transaction::{CompleteInTransaction, CompletedInTransaction};
use super::{
    Acquire, Acquired, Backend, Changed, Complete, Completed, Held, Hold, List, Lookup, Purge, Purged, RecordView,
    Release, Released, Remove, Removed, Renew, Renewed, Resolve, Resolved, Stats, StoreError, StoreStats, Watch,
};

type Deliver<T> = Box<dyn FnOnce(Result<T, StoreError>) + Send>;

/// Where the answer to one message goes. It can be moved to another thread, and answered there.
///
/// A reply that is dropped answers [`StoreError::Unknown`]: nobody waits for ever for a backend that lost a message.
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
/// drop(Reply::<u32>::new(move |answer| tx.send(answer).unwrap()));
/// assert!(rx.recv().unwrap().unwrap_err().is_unknown());
/// ```
pub struct Reply<T>(Option<Deliver<T>>);

impl<T> Reply<T> {
    /// A reply that is given to `deliver`.
    pub fn new(deliver: impl FnOnce(Result<T, StoreError>) + Send + 'static) -> Self {
        Self(Some(Box::new(deliver)))
    }

    /// Answers.
    pub fn send(mut self, answer: Result<T, StoreError>) {
        if let Some(deliver) = self.0.take() {
            deliver(answer);
        }
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        if let Some(deliver) = self.0.take() {
            deliver(Err(StoreError::unknown("the deadline passed, or the backend dropped the message")));
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
    /// See [`Hold`].
    Hold(Hold, Reply<Held>),
    /// See [`Resolve`].
    Resolve(Resolve, Reply<Resolved>),
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
    /// The message's name, as logs show it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Acquire(..) => "acquire",
            Self::Renew(..) => "renew",
            Self::Complete(..) => "complete",
            Self::CompleteInTransaction(..) => "complete in transaction",
            Self::Release(..) => "release",
            Self::Hold(..) => "hold",
            Self::Resolve(..) => "resolve",
            Self::Lookup(..) => "lookup",
            Self::Remove(..) => "remove",
            Self::List(..) => "list",
            Self::Purge(..) => "purge",
            Self::Stats(..) => "stats",
            Self::Watch(..) => "watch",
        }
    }

    /// Lets `backend` take this one step, by the method of the message's name, and gives its answer to the reply.
    ///
    /// A backend that batches some messages leaves the others to this.
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
        match self {
            Self::Acquire(message, reply) => reply.send(backend.acquire(message).await),
            Self::Renew(message, reply) => reply.send(backend.renew(message).await),
            Self::Complete(message, reply) => reply.send(backend.complete(message).await),
            Self::CompleteInTransaction(message, reply) => {
                reply.send(backend.complete_in_transaction(message).await);
            }
            Self::Release(message, reply) => reply.send(backend.release(message).await),
            Self::Hold(message, reply) => reply.send(backend.hold(message).await),
            Self::Resolve(message, reply) => reply.send(backend.resolve(message).await),
            Self::Lookup(message, reply) => reply.send(backend.lookup(message).await),
            Self::Remove(message, reply) => reply.send(backend.remove(message).await),
            Self::List(message, reply) => reply.send(backend.list(message).await),
            Self::Purge(message, reply) => reply.send(backend.purge(message).await),
            Self::Stats(message, reply) => reply.send(backend.stats(message).await),
            Self::Watch(message, reply) => reply.send(backend.watch(message).await),
        }
    }
}
