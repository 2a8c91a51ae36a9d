//! Events inside one program: a bounded queue in memory.
//!
//! A [`Publisher`] that finds the queue full waits: that is the back-pressure. A message that is retried later waits in
//! memory beside the queue, and dead letters go to a channel of their own. What is in memory ends with the process: where
//! messages must survive it, publish them from an outbox, or over a broker.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until};

use crate::consumer::later::Later;
use crate::consumer::{Delivery, Disposition, Source};

/// A queue that holds up to `capacity` messages, at least 1.
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
    let (sender, queue) = mpsc::channel(capacity.max(1));
    let source = InProcess {
        queue: tokio::sync::Mutex::new(queue),
        waiting: Mutex::new(Waiting { later: Later::default(), in_hand: 0 }),
        capacity: capacity.max(1),
        changed: Notify::new(),
        dead: None,
    };
    (Publisher(sender), source)
}

/// The sending end. Clones share the queue; when the last is dropped, the source ends once all is settled.
pub struct Publisher<M>(mpsc::Sender<M>);

/// Nobody takes messages any more: here it is back.
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
    /// Puts a message into the queue, and waits while that is full.
    ///
    /// # Cancel safety
    /// Dropped midway, the message is not in the queue.
    ///
    /// # Errors
    /// The consumer is gone; the message comes back.
    pub async fn send(&self, message: M) -> Result<(), Closed<M>> {
        self.0.send(message).await.map_err(|error| Closed(error.0))
    }

    /// The same for a plain thread, which it blocks.
    ///
    /// # Errors
    /// The consumer is gone; the message comes back.
    ///
    /// # Panics
    /// If it is called in an async task.
    pub fn send_blocking(&self, message: M) -> Result<(), Closed<M>> {
        self.0.blocking_send(message).map_err(|error| Closed(error.0))
    }
}

impl<M> Clone for Publisher<M> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<M> fmt::Debug for Publisher<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("free_places", &self.0.capacity()).finish()
    }
}

/// A message that was put aside.
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
    /// Why it is one.
    pub reason: String,
}

/// The source.
pub struct InProcess<M> {
    queue: tokio::sync::Mutex<mpsc::Receiver<M>>,
    waiting: Mutex<Waiting<M>>,
    /// No further message is taken from the queue while this many wait to be retried.
    capacity: usize,
    /// Something was settled.
    changed: Notify,
    dead: Option<mpsc::Sender<DeadLetter<M>>>,
}

struct Waiting<M> {
    later: Later<Instant, Receipt<M>>,
    in_hand: usize,
}

/// What a message of this source is settled by.
#[derive(Debug)]
pub struct Receipt<M> {
    message: Arc<M>,
    failures: u32,
}

impl<M: Send + Sync + 'static> InProcess<M> {
    /// Sends dead letters to a channel; a full one holds up those who settle. Without one they are only logged.
    ///
    /// ```
    /// # use oncekey::consumer::in_process;
    /// let (publisher, source) = in_process::channel::<u64>(100);
    /// let (source, dead_letters) = source.with_dead_letters(100);
    /// ```
    #[must_use]
    pub fn with_dead_letters(mut self, capacity: usize) -> (Self, mpsc::Receiver<DeadLetter<M>>) {
        let (sender, letters) = mpsc::channel(capacity.max(1));
        self.dead = Some(sender);
        (self, letters)
    }

    /// The first message that is due, and when the next will be.
    fn due(&self) -> Result<Delivery<M, Receipt<M>>, Option<Instant>> {
        let mut waiting = self.waiting.lock();
        let Some(receipt) = waiting.later.pop_due(Instant::now()) else { return Err(waiting.later.next_due()) };
        waiting.in_hand += 1;
        Ok(deliver(receipt))
    }

    fn is_all_settled(&self) -> bool {
        let waiting = self.waiting.lock();
        waiting.in_hand == 0 && waiting.later.len() == 0
    }
}

fn deliver<M>(receipt: Receipt<M>) -> Delivery<M, Receipt<M>> {
    Delivery { message: Arc::clone(&receipt.message), failures: receipt.failures, receipt }
}

impl<M: Send + Sync + 'static> Source for InProcess<M> {
    type Message = M;
    type Receipt = Receipt<M>;
    type Error = Infallible;

    async fn next(&self) -> Result<Option<Delivery<M, Receipt<M>>>, Infallible> {
        let mut queue = self.queue.lock().await;
        let mut is_closed = false;
        loop {
            // Told of before it is looked at, so that nothing is settled in between unseen.
            let changed = self.changed.notified();
            let next_due = match self.due() {
                Ok(delivery) => return Ok(Some(delivery)),
                Err(next_due) => next_due,
            };
            let has_room = self.waiting.lock().later.len() < self.capacity;
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
                        self.waiting.lock().in_hand += 1;
                        return Ok(Some(deliver(Receipt { message: Arc::new(message), failures: 0 })));
                    }
                    None => is_closed = true,
                },
                () = changed => {}
            }
        }
    }

    async fn settle(&self, receipt: Receipt<M>, disposition: Disposition) -> Result<(), Infallible> {
        let Receipt { message, failures } = receipt;
        match disposition {
            Disposition::Ack => {}
            Disposition::RetryLater { after, failed } => {
                let failures = failures.saturating_add(u32::from(failed));
                self.waiting.lock().later.insert(Instant::now() + after, Receipt { message, failures });
            }
            Disposition::DeadLetter { reason } => {
                if let Some(dead) = &self.dead {
                    // Nobody reads them any more: then the log has it.
                    let _ = dead.send(DeadLetter { message, reason }).await;
                }
            }
        }
        self.waiting.lock().in_hand -= 1;
        self.changed.notify_one();
        Ok(())
    }
}

impl<M> fmt::Debug for InProcess<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waiting = self.waiting.lock();
        f.debug_struct("InProcess").field("in_hand", &waiting.in_hand).field("later", &waiting.later.len()).finish()
    }
}
