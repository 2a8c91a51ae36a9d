//! The actor that hosts a backend on one arbiter. It turns the messages waiting in its mailbox into batches.

use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use actix::prelude::*;
use futures_util::future::{FutureExt as _, LocalBoxFuture};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::oneshot;
use tokio::task::yield_now;
use tokio::time::timeout;
use tracing::error;

use super::transaction::Progress;
use super::{Backend, Changed, Find, Finding, Found, Lookup, Reply, Request, StoreError, Watch};
use crate::Key;
use crate::shared::Shared;

/// One message for the store.
#[derive(Debug)]
pub(crate) enum Persist {
    Step(Request),
    /// A watch that ends when the sender drops the other end of the channel.
    Watch(Watch, Reply<Changed>, oneshot::Receiver<()>),
    /// An operator's query. It takes long, so no step waits for it.
    Find(Find, Reply<Found>),
    Examine(Reply<Vec<Finding>>),
}

impl Message for Persist {
    type Result = ();
}

/// Ends when its last address is dropped. The arbiter's node, supervisor and key locks each have one.
pub(crate) struct BackendActor<B> {
    backend: Rc<B>,
    deadline: Duration,
    /// The requests received since the last batch was made.
    gathered: Vec<Request>,
    batches: FuturesUnordered<LocalBoxFuture<'static, ()>>,
    watches: FuturesUnordered<LocalBoxFuture<'static, ()>>,
    questions: FuturesUnordered<LocalBoxFuture<'static, ()>>,
    transactions: FuturesUnordered<LocalBoxFuture<'static, ()>>,
    batch_seconds: metrics::Histogram,
    batch_size: metrics::Histogram,
    shared: Arc<Shared>,
}

impl<B: Backend> BackendActor<B> {
    pub(crate) fn new(backend: B, shared: Arc<Shared>) -> Self {
        Self {
            backend: Rc::new(backend),
            deadline: shared.settings.store_deadline,
            gathered: Vec::new(),
            batches: FuturesUnordered::new(),
            watches: FuturesUnordered::new(),
            questions: FuturesUnordered::new(),
            transactions: FuturesUnordered::new(),
            batch_seconds: metrics::histogram!("oncekey_store_batch_seconds"),
            batch_size: metrics::histogram!("oncekey_store_batch_size"),
            shared,
        }
    }

    /// Starts the actor on the current arbiter.
    pub(crate) fn launch(self) -> Recipient<Persist> {
        let address = Self::create(|ctx| {
            // Admission is counted before a message is sent, so this bound must never be reached.
            ctx.set_mailbox_capacity(usize::MAX >> 3);
            self
        });
        address.recipient()
    }

    fn watch(&mut self, message: Watch, reply: Reply<Changed>, ended: oneshot::Receiver<()>) {
        let (backend, limit) = (Rc::clone(&self.backend), message.limit);
        self.watches.push(Box::pin(async move {
            let watching = async move { backend.watch(message).await };
            let watched = AssertUnwindSafe(timeout(limit, watching)).catch_unwind();
            tokio::select! {
                // A watch that reaches its limit may also give the hint to ask again.
                watched = watched => reply.send(watched.unwrap_or(Ok(Ok(Changed))).unwrap_or(Ok(Changed))),
                _ = ended => {}
            }
        }));
    }

    /// Runs an operator's query within the deadline. Past it, the reply says that the store did not answer.
    fn ask<T: 'static>(
        &mut self,
        reply: Reply<T>,
        question: impl AsyncFnOnce(Rc<B>) -> Result<T, StoreError> + 'static,
    ) {
        let (backend, deadline) = (Rc::clone(&self.backend), self.deadline);
        self.questions.push(Box::pin(async move {
            match AssertUnwindSafe(timeout(deadline, question(backend))).catch_unwind().await {
                Ok(Ok(answer)) => reply.send(answer),
                Ok(Err(_)) => drop(reply),
                Err(_) => report_panic(),
            }
        }));
    }

    /// Runs a user's operation in a transaction. It may take any time, and no other step waits for it. The store's
    /// deadline counts only while the store works. While the operation runs past that deadline, a lookup checks whether
    /// the store is still there.
    fn transact(&mut self, request: Request, key: Key, progress: Progress) {
        let (backend, deadline) = (Rc::clone(&self.backend), self.deadline);
        self.transactions.push(Box::pin(async move {
            let asked = Rc::clone(&backend);
            let steps = AssertUnwindSafe(async move { backend.execute(vec![request]).await }).catch_unwind();
            let mut steps = pin!(steps);
            loop {
                let before = progress.changes();
                if let Ok(done) = timeout(deadline, &mut steps).await {
                    return if done.is_err() {
                        report_panic()
                    };
                }
                let now = progress.changes();
                // When the step is dropped, its reply reports what is known about it.
                if !Progress::is_running(now) && now == before {
                    return;
                }
                if !Progress::is_running(now) {
                    continue;
                }
                let lookup = async { asked.lookup(Lookup { key: key.clone() }).await };
                let answer = AssertUnwindSafe(timeout(deadline, lookup)).catch_unwind();
                tokio::select! {
                    done = &mut steps => return if done.is_err() { report_panic() },
                    answer = answer => match answer {
                        Ok(Ok(Err(error))) if error.is_transient() => return,
                        Ok(Ok(_)) => {}
                        Ok(Err(_)) | Err(_) => return,
                    },
                }
            }
        }));
    }

    /// Sends the gathered requests for as long as another batch may be in flight.
    fn send_batches(&mut self, task: &mut TaskContext<'_>) {
        loop {
            let waiting = self.gathered.len();
            let room = self.backend.max_in_flight_batches().saturating_sub(self.batches.len());
            if waiting == 0 || room == 0 {
                return;
            }
            let parts = (waiting / self.backend.min_batch_size().max(1)).clamp(1, room);
            self.send_batch(waiting.div_ceil(parts), task);
            // Registers this task's waker with a batch that did not finish at once.
            self.finish_batch(task);
        }
    }

    /// Sends the first `size` gathered requests as one batch. A store that answers without waiting, such as the memory
    /// store, has finished when this returns, without the cost of a task or a timer.
    fn send_batch(&mut self, size: usize, task: &mut TaskContext<'_>) {
        // The next batch probably has the same size, so its buffer does not grow step by step.
        let rest = match self.gathered.len() - size {
            0 => Vec::with_capacity(size),
            _ => self.gathered.split_off(size),
        };
        let batch = std::mem::replace(&mut self.gathered, rest);
        let backend = Rc::clone(&self.backend);
        let mut steps = Box::pin(AssertUnwindSafe(async move { backend.execute(batch).await }).catch_unwind());
        match steps.poll_unpin(task) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(_)) => report_panic(),
            Poll::Pending => {
                let (deadline, seconds, started) = (self.deadline, self.batch_seconds.clone(), Instant::now());
                let shared = Arc::clone(&self.shared);
                self.batch_size.record(size as f64);
                self.batches.push(Box::pin(async move {
                    // Past the deadline the batch and its replies are dropped. Each reply reports what is known about
                    // its step.
                    if let Ok(Err(_)) = timeout(deadline, steps).await {
                        report_panic();
                    }
                    let took = started.elapsed();
                    seconds.record(took.as_secs_f64());
                    shared.events.batch_took(took);
                }));
            }
        }
    }

    /// Takes one finished batch. The callers that it answered run before the next batch is read. Their next steps are
    /// then on the way to the store while the engine reads that batch, so neither side waits for the other.
    fn finish_batch(&mut self, task: &mut TaskContext<'_>) {
        if !self.batches.is_empty()
            && let Poll::Ready(Some(())) = self.batches.poll_next_unpin(task)
            && !self.batches.is_empty()
        {
            // Wakes this task again after the other tasks have run.
            let _ = pin!(yield_now()).poll(task);
        }
    }
}

fn report_panic() {
    error!("the backend panicked; the answers to its batch are unknown");
}

impl<B: Backend> Actor for BackendActor<B> {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.spawn(Pump);
    }
}

impl<B: Backend> Handler<Persist> for BackendActor<B> {
    type Result = ();

    fn handle(&mut self, persist: Persist, _: &mut Self::Context) {
        let request = match persist {
            Persist::Watch(message, reply, ended) => return self.watch(message, reply, ended),
            Persist::Find(message, reply) => {
                return self.ask(reply, async move |backend| backend.find(message).await);
            }
            Persist::Examine(reply) => return self.ask(reply, async |backend| backend.examine().await),
            Persist::Step(request) => request,
        };
        let operation = match &request {
            Request::CompleteInTransaction(message, _) => Some((&message.key, &message.operation)),
            Request::StepInTransaction(message, _) => Some((&message.step.key, &message.operation)),
            _ => None,
        };
        match operation.map(|(key, operation)| (key.clone(), operation.progress())) {
            // Without a limit on batches, nothing waits for one, so an operation may be part of it.
            Some((key, progress)) if self.backend.max_in_flight_batches() < usize::MAX => {
                self.transact(request, key, progress);
            }
            _ => self.gathered.push(request),
        }
    }
}

/// Runs after the mailbox each time the actor wakes. By then every waiting message has been gathered.
struct Pump;

impl<B: Backend> ActorFuture<BackendActor<B>> for Pump {
    type Output = ();

    fn poll(
        self: Pin<&mut Self>,
        actor: &mut BackendActor<B>,
        ctx: &mut Context<BackendActor<B>>,
        task: &mut TaskContext<'_>,
    ) -> Poll<()> {
        actor.finish_batch(task);
        finish(&mut actor.watches, task);
        finish(&mut actor.questions, task);
        finish(&mut actor.transactions, task);
        actor.send_batches(task);
        let idle = actor.gathered.is_empty()
            && actor.batches.is_empty()
            && actor.watches.is_empty()
            && actor.questions.is_empty()
            && actor.transactions.is_empty();
        if idle && !ctx.connected() { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// Takes the finished futures, and registers the waker with the rest.
fn finish(under_way: &mut FuturesUnordered<LocalBoxFuture<'static, ()>>, task: &mut TaskContext<'_>) {
    while !under_way.is_empty()
        && let Poll::Ready(Some(())) = under_way.poll_next_unpin(task)
    {}
}
