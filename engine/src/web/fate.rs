//! What becomes of a key once its handler has answered.

use actix_web::HttpResponse;
use actix_web::http::StatusCode;

/// What becomes of the key, and of the response.
///
/// A policy decides by the status ([`Idempotency::fate`](super::Idempotency::fate)); a handler that knows better says so
/// itself, by [`WithFate`].
///
/// ```
/// use actix_web::http::StatusCode;
/// use oncekey::web::ResponseFate;
///
/// assert_eq!(ResponseFate::by_status(StatusCode::PAYMENT_REQUIRED), ResponseFate::Keep);
/// assert_eq!(ResponseFate::by_status(StatusCode::BAD_GATEWAY), ResponseFate::Release);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResponseFate {
    /// The response is stored, and answers every retry.
    Keep,
    /// Nothing is stored: a retry runs the handler at once.
    Release,
    /// The handler does not know whether its effect happened: nothing runs until the key is resolved.
    Indeterminate,
}

impl ResponseFate {
    /// The default policy: a server error (5xx) releases, everything else is kept. A client error is an answer like any
    /// other: a declined card stays declined.
    pub fn by_status(status: StatusCode) -> Self {
        if status.is_server_error() && !planted!(ServerErrorStored) { Self::Release } else { Self::Keep }
    }
}

/// A handler's own word on what becomes of its key.
///
/// ```
/// use actix_web::HttpResponse;
/// use oncekey::web::{ResponseFate, WithFate};
///
/// async fn charge() -> HttpResponse {
///     // The provider's answer was lost: it may have charged.
///     HttpResponse::GatewayTimeout().finish().with_fate(ResponseFate::Indeterminate)
/// }
/// # let _ = charge();
/// ```
pub trait WithFate {
    /// Overrules the policy for this one response.
    #[must_use]
    fn with_fate(self, fate: ResponseFate) -> Self;
}

impl<B> WithFate for HttpResponse<B> {
    fn with_fate(mut self, fate: ResponseFate) -> Self {
        self.extensions_mut().insert(fate);
        self
    }
}
