//! The backend's handle. It implements the store's side of the protocol: it sends every request to the writer thread or
//! to a reader thread.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use diesel::connection::{AnsiTransactionManager, TransactionManager as _};
use diesel::sqlite::SqliteConnection;
use oncekey::backend::{
    Acquire, Acquired, Backend, BeginStep, Changed, Complete, CompleteInTransaction, CompleteStep, Completed,
    CompletedInTransaction, FailStep, Find, Found, Held, Hold, List, Lookup, Purge, Purged, RecordView, Release,
    Released, Remove, Removed, Renew, Renewed, Reply, Request, Resolve, ResolveStep, Resolved, StateView, Stats,
    StepBegun, StepCommitted, StepCompleted, StepFailed, StepInTransaction, StoreError, StoreStats, Watch, Withdraw,
    Withdrawn,
};
use oncekey::record::transition::{self, Write};
use tokio::time::timeout;

use super::job::Batch;
use super::registry::{self, Store};
use super::session::is_in_transaction;
use super::steps::Outcomes;
use super::{SqliteBuilder, SqliteOpenError, dispatch, records};
use crate::ask::{ask, ask_by_reply, by_asking};
use crate::{CompleteInError, Finding, doctor};

/// A store of records in an SQLite file, through Diesel.
///
/// The file has one writer, a thread of the process. All handles, arbiters and engines share it, however often the file
/// is opened. The writer commits all waiting requests in one transaction, and answers after the commit, which is on the
/// disk by then ([`Synchronous::Full`](super::Synchronous::Full)). Other processes of the machine may use the file at
/// the same time; they wait for each other's commits. Separate threads serve look-ups, lists and counts.
///
/// Time is the machine's monotonic clock with an offset kept in the file, so no process's wall clock matters (on
/// systems other than Linux, time is the wall clock).
///
/// The file may be your own database. This library's tables begin with `oncekey_`, and have their own record of
/// migrations. An operation that is [completed in a transaction](oncekey::backend::CompleteInTransaction) gets the
/// writer's [`SqliteConnection`](diesel::SqliteConnection), in a savepoint of the transaction that completes its
/// record. Its rows and its outcome commit together. All other requests wait while it runs, so keep it short. It must
/// not end the transaction by itself. If its rows violate a deferred foreign key, SQLite refuses the commit. Then the
/// writer rolls back the operations that shared it and runs the other requests again. From then on each operation has a
/// commit of its own.
///
/// A request that still waits for the writer at the engine's deadline never begins, and its answer says so. The threads
/// end by themselves after the last handle is dropped and the waiting requests are done.
///
/// ```
/// use std::time::Duration;
/// use oncekey::{Attempt, Fingerprint, Key, OnAbandoned};
/// use oncekey::backend::{Acquire, Acquired, Backend};
/// use oncekey::record::Owner;
/// use oncekey_backends::SqliteBackend;
///
/// # #[actix_rt::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let folder = tempfile::tempdir()?;
/// let backend = SqliteBackend::open(folder.path().join("keys.db"))?;
/// let claim = Acquire {
///     key: Key::new("mail", 17)?,
///     fingerprint: Fingerprint::of(b"to: ada"),
///     owner: Owner::random(),
///     lease: Duration::from_secs(30),
///     on_abandoned: OnAbandoned::Hold,
///     past_withdrawal: None,
/// };
/// let answer = backend.acquire(claim).await?;
/// assert!(matches!(answer, Acquired::Claimed { attempt: Attempt::FIRST, took_over: false, .. }));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct SqliteBackend {
    store: Arc<Store>,
}

impl SqliteBackend {
    /// Opens a file with the default options; see [`SqliteBuilder::open`].
    ///
    /// # Errors
    /// [`SqliteOpenError`] says why the file can't be opened.
    ///
    /// ```
    /// use oncekey_backends::SqliteBackend;
    ///
    /// let folder = tempfile::tempdir()?;
    /// let backend = SqliteBackend::open(folder.path().join("keys.db"))?;
    /// assert!(backend.path().ends_with("keys.db"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, SqliteOpenError> {
        Self::builder(path).open()
    }

    /// Returns options for opening a file.
    ///
    /// ```
    /// use std::time::Duration;
    /// use oncekey_backends::SqliteBackend;
    ///
    /// let folder = tempfile::tempdir()?;
    /// let builder = SqliteBackend::builder(folder.path().join("keys.db")).busy_timeout(Duration::from_secs(1));
    /// let backend = builder.open()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn builder(path: impl Into<PathBuf>) -> SqliteBuilder {
        SqliteBuilder::new(path.into())
    }

    pub(super) fn open_with(options: &SqliteBuilder) -> Result<Self, SqliteOpenError> {
        let store = registry::open(options)?;
        doctor::log(&store.examine());
        Ok(Self { store })
    }

    /// Returns the file's absolute path.
    pub fn path(&self) -> &Path {
        &self.store.path
    }

    /// Reports problems of the file and its settings; [`open`](SqliteBuilder::open) logs the same. It reads the log's
    /// size and checks the file's paths.
    ///
    /// ```
    /// use oncekey_backends::SqliteBackend;
    ///
    /// let folder = tempfile::tempdir()?;
    /// let backend = SqliteBackend::open(folder.path().join("keys.db"))?;
    /// assert!(backend.doctor().is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn doctor(&self) -> Vec<Finding> {
        self.store.examine()
    }

    /// Completes a claim **in the caller's own open transaction** on this file: the outcome commits with the caller's
    /// rows, or neither does. [`Claim::completion`](oncekey::Claim::completion) makes the message and has an example.
    ///
    /// Make it the last step of the transaction. The transaction holds the file's write lock, and this process's writer
    /// waits for that lock. Use an immediate transaction (`BEGIN IMMEDIATE`), and a busy time-out on the connection.
    ///
    /// # Errors
    /// [`CompleteInError`]: roll the transaction back.
    pub fn complete_in(&self, connection: &mut SqliteConnection, completion: Complete) -> Result<(), CompleteInError> {
        let depth = AnsiTransactionManager::transaction_manager_status_mut(connection).transaction_depth()?;
        if depth.is_none() {
            return Err(CompleteInError::NoTransaction);
        }
        // Diesel counts only its own statements. If SQLite has rolled back by itself, the outcome would be committed
        // alone.
        if !is_in_transaction(connection) {
            return Err(CompleteInError::TransactionEnded);
        }
        let found = records::find(connection, &completion.key, Outcomes::None)?;
        let step = transition::complete(found.as_ref().map(|found| &found.record), self.store.clock.now(), &completion);
        match (step.answer, step.write, found) {
            (Completed::Stored, Write::Put(record), Some(found)) => Ok(records::replace(connection, &found, &record)?),
            // The same owner completed it before.
            (Completed::Stored, ..) => Ok(()),
            (Completed::Lost, ..) => Err(CompleteInError::ClaimLost),
        }
    }

    #[cfg(test)]
    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    /// Executes one request by itself.
    async fn ask<Answer: Send + 'static>(
        &self,
        request: impl FnOnce(Reply<Answer>) -> Request,
    ) -> Result<Answer, StoreError> {
        ask(request, async |request| {
            let mut batch = Batch::with_capacity(1);
            dispatch::queue(&self.store, request, &mut batch);
            batch.answered().await;
        })
        .await
    }
}

impl Backend for SqliteBackend {
    by_asking! {
        acquire: Acquire -> Acquired,
        renew: Renew -> Renewed,
        complete: Complete -> Completed,
        complete_in_transaction: CompleteInTransaction -> CompletedInTransaction,
        release: Release -> Released,
        withdraw: Withdraw -> Withdrawn,
        hold: Hold -> Held,
        resolve: Resolve -> Resolved,
        begin_step: BeginStep -> StepBegun,
        complete_step: CompleteStep -> StepCompleted,
        fail_step: FailStep -> StepFailed,
        step_in_transaction: StepInTransaction -> StepCommitted,
        resolve_step: ResolveStep -> Resolved,
        lookup: Lookup -> Option<RecordView>,
        remove: Remove -> Removed,
        list: List -> Vec<RecordView>,
        purge: Purge -> Purged,
        stats: Stats -> StoreStats,
    }

    async fn find(&self, message: Find) -> Result<Found, StoreError> {
        ask_by_reply(async |reply| {
            let mut batch = Batch::with_capacity(1);
            dispatch::queue_find(&self.store, message, reply, &mut batch);
            batch.answered().await;
        })
        .await
    }

    async fn examine(&self) -> Result<Vec<Finding>, StoreError> {
        Ok(self.doctor())
    }

    async fn watch(&self, message: Watch) -> Result<Changed, StoreError> {
        let waiter = self.store.waiters.register(message.key.clone());
        // The queue holds one call. If it is full, the lookout already has a call to answer.
        let _ = self.store.lookout.try_send(());
        loop {
            // Registered before the look-up, so that no later change is missed.
            let changed = waiter.changed();
            let found = self.lookup(Lookup { key: message.key.clone() }).await?;
            match found.map(|view| view.state) {
                // A lapsed lease changes what an acquire would find, but no process writes that change.
                Some(StateView::InProgress { lease_left }) if !lease_left.is_zero() => {
                    if timeout(lease_left, changed).await.is_ok() {
                        return Ok(Changed);
                    }
                }
                _ => return Ok(Changed),
            }
        }
    }

    async fn execute(&self, batch: Vec<Request>) {
        let mut answers = Batch::with_capacity(batch.len());
        dispatch::queue_all(&self.store, batch, &mut answers);
        answers.answered().await;
    }
}

impl fmt::Debug for SqliteBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteBackend").field("path", &self.store.path).finish_non_exhaustive()
    }
}
