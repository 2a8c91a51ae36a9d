//! Completing a record inside the database transaction that makes the operation's own writes.

use std::any::{Any, type_name};
use std::fmt;
use std::future::ready;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::LocalBoxFuture;

use crate::Key;
use crate::record::{Owner, SealedOutcome};

/// Runs an operation in a transaction of the record's database and completes the record in that same transaction: both
/// commit, or neither does.
///
/// The store first checks that the sender still holds the claim, so a holder that lost it writes nothing. A backend
/// without transactions answers [`StoreError::Unsupported`](super::StoreError::Unsupported).
///
/// ```
/// # use std::time::Duration;
/// # use oncekey::{Key, backend::{CompleteInTransaction, TransactionOperation}, record::{Owner, SealedOutcome}};
/// # struct Connection;
/// let key = Key::new("orders", 17)?;
/// let outcome = SealedOutcome::tombstone(&key);
/// let message = CompleteInTransaction {
///     key,
///     owner: Owner::random(),
///     retention: Duration::from_secs(86_400),
///     operation: TransactionOperation::new(|connection: &mut Connection| Ok(outcome)),
/// };
/// # Ok::<(), oncekey::KeyError>(())
/// ```
#[derive(Debug)]
pub struct CompleteInTransaction {
    /// The claimed key.
    pub key: Key,
    /// The claim's holder.
    pub owner: Owner,
    /// How long the record is kept, counted from now.
    pub retention: Duration,
    /// The operation that runs inside the transaction and returns the outcome.
    pub operation: TransactionOperation,
}

/// The answer to [`CompleteInTransaction`].
///
/// ```
/// # use oncekey::backend::CompletedInTransaction;
/// assert_ne!(CompletedInTransaction::Lost, CompletedInTransaction::RolledBack);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CompletedInTransaction {
    /// The operation's writes and this outcome are committed.
    Stored {
        /// The outcome to replay.
        outcome: SealedOutcome,
    },
    /// The sender does not hold the claim. The operation did not run.
    Lost,
    /// The operation failed or panicked, and its writes are rolled back. The claim still stands. The operation itself
    /// reports the reason to its caller.
    RolledBack,
    /// The operation asked for another type of connection than the store has, and did not run.
    WrongConnection {
        /// The type that the operation asked for.
        wanted: &'static str,
    },
}

/// Why a [`TransactionOperation`] returned no outcome.
///
/// ```
/// # use oncekey::backend::OperationFailure;
/// assert_ne!(OperationFailure::RollBack, OperationFailure::WrongConnection { wanted: "PgConnection" });
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperationFailure {
    /// The operation failed: roll back its writes.
    RollBack,
    /// The connection is not of the type that the operation asked for. The operation did nothing.
    WrongConnection {
        /// The type that the operation asked for.
        wanted: &'static str,
    },
}

/// An operation to run inside a transaction. The type of its connection is erased, so that one message serves every
/// database.
///
/// ```
/// use oncekey::Key;
/// use oncekey::backend::{OperationFailure, TransactionOperation};
/// use oncekey::record::SealedOutcome;
///
/// struct Connection { rows: u32 }
///
/// let outcome = SealedOutcome::tombstone(&Key::new("orders", 17)?);
/// let operation = TransactionOperation::new(move |connection: &mut Connection| {
///     connection.rows += 1;
///     Ok(outcome)
/// });
/// let mut connection = Connection { rows: 0 };
/// assert!(operation.run(&mut connection).is_ok());
/// assert_eq!(connection.rows, 1);
/// # Ok::<(), oncekey::KeyError>(())
/// ```
pub struct TransactionOperation {
    run: Run,
    is_probe: bool,
    progress: Progress,
}

/// Tracks when an operation runs, because the store's deadline applies to the store and not to the operation.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress(Arc<AtomicU64>);

impl Progress {
    /// Returns how often the operation has begun and ended.
    pub(crate) fn changes(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    /// Returns whether the operation was running when [`changes`](Self::changes) returned this count.
    pub(crate) fn is_running(changes: u64) -> bool {
        !changes.is_multiple_of(2)
    }

    fn run(&self) -> InProgress<'_> {
        self.0.fetch_add(1, Ordering::SeqCst);
        InProgress(self)
    }
}

/// Marks an operation as running until it is dropped.
struct InProgress<'a>(&'a Progress);

impl Drop for InProgress<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_add(1, Ordering::SeqCst);
    }
}

enum Run {
    Blocking(Option<Box<ErasedOperation>>),
    Async(Box<dyn ErasedAsyncOperation>),
}

type ErasedOperation = dyn FnOnce(&mut dyn Any) -> Result<SealedOutcome, OperationFailure> + Send;

/// A type-erased async closure. Its future borrows the closure, which a boxed `FnMut` does not allow.
trait ErasedAsyncOperation: Send {
    fn run<'a>(&'a mut self, connection: &'a mut dyn Any) -> Running<'a>;

    fn wanted(&self) -> &'static str;
}

type Running<'a> = LocalBoxFuture<'a, Result<SealedOutcome, OperationFailure>>;

struct AsyncOperation<C, F> {
    operation: F,
    connection: PhantomData<fn(&mut C)>,
}

impl<C: Any, F> ErasedAsyncOperation for AsyncOperation<C, F>
where
    F: AsyncFnMut(&mut C) -> Result<SealedOutcome, OperationFailure> + Send,
{
    fn run<'a>(&'a mut self, connection: &'a mut dyn Any) -> Running<'a> {
        match connection.downcast_mut::<C>() {
            Some(connection) => Box::pin((self.operation)(connection)),
            None => Box::pin(ready(Err(OperationFailure::WrongConnection { wanted: type_name::<C>() }))),
        }
    }

    fn wanted(&self) -> &'static str {
        type_name::<C>()
    }
}

/// An operation whose outcome passes through another function, which has the last word.
struct AndThen<F> {
    operation: Box<dyn ErasedAsyncOperation>,
    then: F,
}

impl<F> ErasedAsyncOperation for AndThen<F>
where
    F: FnMut(SealedOutcome) -> Result<SealedOutcome, OperationFailure> + Send,
{
    fn run<'a>(&'a mut self, connection: &'a mut dyn Any) -> Running<'a> {
        let running = self.operation.run(connection);
        Box::pin(async { running.await.and_then(&mut self.then) })
    }

    fn wanted(&self) -> &'static str {
        self.operation.wanted()
    }
}

impl TransactionOperation {
    /// Returns the same operation, with `then` applied to its outcome each time it has run.
    pub(crate) fn and_then(
        self,
        then: impl FnMut(SealedOutcome) -> Result<SealedOutcome, OperationFailure> + Send + 'static,
    ) -> Self {
        let run = match self.run {
            Run::Blocking(Some(run)) => Run::Blocking(Some(Box::new(move |connection| run(connection).and_then(then)))),
            Run::Blocking(None) => Run::Blocking(None),
            Run::Async(operation) => Run::Async(Box::new(AndThen { operation, then })),
        };
        Self { run, ..self }
    }

    /// Returns the tracker of when the operation runs.
    pub(crate) fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// Returns an operation that does nothing and is rolled back. It asks how an earlier transaction of the same claim
    /// ended whose commit got no answer.
    ///
    /// [`Stored`](CompletedInTransaction::Stored) means that it was committed.
    /// [`RolledBack`](CompletedInTransaction::RolledBack) means that it was not and can no longer be. A backend
    /// therefore answers a probe only **once it holds the record's lock**: a commit that still waits for a disk or a
    /// standby may be invisible to a mere read.
    ///
    /// ```
    /// use oncekey::backend::{OperationFailure, TransactionOperation};
    ///
    /// let probe = TransactionOperation::probe();
    /// assert!(probe.is_probe());
    /// assert_eq!(probe.run(&mut ()), Err(OperationFailure::RollBack));
    /// ```
    pub fn probe() -> Self {
        Self { is_probe: true, ..Self::erased(|_| Err(OperationFailure::RollBack)) }
    }

    /// Returns whether this is a [`probe`](Self::probe).
    pub fn is_probe(&self) -> bool {
        self.is_probe
    }

    /// Returns whether this operation uses a blocking connection and is not a [`probe`](Self::probe).
    ///
    /// ```
    /// use oncekey::backend::TransactionOperation;
    ///
    /// # struct Connection;
    /// # let outcome = oncekey::record::SealedOutcome::tombstone(&oncekey::Key::new("orders", 17)?);
    /// assert!(TransactionOperation::new(move |_: &mut Connection| Ok(outcome)).is_blocking());
    /// assert!(!TransactionOperation::probe().is_blocking());
    /// # Ok::<(), oncekey::KeyError>(())
    /// ```
    pub fn is_blocking(&self) -> bool {
        !self.is_probe && matches!(self.run, Run::Blocking(_))
    }

    /// Returns an operation on a blocking connection of type `C`. It runs where the store runs its transactions; for
    /// SQLite that is the writer's thread.
    pub fn new<C: Any>(
        operation: impl FnOnce(&mut C) -> Result<SealedOutcome, OperationFailure> + Send + 'static,
    ) -> Self {
        Self::erased(move |connection| match connection.downcast_mut::<C>() {
            Some(connection) => operation(connection),
            None => Err(OperationFailure::WrongConnection { wanted: type_name::<C>() }),
        })
    }

    /// Returns an operation on an async connection of type `C`. It runs on the backend's arbiter.
    ///
    /// It may run **several times**. A database that aborts a transaction in favour of another one (a deadlock, a
    /// serialization failure) has rolled all of it back, and the store runs it again from the start.
    ///
    /// ```
    /// # use oncekey::{Key, backend::TransactionOperation, record::SealedOutcome};
    /// # struct Connection;
    /// # impl Connection { async fn insert(&mut self) {} }
    /// let outcome = SealedOutcome::tombstone(&Key::new("orders", 17)?);
    /// let operation = TransactionOperation::new_async(async move |connection: &mut Connection| {
    ///     connection.insert().await;
    ///     Ok(outcome.clone())
    /// });
    /// # Ok::<(), oncekey::KeyError>(())
    /// ```
    pub fn new_async<C: Any>(
        operation: impl AsyncFnMut(&mut C) -> Result<SealedOutcome, OperationFailure> + Send + 'static,
    ) -> Self {
        let run = Run::Async(Box::new(AsyncOperation { operation, connection: PhantomData }));
        Self { run, is_probe: false, progress: Progress::default() }
    }

    /// Returns an operation that accepts whatever connection the store has.
    pub(crate) fn erased(
        operation: impl FnOnce(&mut dyn Any) -> Result<SealedOutcome, OperationFailure> + Send + 'static,
    ) -> Self {
        Self { run: Run::Blocking(Some(Box::new(operation))), is_probe: false, progress: Progress::default() }
    }

    /// Runs the operation on a blocking connection. An async operation does nothing, and the error names the connection
    /// that it wants.
    ///
    /// # Errors
    /// The operation's own failure. The backend must roll back its writes.
    ///
    /// # Panics
    /// If the operation panics. The backend catches the panic and rolls back.
    pub fn run(self, connection: &mut dyn Any) -> Result<SealedOutcome, OperationFailure> {
        let _in_progress = self.progress.run();
        match self.run {
            Run::Blocking(Some(run)) => run(connection),
            // The operation has already run.
            Run::Blocking(None) => Err(OperationFailure::RollBack),
            Run::Async(run) => Err(OperationFailure::WrongConnection { wanted: run.wanted() }),
        }
    }

    /// Runs the operation on an async connection, for the first time or again. A blocking operation can run only once;
    /// its second run fails.
    ///
    /// # Cancel safety
    /// If the future is dropped midway, the backend must roll back the operation's writes.
    ///
    /// # Errors
    /// The operation's own failure. The backend must roll back its writes.
    ///
    /// # Panics
    /// If the operation panics. The backend catches the panic and rolls back.
    ///
    /// ```
    /// # use oncekey::{Key, backend::TransactionOperation, record::SealedOutcome};
    /// # #[actix_rt::main] async fn main() -> Result<(), oncekey::KeyError> {
    /// let outcome = SealedOutcome::tombstone(&Key::new("orders", 17)?);
    /// let mut operation = TransactionOperation::new_async(async move |runs: &mut u32| {
    ///     *runs += 1;
    ///     Ok(outcome.clone())
    /// });
    /// let mut runs = 0_u32;
    /// for _ in 0..2 {
    ///     assert!(operation.run_async(&mut runs).await.is_ok());
    /// }
    /// assert_eq!(runs, 2);
    /// # Ok(()) }
    /// ```
    pub async fn run_async(&mut self, connection: &mut dyn Any) -> Result<SealedOutcome, OperationFailure> {
        let _in_progress = self.progress.run();
        match &mut self.run {
            Run::Blocking(run) => run.take().map_or(Err(OperationFailure::RollBack), |run| run(connection)),
            Run::Async(run) => run.run(connection).await,
        }
    }
}

impl fmt::Debug for TransactionOperation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TransactionOperation")
    }
}
