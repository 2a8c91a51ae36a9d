//! A guarded request, from its key to its answer.

use std::cell::RefCell;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::rc::Rc;

use actix_web::body::{BodySize, EitherBody, MessageBody, to_bytes_limited};
use actix_web::dev::{Payload, Service, ServiceRequest, ServiceResponse};
use actix_web::http::header;
use actix_web::{HttpMessage as _, HttpRequest, HttpResponse};
use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt as _, StreamExt as _};
use tracing::{Instrument as _, debug_span};

use super::recorded::RecordedResponse;
use super::rules::{Fate, RouteRules, Rules, whole};
use super::{Refusal, ResponseFate, key};
use crate::call::Admitted;
use crate::claims::{Grant, Settlement};
use crate::detach::{self, DetachOnDrop};
use crate::engine::Claim;
use crate::record::{Payload as Stored, PayloadKind, SealedOutcome};
use crate::{CallPolicy, CorruptOutcome, Engine, Error, EventKind, Fingerprint, Key};

/// What the middleware is set up with, on one worker.
pub(super) struct Guard {
    pub(super) engine: Engine,
    pub(super) rules: Rules,
}

/// In the request's extensions while its handler runs.
#[derive(Clone)]
pub(super) struct Guarded(pub(super) Rc<RequestGuard>);

pub(super) struct RequestGuard {
    pub(super) engine: Engine,
    pub(super) claim: Claim,
    pub(super) policy: CallPolicy,
    pub(super) grant: RefCell<GrantSlot>,
}

/// Who settles the key: the middleware when the handler has answered, unless a transaction of the handler's did.
pub(super) enum GrantSlot {
    Held(Grant),
    /// A transaction of the handler's has it.
    Lent,
    /// A transaction stored the response, or there was no claim at all.
    Gone,
}

/// Whether a guard further out has the request.
pub(super) fn is_guarded(request: &ServiceRequest) -> bool {
    request.extensions().contains::<Guarded>()
}

type Answered<B> = Result<ServiceResponse<EitherBody<B>>, actix_web::Error>;

impl Guard {
    pub(super) async fn answer<S, B>(self: Rc<Self>, service: Rc<S>, mut request: ServiceRequest) -> Answered<B>
    where
        S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = actix_web::Error> + 'static,
        B: MessageBody + 'static,
    {
        let asked = match self.read(&mut request).await {
            Ok(Some(asked)) => asked,
            Ok(None) => return service.call(request).await.map(ServiceResponse::map_into_left_body),
            Err(Turned::Away(refusal)) => {
                return Ok(request.into_response((self.rules.answer)(&refusal)).map_into_right_body());
            }
            Err(Turned::AwayByScope(error)) => return Ok(request.error_response(error).map_into_right_body()),
        };
        let Asked { key, fingerprint, policy, response_limit, fate } = asked;
        let node = self.engine.attach();
        let grant = match self.engine.begin(&node, key.clone(), fingerprint, &policy).await {
            // Nothing is awaited between this and the handler.
            Ok(Admitted::Granted(mut grant)) => match grant.begin().await {
                Ok(()) => GrantSlot::Held(grant),
                Err(error) => {
                    let response = (self.rules.answer)(&Refusal::Engine(error));
                    return Ok(request.into_response(response).map_into_right_body());
                }
            },
            Ok(Admitted::Unguarded) => GrantSlot::Gone,
            Ok(Admitted::Replay(outcome)) => {
                let response = self.replay(&key, &outcome).unwrap_or_else(|refusal| (self.rules.answer)(&refusal));
                return Ok(request.into_response(response).map_into_right_body());
            }
            Err(error) => {
                let response = (self.rules.answer)(&Refusal::Engine(error));
                return Ok(request.into_response(response).map_into_right_body());
            }
        };
        let claim = match &grant {
            GrantSlot::Held(grant) => Claim::of(key, grant),
            GrantSlot::Lent | GrantSlot::Gone => Claim::unguarded(key),
        };
        let guard = RequestGuard { engine: self.engine.clone(), claim, policy, grant: RefCell::new(grant) };
        let run = Running { guard: Rc::new(guard), setup: self, fingerprint, response_limit, fate };
        // The client's leaving drops this future. The handler goes on without it, to its stored response.
        let go_on = |rest: Pin<Box<_>>| detach::go_on_here(Box::pin(async move { drop(rest.await) }));
        DetachOnDrop::new(run.finish(service, request), go_on).await
    }

    /// Reads what names the request; `None` if it may run unguarded.
    async fn read(&self, request: &mut ServiceRequest) -> Result<Option<Asked>, Turned> {
        let rules = self.rules.of(request);
        let from_header = if rules.key.reads_header() {
            key::from_header(request, &self.rules.header).map_err(Refusal::KeyInvalid)?
        } else {
            None
        };
        if from_header.is_none() && matches!(rules.key, super::KeyStrategy::Header) {
            return self.without_key(rules);
        }
        let scope = (self.rules.scope)(request).map_err(Turned::AwayByScope)?;
        let policy = rules.policy(self.engine.policy());
        let body = read_body(request, rules.request_limit).await?;
        let made = from_header.or_else(|| rules.key.make(request, &body, || whole(request, &body)));
        let fingerprint = rules.fingerprint.make(request, &body);
        let Some(made) = made else {
            request.set_payload(Payload::from(body));
            return self.without_key(rules);
        };
        let key = Key::new(scope, made).map_err(Refusal::KeyUnfit)?;
        request.set_payload(Payload::from(body));
        Ok(Some(Asked { key, fingerprint, policy, response_limit: rules.response_limit, fate: rules.fate.clone() }))
    }

    fn without_key(&self, rules: &RouteRules) -> Result<Option<Asked>, Turned> {
        if rules.required {
            return Err(Refusal::KeyMissing(self.rules.header.to_string()).into());
        }
        Ok(None)
    }

    fn replay(&self, key: &Key, outcome: &SealedOutcome) -> Result<HttpResponse, Refusal> {
        match outcome.open(key).map_err(Error::from)? {
            Stored::Tombstone => Err(Error::OutcomeNotKept.into()),
            Stored::Value { kind: PayloadKind::Json, .. } => Err(Error::from(CorruptOutcome::OtherKind).into()),
            Stored::Value { kind: PayloadKind::Http, bytes } => {
                let recorded = RecordedResponse::decode(bytes).map_err(|_| Error::from(CorruptOutcome::Content))?;
                Ok(recorded.into_replay())
            }
        }
    }
}

struct Asked {
    key: Key,
    fingerprint: Fingerprint,
    policy: CallPolicy,
    response_limit: usize,
    fate: Fate,
}

enum Turned {
    Away(Refusal),
    AwayByScope(actix_web::Error),
}

impl From<Refusal> for Turned {
    fn from(refusal: Refusal) -> Self {
        Self::Away(refusal)
    }
}

/// Reads the whole body, as far as it is within the limit.
async fn read_body(request: &mut ServiceRequest, limit: usize) -> Result<Bytes, Refusal> {
    let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if announced.is_some_and(|length: u64| length > limit as u64) {
        drain(request.take_payload()).await;
        return Err(Refusal::RequestTooLarge(limit));
    }
    let mut payload = request.take_payload();
    let mut first = Bytes::new();
    let mut gathered = BytesMut::new();
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(|_| Refusal::RequestUnreadable)?;
        if first.len() + gathered.len() + chunk.len() > limit {
            drain(payload).await;
            return Err(Refusal::RequestTooLarge(limit));
        }
        // Most bodies come in one piece, which is then not copied.
        if first.is_empty() && gathered.is_empty() {
            first = chunk;
        } else {
            gathered.extend_from_slice(&std::mem::take(&mut first));
            gathered.extend_from_slice(&chunk);
        }
    }
    Ok(if gathered.is_empty() { first } else { gathered.freeze() })
}

/// Reads on for a while, so that a client that sends its body before it reads sees the answer, and not a reset.
async fn drain(mut payload: Payload) {
    const PATIENCE: usize = 64 << 20;
    let mut drained = 0;
    while let Some(Ok(chunk)) = payload.next().await {
        drained += chunk.len();
        if drained > PATIENCE {
            return;
        }
    }
}

/// A handler that runs under the guard.
struct Running {
    guard: Rc<RequestGuard>,
    setup: Rc<Guard>,
    fingerprint: Fingerprint,
    response_limit: usize,
    fate: Fate,
}

impl Running {
    async fn finish<S, B>(self, service: Rc<S>, request: ServiceRequest) -> Answered<B>
    where
        S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = actix_web::Error>,
        B: MessageBody + 'static,
    {
        request.extensions_mut().insert(Guarded(Rc::clone(&self.guard)));
        let claim = &self.guard.claim;
        let span = debug_span!("handler", key = %claim.key(), attempt = %claim.attempt());
        // An inner block, so that a panic in `call` itself is caught as well.
        let running = async move { service.call(request).await };
        match AssertUnwindSafe(running).catch_unwind().instrument(span).await {
            Ok(Ok(response)) => Ok(self.on_response(response).await),
            Ok(Err(error)) => {
                // Middleware further in refused. Its answer is not the handler's, so that it is not stored; its status
                // says what becomes of the key.
                let answer = error.error_response();
                match self.fate(&answer) {
                    ResponseFate::Indeterminate => self.settle(Settlement::Hold).await?,
                    ResponseFate::Keep | ResponseFate::Release => self.settle(Settlement::Release).await?,
                };
                Err(error)
            }
            Err(_) => {
                self.guard.engine.tell(EventKind::Panicked, self.guard.claim.key());
                let panicked = HttpResponse::InternalServerError().finish();
                let settlement = match self.fate(&panicked) {
                    ResponseFate::Indeterminate => Settlement::Hold,
                    // There is no response to keep.
                    ResponseFate::Keep | ResponseFate::Release => Settlement::Release,
                };
                self.settle(settlement).await?;
                Err(self.refused(Error::Panicked))
            }
        }
    }

    fn refused(&self, error: Error) -> actix_web::Error {
        let refusal = Refusal::Engine(error);
        let answer = (self.setup.rules.answer)(&refusal);
        actix_web::error::InternalError::from_response(refusal, answer).into()
    }

    /// The handler's own word, or else the policy's.
    fn fate<B>(&self, response: &HttpResponse<B>) -> ResponseFate {
        let word = response.extensions().get::<ResponseFate>().copied();
        word.unwrap_or_else(|| (self.fate.0)(response.status(), response.headers()))
    }

    async fn on_response<B: MessageBody + 'static>(
        &self,
        response: ServiceResponse<B>,
    ) -> ServiceResponse<EitherBody<B>> {
        if !matches!(*self.guard.grant.borrow(), GrantSlot::Held(_)) {
            return response.map_into_left_body();
        }
        let (request, response) = response.into_parts();
        match self.fate(&response) {
            ResponseFate::Release => self.pass(request, response, Settlement::Release).await,
            ResponseFate::Indeterminate => self.pass(request, response, Settlement::Hold).await,
            ResponseFate::Keep => self.keep(request, response).await,
        }
    }

    /// Settles without the response, and lets it go as it is.
    async fn pass<B: MessageBody + 'static>(
        &self,
        request: HttpRequest,
        response: HttpResponse<B>,
        settlement: Settlement,
    ) -> ServiceResponse<EitherBody<B>> {
        match self.settle(settlement).await {
            Ok(None) => ServiceResponse::new(request, response).map_into_left_body(),
            Ok(Some(other)) => ServiceResponse::new(request, other).map_into_right_body(),
            Err(error) => ServiceResponse::from_err(error, request).map_into_right_body(),
        }
    }

    async fn keep<B: MessageBody + 'static>(
        &self,
        request: HttpRequest,
        response: HttpResponse<B>,
    ) -> ServiceResponse<EitherBody<B>> {
        let tombstone = || self.complete(SealedOutcome::tombstone(self.guard.claim.key()));
        let (head, body) = response.into_parts();
        let bytes = match body.size() {
            BodySize::None | BodySize::Sized(0) => Bytes::new(),
            BodySize::Sized(size) if size <= self.response_limit as u64 => match body.try_into_bytes() {
                Ok(bytes) => bytes,
                Err(body) => match to_bytes_limited(body, self.response_limit).await {
                    Ok(Ok(bytes)) => bytes,
                    // It breaks off, or is longer than it said: what its client would have got is lost, but what the
                    // handler did is done.
                    Ok(Err(_)) | Err(_) => {
                        let failed = HttpResponse::InternalServerError().finish();
                        return self.pass(request, failed, tombstone()).await.map_body(|_, body| match body {
                            EitherBody::Left { body } | EitherBody::Right { body } => EitherBody::right(body),
                        });
                    }
                },
            },
            // Too large, or a stream: looking into it would use it up, and it is its caller's.
            BodySize::Sized(_) | BodySize::Stream => {
                if planted!(LargeResponseForgotten) {
                    return self.pass(request, head.set_body(body), Settlement::Release).await;
                }
                return self.pass(request, head.set_body(body), tombstone()).await;
            }
        };
        let kept = &self.setup.rules.kept_headers;
        let recorded = RecordedResponse::capture(head.status(), head.headers(), kept, bytes.clone());
        let outcome = recorded.seal(self.guard.claim.key());
        match self.settle(self.complete(outcome)).await {
            Ok(None) => {
                ServiceResponse::new(request, head.set_body(EitherBody::right(actix_web::body::BoxBody::new(bytes))))
            }
            Ok(Some(other)) => ServiceResponse::new(request, other).map_into_right_body(),
            Err(error) => ServiceResponse::from_err(error, request).map_into_right_body(),
        }
    }

    fn complete(&self, outcome: SealedOutcome) -> Settlement {
        Settlement::Complete { outcome, retention: self.guard.policy.retention }
    }

    /// Settles the key. `Some` response is to be sent in place of the handler's: another holder took the claim over
    /// meanwhile, and its outcome is the one that every retry gets.
    async fn settle(&self, settlement: Settlement) -> Result<Option<HttpResponse>, actix_web::Error> {
        let slot = std::mem::replace(&mut *self.guard.grant.borrow_mut(), GrantSlot::Gone);
        let GrantSlot::Held(mut grant) = slot else { return Ok(None) };
        let outcome = match &settlement {
            Settlement::Complete { outcome, .. } => Some(outcome.clone()),
            _ => None,
        };
        match (grant.settle(settlement).await, outcome) {
            (Ok(_), _) => Ok(None),
            (Err(Error::ClaimLost), Some(outcome)) => self.after_a_lost_claim(outcome).await,
            // What was not to be kept could not be given up either: the lease sees to that.
            (Err(_), None) => Ok(None),
            (Err(error), Some(_)) => Err(self.refused(error)),
        }
    }

    async fn after_a_lost_claim(&self, outcome: SealedOutcome) -> Result<Option<HttpResponse>, actix_web::Error> {
        let engine = &self.guard.engine;
        let key = self.guard.claim.key();
        let begun = engine.begin(&engine.attach(), key.clone(), self.fingerprint, &self.guard.policy).await;
        match begun {
            Ok(Admitted::Replay(stored)) => match self.setup.replay(key, &stored) {
                Ok(response) => Ok(Some(response)),
                Err(Refusal::Engine(error)) => Err(self.refused(error)),
                Err(_) => Err(self.refused(Error::ClaimLost)),
            },
            // The record is gone. This handler ran, so that its outcome is the key's.
            Ok(Admitted::Granted(mut grant)) => {
                grant.begin().await.map_err(|error| self.refused(error))?;
                grant.settle(self.complete(outcome)).await.map(|_| None).map_err(|error| self.refused(error))
            }
            Ok(Admitted::Unguarded) => Err(self.refused(Error::ClaimLost)),
            Err(error) => Err(self.refused(error)),
        }
    }
}
