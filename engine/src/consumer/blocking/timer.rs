//! Messages that wait to be retried.

use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use crate::consumer::later::Later;

/// A message in hand.
pub(super) struct Pending<M> {
    pub(super) message: M,
    pub(super) failures: u32,
}

/// One that is to be tried again, and when.
pub(super) type Scheduled<M> = (Instant, Pending<M>);

/// Hands messages on when they are due, until all workers have ended; then gives what is left. How many there are is
/// bounded by the workers, who take no new ones beside too many that wait.
pub(super) fn run<M>(
    scheduled: &Receiver<Scheduled<M>>,
    due: &Sender<Pending<M>>,
    again: &Receiver<Pending<M>>,
) -> Vec<M> {
    let mut waiting = Later::default();
    loop {
        while let Some(first) = waiting.pop_due(Instant::now()) {
            // This thread has the receiver too.
            let _ = due.send(first);
        }
        let next = match waiting.next_due() {
            Some(due) => scheduled.recv_deadline(due),
            None => scheduled.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match next {
            Ok((due, pending)) => waiting.insert(due, pending),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    again.try_iter().chain(waiting.drain()).map(|pending| pending.message).collect()
}
