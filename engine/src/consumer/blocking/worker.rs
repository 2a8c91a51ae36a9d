//! One thread that takes messages and works on them.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, never, select_biased};
use parking_lot::Mutex;
use tracing::{error, warn};

use super::timer::{Pending, Scheduled};
use super::{BlockingJob, OnSettled};
use crate::consumer::call::Attempts;
use crate::consumer::tally::Tally;
use crate::consumer::{Disposition, Identity, JobError, JobResult, RetryPolicy};
use crate::{Claim, Engine, Outcome};

/// What all workers of a processor share.
pub(super) struct Shared<M, J> {
    pub(super) engine: Engine,
    pub(super) job: J,
    pub(super) retry: RetryPolicy,
    pub(super) on_settled: Option<OnSettled<M>>,
    pub(super) max_waiting: usize,
    pub(super) batch: usize,
    pub(super) counts: Counts,
    pub(super) stop: Arc<Mutex<Option<Sender<()>>>>,
    pub(super) tally: Arc<Tally>,
}

/// How much is going on.
pub(super) struct Counts {
    /// Messages that are taken and not settled.
    in_hand: AtomicUsize,
    /// Those of them that wait to be retried.
    waiting: AtomicUsize,
    /// Workers that have not found the channel at its end. One that has is at no message of it.
    reading: AtomicUsize,
}

impl Counts {
    pub(super) fn new(threads: usize) -> Self {
        Self { in_hand: AtomicUsize::new(0), waiting: AtomicUsize::new(0), reading: AtomicUsize::new(threads) }
    }

    fn is_all_done(&self) -> bool {
        self.reading.load(Ordering::SeqCst) == 0 && self.in_hand.load(Ordering::SeqCst) == 0
    }
}

pub(super) struct Worker<M, J> {
    pub(super) shared: Arc<Shared<M, J>>,
    pub(super) messages: Receiver<M>,
    pub(super) again: Receiver<Pending<M>>,
    pub(super) later: Sender<Scheduled<M>>,
    /// Closed when the workers are to end.
    pub(super) stopped: Receiver<()>,
}

/// What a worker found to do.
enum Found<M> {
    New(M),
    Again(Pending<M>),
    EndOfChannel,
    Stop,
}

impl<M: Send + 'static, J: BlockingJob<M>> Worker<M, J> {
    pub(super) fn run(self) {
        let (nothing, mut is_over, mut batch) = (never(), false, Vec::new());
        loop {
            let counts = &self.shared.counts;
            let is_full = counts.waiting.load(Ordering::SeqCst) >= self.shared.max_waiting;
            let messages = if is_over || is_full { &nothing } else { &self.messages };
            let found = select_biased! {
                recv(self.stopped) -> _ => Found::Stop,
                recv(self.again) -> pending => pending.map_or(Found::Stop, Found::Again),
                recv(messages) -> message => message.map_or(Found::EndOfChannel, Found::New),
            };
            match found {
                Found::New(message) => {
                    batch.push(Pending { message, failures: 0 });
                    batch.extend(
                        messages.try_iter().take(self.shared.batch - 1).map(|message| Pending { message, failures: 0 }),
                    );
                    counts.in_hand.fetch_add(batch.len(), Ordering::SeqCst);
                    self.shared.work_on(&mut batch, &self.later);
                }
                Found::Again(pending) => {
                    counts.waiting.fetch_sub(1, Ordering::SeqCst);
                    batch.push(pending);
                    self.shared.work_on(&mut batch, &self.later);
                }
                Found::EndOfChannel => {
                    is_over = true;
                    counts.reading.fetch_sub(1, Ordering::SeqCst);
                }
                Found::Stop => return,
            }
            if counts.is_all_done() {
                *self.shared.stop.lock() = None;
            }
        }
    }
}

impl<M: Send + 'static, J: BlockingJob<M>> Shared<M, J> {
    /// Works on messages, one after the other, and leaves the batch empty.
    fn work_on(&self, batch: &mut Vec<Pending<M>>, later: &Sender<Scheduled<M>>) {
        let mut calls = Vec::with_capacity(batch.len());
        let mut readable = Vec::with_capacity(batch.len());
        for pending in batch.drain(..) {
            match Identity::read(|| self.job.identify(&pending.message)) {
                Ok(identity) => {
                    calls.push((identity.key, identity.fingerprint));
                    readable.push(Some(pending));
                }
                Err(disposition) => self.settle(pending, disposition, false, later),
            }
        }
        let messages = RefCell::new(readable);
        let operation = |number: usize, claim: &Claim| {
            let messages = messages.borrow();
            let pending = messages.get(number)?.as_ref()?;
            let attempts = Attempts { failures: pending.failures, max: self.retry.max_attempts };
            let perform = || self.job.perform(&pending.message, claim).map_err(JobError::Failed);
            Some(attempts.check(claim).and_then(|()| perform()))
        };
        let done = |number: usize, decision: JobResult<J::Output, J::Error>| {
            let Some(pending) = messages.borrow_mut().get_mut(number).and_then(Option::take) else { return };
            let is_poison = |error: &J::Error| self.job.is_poison(error);
            let disposition = self.retry.disposition_unless_poison(&decision, pending.failures, is_poison);
            self.settle(pending, disposition, decision.as_ref().is_ok_and(Outcome::is_replay), later);
        };
        self.engine.run_all_blocking(calls, operation, done);
    }

    fn settle(&self, pending: Pending<M>, disposition: Disposition, is_replay: bool, later: &Sender<Scheduled<M>>) {
        self.tally.count(&disposition, is_replay);
        match disposition {
            Disposition::RetryLater { after, failed } => {
                self.counts.waiting.fetch_add(1, Ordering::SeqCst);
                let failures = pending.failures.saturating_add(u32::from(failed));
                let pending = Pending { failures, ..pending };
                if let Err(unsent) = later.send((Instant::now() + after, pending)) {
                    let (_, pending) = unsent.0;
                    self.tell(pending.message, Disposition::RetryLater { after, failed });
                }
            }
            disposition => {
                self.tell(pending.message, disposition);
                self.counts.in_hand.fetch_sub(1, Ordering::SeqCst);
            }
        }
    }

    fn tell(&self, message: M, disposition: Disposition) {
        match &self.on_settled {
            Some(settled) => {
                if catch_unwind(AssertUnwindSafe(|| settled(message, disposition))).is_err() {
                    error!("what is told of settled messages panicked");
                }
            }
            None => {
                if let Disposition::DeadLetter { reason } = disposition {
                    warn!(reason, "a message is put aside");
                }
            }
        }
    }
}
