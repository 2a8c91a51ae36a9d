//! The middleware and its builder.

use std::fmt;
use std::future::{Ready, ready};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix_web::body::{EitherBody, MessageBody};
use actix_web::dev::{Service, ServiceRequest, ServiceResponse, Transform, forward_ready};
use actix_web::http::header::{HeaderMap, HeaderName};
use actix_web::http::{Method, StatusCode};
use actix_web::{HttpRequest, HttpResponse, ResponseError};
use futures_util::future::{Either, FutureExt as _, LocalBoxFuture, Map};

use super::guard::{Guard, is_guarded};
use super::pattern::{RulePattern, Unrouted};
use super::rules::{Rules, Sanitizer};
use super::settings::{self, SettingProblem};
use super::{
    FingerprintStrategy, IdempotencyError, KeyStrategy, RecordedResponse, ResponseDisposition, RouteRules, Scope,
};
use crate::{Engine, OnAbandoned, OnInProgress, OnStoreFailure};

/// Middleware that makes routes idempotent. See the [module](super) for what it answers.
///
/// Its methods set the rules of all routes, and [`route`](Self::route) changes them for one route. It is `Clone` and
/// `Send`: build it once, outside the factory of `HttpServer`, and wrap a clone in each worker.
///
/// ```
/// use std::time::Duration;
/// use actix_web::{App, HttpResponse, HttpServer, web};
/// use oncekey::{Engine, OnInProgress, web::{Idempotency, Scope}};
/// use oncekey_backends::MemoryBackend;
///
/// let engine = Engine::builder(MemoryBackend::new()).start()?;
/// let guard = Idempotency::new(engine, Scope::header("X-Api-Key"))
///     .required()
///     .on_in_progress(OnInProgress::Wait(Duration::from_secs(10)))
///     .route("/echo", |rules| rules.optional());
/// let server = HttpServer::new(move || {
///     App::new().wrap(guard.clone()).route("/orders", web::post().to(HttpResponse::Created))
/// });
/// # Ok::<(), oncekey::StartError>(())
/// ```
#[derive(Clone)]
#[must_use]
pub struct Idempotency {
    engine: Engine,
    rules: Rules,
}

impl Idempotency {
    /// The header that the IETF draft and nearly every API use.
    pub const DEFAULT_HEADER: HeaderName = HeaderName::from_static("idempotency-key");

    /// Creates a guard with the default rules. `scope` names the caller whose keys a request uses, so that no caller
    /// gets another caller's response. Calls follow the policies of this engine handle.
    pub fn new(engine: Engine, scope: Scope) -> Self {
        Self { engine, rules: Rules::new(scope, Arc::new(|error| error.error_response())) }
    }

    /// See [`RouteRules::header`].
    pub fn header(self, name: HeaderName) -> Self {
        self.everywhere(|rules| rules.header(name))
    }

    /// Lets replays carry this header too. By default, replays carry `Content-Type`, `-Language`, `-Encoding`,
    /// `-Disposition` and `-Location`, `Location`, `ETag`, `Last-Modified`, `Cache-Control`, `Expires`, `Vary`, `Link`,
    /// `Allow`, `Retry-After` and `WWW-Authenticate`.
    ///
    /// Replays never carry `Set-Cookie`, `Date`, `Content-Length` or hop-by-hop headers.
    pub fn keep_header(mut self, name: HeaderName) -> Self {
        self.rules.kept_headers.push(name);
        self
    }

    /// Sets the function that builds the responses of the guard's own errors. Default: `application/problem+json`, as
    /// [`IdempotencyError`] describes. The function chooses only the response and never affects the key. If it panics,
    /// the guard sends the default response.
    ///
    /// ```
    /// # use oncekey::{Engine, web::{Idempotency, Scope}};
    /// # use oncekey_backends::MemoryBackend;
    /// use actix_web::{HttpResponse, ResponseError};
    ///
    /// # let engine = Engine::builder(MemoryBackend::new()).start()?;
    /// let guard = Idempotency::new(engine, Scope::shared())
    ///     .error_handler(|error| HttpResponse::build(error.status_code()).body(error.to_string()));
    /// # Ok::<(), oncekey::StartError>(())
    /// ```
    pub fn error_handler(mut self, answer: impl Fn(&IdempotencyError) -> HttpResponse + Send + Sync + 'static) -> Self {
        self.rules.set_error_handler(Arc::new(answer));
        self
    }

    /// Tells the guard that errors of type `E` come from your extractors: from your own `FromRequest`, or from an
    /// `error_handler` (of `JsonConfig`, for example) that returns your own type. The handler has not run then, so the
    /// key stays new. **Never name a type that a handler returns after its effect**, because a retry would run it
    /// again.
    ///
    /// The guard knows the errors of actix-web's own extractors. Handlers also return some of them, such as
    /// `QueryPayloadError`. The guard attributes these to an extractor only if nothing has waited before: see the guide
    /// [what your handler's answer means](crate::guide::answers). Name such a type here if none of your handlers
    /// returns it.
    ///
    /// ```
    /// # use oncekey::{Engine, web::{Idempotency, Scope}};
    /// # use oncekey_backends::MemoryBackend;
    /// #[derive(Debug, thiserror::Error)]
    /// #[error("the session has ended")]
    /// struct SessionEnded;
    ///
    /// impl actix_web::ResponseError for SessionEnded {}
    ///
    /// # let engine = Engine::builder(MemoryBackend::new()).start()?;
    /// let guard = Idempotency::new(engine, Scope::shared()).extractor_error::<SessionEnded>();
    /// # Ok::<(), oncekey::StartError>(())
    /// ```
    pub fn extractor_error<E: ResponseError + 'static>(mut self) -> Self {
        self.rules.extractor_errors.push(Arc::new(|error| {
            error.as_error::<E>().is_some() || error.as_error::<actix_web::error::InternalError<E>>().is_some()
        }));
        self
    }

    /// Changes a response before the guard stores it. The first caller gets the original response; replays carry the
    /// changed one. Use it to remove what the store must not keep, such as a secret that is shown once.
    ///
    /// If the closure panics, the guard keeps no response and answers retries with 409 (`outcome-not-kept`). It does
    /// the same for a response with a `Content-Encoding`, whose body the closure could not read: wrap `Compress`
    /// outside the guard.
    ///
    /// ```
    /// # use oncekey::{Engine, web::{Idempotency, Scope}};
    /// # use oncekey_backends::MemoryBackend;
    /// # let engine = Engine::builder(MemoryBackend::new()).start()?;
    /// let guard = Idempotency::new(engine, Scope::shared()).sanitize(|response| {
    ///     if let Ok(mut created) = serde_json::from_slice::<serde_json::Value>(response.body()) {
    ///         created["secret"] = "shown once".into();
    ///         response.set_body(created.to_string());
    ///     }
    /// });
    /// # Ok::<(), oncekey::StartError>(())
    /// ```
    pub fn sanitize(mut self, change: impl Fn(&mut RecordedResponse) + Send + Sync + 'static) -> Self {
        self.rules.sanitizer = Sanitizer(Some(Arc::new(change)));
        self
    }

    /// Changes a replay before it is sent, for example to refresh an expired URL. The closure receives the retry's
    /// request and the replay, and may add any header. If it panics, the guard sends the replay as stored.
    ///
    /// ```
    /// # use oncekey::{Engine, web::{Idempotency, Scope}};
    /// # use oncekey_backends::MemoryBackend;
    /// use actix_web::http::header::{CACHE_CONTROL, HeaderValue};
    ///
    /// # let engine = Engine::builder(MemoryBackend::new()).start()?;
    /// let guard = Idempotency::new(engine, Scope::shared()).on_replay(|_request, mut replay| {
    ///     replay.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    ///     replay
    /// });
    /// # Ok::<(), oncekey::StartError>(())
    /// ```
    pub fn on_replay(
        mut self,
        refresh: impl Fn(&HttpRequest, HttpResponse) -> HttpResponse + Send + Sync + 'static,
    ) -> Self {
        self.rules.set_on_replay(Arc::new(refresh));
        self
    }

    /// Treats the application's default service, such as a gateway that forwards requests, as a handler. Without this
    /// setting, a request without a key that certainly matches no route goes to the default service, and a 404 or 405
    /// from there leaves its key new.
    pub fn guard_default_service(mut self) -> Self {
        self.rules.guards_default_service = true;
        self
    }

    /// Changes the rules of one route, named by the pattern with which it is registered (`/orders/{id}`). They start
    /// from the rules of all routes as they are at this call. If several patterns match a route, the first one applies.
    ///
    /// The rules apply to each request that the router sends to that route, however its path is encoded. The names of
    /// segments do not matter: `/orders/{id}` equals `/orders/{order}`. The pattern includes the patterns of enclosing
    /// scopes. For a guard inside a scope, it may also begin at that scope.
    ///
    /// # Panics
    /// If actix-web's router rejects the pattern: an unclosed brace, a segment without a name, two segments with the
    /// same name, more than 16 segments, or a malformed regular expression.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use oncekey::{Engine, web::{Idempotency, Scope}};
    /// # use oncekey_backends::MemoryBackend;
    /// # let engine = Engine::builder(MemoryBackend::new()).start()?;
    /// let guard = Idempotency::new(engine, Scope::shared())
    ///     .required()
    ///     .route("/carts/{id}/items", |rules| rules.optional().retention(Duration::from_secs(600)));
    /// # Ok::<(), oncekey::StartError>(())
    /// ```
    pub fn route(mut self, pattern: &str, change: impl FnOnce(RouteRules) -> RouteRules) -> Self {
        let rules = change(self.rules.everywhere.clone());
        self.rules.routes.push((RulePattern::new(pattern), rules));
        self
    }

    /// Returns the settings that cannot work. The guard also logs them when its server starts.
    pub fn problems(&self) -> Vec<SettingProblem> {
        settings::problems(&self.rules)
    }

    fn everywhere(mut self, change: impl FnOnce(RouteRules) -> RouteRules) -> Self {
        self.rules.everywhere = change(self.rules.everywhere);
        self
    }

    /// See [`RouteRules::required`].
    pub fn required(self) -> Self {
        self.everywhere(RouteRules::required)
    }

    /// See [`RouteRules::methods`].
    pub fn methods(self, methods: impl IntoIterator<Item = Method>) -> Self {
        self.everywhere(|rules| rules.methods(methods))
    }

    /// See [`RouteRules::key`].
    pub fn key(self, strategy: KeyStrategy) -> Self {
        self.everywhere(|rules| rules.key(strategy))
    }

    /// See [`RouteRules::fingerprint`].
    pub fn fingerprint(self, strategy: FingerprintStrategy) -> Self {
        self.everywhere(|rules| rules.fingerprint(strategy))
    }

    /// See [`RouteRules::request_limit`].
    pub fn request_limit(self, bytes: usize) -> Self {
        self.everywhere(|rules| rules.request_limit(bytes))
    }

    /// See [`RouteRules::request_timeout`].
    pub fn request_timeout(self, limit: Duration) -> Self {
        self.everywhere(|rules| rules.request_timeout(limit))
    }

    /// See [`RouteRules::response_limit`].
    pub fn response_limit(self, bytes: usize) -> Self {
        self.everywhere(|rules| rules.response_limit(bytes))
    }

    /// See [`RouteRules::disposition`].
    pub fn disposition(
        self,
        decide: impl Fn(StatusCode, &HeaderMap) -> ResponseDisposition + Send + Sync + 'static,
    ) -> Self {
        self.everywhere(|rules| rules.disposition(decide))
    }

    /// See [`RouteRules::retention`].
    pub fn retention(self, retention: Duration) -> Self {
        self.everywhere(|rules| rules.retention(retention))
    }

    /// See [`RouteRules::on_in_progress`].
    pub fn on_in_progress(self, on_in_progress: OnInProgress) -> Self {
        self.everywhere(|rules| rules.on_in_progress(on_in_progress))
    }

    /// See [`RouteRules::on_abandoned`].
    pub fn on_abandoned(self, on_abandoned: OnAbandoned) -> Self {
        self.everywhere(|rules| rules.on_abandoned(on_abandoned))
    }

    /// See [`RouteRules::run_limit`].
    pub fn run_limit(self, limit: Duration) -> Self {
        self.everywhere(|rules| rules.run_limit(limit))
    }

    /// See [`RouteRules::on_store_failure`].
    pub fn on_store_failure(self, on_store_failure: OnStoreFailure) -> Self {
        self.everywhere(|rules| rules.on_store_failure(on_store_failure))
    }
}

impl<S, B> Transform<S, ServiceRequest> for Idempotency
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = actix_web::Error> + 'static,
    B: MessageBody + 'static,
{
    type Response = ServiceResponse<EitherBody<B>>;
    type Error = actix_web::Error;
    type Transform = IdempotencyService<S>;
    type InitError = ();
    type Future = Ready<Result<Self::Transform, ()>>;

    fn new_transform(&self, service: S) -> Self::Future {
        for problem in self.problems() {
            settings::report_once(&problem.to_string());
        }
        // Start the worker's node here, where this code certainly runs on the worker's arbiter.
        self.engine.attach();
        let guard = Guard { engine: self.engine.clone(), rules: self.rules.clone(), unrouted: Unrouted::default() };
        ready(Ok(IdempotencyService { service: Rc::new(service), guard: Rc::new(guard) }))
    }
}

/// The service that [`Idempotency`] wraps around another.
///
/// ```
/// # fn named<S>(_: oncekey::web::IdempotencyService<S>) {}
/// ```
pub struct IdempotencyService<S> {
    service: Rc<S>,
    guard: Rc<Guard>,
}

type PassedThrough<B> = fn(Result<ServiceResponse<B>, actix_web::Error>) -> Answered<B>;
type Answered<B> = Result<ServiceResponse<EitherBody<B>>, actix_web::Error>;

impl<S, B> Service<ServiceRequest> for IdempotencyService<S>
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = actix_web::Error> + 'static,
    B: MessageBody + 'static,
{
    type Response = ServiceResponse<EitherBody<B>>;
    type Error = actix_web::Error;
    type Future = Either<Map<S::Future, PassedThrough<B>>, LocalBoxFuture<'static, Answered<B>>>;

    forward_ready!(service);

    fn call(&self, request: ServiceRequest) -> Self::Future {
        let rules = &self.guard.rules;
        let is_passed = !rules.guard_method(request.method()) || is_guarded(&request);
        let rules_at = if is_passed { None } else { rules.find(&request) };
        if is_passed || !rules.at(rules_at).methods.contains(request.method()) {
            let pass: PassedThrough<B> = |response| response.map(ServiceResponse::map_into_left_body);
            return Either::Left(self.service.call(request).map(pass));
        }
        Either::Right(Box::pin(Rc::clone(&self.guard).answer(rules_at, Rc::clone(&self.service), request)))
    }
}

impl fmt::Debug for Idempotency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Idempotency").field("rules", &self.rules).finish_non_exhaustive()
    }
}

impl<S> fmt::Debug for IdempotencyService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyService").finish_non_exhaustive()
    }
}
