//! Extractors for guarded handlers: the claim, and a transaction that stores the handler's response.

use std::any::{Any, type_name};
use std::fmt;
use std::future::{Ready, ready};
use std::rc::Rc;

use actix_web::body::{BoxBody, MessageBody as _};
use actix_web::dev::Payload;
use actix_web::error::ErrorInternalServerError;
use actix_web::http::StatusCode;
use actix_web::http::header::{HeaderMap, HeaderName};
use actix_web::{FromRequest, HttpMessage as _, HttpRequest, HttpResponse, Responder, ResponseError};
use bytes::Bytes;
use futures_util::future::{FutureExt as _, LocalBoxFuture};

use super::IdempotencyError;
use super::guard::{GrantSlot, Guarded, Head, RequestGuard};
use super::recorded::{KeepAllHeaders, RecordedResponse};
use super::rules::Sanitizer;
use crate::backend::TransactionOperation;
use crate::call::Admitted;
use crate::claims::Settlement;
use crate::engine::{Claim, Given, Transacted, awaited, blocking, transact};
use crate::record::{Payload as Stored, SealedOutcome};
use crate::{CallPolicy, CorruptOutcome, Error, Key, OnAbandoned, RunError};

const NOT_GUARDED: &str = "the handler takes its idempotency guard, but no guard has this request";

fn guard_of(request: &HttpRequest) -> Result<Rc<RequestGuard>, actix_web::Error> {
    let guard = request.extensions().get::<Guarded>().map(|Guarded(guard)| Rc::clone(guard));
    let guard = guard.ok_or_else(|| ErrorInternalServerError(NOT_GUARDED))?;
    guard.touch();
    Ok(guard)
}

/// Extracts the claim under which a handler runs. Pass a [derived key](Claim::derive_key) to each provider that the
/// handler calls.
///
/// Use `Option<Claim>` on a route whose key is optional.
///
/// ```
/// use actix_web::HttpResponse;
/// use oncekey::Claim;
///
/// async fn charge(claim: Claim) -> HttpResponse {
///     // The provider performs the charge once for this key, however often the handler runs.
///     HttpResponse::Created().body(format!("charged under {}", claim.derive_key("charge")))
/// }
/// # let _ = charge;
/// ```
impl FromRequest for Claim {
    type Error = actix_web::Error;
    type Future = Ready<Result<Self, Self::Error>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(guard_of(request).map(|guard| guard.claim().clone()))
    }
}

/// Extracts a transaction on the record's own database. The handler's writes in it commit together with the response.
///
/// The writes happen exactly once. If the process dies before the commit, nothing happened; if it dies after the
/// commit, the retry replays. So a handler that takes a `Transaction` **reruns after a crash**, unless the route or the
/// engine sets [`OnAbandoned`]. Outside the transaction, such a handler must have no effect that may not happen twice.
///
/// ```
/// use actix_web::HttpResponse;
/// use diesel::{RunQueryDsl, SqliteConnection};
/// use oncekey::web::{Transaction, TransactionError};
///
/// async fn order(transaction: Transaction) -> Result<HttpResponse, TransactionError<diesel::result::Error>> {
///     transaction
///         .run(|tx: &mut SqliteConnection, claim| {
///             diesel::sql_query("INSERT INTO orders (item) VALUES ('book')").execute(tx)?;
///             Ok(HttpResponse::Created().body(format!("ordered by {}", claim.key())))
///         })
///         .await
/// }
/// # let _ = order;
/// ```
///
/// **Take it as an argument of every handler of a method and pattern, or set the route's [`OnAbandoned`].** After one
/// handler there has taken it, the guard claims with `Rerun` before it knows which handler runs. If a handler without a
/// `Transaction` then gives an answer that does not say what happened, its key is still held, as elsewhere. But if its
/// process dies, the claim's `Rerun` applies, and the retry runs: the effect can happen twice.
///
/// **The first `Transaction` of a method and pattern claims its key twice.** From it, the guard learns that the
/// handlers there take one. Each process must learn this again, and until then it claims with
/// [`Hold`](OnAbandoned::Hold). When the extractor runs, before the handler begins, the guard releases the key and
/// claims it again with `Rerun`. This has four consequences:
///
/// - If the process dies between the first claim and its release, the key becomes indeterminate although nothing ran.
///   This affects only requests that arrive before the first extractor has run. Set
///   [`on_abandoned(OnAbandoned::Rerun)`](super::RouteRules::on_abandoned) for the route to avoid it.
/// - Take the transaction before [`Claim`], or use [`claim`](Self::claim): a `Claim` that was extracted earlier is the
///   released one.
/// - If the second claim fails, because another request has taken the key or the store is unavailable, the guard
///   answers and the extractor never returns. So no handler runs without its claim, not even one that takes an
///   `Option<Transaction>`.
/// - If the handler has waited for something before it calls `Transaction::extract`, or middleware inside the guard
///   has, there may have been an effect. For this first request, the claim then stays with `Hold`.
pub struct Transaction {
    guard: Rc<RequestGuard>,
    request: HttpRequest,
}

impl FromRequest for Transaction {
    type Error = actix_web::Error;
    type Future = LocalBoxFuture<'static, Result<Self, Self::Error>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let request = request.clone();
        let taking = async move {
            let guard = guard_of(&request)?;
            guard.took_transaction.set(true);
            if guard.policy.get().on_abandoned.is_none() {
                // Learn this before the second claim, so that the next request does not need one.
                guard.setup.rules.transactional.learn(&request);
                // A request that has waited may have had an effect, so its key must not be released.
                if !guard.has_waited() {
                    let claimed = Rc::clone(&guard);
                    let asked = request.clone();
                    let claiming = async move { claim_anew(&claimed, &asked).await }.boxed_local().shared();
                    guard.claiming.replace(Some(claiming.clone()));
                    if let Err(not_taken) = claiming.await {
                        // The handler could ignore an error, for example through an `Option<Transaction>`, and would
                        // run without a claim. So the guard answers instead, and drops this future.
                        guard.turn_away(not_taken);
                        return std::future::pending().await;
                    }
                }
            }
            Ok(Self { guard, request })
        };
        taking.boxed_local()
    }
}

/// Claims the key again with the policy of a transaction. The handler has not begun, so nothing has happened yet.
///
/// The store keeps the policy with the claim in case the process dies, so changing it only here is not enough.
async fn claim_anew(guard: &RequestGuard, request: &HttpRequest) -> Result<(), ClaimNotTaken> {
    let policy = CallPolicy { on_abandoned: Some(OnAbandoned::Rerun), ..guard.policy.get() };
    let slot = guard.grant.replace(GrantSlot::Lent);
    let GrantSlot::Held(mut grant) = slot else {
        guard.grant.replace(slot);
        return Ok(());
    };
    if let Err(error) = grant.settle(Settlement::Release).await {
        guard.grant.replace(if grant.is_settled() { GrantSlot::Gone } else { GrantSlot::Held(grant) });
        return Err(ClaimNotTaken::new(guard, &error.into()));
    }
    guard.grant.replace(GrantSlot::Gone);
    guard.policy.set(policy);
    guard.for_transaction.set(true);
    let (engine, key) = (&guard.setup.engine, guard.claim().key().clone());
    let derivation = engine.derivation();
    let (claim, slot) = match engine.begin(&engine.attach(), key.clone(), guard.fingerprint, &policy).await {
        Ok(Admitted::Granted(mut grant)) => match grant.begin().await {
            Ok(()) => (Claim::of(key, &grant, policy.retention, derivation), GrantSlot::Held(grant)),
            Err(error) => return Err(ClaimNotTaken::new(guard, &error.into())),
        },
        Ok(Admitted::Unguarded) => (Claim::unguarded(key, derivation), GrantSlot::Gone),
        // Another request has taken the key in the meantime and finished. This request replays its outcome.
        Ok(Admitted::Replay(outcome)) => {
            let replayed = guard.setup.replay(request, &key, &outcome);
            return Err(replayed.map_or_else(|error| ClaimNotTaken::new(guard, &error), ClaimNotTaken::answered));
        }
        Err(error) => return Err(ClaimNotTaken::new(guard, &error.into())),
    };
    guard.set_claim(claim);
    guard.grant.replace(slot);
    Ok(())
}

/// The answer to a request whose key could not be claimed again for a transaction. Its handler does not run.
#[derive(Clone)]
pub(super) struct ClaimNotTaken {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl ClaimNotTaken {
    fn new(guard: &RequestGuard, error: &IdempotencyError) -> Self {
        Self::answered(guard.setup.rules.respond(error))
    }

    fn answered(response: HttpResponse) -> Self {
        let (status, headers) = (response.status(), response.headers().clone());
        Self { status, headers, body: response.into_body().try_into_bytes().unwrap_or_default() }
    }

    pub(super) fn into_response(self) -> HttpResponse {
        let mut response = HttpResponse::new(self.status);
        *response.headers_mut() = self.headers;
        response.set_body(BoxBody::new(self.body))
    }
}

/// Why a handler's transaction returned no response.
///
/// ```
/// use oncekey::{Error, web::{IdempotencyError, TransactionError}};
///
/// let error = TransactionError::<std::io::Error>::Engine(IdempotencyError::Engine(Error::ClaimLost));
/// # let _ = error;
/// ```
#[derive(Debug, thiserror::Error)]
pub enum TransactionError<E> {
    /// The operation failed, and the database rolled back everything that it wrote. The claim is still held, so the
    /// handler may try again or answer. An answer of 500, 502 or 504 then releases the key, because nothing happened.
    #[error("the operation failed, and was rolled back: {0}")]
    Operation(E),
    /// The engine returned this error.
    #[error(transparent)]
    Engine(IdempotencyError),
}

/// Answers 500 to the operation's own error. Map the error in the handler for another status.
impl<E: fmt::Debug + fmt::Display> ResponseError for TransactionError<E> {
    fn status_code(&self) -> actix_web::http::StatusCode {
        match self {
            Self::Operation(_) => actix_web::http::StatusCode::INTERNAL_SERVER_ERROR,
            Self::Engine(error) => error.status_code(),
        }
    }

    fn error_response(&self) -> HttpResponse {
        match self {
            Self::Operation(_) => HttpResponse::InternalServerError().finish(),
            Self::Engine(error) => error.error_response(),
        }
    }
}

impl Transaction {
    /// Returns the claim under which the handler runs.
    pub fn claim(&self) -> Claim {
        self.guard.claim().clone()
    }

    /// Runs `operation` in a transaction on the store's connection, and stores the response that it returns. Returns
    /// that response for the handler to send. `C` is the store's connection type. The response is any [`Responder`]
    /// whose body is complete: an `HttpResponse`, a `web::Json`, a [`RecordedResponse`].
    ///
    /// **The rollback decides.** `Ok` commits and stores the response, whatever its status. `Err` and a panic roll
    /// back, so nothing happened.
    ///
    /// The operation runs where the store runs its transactions, which for SQLite is the only writer thread. Keep it
    /// short.
    ///
    /// # Errors
    /// [`TransactionError::Operation`] with the operation's own error, after a rollback. [`TransactionError::Engine`]
    /// if the claim was lost in the meantime, the store has no such transactions, the response is a stream, or the
    /// commit failed.
    pub async fn run<C, R, E, F>(&self, operation: F) -> Result<HttpResponse, TransactionError<E>>
    where
        C: Any,
        R: Responder,
        E: Send + 'static,
        F: FnOnce(&mut C, &Claim) -> Result<R, E> + Send + 'static,
    {
        let seal = Seal::of(self);
        self.transact(type_name::<C>(), move |claim, given| {
            let operation = move |connection: &mut C| {
                let response = operation(connection, &claim).map_err(RunError::Operation)?;
                seal.seal(response, claim.key())
            };
            blocking(operation, given)
        })
        .await
    }

    /// Like [`run`](Self::run), for stores with async connections: `diesel_async::AsyncPgConnection` for PostgreSQL,
    /// `diesel_async::AsyncMysqlConnection` for MySQL and MariaDB.
    ///
    /// The operation runs on this worker, and **may run several times**. If the database aborts the transaction in
    /// favor of another (a deadlock, a serialization failure), it rolls everything back, and the store runs the
    /// operation again, a few times at most. Its writes commit once.
    ///
    /// # Errors
    /// As for [`run`](Self::run).
    ///
    /// ```no_run
    /// # struct AsyncPgConnection;
    /// # async fn insert_order(_: &mut AsyncPgConnection) -> Result<u64, std::io::Error> { Ok(17) }
    /// use actix_web::HttpResponse;
    /// use oncekey::web::{Transaction, TransactionError};
    ///
    /// async fn order(transaction: Transaction) -> Result<HttpResponse, TransactionError<std::io::Error>> {
    ///     transaction
    ///         .run_async(async |tx: &mut AsyncPgConnection, _claim| {
    ///             let id = insert_order(tx).await?;
    ///             Ok(HttpResponse::Created().json(id))
    ///         })
    ///         .await
    /// }
    /// # let _ = order;
    /// ```
    pub async fn run_async<C, R, E, F>(&self, mut operation: F) -> Result<HttpResponse, TransactionError<E>>
    where
        C: Any,
        R: Responder,
        E: Send + 'static,
        F: AsyncFnMut(&mut C, &Claim) -> Result<R, E> + Send + 'static,
    {
        let seal = Seal::of(self);
        self.transact(type_name::<C>(), move |claim, given| {
            let operation = async move |connection: &mut C| {
                let response = operation(connection, &claim).await.map_err(RunError::Operation)?;
                seal.seal(response, claim.key())
            };
            awaited(operation, given)
        })
        .await
    }

    async fn transact<E: Send + 'static>(
        &self,
        wanted: &'static str,
        make: impl FnOnce(Claim, Given<FirstResponse, E>) -> TransactionOperation,
    ) -> Result<HttpResponse, TransactionError<E>> {
        let guard = &self.guard;
        let refuse = |error: Error| TransactionError::Engine(IdempotencyError::Engine(error));
        let slot = guard.grant.replace(GrantSlot::Lent);
        let GrantSlot::Held(mut grant) = slot else {
            guard.grant.replace(slot);
            return Err(refuse(Error::ClaimLost));
        };
        let (claim, given) = (self.claim(), Given::default());
        let key = claim.key().clone();
        let operation = make(claim, Given::clone(&given));
        let retention = guard.policy.get().retention;
        match transact(&guard.setup.engine, &key, &mut grant, retention, wanted, operation, given).await {
            Ok(transacted) => {
                guard.grant.replace(GrantSlot::Gone);
                match transacted {
                    Transacted::Ran(response) => Ok(response.into_response()),
                    Transacted::Committed(outcome) => match outcome.open(&key) {
                        Ok(Stored::Value { bytes, .. }) => RecordedResponse::decode(bytes)
                            .map(RecordedResponse::into_response)
                            .map_err(|_| refuse(Error::Corrupt(CorruptOutcome::Content))),
                        Ok(Stored::Tombstone) => Err(refuse(Error::OutcomeNotKept)),
                        Err(corrupt) => Err(refuse(Error::Corrupt(corrupt))),
                    },
                }
            }
            Err(error) => {
                // If the claim is lost, nothing of this handler's work was committed, so its answer is not the key's
                // outcome.
                let is_settled = grant.is_settled();
                guard.grant.replace(if is_settled { GrantSlot::Gone } else { GrantSlot::Held(grant) });
                let is_rolled_back = matches!(
                    error,
                    RunError::Operation(_) | RunError::Engine(Error::Panicked | Error::Unserializable(_))
                );
                if is_rolled_back && !is_settled {
                    guard.rolled_back.set(true);
                }
                Err(match error {
                    RunError::Operation(error) => TransactionError::Operation(error),
                    RunError::Engine(error) => refuse(error),
                })
            }
        }
    }
}

/// Turns an operation's response into its outcome, on the store's thread.
struct Seal {
    /// Replaces the handler's request, which cannot leave its thread, because a `Responder` needs one.
    head: Head,
    kept_headers: Vec<HeaderName>,
    limit: usize,
    sanitizer: Sanitizer,
}

impl Seal {
    fn of(transaction: &Transaction) -> Self {
        let guard = &transaction.guard;
        Self {
            head: Head::of(transaction.request.head()),
            kept_headers: guard.setup.rules.kept_headers.clone(),
            limit: guard.response_limit,
            sanitizer: guard.setup.rules.sanitizer.clone(),
        }
    }

    fn seal<R: Responder, E>(&self, response: R, key: &Key) -> Result<(FirstResponse, SealedOutcome), RunError<E>> {
        let unfit = |why: &str| RunError::Engine(Error::Unserializable(why.to_owned()));
        let response = response.respond_to(&self.head.clone().into_request());
        if response.error().is_some() {
            return Err(unfit("the transaction's response is an error of its responder"));
        }
        let keeps_all = response.extensions().get::<KeepAllHeaders>().is_some();
        let (head, body) = response.into_parts();
        let body = body.try_into_bytes().map_err(|_| unfit("the transaction's response is a stream"))?;
        let (status, headers) = (head.status(), head.headers().clone());
        if status.is_informational() {
            return Err(unfit("the transaction's response is informational, so its caller waits for another"));
        }
        let recorded = (body.len() <= self.limit).then(|| {
            let kept = (!keeps_all).then_some(self.kept_headers.as_slice());
            RecordedResponse::capture(status, &headers, kept, body.clone())
        });
        let recorded = recorded.and_then(|recorded| self.sanitizer.sanitized(recorded));
        let outcome = recorded.map_or_else(|| SealedOutcome::tombstone(key), |recorded| recorded.seal(key));
        Ok((FirstResponse { status, headers, body }, outcome))
    }
}

/// The operation's response for its first caller.
struct FirstResponse {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl FirstResponse {
    fn into_response(self) -> HttpResponse {
        let mut response = HttpResponse::new(self.status);
        *response.headers_mut() = self.headers;
        response.set_body(BoxBody::new(self.body))
    }
}

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction").field("claim", &self.claim()).finish_non_exhaustive()
    }
}
