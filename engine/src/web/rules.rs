//! What is guarded, and how: the settings behind the middleware's builder.

use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::dev::{ResourceDef, ServiceRequest};
use actix_web::http::header::{self, HeaderMap, HeaderName};
use actix_web::http::{Method, StatusCode};
use bytes::Bytes;

use super::{KeyStrategy, Refusal, ResponseFate};
use crate::{CallPolicy, Fingerprint, OnAbandoned, OnInProgress, OnStoreFailure};

type MakeScope = dyn Fn(&ServiceRequest) -> Result<String, actix_web::Error>;
type MakeFingerprint = dyn Fn(&ServiceRequest, &Bytes) -> Fingerprint;
type DecideFate = dyn Fn(StatusCode, &HeaderMap) -> ResponseFate;
type Answer = dyn Fn(&Refusal) -> HttpResponse;

/// What a retry must have in common with the first request.
///
/// ```
/// use oncekey::{Fingerprint, web::FingerprintStrategy};
///
/// // A field that each try sets anew is left out.
/// let asked = FingerprintStrategy::custom(|request, body| {
///     let mut order: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
///     order.as_object_mut().map(|fields| fields.remove("sent_at"));
///     Fingerprint::builder().field(request.path().as_bytes()).field(order.to_string().as_bytes()).finish()
/// });
/// # let _ = asked;
/// ```
#[derive(Clone, Default)]
pub enum FingerprintStrategy {
    /// Method, path, query and body. The default.
    #[default]
    Full,
    /// The body alone.
    BodyOnly,
    /// What this function makes of the request and its body.
    Custom(Rc<MakeFingerprint>),
}

impl FingerprintStrategy {
    /// A strategy of the user's own.
    pub fn custom(make: impl Fn(&ServiceRequest, &Bytes) -> Fingerprint + 'static) -> Self {
        Self::Custom(Rc::new(make))
    }

    pub(super) fn make(&self, request: &ServiceRequest, body: &Bytes) -> Fingerprint {
        match self {
            Self::Full => whole(request, body),
            Self::BodyOnly => Fingerprint::of(body),
            Self::Custom(make) => make(request, body),
        }
    }
}

impl fmt::Debug for FingerprintStrategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "Full",
            Self::BodyOnly => "BodyOnly",
            Self::Custom(_) => "Custom",
        })
    }
}

/// The fingerprint of the whole request.
pub(super) fn whole(request: &ServiceRequest, body: &Bytes) -> Fingerprint {
    Fingerprint::builder()
        .field(request.method().as_str().as_bytes())
        .field(request.path().as_bytes())
        .field(request.query_string().as_bytes())
        .field(if planted!(FingerprintWithoutTheBody) { b"" } else { body })
        .finish()
}

/// The rules of a route. [`Idempotency`](super::Idempotency) sets those of all routes, and
/// [`Idempotency::route`](super::Idempotency::route) those of one.
///
/// ```
/// use std::time::Duration;
/// use oncekey::web::RouteRules;
///
/// let rules = RouteRules::default().required().retention(Duration::from_secs(3_600));
/// # let _ = rules;
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct RouteRules {
    pub(super) required: bool,
    pub(super) methods: Rc<[Method]>,
    pub(super) key: KeyStrategy,
    pub(super) fingerprint: FingerprintStrategy,
    pub(super) request_limit: usize,
    pub(super) response_limit: usize,
    pub(super) fate: Fate,
    policy: PolicyChanges,
}

/// What differs from the engine handle's policy.
#[derive(Clone, Copy, Debug, Default)]
struct PolicyChanges {
    retention: Option<Duration>,
    on_in_progress: Option<OnInProgress>,
    on_abandoned: Option<OnAbandoned>,
    on_store_failure: Option<OnStoreFailure>,
}

#[derive(Clone)]
pub(super) struct Fate(pub(super) Rc<DecideFate>);

impl fmt::Debug for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fate")
    }
}

impl Default for RouteRules {
    fn default() -> Self {
        Self {
            required: false,
            methods: Rc::new([Method::POST, Method::PATCH]),
            key: KeyStrategy::default(),
            fingerprint: FingerprintStrategy::default(),
            request_limit: 1 << 20,
            response_limit: 1 << 20,
            fate: Fate(Rc::new(|status, _| ResponseFate::by_status(status))),
            policy: PolicyChanges::default(),
        }
    }
}

impl RouteRules {
    /// A request without a key is refused with 400.
    pub fn required(mut self) -> Self {
        self.required = true;
        self
    }

    /// A request without a key runs unguarded. The default.
    pub fn optional(mut self) -> Self {
        self.required = false;
        self
    }

    /// The methods that are guarded. Default: `POST` and `PATCH`, which HTTP does not make idempotent by itself.
    pub fn methods(mut self, methods: impl IntoIterator<Item = Method>) -> Self {
        self.methods = methods.into_iter().collect();
        self
    }

    /// Where the key comes from. Default: [`KeyStrategy::Header`].
    pub fn key(mut self, strategy: KeyStrategy) -> Self {
        self.key = strategy;
        self
    }

    /// What a retry must have in common with the first request. Default: [`FingerprintStrategy::Full`].
    pub fn fingerprint(mut self, strategy: FingerprintStrategy) -> Self {
        self.fingerprint = strategy;
        self
    }

    /// The largest body, in bytes, of a guarded request; a larger one is refused with 413. Default: 1 MiB.
    pub fn request_limit(mut self, bytes: usize) -> Self {
        self.request_limit = bytes;
        self
    }

    /// The largest body, in bytes, of a response that is kept. A larger one, and a stream, reaches its caller whole, and
    /// a retry is told that the outcome was not kept. Default: 1 MiB.
    pub fn response_limit(mut self, bytes: usize) -> Self {
        self.response_limit = bytes;
        self
    }

    /// What becomes of a key by its handler's response. Default: [`ResponseFate::by_status`].
    pub fn fate(mut self, decide: impl Fn(StatusCode, &HeaderMap) -> ResponseFate + 'static) -> Self {
        self.fate = Fate(Rc::new(decide));
        self
    }

    /// How long responses are kept. Default: the engine handle's.
    pub fn retention(mut self, retention: Duration) -> Self {
        self.policy.retention = Some(retention);
        self
    }

    /// What becomes of a request whose key another is working on. Default: the engine handle's.
    pub fn on_in_progress(mut self, on_in_progress: OnInProgress) -> Self {
        self.policy.on_in_progress = Some(on_in_progress);
        self
    }

    /// What a lapsed lease means. Default: the engine handle's.
    pub fn on_abandoned(mut self, on_abandoned: OnAbandoned) -> Self {
        self.policy.on_abandoned = Some(on_abandoned);
        self
    }

    /// What becomes of a request when the store can't be asked. Default: the engine handle's.
    pub fn on_store_failure(mut self, on_store_failure: OnStoreFailure) -> Self {
        self.policy.on_store_failure = Some(on_store_failure);
        self
    }

    pub(super) fn policy(&self, of_engine: &CallPolicy) -> CallPolicy {
        let changes = self.policy;
        CallPolicy {
            retention: changes.retention.unwrap_or(of_engine.retention),
            on_in_progress: changes.on_in_progress.unwrap_or(of_engine.on_in_progress),
            on_abandoned: changes.on_abandoned.or(of_engine.on_abandoned),
            on_store_failure: changes.on_store_failure.unwrap_or(of_engine.on_store_failure),
            ..*of_engine
        }
    }
}

/// Everything that the middleware was told.
#[derive(Clone)]
pub(super) struct Rules {
    pub(super) header: HeaderName,
    pub(super) scope: Rc<MakeScope>,
    pub(super) kept_headers: Vec<HeaderName>,
    pub(super) answer: Rc<Answer>,
    pub(super) everywhere: RouteRules,
    pub(super) routes: Vec<(ResourceDef, RouteRules)>,
}

impl Rules {
    /// The rules for a request: of the first route that matches its path, else those of all.
    pub(super) fn of(&self, request: &ServiceRequest) -> &RouteRules {
        let of_route = self.routes.iter().find(|(route, _)| route.is_match(request.path()));
        of_route.map_or(&self.everywhere, |(_, rules)| rules)
    }
}

/// The headers that a replay carries unless the user adds others.
pub(super) fn default_kept_headers() -> Vec<HeaderName> {
    vec![
        header::CONTENT_TYPE,
        header::CONTENT_LANGUAGE,
        header::CONTENT_ENCODING,
        header::CONTENT_DISPOSITION,
        header::CONTENT_LOCATION,
        header::LOCATION,
        header::ETAG,
        header::LAST_MODIFIED,
        header::CACHE_CONTROL,
        header::EXPIRES,
        header::VARY,
        header::LINK,
        header::ALLOW,
        header::RETRY_AFTER,
        header::WWW_AUTHENTICATE,
    ]
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rules")
            .field("header", &self.header)
            .field("kept_headers", &self.kept_headers)
            .field("everywhere", &self.everywhere)
            .field("routes", &self.routes.len())
            .finish_non_exhaustive()
    }
}
