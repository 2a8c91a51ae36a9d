//! A user's operation in the transaction that completes its record.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use diesel::connection::get_default_instrumentation;
use diesel::result::Error;
use diesel_async::{AnsiTransactionManager, AsyncConnection, TransactionManager};
use futures_util::future::FutureExt as _;
use oncekey::backend::{
    Complete, CompleteInTransaction, Completed, CompletedInTransaction, OperationFailure, StoreError,
};
use oncekey::record::transition::{self, Write};
use oncekey::record::{Record, SealedOutcome, State};
use tokio::sync::OwnedSemaphorePermit;

use super::batch::pause;
use super::core::fitting;
use super::dialect::{Dialect, Failure, Written};
use super::error::{Fate, fate, of_read, of_write};
use super::lent::Lent;
use super::noticing::{Noticing, Question};
use super::row::{Columns, Expected, Row};

/// How often a transaction that the database gives up for another's sake is done again.
const MAX_RERUNS: u32 = 5;

type Answer = Result<CompletedInTransaction, StoreError>;

/// How one try ended.
enum Tried {
    Done(CompletedInTransaction),
    /// Rolled back for another transaction's sake.
    Contended(CompletedInTransaction),
}

/// Runs the operation and completes its record, in one transaction. The permit is kept until the connection is clean.
pub(crate) async fn complete<D: Dialect>(
    dialect: &Arc<D>,
    mut message: CompleteInTransaction,
    permit: OwnedSemaphorePermit,
) -> Answer {
    let (contended, stale) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let is_contention: Question = |error| D::failure(error).is_contention();
    // The server is another one by now, to which a new connection may lead.
    let is_stale: Question = |error| matches!(D::failure(error), Failure::Disconnected | Failure::ReadOnly);
    let mut reruns = 0;
    loop {
        contended.store(false, Ordering::Relaxed);
        let mut lent = begin(&**dialect).await?;
        lent.connection()?.set_instrumentation(Noticing::new([(&contended, is_contention), (&stale, is_stale)]));
        let tried = try_once(&**dialect, &mut lent, &mut message, &contended).await;
        // After an error the connection is closed with what is open on it.
        let tried = tried?;
        let connection = lent.connection()?;
        match get_default_instrumentation() {
            Some(default) => connection.set_instrumentation(default),
            None => connection.set_instrumentation(None::<Box<dyn diesel::connection::Instrumentation>>),
        }
        match tried {
            Tried::Contended(_) if reruns < MAX_RERUNS => clean_up(&**dialect, lent).await,
            Tried::Contended(answer) | Tried::Done(answer) if stale.load(Ordering::Relaxed) => return Ok(answer),
            Tried::Contended(answer) | Tried::Done(answer) => {
                // The answer stands, and does not wait.
                let dialect = Arc::clone(dialect);
                tokio::spawn(async move {
                    clean_up(&*dialect, lent).await;
                    drop(permit);
                });
                return Ok(answer);
            }
        }
        reruns += 1;
        pause(reruns).await;
    }
}

/// Gives a connection back as it was, or closes it.
async fn clean_up<D: Dialect>(dialect: &D, mut lent: Lent<D>) {
    let Ok(connection) = lent.connection() else { return };
    if dialect.set_back(connection).await.is_ok() && matches!(dialect.clean(connection).await, Ok(true)) {
        lent.give_back();
    }
}

/// Opens a transaction. A connection that broke while it lay in the pool is found out here, where nothing has run yet.
async fn begin<D: Dialect>(dialect: &D) -> Result<Lent<D>, StoreError> {
    let begin = async |connection: &mut D::Connection| dialect.begin(connection).await;
    Ok(Lent::after(dialect, &[Failure::Disconnected], of_read::<D>, begin).await?.0)
}

async fn try_once<D: Dialect>(
    dialect: &D,
    lent: &mut Lent<D>,
    message: &mut CompleteInTransaction,
    contended: &AtomicBool,
) -> Result<Tried, StoreError> {
    let connection = lent.connection()?;
    // Asked before the operation runs, so that a holder that has lost its claim writes nothing. The row is not locked
    // yet: the claim's heartbeats go on while the operation runs, and wait for nobody.
    let key = message.key.as_stored();
    let read = if message.operation.is_probe() {
        // A commit that waits for a standby is not seen by those who only read, but it keeps its lock on the row: whoever
        // has the lock knows how every commit before it ended.
        dialect.lock(connection, key).await
    } else {
        let read = dialect.read(connection, &[key]).await;
        read.map(|(now, rows)| (now, rows.into_iter().next().map(|(_, row)| row)))
    };
    let (now, row) = read.map_err(|error| of_read::<D>(&error))?;
    let found = row.map(Row::decode).transpose()?;
    // With an outcome that is never written.
    let mut complete = Complete {
        key: message.key.clone(),
        owner: message.owner,
        outcome: SealedOutcome::tombstone(&message.key),
        retention: message.retention,
    };
    let asked = transition::complete(found.as_ref(), now, &complete);
    match (asked.answer, asked.write, found.map(|record| record.state)) {
        (Completed::Stored, Write::Put(_), _) => {}
        // The answer to its first completion was lost.
        (Completed::Stored, _, Some(State::Completed { outcome, .. })) => {
            return stored_before(dialect, connection, outcome).await;
        }
        _ => {
            roll_back(connection).await?;
            return Ok(Tried::Done(CompletedInTransaction::Lost));
        }
    }
    let ran = AssertUnwindSafe(message.operation.run_async(connection)).catch_unwind().await;
    let depth = AnsiTransactionManager::transaction_manager_status_mut(connection).transaction_depth();
    if D::CONTENTION_IS_FINAL && contended.load(Ordering::Relaxed) && matches!(ran, Ok(Ok(_))) {
        // The operation has passed over the error, and does not know that its rows are gone. What it wrote since is rolled
        // back as well: see `Dialect::begin`.
        roll_back(connection).await?;
        return Ok(Tried::Contended(CompletedInTransaction::RolledBack));
    }
    let failure = match ran {
        Ok(Ok(outcome)) if matches!(depth, Ok(Some(depth)) if depth.get() == 1) => {
            complete.outcome = fitting(dialect, &complete.key, &outcome).unwrap_or_else(|| outcome.clone());
            let kept = keep(dialect, connection, &complete, contended).await?;
            // This caller gets what the operation returned, also where it was too large to be kept.
            return Ok(match kept {
                Tried::Done(CompletedInTransaction::Stored { outcome: stored }) if stored == complete.outcome => {
                    Tried::Done(CompletedInTransaction::Stored { outcome })
                }
                kept => kept,
            });
        }
        // It left a transaction of its own open, so that what it meant to be committed is not known.
        Ok(Ok(_)) | Err(_) | Ok(Err(OperationFailure::RollBack)) => CompletedInTransaction::RolledBack,
        Ok(Err(OperationFailure::WrongConnection { wanted })) => CompletedInTransaction::WrongConnection { wanted },
    };
    roll_back(connection).await?;
    let is_contended = contended.load(Ordering::Relaxed) && failure == CompletedInTransaction::RolledBack;
    Ok(if is_contended { Tried::Contended(failure) } else { Tried::Done(failure) })
}

/// Locks the record, writes the outcome, and commits. If another has taken the claim over meanwhile, all that the
/// operation wrote is rolled back.
async fn keep<D: Dialect>(
    dialect: &D,
    connection: &mut D::Connection,
    complete: &Complete,
    contended: &AtomicBool,
) -> Result<Tried, StoreError> {
    let gave_up = Ok(Tried::Contended(CompletedInTransaction::RolledBack));
    match dialect.is_as_begun(connection).await {
        Ok(true) => {}
        // Not run again: what it wrote before a COMMIT of its own would be written twice.
        Ok(false) => {
            roll_back(connection).await?;
            return Err(StoreError::TransactionEnded);
        }
        Err(error) if D::failure(&error) == Failure::Disconnected => return Err(StoreError::unavailable(error)),
        // PostgreSQL refuses every statement after one that failed, also where the operation passed over the failure (a
        // unique violation, for one). Nothing of it can be committed, and that is the operation's own doing.
        Err(_) => {
            roll_back(connection).await?;
            let is_contended = contended.load(Ordering::Relaxed);
            let failure = CompletedInTransaction::RolledBack;
            return Ok(if is_contended { Tried::Contended(failure) } else { Tried::Done(failure) });
        }
    }
    let written = match dialect.lock(connection, complete.key.as_stored()).await {
        Ok((now, row)) => {
            let found = row.map(Row::decode).transpose()?;
            let step = transition::complete(found.as_ref(), now, complete);
            match (step.write, &found) {
                (Write::Put(completed), Some(found)) => {
                    let row = (Expected::of(&complete.key, found), Columns::of(&complete.key, &completed));
                    dialect.update(connection, &[row]).await
                }
                // An earlier try's commit was still on its way when its record was looked at: this try is one too many.
                (Write::Nothing, Some(Record { owner, state: State::Completed { outcome, .. }, .. }))
                    if *owner == complete.owner =>
                {
                    return stored_before(dialect, connection, outcome.clone()).await;
                }
                // The claim is another's by now, or the operation has changed the record.
                _ => Ok(Written::Some),
            }
        }
        Err(error) => Err(error),
    };
    match written {
        Ok(Written::All) => {}
        Ok(Written::Only(keys)) if !keys.is_empty() => {}
        Ok(_) => {
            roll_back(connection).await?;
            return Ok(Tried::Done(CompletedInTransaction::Lost));
        }
        Err(error)
            if D::failure(&error).is_contention()
                || contended.load(Ordering::Relaxed) && D::failure(&error) != Failure::Disconnected =>
        {
            roll_back(connection).await?;
            return gave_up;
        }
        // COMMIT was not sent, and the transaction was open: the server rolls it back when the connection is closed.
        Err(error) => return Err(StoreError::unavailable(error)),
    }
    match AnsiTransactionManager::commit_transaction(connection).await {
        Ok(()) => Ok(Tried::Done(CompletedInTransaction::Stored { outcome: complete.outcome.clone() })),
        // COMMIT was sent. Only what the server says of it counts.
        Err(error) => match (fate::<D>(&error), D::failure(&error)) {
            (Fate::NotWritten, Failure::Contended | Failure::Locked) => gave_up,
            // A deferred constraint of the operation's rows, for one: the database rolled back.
            (Fate::NotWritten, Failure::Refused) => Ok(Tried::Done(CompletedInTransaction::RolledBack)),
            _ => Err(of_write::<D>(&error)),
        },
    }
}

/// Rolls this try back, and tells of the one before it, whose commit may not be on the disk yet.
async fn stored_before<D: Dialect>(
    dialect: &D,
    connection: &mut D::Connection,
    outcome: SealedOutcome,
) -> Result<Tried, StoreError> {
    roll_back(connection).await?;
    // Otherwise the flush would be part of a transaction that nobody commits.
    dialect.set_back(connection).await.map_err(|error| of_read::<D>(&error))?;
    dialect.await_flush(connection).await.map_err(|error| of_read::<D>(&error))?;
    Ok(Tried::Done(CompletedInTransaction::Stored { outcome }))
}

/// Rolls everything back. If that fails the caller closes the connection, which does the same.
async fn roll_back<C>(connection: &mut C) -> Result<(), StoreError>
where
    C: AsyncConnection<TransactionManager = AnsiTransactionManager>,
{
    loop {
        let depth = AnsiTransactionManager::transaction_manager_status_mut(connection).transaction_depth();
        match depth {
            Ok(None) => return Ok(()),
            Ok(Some(_)) => {}
            Err(error) => return Err(StoreError::unavailable(error)),
        }
        match AnsiTransactionManager::rollback_transaction(connection).await {
            Ok(()) | Err(Error::AlreadyInTransaction) => {}
            Err(error) => return Err(StoreError::unavailable(error)),
        }
    }
}
