//! Reads and writes a record and its steps as a whole.
//!
//! **Every session that writes a step holds the lock of its record's row until the commit.** So a transaction with that
//! lock reads all steps in their current state, the protocol's pure function decides on the whole, and the decision is
//! written and committed. The steps of a batch that read only the record still compare the state on which they were
//! decided, including the life of the record's steps: none of them undoes a step.
//!
//! Nothing takes effect before COMMIT. So a failure before COMMIT leaves nothing behind, and a failure of COMMIT is
//! unknown, unless the server says that it rolled back.

use diesel::QueryResult;
use diesel_async::{AnsiTransactionManager, TransactionManager as _};
use oncekey::Key;
use oncekey::backend::StoreError;
use oncekey::record::transition::Write;
use oncekey::record::{Progress, Record, State, StoreTime};

use super::batch::{MAX_TRIES, pause};
use super::dialect::{Dialect, Failure};
use super::error::{Fate, fate, of_read, of_unsent, of_write};
use super::lent::Lent;
use super::row::Row;
use super::step::Step;
use super::step_row::{Family, StepRow};

/// How one attempt ended.
enum Tried {
    /// The decision is written and still applies.
    Decided,
    /// The decision changes nothing.
    Read {
        /// Whether the answer may contain an outcome that another session's commit stored.
        tells_outcome: bool,
    },
    /// There is no record, so there is no row to lock.
    Absent,
    /// The stored data can't be read.
    Corrupt(StoreError),
    /// Rolled back in favor of another transaction.
    Contended,
}

/// Executes a step on a record and its steps in one transaction. Returns a step that may create a missing record.
pub(super) async fn take<D: Dialect>(dialect: &D, mut step: Box<dyn Step>) -> Option<Box<dyn Step>> {
    for tries in 0..MAX_TRIES {
        match try_once(dialect, &mut *step).await {
            Ok(Tried::Decided | Tried::Read { .. }) => {
                step.answer();
                return None;
            }
            Ok(Tried::Absent) => return Some(step),
            Ok(Tried::Corrupt(error)) => {
                step.refuse(error);
                return None;
            }
            Ok(Tried::Contended) => pause(tries).await,
            Err(error) => {
                step.fail(error);
                return None;
            }
        }
    }
    step.fail(StoreError::unavailable("others changed the record again and again"));
    None
}

/// A connection on which something failed is closed, which rolls back its open transaction.
async fn try_once<D: Dialect>(dialect: &D, step: &mut dyn Step) -> Result<Tried, StoreError> {
    let begin = async |connection: &mut D::Connection| AnsiTransactionManager::begin_transaction(connection).await;
    let (mut lent, ()) = Lent::after(dialect, &[Failure::Disconnected], of_read::<D>, begin).await?;
    let connection = lent.connection()?;
    let tried = match decide(dialect, connection, step).await {
        Ok(Tried::Decided) => {
            // Nothing sent before this takes effect by itself.
            step.state().sent();
            match AnsiTransactionManager::commit_transaction(connection).await {
                Ok(()) => Tried::Decided,
                Err(error) => match (fate::<D>(&error), D::failure(&error)) {
                    (Fate::NotWritten, Failure::Contended | Failure::Locked) => {
                        step.state().refused();
                        return Ok(Tried::Contended);
                    }
                    (Fate::NotWritten, _) => {
                        step.state().refused();
                        return Err(of_write::<D>(&error));
                    }
                    (Fate::Finished | Fate::Lost, _) => {
                        step.state().lost();
                        return Err(of_write::<D>(&error));
                    }
                },
            }
        }
        Ok(tried) => {
            AnsiTransactionManager::rollback_transaction(connection).await.map_err(|error| of_unsent::<D>(&error))?;
            match tried {
                Tried::Read { tells_outcome } => {
                    if tells_outcome {
                        dialect.await_flush(connection).await.map_err(|error| of_read::<D>(&error))?;
                    }
                    Tried::Decided
                }
                tried => tried,
            }
        }
        Err(error) if D::failure(&error) == Failure::Contended => return Ok(Tried::Contended),
        Err(error) => return Err(of_unsent::<D>(&error)),
    };
    lent.give_back();
    Ok(tried)
}

/// Locks, reads, decides and writes. The caller must commit a [decision](Tried::Decided).
async fn decide<D: Dialect>(dialect: &D, connection: &mut D::Connection, step: &mut dyn Step) -> QueryResult<Tried> {
    let (now, found) = match lock(dialect, connection, step.key()).await? {
        Ok(found) => found,
        Err(corrupt) => return Ok(Tried::Corrupt(corrupt)),
    };
    // Every earlier command has ended, or waits for this lock.
    step.state().refused();
    if found.is_none() && !step.group().is_of_steps() {
        return Ok(Tried::Absent);
    }
    let write = step.decide(found.as_ref(), now);
    let is_written = match (&write, &found) {
        (Write::Nothing, found) => {
            return Ok(Tried::Read { tells_outcome: found.as_ref().is_some_and(tells_outcome) });
        }
        (Write::Delete, _) => dialect.remove(connection, step.key().as_stored()).await?,
        (Write::Put(record), Some(found)) => {
            dialect.put_family(connection, &Family::of(step.key(), found, record)).await?
        }
        // No message about steps creates a record.
        (Write::Put(_), None) => false,
    };
    Ok(if is_written { Tried::Decided } else { Tried::Contended })
}

/// Locks a record's row and reads the record with its steps. If there is no row, the time is unknown.
pub(super) async fn lock<D: Dialect>(
    dialect: &D,
    connection: &mut D::Connection,
    key: &Key,
) -> QueryResult<Result<(StoreTime, Option<Record>), StoreError>> {
    let (now, row) = dialect.lock(connection, key.as_stored()).await?;
    let found = with_steps(dialect, connection, key, row).await?;
    Ok(found.map(|found| (now, found)))
}

/// Returns a record with its steps, if it has any.
pub(super) async fn with_steps<D: Dialect>(
    dialect: &D,
    connection: &mut D::Connection,
    key: &Key,
    row: Option<Row>,
) -> QueryResult<Result<Option<Record>, StoreError>> {
    let steps = match &row {
        Some(Row { steps_life: Some(_), .. }) => dialect.read_steps(connection, &[key.as_stored()]).await?,
        _ => Vec::new(),
    };
    let steps: Vec<StepRow> = steps.into_iter().map(|(_, step)| step).collect();
    Ok(row.map(|row| row.decode_with(steps)).transpose())
}

/// Returns whether an answer may contain an outcome that another session's commit stored.
fn tells_outcome(found: &Record) -> bool {
    let steps = found.steps.as_ref().map_or(&[][..], |steps| &steps.list);
    matches!(found.state, State::Completed { .. })
        || steps.iter().any(|step| matches!(step.progress, Progress::Completed(_)))
}
