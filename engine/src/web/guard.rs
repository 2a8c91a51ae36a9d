//! Guards one request, from its key to its answer.

use std::cell::{Cell, Ref, RefCell};
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Poll, Waker};

use actix_web::body::{BoxBody, EitherBody, MessageBody};
use actix_web::dev::{RequestHead, Service, ServiceRequest, ServiceResponse};
use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};
use actix_web::http::{Method, StatusCode, Uri, Version};
use actix_web::test::TestRequest;
use actix_web::{HttpMessage as _, HttpRequest, HttpResponse};
use bytes::Bytes;
use futures_util::future::{FutureExt as _, LocalBoxFuture, Shared, poll_fn};
use tracing::{Instrument as _, debug_span};

use super::body::{self, Body, Found, Watched};
use super::disposition::{Origin, decide, origin_of, origin_of_inner_error};
use super::extract::ClaimNotTaken;
use super::fingerprint::whole;
use super::pattern::Unrouted;
use super::recorded::RecordedResponse;
use super::rules::{Disposition, RouteRules, Rules};
use super::{IdempotencyError, ResponseDisposition, WithDisposition as _, key, pattern, settings};
use crate::call::Admitted;
use crate::claims::{Grant, Settlement};
use crate::detach::{self, DetachOnDrop};
use crate::engine::Claim;
use crate::record::{Payload as Stored, PayloadKind, SealedOutcome};
use crate::{CallPolicy, CorruptOutcome, Engine, Error, EventKind, Fingerprint, Key, OnAbandoned, panics};

/// The middleware's settings on one worker.
pub(super) struct Guard {
    pub(super) engine: Engine,
    pub(super) rules: Rules,
    pub(super) unrouted: Unrouted,
}

/// Marks a guarded request. It is in the request's extensions while the handler runs.
#[derive(Clone)]
pub(super) struct Guarded(pub(super) Rc<RequestGuard>);

pub(super) struct RequestGuard {
    pub(super) setup: Rc<Guard>,
    pub(super) fingerprint: Fingerprint,
    pub(super) response_limit: usize,
    disposition: Disposition,
    claim: RefCell<Claim>,
    pub(super) policy: Cell<CallPolicy>,
    pub(super) grant: RefCell<GrantSlot>,
    /// Whether something has begun to read the body, or has taken the claim.
    touched: Cell<bool>,
    /// Whether the guard read the body before the handler.
    holds_body: bool,
    /// Whether something has read that body to its end.
    is_body_read: Cell<bool>,
    /// Whether the inner service has waited for anything.
    has_waited: Cell<bool>,
    /// The route at which the guard expected a handler that takes a transaction.
    expected_at: Option<String>,
    /// Whether the claim was made for a handler that takes a transaction.
    pub(super) for_transaction: Cell<bool>,
    /// Whether the handler actually took one.
    pub(super) took_transaction: Cell<bool>,
    /// Whether a transaction of the handler was rolled back.
    pub(super) rolled_back: Cell<bool>,
    /// The second claim of the key, for a transaction. The guard keeps it too, because another extractor that fails
    /// drops the one that awaits it, and the key can be settled only once it is claimed.
    pub(super) claiming: RefCell<Option<Claiming>>,
    /// The guard's own answer, after the second claim failed.
    turned_away: RefCell<Option<ClaimNotTaken>>,
    /// Wakes the guard to send that answer if the inner service runs in its own task.
    waker: RefCell<Option<Waker>>,
}

pub(super) type Claiming = Shared<LocalBoxFuture<'static, Result<(), ClaimNotTaken>>>;

impl RequestGuard {
    pub(super) fn claim(&self) -> Ref<'_, Claim> {
        self.claim.borrow()
    }

    pub(super) fn set_claim(&self, claim: Claim) {
        *self.claim.borrow_mut() = claim;
    }

    pub(super) fn touch(&self) {
        self.touched.set(true);
    }

    pub(super) fn is_touched(&self) -> bool {
        self.touched.get()
    }

    pub(super) fn holds_body(&self) -> bool {
        self.holds_body
    }

    pub(super) fn note_body_end(&self) {
        self.is_body_read.set(true);
    }

    pub(super) fn is_body_read(&self) -> bool {
        self.is_body_read.get()
    }

    pub(super) fn has_waited(&self) -> bool {
        self.has_waited.get()
    }

    /// Ends the inner service, and answers in its place.
    pub(super) fn turn_away(&self, answer: ClaimNotTaken) {
        self.turned_away.replace(Some(answer));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Polls the inner service to its end, or until the guard must answer in its place. Notes whether the service had
    /// to wait.
    async fn watch<F: Future>(&self, service: F) -> Result<F::Output, ClaimNotTaken> {
        let mut service = pin!(service);
        poll_fn(|context| {
            let polled = service.as_mut().poll(context);
            if polled.is_pending() {
                self.has_waited.set(true);
                if let Some(answer) = self.turned_away.take() {
                    return Poll::Ready(Err(answer));
                }
                let mut waker = self.waker.borrow_mut();
                if !waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
                    *waker = Some(context.waker().clone());
                }
            }
            polled.map(Ok)
        })
        .await
    }
}

/// Holds the right to settle the key. The middleware settles it after the handler has answered, unless a transaction of
/// the handler did.
pub(super) enum GrantSlot {
    Held(Grant),
    /// A transaction of the handler holds the grant.
    Lent,
    /// A transaction stored the response, or there was no claim.
    Gone,
}

/// Returns whether an outer guard already guards the request.
pub(super) fn is_guarded(request: &ServiceRequest) -> bool {
    request.extensions().contains::<Guarded>()
}

type Answered<B> = Result<ServiceResponse<EitherBody<B>>, actix_web::Error>;

impl Guard {
    /// Answers a request under the rules found at `rules_at`.
    pub(super) async fn answer<S, B>(
        self: Rc<Self>,
        rules_at: Option<usize>,
        service: Rc<S>,
        mut request: ServiceRequest,
    ) -> Answered<B>
    where
        S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = actix_web::Error> + 'static,
        B: MessageBody + 'static,
    {
        let rules = self.rules.at(rules_at);
        let asked = match self.read(rules, rules_at.is_some(), &mut request).await {
            Ok(Some(asked)) => asked,
            Ok(None) => return service.call(request).await.map(ServiceResponse::map_into_left_body),
            Err(turned_away) => {
                // On HTTP/2, the server resets the stream of an unread body, and clients then lose the answer.
                if request.version() == Version::HTTP_2 {
                    body::drain(request.take_payload(), rules.request_timeout).await;
                }
                return Ok(self.turn_away(turned_away, request).map_into_right_body());
            }
        };
        let Asked { key, fingerprint, body } = asked;
        let (policy, expected_at) = self.policy(rules, &request);
        let node = self.engine.attach();
        let begun = match self.engine.begin(&node, key.clone(), fingerprint, &policy).await {
            Ok(Admitted::Granted(mut grant)) => grant.begin().await.map(|()| Begun::Runs(GrantSlot::Held(grant))),
            Ok(Admitted::Unguarded) => Ok(Begun::Runs(GrantSlot::Gone)),
            Ok(Admitted::Replay(outcome)) => Ok(Begun::Replays(outcome)),
            Err(error) => Err(error),
        };
        let grant = match begun {
            Ok(Begun::Runs(grant)) => grant,
            answered => {
                if let Body::Unread(payload) = body {
                    body::drain_upload(payload, rules.request_timeout).await;
                }
                let response = match answered {
                    Ok(Begun::Replays(outcome)) => self.replay(request.request(), &key, &outcome),
                    Ok(Begun::Runs(_)) => Err(Error::Stopped.into()),
                    Err(error) => Err(error.into()),
                };
                let response = response.unwrap_or_else(|error| self.rules.respond(&error));
                return Ok(request.into_response(response).map_into_right_body());
            }
        };
        let claim = match &grant {
            GrantSlot::Held(grant) => Claim::of(key, grant, policy.retention, self.engine.derivation()),
            GrantSlot::Lent | GrantSlot::Gone => Claim::unguarded(key, self.engine.derivation()),
        };
        let guard = Rc::new(RequestGuard {
            fingerprint,
            response_limit: rules.response_limit,
            disposition: rules.disposition.clone(),
            claim: RefCell::new(claim),
            policy: Cell::new(policy),
            grant: RefCell::new(grant),
            touched: Cell::new(false),
            holds_body: matches!(body, Body::Read(_)),
            is_body_read: Cell::new(false),
            has_waited: Cell::new(false),
            for_transaction: Cell::new(expected_at.is_some()),
            expected_at,
            took_transaction: Cell::new(false),
            rolled_back: Cell::new(false),
            claiming: RefCell::new(None),
            turned_away: RefCell::new(None),
            waker: RefCell::new(None),
            setup: self,
        });
        request.set_payload(Watched::payload(body, Rc::clone(&guard)));
        // A client that disconnects drops this future. The handler continues until its response is stored.
        let go_on = |rest: Pin<Box<_>>| detach::go_on_here(Box::pin(async move { drop(rest.await) }));
        Ok(DetachOnDrop::new(Running { guard }.finish(service, request), go_on).await)
    }

    fn turn_away(&self, turned_away: TurnedAway, request: ServiceRequest) -> ServiceResponse {
        match turned_away {
            TurnedAway::By(error) => request.into_response(self.rules.respond(&error)),
            TurnedAway::ByScope(error) => {
                let response = response_of(error);
                let panicked = || self.rules.respond(&IdempotencyError::SettingPanicked("scope"));
                request.into_response(response.unwrap_or_else(panicked))
            }
        }
    }

    /// Returns the policy of a request's claim. If the guard expects the handler to take a transaction, also returns
    /// the route at which it expects this.
    fn policy(&self, rules: &RouteRules, request: &ServiceRequest) -> (CallPolicy, Option<String>) {
        let policy = rules.policy(self.engine.policy());
        if policy.on_abandoned.is_some() {
            return (policy, None);
        }
        let expected_at = self.rules.transactional.expects(request);
        let on_abandoned = expected_at.as_ref().map(|_| OnAbandoned::Rerun);
        (CallPolicy { on_abandoned, ..policy }, expected_at)
    }

    /// Reads what identifies the request. Returns `None` if the request may run unguarded. `has_rules` tells whether a
    /// route's own rules apply.
    async fn read(
        &self,
        rules: &RouteRules,
        has_rules: bool,
        request: &mut ServiceRequest,
    ) -> Result<Option<Asked>, TurnedAway> {
        // If there is certainly no route, the router answers with 404. A path that some scope may match is guarded.
        let may_lack_key = |request: &ServiceRequest| {
            !rules.required || !(has_rules || self.rules.guards_default_service) && self.unrouted.is_certain(request)
        };
        let from_header = if rules.key.reads_header() {
            key::from_header(request, &rules.header).map_err(IdempotencyError::KeyInvalid)?
        } else {
            None
        };
        if from_header.is_none() && matches!(rules.key, super::KeyStrategy::Header) {
            return if may_lack_key(request) { Ok(None) } else { Err(key_missing(rules)) };
        }
        let scope = self.rules.scope.of(request)?;
        if !rules.fingerprint.needs_body() && !rules.key.needs_body(from_header.is_some()) {
            let Some(key) = from_header else { return Ok(None) };
            let fingerprint = rules.fingerprint.make(request, &Bytes::new())?;
            let key = Key::new(scope, key).map_err(IdempotencyError::KeyRejected)?;
            return Ok(Some(Asked { key, fingerprint, body: Body::Unread(request.take_payload()) }));
        }
        let body = body::read(request, rules.request_limit, rules.request_timeout).await?;
        let made = match from_header {
            Some(key) => Some(key),
            None => rules.key.make(request, &body, || whole(request, &body))?,
        };
        let Some(made) = made else {
            request.set_payload(body.into());
            return if may_lack_key(request) { Ok(None) } else { Err(key_missing(rules)) };
        };
        let fingerprint = rules.fingerprint.make(request, &body)?;
        let key = Key::new(scope, made).map_err(IdempotencyError::KeyRejected)?;
        Ok(Some(Asked { key, fingerprint, body: Body::Read(body) }))
    }

    pub(super) fn replay(
        &self,
        request: &HttpRequest,
        key: &Key,
        outcome: &SealedOutcome,
    ) -> Result<HttpResponse, IdempotencyError> {
        match outcome.open(key).map_err(Error::from)? {
            Stored::Tombstone => Err(Error::OutcomeNotKept.into()),
            Stored::Value { kind: PayloadKind::Json, .. } => Err(Error::from(CorruptOutcome::OtherKind).into()),
            Stored::Value { kind: PayloadKind::Http, bytes } => {
                let recorded = RecordedResponse::decode(bytes).map_err(|_| Error::from(CorruptOutcome::Content))?;
                Ok(self.rules.refreshed(request, recorded))
            }
        }
    }
}

fn key_missing(rules: &RouteRules) -> TurnedAway {
    IdempotencyError::KeyMissing(rules.header.to_string()).into()
}

/// Turns an error into a response, including what middleware has added to it. The response contains the error for outer
/// middleware. Returns `None` if the error's own code panics.
fn response_of(error: actix_web::Error) -> Option<HttpResponse> {
    settings::caught("call of an error's error_response", || {
        let mapped = error.error_response();
        let (status, headers) = (mapped.status(), mapped.headers().clone());
        let disposition = mapped.extensions().get::<ResponseDisposition>().copied();
        let mut response = HttpResponse::from_error(error).set_body(mapped.into_body());
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        match disposition {
            Some(disposition) => response.with_disposition(disposition),
            None => response,
        }
    })
}

struct Asked {
    key: Key,
    fingerprint: Fingerprint,
    body: Body,
}

enum Begun {
    Runs(GrantSlot),
    Replays(SealedOutcome),
}

/// Why a request does not reach the engine.
pub(super) enum TurnedAway {
    By(IdempotencyError),
    /// The user's scope closure returned this error as the answer.
    ByScope(actix_web::Error),
}

impl From<IdempotencyError> for TurnedAway {
    fn from(error: IdempotencyError) -> Self {
        Self::By(error)
    }
}

/// The head of a request, for an answer after the request itself is gone. A panic and an inner middleware's error take
/// the request with them. The guard cannot keep the request itself, because the router panics if anyone else holds it.
///
/// Outer middleware needs the head: CORS reads the `Origin`. The request's extensions are lost.
#[derive(Clone)]
pub(super) struct Head {
    method: Method,
    uri: Uri,
    version: Version,
    peer: Option<SocketAddr>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Head {
    pub(super) fn of(head: &RequestHead) -> Self {
        Self {
            method: head.method.clone(),
            uri: head.uri.clone(),
            version: head.version,
            peer: head.peer_addr,
            headers: head.headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        }
    }

    pub(super) fn into_request(self) -> HttpRequest {
        // Outside its server, actix-web offers no other way to create a request.
        let mut request = ServiceRequest::from_request(TestRequest::default().to_http_request());
        request.match_info_mut().get_mut().update(&self.uri);
        let head = request.head_mut();
        head.method = self.method;
        head.uri = self.uri;
        head.version = self.version;
        head.peer_addr = self.peer;
        for (name, value) in self.headers {
            head.headers.append(name, value);
        }
        request.into_parts().0
    }
}

/// A handler that runs under the guard.
struct Running {
    guard: Rc<RequestGuard>,
}

impl Running {
    async fn finish<S, B>(self, service: Rc<S>, request: ServiceRequest) -> ServiceResponse<EitherBody<B>>
    where
        S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = actix_web::Error>,
        B: MessageBody + 'static,
    {
        request.extensions_mut().insert(Guarded(Rc::clone(&self.guard)));
        let head = Head::of(request.head());
        let span = {
            let claim = self.guard.claim();
            debug_span!("handler", key = %claim.key(), attempt = %claim.attempt())
        };
        // The inner block also catches a panic in `call` itself.
        let running = async move { service.call(request).await };
        let running = AssertUnwindSafe(running).catch_unwind().instrument(span);
        let answered = self.guard.watch(running).await;
        let claiming = self.guard.claiming.take();
        if let Some(claiming) = claiming {
            // If it failed, the guard answers for it, or another extractor failed before.
            let _ = claiming.await;
        }
        let answered = match answered {
            Ok(answered) => answered,
            // No handler ran. There is a claim to settle only if its release failed earlier.
            Err(not_taken) => {
                let request = head.into_request();
                let _ = self.settle(Settlement::Release, &request).await;
                return ServiceResponse::new(request, not_taken.into_response()).map_into_right_body();
            }
        };
        let panic_of = match answered {
            Ok(Ok(response)) => {
                let origin = origin_of(&response, &self.guard, self.rules());
                self.note_transaction(origin);
                let (request, response) = response.into_parts();
                let (response, request) = (self.on_response(origin, &request, response).await, request);
                return ServiceResponse::new(request, response);
            }
            // Outer middleware cannot add to an error, so the guard turns it into a response.
            Ok(Err(error)) => match response_of(error) {
                Some(response) => {
                    let request = head.into_request();
                    let origin = origin_of_inner_error(response.status(), &self.guard);
                    self.note_transaction(origin);
                    let response = self.on_response(origin, &request, response).await;
                    let response = response.map_body(|_, body| EitherBody::right(BoxBody::new(body)));
                    return ServiceResponse::new(request, response);
                }
                // A refusal without a response is still a refusal. Other errors may follow an effect, as a panic may.
                None => match origin_of_inner_error(StatusCode::INTERNAL_SERVER_ERROR, &self.guard) {
                    Origin::NoHandler => Origin::NoHandler,
                    _ => Origin::Panic,
                },
            },
            Err(payload) => {
                panics::discard(payload);
                Origin::Panic
            }
        };
        self.on_panic(panic_of, head.into_request()).await.map_into_right_body()
    }

    async fn on_panic(&self, origin: Origin, request: HttpRequest) -> ServiceResponse {
        self.guard.setup.engine.tell(EventKind::Panicked, self.guard.claim().key());
        self.note_transaction(origin);
        let response = self.answer_to(Error::Panicked);
        // The user's error handler chooses only what the caller sees, because it does not know what the handler did.
        let (status, headers) = (StatusCode::INTERNAL_SERVER_ERROR, HeaderMap::new());
        let disposition = self.decide(origin, status, &headers, None);
        let instead = self.settle_without_response(disposition, &request).await;
        ServiceResponse::new(request, instead.unwrap_or(response))
    }

    fn rules(&self) -> &Rules {
        &self.guard.setup.rules
    }

    fn answer_to(&self, error: impl Into<IdempotencyError>) -> HttpResponse {
        self.rules().respond(&error.into())
    }

    /// Returns whether the claim was made for a transaction that the handler did not take. There is then no rollback to
    /// rely on.
    fn lacks_transaction(&self) -> bool {
        self.guard.for_transaction.get() && !self.guard.took_transaction.get()
    }

    /// Corrects what the guard has learned about the route. A request that no handler saw says nothing about its
    /// handlers.
    fn note_transaction(&self, origin: Origin) {
        if let Some(route) = &self.guard.expected_at
            && self.lacks_transaction()
            && origin != Origin::NoHandler
        {
            self.rules().transactional.unlearn(route);
        }
    }

    fn disposition<B>(&self, origin: Origin, response: &HttpResponse<B>) -> ResponseDisposition {
        let explicit = response.extensions().get::<ResponseDisposition>().copied();
        self.decide(origin, response.status(), response.headers(), explicit)
    }

    fn decide(
        &self,
        origin: Origin,
        status: StatusCode,
        headers: &HeaderMap,
        explicit: Option<ResponseDisposition>,
    ) -> ResponseDisposition {
        decide(origin, status, headers, explicit, &self.guard.disposition, self.guard.rolled_back.get())
    }

    async fn on_response<B: MessageBody + 'static>(
        &self,
        origin: Origin,
        request: &HttpRequest,
        response: HttpResponse<B>,
    ) -> HttpResponse<EitherBody<B>> {
        if !matches!(*self.guard.grant.borrow(), GrantSlot::Held(_)) {
            return response.map_into_left_body();
        }
        match self.disposition(origin, &response) {
            ResponseDisposition::Keep => self.keep(request, response).await,
            other => match self.settle_without_response(other, request).await {
                Some(instead) => instead.map_into_right_body(),
                None => response.map_into_left_body(),
            },
        }
    }

    /// Settles the key without a response. A returned response replaces the handler's.
    async fn settle_without_response(
        &self,
        disposition: ResponseDisposition,
        request: &HttpRequest,
    ) -> Option<HttpResponse> {
        let settlement = match disposition {
            ResponseDisposition::Keep => self.tombstone(),
            ResponseDisposition::Release => Settlement::Release,
            ResponseDisposition::Indeterminate => Settlement::Hold,
            // The claim's policy is `Rerun`, which is right only for a transaction.
            ResponseDisposition::Abandoned if self.lacks_transaction() => Settlement::Hold,
            // The operation did not report what happened.
            ResponseDisposition::Abandoned => Settlement::Abandon,
        };
        self.settle(settlement, request).await
    }

    async fn keep<B: MessageBody + 'static>(
        &self,
        request: &HttpRequest,
        response: HttpResponse<B>,
    ) -> HttpResponse<EitherBody<B>> {
        let (head, body) = response.into_parts();
        let limit = self.guard.response_limit;
        let found = if head.status().is_informational() {
            Found::Passing(body)
        } else {
            body::look_into(body, head.headers(), limit).await
        };
        let (outcome, body) = match found {
            Found::Whole(bytes) => {
                let kept = &self.rules().kept_headers;
                let recorded = RecordedResponse::capture(head.status(), head.headers(), Some(kept), bytes.clone());
                let outcome =
                    self.rules().sanitizer.sanitized(recorded).map(|recorded| recorded.seal(self.guard.claim().key()));
                (outcome, EitherBody::right(BoxBody::new(bytes)))
            }
            Found::Passing(body) => {
                if planted!(LargeResponseForgotten) {
                    let _ = self.settle(Settlement::Release, request).await;
                    return head.set_body(EitherBody::left(body));
                }
                self.report_not_kept(request, &body);
                (None, EitherBody::left(body))
            }
            Found::Begun(body) => {
                self.report_not_kept(request, &body);
                (None, EitherBody::right(body))
            }
            // The client loses the response, but the handler's work is done.
            Found::Broken => {
                let failed = HttpResponse::InternalServerError().finish();
                let instead = self.settle(self.tombstone(), request).await;
                return instead.unwrap_or(failed).map_into_right_body();
            }
        };
        let settlement = outcome.map_or_else(|| self.tombstone(), |outcome| self.complete(outcome));
        match self.settle(settlement, request).await {
            None => head.set_body(body),
            Some(instead) => instead.map_into_right_body(),
        }
    }

    /// Logs that a stream is not kept, because a middleware inside the guard may produce one unexpectedly.
    fn report_not_kept<B: MessageBody>(&self, request: &HttpRequest, body: &B) {
        if matches!(body.size(), actix_web::body::BodySize::Stream) {
            let route = pattern::of_routed(request).unwrap_or_else(|| "a path that no route matches".to_owned());
            settings::report_once(&format!(
                "The response to {} {route} is a stream. The guard does not keep streams, so it answers retries with 409.",
                request.method()
            ));
        }
    }

    fn complete(&self, outcome: SealedOutcome) -> Settlement {
        Settlement::Complete { outcome, retention: self.guard.policy.get().retention }
    }

    fn tombstone(&self) -> Settlement {
        self.complete(SealedOutcome::tombstone(self.guard.claim().key()))
    }

    /// Settles the key. A returned response replaces the handler's: either the outcome could not be stored, or another
    /// holder has taken over the claim, and every retry gets that holder's outcome.
    async fn settle(&self, settlement: Settlement, request: &HttpRequest) -> Option<HttpResponse> {
        let slot = self.guard.grant.replace(GrantSlot::Gone);
        let GrantSlot::Held(mut grant) = slot else { return None };
        let outcome = match &settlement {
            Settlement::Complete { outcome, .. } => Some(outcome.clone()),
            _ => None,
        };
        match (grant.settle(settlement).await, outcome) {
            (Ok(_), _) => None,
            (Err(Error::ClaimLost), Some(outcome)) => self.after_a_lost_claim(outcome, request).await,
            // This claim was not to be completed and could not be released either, so it is left to its lease.
            (Err(_), None) => None,
            (Err(error), Some(_)) => Some(self.answer_to(error)),
        }
    }

    async fn after_a_lost_claim(&self, outcome: SealedOutcome, request: &HttpRequest) -> Option<HttpResponse> {
        let engine = &self.guard.setup.engine;
        let key = self.guard.claim().key().clone();
        let policy = self.guard.policy.get();
        match engine.begin(&engine.attach(), key.clone(), self.guard.fingerprint, &policy).await {
            Ok(Admitted::Replay(stored)) => match self.guard.setup.replay(request, &key, &stored) {
                Ok(response) => Some(response),
                Err(error) => Some(self.rules().respond(&error)),
            },
            // The record is gone. This handler ran, so its outcome becomes the key's.
            Ok(Admitted::Granted(mut grant)) => {
                let settled = match grant.begin().await {
                    Ok(()) => grant.settle(self.complete(outcome)).await,
                    Err(error) => Err(error),
                };
                settled.err().map(|error| self.answer_to(error))
            }
            Ok(Admitted::Unguarded) => Some(self.answer_to(Error::ClaimLost)),
            Err(error) => Some(self.answer_to(error)),
        }
    }
}
