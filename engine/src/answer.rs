//! Carries an answer back to its asker: a task, or a plain thread that waits.

use tokio::sync::oneshot;

/// Sends one answer back to its asker.
#[derive(Debug)]
pub(crate) enum Answer<T> {
    Task(oneshot::Sender<T>),
    /// One of several answers that a thread waits for, identified by its number.
    Thread(crossbeam_channel::Sender<(usize, T)>, usize),
}

impl<T> Answer<T> {
    /// Sends the answer. Returns whether the asker still listens.
    pub(crate) fn send(self, answer: T) -> bool {
        match self {
            Self::Task(sender) => sender.send(answer).is_ok(),
            Self::Thread(sender, number) => sender.try_send((number, answer)).is_ok(),
        }
    }

    /// Returns whether the asker is known to have left.
    pub(crate) fn is_closed(&self) -> bool {
        match self {
            Self::Task(sender) => sender.is_closed(),
            Self::Thread(..) => false,
        }
    }
}
