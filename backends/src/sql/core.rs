//! Executes the protocol's requests, for any dialect.

use std::collections::HashMap;
use std::sync::Arc;

use diesel::QueryResult;
use diesel_async::{AnsiTransactionManager, TransactionManager as _};
use oncekey::Key;
use oncekey::backend::{
    Complete, CompleteInTransaction, CompleteStep, Completed, CompletedInTransaction, List, Lookup, Purge, Purged,
    RecordView, Remove, Removed, Reply, Request, Resolution, Resolve, ResolveStep, Stats, StepCommitted,
    StepInTransaction, StepResolution, StoreError, StoreStats,
};
use oncekey::record::{Binding, SealedOutcome, StoreTime, transition};
use tokio::sync::Semaphore;
use tracing::warn;

use super::batch::{KeysAreNew, rounds, take_round};
#[cfg(feature = "blocking")]
use super::blocking::Transactions;
use super::dialect::{Dialect, Failure, Keyed, Written};
use super::error::{of_read, of_write};
use super::family;
use super::lent::Lent;
use super::row::Row;
use super::step::Completion;
use super::step_row::StepRow;
use super::transaction;
use crate::CompleteInError;
use crate::ask::ask;
use crate::columns::stats_of;

/// How many batches may be in flight at once. While one commits, the next gathers, and a slow batch does not stop the
/// rest.
pub(crate) const BATCHES: usize = 2;
/// Mostly a batch uses one connection for its claims and one for its settlements. Steps of operations and long outcomes
/// use further ones while they last.
pub(crate) const STEP_CONNECTIONS: usize = 2 * BATCHES;

/// One arbiter's access to the records.
pub(crate) struct Core<D> {
    pub(crate) dialect: Arc<D>,
    keys_are_new: Arc<KeysAreNew>,
    /// Users' operations may take long. This limit keeps some connections free for the steps.
    transactions: Arc<Semaphore>,
    /// The application's pool of blocking connections, for operations that block.
    #[cfg(feature = "blocking")]
    blocking: Option<Transactions<D>>,
}

impl<D> Clone for Core<D> {
    fn clone(&self) -> Self {
        Self {
            dialect: Arc::clone(&self.dialect),
            keys_are_new: Arc::clone(&self.keys_are_new),
            transactions: Arc::clone(&self.transactions),
            #[cfg(feature = "blocking")]
            blocking: self.blocking.clone(),
        }
    }
}

impl<D: Dialect> Core<D> {
    pub(crate) fn new(dialect: D) -> Self {
        let transactions = dialect.connections().size().saturating_sub(STEP_CONNECTIONS).max(1);
        Self {
            dialect: Arc::new(dialect),
            keys_are_new: Arc::default(),
            transactions: Arc::new(Semaphore::new(transactions)),
            #[cfg(feature = "blocking")]
            blocking: None,
        }
    }

    /// Sets the pool for operations that block.
    #[cfg(feature = "blocking")]
    pub(crate) fn with_blocking(self, blocking: Option<Transactions<D>>) -> Self {
        Self { blocking, ..self }
    }

    /// Checks on the store's own connections whether an operation may run.
    #[cfg(feature = "blocking")]
    pub(super) async fn may_run<E: transaction::Ending>(
        &self,
        ending: &E,
    ) -> Result<Result<(), transaction::Refusal<E::Answer>>, StoreError> {
        let key = ending.key();
        let read = async |dialect: &D, connection: &mut D::Connection| {
            let (now, rows) = dialect.read(connection, &[key.as_stored()]).await?;
            let row = rows.into_iter().next().map(|(_, row)| row);
            Ok((now, family::with_steps(dialect, connection, key, row).await?))
        };
        let (now, found) = self.reading(read).await?;
        Ok(ending.may_run(found?.as_ref(), now))
    }

    #[cfg(feature = "blocking")]
    pub(super) async fn await_flush(&self) -> Result<(), StoreError> {
        self.reading(async |dialect, connection| dialect.await_flush(connection).await).await
    }

    /// Executes one step by itself.
    pub(crate) async fn ask<A: Send + 'static>(
        &self,
        request: impl FnOnce(Reply<A>) -> Request,
    ) -> Result<A, StoreError> {
        ask(request, async |mut request| {
            self.fit(&mut request);
            let (_, rounds) = rounds(vec![request]);
            for round in rounds {
                take_round(&*self.dialect, &self.keys_are_new, round).await;
            }
        })
        .await
    }

    /// Executes a batch; `other` executes requests that are no steps.
    pub(crate) async fn execute<Fut: Future<Output = ()>>(
        &self,
        mut batch: Vec<Request>,
        other: impl Fn(Request) -> Fut,
    ) {
        batch.iter_mut().for_each(|request| self.fit(request));
        // Removing a row that is no record takes more than a step.
        let (removals, batch): (Vec<_>, Vec<_>) =
            batch.into_iter().partition(|request| matches!(request, Request::Remove(..)));
        let (mut others, rounds) = rounds(batch);
        others.extend(removals);
        let taken = async {
            for round in rounds {
                take_round(&*self.dialect, &self.keys_are_new, round).await;
            }
        };
        futures_util::future::join(taken, futures_util::future::join_all(others.into_iter().map(other))).await;
    }

    /// Replaces an outcome that is too large for the server with a tombstone, because the operation is done all the
    /// same.
    fn fit(&self, request: &mut Request) {
        let (bound_to, outcome) = match request {
            Request::Complete(message, _) => (Binding::from(&message.key), &mut message.outcome),
            Request::Resolve(Resolve { key, with: Resolution::Complete { outcome, .. }, .. }, _) => {
                (Binding::from(&*key), outcome)
            }
            Request::CompleteStep(message, _) => {
                let CompleteStep { key, life, name, outcome, .. } = &mut **message;
                (Binding::step(key, *life, name), outcome)
            }
            Request::ResolveStep(message, _) => match &mut **message {
                // An outcome is sealed for a life, so a resolve with an outcome names the life.
                ResolveStep { key, name, life: Some(life), with: StepResolution::Complete { outcome }, .. } => {
                    (Binding::step(key, *life, name), outcome)
                }
                _ => return,
            },
            _ => return,
        };
        if let Some(tombstone) = fitting(&*self.dialect, bound_to, outcome) {
            *outcome = tombstone;
        }
    }

    pub(crate) async fn complete_in_transaction(
        &self,
        message: CompleteInTransaction,
    ) -> Result<CompletedInTransaction, StoreError> {
        #[cfg(feature = "blocking")]
        if let Some(blocking) = &self.blocking
            && message.operation.is_blocking()
        {
            return blocking.complete(self, message).await;
        }
        let permit = Arc::clone(&self.transactions).acquire_owned().await.map_err(StoreError::unavailable)?;
        transaction::complete(&self.dialect, message, permit).await
    }

    pub(crate) async fn step_in_transaction(&self, message: StepInTransaction) -> Result<StepCommitted, StoreError> {
        #[cfg(feature = "blocking")]
        if let Some(blocking) = &self.blocking
            && message.operation.is_blocking()
        {
            return blocking.commit_step(self, message).await;
        }
        let permit = Arc::clone(&self.transactions).acquire_owned().await.map_err(StoreError::unavailable)?;
        transaction::commit_step(&self.dialect, message, permit).await
    }

    /// Completes a claim in a transaction that is open on the caller's connection.
    pub(crate) async fn complete_in(
        &self,
        connection: &mut D::Connection,
        message: &Complete,
    ) -> Result<(), CompleteInError> {
        let depth = AnsiTransactionManager::transaction_manager_status_mut(connection).transaction_depth()?;
        if depth.is_none() {
            return Err(CompleteInError::NoTransaction);
        }
        if !self.dialect.is_in_transaction(connection).await? {
            return Err(CompleteInError::TransactionEnded);
        }
        let fitted = fitting(&*self.dialect, Binding::from(&message.key), &message.outcome);
        let fitted = fitted.map(|outcome| Complete { outcome, ..message.clone() });
        let message = fitted.as_ref().unwrap_or(message);
        match self.dialect.complete(connection, &[Completion::of(message)]).await? {
            Written::All => return Ok(()),
            Written::Only(keys) if !keys.is_empty() => return Ok(()),
            Written::Only(_) | Written::Some => {}
        }
        let (now, row) = self.dialect.lock(connection, message.key.as_stored()).await?;
        let found = family::with_steps(&*self.dialect, connection, &message.key, row).await??;
        match transition::complete(found.as_ref(), now, message).answer {
            // The same owner has completed the claim before. The caller's commit waits for the flush.
            Completed::Stored => Ok(self.dialect.await_flush(connection).await?),
            Completed::Lost => Err(CompleteInError::ClaimLost),
        }
    }

    pub(crate) async fn lookup(&self, message: Lookup) -> Result<Option<RecordView>, StoreError> {
        let key = message.key.as_stored();
        let read = async |dialect: &D, connection: &mut D::Connection| {
            let read = dialect.read(connection, &[key]).await?;
            completed(dialect, connection, read).await
        };
        let (now, rows) = self.reading(read).await?;
        let Some((_, row, steps)) = rows.into_iter().next() else { return Ok(None) };
        Ok(RecordView::of(message.key, row.decode_with(steps)?, now))
    }

    pub(crate) async fn list(&self, message: List) -> Result<Vec<RecordView>, StoreError> {
        let after = message.after.as_ref().map_or("", Key::as_stored);
        let list = async |dialect: &D, connection: &mut D::Connection| {
            let list = dialect.list(connection, after, message.limit).await?;
            completed(dialect, connection, list).await
        };
        let (now, rows) = self.reading(list).await?;
        rows.into_iter().filter_map(|(key, row, steps)| view(&key, row, steps, now).transpose()).collect()
    }

    pub(crate) async fn stats(&self, _: Stats) -> Result<StoreStats, StoreError> {
        let counts = self.reading(async |dialect, connection| dialect.stats(connection).await).await?;
        stats_of(counts.into_iter().map(|(state, count)| (state.into(), count)))
    }

    pub(crate) async fn remove(&self, message: Remove) -> Result<Removed, StoreError> {
        let removed = self.ask(|reply| Request::Remove(message.clone(), reply)).await;
        if !matches!(removed, Err(StoreError::Corrupt(_))) {
            return removed;
        }
        // A row that is no record has neither a token nor a barrier to keep.
        let key = message.key.as_stored();
        let removed = self.writing(async |dialect, connection| dialect.remove(connection, key).await).await?;
        Ok(if removed { Removed::Removed } else { Removed::Absent })
    }

    pub(crate) async fn purge(&self, message: Purge) -> Result<Purged, StoreError> {
        let limit = message.limit;
        let purged = self.writing(async |dialect, connection| dialect.purge(connection, limit).await).await?;
        let (removed, more) = purged;
        Ok(Purged { removed, more })
    }

    /// Runs statements that only read, or wait for a flush. If the connection broke while it was idle, it runs them
    /// again on another one.
    async fn reading<T>(
        &self,
        statement: impl AsyncFn(&D, &mut D::Connection) -> QueryResult<T>,
    ) -> Result<T, StoreError> {
        self.run(&[Failure::Disconnected, Failure::Contended], of_read::<D>, statement).await
    }

    /// Runs a statement that is safe to repeat.
    pub(crate) async fn writing<T>(
        &self,
        statement: impl AsyncFn(&D, &mut D::Connection) -> QueryResult<T>,
    ) -> Result<T, StoreError> {
        self.run(&[Failure::Disconnected, Failure::Contended], of_write::<D>, statement).await
    }

    async fn run<T>(
        &self,
        passing: &[Failure],
        told: fn(&diesel::result::Error) -> StoreError,
        statement: impl AsyncFn(&D, &mut D::Connection) -> QueryResult<T>,
    ) -> Result<T, StoreError> {
        let run = async |connection: &mut D::Connection| statement(&self.dialect, connection).await;
        let (lent, given) = Lent::after(&*self.dialect, passing, told, run).await?;
        lent.give_back();
        Ok(given)
    }
}

/// Returns a tombstone if the outcome is larger than the server accepts.
pub(crate) fn fitting<D: Dialect>(
    dialect: &D,
    bound_to: Binding<'_>,
    outcome: &SealedOutcome,
) -> Option<SealedOutcome> {
    let (length, limit) = (outcome.as_stored().len(), dialect.longest_outcome());
    if length <= limit {
        return None;
    }
    warn!(length, limit, "an outcome is larger than the server takes: only that the operation is done is kept");
    Some(SealedOutcome::tombstone(bound_to))
}

/// Returns the records, with their steps if they have any, once the outcomes in them are on the disk.
async fn completed<D: Dialect>(
    dialect: &D,
    connection: &mut D::Connection,
    (now, rows): (StoreTime, Vec<Keyed>),
) -> QueryResult<(StoreTime, Vec<(Vec<u8>, Row, Vec<StepRow>)>)> {
    let with_steps = rows.iter().filter(|(_, row)| row.steps_life.is_some());
    let keys: Vec<&str> = with_steps.filter_map(|(key, _)| std::str::from_utf8(key).ok()).collect();
    let steps = if keys.is_empty() { Vec::new() } else { dialect.read_steps(connection, &keys).await? };
    let tells =
        rows.iter().any(|(_, row)| row.outcome.is_some()) || steps.iter().any(|(_, step)| step.outcome.is_some());
    if tells {
        dialect.await_flush(connection).await?;
    }
    let mut of_keys: HashMap<Vec<u8>, Vec<StepRow>> = HashMap::new();
    for (key, step) in steps {
        of_keys.entry(key).or_default().push(step);
    }
    let rows = rows.into_iter().map(|(key, row)| {
        let steps = of_keys.remove(&key).unwrap_or_default();
        (key, row, steps)
    });
    Ok((now, rows.collect()))
}

fn view(key: &[u8], row: Row, steps: Vec<StepRow>, now: StoreTime) -> Result<Option<RecordView>, StoreError> {
    let text = std::str::from_utf8(key).map_err(|_| StoreError::corrupt("a record's key is not UTF-8"))?;
    let key = Key::from_stored(text).map_err(|error| StoreError::corrupt(format!("a record's key: {error}")))?;
    Ok(RecordView::of(key, row.decode_with(steps)?, now))
}
