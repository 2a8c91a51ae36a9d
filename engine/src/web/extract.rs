//! What a handler can ask of its guard: the claim, and a transaction that stores its response.

use std::any::{Any, type_name};
use std::fmt;
use std::future::{Ready, ready};
use std::rc::Rc;

use actix_web::dev::Payload;
use actix_web::error::ErrorInternalServerError;
use actix_web::{FromRequest, HttpMessage as _, HttpRequest, HttpResponse, ResponseError};

use super::guard::{GrantSlot, Guarded, RequestGuard};
use super::{RecordedResponse, Refusal};
use crate::backend::TransactionOperation;
use crate::engine::{Claim, Given, Transacted, awaited, blocking, transact};
use crate::record::{Payload as Stored, SealedOutcome};
use crate::{CorruptOutcome, Error, Key, RunError};

const NOT_GUARDED: &str = "the handler asks for its idempotency guard, but no guard is at work on this request";

/// The claim under which a handler runs, as an extractor: its key and its attempt are for what the handler calls.
///
/// Take an `Option<Claim>` on a route whose key is optional.
///
/// ```
/// use actix_web::HttpResponse;
/// use oncekey::Claim;
///
/// async fn charge(claim: Claim) -> HttpResponse {
///     // The provider dedups by the same key.
///     HttpResponse::Created().body(format!("charged under {}", claim.key()))
/// }
/// # let _ = charge;
/// ```
impl FromRequest for Claim {
    type Error = actix_web::Error;
    type Future = Ready<Result<Self, Self::Error>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let found = request.extensions().get::<Guarded>().map(|Guarded(guard)| guard.claim.clone());
        ready(found.ok_or_else(|| ErrorInternalServerError(NOT_GUARDED)))
    }
}

/// A transaction of the record's own database, as an extractor: what the handler writes in it and its response commit
/// together.
///
/// Exactly once for those writes: if the process dies before the commit nothing happened, and if it dies after it the
/// retry replays. Use it with [`OnAbandoned::Rerun`](crate::OnAbandoned::Rerun) on the route, so that a crash in the
/// middle frees the key by itself.
///
/// ```
/// use actix_web::{HttpResponse, http::StatusCode};
/// use diesel::{RunQueryDsl, SqliteConnection};
/// use oncekey::web::{RecordedResponse, Transaction, TransactionError};
///
/// async fn order(transaction: Transaction) -> Result<HttpResponse, TransactionError<diesel::result::Error>> {
///     transaction
///         .run(|tx: &mut SqliteConnection, claim| {
///             diesel::sql_query("INSERT INTO orders (item) VALUES ('book')").execute(tx)?;
///             Ok(RecordedResponse::new(StatusCode::CREATED, format!("ordered by {}", claim.key())))
///         })
///         .await
/// }
/// # let _ = order;
/// ```
pub struct Transaction {
    guard: Rc<RequestGuard>,
}

impl FromRequest for Transaction {
    type Error = actix_web::Error;
    type Future = Ready<Result<Self, Self::Error>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let found = request.extensions().get::<Guarded>().map(|Guarded(guard)| Self { guard: Rc::clone(guard) });
        ready(found.ok_or_else(|| ErrorInternalServerError(NOT_GUARDED)))
    }
}

/// Why a transaction of a handler gave no response.
///
/// ```
/// use oncekey::{Error, web::{Refusal, TransactionError}};
///
/// let error = TransactionError::<std::io::Error>::Refused(Refusal::Engine(Error::ClaimLost));
/// # let _ = error;
/// ```
#[derive(Debug, thiserror::Error)]
pub enum TransactionError<E> {
    /// The operation failed, and what it wrote is rolled back. The claim still stands: the handler may try again, or
    /// answer, and its answer's status says what becomes of the key.
    #[error("the operation failed, and was rolled back: {0}")]
    Operation(E),
    /// The engine's reason.
    #[error(transparent)]
    Refused(Refusal),
}

/// 500 for the operation's own error; a handler that wants another status maps the error.
impl<E: fmt::Debug + fmt::Display> ResponseError for TransactionError<E> {
    fn status_code(&self) -> actix_web::http::StatusCode {
        match self {
            Self::Operation(_) => actix_web::http::StatusCode::INTERNAL_SERVER_ERROR,
            Self::Refused(refusal) => refusal.status_code(),
        }
    }

    fn error_response(&self) -> HttpResponse {
        match self {
            Self::Operation(_) => HttpResponse::InternalServerError().finish(),
            Self::Refused(refusal) => refusal.error_response(),
        }
    }
}

impl Transaction {
    /// The claim under which the handler runs.
    pub fn claim(&self) -> &Claim {
        &self.guard.claim
    }

    /// Runs `operation` in a transaction on the store's connection, and stores the response that it gives; returns that
    /// response to be sent. `C` is the store's type of connection.
    ///
    /// The operation runs where the store runs its transactions, for SQLite on the one writer's thread: keep it short.
    ///
    /// # Errors
    /// [`TransactionError::Operation`] with the operation's own error, all rolled back; [`TransactionError::Refused`] if
    /// the claim was lost meanwhile, the store has no such transactions, or the commit failed.
    pub async fn run<C, E, F>(&self, operation: F) -> Result<HttpResponse, TransactionError<E>>
    where
        C: Any,
        E: Send + 'static,
        F: FnOnce(&mut C, &Claim) -> Result<RecordedResponse, E> + Send + 'static,
    {
        self.transact(type_name::<C>(), move |claim, given| {
            let operation = move |connection: &mut C| sealed(operation(connection, &claim), claim.key());
            blocking(operation, given)
        })
        .await
    }

    /// [`run`](Self::run) for stores whose connections are awaited: `diesel_async::AsyncPgConnection` for PostgreSQL,
    /// `diesel_async::AsyncMysqlConnection` for MySQL and MariaDB.
    ///
    /// The operation runs on this worker, and **may be run several times**: when the database gives the transaction up
    /// for another's sake (a deadlock, a serialization failure), all of it was rolled back and is done again, a few times
    /// at most. What it writes is committed once.
    ///
    /// # Errors
    /// As for [`run`](Self::run).
    ///
    /// ```no_run
    /// # struct AsyncPgConnection;
    /// # async fn insert_order(_: &mut AsyncPgConnection) -> Result<u64, std::io::Error> { Ok(17) }
    /// use actix_web::{HttpResponse, http::StatusCode};
    /// use oncekey::web::{RecordedResponse, Transaction, TransactionError};
    ///
    /// async fn order(transaction: Transaction) -> Result<HttpResponse, TransactionError<std::io::Error>> {
    ///     transaction
    ///         .run_async(async |tx: &mut AsyncPgConnection, _claim| {
    ///             let id = insert_order(tx).await?;
    ///             Ok(RecordedResponse::new(StatusCode::CREATED, format!("order {id}")))
    ///         })
    ///         .await
    /// }
    /// # let _ = order;
    /// ```
    pub async fn run_async<C, E, F>(&self, mut operation: F) -> Result<HttpResponse, TransactionError<E>>
    where
        C: Any,
        E: Send + 'static,
        F: AsyncFnMut(&mut C, &Claim) -> Result<RecordedResponse, E> + Send + 'static,
    {
        self.transact(type_name::<C>(), move |claim, given| {
            let operation = async move |connection: &mut C| sealed(operation(connection, &claim).await, claim.key());
            awaited(operation, given)
        })
        .await
    }

    async fn transact<E: Send + 'static>(
        &self,
        wanted: &'static str,
        make: impl FnOnce(Claim, Given<RecordedResponse, E>) -> TransactionOperation,
    ) -> Result<HttpResponse, TransactionError<E>> {
        let guard = &self.guard;
        let refuse = |error: Error| TransactionError::Refused(Refusal::Engine(error));
        let slot = std::mem::replace(&mut *guard.grant.borrow_mut(), GrantSlot::Lent);
        let GrantSlot::Held(mut grant) = slot else {
            *guard.grant.borrow_mut() = slot;
            return Err(refuse(Error::ClaimLost));
        };
        let (key, given) = (guard.claim.key().clone(), Given::default());
        let operation = make(guard.claim.clone(), Given::clone(&given));
        match transact(&guard.engine, &key, &mut grant, guard.policy.retention, wanted, operation, given).await {
            Ok(transacted) => {
                *guard.grant.borrow_mut() = GrantSlot::Gone;
                let response = match transacted {
                    Transacted::Ran(response) => response,
                    Transacted::Committed(outcome) => match outcome.open(&key) {
                        Ok(Stored::Value { bytes, .. }) => RecordedResponse::decode(bytes)
                            .map_err(|_| refuse(Error::Corrupt(CorruptOutcome::Content)))?,
                        Ok(Stored::Tombstone) => return Err(refuse(Error::OutcomeNotKept)),
                        Err(corrupt) => return Err(refuse(Error::Corrupt(corrupt))),
                    },
                };
                Ok(response.into_response())
            }
            Err(error) => {
                // Where the claim is lost, what the handler answers is not the key's outcome: nothing of it happened.
                let slot = if grant.is_settled() { GrantSlot::Gone } else { GrantSlot::Held(grant) };
                *guard.grant.borrow_mut() = slot;
                Err(match error {
                    RunError::Operation(error) => TransactionError::Operation(error),
                    RunError::Engine(error) => refuse(error),
                })
            }
        }
    }
}

fn sealed<E>(
    response: Result<RecordedResponse, E>,
    key: &Key,
) -> Result<(RecordedResponse, SealedOutcome), RunError<E>> {
    let response = response.map_err(RunError::Operation)?;
    let outcome = response.seal(key);
    Ok((response, outcome))
}

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction").field("claim", self.claim()).finish_non_exhaustive()
    }
}
