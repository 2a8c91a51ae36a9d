//! Transactions on connections that block: the application's own, of sync Diesel.
//!
//! The store's own steps go on by its own connections. Only an operation with its outcome, or an outcome in the
//! application's own transaction, is written here.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use diesel::backend::Backend;
use diesel::connection::{
    AnsiTransactionManager, LoadConnection, TransactionManager as _, get_default_instrumentation,
};
use diesel::r2d2;
use diesel::result::Error;
use diesel::{QueryResult, RunQueryDsl};
use oncekey::backend::{
    Complete, CompleteInTransaction, CompletedInTransaction, OperationFailure, StoreError, TransactionOperation,
};
use oncekey::record::{Binding, SealedOutcome};
use tokio::sync::Semaphore;

use super::core::{Core, fitting};
use super::dialect::{Dialect, Failure};
use super::error::{Fate, fate, of_read, of_unsent, of_write};
use super::fragment::Fragment;
use super::noticing::Noticing;
use super::step::Completion;
use super::transaction::Refusal;
use crate::CompleteInError;

/// A connection of sync Diesel to a database.
pub(crate) trait BlockingConnection<DB: Backend>: LoadConnection<Backend = DB> {}

impl<DB: Backend, C> BlockingConnection<DB> for C where C: LoadConnection<Backend = DB> {}

/// One whose transactions can be opened by a text of this crate's. A pool's wrapper around a connection does not qualify.
pub(crate) trait Transacting<DB: Backend>:
    BlockingConnection<DB> + LoadConnection<TransactionManager = AnsiTransactionManager>
{
}

impl<DB: Backend, C> Transacting<DB> for C where
    C: BlockingConnection<DB> + LoadConnection<TransactionManager = AnsiTransactionManager>
{
}

impl<ST, P, C> RunQueryDsl<C> for Fragment<'_, ST, P> {}

/// What a database must say on such a connection. Each is what the method of [`Dialect`] with nearly the same name is.
pub(crate) trait BlockingDialect: Dialect {
    type Backend: Backend;

    fn begin_on<C: Transacting<Self::Backend>>(&self, connection: &mut C) -> QueryResult<()>;

    fn is_as_begun_on<C: BlockingConnection<Self::Backend>>(&self, connection: &mut C) -> QueryResult<bool>;

    /// Completes a claim that is its owner's and not completed yet; whether it was.
    fn complete_on<C: BlockingConnection<Self::Backend>>(
        &self,
        connection: &mut C,
        row: &Completion<'_>,
    ) -> QueryResult<bool>;

    /// Whether this owner has completed the claim before. The caller's commit waits for the flush, if there is one.
    fn is_completed_on<C: BlockingConnection<Self::Backend>>(
        &self,
        connection: &mut C,
        row: &Completion<'_>,
    ) -> QueryResult<bool>;

    fn set_back_on<C: BlockingConnection<Self::Backend>>(&self, _: &mut C) -> QueryResult<()> {
        Ok(())
    }

    fn clean_on<C: BlockingConnection<Self::Backend>>(&self, connection: &mut C) -> QueryResult<bool>;

    fn is_in_transaction_on<C: BlockingConnection<Self::Backend>>(&self, connection: &mut C) -> QueryResult<bool>;
}

/// A pool of connections whose type only the pool knows.
trait Pool<D>: Send + Sync {
    /// Whether its connections reach the table of records.
    fn check(&self, dialect: &D) -> Result<(), String>;

    fn transact(
        &self,
        dialect: &D,
        complete: Complete,
        operation: TransactionOperation,
        given_up: &AtomicBool,
    ) -> Result<CompletedInTransaction, StoreError>;
}

impl<D, M> Pool<D> for r2d2::Pool<M>
where
    D: BlockingDialect,
    M: r2d2::ManageConnection,
    M::Connection: Transacting<D::Backend>,
{
    fn check(&self, dialect: &D) -> Result<(), String> {
        let mut connection = self.get().map_err(|error| error.to_string())?;
        let none = Completion { key: "", owner: &[], outcome: &[], retention: 0 };
        dialect.is_completed_on(&mut *connection, &none).map(drop).map_err(|error| error.to_string())
    }

    fn transact(
        &self,
        dialect: &D,
        complete: Complete,
        operation: TransactionOperation,
        given_up: &AtomicBool,
    ) -> Result<CompletedInTransaction, StoreError> {
        let mut connection = self.get().map_err(StoreError::unavailable)?;
        transact(dialect, &mut *connection, complete, operation, given_up)
    }
}

/// The application's pool, for operations in transactions.
pub(crate) struct Transactions<D> {
    pool: Arc<dyn Pool<D>>,
    /// As many as the pool has connections: an operation that waits for one blocks no thread.
    permits: Arc<Semaphore>,
}

impl<D> Clone for Transactions<D> {
    fn clone(&self) -> Self {
        Self { pool: Arc::clone(&self.pool), permits: Arc::clone(&self.permits) }
    }
}

/// Sets a flag when it is dropped.
struct Sets(Arc<AtomicBool>);

impl Drop for Sets {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl<D: Dialect> Transactions<D> {
    pub(crate) fn by<M>(pool: r2d2::Pool<M>) -> Self
    where
        D: BlockingDialect,
        M: r2d2::ManageConnection,
        M::Connection: Transacting<D::Backend>,
    {
        let permits = usize::try_from(pool.max_size()).unwrap_or(1).clamp(1, Semaphore::MAX_PERMITS);
        Self { pool: Arc::new(pool), permits: Arc::new(Semaphore::new(permits)) }
    }

    /// # Errors
    /// Why the pool does not reach the records.
    pub(crate) async fn check(&self, core: &Core<D>) -> Result<(), String> {
        let (pool, dialect) = (Arc::clone(&self.pool), Arc::clone(&core.dialect));
        let checked = tokio::task::spawn_blocking(move || pool.check(&dialect)).await;
        checked.unwrap_or_else(|error| Err(error.to_string()))
    }

    /// Runs an operation that blocks and completes its record, in one transaction on a thread for such work. It is run once:
    /// one that the database gives up for another's sake is not done again.
    ///
    /// Dropped midway, the transaction is rolled back, unless its COMMIT was sent by then. Whoever asks afterwards how it
    /// ended waits for the record's lock.
    pub(crate) async fn complete(
        &self,
        core: &Core<D>,
        message: CompleteInTransaction,
    ) -> Result<CompletedInTransaction, StoreError> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(StoreError::unavailable)?;
        let CompleteInTransaction { key, owner, retention, operation } = message;
        let outcome = SealedOutcome::tombstone(&key);
        let complete = Complete { key, owner, outcome, retention };
        match core.may_run(&complete).await? {
            Ok(()) => {}
            Err(Refusal::Answer(answer)) => return Ok(answer),
            Err(Refusal::Stored(answer)) => return core.await_flush().await.map(|()| answer),
        }
        let (pool, dialect) = (Arc::clone(&self.pool), Arc::clone(&core.dialect));
        let given_up = Arc::new(AtomicBool::new(false));
        let _sets = Sets(Arc::clone(&given_up));
        let transacted = tokio::task::spawn_blocking(move || {
            let answer = pool.transact(&dialect, complete, operation, &given_up);
            drop(permit);
            answer
        });
        transacted.await.unwrap_or_else(|error| Err(StoreError::unknown(error)))
    }
}

/// Runs the operation and completes its record. Afterwards the connection is as it was, or marked as broken, so that its
/// pool closes it.
fn transact<D, C>(
    dialect: &D,
    connection: &mut C,
    complete: Complete,
    operation: TransactionOperation,
    given_up: &AtomicBool,
) -> Result<CompletedInTransaction, StoreError>
where
    D: BlockingDialect,
    C: Transacting<D::Backend> + Any,
{
    let (contended, stale) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    connection.set_instrumentation(Noticing::of::<D>(&contended, &stale));
    let done = try_once(dialect, connection, complete, operation, given_up, &contended);
    connection.set_instrumentation(get_default_instrumentation());
    let is_clean = done.is_ok()
        && !stale.load(Ordering::Relaxed)
        && dialect.set_back_on(connection).is_ok()
        && matches!(dialect.clean_on(connection), Ok(true));
    if !is_clean {
        AnsiTransactionManager::transaction_manager_status_mut(connection).set_in_error();
    }
    done
}

fn contended_away() -> StoreError {
    let what = "the database gave the transaction up for the sake of others, and its operation can't be run again";
    StoreError::Overloaded(what.to_owned())
}

fn try_once<D, C>(
    dialect: &D,
    connection: &mut C,
    mut complete: Complete,
    operation: TransactionOperation,
    given_up: &AtomicBool,
    contended: &AtomicBool,
) -> Result<CompletedInTransaction, StoreError>
where
    D: BlockingDialect,
    C: Transacting<D::Backend> + Any,
{
    if given_up.load(Ordering::SeqCst) {
        return Err(StoreError::unavailable("the caller gave up before there was a connection"));
    }
    dialect.begin_on(connection).map_err(|error| of_read::<D>(&error))?;
    let ran = catch_unwind(AssertUnwindSafe(|| {
        let connection: &mut dyn Any = connection;
        operation.run(connection)
    }));
    let depth = AnsiTransactionManager::transaction_manager_status_mut(connection).transaction_depth();
    let is_swallowed = contended.load(Ordering::Relaxed) && !oncekey::__planted!(ContentionSwallowed);
    let outcome = match ran {
        Ok(Ok(_)) if D::CONTENTION_IS_FINAL && is_swallowed => {
            // The operation has passed over the error, and does not know that its rows are gone.
            roll_back(connection)?;
            return Err(contended_away());
        }
        Ok(Ok(outcome)) if matches!(depth, Ok(Some(depth)) if depth.get() == 1) => outcome,
        Ok(Err(OperationFailure::WrongConnection { wanted })) => {
            roll_back(connection)?;
            return Ok(CompletedInTransaction::WrongConnection { wanted });
        }
        // Where it left a transaction of its own open, what it meant to be committed is not known.
        Ok(Ok(_) | Err(OperationFailure::RollBack)) | Err(_) => {
            roll_back(connection)?;
            return Ok(CompletedInTransaction::RolledBack);
        }
    };
    match dialect.is_as_begun_on(connection) {
        Ok(true) => {}
        Ok(false) if oncekey::__planted!(TransactionNotProven) => {}
        Ok(false) => {
            roll_back(connection)?;
            return Err(StoreError::TransactionEnded);
        }
        Err(error) if D::failure(&error) == Failure::Disconnected => return Err(StoreError::unavailable(error)),
        // PostgreSQL refuses every statement after one that failed, also where the operation passed over the failure.
        Err(_) => {
            roll_back(connection)?;
            let is_contended = contended.load(Ordering::Relaxed);
            return if is_contended { Err(contended_away()) } else { Ok(CompletedInTransaction::RolledBack) };
        }
    }
    let fitted = fitting(dialect, Binding::from(&complete.key), &outcome);
    complete.outcome = fitted.unwrap_or_else(|| outcome.clone());
    match dialect.complete_on(connection, &Completion::of(&complete)) {
        Ok(true) => {}
        // The claim is another's by now, or the operation has changed the record.
        Ok(false) => {
            roll_back(connection)?;
            return Ok(CompletedInTransaction::Lost);
        }
        Err(error) if D::failure(&error).is_contention() => {
            roll_back(connection)?;
            return Err(contended_away());
        }
        // COMMIT was not sent: the server rolls back when the connection is closed.
        Err(error) => return Err(of_unsent::<D>(&error)),
    }
    // From here on the record is locked: whoever asks how this ended waits until it has.
    if given_up.load(Ordering::SeqCst) {
        roll_back(connection)?;
        return Err(StoreError::unavailable("the caller gave up before the commit"));
    }
    match AnsiTransactionManager::commit_transaction(connection) {
        Ok(()) => Ok(CompletedInTransaction::Stored { outcome }),
        // COMMIT was sent. Only what the server says of it counts.
        Err(error) => match (fate::<D>(&error), D::failure(&error)) {
            (Fate::NotWritten, Failure::Contended | Failure::Locked) => Err(contended_away()),
            (Fate::NotWritten, Failure::Refused) => Ok(CompletedInTransaction::RolledBack),
            _ => Err(of_write::<D>(&error)),
        },
    }
}

/// Rolls everything back. If that fails the caller closes the connection, which does the same.
fn roll_back<C>(connection: &mut C) -> Result<(), StoreError>
where
    C: diesel::Connection<TransactionManager = AnsiTransactionManager>,
{
    loop {
        let depth = AnsiTransactionManager::transaction_manager_status_mut(connection).transaction_depth();
        match depth {
            Ok(None) => return Ok(()),
            Ok(Some(_)) => {}
            Err(error) => return Err(StoreError::unavailable(error)),
        }
        match AnsiTransactionManager::rollback_transaction(connection) {
            Ok(()) | Err(Error::AlreadyInTransaction) => {}
            Err(error) => return Err(StoreError::unavailable(error)),
        }
    }
}

/// Completes a claim in a transaction that is open on the caller's connection.
pub(crate) fn complete_in<D, C>(dialect: &D, connection: &mut C, message: &Complete) -> Result<(), CompleteInError>
where
    D: BlockingDialect,
    C: BlockingConnection<D::Backend>,
{
    if C::TransactionManager::transaction_manager_status_mut(connection).transaction_depth()?.is_none() {
        return Err(CompleteInError::NoTransaction);
    }
    if !dialect.is_in_transaction_on(connection)? {
        return Err(CompleteInError::TransactionEnded);
    }
    let fitted = fitting(dialect, Binding::from(&message.key), &message.outcome);
    let fitted = fitted.map(|outcome| Complete { outcome, ..message.clone() });
    let completion = Completion::of(fitted.as_ref().unwrap_or(message));
    if dialect.complete_on(connection, &completion)? || dialect.is_completed_on(connection, &completion)? {
        return Ok(());
    }
    Err(CompleteInError::ClaimLost)
}
