//! The middleware and its builder.

use std::fmt;
use std::future::{Ready, ready};
use std::rc::Rc;
use std::time::Duration;

use actix_web::body::{EitherBody, MessageBody};
use actix_web::dev::{ResourceDef, Service, ServiceRequest, ServiceResponse, Transform, forward_ready};
use actix_web::http::header::{HeaderMap, HeaderName};
use actix_web::http::{Method, StatusCode};
use actix_web::{HttpResponse, ResponseError as _};
use futures_util::future::{Either, FutureExt as _, LocalBoxFuture, Map};
use sha2::{Digest as _, Sha256};

use super::guard::{Guard, is_guarded};
use super::rules::{Rules, default_kept_headers};
use super::{FingerprintStrategy, KeyStrategy, Refusal, ResponseFate, RouteRules};
use crate::{Engine, OnAbandoned, OnInProgress, OnStoreFailure};

/// Middleware that makes routes idempotent. See the [module](super) for what it answers.
///
/// Its methods set the rules of all routes; [`route`](Self::route) makes others for one.
///
/// ```
/// use std::time::Duration;
/// use actix_web::{App, HttpResponse, web};
/// use oncekey::{Engine, OnInProgress, web::Idempotency};
/// use oncekey_backends::MemoryBackend;
///
/// let engine = Engine::builder(MemoryBackend::new()).start()?;
/// let app = App::new()
///     .wrap(
///         Idempotency::new(engine)
///             .required()
///             .scope_by_header("X-Api-Key", "public")
///             .on_in_progress(OnInProgress::Wait(Duration::from_secs(10)))
///             .route("/echo", |rules| rules.optional()),
///     )
///     .route("/orders", web::post().to(HttpResponse::Created));
/// # Ok::<(), oncekey::StartError>(())
/// ```
#[must_use]
pub struct Idempotency {
    engine: Engine,
    rules: Rules,
}

impl Idempotency {
    /// The header that the IETF draft and nearly every API use.
    pub const DEFAULT_HEADER: HeaderName = HeaderName::from_static("idempotency-key");

    /// A guard with the default rules. Calls follow the policies of this handle to the engine.
    pub fn new(engine: Engine) -> Self {
        let rules = Rules {
            header: Self::DEFAULT_HEADER,
            scope: Rc::new(|_| Ok("http".to_owned())),
            kept_headers: default_kept_headers(),
            answer: Rc::new(|refusal| refusal.error_response()),
            everywhere: RouteRules::default(),
            routes: Vec::new(),
        };
        Self { engine, rules }
    }

    /// The header that carries the key. Default: `Idempotency-Key`.
    pub fn header(mut self, name: HeaderName) -> Self {
        self.rules.header = name;
        self
    }

    /// Who asks: a tenant, a user, an API key. Two scopes never share a record, so that nobody is shown another's
    /// response. An error, for a request in which nobody is found, is answered as it is, and nothing runs. Default: one
    /// scope for all.
    ///
    /// The scope stands in the store and in logs: don't put a credential there; digest it, as
    /// [`scope_by_header`](Self::scope_by_header) does.
    ///
    /// ```
    /// # use oncekey::{Engine, web::Idempotency};
    /// # use oncekey_backends::MemoryBackend;
    /// use actix_web::{HttpMessage, error::ErrorUnauthorized};
    ///
    /// struct Tenant(String);
    ///
    /// # let engine = Engine::builder(MemoryBackend::new()).start()?;
    /// let guard = Idempotency::new(engine).scope(|request| {
    ///     let extensions = request.extensions();
    ///     let tenant = extensions.get::<Tenant>().ok_or_else(|| ErrorUnauthorized("who are you?"))?;
    ///     Ok(tenant.0.clone())
    /// });
    /// # Ok::<(), oncekey::StartError>(())
    /// ```
    pub fn scope(mut self, make: impl Fn(&ServiceRequest) -> Result<String, actix_web::Error> + 'static) -> Self {
        self.rules.scope = Rc::new(make);
        self
    }

    /// Who asks, by a header such as `X-Api-Key` or `Authorization`; `absent` is the scope of requests that have none.
    /// The header's values are digested, since they are often credentials.
    ///
    /// # Panics
    /// If `name` is not a header's name.
    pub fn scope_by_header(self, name: &'static str, absent: &'static str) -> Self {
        // Written in the program, in lower or upper case; a wrong one is found at the first start.
        #[expect(clippy::expect_used, reason = "documented: a mistake in the program's text")]
        let name = HeaderName::from_bytes(name.as_bytes()).expect("the name of the scope's header is valid");
        self.scope(move |request| {
            let mut values = request.headers().get_all(&name).peekable();
            if values.peek().is_none() {
                return Ok(absent.to_owned());
            }
            let mut digest = Sha256::new();
            for value in values {
                digest.update((value.len() as u64).to_le_bytes());
                digest.update(value.as_bytes());
            }
            // 128 bits: no two callers meet.
            let digest: String = digest.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
            Ok(format!("{name}-{digest}"))
        })
    }

    /// Lets replays carry this header too. By default they carry `Content-Type`, `-Language`, `-Encoding`,
    /// `-Disposition` and `-Location`, `Location`, `ETag`, `Last-Modified`, `Cache-Control`, `Expires`, `Vary`, `Link`,
    /// `Allow`, `Retry-After` and `WWW-Authenticate`.
    ///
    /// `Set-Cookie`, `Date`, `Content-Length` and the hop-by-hop headers are never kept, whatever is said here.
    pub fn keep_header(mut self, name: HeaderName) -> Self {
        self.rules.kept_headers.push(name);
        self
    }

    /// Makes the responses of refusals. Default: `application/problem+json`, as [`Refusal`] describes.
    ///
    /// ```
    /// # use oncekey::{Engine, web::Idempotency};
    /// # use oncekey_backends::MemoryBackend;
    /// use actix_web::{HttpResponse, ResponseError};
    ///
    /// # let engine = Engine::builder(MemoryBackend::new()).start()?;
    /// let guard = Idempotency::new(engine)
    ///     .error_handler(|refusal| HttpResponse::build(refusal.status_code()).body(refusal.to_string()));
    /// # Ok::<(), oncekey::StartError>(())
    /// ```
    pub fn error_handler(mut self, answer: impl Fn(&Refusal) -> HttpResponse + 'static) -> Self {
        self.rules.answer = Rc::new(answer);
        self
    }

    /// Other rules for one route, by its pattern (`/orders/{id}`). They begin as the rules of all routes stand at this
    /// call. The first pattern that matches counts.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use oncekey::{Engine, web::Idempotency};
    /// # use oncekey_backends::MemoryBackend;
    /// # let engine = Engine::builder(MemoryBackend::new()).start()?;
    /// let guard = Idempotency::new(engine)
    ///     .required()
    ///     .route("/carts/{id}/items", |rules| rules.optional().retention(Duration::from_secs(600)));
    /// # Ok::<(), oncekey::StartError>(())
    /// ```
    pub fn route(mut self, pattern: &str, change: impl FnOnce(RouteRules) -> RouteRules) -> Self {
        let rules = change(self.rules.everywhere.clone());
        self.rules.routes.push((ResourceDef::new(pattern), rules));
        self
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

    /// See [`RouteRules::response_limit`].
    pub fn response_limit(self, bytes: usize) -> Self {
        self.everywhere(|rules| rules.response_limit(bytes))
    }

    /// See [`RouteRules::fate`].
    pub fn fate(self, decide: impl Fn(StatusCode, &HeaderMap) -> ResponseFate + 'static) -> Self {
        self.everywhere(|rules| rules.fate(decide))
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
        // The worker's node starts here, where it is sure to be on its arbiter.
        self.engine.attach();
        let guard = Guard { engine: self.engine.clone(), rules: self.rules.clone() };
        ready(Ok(IdempotencyService { service: Rc::new(service), guard: Rc::new(guard) }))
    }
}

/// The service that [`Idempotency`] puts around another.
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
        if !self.guard.rules.of(&request).methods.contains(request.method()) || is_guarded(&request) {
            let pass: PassedThrough<B> = |response| response.map(ServiceResponse::map_into_left_body);
            return Either::Left(self.service.call(request).map(pass));
        }
        Either::Right(Box::pin(Rc::clone(&self.guard).answer(Rc::clone(&self.service), request)))
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
