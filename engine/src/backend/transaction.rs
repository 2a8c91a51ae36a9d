//! Completing a record inside the database transaction that does the operation's own writes.

use std::any::{Any, type_name};
use std::fmt;
use std::time::Duration;

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
    run: Box<ErasedOperation>,
}

type ErasedOperation = dyn FnOnce(&mut dyn Any) -> Result<SealedOutcome, OperationFailure> + Send;

impl TransactionOperation {
    /// An operation on a connection of type `C`. It runs where the store runs its transactions: for SQLite on the
    /// writer's thread.
    pub fn new<C: Any>(
        operation: impl FnOnce(&mut C) -> Result<SealedOutcome, OperationFailure> + Send + 'static,
    ) -> Self {
        Self::erased(move |connection| match connection.downcast_mut::<C>() {
            Some(connection) => operation(connection),
            None => Err(OperationFailure::WrongConnection { wanted: type_name::<C>() }),
        })
    }

    /// An operation on whatever connection the store has.
    pub(crate) fn erased(
        operation: impl FnOnce(&mut dyn Any) -> Result<SealedOutcome, OperationFailure> + Send + 'static,
    ) -> Self {
        Self { run: Box::new(operation) }
    }

    /// Runs it.
    ///
    /// # Errors
    /// Whatever the operation failed with; its writes are to be rolled back.
    ///
    /// # Panics
    /// If the operation does: a backend catches it and rolls back.
    pub fn run(self, connection: &mut dyn Any) -> Result<SealedOutcome, OperationFailure> {
        (self.run)(connection)
    }
}

impl fmt::Debug for TransactionOperation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TransactionOperation")
    }
}
