//! One step by itself: a request whose reply is awaited.

use oncekey::backend::{Reply, Request, StoreError};
use tokio::sync::oneshot;

/// Has `take` take one request, and gives its answer.
pub(crate) async fn ask<T: Send + 'static>(
    request: impl FnOnce(Reply<T>) -> Request,
    take: impl AsyncFnOnce(Request),
) -> Result<T, StoreError> {
    ask_by_reply(async |reply| take(request(reply)).await).await
}

/// Has `take` give an answer to a reply.
pub(crate) async fn ask_by_reply<T: Send + 'static>(take: impl AsyncFnOnce(Reply<T>)) -> Result<T, StoreError> {
    let (answer, heard) = oneshot::channel();
    // Nobody hears it if the future was dropped.
    let reply = Reply::new(move |result| drop(answer.send(result)));
    take(reply).await;
    heard.await.unwrap_or_else(|_| Err(StoreError::unknown("the answer was lost")))
}

/// Methods of a [`Backend`](oncekey::backend::Backend) that only ask: each makes a request of its message, which has the
/// request's name, and hands it to the handle's own `ask`.
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
