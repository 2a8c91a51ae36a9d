//! The settings behind the middleware's builder: which requests are guarded, and how.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use actix_web::dev::ServiceRequest;
use actix_web::error::Error as ActixError;
use actix_web::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::{HttpRequest, HttpResponse, ResponseError as _};
use parking_lot::RwLock;

use super::disposition::{is_of_actix_extractors, route_name};
use super::pattern::{self, Definitions, Routed, RulePattern};
use super::{
    FingerprintStrategy, Idempotency, IdempotencyError, KeyStrategy, RecordedResponse, ResponseDisposition, Scope,
    settings,
};
use crate::{CallPolicy, OnAbandoned, OnInProgress, OnStoreFailure};

type DecideDisposition = dyn Fn(StatusCode, &HeaderMap) -> ResponseDisposition + Send + Sync;
type Answer = dyn Fn(&IdempotencyError) -> HttpResponse + Send + Sync;
type IsExtractorError = dyn Fn(&ActixError) -> bool + Send + Sync;
type Sanitize = dyn Fn(&mut RecordedResponse) + Send + Sync;
type Refresh = dyn Fn(&HttpRequest, HttpResponse) -> HttpResponse + Send + Sync;

/// The rules of a route. [`Idempotency`] holds the rules of all routes, and [`Idempotency::route`] changes them for
/// one.
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
    pub(super) methods: Arc<[Method]>,
    pub(super) header: HeaderName,
    pub(super) key: KeyStrategy,
    pub(super) fingerprint: FingerprintStrategy,
    pub(super) request_limit: usize,
    pub(super) request_timeout: Duration,
    pub(super) response_limit: usize,
    pub(super) disposition: Disposition,
    policy: PolicyChanges,
}

/// The differences from the engine handle's policy.
#[derive(Clone, Copy, Debug, Default)]
struct PolicyChanges {
    retention: Option<Duration>,
    on_in_progress: Option<OnInProgress>,
    on_abandoned: Option<OnAbandoned>,
    on_store_failure: Option<OnStoreFailure>,
    run_limit: Option<Duration>,
}

#[derive(Clone)]
pub(super) struct Disposition(Arc<DecideDisposition>);

impl Disposition {
    /// Returns the user's decision. If the closure panics, there is no decision, and the key is held.
    pub(super) fn of(&self, status: StatusCode, headers: &HeaderMap) -> ResponseDisposition {
        settings::caught("disposition", || (self.0)(status, headers)).unwrap_or(ResponseDisposition::Indeterminate)
    }
}

impl fmt::Debug for Disposition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Disposition")
    }
}

impl Default for RouteRules {
    fn default() -> Self {
        Self {
            required: false,
            methods: Arc::new([Method::POST, Method::PATCH]),
            header: Idempotency::DEFAULT_HEADER,
            key: KeyStrategy::default(),
            fingerprint: FingerprintStrategy::default(),
            request_limit: 1 << 20,
            request_timeout: Duration::from_secs(30),
            response_limit: 1 << 20,
            disposition: Disposition(Arc::new(|status, _| ResponseDisposition::by_status(status))),
            policy: PolicyChanges::default(),
        }
    }
}

impl RouteRules {
    /// Requires a key: the guard answers 400 to a request without one.
    pub fn required(mut self) -> Self {
        self.required = true;
        self
    }

    /// Lets a request without a key run unguarded. The default.
    pub fn optional(mut self) -> Self {
        self.required = false;
        self
    }

    /// Sets the guarded methods. Default: `POST` and `PATCH`, which HTTP itself does not define as idempotent.
    pub fn methods(mut self, methods: impl IntoIterator<Item = Method>) -> Self {
        self.methods = methods.into_iter().collect();
        self
    }

    /// Sets the header that carries the key. Default: `Idempotency-Key`.
    pub fn header(mut self, name: HeaderName) -> Self {
        self.header = name;
        self
    }

    /// Sets where the key comes from. Default: [`KeyStrategy::Header`].
    pub fn key(mut self, strategy: KeyStrategy) -> Self {
        self.key = strategy;
        self
    }

    /// Sets what a retry must have in common with the first request. Default: [`FingerprintStrategy::Full`].
    pub fn fingerprint(mut self, strategy: FingerprintStrategy) -> Self {
        self.fingerprint = strategy;
        self
    }

    /// Sets the largest request body, in bytes, that the guard reads. It answers 413 to a larger one. Default: 1 MiB.
    /// The limit does not apply to a body that streams to the handler unread.
    pub fn request_limit(mut self, bytes: usize) -> Self {
        self.request_limit = bytes;
        self
    }

    /// Sets how long the guard waits for the whole body of a request. It answers 408 to a slower request, and nothing
    /// runs. Default: 30 seconds. The limit does not apply to a body that streams to the handler unread.
    pub fn request_timeout(mut self, limit: Duration) -> Self {
        self.request_timeout = limit;
        self
    }

    /// Sets the largest response body, in bytes, that is kept. A larger one, or a stream, reaches its first caller
    /// complete, and the guard answers retries with 409 (`outcome-not-kept`). Default: 1 MiB.
    pub fn response_limit(mut self, bytes: usize) -> Self {
        self.response_limit = bytes;
        self
    }

    /// Sets what an answer means for its key, by status and headers. Default: [`ResponseDisposition::by_status`].
    ///
    /// A panic of the handler counts as a 500 without headers, whatever the guard's error handler answers. If the
    /// closure itself panics, the key becomes indeterminate.
    ///
    /// ```
    /// use oncekey::web::{ResponseDisposition, RouteRules};
    ///
    /// // This provider answers 502 only before it has charged.
    /// let rules = RouteRules::default().disposition(|status, _headers| match status.as_u16() {
    ///     502 => ResponseDisposition::Release,
    ///     _ => ResponseDisposition::by_status(status),
    /// });
    /// # let _ = rules;
    /// ```
    pub fn disposition(
        mut self,
        decide: impl Fn(StatusCode, &HeaderMap) -> ResponseDisposition + Send + Sync + 'static,
    ) -> Self {
        self.disposition = Disposition(Arc::new(decide));
        self
    }

    /// Sets how long responses are kept. Default: the engine handle's setting.
    ///
    /// # Panics
    /// If it is zero: every retry would run the handler again.
    pub fn retention(mut self, retention: Duration) -> Self {
        assert!(!retention.is_zero(), "the retention is zero: every retry would run the handler again");
        self.policy.retention = Some(retention);
        self
    }

    /// Sets what happens to a request whose key is in progress. Default: the engine handle's setting.
    pub fn on_in_progress(mut self, on_in_progress: OnInProgress) -> Self {
        self.policy.on_in_progress = Some(on_in_progress);
        self
    }

    /// Sets what happens to the key when the process dies, when the handler panics, and when its answer does not say
    /// whether its effect happened. Default: the engine handle's setting. If neither is set,
    /// [`Rerun`](OnAbandoned::Rerun) applies to a handler that takes a [`Transaction`](super::Transaction), and
    /// [`Hold`](OnAbandoned::Hold) to any other.
    pub fn on_abandoned(mut self, on_abandoned: OnAbandoned) -> Self {
        self.policy.on_abandoned = Some(on_abandoned);
        self
    }

    /// Sets what happens to a request when the store is unavailable. Default: the engine handle's setting.
    pub fn on_store_failure(mut self, on_store_failure: OnStoreFailure) -> Self {
        self.policy.on_store_failure = Some(on_store_failure);
        self
    }

    /// Sets how long a handler may run: see [`CallPolicy::run_limit`]. Default: the engine handle's setting.
    ///
    /// # Panics
    /// If it is zero: no handler could run.
    pub fn run_limit(mut self, limit: Duration) -> Self {
        assert!(!limit.is_zero(), "the run limit is zero: no handler could run");
        self.policy.run_limit = Some(limit);
        self
    }

    pub(super) fn policy(&self, of_engine: &CallPolicy) -> CallPolicy {
        let changes = self.policy;
        CallPolicy {
            retention: changes.retention.unwrap_or(of_engine.retention),
            on_in_progress: changes.on_in_progress.unwrap_or(of_engine.on_in_progress),
            on_abandoned: changes.on_abandoned.or(of_engine.on_abandoned),
            on_store_failure: changes.on_store_failure.unwrap_or(of_engine.on_store_failure),
            run_limit: changes.run_limit.or(of_engine.run_limit),
            ..*of_engine
        }
    }
}

/// All settings of a guard.
#[derive(Clone)]
pub(super) struct Rules {
    pub(super) scope: Scope,
    pub(super) kept_headers: Vec<HeaderName>,
    answer: Arc<Answer>,
    pub(super) extractor_errors: Vec<Arc<IsExtractorError>>,
    pub(super) sanitizer: Sanitizer,
    on_replay: Option<Arc<Refresh>>,
    pub(super) guards_default_service: bool,
    pub(super) everywhere: RouteRules,
    pub(super) routes: Vec<(RulePattern, RouteRules)>,
    pub(super) transactional: Arc<Transactional>,
    definitions: Arc<Definitions>,
}

impl Rules {
    pub(super) fn new(scope: Scope, answer: Arc<Answer>) -> Self {
        Self {
            scope,
            kept_headers: default_kept_headers(),
            answer,
            extractor_errors: Vec::new(),
            sanitizer: Sanitizer::default(),
            on_replay: None,
            guards_default_service: false,
            everywhere: RouteRules::default(),
            routes: Vec::new(),
            transactional: Arc::default(),
            definitions: Arc::default(),
        }
    }

    /// Returns whether any rules guard this method. The guard does not look up requests with other methods.
    pub(super) fn guard_method(&self, method: &Method) -> bool {
        let mut all = std::iter::once(&self.everywhere).chain(self.routes.iter().map(|(_, rules)| rules));
        all.any(|rules| rules.methods.contains(method))
    }

    /// Finds the rules of a request: the first whose pattern matches its route. Returns `None` for the rules of all
    /// routes.
    pub(super) fn find(&self, request: &ServiceRequest) -> Option<usize> {
        if self.routes.is_empty() {
            return None;
        }
        let pattern = pattern::of_request(request);
        let routed = Routed::new(pattern.as_deref(), request.match_info(), &self.definitions);
        self.routes.iter().position(|(route, _)| route.applies(&routed))
    }

    pub(super) fn at(&self, found: Option<usize>) -> &RouteRules {
        found.and_then(|at| self.routes.get(at)).map_or(&self.everywhere, |(_, rules)| rules)
    }

    pub(super) fn set_error_handler(&mut self, answer: Arc<Answer>) {
        self.answer = answer;
    }

    pub(super) fn set_on_replay(&mut self, refresh: Arc<Refresh>) {
        self.on_replay = Some(refresh);
    }

    /// Returns the user's response to one of the guard's errors, or the default if the user's closure panics.
    pub(super) fn respond(&self, error: &IdempotencyError) -> HttpResponse {
        settings::caught("error handler", || (self.answer)(error)).unwrap_or_else(|| error.error_response())
    }

    /// Returns the replay of a stored response, as the user's closure changes it, or unchanged if the closure panics.
    pub(super) fn refreshed(&self, request: &HttpRequest, recorded: RecordedResponse) -> HttpResponse {
        let Some(refresh) = &self.on_replay else { return recorded.into_replay() };
        let replay = recorded.clone().into_replay();
        settings::caught("on_replay closure", || refresh(request, replay)).unwrap_or_else(|| recorded.into_replay())
    }

    /// Returns whether the error means that an extractor could not read its request.
    pub(super) fn is_extractor_error(&self, error: &ActixError) -> bool {
        is_of_actix_extractors(error) || self.extractor_errors.iter().any(|is| is(error))
    }
}

/// The user's change to a response before it is stored.
#[derive(Clone, Default)]
pub(super) struct Sanitizer(pub(super) Option<Arc<Sanitize>>);

impl Sanitizer {
    /// Returns what to store of a response. Returns `None`, so that nothing sensitive is stored, in three cases: the
    /// user's closure panicked, it cannot read the body because the body is encoded, or it set a status below 200,
    /// which is not an answer.
    pub(super) fn sanitized(&self, mut recorded: RecordedResponse) -> Option<RecordedResponse> {
        let Some(sanitize) = &self.0 else { return Some(recorded) };
        let is_plain = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
        if recorded.headers().any(|(name, value)| *name == header::CONTENT_ENCODING && !is_plain(value)) {
            settings::report_once(
                "A response has a Content-Encoding, so the sanitizer cannot read its body. The guard does not keep such \
                 responses, and answers their retries with 409. Wrap the compressing middleware outside the guard.",
            );
            return None;
        }
        settings::caught("sanitizer", || sanitize(&mut recorded))?;
        if recorded.status().is_informational() {
            settings::report_once(
                "The sanitizer set a status below 200, which is no answer. The guard does not keep such responses, and \
                 answers their retries with 409.",
            );
            return None;
        }
        Some(recorded)
    }
}

/// The routes whose handlers take a [`Transaction`](super::Transaction), as far as requests have shown. Their claims
/// use [`OnAbandoned::Rerun`] from the start.
#[derive(Default)]
pub(super) struct Transactional {
    any: AtomicBool,
    /// By method and pattern.
    routes: RwLock<HashMap<String, Seen>>,
}

/// What the requests to one method and pattern have shown.
struct Seen {
    /// How many handlers have taken a transaction since the last one that took none.
    taken: u32,
    /// How many must take one before the guard expects it of the next.
    needed: u32,
}

impl Transactional {
    /// The factor by which `needed` grows after each handler that took none.
    const STEP: u32 = 16;

    /// Returns the name of the request's route, if the guard expects its handler to take a transaction.
    pub(super) fn expects(&self, request: &ServiceRequest) -> Option<String> {
        // Most applications have no such route, so this avoids the lookup.
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let name = route_name(request.method(), &pattern::of_request(request)?);
        self.is_expected(&name).then_some(name)
    }

    fn is_expected(&self, name: &str) -> bool {
        self.routes.read().get(name).is_some_and(|seen| seen.taken >= seen.needed)
    }

    /// Notes that the handler of this request took a transaction that was not expected.
    pub(super) fn learn(&self, request: &HttpRequest) {
        if let Some(pattern) = pattern::of_routed(request) {
            self.note_taken(route_name(request.method(), &pattern));
        }
    }

    fn note_taken(&self, name: String) {
        let mut routes = self.routes.write();
        let seen = routes.entry(name).or_insert(Seen { taken: 0, needed: 1 });
        seen.taken = seen.taken.saturating_add(1);
        self.any.store(true, Ordering::Release);
    }

    /// Notes that a handler took none although one was expected. Either route guards choose between two handlers there,
    /// or one handler works both ways. This request may be an exception, so the guard expects a transaction again after
    /// many requests that all took one.
    pub(super) fn unlearn(&self, name: &str) {
        if let Some(seen) = self.routes.write().get_mut(name) {
            seen.taken = 0;
            seen.needed = seen.needed.saturating_mul(Self::STEP);
        }
    }
}

/// The headers that a replay carries by default.
fn default_kept_headers() -> Vec<HeaderName> {
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
            .field("scope", &self.scope)
            .field("kept_headers", &self.kept_headers)
            .field("everywhere", &self.everywhere)
            .field("routes", &self.routes.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h10_a_route_that_was_unlearned_is_learned_again_by_more_evidence() {
        let routes = Transactional::default();
        let learned_after = |at_most: u32| {
            (1..=at_most).find(|_| {
                routes.note_taken("POST /pay".to_owned());
                routes.is_expected("POST /pay")
            })
        };
        assert!(!routes.is_expected("POST /pay"));
        assert_eq!(learned_after(10), Some(1));
        for needed in [16, 256, 4_096] {
            routes.unlearn("POST /pay");
            assert!(!routes.is_expected("POST /pay"));
            assert_eq!(learned_after(10_000), Some(needed));
        }
        assert!(!routes.is_expected("PUT /pay"));
    }

    #[test]
    fn h17_a_retention_or_a_run_limit_of_zero_is_reported_when_it_is_made() {
        let panics = |make: fn() -> RouteRules| std::panic::catch_unwind(make).is_err();
        assert!(panics(|| RouteRules::default().retention(Duration::ZERO)));
        assert!(panics(|| RouteRules::default().run_limit(Duration::ZERO)));
        assert!(!panics(|| RouteRules::default()
            .retention(Duration::from_millis(1))
            .run_limit(Duration::from_millis(1))));
    }
}
