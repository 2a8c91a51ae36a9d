//! What each database implements in its own SQL.

use std::future::ready;

use diesel::QueryResult;
use diesel::result::{DatabaseErrorKind, Error};
use oncekey::backend::StoreError;
use oncekey::record::StoreTime;

use super::pool::{Connections, PoolConnection, Pooled};
use super::row::{Columns, Expected, Row};
use super::step::{Completion, FirstClaim, FirstRun, StepCompletion};
use super::step_row::{Family, StepRow};

/// A claimed key, and its fencing token.
pub(crate) type Claimed = (Vec<u8>, i64);

/// A key whose step was begun, the life of its steps, and the fencing token of the claim.
pub(crate) type Begun = (Vec<u8>, i64, i64);

/// A record's key and its row.
pub(crate) type Keyed = (Vec<u8>, Row);

/// After how many milliseconds a purge checks again a claim whose steps are not settled.
pub(crate) const PURGE_LOOKS_AGAIN: i64 = 24 * 60 * 60 * 1_000;

/// What a conditional statement on several rows wrote.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Written {
    /// Every row was as expected and is written.
    #[cfg_attr(not(feature = "mysql"), expect(dead_code, reason = "PostgreSQL names the rows"))]
    All,
    /// Only the rows of these keys.
    #[cfg_attr(not(feature = "postgres"), expect(dead_code, reason = "MySQL counts the rows"))]
    Only(Vec<Vec<u8>>),
    /// Not every row, and the database does not say which.
    Some,
}

/// What an error of the driver means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The connection is gone, and the answer with it.
    Disconnected,
    /// The database aborted this transaction in favor of another one. All of it may be repeated.
    Contended,
    /// Another session held a row's lock for longer than this session waits. The statement wrote nothing.
    Locked,
    ReadOnly,
    Full,
    /// The rows violate a constraint, or can't be read. Nothing was written.
    Refused,
    /// The database returned an unknown error.
    Other,
}

impl Failure {
    /// Returns whether the transaction was aborted in favor of another one and may be repeated.
    pub(crate) fn is_contention(self) -> bool {
        matches!(self, Self::Contended | Self::Locked)
    }
}

/// One kind of database, as one arbiter's connections reach it.
pub(crate) trait Database: Send + Sync + 'static {
    /// The server's name in messages.
    const NAME: &'static str;

    type Connection: PoolConnection;

    fn connections(&self) -> &Connections<Self::Connection>;

    /// Checks a connection that was just lent.
    ///
    /// # Errors
    /// Fails on a setting that would make operations run twice. The caller must close the connection.
    fn check(&self, _: &mut Pooled<Self::Connection>) -> impl Future<Output = Result<(), StoreError>> + Send {
        ready(Ok(()))
    }
}

/// The statements of one database on the table of steps.
pub(crate) trait StepStatements: Database {
    /// Reads the steps of these keys. The steps of each key are in order.
    fn read_steps(
        &self,
        connection: &mut Self::Connection,
        keys: &[&str],
    ) -> impl Future<Output = QueryResult<Vec<(Vec<u8>, StepRow)>>> + Send;

    /// Writes a record and its steps, inside a transaction that has [locked](Self::lock) the record's row. Returns
    /// `false` if a step has changed since it was read, which can happen if the transaction's snapshot is older than
    /// the lock.
    fn put_family(
        &self,
        connection: &mut Self::Connection,
        family: &Family<'_>,
    ) -> impl Future<Output = QueryResult<bool>> + Send;

    /// Begins steps that have no row, of claims that hold, without reading first. It writes what
    /// [`transition::begin_step`](oncekey::record::transition::begin_step) would decide, and may skip any of them.
    fn begin_steps(
        &self,
        connection: &mut Self::Connection,
        rows: &[FirstRun<'_>],
    ) -> impl Future<Output = QueryResult<Vec<Begun>>> + Send;

    /// Completes steps of claims that hold, without reading first. It writes what
    /// [`transition::complete_step`](oncekey::record::transition::complete_step) would decide, and may skip any of
    /// them.
    fn complete_steps(
        &self,
        connection: &mut Self::Connection,
        rows: &[StepCompletion<'_>],
    ) -> impl Future<Output = QueryResult<Written>> + Send;
}

/// The statements of one database on the table of records, and what else differs between databases.
///
/// Each method is one atomic statement, which commits by itself unless the connection is in a transaction. Rows are
/// passed in the order of their keys, each key once.
pub(crate) trait Dialect: StepStatements {
    fn read(
        &self,
        connection: &mut Self::Connection,
        keys: &[&str],
    ) -> impl Future<Output = QueryResult<(StoreTime, Vec<Keyed>)>> + Send;

    /// Waits until everything read so far is on the disk, if the database shows commits to others before that. The
    /// backend must not replay a stored outcome earlier.
    fn await_flush(&self, connection: &mut Self::Connection) -> impl Future<Output = QueryResult<()>> + Send;

    /// Reads one row inside a transaction, and locks it until the transaction ends.
    fn lock(
        &self,
        connection: &mut Self::Connection,
        key: &str,
    ) -> impl Future<Output = QueryResult<(StoreTime, Option<Row>)>> + Send;

    /// Claims keys that have no row, without reading first. Leases count from the server's time. It writes what
    /// [`transition::acquire`](oncekey::record::transition::acquire) would decide, and returns the keys that it
    /// claimed.
    fn claim(
        &self,
        connection: &mut Self::Connection,
        rows: &[FirstClaim<'_>],
    ) -> impl Future<Output = QueryResult<Vec<Claimed>>> + Send;

    /// Inserts the rows whose keys have no row.
    fn insert(
        &self,
        connection: &mut Self::Connection,
        rows: &[Columns<'_>],
    ) -> impl Future<Output = QueryResult<Written>> + Send;

    /// Replaces the rows that are as expected.
    fn update(
        &self,
        connection: &mut Self::Connection,
        rows: &[(Expected<'_>, Columns<'_>)],
    ) -> impl Future<Output = QueryResult<Written>> + Send;

    /// Completes the claims that belong to their owner and are not completed yet, without reading first. Retentions
    /// count from the server's time. It writes what [`transition::complete`](oncekey::record::transition::complete)
    /// would decide.
    fn complete(
        &self,
        connection: &mut Self::Connection,
        rows: &[Completion<'_>],
    ) -> impl Future<Output = QueryResult<Written>> + Send;

    /// Deletes the rows that are as expected.
    fn delete(
        &self,
        connection: &mut Self::Connection,
        rows: &[Expected<'_>],
    ) -> impl Future<Output = QueryResult<Written>> + Send;

    /// Deletes a key's row and its steps, even if the row is no record.
    fn remove(&self, connection: &mut Self::Connection, key: &str) -> impl Future<Output = QueryResult<bool>> + Send;

    /// Reads the unexpired rows after a key, in the order of the keys' bytes.
    fn list(
        &self,
        connection: &mut Self::Connection,
        after: &str,
        limit: usize,
    ) -> impl Future<Output = QueryResult<(StoreTime, Vec<Keyed>)>> + Send;

    /// Deletes up to `limit` expired rows with their steps, which count as well, unless another process is doing so. A
    /// claim with unsettled steps stays and is checked again later. Returns how many rows were deleted, and whether
    /// there are more.
    fn purge(
        &self,
        connection: &mut Self::Connection,
        limit: usize,
    ) -> impl Future<Output = QueryResult<(usize, bool)>> + Send;

    /// Counts the records by state.
    fn stats(&self, connection: &mut Self::Connection) -> impl Future<Output = QueryResult<Vec<(i16, i64)>>> + Send;

    /// Returns the keys whose rows no other session has locked. It does not wait for locks.
    fn unlocked(
        &self,
        connection: &mut Self::Connection,
        keys: &[&str],
    ) -> impl Future<Output = QueryResult<Vec<Vec<u8>>>> + Send;

    /// Classifies an error by the server's message, because Diesel keeps the message and not the error's number.
    fn failure_by_message(message: &str) -> Failure;

    fn failure(error: &Error) -> Failure {
        match error {
            Error::DatabaseError(DatabaseErrorKind::SerializationFailure, _) => Failure::Contended,
            Error::DatabaseError(DatabaseErrorKind::ReadOnlyTransaction, _) => Failure::ReadOnly,
            // The connection failed; this is no answer from the server.
            Error::DatabaseError(DatabaseErrorKind::UnableToSendCommand | DatabaseErrorKind::ClosedConnection, _)
            | Error::BrokenTransactionManager => Failure::Disconnected,
            // If the server's messages are in another language, a deadlock is not recognized. It is then an error, and
            // never counts as success.
            Error::DatabaseError(DatabaseErrorKind::Unknown, information) => {
                Self::failure_by_message(information.message())
            }
            Error::DatabaseError(..) | Error::DeserializationError(_) | Error::SerializationError(_) => {
                Failure::Refused
            }
            _ => Failure::Other,
        }
    }

    /// The longest outcome that may share an [`update`](Self::update) with other rows.
    const LONGEST_SHARED_OUTCOME: usize = usize::MAX;

    /// Returns the most rows that [`begin_steps`](Self::begin_steps) accepts; at least one.
    fn most_begun_together(&self) -> usize {
        usize::MAX
    }

    /// Returns the longest outcome that may share a [`complete`](Self::complete) or
    /// [`complete_steps`](Self::complete_steps) with other rows.
    fn longest_shared_outcome(&self) -> usize {
        usize::MAX
    }

    /// Returns the longest outcome that the server accepts.
    fn longest_outcome(&self) -> usize {
        usize::MAX
    }

    /// Whether a statement that failed in favor of another transaction may have undone its own transaction's earlier
    /// work. The transaction has then failed, even if the operation ignores the error. PostgreSQL itself refuses every
    /// further statement.
    const CONTENTION_IS_FINAL: bool;

    /// Opens the transaction of an operation and marks it. Inside, the operation waits for locks as long as the
    /// server's default allows.
    fn begin(&self, connection: &mut Self::Connection) -> impl Future<Output = QueryResult<()>> + Send;

    /// Returns whether the open transaction is still the one that [`begin`](Self::begin) opened. An operation may have
    /// ended it with a statement that Diesel does not see; later statements would then commit by themselves.
    fn is_as_begun(&self, connection: &mut Self::Connection) -> impl Future<Output = QueryResult<bool>> + Send;

    /// Restores the connection's state from before [`begin`](Self::begin), once its transaction has ended.
    fn set_back(&self, _: &mut Self::Connection) -> impl Future<Output = QueryResult<()>> + Send {
        ready(Ok(()))
    }

    /// Undoes what an operation has left on its connection, once it is [set back](Self::set_back). Returns false if
    /// that is impossible; the connection is then closed. Otherwise its next user would work in another schema or time
    /// zone, or with a lock that is never released.
    fn clean(&self, connection: &mut Self::Connection) -> impl Future<Output = QueryResult<bool>> + Send;

    /// Returns whether the server has an open transaction on the caller's own connection, as Diesel assumes.
    fn is_in_transaction(&self, connection: &mut Self::Connection) -> impl Future<Output = QueryResult<bool>> + Send;
}
