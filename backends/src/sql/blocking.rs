//! Transactions on blocking connections: the application's own connections of sync Diesel.
//!
//! The store's own steps still use its own connections. Only three things are written here: an operation with its
//! outcome, a step with its outcome, and an outcome in the application's own transaction.

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
use oncekey::Key;
use oncekey::backend::{
    CommitStep, Complete, CompleteInTransaction, CompletedInTransaction, OperationFailure, StepCommitted,
    StepInTransaction, StoreError, TransactionOperation,
};
use oncekey::record::{Binding, Record, SealedOutcome, StoreTime};
use tokio::sync::Semaphore;

use super::core::{Core, fitting};
use super::dialect::{Dialect, Failure};
use super::error::{Fate, fate, of_read, of_unsent, of_write};
use super::fragment::Fragment;
use super::noticing::Noticing;
use super::row::Row;
use super::step::Completion;
use super::step_row::{Family, StepRow};
use super::transaction::{Ended, Ending, Refusal};
use crate::CompleteInError;

/// A connection of sync Diesel to a database.
pub(crate) trait BlockingConnection<DB: Backend>: LoadConnection<Backend = DB> {}

impl<DB: Backend, C> BlockingConnection<DB> for C where C: LoadConnection<Backend = DB> {}

/// A connection whose transactions this crate can open with its own statement. A pool's wrapper around a connection
/// does not qualify.
pub(crate) trait Transacting<DB: Backend>:
    BlockingConnection<DB> + LoadConnection<TransactionManager = AnsiTransactionManager>
{
}

impl<DB: Backend, C> Transacting<DB> for C where
    C: BlockingConnection<DB> + LoadConnection<TransactionManager = AnsiTransactionManager>
{
}

impl<ST, P, C> RunQueryDsl<C> for Fragment<'_, ST, P> {}

/// A database's statements on such a connection. Each corresponds to the method of [`Dialect`] with nearly the same
/// name.
pub(crate) trait BlockingDialect: Dialect {
    type Backend: Backend;

    fn begin_on<C: Transacting<Self::Backend>>(&self, connection: &mut C) -> QueryResult<()>;

    fn is_as_begun_on<C: BlockingConnection<Self::Backend>>(&self, connection: &mut C) -> QueryResult<bool>;

    /// Completes a claim that belongs to this owner and is not completed yet. Returns whether it did.
    fn complete_on<C: BlockingConnection<Self::Backend>>(
        &self,
        connection: &mut C,
        row: &Completion<'_>,
    ) -> QueryResult<bool>;

    /// Returns whether this owner has completed the claim before. The caller's commit waits for the flush, if there is
    /// one.
    fn is_completed_on<C: BlockingConnection<Self::Backend>>(
        &self,
        connection: &mut C,
        row: &Completion<'_>,
    ) -> QueryResult<bool>;

    fn lock_on<C: BlockingConnection<Self::Backend>>(
        &self,
        connection: &mut C,
        key: &str,
    ) -> QueryResult<(StoreTime, Option<Row>)>;

    fn read_steps_on<C: BlockingConnection<Self::Backend>>(
        &self,
        connection: &mut C,
        key: &str,
    ) -> QueryResult<Vec<StepRow>>;

    fn put_family_on<C: BlockingConnection<Self::Backend>>(
        &self,
        connection: &mut C,
        family: &Family<'_>,
    ) -> QueryResult<bool>;

    fn set_back_on<C: BlockingConnection<Self::Backend>>(&self, _: &mut C) -> QueryResult<()> {
        Ok(())
    }

    fn clean_on<C: BlockingConnection<Self::Backend>>(&self, connection: &mut C) -> QueryResult<bool>;

    fn is_in_transaction_on<C: BlockingConnection<Self::Backend>>(&self, connection: &mut C) -> QueryResult<bool>;
}

/// What a transaction on such a connection writes besides its operation's rows.
trait BlockingEnding<D: BlockingDialect>: Ending {
    /// Locks the record, decides, and writes the decision.
    fn write_on<C: BlockingConnection<D::Backend>>(
        &self,
        dialect: &D,
        connection: &mut C,
        outcome: &SealedOutcome,
    ) -> QueryResult<Ended<Self::Answer>>;
}

impl<D: BlockingDialect> BlockingEnding<D> for Complete {
    /// Writes with one statement, which finds the claim by its owner.
    fn write_on<C: BlockingConnection<D::Backend>>(
        &self,
        dialect: &D,
        connection: &mut C,
        outcome: &SealedOutcome,
    ) -> QueryResult<Ended<CompletedInTransaction>> {
        let complete = Self { outcome: outcome.clone(), ..self.clone() };
        Ok(if dialect.complete_on(connection, &Completion::of(&complete))? {
            Ended::Written(CompletedInTransaction::Stored { outcome: complete.outcome })
        } else {
            // Another owner has taken over the claim, or the operation has changed the record.
            Ended::Refused(Refusal::Answer(CompletedInTransaction::Lost))
        })
    }
}

impl<D: BlockingDialect> BlockingEnding<D> for CommitStep {
    fn write_on<C: BlockingConnection<D::Backend>>(
        &self,
        dialect: &D,
        connection: &mut C,
        outcome: &SealedOutcome,
    ) -> QueryResult<Ended<StepCommitted>> {
        let (now, found) = match lock(dialect, connection, &self.key)? {
            Ok(found) => found,
            Err(corrupt) => return Ok(Ended::Corrupt(corrupt)),
        };
        let (record, answer) = match self.decide(found.as_ref(), now, outcome) {
            Ok(decided) => decided,
            Err(refusal) => return Ok(Ended::Refused(refusal)),
        };
        let Some(found) = found else { return Ok(Ended::Refused(Refusal::Answer(Self::lost()))) };
        let is_written = dialect.put_family_on(connection, &Family::of(&self.key, &found, &record))?;
        Ok(if is_written { Ended::Written(answer) } else { Ended::Changed })
    }
}

/// Locks a record's row and reads the record with its steps. If there is no row, the time is unknown.
fn lock<D: BlockingDialect, C: BlockingConnection<D::Backend>>(
    dialect: &D,
    connection: &mut C,
    key: &Key,
) -> QueryResult<Result<(StoreTime, Option<Record>), StoreError>> {
    let (now, row) = dialect.lock_on(connection, key.as_stored())?;
    let steps = match &row {
        Some(Row { steps_life: Some(_), .. }) => dialect.read_steps_on(connection, key.as_stored())?,
        _ => Vec::new(),
    };
    let found = row.map(|row| row.decode_with(steps)).transpose();
    Ok(found.map(|found| (now, found)))
}

/// A transaction to run: its ending, the operation, and a flag that is set when nobody waits for it any more.
struct Work<'a, E> {
    ending: &'a E,
    operation: TransactionOperation,
    given_up: &'a AtomicBool,
}

/// How a transaction ended.
enum Transacted<Answer> {
    Committed(Answer),
    /// It was rolled back.
    Refused(Refusal<Answer>),
    /// It was rolled back, because the record has changed since the operation's snapshot.
    Changed,
}

/// One of a [`Pool`]'s methods.
type Transact<D, E> = fn(&dyn Pool<D>, &D, Work<'_, E>) -> Result<Transacted<<E as Ending>::Answer>, StoreError>;

/// A pool of connections whose type only the pool knows.
trait Pool<D>: Send + Sync {
    /// Checks whether the pool's connections reach the table of records.
    fn check(&self, dialect: &D) -> Result<(), String>;

    fn complete(&self, dialect: &D, work: Work<'_, Complete>)
    -> Result<Transacted<CompletedInTransaction>, StoreError>;

    fn commit_step(&self, dialect: &D, work: Work<'_, CommitStep>) -> Result<Transacted<StepCommitted>, StoreError>;
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

    fn complete(
        &self,
        dialect: &D,
        work: Work<'_, Complete>,
    ) -> Result<Transacted<CompletedInTransaction>, StoreError> {
        transact(dialect, &mut *self.get().map_err(StoreError::unavailable)?, work)
    }

    fn commit_step(&self, dialect: &D, work: Work<'_, CommitStep>) -> Result<Transacted<StepCommitted>, StoreError> {
        transact(dialect, &mut *self.get().map_err(StoreError::unavailable)?, work)
    }
}

/// The application's pool, for operations and steps in transactions.
pub(crate) struct Transactions<D> {
    pool: Arc<dyn Pool<D>>,
    /// One permit per connection of the pool, so an operation that waits for a connection blocks no thread.
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
    /// Returns why the pool does not reach the records.
    pub(crate) async fn check(&self, core: &Core<D>) -> Result<(), String> {
        let (pool, dialect) = (Arc::clone(&self.pool), Arc::clone(&core.dialect));
        let checked = tokio::task::spawn_blocking(move || pool.check(&dialect)).await;
        checked.unwrap_or_else(|error| Err(error.to_string()))
    }

    /// Runs a blocking operation and completes its record in one transaction, on a blocking thread. The operation runs
    /// once: if the database aborts its transaction in favor of another one, it is not run again.
    ///
    /// If the future is dropped, the transaction is rolled back, unless its COMMIT was already sent. A caller that asks
    /// later how it ended waits for the record's lock.
    pub(crate) async fn complete(
        &self,
        core: &Core<D>,
        message: CompleteInTransaction,
    ) -> Result<CompletedInTransaction, StoreError> {
        let CompleteInTransaction { key, owner, retention, operation } = message;
        let outcome = SealedOutcome::tombstone(&key);
        let ending = Complete { key, owner, outcome, retention };
        self.run(core, ending, operation, |pool, dialect, work| pool.complete(dialect, work)).await
    }

    /// Does the same for a step of an operation. It locks the record only for the commit, so lease renewals and the
    /// operation's other steps continue in the meantime.
    pub(crate) async fn commit_step(
        &self,
        core: &Core<D>,
        message: StepInTransaction,
    ) -> Result<StepCommitted, StoreError> {
        let StepInTransaction { step, operation } = message;
        self.run(core, step, operation, |pool, dialect, work| pool.commit_step(dialect, work)).await
    }

    async fn run<E>(
        &self,
        core: &Core<D>,
        ending: E,
        operation: TransactionOperation,
        transact: Transact<D, E>,
    ) -> Result<E::Answer, StoreError>
    where
        E: Ending + Send + Sync + 'static,
        E::Answer: Send + 'static,
    {
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(StoreError::unavailable)?;
        if let Err(refusal) = core.may_run(&ending).await? {
            return told(core, refusal).await;
        }
        let (pool, dialect, ending) = (Arc::clone(&self.pool), Arc::clone(&core.dialect), Arc::new(ending));
        let given_up = Arc::new(AtomicBool::new(false));
        let _sets = Sets(Arc::clone(&given_up));
        let asked = Arc::clone(&ending);
        let transacted = tokio::task::spawn_blocking(move || {
            let work = Work { ending: &*asked, operation, given_up: &given_up };
            let answer = transact(&*pool, &dialect, work);
            drop(permit);
            answer
        });
        match transacted.await.unwrap_or_else(|error| Err(StoreError::unknown(error)))? {
            Transacted::Committed(answer) => Ok(answer),
            Transacted::Refused(refusal) => told(core, refusal).await,
            // Nothing was written. The change may be the one that the caller waits for.
            Transacted::Changed => match core.may_run(&*ending).await? {
                Ok(()) => Err(contended_away()),
                Err(refusal) => told(core, refusal).await,
            },
        }
    }
}

/// Returns why a transaction was not committed. If the answer contains an outcome, it waits until that outcome is on
/// the disk.
async fn told<D: Dialect, Answer>(core: &Core<D>, refusal: Refusal<Answer>) -> Result<Answer, StoreError> {
    match refusal {
        Refusal::Answer(answer) => Ok(answer),
        Refusal::Stored(answer) => core.await_flush().await.map(|()| answer),
    }
}

/// Runs the operation and writes its ending. Afterwards the connection is in its original state, or marked as broken so
/// that its pool closes it.
fn transact<D, C, E>(dialect: &D, connection: &mut C, work: Work<'_, E>) -> Result<Transacted<E::Answer>, StoreError>
where
    D: BlockingDialect,
    C: Transacting<D::Backend> + Any,
    E: BlockingEnding<D>,
{
    let (contended, stale) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    connection.set_instrumentation(Noticing::of::<D>(&contended, &stale));
    let done = try_once(dialect, connection, work, &contended);
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

fn try_once<D, C, E>(
    dialect: &D,
    connection: &mut C,
    work: Work<'_, E>,
    contended: &AtomicBool,
) -> Result<Transacted<E::Answer>, StoreError>
where
    D: BlockingDialect,
    C: Transacting<D::Backend> + Any,
    E: BlockingEnding<D>,
{
    let Work { ending, operation, given_up } = work;
    let refused = |answer: E::Answer| Ok(Transacted::Refused(Refusal::Answer(answer)));
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
            // The operation ignored the error and does not know that its rows are gone.
            roll_back(connection)?;
            return Err(contended_away());
        }
        Ok(Ok(outcome)) if matches!(depth, Ok(Some(depth)) if depth.get() == 1) => outcome,
        Ok(Err(OperationFailure::WrongConnection { wanted })) => {
            roll_back(connection)?;
            return refused(E::wrong_connection(wanted));
        }
        // Diesel learns from libpq that a statement of the operation has ended the transaction: its writes may be
        // committed.
        Ok(Ok(_)) if matches!(depth, Ok(None)) => return Err(StoreError::TransactionEnded),
        // If the operation left its own transaction open, it is unknown what it wanted to commit.
        Ok(Ok(_) | Err(OperationFailure::RollBack)) | Err(_) => {
            roll_back(connection)?;
            return refused(E::rolled_back());
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
        // After a failed statement, PostgreSQL refuses every further statement, even if the operation ignored the
        // failure.
        Err(_) => {
            roll_back(connection)?;
            let is_contended = contended.load(Ordering::Relaxed);
            return if is_contended { Err(contended_away()) } else { refused(E::rolled_back()) };
        }
    }
    let fitted = fitting(dialect, ending.bound_to(), &outcome);
    let answer = match ending.write_on(dialect, connection, fitted.as_ref().unwrap_or(&outcome)) {
        Ok(Ended::Written(answer)) => answer,
        Ok(Ended::Refused(refusal)) => {
            roll_back(connection)?;
            return Ok(Transacted::Refused(refusal));
        }
        Ok(Ended::Changed) => {
            roll_back(connection)?;
            return Ok(Transacted::Changed);
        }
        Ok(Ended::Corrupt(error)) => {
            roll_back(connection)?;
            return Err(error);
        }
        Err(error) if D::failure(&error).is_contention() => {
            roll_back(connection)?;
            return Err(contended_away());
        }
        // COMMIT was not sent: the server rolls back when the connection is closed.
        Err(error) => return Err(of_unsent::<D>(&error)),
    };
    // From here on the record is locked. A caller that asks how this transaction ended waits for the lock.
    if given_up.load(Ordering::SeqCst) {
        roll_back(connection)?;
        return Err(StoreError::unavailable("the caller gave up before the commit"));
    }
    match AnsiTransactionManager::commit_transaction(connection) {
        // This caller gets what the operation returned, even if it was too large to be stored.
        Ok(()) => Ok(Transacted::Committed(match fitted {
            Some(fitted) => E::telling(answer, &fitted, outcome),
            None => answer,
        })),
        // COMMIT was sent. Only the server's answer counts.
        Err(error) => match (fate::<D>(&error), D::failure(&error)) {
            (Fate::NotWritten, Failure::Contended | Failure::Locked) => Err(contended_away()),
            (Fate::NotWritten, Failure::Refused) => refused(E::rolled_back()),
            _ => Err(of_write::<D>(&error)),
        },
    }
}

/// Rolls everything back. If that fails, the caller closes the connection, which has the same effect.
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
