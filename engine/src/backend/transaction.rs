//! Completing a record inside the database transaction that does the operation's own writes.

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

/// Run an operation in a transaction of the record's database and complete the record in that same transaction: both
/// commit, or neither does.
///
/// The store first checks that the claim is still the sender's, so that a holder that lost it writes nothing at all.
/// A backend without transactions answers [`StoreError::Unsupported`](super::StoreError::Unsupported).
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
    /// What runs inside the transaction, and gives the outcome.
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
        /// The answer to replay.
        outcome: SealedOutcome,
    },
    /// The claim is not the sender's; the operation did not run.
    Lost,
    /// The operation failed or panicked, and its writes are rolled back. The claim still stands; why it failed is told
    /// by the operation itself, to its own caller.
    RolledBack,
    /// The operation asked for another type of connection than the store has, and did not run.
    WrongConnection {
        /// The type that the operation asked for.
        wanted: &'static str,
    },
}

/// Why a [`TransactionOperation`] gave no outcome.
///
/// ```
/// # use oncekey::backend::OperationFailure;
/// assert_ne!(OperationFailure::RollBack, OperationFailure::WrongConnection { wanted: "PgConnection" });
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperationFailure {
    /// Roll back what it has written.
    RollBack,
    /// The connection is not of the type that it asked for; it did nothing.
    WrongConnection {
        /// The type that it asked for.
        wanted: &'static str,
    },
}

/// An operation to run inside a transaction, its connection's type erased so that one message serves every database.
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

/// When an operation runs: the store's deadline is for the store, and not for the operation.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress(Arc<AtomicU64>);

impl Progress {
    /// How often the operation has begun and ended.
    pub(crate) fn changes(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    /// Whether it runs, by what [`changes`](Self::changes) said.
    pub(crate) fn is_running(changes: u64) -> bool {
        !changes.is_multiple_of(2)
    }

    fn run(&self) -> InProgress<'_> {
        self.0.fetch_add(1, Ordering::SeqCst);
        InProgress(self)
    }
}

/// An operation that runs, until this is dropped.
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

/// An async closure behind a pointer: what it gives borrows the closure, as a boxed `FnMut`'s can't.
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

/// An operation whose outcome something else has the last word on.
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
    /// The same operation, its outcome passed through `then` each time that it has run.
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

    /// When it runs.
    pub(crate) fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// An operation that does nothing and is rolled back: it asks how an earlier transaction of the same claim ended,
    /// whose commit was not answered.
    ///
    /// [`Stored`](CompletedInTransaction::Stored) says that it was committed, and
    /// [`RolledBack`](CompletedInTransaction::RolledBack) that it was not and can no longer be. So a backend answers a probe
    /// only **once it holds the record's lock**: a commit that still waits for a disk or a standby may be invisible to
    /// those who only read.
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

    /// Whether it is a [`probe`](Self::probe).
    pub fn is_probe(&self) -> bool {
        self.is_probe
    }

    /// Whether it is an operation on a connection that blocks, and no [`probe`](Self::probe).
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

    /// An operation on a connection of type `C` that blocks. It runs where the store runs its transactions: for SQLite on
    /// the writer's thread.
    pub fn new<C: Any>(
        operation: impl FnOnce(&mut C) -> Result<SealedOutcome, OperationFailure> + Send + 'static,
    ) -> Self {
        Self::erased(move |connection| match connection.downcast_mut::<C>() {
            Some(connection) => operation(connection),
            None => Err(OperationFailure::WrongConnection { wanted: type_name::<C>() }),
        })
    }

    /// An operation on a connection of type `C` that is awaited, on the arbiter of the backend.
    ///
    /// It may be run **several times**: a database that gives a transaction up for another's sake (a deadlock, a
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

    /// An operation on whatever connection the store has.
    pub(crate) fn erased(
        operation: impl FnOnce(&mut dyn Any) -> Result<SealedOutcome, OperationFailure> + Send + 'static,
    ) -> Self {
        Self { run: Run::Blocking(Some(Box::new(operation))), is_probe: false, progress: Progress::default() }
    }

    /// Runs it on a connection that blocks. One that is to be awaited does nothing, and says what it wanted.
    ///
    /// # Errors
    /// Whatever the operation failed with; its writes are to be rolled back.
    ///
    /// # Panics
    /// If the operation does: a backend catches it and rolls back.
    pub fn run(self, connection: &mut dyn Any) -> Result<SealedOutcome, OperationFailure> {
        let _in_progress = self.progress.run();
        match self.run {
            Run::Blocking(Some(run)) => run(connection),
            // It was run before.
            Run::Blocking(None) => Err(OperationFailure::RollBack),
            Run::Async(run) => Err(OperationFailure::WrongConnection { wanted: run.wanted() }),
        }
    }

    /// Runs it on a connection that is awaited, for the first time or again. One that blocks can be run only once, and
    /// fails the second time.
    ///
    /// # Cancel safety
    /// Dropped midway, its writes are to be rolled back.
    ///
    /// # Errors
    /// Whatever the operation failed with; its writes are to be rolled back.
    ///
    /// # Panics
    /// If the operation does: a backend catches it and rolls back.
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
