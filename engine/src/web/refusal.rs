//! What the middleware answers when it neither runs nor replays, as `application/problem+json`.

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderValue};
use actix_web::{HttpResponse, ResponseError};
use serde::Serialize;

use super::BadKey;
use crate::Error;

/// Why a request was refused.
///
/// Each has a status and a stable `type` URI that clients can match on:
///
/// | `type`, after `urn:oncekey:problem:` | status |
/// |---|---|
/// | `key-missing`, `key-invalid` | 400 |
/// | `in-progress` | 409, `Retry-After` |
/// | `outcome-not-kept`, `indeterminate`, `claim-lost` | 409 |
/// | `request-too-large` | 413 |
/// | `mismatch` | 422 |
/// | `outcome-not-stored`, `record-unreadable`, `handler-panicked`, `internal` | 500 |
/// | `store-unavailable`, `overloaded`, `shutting-down` | 503, `Retry-After` |
///
/// ```
/// use actix_web::ResponseError;
/// use oncekey::{Error, web::Refusal};
///
/// let refusal = Refusal::Engine(Error::Mismatch);
/// assert_eq!(refusal.status_code(), 422);
/// assert_eq!(refusal.problem_type(), "urn:oncekey:problem:mismatch");
/// ```
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The route requires an idempotency key, and the request has none.
    #[error("this request needs an idempotency key, in its {0} header")]
    KeyMissing(String),
    /// The idempotency key is not one.
    #[error("the idempotency key is invalid: {0}")]
    KeyInvalid(BadKey),
    /// The scope or the key that the application made is not fit to name a record.
    #[error("the application made no valid key: {0}")]
    KeyUnfit(#[from] crate::KeyError),
    /// The request's body is over the limit.
    #[error("the request's body is over the limit of {0} bytes")]
    RequestTooLarge(usize),
    /// The request's body could not be read to its end.
    #[error("the request's body could not be read")]
    RequestUnreadable,
    /// The engine's reason.
    #[error(transparent)]
    Engine(#[from] Error),
}

impl Refusal {
    /// The stable URI of the kind of problem.
    pub fn problem_type(&self) -> &'static str {
        self.describe().1
    }

    /// Status, type and title.
    fn describe(&self) -> (StatusCode, &'static str, &'static str) {
        use StatusCode as S;
        match self {
            Self::KeyMissing(_) => (S::BAD_REQUEST, "urn:oncekey:problem:key-missing", "Idempotency key missing"),
            Self::KeyInvalid(_) => (S::BAD_REQUEST, "urn:oncekey:problem:key-invalid", "Idempotency key invalid"),
            Self::RequestTooLarge(_) => {
                (S::PAYLOAD_TOO_LARGE, "urn:oncekey:problem:request-too-large", "Request too large")
            }
            Self::RequestUnreadable => {
                (S::BAD_REQUEST, "urn:oncekey:problem:request-unreadable", "Request body unreadable")
            }
            Self::KeyUnfit(_) => (S::INTERNAL_SERVER_ERROR, "urn:oncekey:problem:internal", "Internal error"),
            Self::Engine(error) => describe_engine_error(error),
        }
    }

    fn retry_after(&self) -> Option<HeaderValue> {
        match self {
            // The other may be done at any moment; its lease says only when it must be.
            Self::Engine(Error::InProgress { .. } | Error::Overloaded { .. }) => Some(HeaderValue::from_static("1")),
            Self::Engine(error) if error.is_passing() => Some(HeaderValue::from_static("2")),
            _ => None,
        }
    }

    /// What the client is told. A store's own words are for the log: they may name hosts and files.
    fn detail(&self) -> String {
        match self {
            Self::Engine(Error::Store(error)) if error.is_passing() => {
                "The idempotency store can't be asked at the moment. Nothing was run: retry later.".to_owned()
            }
            Self::Engine(Error::Store(_) | Error::Corrupt(_)) => {
                "What is stored under this idempotency key can't be read. Nothing was run.".to_owned()
            }
            Self::Engine(Error::CommitUnknown(_)) => {
                "It is not known whether the request was carried out. Retry with the same idempotency key.".to_owned()
            }
            Self::Engine(Error::OutcomeNotStored(_)) => {
                "The request was carried out, but its outcome could not be stored.".to_owned()
            }
            Self::Engine(Error::NoSuchTransaction { .. } | Error::Unserializable(_) | Error::Fingerprint(_))
            | Self::KeyUnfit(_) => "The server is set up wrongly for this request.".to_owned(),
            other => other.to_string(),
        }
    }
}

fn describe_engine_error(error: &Error) -> (StatusCode, &'static str, &'static str) {
    use StatusCode as S;
    match error {
        Error::InProgress { .. } => (S::CONFLICT, "urn:oncekey:problem:in-progress", "Request in progress"),
        Error::Mismatch => {
            (S::UNPROCESSABLE_ENTITY, "urn:oncekey:problem:mismatch", "Idempotency key used for a different request")
        }
        Error::Indeterminate { .. } => {
            (S::CONFLICT, "urn:oncekey:problem:indeterminate", "Outcome of an earlier request unknown")
        }
        Error::OutcomeNotKept => (S::CONFLICT, "urn:oncekey:problem:outcome-not-kept", "Outcome not kept"),
        Error::ClaimLost => (S::CONFLICT, "urn:oncekey:problem:claim-lost", "Claim lost to another request"),
        Error::Store(error) if error.is_passing() => {
            (S::SERVICE_UNAVAILABLE, "urn:oncekey:problem:store-unavailable", "Idempotency store unavailable")
        }
        Error::Store(_) | Error::Corrupt(_) => {
            (S::INTERNAL_SERVER_ERROR, "urn:oncekey:problem:record-unreadable", "Stored record unreadable")
        }
        Error::Overloaded { .. } => {
            (S::SERVICE_UNAVAILABLE, "urn:oncekey:problem:overloaded", "Idempotency engine overloaded")
        }
        Error::ShuttingDown | Error::Stopped => {
            (S::SERVICE_UNAVAILABLE, "urn:oncekey:problem:shutting-down", "Server shutting down")
        }
        Error::CommitUnknown(_) => {
            (S::SERVICE_UNAVAILABLE, "urn:oncekey:problem:commit-unknown", "Outcome of this request unknown")
        }
        Error::OutcomeNotStored(_) => {
            (S::INTERNAL_SERVER_ERROR, "urn:oncekey:problem:outcome-not-stored", "Outcome not stored")
        }
        Error::Panicked => {
            (S::INTERNAL_SERVER_ERROR, "urn:oncekey:problem:handler-panicked", "Internal error in the handler")
        }
        Error::Unserializable(_) | Error::Fingerprint(_) | Error::NoSuchTransaction { .. } => {
            (S::INTERNAL_SERVER_ERROR, "urn:oncekey:problem:internal", "Internal error")
        }
    }
}

impl ResponseError for Refusal {
    fn status_code(&self) -> StatusCode {
        self.describe().0
    }

    fn error_response(&self) -> HttpResponse {
        let (status, problem_type, title) = self.describe();
        let problem = Problem { r#type: problem_type, title, status: status.as_u16(), detail: self.detail() };
        let mut response = HttpResponse::build(status);
        if let Some(after) = self.retry_after() {
            response.insert_header((header::RETRY_AFTER, after));
        }
        // A struct of strings and a number: it always serializes.
        response.content_type("application/problem+json").body(serde_json::to_vec(&problem).unwrap_or_default())
    }
}

/// A problem as RFC 9457 has it.
#[derive(Serialize)]
struct Problem {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    detail: String,
}
