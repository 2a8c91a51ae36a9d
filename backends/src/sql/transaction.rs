//! Runs a user's operation, or a step of it, in the transaction that also stores its outcome.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use diesel::QueryResult;
use diesel::connection::get_default_instrumentation;
use diesel::result::Error;
use diesel_async::{AnsiTransactionManager, AsyncConnection, TransactionManager};
use futures_util::future::FutureExt as _;
use oncekey::Key;
use oncekey::backend::{
    CommitStep, Complete, CompleteInTransaction, Completed, CompletedInTransaction, OperationFailure, StepCommitted,
    StepInTransaction, StoreError, TransactionOperation,
};
use oncekey::record::transition::{self, Write};
use oncekey::record::{Binding, Record, SealedOutcome, State, StoreTime};
use tokio::sync::OwnedSemaphorePermit;

use super::batch::pause;
use super::core::fitting;
use super::dialect::{Dialect, Failure};
use super::error::{Fate, fate, of_read, of_unsent, of_write};
use super::family;
use super::lent::Lent;
use super::noticing::Noticing;
use super::step_row::Family;

/// How often a transaction is run again after the database aborted it in favor of another one.
const MAX_RERUNS: u32 = 5;

/// What a transaction writes besides its operation's rows.
pub(crate) trait Ending {
    type Answer: PartialEq;

    fn key(&self) -> &Key;

    /// Returns what the outcome is sealed for.
    fn bound_to(&self) -> Binding<'_>;

    /// Checks whether the operation may run.
    fn may_run(&self, found: Option<&Record>, now: StoreTime) -> Result<(), Refusal<Self::Answer>>;

    /// Decides what to write with this outcome, and what to answer once it is committed.
    fn decide(
        &self,
        found: Option<&Record>,
        now: StoreTime,
        outcome: &SealedOutcome,
    ) -> Result<(Record, Self::Answer), Refusal<Self::Answer>>;

    /// If this answer contains the stored outcome `kept`, replaces it with `returned`.
    fn telling(answer: Self::Answer, kept: &SealedOutcome, returned: SealedOutcome) -> Self::Answer;

    fn lost() -> Self::Answer;

    fn rolled_back() -> Self::Answer;

    fn wrong_connection(wanted: &'static str) -> Self::Answer;
}

/// The answer of a transaction that is rolled back.
pub(crate) enum Refusal<Answer> {
    Answer(Answer),
    /// The answer contains an outcome whose commit may not be on the disk yet.
    Stored(Answer),
}

/// The end of a whole operation.
impl Ending for Complete {
    type Answer = CompletedInTransaction;

    fn key(&self) -> &Key {
        &self.key
    }

    fn bound_to(&self) -> Binding<'_> {
        Binding::from(&self.key)
    }

    fn may_run(&self, found: Option<&Record>, now: StoreTime) -> Result<(), Refusal<Self::Answer>> {
        // The outcome that is passed here is never written.
        self.decide(found, now, &self.outcome).map(drop)
    }

    fn decide(
        &self,
        found: Option<&Record>,
        now: StoreTime,
        outcome: &SealedOutcome,
    ) -> Result<(Record, Self::Answer), Refusal<Self::Answer>> {
        let asked = transition::complete(found, now, &Self { outcome: outcome.clone(), ..self.clone() });
        match (asked.answer, asked.write, found.map(|record| &record.state)) {
            (Completed::Stored, Write::Put(record), _) => {
                Ok((record, CompletedInTransaction::Stored { outcome: outcome.clone() }))
            }
            // Either the answer to the first completion was lost, or an earlier attempt's commit was still in flight
            // when its record was read. This attempt was not needed.
            (Completed::Stored, _, Some(State::Completed { outcome, .. })) => {
                Err(Refusal::Stored(CompletedInTransaction::Stored { outcome: outcome.clone() }))
            }
            // Another owner has taken over the claim, or the operation has changed the record.
            _ => Err(Refusal::Answer(CompletedInTransaction::Lost)),
        }
    }

    fn telling(answer: Self::Answer, kept: &SealedOutcome, returned: SealedOutcome) -> Self::Answer {
        match answer {
            CompletedInTransaction::Stored { outcome } if outcome == *kept => {
                CompletedInTransaction::Stored { outcome: returned }
            }
            answer => answer,
        }
    }

    fn lost() -> Self::Answer {
        CompletedInTransaction::Lost
    }

    fn rolled_back() -> Self::Answer {
        CompletedInTransaction::RolledBack
    }

    fn wrong_connection(wanted: &'static str) -> Self::Answer {
        CompletedInTransaction::WrongConnection { wanted }
    }
}

/// The end of a step of an operation.
impl Ending for CommitStep {
    type Answer = StepCommitted;

    fn key(&self) -> &Key {
        &self.key
    }

    fn bound_to(&self) -> Binding<'_> {
        Binding::step(&self.key, self.life, &self.name)
    }

    fn may_run(&self, found: Option<&Record>, now: StoreTime) -> Result<(), Refusal<Self::Answer>> {
        transition::may_commit_step(found, now, self).map_err(refusal)
    }

    fn decide(
        &self,
        found: Option<&Record>,
        now: StoreTime,
        outcome: &SealedOutcome,
    ) -> Result<(Record, Self::Answer), Refusal<Self::Answer>> {
        let step = transition::commit_step(found, now, self, outcome);
        match step.write {
            Write::Put(record) => Ok((record, step.answer)),
            Write::Nothing | Write::Delete => Err(refusal(step.answer)),
        }
    }

    fn telling(answer: Self::Answer, kept: &SealedOutcome, returned: SealedOutcome) -> Self::Answer {
        match answer {
            StepCommitted::Stored { outcome, life } if outcome == *kept => {
                StepCommitted::Stored { outcome: returned, life }
            }
            answer => answer,
        }
    }

    fn lost() -> Self::Answer {
        StepCommitted::Lost
    }

    fn rolled_back() -> Self::Answer {
        StepCommitted::RolledBack
    }

    fn wrong_connection(wanted: &'static str) -> Self::Answer {
        StepCommitted::WrongConnection { wanted }
    }
}

fn refusal(answer: StepCommitted) -> Refusal<StepCommitted> {
    match answer {
        StepCommitted::Completed { .. } => Refusal::Stored(answer),
        answer => Refusal::Answer(answer),
    }
}

/// How one attempt ended.
enum Tried<Answer> {
    Done(Answer),
    /// The operation failed, and one of its statements met contention.
    Contended(Answer),
    /// The operation succeeded, but the database rolled it back in favor of another transaction.
    GivenUp,
}

/// Runs the operation and completes its record in one transaction. The permit is held until the connection is clean.
pub(crate) async fn complete<D: Dialect>(
    dialect: &Arc<D>,
    message: CompleteInTransaction,
    permit: OwnedSemaphorePermit,
) -> Result<CompletedInTransaction, StoreError> {
    let CompleteInTransaction { key, owner, retention, operation } = message;
    let outcome = SealedOutcome::tombstone(&key);
    run(dialect, &Complete { key, owner, outcome, retention }, operation, permit).await
}

/// Runs a step's operation and completes the step in one transaction, as [`complete`] does.
pub(crate) async fn commit_step<D: Dialect>(
    dialect: &Arc<D>,
    message: StepInTransaction,
    permit: OwnedSemaphorePermit,
) -> Result<StepCommitted, StoreError> {
    run(dialect, &message.step, message.operation, permit).await
}

async fn run<D: Dialect, E: Ending>(
    dialect: &Arc<D>,
    ending: &E,
    mut operation: TransactionOperation,
    permit: OwnedSemaphorePermit,
) -> Result<E::Answer, StoreError> {
    let (contended, stale) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let mut reruns = 0;
    loop {
        contended.store(false, Ordering::Relaxed);
        let mut lent = begin(&**dialect).await?;
        lent.connection()?.set_instrumentation(Noticing::of::<D>(&contended, &stale));
        let tried = try_once(&**dialect, &mut lent, ending, &mut operation, &contended).await;
        // After an error, the connection is closed together with its open transaction.
        let tried = tried?;
        let connection = lent.connection()?;
        connection.set_instrumentation(get_default_instrumentation());
        match tried {
            Tried::Contended(_) | Tried::GivenUp if reruns < MAX_RERUNS => clean_up(&**dialect, lent).await,
            // The operation itself did not fail: another attempt may succeed.
            Tried::GivenUp => {
                clean_up(&**dialect, lent).await;
                let what = "the database gave the transaction up for the sake of others, again and again";
                return Err(StoreError::Overloaded(what.to_owned()));
            }
            Tried::Contended(answer) | Tried::Done(answer) if stale.load(Ordering::Relaxed) => return Ok(answer),
            Tried::Contended(answer) | Tried::Done(answer) => {
                // The answer is final and need not wait for the cleanup.
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

/// Returns a connection to the pool in its original state, or closes it.
async fn clean_up<D: Dialect>(dialect: &D, mut lent: Lent<D::Connection>) {
    let Ok(connection) = lent.connection() else { return };
    if dialect.set_back(connection).await.is_ok() && matches!(dialect.clean(connection).await, Ok(true)) {
        lent.give_back();
    }
}

/// Opens a transaction. If the connection broke while it was idle, this detects it before anything has run.
async fn begin<D: Dialect>(dialect: &D) -> Result<Lent<D::Connection>, StoreError> {
    let begin = async |connection: &mut D::Connection| dialect.begin(connection).await;
    Ok(Lent::after(dialect, &[Failure::Disconnected], of_read::<D>, begin).await?.0)
}

async fn try_once<D: Dialect, E: Ending>(
    dialect: &D,
    lent: &mut Lent<D::Connection>,
    ending: &E,
    operation: &mut TransactionOperation,
    contended: &AtomicBool,
) -> Result<Tried<E::Answer>, StoreError> {
    let connection = lent.connection()?;
    // This check comes before the operation, so that an owner that has lost its claim writes nothing. It does not lock
    // the row yet: lease renewals continue while the operation runs and wait for nobody.
    let key = ending.key().as_stored();
    let read = if operation.is_probe() {
        // Readers do not see a commit that waits for a standby, but that commit keeps its lock on the row. A session
        // that gets the lock knows how every earlier commit ended.
        dialect.lock(connection, key).await
    } else {
        let read = dialect.read(connection, &[key]).await;
        read.map(|(now, rows)| (now, rows.into_iter().next().map(|(_, row)| row)))
    };
    let (now, row) = read.map_err(|error| of_read::<D>(&error))?;
    let found = family::with_steps(dialect, connection, ending.key(), row).await;
    let found = found.map_err(|error| of_read::<D>(&error))??;
    if let Err(refusal) = ending.may_run(found.as_ref(), now) {
        return refuse(dialect, connection, refusal).await;
    }
    let ran = AssertUnwindSafe(operation.run_async(connection)).catch_unwind().await;
    let depth = AnsiTransactionManager::transaction_manager_status_mut(connection).transaction_depth();
    let is_swallowed = contended.load(Ordering::Relaxed) && !oncekey::__planted!(ContentionSwallowed);
    if D::CONTENTION_IS_FINAL && is_swallowed && matches!(ran, Ok(Ok(_))) {
        // The operation ignored the error and does not know that its rows are gone. Whatever it wrote afterwards is
        // rolled back too: see `Dialect::begin`.
        roll_back(connection).await?;
        return Ok(Tried::GivenUp);
    }
    let failure = match ran {
        Ok(Ok(outcome)) if matches!(depth, Ok(Some(depth)) if depth.get() == 1) => {
            let fitted = fitting(dialect, ending.bound_to(), &outcome);
            let kept = keep(dialect, connection, ending, fitted.as_ref().unwrap_or(&outcome), contended).await?;
            // This caller gets what the operation returned, even if it was too large to be stored.
            return Ok(match (kept, fitted) {
                (Tried::Done(answer), Some(fitted)) => Tried::Done(E::telling(answer, &fitted, outcome)),
                (kept, _) => kept,
            });
        }
        // The operation left its own transaction open, so it is unknown what it wanted to commit.
        Ok(Ok(_)) | Err(_) | Ok(Err(OperationFailure::RollBack)) => E::rolled_back(),
        Ok(Err(OperationFailure::WrongConnection { wanted })) => E::wrong_connection(wanted),
    };
    roll_back(connection).await?;
    let is_contended = contended.load(Ordering::Relaxed) && failure == E::rolled_back();
    Ok(if is_contended { Tried::Contended(failure) } else { Tried::Done(failure) })
}

/// Locks the record, writes the outcome and commits. If another owner has taken over the claim, it rolls back
/// everything that the operation wrote.
async fn keep<D: Dialect, E: Ending>(
    dialect: &D,
    connection: &mut D::Connection,
    ending: &E,
    outcome: &SealedOutcome,
    contended: &AtomicBool,
) -> Result<Tried<E::Answer>, StoreError> {
    let gave_up = Ok(Tried::GivenUp);
    match dialect.is_as_begun(connection).await {
        Ok(true) => {}
        Ok(false) if oncekey::__planted!(TransactionNotProven) => {}
        // The operation must not run again: anything it wrote before a COMMIT of its own would be written twice.
        Ok(false) => {
            roll_back(connection).await?;
            return Err(StoreError::TransactionEnded);
        }
        Err(error) if D::failure(&error) == Failure::Disconnected => return Err(StoreError::unavailable(error)),
        // After a failed statement, PostgreSQL refuses every further statement, even if the operation ignored the
        // failure (a unique violation, for example). The transaction can't be committed, and the operation caused that.
        Err(_) => {
            roll_back(connection).await?;
            let is_contended = contended.load(Ordering::Relaxed);
            return Ok(if is_contended { Tried::GivenUp } else { Tried::Done(E::rolled_back()) });
        }
    }
    let answer = match decide(dialect, connection, ending, outcome).await {
        Ok(Ended::Written(answer)) => answer,
        Ok(Ended::Refused(refusal)) => return refuse(dialect, connection, refusal).await,
        Ok(Ended::Corrupt(error)) => return Err(error),
        Ok(Ended::Changed) => {
            roll_back(connection).await?;
            return gave_up;
        }
        Err(error)
            if D::failure(&error).is_contention()
                || contended.load(Ordering::Relaxed) && D::failure(&error) != Failure::Disconnected =>
        {
            roll_back(connection).await?;
            return gave_up;
        }
        // COMMIT was not sent, and the transaction was open: the server rolls it back when the connection is closed.
        Err(error) => return Err(of_unsent::<D>(&error)),
    };
    match AnsiTransactionManager::commit_transaction(connection).await {
        Ok(()) => Ok(Tried::Done(answer)),
        // COMMIT was sent. Only the server's answer counts.
        Err(error) => match (fate::<D>(&error), D::failure(&error)) {
            (Fate::NotWritten, Failure::Contended | Failure::Locked) => gave_up,
            // For example, a deferred constraint on the operation's rows failed: the database rolled back.
            (Fate::NotWritten, Failure::Refused) => Ok(Tried::Done(E::rolled_back())),
            _ => Err(of_write::<D>(&error)),
        },
    }
}

/// What happened to the record in the open transaction.
pub(super) enum Ended<Answer> {
    Written(Answer),
    Refused(Refusal<Answer>),
    /// A step has changed since the transaction's snapshot.
    Changed,
    /// The stored data can't be read.
    Corrupt(StoreError),
}

/// Locks the record, decides, and writes the decision.
async fn decide<D: Dialect, E: Ending>(
    dialect: &D,
    connection: &mut D::Connection,
    ending: &E,
    outcome: &SealedOutcome,
) -> QueryResult<Ended<E::Answer>> {
    let (now, found) = match family::lock(dialect, connection, ending.key()).await? {
        Ok(found) => found,
        Err(corrupt) => return Ok(Ended::Corrupt(corrupt)),
    };
    let (record, answer) = match ending.decide(found.as_ref(), now, outcome) {
        Ok(decided) => decided,
        Err(refusal) => return Ok(Ended::Refused(refusal)),
    };
    let Some(found) = found else { return Ok(Ended::Refused(Refusal::Answer(E::lost()))) };
    let is_written = dialect.put_family(connection, &Family::of(ending.key(), &found, &record)).await?;
    Ok(if is_written { Ended::Written(answer) } else { Ended::Changed })
}

/// Rolls this attempt back and returns the reason.
async fn refuse<D: Dialect, Answer>(
    dialect: &D,
    connection: &mut D::Connection,
    refusal: Refusal<Answer>,
) -> Result<Tried<Answer>, StoreError> {
    roll_back(connection).await?;
    match refusal {
        Refusal::Answer(answer) => Ok(Tried::Done(answer)),
        Refusal::Stored(answer) => {
            // Otherwise the flush would be part of a transaction that is never committed.
            dialect.set_back(connection).await.map_err(|error| of_read::<D>(&error))?;
            dialect.await_flush(connection).await.map_err(|error| of_read::<D>(&error))?;
            Ok(Tried::Done(answer))
        }
    }
}

/// Rolls everything back. If that fails, the caller closes the connection, which has the same effect.
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
