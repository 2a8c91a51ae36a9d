//! Lets operations outlive the callers that began them.
//!
//! A caller polls its operation itself, because a separate task for each operation would cost more than everything else
//! that the engine does. Only when the caller is dropped midway (a client disconnected, or a `select!` took another
//! branch) does the operation move to a task.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::future::LocalBoxFuture;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

/// Polls `future` in place. If it is dropped before the future is done, it passes the future to `detach`.
pub(crate) struct DetachOnDrop<F: Future, D: FnOnce(Pin<Box<F>>)> {
    running: Option<(Pin<Box<F>>, D)>,
    /// Still set after a poll that panicked. Such a future is not polled again.
    is_polled: bool,
}

impl<F: Future, D: FnOnce(Pin<Box<F>>)> DetachOnDrop<F, D> {
    pub(crate) fn new(future: F, detach: D) -> Self {
        Self { running: Some((Box::pin(future), detach)), is_polled: false }
    }
}

// The future is boxed, and `detach` is only ever moved out, so nothing in here is pinned in place.
impl<F: Future, D: FnOnce(Pin<Box<F>>)> Unpin for DetachOnDrop<F, D> {}

impl<F: Future, D: FnOnce(Pin<Box<F>>)> Future for DetachOnDrop<F, D> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        if self.is_polled {
            return Poll::Pending;
        }
        self.is_polled = true;
        let Some((future, _)) = &mut self.running else { return Poll::Pending };
        let polled = future.as_mut().poll(context);
        if polled.is_ready() {
            self.running = None;
        }
        self.is_polled = false;
        polled
    }
}

impl<F: Future, D: FnOnce(Pin<Box<F>>)> Drop for DetachOnDrop<F, D> {
    fn drop(&mut self) {
        if let Some((future, detach)) = self.running.take()
            && !self.is_polled
            && !planted!(DroppedCallerStopsTheOperation)
        {
            detach(future);
        }
    }
}

thread_local! {
    /// Receives the futures that can't leave this thread. Spawning one from a destructor could panic while the
    /// arbiter's tasks are being dropped; sending it to a task can't.
    static LEFT_BEHIND: RefCell<Option<UnboundedSender<LocalBoxFuture<'static, ()>>>> = const { RefCell::new(None) };
}

/// Starts the task of this arbiter that continues the futures of dropped callers.
pub(crate) fn start_on_this_thread() {
    LEFT_BEHIND.with_borrow_mut(|sender| {
        if sender.as_ref().is_some_and(|sender| !sender.is_closed()) {
            return;
        }
        let (send, mut left_behind) = unbounded_channel();
        *sender = Some(send);
        actix_rt::spawn(async move {
            while let Some(future) = left_behind.recv().await {
                actix_rt::spawn(future);
            }
        });
    });
}

/// Continues `future` on this arbiter. On a thread that is not an arbiter, or is ending, the future is dropped.
pub(crate) fn go_on_here(future: LocalBoxFuture<'static, ()>) {
    let _ = LEFT_BEHIND.try_with(|sender| {
        if let Some(sender) = &*sender.borrow() {
            let _ = sender.send(future);
        }
    });
}
