//! The async consumer: messages from a source, each settled by its disposition.

use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::FutureExt as _;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, warn};

use super::lanes::{Lanes, Place};
use super::pause::Pause;
use super::retry::is_store_away;
use super::tally::Tally;
use super::{Call, Delivery, Disposition, Identity, Job, RetryPolicy, Source};
use crate::{Engine, Error, RunError};

/// What a [`Processor`] did.
///
/// ```
/// use oncekey::consumer::Processed;
///
/// assert_eq!(Processed::default().ran, 0);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Processed {
    /// Messages whose job ran, and that were acknowledged.
    pub ran: u64,
    /// Messages that were acknowledged since their job had run before.
    pub replayed: u64,
    /// Deliveries that are to come again.
    pub retried: u64,
    /// Dead letters.
    pub dead: u64,
    /// Messages that were taken and given back untouched when the processor ended.
    pub given_back: u64,
    /// Deliveries that could not be settled, since the source was away: they come again by themselves.
    pub unsettled: u64,
    /// Jobs that were still running at the limit of the drain. They go on for as long as the process lives; their
    /// messages are not settled, and come again.
    pub left: usize,
}

/// Takes messages from a [`Source`], runs a [`Job`] for each, and settles it by one [`Disposition`].
///
/// Many messages are in hand at once, all on the task that [`run`](Self::run) is awaited in. For several threads run
/// several processors, of one process or of many.
///
/// ```
/// # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use std::time::Duration;
/// # use oncekey::consumer::{Identity, Processor, RetryPolicy, in_process, job};
/// # use oncekey::{Engine, Key};
/// # use oncekey_backends::MemoryBackend;
/// # let engine = Engine::builder(MemoryBackend::new()).start()?;
/// # let (orders, source) = in_process::channel::<u64>(100);
/// # let mail = job(
/// #     |order: &u64| Ok(Identity::new(Key::new("mail", order)?, order)?),
/// #     |call, order| async move { call.run(move |_| async move { Ok::<_, std::io::Error>(*order) }).await },
/// # );
/// # drop(orders);
/// let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
/// let processed = Processor::new(engine, source, mail)
///     .concurrency(32)
///     .retry(RetryPolicy { max_attempts: 8, ..RetryPolicy::default() })
///     .drain_limit(Duration::from_secs(10))
///     .run(async { let _ = stopped.await; })
///     .await;
/// # drop(stop);
/// # assert_eq!(processed.ran, 0);
/// # Ok(()) }
/// ```
#[must_use]
pub struct Processor<S: Source, J> {
    parts: Parts<S, J>,
    in_hand: Option<usize>,
    drain_limit: Duration,
    lanes: Option<Lanes<S::Message>>,
}

/// What all messages in hand share.
struct Parts<S, J> {
    engine: Engine,
    source: S,
    job: J,
    retry: RetryPolicy,
    concurrency: usize,
    tally: Tally,
}

impl<S: Source, J: Job<S::Message>> Processor<S, J> {
    /// A processor with the defaults that its methods name.
    pub fn new(engine: Engine, source: S, job: J) -> Self {
        let parts =
            Parts { engine, source, job, retry: RetryPolicy::default(), concurrency: 16, tally: Tally::default() };
        Self { parts, in_hand: None, drain_limit: Duration::from_secs(30), lanes: None }
    }

    /// How many jobs run at once. Default: 16; at least 1. No further message is taken while all are busy: that is the
    /// back-pressure on the broker.
    pub fn concurrency(mut self, jobs: usize) -> Self {
        self.parts.concurrency = jobs.max(1);
        self
    }

    /// See [`RetryPolicy`].
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.parts.retry = policy;
        self
    }

    /// How long messages in hand may take once the processor is told to end. Default: 30 s.
    pub fn drain_limit(mut self, limit: Duration) -> Self {
        self.drain_limit = limit;
        self
    }

    /// Messages of the same key (an account, an aggregate) are worked on one after the other, as the source delivered
    /// them; others go on beside them.
    ///
    /// A message that is to be retried **stays in hand**, and holds back those of its own key, until it is settled; only
    /// then comes the next. Its failures are counted here, and begin anew if this process dies. The order is this
    /// processor's: of two processors on one queue each sees to its own messages only.
    ///
    /// ```
    /// # use oncekey::Engine;
    /// # use oncekey::consumer::{Job, Processor, Source};
    /// struct Transfer { account: u64, amount: i64 }
    ///
    /// # fn example(
    /// #     engine: Engine, source: impl Source<Message = Transfer>, transfer: impl Job<Transfer>,
    /// # ) {
    /// let processor = Processor::new(engine, source, transfer).in_order_by(|transfer: &Transfer| transfer.account);
    /// # }
    /// ```
    pub fn in_order_by<K: Hash>(mut self, key_of: impl Fn(&S::Message) -> K + Send + Sync + 'static) -> Self {
        self.lanes = Some(Lanes::new(key_of));
        self
    }

    /// How many messages are taken and not settled, those that wait for their turn included. Default: as many as jobs may
    /// run at once, or with [`in_order_by`](Self::in_order_by) four times as many. More of them let the other keys go on
    /// while one is held up.
    pub fn in_hand(mut self, messages: usize) -> Self {
        self.in_hand = Some(messages.max(1));
        self
    }

    /// Works until `until` is ready, or the source has no more messages; then it drains: nothing more is taken, what has
    /// not begun is given back, and what runs may finish within the [limit](Self::drain_limit). It ends at most a second
    /// after that limit.
    ///
    /// # Cancel safety
    /// Dropped midway, jobs that began go on for as long as the process lives, and their messages come again.
    pub async fn run(mut self, until: impl Future<Output = ()>) -> Processed {
        let parts = &self.parts;
        let places = if self.lanes.is_some() { parts.concurrency * 4 } else { parts.concurrency };
        let places = self.in_hand.unwrap_or(places).max(1);
        let (stop, stopped) = watch::channel(false);
        let permits = Semaphore::new(parts.concurrency);
        let mut in_hand = FuturesUnordered::new();
        let mut pause = Pause::default();
        let mut until = pin!(until);
        {
            let mut next = pin!(parts.source.next());
            let mut is_over = false;
            while !(is_over && in_hand.is_empty()) {
                tokio::select! {
                    biased;
                    () = &mut until => break,
                    Some(Settled { place, is_store_away }) = in_hand.next() => {
                        if let (Some(lanes), Some(place)) = (&mut self.lanes, &place) {
                            lanes.leave(place);
                        }
                        if is_store_away {
                            pause.at_least(parts.retry.store_away_delay);
                        }
                    }
                    () = pause.over(), if pause.is_on() => pause.end(),
                    taken = next.as_mut(), if !is_over && in_hand.len() < places && !pause.is_on() => {
                        next.set(parts.source.next());
                        match taken {
                            Ok(Some(delivery)) => {
                                pause.forget_errors();
                                let place = self.lanes.as_mut().map(|lanes| lanes.enter(&delivery.message));
                                in_hand.push(parts.handle(delivery, place, stopped.clone(), &permits));
                            }
                            Ok(None) => is_over = true,
                            Err(error) => {
                                warn!(%error, "a source of messages failed: it is asked again in a moment");
                                pause.after_error();
                            }
                        }
                    }
                }
            }
        }
        let limit = Instant::now() + self.drain_limit;
        // Nobody left in hand is nobody to tell.
        let _ = stop.send(true);
        let _ = timeout_at(limit, async { while in_hand.next().await.is_some() {} }).await;
        let left = in_hand.len();
        drop(in_hand);
        let _ = timeout_at(limit.max(Instant::now()) + LAST_WORDS, parts.source.close()).await;
        let tally = &parts.tally;
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
}

/// How long a source may take to give back what it holds, beyond the limit of the drain.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A message that is out of hand.
struct Settled {
    place: Option<Place>,
    is_store_away: bool,
}

struct Decided {
    disposition: Disposition,
    is_replay: bool,
    is_store_away: bool,
}

impl<S: Source, J: Job<S::Message>> Parts<S, J> {
    async fn handle(
        &self,
        delivery: Delivery<S::Message, S::Receipt>,
        mut place: Option<Place>,
        mut stopped: watch::Receiver<bool>,
        permits: &Semaphore,
    ) -> Settled {
        let Delivery { message, receipt, mut failures } = delivery;
        // What it would be given back with.
        let mut unfinished = Disposition::give_back();
        let (mut was_tried, mut is_store_away) = (false, false);
        let disposition = loop {
            let begin = async {
                if let Some(place) = &mut place {
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
            was_tried = true;
            let decided = self.decide(Arc::clone(&message), failures).await;
            drop(permit);
            is_store_away = decided.is_store_away;
            let Disposition::RetryLater { after, failed } = decided.disposition else {
                break Some((decided.disposition, decided.is_replay));
            };
            if place.is_none() {
                break Some((decided.disposition, false));
            }
            // In its lane it stays in hand.
            self.tally.retried.add();
            failures = failures.saturating_add(u32::from(failed));
            unfinished = Disposition::RetryLater { after: Duration::ZERO, failed };
            tokio::select! {
                biased;
                () = told(&mut stopped) => break None,
                () = sleep(after) => {}
            }
        };
        match disposition {
            Some((disposition, is_replay)) => self.settle(receipt, disposition, is_replay).await,
            None => {
                if !was_tried {
                    self.tally.given_back.add();
                }
                if let Err(error) = self.source.settle(receipt, unfinished).await {
                    warn!(%error, "a message could not be given back: it comes again by itself");
                }
            }
        }
        Settled { place, is_store_away }
    }

    async fn settle(&self, receipt: S::Receipt, disposition: Disposition, is_replay: bool) {
        match &disposition {
            Disposition::DeadLetter { reason } => warn!(reason, "a message is put aside"),
            disposition => debug!(%disposition, "a message is settled"),
        }
        match self.source.settle(receipt, disposition.clone()).await {
            Ok(()) => self.tally.count(&disposition, is_replay),
            Err(error) => {
                warn!(%error, %disposition, "a message could not be settled: it comes again by itself");
                self.tally.unsettled.add();
            }
        }
    }

    async fn decide(&self, message: Arc<S::Message>, failures: u32) -> Decided {
        let identity = match Identity::read(|| self.job.identify(&message)) {
            Ok(identity) => identity,
            Err(disposition) => return Decided { disposition, is_replay: false, is_store_away: false },
        };
        let call = Call {
            engine: self.engine.clone(),
            key: identity.key,
            fingerprint: identity.fingerprint,
            failures,
            max_attempts: self.retry.max_attempts,
        };
        // The block, so that a panic before the first await is caught as well.
        let performing = AssertUnwindSafe(async { self.job.perform(call, message).await });
        let decision = performing.catch_unwind().await.unwrap_or_else(|_| Err(RunError::Engine(Error::Panicked)));
        Decided {
            disposition: self.retry.disposition_unless_poison(&decision, failures, |error| self.job.is_poison(error)),
            is_replay: decision.as_ref().is_ok_and(crate::Outcome::is_replay),
            is_store_away: is_store_away(&decision),
        }
    }
}

/// Waits for the word to end.
async fn told(stopped: &mut watch::Receiver<bool>) {
    if stopped.wait_for(|stopped| *stopped).await.is_err() {
        // The processor itself is gone, and this with it.
        std::future::pending().await
    }
}

impl<S: Source, J> fmt::Debug for Processor<S, J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Processor")
            .field("concurrency", &self.parts.concurrency)
            .field("retry", &self.parts.retry)
            .field("is_ordered", &self.lanes.is_some())
            .field("drain_limit", &self.drain_limit)
            .finish_non_exhaustive()
    }
}
