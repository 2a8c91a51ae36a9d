//! Decides what an answer means for its key.

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

/// What the guard does with the key and the response after an answer.
///
/// By default, the status decides ([`by_status`](Self::by_status)).
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
    /// The guard stores nothing and frees the key, so a retry runs the handler at once. This states that nothing
    /// happened.
    Release,
    /// The handler does not know whether its effect happened. The key becomes indeterminate: nothing runs until it is
    /// resolved.
    Indeterminate,
    /// The answer does not say whether the effect happened. The guard treats it as a crash of the handler, and
    /// [`OnAbandoned`](crate::OnAbandoned) decides.
    Abandoned,
}

impl ResponseDisposition {
    /// Returns the default decision:
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

/// Lets a handler decide about its own key.
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

/// The origin of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// The handler, as far as the guard can tell.
    Handler,
    /// No handler: the request did not reach one.
    NoHandler,
    /// An error that extractors, middleware and handlers all return. Its status says nothing about the effect.
    Unclear,
    /// The guard, because the handler panicked.
    Panic,
}

/// Decides about a key. No other code does.
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
        // The handler panicked, so there is no response to keep.
        (Keep, Origin::Panic) if is_rolled_back => Release,
        (Keep, Origin::Panic) => Abandoned,
        // The database rolled back everything that the operation wrote, so nothing happened.
        (Abandoned, _) if is_rolled_back => Release,
        (decided, _) => decided,
    }
}

/// Infers from what happened where the answer of the inner service comes from.
pub(super) fn origin_of<B>(response: &ServiceResponse<B>, guard: &RequestGuard, rules: &Rules) -> Origin {
    let (request, response) = (response.request(), response.response());
    let no_handler = match response.error() {
        Some(error) if rules.is_extractor_error(error) => true,
        Some(error) if is_shared_with_handlers(error) => {
            return if is_of_extractor(error, guard) { Origin::NoHandler } else { Origin::Unclear };
        }
        _ => match response.status() {
            StatusCode::NOT_FOUND => !rules.guards_default_service && !pattern::is_routed(request),
            // A resource answers like this to a method for which it has no route. A handler that had an effect would at
            // least have read its body, taken its claim, or waited.
            StatusCode::METHOD_NOT_ALLOWED => {
                !rules.guards_default_service && !pattern::is_routed(request)
                    || response.headers().contains_key(header::ALLOW) && !guard.is_touched() && !guard.has_waited()
            }
            _ => false,
        },
    };
    if no_handler { Origin::NoHandler } else { Origin::Handler }
}

/// Infers the origin of an inner middleware's error. The error is a refusal, unless the middleware may have failed
/// during or after the handler, as a time limit does. An effect waits for something, and a handler with an effect has
/// usually read its body or taken its claim. If the status says "failed", one of these two signs is enough; otherwise
/// both are needed.
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

/// Returns whether actix-web's extractors return this error, but handlers do too, after their effect: for example when
/// the response of a provider breaks off or does not parse.
fn is_shared_with_handlers(error: &Error) -> bool {
    is::<PayloadError>(error)
        || is::<QueryPayloadError>(error)
        || is::<ReadlinesError>(error)
        || is::<ContentTypeError>(error)
        || is::<ParseError>(error)
}

/// Returns whether such an error comes from an extractor. An effect waits for something. An extractor waits only for
/// the body, and for nothing if the guard has already read it.
fn is_of_extractor(error: &Error, guard: &RequestGuard) -> bool {
    // A handler that has the whole body has no reason to report that it is unreadable.
    !guard.has_waited() && (!is::<PayloadError>(error) || guard.holds_body() && !guard.is_body_read())
}

/// Returns whether only actix-web's own extractors return this error, for a request that they cannot read.
pub(super) fn is_of_actix_extractors(error: &Error) -> bool {
    // A handler's `Json` or `Form` response that cannot be serialized has these types too, but then the handler has
    // run.
    if matches!(error.as_error(), Some(JsonPayloadError::Serialize(_)))
        || matches!(error.as_error(), Some(UrlencodedError::Serialize(_)))
    {
        return false;
    }
    is::<JsonPayloadError>(error)
        || is::<UrlencodedError>(error)
        || is::<PathError>(error)
        || is::<<PeerAddr as FromRequest>::Error>(error)
        // Without a `PathConfig`, `Path` wraps only the deserializer's error.
        || error.as_error::<InternalError<serde::de::value::Error>>().is_some()
        || is_text_of_actix(error)
}

/// Detects errors of four actix-web extractors (`String`, `Bytes`, `Data`, `ReqData`), which return a text without a
/// type of its own.
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

/// Combines a method and a pattern into one name.
pub(super) fn route_name(method: &Method, pattern: &str) -> String {
    format!("{method} {pattern}")
}
