//! A bounded in-memory queue for events inside one program.
//!
//! When the queue is full, its [`Publisher`] waits, which is the back-pressure. Messages to be retried wait in memory
//! beside the queue, and dead letters go to a separate channel.
//!
//! The messages in memory are lost with the source and with the process. Get the source back from its processor with
//! [`run_and_return`](crate::consumer::Processor::run_and_return), and its remaining messages with
//! [`into_remaining`](InProcess::into_remaining). If messages must survive the process, publish them from an outbox or
//! through a broker.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::time::{Instant, sleep_until};
use tracing::warn;

use crate::consumer::backoff::bounded;
use crate::consumer::later::Later;
use crate::consumer::{Delivery, Disposition, Source};

/// Creates a queue that holds up to `capacity` messages, at least 1.
///
/// ```
/// # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use oncekey::consumer::{Source, in_process};
///
/// let (publisher, source) = in_process::channel(100);
/// publisher.send("to: ada").await?;
/// let delivery = source.next().await?.ok_or("a message")?;
/// assert_eq!(*delivery.message, "to: ada");
/// # Ok(()) }
/// ```
pub fn channel<M: Send + Sync + 'static>(capacity: usize) -> (Publisher<M>, InProcess<M>) {
    let capacity = places(capacity);
    let (sender, queue) = mpsc::channel(capacity);
    let shared = Arc::new(Shared {
        waiting: Mutex::new(Waiting { later: Later::default(), in_hand: 0 }),
        changed: Notify::new(),
        is_closed: AtomicBool::new(false),
    });
    let publisher = Publisher { queue: sender, shared: Arc::clone(&shared) };
    (publisher, InProcess { queue: tokio::sync::Mutex::new(queue), shared, capacity, dead: None })
}

/// Limits a capacity to what a channel supports.
fn places(capacity: usize) -> usize {
    capacity.clamp(1, Semaphore::MAX_PERMITS)
}

/// The sending end. Clones share the queue. When the last is dropped, the source ends once every message is settled.
pub struct Publisher<M> {
    queue: mpsc::Sender<M>,
    shared: Arc<Shared<M>>,
}

/// The queue is closed or has no consumer. This error returns the message.
///
/// ```
/// # #[actix_rt::main] async fn main() {
/// # use oncekey::consumer::in_process;
/// let (publisher, source) = in_process::channel(1);
/// drop(source);
/// assert_eq!(publisher.send(17).await.unwrap_err().0, 17);
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the consumer of the queue is gone")]
pub struct Closed<M>(pub M);

impl<M> Publisher<M> {
    /// Puts a message into the queue. Waits while the queue is full.
    ///
    /// # Cancel safety
    /// If you drop the future early, the message is not in the queue.
    ///
    /// # Errors
    /// The queue is closed or its consumer is gone. The error returns the message.
    pub async fn send(&self, message: M) -> Result<(), Closed<M>> {
        if self.is_closed() {
            return Err(Closed(message));
        }
        self.queue.send(message).await.map_err(|error| Closed(error.0))
    }

    /// Like [`send`](Self::send), for a plain thread, which it blocks.
    ///
    /// # Errors
    /// The queue is closed or its consumer is gone. The error returns the message.
    ///
    /// # Panics
    /// If called in an async task.
    pub fn send_blocking(&self, message: M) -> Result<(), Closed<M>> {
        if self.is_closed() {
            return Err(Closed(message));
        }
        self.queue.blocking_send(message).map_err(|error| Closed(error.0))
    }

    /// Returns whether the queue accepts no more messages, because it was closed or its consumer is gone.
    pub fn is_closed(&self) -> bool {
        self.shared.is_closed.load(Ordering::SeqCst) || self.queue.is_closed()
    }
}

impl<M> Clone for Publisher<M> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), shared: Arc::clone(&self.shared) }
    }
}

impl<M> fmt::Debug for Publisher<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("free_places", &self.queue.capacity()).finish()
    }
}

/// A message that was set aside.
///
/// ```
/// use std::sync::Arc;
/// use oncekey::consumer::in_process::DeadLetter;
///
/// let letter = DeadLetter { message: Arc::new("to: ada"), reason: "no route".into() };
/// # let _ = letter;
/// ```
#[derive(Debug, Clone)]
pub struct DeadLetter<M> {
    /// The message.
    pub message: Arc<M>,
    /// Why it is a dead letter.
    pub reason: String,
}

/// The source that [`channel`] creates.
pub struct InProcess<M> {
    queue: tokio::sync::Mutex<mpsc::Receiver<M>>,
    shared: Arc<Shared<M>>,
    /// While this many messages wait to be retried, the source takes none from the queue.
    capacity: usize,
    dead: Option<mpsc::Sender<DeadLetter<M>>>,
}

struct Shared<M> {
    waiting: Mutex<Waiting<M>>,
    /// Signals that a message was settled or the source was closed.
    changed: Notify,
    is_closed: AtomicBool,
}

struct Waiting<M> {
    later: Later<Instant, Again<M>>,
    /// The number of deliveries whose receipts are not dropped yet.
    in_hand: usize,
}

/// A message to be delivered again.
struct Again<M> {
    message: Arc<M>,
    failures: u32,
}

/// Identifies a delivery of this source. Clones refer to the same delivery. If the last clone is dropped before the
/// message is settled, the source delivers it again.
pub struct Receipt<M>(Arc<InHand<M>>);

/// A delivery, which counts as unsettled until it is dropped.
struct InHand<M> {
    shared: Arc<Shared<M>>,
    message: Arc<M>,
    failures: u32,
    is_settled: AtomicBool,
}

impl<M> Drop for InHand<M> {
    fn drop(&mut self) {
        let mut waiting = self.shared.waiting.lock();
        if !*self.is_settled.get_mut() {
            let again = Again { message: Arc::clone(&self.message), failures: self.failures };
            waiting.later.insert(Instant::now(), again);
        }
        waiting.in_hand -= 1;
        drop(waiting);
        self.shared.changed.notify_one();
    }
}

impl<M> Clone for Receipt<M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<M> fmt::Debug for Receipt<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receipt").field("failures", &self.0.failures).finish_non_exhaustive()
    }
}

impl<M: Send + Sync + 'static> InProcess<M> {
    /// Sends dead letters to a channel. If that channel is full, settling a dead letter waits. Without a channel, dead
    /// letters are only logged.
    ///
    /// ```
    /// # use oncekey::consumer::in_process;
    /// let (publisher, source) = in_process::channel::<u64>(100);
    /// let (source, dead_letters) = source.with_dead_letters(100);
    /// ```
    #[must_use]
    pub fn with_dead_letters(mut self, capacity: usize) -> (Self, mpsc::Receiver<DeadLetter<M>>) {
        let (sender, letters) = mpsc::channel(places(capacity));
        self.dead = Some(sender);
        (self, letters)
    }

    /// Closes the queue. From now on, publishers get their messages back. The source still delivers the messages in the
    /// queue, and ends once every message is settled.
    ///
    /// ```
    /// # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use oncekey::consumer::{Disposition, Source, in_process};
    /// let (publisher, source) = in_process::channel(100);
    /// publisher.send(17).await?;
    /// source.close_queue();
    /// assert_eq!(publisher.send(18).await.unwrap_err().0, 18);
    /// let delivery = source.next().await?.ok_or("the message from before")?;
    /// source.settle(delivery.receipt, Disposition::Ack).await?;
    /// assert!(source.next().await?.is_none());
    /// # Ok(()) }
    /// ```
    pub fn close_queue(&self) {
        self.shared.is_closed.store(true, Ordering::SeqCst);
        if let Ok(mut queue) = self.queue.try_lock() {
            queue.close();
        }
        // If the lock is taken, `next` holds the queue and closes it when it wakes.
        self.shared.changed.notify_one();
    }

    /// Returns the unsettled messages: first those that wait to be retried, ordered by due time, then those in the
    /// queue. Publishers get their messages back from now on.
    ///
    /// ```
    /// # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use oncekey::consumer::in_process;
    /// let (publisher, source) = in_process::channel(100);
    /// publisher.send(17).await?;
    /// publisher.send(18).await?;
    /// let remaining: Vec<u64> = source.into_remaining().iter().map(|message| **message).collect();
    /// assert_eq!(remaining, [17, 18]);
    /// # Ok(()) }
    /// ```
    pub fn into_remaining(mut self) -> Vec<Arc<M>> {
        let queue = self.queue.get_mut();
        queue.close();
        let mut remaining: Vec<Arc<M>> = self.shared.waiting.lock().later.drain().map(|again| again.message).collect();
        while let Ok(message) = queue.try_recv() {
            remaining.push(Arc::new(message));
        }
        remaining
    }

    /// Returns the first message that is due, or the time when the next one will be.
    fn due(&self) -> Result<Delivery<M, Receipt<M>>, Option<Instant>> {
        let mut waiting = self.shared.waiting.lock();
        let Some(again) = waiting.later.pop_due(Instant::now()) else { return Err(waiting.later.next_due()) };
        waiting.in_hand += 1;
        drop(waiting);
        Ok(self.deliver(again))
    }

    /// The caller has already counted the message in `in_hand`.
    fn deliver(&self, Again { message, failures }: Again<M>) -> Delivery<M, Receipt<M>> {
        let in_hand = InHand {
            shared: Arc::clone(&self.shared),
            message: Arc::clone(&message),
            failures,
            is_settled: AtomicBool::new(false),
        };
        Delivery { message, receipt: Receipt(Arc::new(in_hand)), failures }
    }

    fn is_all_settled(&self) -> bool {
        let waiting = self.shared.waiting.lock();
        waiting.in_hand == 0 && waiting.later.len() == 0
    }
}

impl<M: Send + Sync + 'static> Source for InProcess<M> {
    type Message = M;
    type Receipt = Receipt<M>;
    type Error = Infallible;

    async fn next(&self) -> Result<Option<Delivery<M, Receipt<M>>>, Infallible> {
        let mut queue = self.queue.lock().await;
        let mut is_closed = false;
        loop {
            // Register before reading any state, so that no change in between is missed.
            let changed = self.shared.changed.notified();
            if self.shared.is_closed.load(Ordering::SeqCst) {
                queue.close();
            }
            let next_due = match self.due() {
                Ok(delivery) => return Ok(Some(delivery)),
                Err(next_due) => next_due,
            };
            let has_room = self.shared.waiting.lock().later.len() < self.capacity;
            if is_closed && self.is_all_settled() {
                return Ok(None);
            }
            let due = async {
                match next_due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = due => {}
                message = queue.recv(), if !is_closed && has_room => match message {
                    Some(message) => {
                        self.shared.waiting.lock().in_hand += 1;
                        return Ok(Some(self.deliver(Again { message: Arc::new(message), failures: 0 })));
                    }
                    None => is_closed = true,
                },
                () = changed => {}
            }
        }
    }

    async fn settle(&self, Receipt(in_hand): Receipt<M>, disposition: Disposition) -> Result<(), Infallible> {
        match disposition {
            Disposition::Ack => in_hand.is_settled.store(true, Ordering::SeqCst),
            Disposition::RetryLater { after, failed } => {
                if !in_hand.is_settled.swap(true, Ordering::SeqCst) {
                    let failures = in_hand.failures.saturating_add(u32::from(failed));
                    let again = Again { message: Arc::clone(&in_hand.message), failures };
                    self.shared.waiting.lock().later.insert(Instant::now() + bounded(after), again);
                }
            }
            Disposition::DeadLetter { reason } => {
                if let Some(dead) = &self.dead {
                    // If the channel has no reader any more, the log still has the dead letter.
                    let _ = dead.send(DeadLetter { message: Arc::clone(&in_hand.message), reason }).await;
                }
                in_hand.is_settled.store(true, Ordering::SeqCst);
            }
        }
        Ok(())
    }
}

impl<M> Drop for InProcess<M> {
    fn drop(&mut self) {
        let messages = self.shared.waiting.lock().later.len() + self.queue.get_mut().len();
        if messages > 0 {
            warn!(messages, "an in-process source is dropped with messages in it");
        }
    }
}

impl<M> fmt::Debug for InProcess<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waiting = self.shared.waiting.lock();
        f.debug_struct("InProcess").field("in_hand", &waiting.in_hand).field("later", &waiting.later.len()).finish()
    }
}
