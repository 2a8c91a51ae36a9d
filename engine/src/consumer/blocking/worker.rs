//! A thread that takes messages and processes them.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, at, never, select_biased};
use tracing::{error, warn};

use super::crew::{Bell, Next, Seat};
use super::{BlockingJob, OnSettled};
use crate::consumer::backoff;
use crate::consumer::call::Attempts;
use crate::consumer::fault::Affects;
use crate::consumer::guard::{Panicked, discard_value, guard};
use crate::consumer::retry::Verdict;
use crate::consumer::tally::Tally;
use crate::consumer::{Disposition, JobError, JobResult, MessageKey, RetryPolicy};
use crate::{Claim, Engine, Error, RunError};

/// What all workers of a processor share.
pub(super) struct Shared<M, J> {
    pub(super) engine: Engine,
    pub(super) job: J,
    pub(super) retry: RetryPolicy,
    pub(super) on_settled: Option<OnSettled<M>>,
    pub(super) batch: usize,
    pub(super) tally: Arc<Tally>,
}

pub(super) struct Pending<M> {
    pub(super) message: M,
    pub(super) failures: u32,
}

/// Holds one ring, so that a busy worker finds it later.
pub(super) struct Ring(pub(super) Sender<()>);

impl Bell for Ring {
    fn ring(&self) {
        // A full channel already holds a ring, and a worker that has ended needs none.
        let _ = self.0.try_send(());
    }
}

pub(super) struct Worker<M: Send + 'static, J> {
    pub(super) shared: Arc<Shared<M, J>>,
    pub(super) messages: Receiver<M>,
    pub(super) bell: Receiver<()>,
    pub(super) seat: Seat<Instant, Pending<M>, Ring>,
    /// The current batch, each message until it is settled. It survives a panic.
    pub(super) hand: RefCell<Vec<Option<Pending<M>>>>,
    /// Which message of the batch the job is processing.
    pub(super) at: Cell<Option<usize>>,
}

/// How long a worker that panicked waits before it restarts.
const AFTER_A_PANIC: Duration = Duration::from_millis(50);

impl<M: Send + 'static, J: BlockingJob<M>> Worker<M, J> {
    /// Works until the crew is done. Each call to user code has its own guard, so a panic that arrives here comes from
    /// elsewhere. The worker then gives its batch back and restarts on the same thread.
    pub(super) fn run(mut self) {
        while guard(|| self.work()) == Err(Panicked) {
            error!("a worker panicked: its messages are given back, and another takes its place");
            self.give_back();
            std::thread::sleep(AFTER_A_PANIC);
        }
    }

    fn work(&mut self) {
        let (nothing, no_time) = (never(), never());
        loop {
            let (takes_new, until) = match self.seat.next(Instant::now()) {
                Next::End => return,
                Next::Retry(pending) => {
                    self.hand.get_mut().push(Some(pending));
                    self.work_on_hand();
                    continue;
                }
                Next::Wait { takes_new, until } => (takes_new, until),
            };
            let messages = if takes_new { &self.messages } else { &nothing };
            let due = until.map_or_else(|| no_time.clone(), at);
            let taken = select_biased! {
                recv(self.bell) -> _ => continue,
                recv(due) -> _ => continue,
                recv(messages) -> message => message,
            };
            match taken {
                Ok(message) => {
                    let others = self.messages.try_iter().take(self.shared.batch - 1);
                    let new = |message| Some(Pending { message, failures: 0 });
                    self.hand.get_mut().extend(std::iter::once(message).chain(others).map(new));
                    self.work_on_hand();
                }
                Err(_) => self.seat.found_the_end(),
            }
        }
    }

    /// After a panic, counts a failure for the message that the job was processing, and gives the others back as not
    /// attempted.
    fn give_back(&self) {
        let at = self.at.take();
        for (number, pending) in self.hand.take().into_iter().enumerate() {
            let Some(pending) = pending else { continue };
            if at != Some(number) {
                self.put_back(pending, Duration::ZERO, false);
                continue;
            }
            let panicked: JobResult<J::Output, J::Error> = Err(RunError::Engine(Error::Panicked));
            let verdict = self.shared.retry.verdict(&panicked, pending.failures, |_| false);
            self.settle(pending, verdict);
        }
    }

    /// Processes the messages that the worker holds, one after the other, until it holds none.
    fn work_on_hand(&self) {
        let Shared { engine, job, retry, .. } = &*self.shared;
        let count = self.hand.borrow().len();
        let (mut calls, mut numbers) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for number in 0..count {
            let read = match &self.hand.borrow()[number] {
                Some(pending) => MessageKey::read(|| job.identify(&pending.message)),
                None => continue,
            };
            match read {
                Ok(identity) => {
                    calls.push((identity.key, identity.fingerprint));
                    numbers.push(number);
                }
                Err(reason) => self.settle_number(number, |_| Verdict::dead(reason)),
            }
        }
        let operation = |call: usize, claim: &Claim| {
            let number = *numbers.get(call)?;
            self.at.set(Some(number));
            let hand = self.hand.borrow();
            let pending = hand.get(number)?.as_ref()?;
            let attempts = Attempts { failures: pending.failures, max: retry.max_attempts };
            let perform = || job.perform(&pending.message, claim).map_err(JobError::Failed);
            Some(attempts.check(claim).and_then(|()| perform()))
        };
        let done = |call: usize, decision: JobResult<J::Output, J::Error>| {
            if let Some(number) = numbers.get(call) {
                self.at.set(Some(*number));
                self.settle_number(*number, |failures| {
                    retry.verdict(&decision, failures, |error| job.is_poison(error))
                });
            }
            discard_value(decision);
            self.at.set(None);
        };
        engine.run_each_blocking(calls, operation, done);
        self.hand.borrow_mut().clear();
    }

    fn settle_number(&self, number: usize, verdict: impl FnOnce(u32) -> Verdict) {
        let pending = self.hand.borrow_mut().get_mut(number).and_then(Option::take);
        if let Some(pending) = pending {
            let verdict = verdict(pending.failures);
            self.settle(pending, verdict);
        }
    }

    fn settle(&self, pending: Pending<M>, verdict: Verdict) {
        let Verdict { disposition, affects, is_finished_before } = verdict;
        self.shared.tally.count(&disposition, is_finished_before);
        let away = self.shared.retry.store_away_delay;
        if affects.pauses() {
            self.seat.pause(Instant::now() + backoff::spread(away));
        }
        match disposition {
            // The processor has no caller to give the message back to while it runs, so it keeps the message.
            Disposition::RetryLater { after, failed } if affects == Affects::Shutdown => {
                self.put_back(pending, after.max(away), failed);
            }
            Disposition::RetryLater { after, failed } => self.put_back(pending, after, failed),
            disposition => self.tell(pending.message, disposition),
        }
    }

    fn put_back(&self, pending: Pending<M>, after: Duration, failed: bool) {
        let failures = pending.failures.saturating_add(u32::from(failed));
        if let Err(pending) =
            self.seat.put_back(Instant::now() + backoff::bounded(after), Pending { failures, ..pending })
        {
            self.tell(pending.message, Disposition::RetryLater { after, failed });
        }
    }

    fn tell(&self, message: M, disposition: Disposition) {
        match &self.shared.on_settled {
            Some(settled) => {
                if guard(|| settled(message, disposition)) == Err(Panicked) {
                    error!("the function that hears of settled messages panicked");
                }
            }
            None => {
                if let Disposition::DeadLetter { reason } = disposition {
                    warn!(reason, "a message becomes a dead letter");
                }
                discard_value(message);
            }
        }
    }
}
