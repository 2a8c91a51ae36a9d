//! One request by itself, for the methods of a backend that send a request and await its reply.

use oncekey::backend::{Reply, Request, StoreError};
use tokio::sync::oneshot;

/// Passes one request to `take` and returns its answer.
pub(crate) async fn ask<T: Send + 'static>(
    request: impl FnOnce(Reply<T>) -> Request,
    take: impl AsyncFnOnce(Request),
) -> Result<T, StoreError> {
    ask_by_reply(async |reply| take(request(reply)).await).await
}

/// Passes a reply to `take` and returns the answer that is sent to it.
pub(crate) async fn ask_by_reply<T: Send + 'static>(take: impl AsyncFnOnce(Reply<T>)) -> Result<T, StoreError> {
    let (answer, heard) = oneshot::channel();
    // The send fails only if the caller's future was dropped.
    let reply = Reply::new(move |result| drop(answer.send(result)));
    take(reply).await;
    heard.await.unwrap_or_else(|_| Err(StoreError::unknown("the answer was lost")))
}

/// Implements methods of a [`Backend`](oncekey::backend::Backend) that only send a request. Each method wraps its
/// message in the request of the same name and passes it to the handle's own `ask`.
macro_rules! by_asking {
    ($($method:ident: $message:ident -> $answer:ty),* $(,)?) => {
        $(
            async fn $method(&self, message: $message) -> Result<$answer, StoreError> {
                self.ask(|reply| Request::$message(message.into(), reply)).await
            }
        )*
    };
}
pub(crate) use by_asking;
