//! The consumer on plain threads: workers around crossbeam channels.

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

/// Threads that take messages from a crossbeam channel, and run a [`BlockingJob`] for each.
///
/// **Back-pressure goes end to end**: the channel is the user's and has the user's bound; a worker takes a message when it
/// is free; a message that is to be retried waits in memory, and when too many do, no further ones are taken. So a slow
/// job fills the channel, and a full channel has its senders wait.
///
/// It ends by itself when all senders of the channel are gone and every message is settled, or by
/// [`shutdown`](Self::shutdown).
///
/// ```
/// use std::time::Duration;
/// use oncekey::consumer::{BlockingProcessor, Identity, blocking_job, crossbeam_channel};
/// use oncekey::{Engine, Key};
/// use oncekey_backends::MemoryBackend;
///
/// let engine = Engine::builder(MemoryBackend::new()).start()?;
/// let mail = blocking_job(
///     |order: &u64| Ok(Identity::new(Key::new("mail", order)?, order)?),
///     |order, claim| Ok::<_, std::io::Error>(format!("mail for order {order}, attempt {}", claim.attempt())),
/// );
/// let (orders, taken) = crossbeam_channel::bounded(100);
/// let processor = BlockingProcessor::builder(engine, mail).threads(2).start(taken)?;
/// for order in [17, 18, 17] {
///     orders.send(order)?; // waits while a hundred are ahead
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

/// What a [`BlockingProcessor`] did.
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
    /// How often messages were to be retried.
    pub retried: u64,
    /// Dead letters.
    pub dead: u64,
    /// Messages that were taken and are not settled: they were waiting to be retried.
    pub given_back: Vec<M>,
    /// Whether workers were still at their message at the limit. They end after it; if it is to be retried then, it is
    /// told to [`on_settled`](BlockingProcessorBuilder::on_settled) so.
    pub is_unfinished: bool,
}

type OnSettled<M> = Arc<dyn Fn(M, Disposition) + Send + Sync>;

/// Sets a [`BlockingProcessor`] up.
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
    /// A processor with the defaults that the builder's methods name.
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

    /// Takes no further message, and waits up to `limit` for those that workers are at. What is in the channel stays
    /// there; messages that wait to be retried are given back.
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
    /// How many threads work. Default: 4; at least 1.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// How many messages may wait in memory to be retried before no further ones are taken. Default: 1 000; at least 1.
    pub fn max_waiting(mut self, messages: usize) -> Self {
        self.max_waiting = messages.max(1);
        self
    }

    /// How many messages a thread takes at once, if there are as many. Default: 1; at least 1.
    ///
    /// The claims and outcomes of a batch are on their way together, its jobs run one after the other: for jobs of some
    /// microseconds, beside which waking a thread is what costs. A long job would keep its batch from the other threads.
    pub fn batch(mut self, messages: usize) -> Self {
        self.batch = messages.max(1);
        self
    }

    /// See [`RetryPolicy`].
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = policy;
        self
    }

    /// Called on the worker's thread with each message that is settled for good: here a broker's message is acknowledged,
    /// a dead letter put aside. Default: dead letters are logged.
    pub fn on_settled(mut self, settled: impl Fn(M, Disposition) + Send + Sync + 'static) -> Self {
        self.on_settled = Some(Arc::new(settled));
        self
    }

    /// Starts the threads.
    ///
    /// # Errors
    /// The operating system gives no thread.
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
