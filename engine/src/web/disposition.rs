//! What an answer means for its key.

use actix_web::dev::{PeerAddr, ServiceResponse};
use actix_web::error::{
    ContentTypeError, Error, InternalError, JsonPayloadError, ParseError, PathError, PayloadError, QueryPayloadError,
    ReadlinesError, ResponseError, UrlencodedError,
};
use actix_web::http::header::{self, HeaderMap};
use actix_web::http::{Method, StatusCode};
use actix_web::{FromRequest, HttpResponse};

use super::guard::RequestGuard;
use super::pattern;
use super::rules::{Disposition, Rules};

/// What the guard does with the key, and with the response, after an answer.
///
/// The guard decides by the status ([`by_status`](Self::by_status)).
/// [`Idempotency::disposition`](super::Idempotency::disposition) replaces that decision for a route, and
/// [`WithDisposition`] for one response. The guide [what your handler's answer means](crate::guide::answers) has the
/// whole table.
///
/// ```
/// use actix_web::http::StatusCode;
/// use oncekey::web::ResponseDisposition;
///
/// assert_eq!(ResponseDisposition::by_status(StatusCode::PAYMENT_REQUIRED), ResponseDisposition::Keep);
/// assert_eq!(ResponseDisposition::by_status(StatusCode::TOO_MANY_REQUESTS), ResponseDisposition::Release);
/// assert_eq!(ResponseDisposition::by_status(StatusCode::BAD_GATEWAY), ResponseDisposition::Abandoned);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ResponseDisposition {
    /// The guard stores the response and replays it to every retry.
    Keep,
    /// The guard stores nothing and frees the key: a retry runs the handler at once. It states that nothing happened.
    Release,
    /// The handler does not know whether its effect happened. The key is indeterminate: nothing runs until it is
    /// resolved.
    Indeterminate,
    /// The answer does not say whether the effect happened. The guard treats it as a crash of the handler:
    /// [`OnAbandoned`](crate::OnAbandoned) decides.
    Abandoned,
}

impl ResponseDisposition {
    /// The default decision:
    ///
    /// | status | |
    /// |---|---|
    /// | 408, 425, 429, 503 | [`Release`](Self::Release): "not now" |
    /// | any other below 500 | [`Keep`](Self::Keep): a declined card stays declined |
    /// | any other | [`Abandoned`](Self::Abandoned): a handler that fails may have had its effect |
    pub fn by_status(status: StatusCode) -> Self {
        if planted!(ServerErrorStored) {
            return Self::Keep;
        }
        match status.as_u16() {
            408 | 425 | 429 | 503 => Self::Release,
            500.. => Self::Abandoned,
            _ => Self::Keep,
        }
    }
}

/// A handler's own decision about its key.
///
/// ```
/// use actix_web::HttpResponse;
/// use oncekey::web::{ResponseDisposition, WithDisposition};
///
/// async fn charge() -> HttpResponse {
///     // The provider answered that it did not charge, so a retry may run.
///     HttpResponse::BadGateway().finish().with_disposition(ResponseDisposition::Release)
/// }
/// # let _ = charge();
/// ```
pub trait WithDisposition {
    /// Replaces the decision by status for this response.
    #[must_use]
    fn with_disposition(self, disposition: ResponseDisposition) -> Self;
}

impl<B> WithDisposition for HttpResponse<B> {
    fn with_disposition(mut self, disposition: ResponseDisposition) -> Self {
        self.extensions_mut().insert(disposition);
        self
    }
}

/// Where an answer comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// The handler, as far as the guard can tell.
    Handler,
    /// No handler saw the request.
    NoHandler,
    /// An error that extractors and middleware return, and handlers too: its status says nothing about the effect.
    Unclear,
    /// The guard, because the handler panicked.
    Panic,
}

/// Decides about a key: the one place that does.
pub(super) fn decide(
    origin: Origin,
    status: StatusCode,
    headers: &HeaderMap,
    explicit: Option<ResponseDisposition>,
    by_status: &Disposition,
    is_rolled_back: bool,
) -> ResponseDisposition {
    use ResponseDisposition::{Abandoned, Keep, Release};
    let decided = match (explicit, origin) {
        (Some(explicit), _) => explicit,
        (None, Origin::NoHandler) => Release,
        (None, Origin::Unclear) => Abandoned,
        (None, Origin::Handler | Origin::Panic) => by_status.of(status, headers),
    };
    match (decided, origin) {
        // There is no response of the handler's to keep.
        (Keep, Origin::Panic) if is_rolled_back => Release,
        (Keep, Origin::Panic) => Abandoned,
        // All that the operation wrote was rolled back, so nothing happened.
        (Abandoned, _) if is_rolled_back => Release,
        (decided, _) => decided,
    }
}

/// Where the answer of the inner service comes from, judged by what happened.
pub(super) fn origin_of<B>(response: &ServiceResponse<B>, guard: &RequestGuard, rules: &Rules) -> Origin {
    let (request, response) = (response.request(), response.response());
    let no_handler = match response.error() {
        Some(error) if rules.is_extractor_error(error) => true,
        Some(error) if is_shared_with_handlers(error) => {
            return if is_of_extractor(error, guard) { Origin::NoHandler } else { Origin::Unclear };
        }
        _ => match response.status() {
            StatusCode::NOT_FOUND => !rules.guards_default_service && !pattern::is_routed(request),
            // A resource answers so for a method that it has no route for. A handler that did something has at least
            // read its body, taken its claim, or waited.
            StatusCode::METHOD_NOT_ALLOWED => {
                !rules.guards_default_service && !pattern::is_routed(request)
                    || response.headers().contains_key(header::ALLOW) && !guard.is_touched() && !guard.has_waited()
            }
            _ => false,
        },
    };
    if no_handler { Origin::NoHandler } else { Origin::Handler }
}

/// Where an inner middleware's error comes from. It is a refusal, unless the middleware may have failed after the handler
/// ran, or in its midst, as a time limit does. An effect waits for something, and a handler that has one has mostly read
/// its body or taken its claim: one of the two is enough where the error says "failed", both where it does not.
pub(super) fn origin_of_inner_error(status: StatusCode, guard: &RequestGuard) -> Origin {
    let (is_touched, has_waited) = (guard.is_touched(), guard.has_waited());
    if status == StatusCode::SERVICE_UNAVAILABLE && !is_touched {
        Origin::NoHandler
    } else if status.is_server_error() && (is_touched || has_waited) {
        Origin::Handler
    } else if is_touched && has_waited {
        Origin::Unclear
    } else {
        Origin::NoHandler
    }
}

fn is<E: ResponseError + 'static>(error: &Error) -> bool {
    error.as_error::<E>().is_some() || error.as_error::<InternalError<E>>().is_some()
}

/// Whether the error is one that actix-web's extractors return, but handlers as well, after their effect: a client's
/// response breaks off, or its text does not parse.
fn is_shared_with_handlers(error: &Error) -> bool {
    is::<PayloadError>(error)
        || is::<QueryPayloadError>(error)
        || is::<ReadlinesError>(error)
        || is::<ContentTypeError>(error)
        || is::<ParseError>(error)
}

/// Whether such an error comes from an extractor. An effect waits for something. An extractor waits for nothing but the
/// body, and if the guard has read that before, for nothing at all.
fn is_of_extractor(error: &Error, guard: &RequestGuard) -> bool {
    // Whoever has the whole body has no reason to say that it cannot be read.
    !guard.has_waited() && (!is::<PayloadError>(error) || guard.holds_body() && !guard.is_body_read())
}

/// Whether the error is one that only actix-web's own extractors return, for a request that they cannot read.
pub(super) fn is_of_actix_extractors(error: &Error) -> bool {
    // A handler's `Json` or `Form` response that can't be serialized has these types too, and the handler ran.
    if matches!(error.as_error(), Some(JsonPayloadError::Serialize(_)))
        || matches!(error.as_error(), Some(UrlencodedError::Serialize(_)))
    {
        return false;
    }
    is::<JsonPayloadError>(error)
        || is::<UrlencodedError>(error)
        || is::<PathError>(error)
        || is::<<PeerAddr as FromRequest>::Error>(error)
        // `Path` without a `PathConfig` wraps the deserializer's error alone.
        || error.as_error::<InternalError<serde::de::value::Error>>().is_some()
        || is_text_of_actix(error)
}

/// Four of actix-web's extractors (`String`, `Bytes`, `Data`, `ReqData`) fail with a text that has no type of its own.
fn is_text_of_actix(error: &Error) -> bool {
    const TEXTS: [&str; 5] = [
        "Can not decode body",
        "Unexpected Content-Type",
        "Content-Type is expected",
        "Requested application data is not configured correctly.",
        "Missing expected request extension data",
    ];
    error.as_error::<InternalError<&'static str>>().is_some_and(|error| {
        let text = error.to_string();
        TEXTS.iter().any(|known| text.starts_with(known))
    })
}

/// A method and pattern under one name.
pub(super) fn route_name(method: &Method, pattern: &str) -> String {
    format!("{method} {pattern}")
}
