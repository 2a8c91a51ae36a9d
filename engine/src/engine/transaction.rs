//! Exactly once: commits the operation's writes and its outcome in one transaction.

use std::any::{Any, type_name};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;

use futures_util::future::FutureExt as _;
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::run::{replayed, sealed};
use super::{Claim, Engine};
use crate::backend::{OperationFailure, StoreError, TransactionOperation};
use crate::call::Admitted;
use crate::claims::{Grant, Settled, Settlement};
use crate::detach::DetachOnDrop;
use crate::record::SealedOutcome;
use crate::{
    CallPolicy, Error, EventKind, Fingerprint, Key, OnAbandoned, OnStoreFailure, Outcome, RunError, ToFingerprint,
};

impl Engine {
    /// Runs `operation` inside a transaction of the record's own database, which also stores its outcome: both commit,
    /// or neither does. Whatever the operation writes through its connection happens **exactly once**.
    ///
    /// `C` is the store's connection type, `diesel::SqliteConnection` for the SQLite backend. An error or a panic rolls
    /// back and releases the key. If the process dies midway, nothing was committed, so the next call takes the
    /// abandoned claim over unless the call's policy says otherwise.
    ///
    /// The operation runs where the store runs its transactions; for SQLite, that is its only writer thread. Keep the
    /// operation short, and make external calls elsewhere.
    ///
    /// # Cancel safety
    /// As for [`run`](Self::run).
    ///
    /// # Errors
    /// As for [`run`](Self::run), and [`Error::NoSuchTransaction`] if the store has no transactions on a `C`.
    ///
    /// ```
    /// # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use diesel::prelude::*;
    /// use diesel::connection::SimpleConnection;
    /// use oncekey::{Engine, Key, Outcome};
    /// use oncekey_backends::SqliteBackend;
    ///
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("shop.db");
    /// let engine = Engine::builder(SqliteBackend::open(&path)?).start()?;
    /// let order = engine
    ///     .run_in_transaction(Key::new("orders", 17)?, &"book", |tx: &mut SqliteConnection, _claim| {
    ///         tx.batch_execute("CREATE TABLE orders (item TEXT); INSERT INTO orders VALUES ('book')")?;
    ///         Ok::<_, diesel::result::Error>("ordered".to_owned())
    ///     })
    ///     .await?;
    /// assert_eq!(order, Outcome::Ran("ordered".into()));
    /// # Ok(()) }
    /// ```
    pub async fn run_in_transaction<C, T, E, F>(
        &self,
        key: Key,
        fingerprint: impl ToFingerprint,
        operation: F,
    ) -> Result<Outcome<T>, RunError<E>>
    where
        C: Any,
        F: FnOnce(&mut C, &Claim) -> Result<T, E> + Send + 'static,
        T: Serialize + DeserializeOwned + Send + 'static,
        E: Send + 'static,
    {
        let fingerprint = fingerprint.to_fingerprint().map_err(Error::from)?;
        self.transact_under(key, fingerprint, type_name::<C>(), move |claim, given| {
            let operation = move |connection: &mut C| operation(connection, &claim).and_then_seal(claim.key());
            blocking(operation, given)
        })
        .await
    }

    /// [`run_in_transaction`](Self::run_in_transaction) for async connections: `diesel_async::AsyncPgConnection` for
    /// PostgreSQL, `diesel_async::AsyncMysqlConnection` for MySQL and MariaDB.
    ///
    /// The operation runs on an arbiter of the engine, in a transaction with the database's default isolation. **It may
    /// run several times**: when the database aborts the transaction because of another one (a deadlock, a
    /// serialization failure), it rolls everything back and the operation runs again, at most a few times. What it
    /// writes through its connection is committed once.
    ///
    /// # Cancel safety
    /// As for [`run`](Self::run).
    ///
    /// # Errors
    /// As for [`run_in_transaction`](Self::run_in_transaction).
    ///
    /// ```no_run
    /// # async fn example(engine: oncekey::Engine) -> Result<(), Box<dyn std::error::Error>> {
    /// # struct AsyncPgConnection;
    /// # async fn insert_order(_: &mut AsyncPgConnection, _: &str) -> Result<u64, std::io::Error> { Ok(17) }
    /// use oncekey::Key;
    ///
    /// let order = engine
    ///     .run_in_async_transaction(Key::new("orders", 17)?, &"book", async |tx: &mut AsyncPgConnection, _claim| {
    ///         insert_order(tx, "book").await
    ///     })
    ///     .await?;
    /// # Ok(()) }
    /// ```
    pub async fn run_in_async_transaction<C, T, E, F>(
        &self,
        key: Key,
        fingerprint: impl ToFingerprint,
        mut operation: F,
    ) -> Result<Outcome<T>, RunError<E>>
    where
        C: Any,
        F: AsyncFnMut(&mut C, &Claim) -> Result<T, E> + Send + 'static,
        T: Serialize + DeserializeOwned + Send + 'static,
        E: Send + 'static,
    {
        let fingerprint = fingerprint.to_fingerprint().map_err(Error::from)?;
        self.transact_under(key, fingerprint, type_name::<C>(), move |claim, given| {
            let operation =
                async move |connection: &mut C| operation(connection, &claim).await.and_then_seal(claim.key());
            awaited(operation, given)
        })
        .await
    }

    /// Claims the key, and runs the operation that `make` builds for the claim in the transaction that completes the
    /// claim.
    async fn transact_under<T, E>(
        &self,
        key: Key,
        fingerprint: Fingerprint,
        wanted: &'static str,
        make: impl FnOnce(Claim, Given<T, E>) -> TransactionOperation + Send + 'static,
    ) -> Result<Outcome<T>, RunError<E>>
    where
        T: DeserializeOwned + Send + 'static,
        E: Send + 'static,
    {
        let policy = CallPolicy {
            on_abandoned: self.policy.on_abandoned.or(Some(OnAbandoned::Rerun)),
            // Without the store there is no transaction to run in.
            on_store_failure: OnStoreFailure::Reject,
            ..self.policy
        };
        let node = self.nodes.current()?;
        match self.begin(&node, key.clone(), fingerprint, &policy).await? {
            Admitted::Replay(outcome) => Ok(Outcome::Replayed(replayed(&key, &outcome)?)),
            Admitted::Unguarded => Err(Error::Stopped.into()),
            Admitted::Granted(mut grant) => {
                let engine = self.clone();
                let running = async move {
                    let claim =
                        Claim::of(key.clone(), &grant, policy.retention, &engine.nodes.shared().settings.derivation);
                    let given = Given::default();
                    let operation = make(claim, Arc::clone(&given));
                    match transact(&engine, &key, &mut grant, policy.retention, wanted, operation, given).await {
                        Ok(Transacted::Ran(value)) => Ok(Outcome::Ran(value)),
                        // The transaction was committed, but the answer was lost on the way. The stored outcome is the
                        // value.
                        Ok(Transacted::Committed(outcome)) => Ok(Outcome::Ran(replayed(&key, &outcome)?)),
                        Err(error) => {
                            // The rollback undid everything, so nothing happened, whatever the policy for failures
                            // says. If the claim can't be released, an event has reported it.
                            let _ = grant.release_if_held().await;
                            Err(error)
                        }
                    }
                };
                let go_on = move |rest: Pin<Box<_>>| drop(node.runtime.spawn(rest));
                DetachOnDrop::new(running, go_on).await
            }
        }
    }
}

/// Pairs an operation's value with the outcome to store for it.
trait AndThenSeal<T, E> {
    fn and_then_seal(self, key: &Key) -> Result<(T, SealedOutcome), RunError<E>>;
}

impl<T: Serialize + DeserializeOwned, E> AndThenSeal<T, E> for Result<T, E> {
    fn and_then_seal(self, key: &Key) -> Result<(T, SealedOutcome), RunError<E>> {
        Ok(sealed(key, &self.map_err(RunError::Operation)?)?)
    }
}

/// A committed transaction.
pub(crate) enum Transacted<T> {
    /// The operation returned this value.
    Ran(T),
    /// The operation's value was lost. The store holds this outcome.
    Committed(SealedOutcome),
}

/// Where an operation leaves its value or error for its caller, because the store's messages carry only bytes.
pub(crate) type Given<T, E> = Arc<Mutex<Option<Result<T, RunError<E>>>>>;

/// Wraps an operation on a blocking connection. It leaves its result in `given`.
pub(crate) fn blocking<C: Any, T: Send + 'static, E: Send + 'static>(
    operation: impl FnOnce(&mut C) -> Result<(T, SealedOutcome), RunError<E>> + Send + 'static,
    given: Given<T, E>,
) -> TransactionOperation {
    TransactionOperation::new(move |connection: &mut C| {
        leave(catch_unwind(AssertUnwindSafe(|| operation(connection))), &given)
    })
}

/// Wraps an operation on an async connection. It leaves its last result in `given`.
pub(crate) fn awaited<C: Any, T: Send + 'static, E: Send + 'static>(
    mut operation: impl AsyncFnMut(&mut C) -> Result<(T, SealedOutcome), RunError<E>> + Send + 'static,
    given: Given<T, E>,
) -> TransactionOperation {
    TransactionOperation::new_async(async move |connection: &mut C| {
        // The async block also catches a panic in the call itself.
        let running = AssertUnwindSafe(async { operation(connection).await });
        leave(running.catch_unwind().await, &given)
    })
}

fn leave<T, E>(
    ran: std::thread::Result<Result<(T, SealedOutcome), RunError<E>>>,
    given: &Given<T, E>,
) -> Result<SealedOutcome, OperationFailure> {
    let (left, told) = match ran {
        Ok(Ok((value, outcome))) => (Ok(value), Ok(outcome)),
        Ok(Err(error)) => (Err(error), Err(OperationFailure::RollBack)),
        Err(_) => (Err(RunError::Engine(Error::Panicked)), Err(OperationFailure::RollBack)),
    };
    *given.lock() = Some(left);
    told
}

/// Runs `operation` in the transaction that completes the grant's record. After an error of the operation, the claim
/// still stands.
pub(crate) async fn transact<T, E>(
    engine: &Engine,
    key: &Key,
    grant: &mut Grant,
    retention: std::time::Duration,
    wanted: &'static str,
    operation: TransactionOperation,
    given: Given<T, E>,
) -> Result<Transacted<T>, RunError<E>> {
    grant.begin().await?;
    let settled = grant.settle(Settlement::CompleteInTransaction { operation, retention }).await;
    let given = given.lock().take();
    match settled {
        Ok(Settled::Committed(outcome)) => match given {
            Some(Ok(value)) => Ok(Transacted::Ran(value)),
            _ => Ok(Transacted::Committed(outcome)),
        },
        Ok(Settled::RolledBack | Settled::Done) => match given {
            Some(Err(error)) => {
                if matches!(error, RunError::Engine(Error::Panicked)) {
                    engine.tell(EventKind::Panicked, key);
                }
                Err(error)
            }
            // The operation succeeded, but the database did not commit it. This counts as a failure of the operation.
            _ => {
                let why = "a constraint that is checked at the commit, or a statement whose failure the operation passed over";
                Err(Error::CommitRefused(why.to_owned()).into())
            }
        },
        Err(Error::Store(error @ StoreError::TransactionEnded)) if !planted!(EndedTransactionReleased) => {
            // Its writes may be partly committed. The key becomes indeterminate, whatever the policy for abandoned
            // claims says.
            let _ = grant.settle(Settlement::Hold).await;
            Err(Error::OutcomeNotStored(error).into())
        }
        Err(Error::Store(StoreError::Unsupported(what))) => {
            Err(Error::NoSuchTransaction { wanted, what: format!("it does not support {what}") }.into())
        }
        Err(error) => Err(error.into()),
    }
}
