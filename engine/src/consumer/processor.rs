//! The async processor: it takes messages from a source and settles each one with a disposition.

use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::time::Duration;

use futures_util::future::join;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout_at};
use tracing::warn;

use super::guard::{Panicked, discard_value, guard, guarded, guarded_call, text};
use super::handling::{Handled, MAX_RESENDING, Parts, Turn};
use super::lanes::Lanes;
use super::pause::Pause;
use super::{Job, RetryPolicy, Source, backoff};
use crate::Engine;

/// Reports what a [`Processor`] did.
///
/// ```
/// use oncekey::consumer::Processed;
///
/// assert_eq!(Processed::default().ran, 0);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Processed {
    /// Messages whose job ran and that were acknowledged.
    pub ran: u64,
    /// Messages that were acknowledged because their job had run before.
    pub replayed: u64,
    /// Deliveries that were settled to be retried later.
    pub retried: u64,
    /// Messages that became dead letters.
    pub dead: u64,
    /// Messages that were given back unprocessed, because the processor ended or the engine is shutting down.
    pub given_back: u64,
    /// Deliveries that the source could not settle before their connection or the drain limit ended. They are delivered
    /// again.
    pub unsettled: u64,
    /// Jobs that were still running at the drain limit. They continue as long as the process lives. Their messages are
    /// not settled, so they are delivered again.
    pub left: usize,
}

/// Takes messages from a [`Source`], runs a [`Job`] for each, and settles it with one
/// [`Disposition`](super::Disposition).
///
/// A processor handles many messages concurrently, all on the task that awaits [`run`](Self::run). To use several
/// threads, run several processors, in one process or in many.
///
/// ```
/// # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use std::time::Duration;
/// # use oncekey::consumer::{MessageKey, Processor, RetryPolicy, in_process, job};
/// # use oncekey::{Engine, Key};
/// # use oncekey_backends::MemoryBackend;
/// # let engine = Engine::builder(MemoryBackend::new()).start()?;
/// # let (orders, source) = in_process::channel::<u64>(100);
/// # let mail = job(
/// #     |order: &u64| Ok(MessageKey::new(Key::new("mail", order)?, order)?),
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

impl<S: Source, J: Job<S::Message>> Processor<S, J> {
    /// Creates a processor with the defaults that its methods name.
    pub fn new(engine: Engine, source: S, job: J) -> Self {
        let parts = Parts::new(engine, source, job);
        Self { parts, in_hand: None, drain_limit: Duration::from_secs(30), lanes: None }
    }

    /// Sets how many jobs run concurrently. Default: 16; at least 1. While all are busy, the processor takes no further
    /// message, which is the back-pressure on the broker.
    pub fn concurrency(mut self, jobs: usize) -> Self {
        self.parts.concurrency = jobs.clamp(1, Semaphore::MAX_PERMITS);
        self
    }

    /// Sets the [`RetryPolicy`].
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.parts.retry = policy;
        self
    }

    /// Sets how long unsettled messages may take to finish after the processor was asked to end. Default: 30 s.
    /// [`Duration::MAX`] means no limit.
    pub fn drain_limit(mut self, limit: Duration) -> Self {
        self.drain_limit = limit;
        self
    }

    /// Processes messages with the same key (an account, an aggregate) one at a time, in the order of their delivery.
    /// Messages with other keys run concurrently.
    ///
    /// A retry delays only later messages with that key: the processor **keeps the message** until it is settled, and
    /// only then starts the next one. It counts failures in memory and loses the count if the process dies. The order
    /// holds within one processor: two processors on one queue do not coordinate.
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

    /// Sets how many unsettled messages the processor holds, including messages that wait for their turn. Default: the
    /// [concurrency](Self::concurrency), or four times as many with [`in_order_by`](Self::in_order_by). A higher number
    /// lets other keys continue while one key is delayed.
    pub fn in_hand(mut self, messages: usize) -> Self {
        self.in_hand = Some(messages.max(1));
        self
    }

    /// Processes messages until `until` is ready or the source has no more messages, and then drains. While it drains,
    /// the processor takes no new message, gives back messages whose job has not begun, and lets running jobs finish
    /// within the [limit](Self::drain_limit). It ends at most one second after that limit. A panic in `until` also ends
    /// the processor.
    ///
    /// This method drops the source. An [in-process](super::in_process) source holds its messages in memory: use
    /// [`run_and_return`](Self::run_and_return) for it, or pass an `Arc` of the source.
    ///
    /// # Cancel safety
    /// If you drop the future, jobs that have begun continue as long as the process lives. Their messages are delivered
    /// again.
    pub async fn run(self, until: impl Future<Output = ()>) -> Processed {
        self.run_and_return(until).await.1
    }

    /// Like [`run`](Self::run), and also returns the source with the messages that it still holds.
    ///
    /// # Cancel safety
    /// As for [`run`](Self::run).
    ///
    /// ```
    /// # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use oncekey::consumer::{MessageKey, Processor, in_process, job};
    /// # use oncekey::{Engine, Key};
    /// # use oncekey_backends::MemoryBackend;
    /// # let engine = Engine::builder(MemoryBackend::new()).start()?;
    /// # let mail = job(
    /// #     |order: &u64| Ok(MessageKey::new(Key::new("mail", order)?, order)?),
    /// #     |call, order| async move { call.run(move |_| async move { Ok::<_, std::io::Error>(*order) }).await },
    /// # );
    /// let (orders, source) = in_process::channel::<u64>(100);
    /// orders.send(17).await?;
    /// let (source, processed) = Processor::new(engine, source, mail).run_and_return(async {}).await;
    /// assert_eq!(processed.ran as usize + source.into_remaining().len(), 1);
    /// # Ok(()) }
    /// ```
    pub async fn run_and_return(mut self, until: impl Future<Output = ()>) -> (S, Processed) {
        let parts = &self.parts;
        let places = if self.lanes.is_some() { parts.concurrency.saturating_mul(4) } else { parts.concurrency };
        let places = self.in_hand.unwrap_or(places).max(1);
        let (stop, stopped) = watch::channel(false);
        let permits = Semaphore::new(parts.concurrency);
        let mut in_hand = FuturesUnordered::new();
        let mut pause = Pause::default();
        let mut until = guarded(until);
        {
            let ask = || guarded_call(|| parts.source.next());
            let mut next = ask();
            let mut is_over = false;
            while !(is_over && in_hand.is_empty()) {
                let resending = parts.resending.count();
                let has_place = in_hand.len().saturating_sub(resending) < places && resending < MAX_RESENDING;
                tokio::select! {
                    biased;
                    ended = &mut until => {
                        if ended == Err(Panicked) {
                            warn!("what ends a processor panicked: the processor ends");
                        }
                        break;
                    }
                    Some(handled) = in_hand.next() => {
                        let Ok(Handled { turn, affects }) = handled else {
                            warn!("handling a message panicked: it comes again");
                            continue;
                        };
                        if let (Some(lanes), Turn::InLane(place)) = (&mut self.lanes, &turn) {
                            lanes.leave(place);
                        }
                        if affects.is_some_and(|affects| affects.pauses()) {
                            pause.at_least(parts.retry.store_away_delay);
                        }
                    }
                    // This frees a place, although the message is not settled yet.
                    () = parts.resending.changed() => {}
                    () = pause.over(), if pause.is_on() => pause.end(),
                    taken = &mut next, if !is_over && has_place && !pause.is_on() => {
                        next = ask();
                        match taken {
                            Ok(Ok(Some(delivery))) => {
                                pause.forget_errors();
                                let turn = match &mut self.lanes {
                                    None => Turn::AnyTime,
                                    Some(lanes) => guard(|| lanes.enter(&delivery.message))
                                        .map_or(Turn::Never, Turn::InLane),
                                };
                                in_hand.push(guarded(parts.handle(delivery, turn, stopped.clone(), &permits)));
                            }
                            Ok(Ok(None)) => is_over = true,
                            Ok(Err(error)) => {
                                warn!(error = text(&error), "a source of messages failed: the processor asks again in a moment");
                                discard_value(error);
                                pause.after_error();
                            }
                            Err(Panicked) => {
                                warn!("a source of messages panicked: the processor asks again in a moment");
                                pause.after_error();
                            }
                        }
                    }
                }
            }
        }
        let limit = Instant::now() + backoff::bounded(self.drain_limit);
        // The send fails only if no message is left to notify.
        let _ = stop.send(true);
        let settled = async { while in_hand.next().await.is_some() {} };
        let _ = timeout_at(limit, join(guarded_call(|| parts.source.end_intake()), settled)).await;
        let unsettled = parts.resending.settling();
        let left = in_hand.len().saturating_sub(unsettled);
        discard_value(in_hand);
        let _ = timeout_at(limit.max(Instant::now()) + LAST_WORDS, guarded_call(|| parts.source.close())).await;
        let processed = parts.processed(left, unsettled);
        (self.parts.source, processed)
    }
}

/// How long a source may take, beyond the drain limit, to give back the messages that it holds.
const LAST_WORDS: Duration = Duration::from_secs(1);

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
