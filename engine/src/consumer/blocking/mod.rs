//! The processor for plain threads, with workers that read a crossbeam channel.

mod crew;
mod job;
mod sync;
mod worker;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};

pub use job::{BlockingJob, blocking_job};

use super::later;
use super::tally::Tally;
use super::{Disposition, RetryPolicy};
use crate::Engine;
use crew::Crew;
use worker::{Pending, Ring, Shared, Worker};

/// Takes messages from a crossbeam channel on several threads, and runs a [`BlockingJob`] for each.
///
/// **Back-pressure is end to end.** You create the channel and choose its capacity. A worker takes a message only when
/// it is free. Messages to be retried wait in memory, and when too many wait, workers take no new ones. A slow job
/// therefore fills the channel, and a full channel makes its senders wait.
///
/// The processor ends by itself when all senders of the channel are gone and every message is settled, or when you call
/// [`shutdown`](Self::shutdown).
///
/// ```
/// use std::time::Duration;
/// use oncekey::consumer::{BlockingProcessor, MessageKey, blocking_job, crossbeam_channel};
/// use oncekey::{Engine, Key};
/// use oncekey_backends::MemoryBackend;
///
/// let engine = Engine::builder(MemoryBackend::new()).start()?;
/// let mail = blocking_job(
///     |order: &u64| Ok(MessageKey::new(Key::new("mail", order)?, order)?),
///     |order, claim| Ok::<_, std::io::Error>(format!("mail for order {order}, attempt {}", claim.attempt())),
/// );
/// let (orders, taken) = crossbeam_channel::bounded(100);
/// let processor = BlockingProcessor::builder(engine, mail).threads(2).start(taken)?;
/// for order in [17, 18, 17] {
///     orders.send(order)?; // waits while the channel is full
/// }
/// drop(orders);
/// let processed = processor.join();
/// assert_eq!((processed.ran, processed.replayed), (2, 1));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct BlockingProcessor<M> {
    crew: Arc<Crew<Instant, Pending<M>, Ring>>,
    tally: Arc<Tally>,
}

/// Reports what a [`BlockingProcessor`] did.
///
/// ```
/// # use oncekey::consumer::BlockingProcessed;
/// # fn example(processed: BlockingProcessed<u64>) {
/// for message in processed.given_back {
///     println!("{message} is still to be done");
/// }
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockingProcessed<M> {
    /// Messages whose job ran.
    pub ran: u64,
    /// Messages whose job had run before.
    pub replayed: u64,
    /// How many retries were scheduled.
    pub retried: u64,
    /// Messages that became dead letters.
    pub dead: u64,
    /// Messages that were taken and not settled, because they waited to be retried.
    pub given_back: Vec<M>,
    /// Whether workers were still processing messages at the limit. These workers end after their message. If the
    /// message must then be retried, they report this to [`on_settled`](BlockingProcessorBuilder::on_settled).
    pub is_unfinished: bool,
}

type OnSettled<M> = Arc<dyn Fn(M, Disposition) + Send + Sync>;

/// Configures and starts a [`BlockingProcessor`].
#[must_use]
pub struct BlockingProcessorBuilder<M, J> {
    engine: Engine,
    job: J,
    threads: usize,
    max_waiting: usize,
    batch: usize,
    retry: RetryPolicy,
    on_settled: Option<OnSettled<M>>,
    message: PhantomData<fn(M)>,
}

impl<M: Send + 'static> BlockingProcessor<M> {
    /// Creates a builder with the defaults that its methods name.
    pub fn builder<J: BlockingJob<M>>(engine: Engine, job: J) -> BlockingProcessorBuilder<M, J> {
        BlockingProcessorBuilder {
            engine,
            job,
            threads: 4,
            max_waiting: 1_000,
            batch: 1,
            retry: RetryPolicy::default(),
            on_settled: None,
            message: PhantomData,
        }
    }

    /// Waits until all senders of the channel are gone and every message is settled.
    pub fn join(self) -> BlockingProcessed<M> {
        let left_over = self.crew.join();
        self.processed(left_over, false)
    }

    /// Stops taking messages, and waits up to `limit` for the messages that workers are processing. Messages in the
    /// channel stay there. Messages that wait to be retried are returned.
    pub fn shutdown(self, limit: Duration) -> BlockingProcessed<M> {
        self.crew.stop();
        let (left_over, is_ended) = self.crew.join_within(limit);
        self.processed(left_over, !is_ended)
    }

    fn processed(&self, left_over: Vec<Pending<M>>, is_unfinished: bool) -> BlockingProcessed<M> {
        BlockingProcessed {
            ran: self.tally.ran.get(),
            replayed: self.tally.replayed.get(),
            retried: self.tally.retried.get(),
            dead: self.tally.dead.get(),
            given_back: left_over.into_iter().map(|pending| pending.message).collect(),
            is_unfinished,
        }
    }
}

impl<M: Send + 'static, J: BlockingJob<M>> BlockingProcessorBuilder<M, J> {
    /// Sets the number of worker threads. Default: 4; at least 1.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// Sets how many messages may wait in memory to be retried before workers take no new ones. Default: 1 000; at
    /// least 1.
    pub fn max_waiting(mut self, messages: usize) -> Self {
        self.max_waiting = messages.max(1);
        self
    }

    /// Sets how many messages a thread takes at once, if that many are available. Default: 1; at least 1.
    ///
    /// The engine sends the claims and the outcomes of a batch together, and runs its jobs one after the other. This
    /// helps jobs that take a few microseconds, where waking a thread is the main cost. A long job would delay the rest
    /// of its batch.
    pub fn batch(mut self, messages: usize) -> Self {
        self.batch = messages.max(1);
        self
    }

    /// Sets the [`RetryPolicy`].
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = policy;
        self
    }

    /// Sets a function that the worker's thread calls with each message that leaves the processor. Use it to
    /// acknowledge a broker's message or to set a dead letter aside. Default: dead letters are logged.
    pub fn on_settled(mut self, settled: impl Fn(M, Disposition) + Send + Sync + 'static) -> Self {
        self.on_settled = Some(Arc::new(settled));
        self
    }

    /// Starts the threads.
    ///
    /// # Errors
    /// The operating system cannot start a thread.
    pub fn start(self, messages: Receiver<M>) -> std::io::Result<BlockingProcessor<M>> {
        let tally = Arc::new(Tally::default());
        let shared = Arc::new(Shared {
            engine: self.engine,
            job: self.job,
            retry: self.retry,
            on_settled: self.on_settled,
            batch: self.batch,
            tally: Arc::clone(&tally),
        });
        let (bells, heard): (Vec<_>, Vec<_>) = (0..self.threads).map(|_| bounded(1)).unzip();
        let (crew, seats) = Crew::new(self.max_waiting, bells.into_iter().map(Ring).collect());
        for (number, (seat, bell)) in seats.into_iter().zip(heard).enumerate() {
            let (shared, messages) = (Arc::clone(&shared), messages.clone());
            let start = move || {
                let (hand, at) = (RefCell::default(), Cell::default());
                Worker { shared, messages, bell, seat, hand, at }.run();
            };
            let started = std::thread::Builder::new().name(format!("oncekey-worker-{number}")).spawn(start);
            if let Err(error) = started {
                crew.stop();
                return Err(error);
            }
        }
        Ok(BlockingProcessor { crew, tally })
    }
}

impl<M> fmt::Debug for BlockingProcessor<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockingProcessor").field("tally", &self.tally).finish_non_exhaustive()
    }
}

impl<M, J> fmt::Debug for BlockingProcessorBuilder<M, J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockingProcessorBuilder").field("threads", &self.threads).finish_non_exhaustive()
    }
}
