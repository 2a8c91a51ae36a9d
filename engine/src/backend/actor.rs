//! The actor that hosts a backend on one arbiter, and makes batches of what waits in its mailbox.

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
    /// A watch that ends when the sender's other half is dropped.
    Watch(Watch, Reply<Changed>, oneshot::Receiver<()>),
    /// An operator's question. It takes long, so no step waits for it.
    Find(Find, Reply<Found>),
    Examine(Reply<Vec<Finding>>),
}

impl Message for Persist {
    type Result = ();
}

/// It ends when the last address is dropped: its arbiter's node, supervisor and key locks have one.
pub(crate) struct BackendActor<B> {
    backend: Rc<B>,
    deadline: Duration,
    /// What the mailbox held since the last batch was made.
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

    /// Starts it on the current arbiter.
    pub(crate) fn launch(self) -> Recipient<Persist> {
        let address = Self::create(|ctx| {
            // Admission is counted before a message is sent; this bound must never be the one that is met.
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
                // At its limit the hint to ask again is right as well.
                watched = watched => reply.send(watched.unwrap_or(Ok(Ok(Changed))).unwrap_or(Ok(Changed))),
                _ = ended => {}
            }
        }));
    }

    /// Asks a question of an operator's, within the deadline. Past it the reply says that the store did not answer.
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

    /// A user's operation takes what time it takes: the steps of others don't wait for it, and the store's deadline counts
    /// while the store works. While the operation runs past that deadline, the store is asked whether it is still there.
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
                // Dropped, the step's reply says what is known of it.
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
                        Ok(Ok(Err(error))) if error.is_passing() => return,
                        Ok(Ok(_)) => {}
                        Ok(Err(_)) | Err(_) => return,
                    },
                }
            }
        }));
    }

    /// Sends what was gathered, for as long as another batch may be under way.
    fn send_batches(&mut self, task: &mut TaskContext<'_>) {
        loop {
            let waiting = self.gathered.len();
            let room = self.backend.batches_under_way().saturating_sub(self.batches.len());
            if waiting == 0 || room == 0 {
                return;
            }
            let parts = (waiting / self.backend.smallest_batch().max(1)).clamp(1, room);
            self.send_batch(waiting.div_ceil(parts), task);
            // Registers this task's waker with a batch that did not finish at once.
            self.finish_batch(task);
        }
    }

    /// Sends the first of what was gathered as one batch. A store that answers without waiting, as the memory does, is
    /// done when this returns, and has cost neither a task nor a timer.
    fn send_batch(&mut self, size: usize, task: &mut TaskContext<'_>) {
        // The next batch is likely of this size: it does not grow step by step.
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
                    // Past the deadline the batch is dropped, and with it its replies: they say what is known of each step.
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

    /// Takes one batch that is done. Before the next is looked at, those that it answered go on: what they say next is
    /// on its way to the store while the next batch's answers are taken, so that neither side waits for the other.
    fn finish_batch(&mut self, task: &mut TaskContext<'_>) {
        if !self.batches.is_empty()
            && let Poll::Ready(Some(())) = self.batches.poll_next_unpin(task)
            && !self.batches.is_empty()
        {
            // Wakes this task again when the others have had their turn.
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
            // Where batches are not limited nothing waits for one.
            Some((key, progress)) if self.backend.batches_under_way() < usize::MAX => {
                self.transact(request, key, progress);
            }
            _ => self.gathered.push(request),
        }
    }
}

/// Runs after the mailbox, each time the actor wakes: by then everything that waited has been gathered.
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

/// Takes out what is done, and registers for the rest.
fn finish(under_way: &mut FuturesUnordered<LocalBoxFuture<'static, ()>>, task: &mut TaskContext<'_>) {
    while !under_way.is_empty()
        && let Poll::Ready(Some(())) = under_way.poll_next_unpin(task)
    {}
}
