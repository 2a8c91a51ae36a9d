//! Runs a user's operation inside the writer's transaction.

use std::any::Any;
use std::num::NonZeroU32;
use std::panic::{AssertUnwindSafe, catch_unwind};

use diesel::connection::{AnsiTransactionManager, SimpleConnection as _, TransactionManager};
use diesel::prelude::*;
use oncekey::backend::{
    Complete, CompleteInTransaction, Completed, CompletedInTransaction, OperationFailure, StepCommitted,
    StepInTransaction, StoreError, TransactionOperation,
};
use oncekey::record::transition::{self, Write};
use oncekey::record::{SealedOutcome, State};

use super::error::not_taken;
use super::records;
use super::session::Session;
use super::steps::Outcomes;

/// The depths of the batch's transaction, and of the savepoint in it that an operation runs in.
const TRANSACTION: u32 = 1;
const SAVEPOINT: u32 = 2;

/// Checks that the sender holds the claim, runs the operation in a savepoint, and completes the record.
pub(super) fn complete(
    session: &mut Session,
    message: CompleteInTransaction,
) -> Result<CompletedInTransaction, StoreError> {
    let CompleteInTransaction { key, owner, retention, operation } = message;
    let Some(found) = records::find(&mut session.connection, &key, Outcomes::None)? else {
        return Ok(CompletedInTransaction::Lost);
    };
    // Checked before the operation runs, with a placeholder outcome that is never written.
    let mut complete = Complete { outcome: SealedOutcome::tombstone(&key), key, owner, retention };
    let asked = transition::complete(Some(&found.record), session.now(), &complete);
    match (asked.answer, asked.write, found.record.state) {
        (Completed::Lost, _, _) => return Ok(CompletedInTransaction::Lost),
        // The record is already completed: the answer to the first completion was lost.
        (Completed::Stored, Write::Nothing, State::Completed { outcome, .. }) => {
            return Ok(CompletedInTransaction::Stored { outcome });
        }
        (Completed::Stored, ..) => {}
    }

    let ended = run(session, operation, |session, outcome| {
        complete.outcome = outcome;
        // The record is read again: the operation has the connection, and could have changed it.
        let completed =
            session.step(&complete.key, Outcomes::None, |found, now| transition::complete(found, now, &complete))?;
        Ok(match completed {
            Completed::Stored => Decision::Commit(complete.outcome),
            Completed::Lost => Decision::RollBack(CompletedInTransaction::Lost),
        })
    })?;
    Ok(match ended {
        Ended::Committed(outcome) => CompletedInTransaction::Stored { outcome },
        Ended::Refused(answer) => answer,
        Ended::Failed(OperationFailure::RollBack) => CompletedInTransaction::RolledBack,
        Ended::Failed(OperationFailure::WrongConnection { wanted }) => {
            CompletedInTransaction::WrongConnection { wanted }
        }
    })
}

/// Checks that the sender may run the step, runs the operation in a savepoint, and completes the step.
pub(super) fn commit_step(session: &mut Session, message: StepInTransaction) -> Result<StepCommitted, StoreError> {
    let StepInTransaction { step, operation } = message;
    let outcomes = Outcomes::Of(&step.name);
    let found = records::find(&mut session.connection, &step.key, outcomes)?;
    let found = found.as_ref().map(|found| &found.record);
    if let Err(answer) = transition::may_commit_step(found, session.now(), &step) {
        return Ok(answer);
    }
    let ended = run(session, operation, |session, outcome| {
        let committed =
            session.step(&step.key, outcomes, |found, now| transition::commit_step(found, now, &step, &outcome))?;
        Ok(match committed {
            stored @ StepCommitted::Stored { .. } => Decision::Commit(stored),
            refused => Decision::RollBack(refused),
        })
    })?;
    Ok(match ended {
        Ended::Committed(answer) | Ended::Refused(answer) => answer,
        Ended::Failed(OperationFailure::RollBack) => StepCommitted::RolledBack,
        Ended::Failed(OperationFailure::WrongConnection { wanted }) => StepCommitted::WrongConnection { wanted },
    })
}

/// What to do with an operation's rows.
enum Decision<Kept, Refused> {
    Commit(Kept),
    RollBack(Refused),
}

/// What happened to the operation's rows; final only when the batch commits.
enum Ended<Kept, Refused> {
    Committed(Kept),
    Refused(Refused),
    Failed(OperationFailure),
}

/// Runs an operation in a savepoint. If it returns an outcome, `decide` writes or refuses that outcome.
fn run<Kept, Refused>(
    session: &mut Session,
    operation: TransactionOperation,
    decide: impl FnOnce(&mut Session, SealedOutcome) -> Result<Decision<Kept, Refused>, StoreError>,
) -> Result<Ended<Kept, Refused>, StoreError> {
    AnsiTransactionManager::begin_transaction(&mut session.connection).map_err(|error| not_taken(&error))?;
    if let Err(error) = session.connection.batch_execute("SAVEPOINT oncekey_begun") {
        let refusal = not_taken(&error);
        return if roll_back(&mut session.connection) { Err(refusal) } else { Err(broken(session)) };
    }
    let ran = catch_unwind(AssertUnwindSafe(|| {
        let connection: &mut dyn Any = &mut session.connection;
        operation.run(connection)
    }));
    let depth = depth(&mut session.connection);
    let is_content = matches!(ran, Ok(Ok(_)));
    let failure = match ran {
        Ok(Ok(outcome)) if depth == Some(SAVEPOINT) => return keep(session, outcome, decide),
        Ok(Err(failure)) => failure,
        // The operation left its own transaction open, so which rows it meant to commit is unknown.
        Ok(Ok(_)) | Err(_) => OperationFailure::RollBack,
    };
    if roll_back(&mut session.connection) {
        return Ok(Ended::Failed(failure));
    }
    let unknown = broken(session);
    // Diesel recognizes some of the errors at which SQLite rolls back by itself, and considers its transaction ended.
    Err(if is_content { StoreError::TransactionEnded } else { unknown })
}

/// Writes the outcome and releases the savepoint.
///
/// It first proves that the transaction is still the one in which the operation began. On some errors (`INSERT OR
/// ROLLBACK`, `RAISE(ROLLBACK)`, a full disk) SQLite rolls the whole transaction back and continues in autocommit; the
/// savepoint is then gone. An operation that ignores such an error returns `Ok`, and an outcome written now would be
/// committed without its rows.
fn keep<Kept, Refused>(
    session: &mut Session,
    outcome: SealedOutcome,
    decide: impl FnOnce(&mut Session, SealedOutcome) -> Result<Decision<Kept, Refused>, StoreError>,
) -> Result<Ended<Kept, Refused>, StoreError> {
    let is_as_begun = session.connection.batch_execute("RELEASE oncekey_begun").is_ok();
    if !is_as_begun && !oncekey::__planted!(TransactionNotProven) {
        session.broken = true;
        return Err(StoreError::TransactionEnded);
    }
    match decide(session, outcome) {
        Ok(Decision::Commit(kept)) => match AnsiTransactionManager::commit_transaction(&mut session.connection) {
            Ok(()) => Ok(Ended::Committed(kept)),
            Err(_) => Err(broken(session)),
        },
        Ok(Decision::RollBack(refused)) if roll_back(&mut session.connection) => Ok(Ended::Refused(refused)),
        Err(error) if roll_back(&mut session.connection) => Err(error),
        Ok(Decision::RollBack(_)) | Err(_) => Err(broken(session)),
    }
}

/// Rolls back to before the savepoint. Returns false if the transaction is not the one in which the operation began.
fn roll_back(connection: &mut SqliteConnection) -> bool {
    while depth(connection).is_some_and(|depth| depth > TRANSACTION) {
        if AnsiTransactionManager::rollback_transaction(connection).is_err() {
            return false;
        }
    }
    depth(connection) == Some(TRANSACTION)
}

fn depth(connection: &mut SqliteConnection) -> Option<u32> {
    let status = AnsiTransactionManager::transaction_manager_status_mut(connection);
    status.transaction_depth().ok().flatten().map(NonZeroU32::get)
}

fn broken(session: &mut Session) -> StoreError {
    session.broken = true;
    StoreError::unknown("an operation ended the transaction that it was run in, or SQLite did on its error")
}
