//! A memory store with transactions on its own rows. It tests what the engine promises for transactions, without a
//! database.

use std::fmt;
use std::sync::Arc;

use oncekey::backend::{
    Acquire, Acquired, Backend, Changed, Complete, CompleteInTransaction, Completed, CompletedInTransaction, Held,
    Hold, List, Lookup, OperationFailure, Purge, Purged, RecordView, Release, Released, Remove, Removed, Renew,
    Renewed, Resolve, Resolved, Stats, StoreError, StoreStats, Watch, Withdraw, Withdrawn,
};
use oncekey_backends::MemoryBackend;
use parking_lot::Mutex;

/// What an operation writes.
///
/// [`COMMIT`](Self::COMMIT) as a row ends the transaction by itself, like that statement in a database.
#[derive(Debug, Clone, Default)]
pub struct Rows(pub Vec<String>);

impl Rows {
    /// Commits the rows before it, without completing the record.
    pub const COMMIT: &str = "COMMIT";
}

/// A memory store whose records and rows commit together.
#[derive(Clone)]
pub struct RowsBackend {
    records: MemoryBackend,
    rows: Arc<Mutex<Rows>>,
}

impl RowsBackend {
    /// Returns an empty store.
    #[must_use]
    pub fn new() -> Self {
        Self { records: MemoryBackend::new(), rows: Arc::default() }
    }

    /// Returns the committed rows.
    pub fn committed(&self) -> Vec<String> {
        self.rows.lock().0.clone()
    }
}

impl Default for RowsBackend {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for RowsBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RowsBackend").field("rows", &self.rows.lock().0.len()).finish_non_exhaustive()
    }
}

impl Backend for RowsBackend {
    async fn acquire(&self, message: Acquire) -> Result<Acquired, StoreError> {
        self.records.acquire(message).await
    }

    async fn renew(&self, message: Renew) -> Result<Renewed, StoreError> {
        self.records.renew(message).await
    }

    async fn complete(&self, message: Complete) -> Result<Completed, StoreError> {
        self.records.complete(message).await
    }

    async fn complete_in_transaction(
        &self,
        message: CompleteInTransaction,
    ) -> Result<CompletedInTransaction, StoreError> {
        let CompleteInTransaction { key, owner, retention, operation } = message;
        let mut written = self.rows.lock().clone();
        let outcome = match operation.run(&mut written) {
            Ok(outcome) => outcome,
            Err(OperationFailure::RollBack) => return Ok(CompletedInTransaction::RolledBack),
            Err(OperationFailure::WrongConnection { wanted }) => {
                return Ok(CompletedInTransaction::WrongConnection { wanted });
            }
        };
        if let Some(end) = written.0.iter().position(|row| row == Rows::COMMIT) {
            written.0.truncate(end);
            *self.rows.lock() = written;
            return Err(StoreError::TransactionEnded);
        }
        let complete = Complete { key, owner, outcome: outcome.clone(), retention };
        match self.records.complete(complete).await? {
            Completed::Stored => {
                *self.rows.lock() = written;
                Ok(CompletedInTransaction::Stored { outcome })
            }
            Completed::Lost => Ok(CompletedInTransaction::Lost),
        }
    }

    async fn release(&self, message: Release) -> Result<Released, StoreError> {
        self.records.release(message).await
    }

    async fn withdraw(&self, message: Withdraw) -> Result<Withdrawn, StoreError> {
        self.records.withdraw(message).await
    }

    async fn hold(&self, message: Hold) -> Result<Held, StoreError> {
        self.records.hold(message).await
    }

    async fn resolve(&self, message: Resolve) -> Result<Resolved, StoreError> {
        self.records.resolve(message).await
    }

    async fn lookup(&self, message: Lookup) -> Result<Option<RecordView>, StoreError> {
        self.records.lookup(message).await
    }

    async fn remove(&self, message: Remove) -> Result<Removed, StoreError> {
        self.records.remove(message).await
    }

    async fn list(&self, message: List) -> Result<Vec<RecordView>, StoreError> {
        self.records.list(message).await
    }

    async fn purge(&self, message: Purge) -> Result<Purged, StoreError> {
        self.records.purge(message).await
    }

    async fn stats(&self, message: Stats) -> Result<StoreStats, StoreError> {
        self.records.stats(message).await
    }

    async fn watch(&self, message: Watch) -> Result<Changed, StoreError> {
        self.records.watch(message).await
    }
}
