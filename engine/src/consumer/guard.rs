//! Runs user code so that a panic becomes a value, in async code and on threads.
//!
//! Processors call all user code through [`guard`]: jobs, keys, orders, poison tests, and the `Display` and `Drop` of
//! user values. A panic that got past it would end a worker, and with it a batch of unrelated messages.

use std::fmt::Display;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

pub(super) use crate::panics::{Panicked, discard_value, guard};

/// The longest error text, in bytes, that a dead letter carries. Brokers limit a message's headers and would refuse a
/// longer dead letter at every attempt.
const LONGEST_TEXT: usize = 4_096;

/// Returns an error's text, shortened to a limit.
pub(super) fn text(error: &(impl Display + ?Sized)) -> String {
    let Ok(mut text) = guard(|| error.to_string()) else {
        return "the error has no text: its Display panicked".to_owned();
    };
    if text.len() > LONGEST_TEXT {
        text.truncate(text.floor_char_boundary(LONGEST_TEXT));
        text.push('…');
    }
    text
}

/// Polls and drops a user's future through [`guard`].
#[must_use]
pub(super) struct Guarded<F>(Option<Pin<Box<F>>>);

pub(super) fn guarded<F: Future>(future: F) -> Guarded<F> {
    Guarded(Some(Box::pin(future)))
}

/// Calls user code that returns a future, and polls and drops that future through [`guard`]. It also catches a panic
/// before the first await.
pub(super) fn guarded_call<F: Future>(call: impl FnOnce() -> F) -> Guarded<impl Future<Output = F::Output>> {
    guarded(async move { call().await })
}

impl<F: Future> Future for Guarded<F> {
    type Output = Result<F::Output, Panicked>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // Taking the future out ensures that it is not polled again after a panic.
        let Some(mut future) = self.0.take() else { return Poll::Ready(Err(Panicked)) };
        match guard(|| future.as_mut().poll(context)) {
            Ok(Poll::Pending) => {
                self.0 = Some(future);
                Poll::Pending
            }
            Ok(Poll::Ready(output)) => {
                discard_value(future);
                Poll::Ready(Ok(output))
            }
            Err(Panicked) => {
                discard_value(future);
                Poll::Ready(Err(Panicked))
            }
        }
    }
}

// The future is boxed, so `Guarded` pins nothing in place.
impl<F> Unpin for Guarded<F> {}

impl<F> Drop for Guarded<F> {
    fn drop(&mut self) {
        discard_value(self.0.take());
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    struct Explosive;

    impl Drop for Explosive {
        fn drop(&mut self) {
            if !std::thread::panicking() {
                std::panic::panic_any(Explosive);
            }
        }
    }

    #[test]
    fn j07_a_panic_is_a_value_whatever_it_carries_and_whatever_drops() {
        assert_eq!(guard(|| 7), Ok(7));
        assert_eq!(guard::<()>(|| std::panic::panic_any(Explosive)), Err(Panicked));
        discard_value(Explosive);
        assert_eq!(guarded(async { 7 }).now_or_never(), Some(Ok(7)));
        let held = async {
            let _held = Explosive;
            std::future::pending::<()>().await;
        };
        assert_eq!(guarded(held).now_or_never(), None);
        let mut panics = guarded(panics_when_polled_again());
        assert_eq!((&mut panics).now_or_never(), None);
        assert_eq!(panics.now_or_never(), Some(Err(Panicked)));
    }

    async fn panics_when_polled_again() {
        let mut is_second = false;
        let pending_once =
            std::future::poll_fn(
                |_| {
                    if std::mem::replace(&mut is_second, true) { Poll::Ready(()) } else { Poll::Pending }
                },
            );
        pending_once.await;
        std::panic::panic_any(Explosive)
    }

    #[test]
    fn j07_a_text_is_bounded_and_always_there() {
        struct NoText;
        impl Display for NoText {
            fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                Err(std::fmt::Error)
            }
        }
        assert!(text(&NoText).contains("panicked"));
        assert_eq!(text("no route"), "no route");
        let long = text(&"é".repeat(10_000));
        assert!(long.len() < LONGEST_TEXT + 8 && long.ends_with('…'));
    }
}
