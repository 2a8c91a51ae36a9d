//! The guard's own errors, which it returns as `application/problem+json`.

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderValue};
use actix_web::{HttpResponse, ResponseError};
use serde::Serialize;

use super::BadKey;
use crate::{Error, KeyError, KeyPart};

/// Why the guard neither ran the handler nor replayed a response.
///
/// Each error has a status and a stable `type` URI, which clients can match on:
///
/// | `type`, after `urn:oncekey:problem:` | status |
/// |---|---|
/// | `key-missing`, `key-invalid`, `scope-missing`, `scope-invalid` | 400 |
/// | `content-digest-missing`, `content-digest-invalid`, `request-unreadable` | 400 |
/// | `request-timeout` | 408 |
/// | `in-progress` | 409, `Retry-After` |
/// | `outcome-not-kept`, `indeterminate`, `claim-lost` | 409 |
/// | `request-too-large` | 413 |
/// | `mismatch` | 422 |
/// | `outcome-not-stored`, `record-unreadable`, `commit-refused`, `handler-panicked`, `internal` | 500 |
/// | `commit-unknown` | 503 |
/// | `store-unavailable`, `overloaded`, `shutting-down` | 503, `Retry-After` |
///
/// ```
/// use actix_web::ResponseError;
/// use oncekey::{Error, web::IdempotencyError};
///
/// let error = IdempotencyError::Engine(Error::Mismatch);
/// assert_eq!(error.status_code(), 422);
/// assert_eq!(error.problem_type(), "urn:oncekey:problem:mismatch");
/// ```
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum IdempotencyError {
    /// The route requires an idempotency key, and the request has none.
    #[error("this request needs an idempotency key, in its {0} header")]
    KeyMissing(String),
    /// The idempotency key is invalid.
    #[error("the idempotency key is invalid: {0}")]
    KeyInvalid(BadKey),
    /// The scope, or the key from a custom strategy, is not valid in a record's key. Both are derived from the request,
    /// so the client must change it.
    #[error("this request cannot be identified: {0}")]
    KeyRejected(#[from] KeyError),
    /// A closure in the guard's settings panicked before the handler ran.
    #[error("nothing ran: the guard's {0} panicked")]
    SettingPanicked(&'static str),
    /// The header that names the caller is missing.
    #[error("this request must name its caller, in its {0} header")]
    ScopeMissing(String),
    /// The header that names the caller is empty, or has several values.
    #[error("the header {0} must name exactly one caller")]
    ScopeInvalid(String),
    /// The route identifies requests by their `Content-Digest`, and the request has none.
    #[error("this request needs a Content-Digest header (RFC 9530)")]
    DigestMissing,
    /// The `Content-Digest` header has no digest that the guard accepts.
    #[error("the Content-Digest header has no valid sha-256 or sha-512 digest (RFC 9530)")]
    DigestInvalid,
    /// The request's body is over the limit.
    #[error("the request's body is over the limit of {0} bytes")]
    RequestTooLarge(usize),
    /// The request's body could not be read to its end.
    #[error("the request's body could not be read")]
    RequestUnreadable,
    /// The request's body did not arrive in time.
    #[error("the request's body did not arrive within {} seconds", .0.as_secs_f32())]
    RequestTimeout(std::time::Duration),
    /// The engine returned this error.
    #[error(transparent)]
    Engine(#[from] Error),
}

impl IdempotencyError {
    /// Returns the stable URI of this kind of problem.
    pub fn problem_type(&self) -> &'static str {
        self.describe().1
    }

    /// Returns the status, the type URI and the title.
    fn describe(&self) -> (StatusCode, &'static str, &'static str) {
        use StatusCode as S;
        match self {
            Self::KeyMissing(_) => (S::BAD_REQUEST, "urn:oncekey:problem:key-missing", "Idempotency key missing"),
            Self::KeyInvalid(_) => (S::BAD_REQUEST, "urn:oncekey:problem:key-invalid", "Idempotency key invalid"),
            Self::ScopeMissing(_) => (S::BAD_REQUEST, "urn:oncekey:problem:scope-missing", "Caller missing"),
            Self::ScopeInvalid(_) => (S::BAD_REQUEST, "urn:oncekey:problem:scope-invalid", "Caller invalid"),
            Self::DigestMissing => {
                (S::BAD_REQUEST, "urn:oncekey:problem:content-digest-missing", "Content-Digest missing")
            }
            Self::DigestInvalid => {
                (S::BAD_REQUEST, "urn:oncekey:problem:content-digest-invalid", "Content-Digest invalid")
            }
            Self::RequestTimeout(_) => {
                (S::REQUEST_TIMEOUT, "urn:oncekey:problem:request-timeout", "Request body too slow")
            }
            Self::RequestTooLarge(_) => {
                (S::PAYLOAD_TOO_LARGE, "urn:oncekey:problem:request-too-large", "Request too large")
            }
            Self::RequestUnreadable => {
                (S::BAD_REQUEST, "urn:oncekey:problem:request-unreadable", "Request body unreadable")
            }
            Self::KeyRejected(error) if is_of_scope(error) => {
                (S::BAD_REQUEST, "urn:oncekey:problem:scope-invalid", "Caller invalid")
            }
            Self::KeyRejected(_) => (S::BAD_REQUEST, "urn:oncekey:problem:key-invalid", "Idempotency key invalid"),
            Self::SettingPanicked(_) => (S::INTERNAL_SERVER_ERROR, "urn:oncekey:problem:internal", "Internal error"),
            Self::Engine(error) => describe_engine_error(error),
        }
    }

    fn retry_after(&self) -> Option<HeaderValue> {
        match self {
            // The other request may end at any moment. Its lease only bounds how long that takes.
            Self::Engine(Error::InProgress { .. } | Error::Overloaded { .. }) => Some(HeaderValue::from_static("1")),
            Self::Engine(error) if error.is_transient() => Some(HeaderValue::from_static("2")),
            _ => None,
        }
    }

    /// Returns the text for the client. The store's own text goes only to the log, because it may name hosts and files.
    fn detail(&self) -> String {
        match self {
            Self::Engine(Error::Store(error)) if error.is_transient() => {
                "Nothing ran. Retry when the idempotency store is available.".to_owned()
            }
            Self::Engine(Error::Store(_) | Error::Corrupt(_)) => {
                "Nothing ran: the record of this idempotency key cannot be read.".to_owned()
            }
            Self::Engine(Error::CommitUnknown(_)) => {
                "It is not known whether the request was carried out. Retry with the same idempotency key.".to_owned()
            }
            Self::Engine(Error::OutcomeUnreadable(_)) => {
                "The request was carried out before, but its outcome cannot be read. It does not run again.".to_owned()
            }
            Self::Engine(Error::CommitRefused(_)) => {
                "The database refused what the request wrote, and rolled it back.".to_owned()
            }
            Self::Engine(Error::OutcomeNotStored(_)) => {
                "The request was carried out, but its outcome could not be stored.".to_owned()
            }
            Self::Engine(Error::NoSuchTransaction { .. } | Error::Unserializable(_) | Error::Fingerprint(_))
            | Self::SettingPanicked(_) => "Nothing ran: the server's settings cannot work for this request.".to_owned(),
            other => other.to_string(),
        }
    }
}

fn is_of_scope(error: &KeyError) -> bool {
    use KeyError::{ControlCharacter, Empty, TooLong};
    matches!(error, Empty(KeyPart::Scope) | TooLong(KeyPart::Scope, _) | ControlCharacter(KeyPart::Scope))
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
        Error::Store(error) if error.is_transient() => {
            (S::SERVICE_UNAVAILABLE, "urn:oncekey:problem:store-unavailable", "Idempotency store unavailable")
        }
        Error::Store(_) | Error::Corrupt(_) | Error::OutcomeUnreadable(_) => {
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
        Error::CommitRefused(_) => (S::INTERNAL_SERVER_ERROR, "urn:oncekey:problem:commit-refused", "Commit refused"),
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

impl ResponseError for IdempotencyError {
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
        // A struct of strings and a number always serializes.
        response.content_type("application/problem+json").body(serde_json::to_vec(&problem).unwrap_or_default())
    }
}

/// A problem as RFC 9457 defines it.
#[derive(Serialize)]
struct Problem {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    detail: String,
}
