//! Messages that wait to be retried.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

/// A message in hand.
pub(super) struct Pending<M> {
    pub(super) message: M,
    pub(super) failures: u32,
}

/// One that is to be tried again at a time.
pub(super) struct Later<M> {
    pub(super) due: Instant,
    pub(super) pending: Pending<M>,
}

impl<M> PartialEq for Later<M> {
    fn eq(&self, other: &Self) -> bool {
        self.due == other.due
    }
}

impl<M> Eq for Later<M> {}

impl<M> PartialOrd for Later<M> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<M> Ord for Later<M> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.due.cmp(&other.due)
    }
}

/// Hands messages on when they are due, until all workers have ended; then gives what is left. How many there are is
/// bounded by the workers, who take no new ones beside too many that wait.
pub(super) fn run<M>(scheduled: &Receiver<Later<M>>, due: &Sender<Pending<M>>, again: &Receiver<Pending<M>>) -> Vec<M> {
    let mut waiting: BinaryHeap<Reverse<Later<M>>> = BinaryHeap::new();
    loop {
        let now = Instant::now();
        while waiting.peek().is_some_and(|Reverse(first)| first.due <= now) {
            // This thread has the receiver too.
            let _ = waiting.pop().map(|Reverse(first)| due.send(first.pending));
        }
        let next = match waiting.peek() {
            Some(Reverse(first)) => scheduled.recv_deadline(first.due),
            None => scheduled.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match next {
            Ok(later) => waiting.push(Reverse(later)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let handed_on = again.try_iter().map(|pending| pending.message);
    handed_on.chain(waiting.into_iter().map(|Reverse(later)| later.pending.message)).collect()
}
