//! Where an answer goes: to a task, or to a plain thread that waits.

use tokio::sync::oneshot;

/// One answer's way back to its asker.
#[derive(Debug)]
pub(crate) enum Answer<T> {
    Task(oneshot::Sender<T>),
    /// One of several that the thread waits for, by its number.
    Thread(crossbeam_channel::Sender<(usize, T)>, usize),
}

impl<T> Answer<T> {
    /// Answers, and tells whether somebody listens.
    pub(crate) fn send(self, answer: T) -> bool {
        match self {
            Self::Task(sender) => sender.send(answer).is_ok(),
            Self::Thread(sender, number) => sender.try_send((number, answer)).is_ok(),
        }
    }

    /// Whether the asker is known to have gone.
    pub(crate) fn is_closed(&self) -> bool {
        match self {
            Self::Task(sender) => sender.is_closed(),
            Self::Thread(..) => false,
        }
    }
}
