//! The scope that owns a request's key.

use std::fmt;
use std::sync::Arc;

use actix_web::dev::ServiceRequest;
use actix_web::http::header::HeaderName;
use sha2::{Digest as _, Sha256};

use super::guard::TurnedAway;
use super::{IdempotencyError, settings};

type ReadScope = dyn Fn(&ServiceRequest) -> Result<String, actix_web::Error> + Send + Sync;

/// The scope that all callers share with [`Scope::shared`].
const SHARED: &str = "http";

/// Names the caller whose keys a request uses: a tenant, a user, an API key.
///
/// Two scopes never share a record, so no caller gets another caller's response. That is why
/// [`Idempotency::new`](super::Idempotency::new) requires a scope. A guard that put all callers into one scope would
/// replay `alice`'s response to `bob` if both chose the key `1`.
///
/// # A scope outlives a credential
/// A retry must have the same scope as its first request. **Do not use a bearer token that is refreshed as a scope.**
/// After the refresh, the same caller has another scope, the key is new, and the operation runs again. A scope from
/// `Authorization` or from a session cookie is safe only if its value never changes between a request and its retry.
/// Use the token's subject instead, after an authentication layer outside the guard has verified it:
///
/// ```
/// # use oncekey::{Engine, web::{Idempotency, Scope}};
/// # use oncekey_backends::MemoryBackend;
/// use actix_web::{HttpMessage, error::ErrorUnauthorized};
///
/// /// The verified claims of the caller's token: your authentication layer puts them into the request's extensions.
/// struct TokenClaims { subject: String }
///
/// let scope = Scope::from_request(|request| {
///     let extensions = request.extensions();
///     let claims = extensions.get::<TokenClaims>().ok_or_else(|| ErrorUnauthorized("who are you?"))?;
///     Ok(claims.subject.clone())
/// });
/// # let engine = Engine::builder(MemoryBackend::new()).start()?;
/// let guard = Idempotency::new(engine, scope);
/// # Ok::<(), oncekey::StartError>(())
/// ```
///
/// A guard without a scope does not compile:
///
/// ```compile_fail,E0061
/// # use oncekey::{Engine, web::Idempotency};
/// # use oncekey_backends::MemoryBackend;
/// # let engine = Engine::builder(MemoryBackend::new()).start().unwrap();
/// let guard = Idempotency::new(engine);
/// ```
#[derive(Clone)]
pub struct Scope(Source);

#[derive(Clone)]
enum Source {
    Shared,
    Header { name: HeaderName, absent: Option<Arc<str>> },
    Request(Arc<ReadScope>),
}

impl Scope {
    /// Takes the scope from a header, such as `X-Api-Key`. The guard uses a digest of the value, because the scope is
    /// stored and logged and the value is often a credential.
    ///
    /// If the header is missing, empty, or has two values, the guard answers 400, and nothing runs.
    /// [`header_or`](Self::header_or) accepts requests without the header.
    ///
    /// ```
    /// # use oncekey::web::Scope;
    /// let scope = Scope::header("X-Api-Key");
    /// ```
    ///
    /// # Panics
    /// If `name` is not a valid header name.
    pub fn header(name: &'static str) -> Self {
        Self(Source::Header { name: header_name(name), absent: None })
    }

    /// Like [`header`](Self::header), but uses `absent` as the scope of all requests without the header. These requests
    /// share one scope, so use it only for callers that may see each other's responses.
    ///
    /// ```
    /// # use oncekey::web::Scope;
    /// let scope = Scope::header_or("X-Api-Key", "public");
    /// ```
    ///
    /// # Panics
    /// If `name` is not a valid header name.
    pub fn header_or(name: &'static str, absent: &str) -> Self {
        Self(Source::Header { name: header_name(name), absent: Some(absent.into()) })
    }

    /// Takes the scope from the request: from its path, or from its extensions, as an authentication layer outside the
    /// guard set them. If the closure returns an error, the guard answers with that error unchanged, and nothing runs.
    ///
    /// The scope is stored and logged as is, so it must not be a credential. The guard answers 400 to a scope that is
    /// empty, longer than [`MAX_PART_LEN`](crate::MAX_PART_LEN) bytes, or contains a control character.
    ///
    /// ```
    /// # use oncekey::web::Scope;
    /// use actix_web::error::ErrorNotFound;
    ///
    /// let scope = Scope::from_request(|request| {
    ///     // The decoded path, which the router matches: `/%61da/pay` belongs to the tenant `ada` too.
    ///     let path = request.match_info().as_str();
    ///     let tenant = path.split('/').nth(1).filter(|tenant| !tenant.is_empty());
    ///     tenant.map(str::to_owned).ok_or_else(|| ErrorNotFound("no such tenant"))
    /// });
    /// ```
    pub fn from_request(
        read: impl Fn(&ServiceRequest) -> Result<String, actix_web::Error> + Send + Sync + 'static,
    ) -> Self {
        Self(Source::Request(Arc::new(read)))
    }

    /// Uses one scope for all callers. **Anyone who knows a key gets its response.** Use it if there is one caller, or
    /// if the keys are secret and unguessable.
    ///
    /// ```
    /// # use oncekey::web::Scope;
    /// let scope = Scope::shared();
    /// ```
    pub fn shared() -> Self {
        Self(Source::Shared)
    }

    pub(super) fn of(&self, request: &ServiceRequest) -> Result<String, TurnedAway> {
        match &self.0 {
            Source::Shared => Ok(SHARED.to_owned()),
            Source::Request(read) => match settings::caught("scope", || read(request)) {
                Some(scope) => scope.map_err(TurnedAway::ByScope),
                None => Err(IdempotencyError::SettingPanicked("scope").into()),
            },
            Source::Header { name, absent } => {
                let mut values = request.headers().get_all(name);
                let Some(value) = values.next() else {
                    return match absent {
                        Some(absent) => Ok(absent.to_string()),
                        None => Err(IdempotencyError::ScopeMissing(name.to_string()).into()),
                    };
                };
                if values.next().is_some() || value.is_empty() {
                    return Err(IdempotencyError::ScopeInvalid(name.to_string()).into());
                }
                let mut digest = Sha256::new();
                digest.update((value.len() as u64).to_le_bytes());
                digest.update(value.as_bytes());
                // 128 bits are enough to keep the digests of two callers from colliding.
                let digest: String = digest.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
                Ok(format!("{name}-{digest}"))
            }
        }
    }

    /// Returns the header if it usually carries a credential that is refreshed.
    pub(super) fn refreshed_header(&self) -> Option<&HeaderName> {
        use actix_web::http::header::{AUTHORIZATION, COOKIE};
        match &self.0 {
            Source::Header { name, .. } if [AUTHORIZATION, COOKIE].contains(name) => Some(name),
            _ => None,
        }
    }
}

#[expect(clippy::expect_used, reason = "documented: a mistake in the program's text, found at the first start")]
fn header_name(name: &'static str) -> HeaderName {
    HeaderName::from_bytes(name.as_bytes()).expect("the name of the scope's header is valid")
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::Shared => f.write_str("Shared"),
            Source::Header { name, absent } => {
                f.debug_struct("Header").field("name", name).field("absent", absent).finish()
            }
            Source::Request(_) => f.write_str("Request"),
        }
    }
}
