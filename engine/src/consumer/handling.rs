//! Handles one message in a processor: it waits for its turn, runs the job, and settles it with the source.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::fault::Affects;
use super::guard::{Panicked, discard_value, guard, guarded_call, text};
use super::lanes::Place;
use super::retry::Verdict;
use super::tally::Tally;
use super::{Call, Delivery, Disposition, Job, MessageKey, Processed, RetryPolicy, Source, backoff};
use crate::{Engine, Error, RunError};

/// How many messages may wait for their source to settle them before the processor takes no new ones. They do not
/// occupy a job's place.
pub(super) const MAX_RESENDING: usize = 1_000;

/// The shortest and the longest delay before the processor settles a refused message again. A call without an answer
/// for the longest delay counts as unanswered.
const RESEND: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

pub(super) struct Parts<S, J> {
    pub(super) engine: Engine,
    pub(super) source: S,
    pub(super) job: J,
    pub(super) retry: RetryPolicy,
    pub(super) concurrency: usize,
    pub(super) resending: Resending,
    tally: Tally,
}

/// When a message may begin.
pub(super) enum Turn {
    AnyTime,
    InLane(Place),
    /// The user's order function panicked, so the message's place is unknown.
    Never,
}

/// A message whose handling has ended.
pub(super) struct Handled {
    pub(super) turn: Turn,
    /// What the last decision affected, if there was one.
    pub(super) affects: Option<Affects>,
}

/// Messages that their source has refused to settle, or not yet answered.
#[derive(Debug, Default)]
pub(super) struct Resending {
    count: AtomicUsize,
    changed: Notify,
    /// All messages that are being settled, including those just sent.
    settling: AtomicUsize,
}

/// Counts a message until it is dropped.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Resending {
    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    /// Returns how many messages are being settled. Their jobs have finished.
    pub(super) fn settling(&self) -> usize {
        self.settling.load(Ordering::SeqCst)
    }

    fn settle(&self) -> Counted<'_> {
        Counted::new(&self.settling)
    }

    /// Waits until another message joins these.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    fn begin(&self) -> Counted<'_> {
        let counted = Counted::new(&self.count);
        self.changed.notify_one();
        counted
    }
}

impl<S: Source, J: Job<S::Message>> Parts<S, J> {
    pub(super) fn new(engine: Engine, source: S, job: J) -> Self {
        Self {
            engine,
            source,
            job,
            retry: RetryPolicy::default(),
            concurrency: 16,
            resending: Resending::default(),
            tally: Tally::default(),
        }
    }

    pub(super) fn processed(&self, left: usize, unsettled: usize) -> Processed {
        let tally = &self.tally;
        (0..unsettled).for_each(|_| tally.unsettled.add());
        Processed {
            ran: tally.ran.get(),
            replayed: tally.replayed.get(),
            retried: tally.retried.get(),
            dead: tally.dead.get(),
            given_back: tally.given_back.get(),
            unsettled: tally.unsettled.get(),
            left,
        }
    }

    pub(super) async fn handle(
        &self,
        delivery: Delivery<S::Message, S::Receipt>,
        mut turn: Turn,
        mut stopped: watch::Receiver<bool>,
        permits: &Semaphore,
    ) -> Handled {
        let Delivery { message, receipt, mut failures } = delivery;
        // How to settle the message if the processor ends before a final decision.
        let mut unfinished = Disposition::give_back();
        let mut affects = None;
        let verdict = loop {
            if matches!(turn, Turn::Never) {
                break Some(Verdict::dead("reading the message's order panicked".to_owned()));
            }
            let begin = async {
                if let Turn::InLane(place) = &mut turn {
                    place.turn().await;
                }
                permits.acquire().await
            };
            let permit = tokio::select! {
                biased;
                () = told(&mut stopped) => None,
                permit = begin => permit.ok(),
            };
            let Some(permit) = permit else { break None };
            let verdict = self.decide(Arc::clone(&message), failures).await;
            drop(permit);
            affects = Some(verdict.affects);
            let Disposition::RetryLater { after, failed } = verdict.disposition else { break Some(verdict) };
            if !matches!(turn, Turn::InLane(_)) || verdict.affects == Affects::Shutdown {
                break Some(verdict);
            }
            // The processor keeps the message, so that its lane keeps its order.
            self.tally.retried.add();
            failures = failures.saturating_add(u32::from(failed));
            unfinished = Disposition::RetryLater { after: Duration::ZERO, failed };
            tokio::select! {
                biased;
                () = told(&mut stopped) => break None,
                () = sleep(after) => {}
            }
        };
        discard_value(message);
        let was_tried = affects.is_some();
        let disposition = verdict.as_ref().map_or(unfinished, |verdict| verdict.disposition.clone());
        if self.settle(receipt, &disposition).await {
            match verdict {
                None if !was_tried => self.tally.given_back.add(),
                None => {}
                Some(Verdict { affects: Affects::Shutdown, .. }) => self.tally.given_back.add(),
                Some(verdict) => self.tally.count(&disposition, verdict.is_finished_before),
            }
        } else {
            self.tally.unsettled.add();
        }
        Handled { turn, affects }
    }

    /// Settles a message. If the source refuses, tries again for as long as the receipt is valid. Returns whether the
    /// source has settled it.
    async fn settle(&self, receipt: S::Receipt, disposition: &Disposition) -> bool {
        let settling = self.resending.settle();
        let is_settled = self.settle_by(&receipt, disposition).await;
        drop(settling);
        // The receipt may hold the last copy of the message, whose `Drop` is user code.
        discard_value(receipt);
        is_settled
    }

    async fn settle_by(&self, receipt: &S::Receipt, disposition: &Disposition) -> bool {
        match disposition {
            Disposition::DeadLetter { reason } => warn!(reason, "a message becomes a dead letter"),
            disposition => debug!(%disposition, "a message is settled"),
        }
        let mut delays = backoff::delays(RESEND.0, RESEND.1);
        let mut resend = None;
        loop {
            let mut settling = guarded_call(|| self.source.settle(receipt.clone(), disposition.clone()));
            let answer = match timeout(RESEND.1, &mut settling).await {
                Ok(answer) => answer,
                Err(_) => {
                    // An unanswered message does not occupy a job's place either.
                    if resend.is_none() {
                        warn!(%disposition, "a source does not answer a settle: the processor goes on meanwhile");
                        resend = Some(self.resending.begin());
                    }
                    settling.await
                }
            };
            let error = match answer {
                Ok(Ok(())) => return true,
                Ok(Err(error)) => {
                    let told = text(&error);
                    discard_value(error);
                    told
                }
                Err(Panicked) => "the source panicked".to_owned(),
            };
            if guard(|| self.source.can_settle(receipt)) != Ok(true) {
                warn!(error, %disposition, "a message could not be settled, and its connection is gone: it comes again");
                return false;
            }
            if resend.is_none() {
                warn!(error, %disposition, "a source refused to settle a message: the settle is sent again");
                resend = Some(self.resending.begin());
            }
            sleep(delays.next().unwrap_or(RESEND.1)).await;
        }
    }

    async fn decide(&self, message: Arc<S::Message>, failures: u32) -> Verdict {
        let identity = match MessageKey::read(|| self.job.identify(&message)) {
            Ok(identity) => identity,
            Err(reason) => return Verdict::dead(reason),
        };
        let call = Call {
            engine: self.engine.clone(),
            key: identity.key,
            fingerprint: identity.fingerprint,
            failures,
            max_attempts: self.retry.max_attempts,
        };
        let performing = guarded_call(|| self.job.perform(call, message));
        let decision = performing.await.unwrap_or(Err(RunError::Engine(Error::Panicked)));
        let verdict = self.retry.verdict(&decision, failures, |error| self.job.is_poison(error));
        discard_value(decision);
        verdict
    }
}

/// Waits until the processor begins to end.
async fn told(stopped: &mut watch::Receiver<bool>) {
    if stopped.wait_for(|stopped| *stopped).await.is_err() {
        // The processor is gone, and this future is dropped with it.
        std::future::pending().await
    }
}
