//! What a database must say in its own words.

use std::future::ready;

use diesel::QueryResult;
use diesel::result::{DatabaseErrorKind, Error};
use oncekey::backend::StoreError;
use oncekey::record::StoreTime;

use super::pool::{Connections, PoolConnection, Pooled};
use super::row::{Columns, Expected, Row};
use super::step::{Completion, FirstClaim, FirstRun, StepCompletion};
use super::step_row::{Family, StepRow};

/// A key that was claimed, and its fencing token.
pub(crate) type Claimed = (Vec<u8>, i64);

/// A key whose step was begun, the life of its steps, and the fencing token of the claim.
pub(crate) type Begun = (Vec<u8>, i64, i64);

/// A record's key and its row.
pub(crate) type Keyed = (Vec<u8>, Row);

/// After how many milliseconds a purge looks again at a claim whose steps are not settled.
pub(crate) const PURGE_LOOKS_AGAIN: i64 = 24 * 60 * 60 * 1_000;

/// What a statement that writes several rows conditionally did.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Written {
    /// Every row was as expected, and is written.
    #[cfg_attr(not(feature = "mysql"), expect(dead_code, reason = "PostgreSQL names the rows"))]
    All,
    /// Only these keys' rows.
    #[cfg_attr(not(feature = "postgres"), expect(dead_code, reason = "MySQL counts the rows"))]
    Only(Vec<Vec<u8>>),
    /// Not every row, and the database does not say which.
    Some,
}

/// What an error of the driver means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The connection is gone, and with it the answer.
    Disconnected,
    /// The database gave this transaction up for another's sake: all of it may be done again.
    Contended,
    /// Another session held a row's lock for longer than this one was to wait. The statement wrote nothing.
    Locked,
    ReadOnly,
    Full,
    /// The rows offend a constraint, or can't be read: nothing was written.
    Refused,
    /// The database said something that is not known here.
    Other,
}

impl Failure {
    /// Whether a transaction that met it was given up for another's sake, and may be done again.
    pub(crate) fn is_contention(self) -> bool {
        matches!(self, Self::Contended | Self::Locked)
    }
}

/// A kind of database, as one arbiter's connections reach it.
pub(crate) trait Database: Send + Sync + 'static {
    /// The server's name, as messages say it.
    const NAME: &'static str;

    type Connection: PoolConnection;

    fn connections(&self) -> &Connections<Self::Connection>;

    /// Looks at a connection that was just lent.
    ///
    /// # Errors
    /// A setting by which operations would run twice; the connection is to be closed.
    fn check(&self, _: &mut Pooled<Self::Connection>) -> impl Future<Output = Result<(), StoreError>> + Send {
        ready(Ok(()))
    }
}

/// The statements of one database on the table of steps.
pub(crate) trait StepStatements: Database {
    /// Reads the steps of these keys, each key's in their order.
    fn read_steps(
        &self,
        connection: &mut Self::Connection,
        keys: &[&str],
    ) -> impl Future<Output = QueryResult<Vec<(Vec<u8>, StepRow)>>> + Send;

    /// Writes a record and its steps, inside a transaction that has the record's row [locked](Self::lock). `false` if a step
    /// is not what was read, where the transaction shows what was before the lock.
    fn put_family(
        &self,
        connection: &mut Self::Connection,
        family: &Family<'_>,
    ) -> impl Future<Output = QueryResult<bool>> + Send;

    /// Begins steps that have no row, of claims that hold: what
    /// [`transition::begin_step`](oncekey::record::transition::begin_step) decides of them, without a look before. It may
    /// leave any of them out.
    fn begin_steps(
        &self,
        connection: &mut Self::Connection,
        rows: &[FirstRun<'_>],
    ) -> impl Future<Output = QueryResult<Vec<Begun>>> + Send;

    /// Completes steps of claims that hold: what
    /// [`transition::complete_step`](oncekey::record::transition::complete_step) decides of them, without a look before. It
    /// may leave any of them out.
    fn complete_steps(
        &self,
        connection: &mut Self::Connection,
        rows: &[StepCompletion<'_>],
    ) -> impl Future<Output = QueryResult<Written>> + Send;
}

/// The statements of one database on the table of records, and what it says besides.
///
/// Each is one atomic statement, committed by itself unless the connection is in a transaction. Rows are given in the
/// order of their keys, each key once.
pub(crate) trait Dialect: StepStatements {
    fn read(
        &self,
        connection: &mut Self::Connection,
        keys: &[&str],
    ) -> impl Future<Output = QueryResult<(StoreTime, Vec<Keyed>)>> + Send;

    /// Waits until all that was read is on the disk, where the database shows commits to others before they are. What was
    /// stored is not to be told of before.
    fn await_flush(&self, connection: &mut Self::Connection) -> impl Future<Output = QueryResult<()>> + Send;

    /// Reads one row inside a transaction, and keeps others from changing it until the end.
    fn lock(
        &self,
        connection: &mut Self::Connection,
        key: &str,
    ) -> impl Future<Output = QueryResult<(StoreTime, Option<Row>)>> + Send;

    /// Claims keys that have no row, counting leases from the server's time: what
    /// [`transition::acquire`](oncekey::record::transition::acquire) decides of them, without a look before. Returns the
    /// keys that it claimed.
    fn claim(
        &self,
        connection: &mut Self::Connection,
        rows: &[FirstClaim<'_>],
    ) -> impl Future<Output = QueryResult<Vec<Claimed>>> + Send;

    /// Inserts rows where there are none.
    fn insert(
        &self,
        connection: &mut Self::Connection,
        rows: &[Columns<'_>],
    ) -> impl Future<Output = QueryResult<Written>> + Send;

    /// Replaces rows that are as expected.
    fn update(
        &self,
        connection: &mut Self::Connection,
        rows: &[(Expected<'_>, Columns<'_>)],
    ) -> impl Future<Output = QueryResult<Written>> + Send;

    /// Completes the claims that are their owner's and not completed yet, counting retentions from the server's time:
    /// what [`transition::complete`](oncekey::record::transition::complete) decides of them, without a look before.
    fn complete(
        &self,
        connection: &mut Self::Connection,
        rows: &[Completion<'_>],
    ) -> impl Future<Output = QueryResult<Written>> + Send;

    /// Deletes rows that are as expected.
    fn delete(
        &self,
        connection: &mut Self::Connection,
        rows: &[Expected<'_>],
    ) -> impl Future<Output = QueryResult<Written>> + Send;

    /// Deletes a key's row with its steps, also one that is no record.
    fn remove(&self, connection: &mut Self::Connection, key: &str) -> impl Future<Output = QueryResult<bool>> + Send;

    /// Reads rows whose time is not over after a key, in the order of the keys' bytes.
    fn list(
        &self,
        connection: &mut Self::Connection,
        after: &str,
        limit: usize,
    ) -> impl Future<Output = QueryResult<(StoreTime, Vec<Keyed>)>> + Send;

    /// Deletes up to `limit` rows whose time is over, with their steps, which count as well; unless another process does so
    /// now. A claim whose steps are not settled stays, and is looked at again some time later. Returns how many rows are gone,
    /// and whether there are more.
    fn purge(
        &self,
        connection: &mut Self::Connection,
        limit: usize,
    ) -> impl Future<Output = QueryResult<(usize, bool)>> + Send;

    /// Counts by state.
    fn stats(&self, connection: &mut Self::Connection) -> impl Future<Output = QueryResult<Vec<(i16, i64)>>> + Send;

    /// Of these keys, those whose rows no other session has locked. It does not wait for any.
    fn unlocked(
        &self,
        connection: &mut Self::Connection,
        keys: &[&str],
    ) -> impl Future<Output = QueryResult<Vec<Vec<u8>>>> + Send;

    /// What an error means that Diesel knows only by the server's message: it keeps that, and not its number.
    fn failure_by_message(message: &str) -> Failure;

    fn failure(error: &Error) -> Failure {
        match error {
            Error::DatabaseError(DatabaseErrorKind::SerializationFailure, _) => Failure::Contended,
            Error::DatabaseError(DatabaseErrorKind::ReadOnlyTransaction, _) => Failure::ReadOnly,
            // It is the connection that spoke, and not the server.
            Error::DatabaseError(DatabaseErrorKind::UnableToSendCommand | DatabaseErrorKind::ClosedConnection, _)
            | Error::BrokenTransactionManager => Failure::Disconnected,
            // Where the server speaks another language a deadlock is not known as one: it is then an error, and never taken
            // for a success.
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

    /// How many rows [`begin_steps`](Self::begin_steps) takes at most; not less than one.
    fn most_begun_together(&self) -> usize {
        usize::MAX
    }

    /// The longest outcome that may share a [`complete`](Self::complete) or [`complete_steps`](Self::complete_steps) with
    /// other rows.
    fn longest_shared_outcome(&self) -> usize {
        usize::MAX
    }

    /// The longest outcome that the server takes.
    fn longest_outcome(&self) -> usize {
        usize::MAX
    }

    /// Whether a statement that failed for another transaction's sake may have undone what its own transaction did before,
    /// so that the transaction has failed even if the operation passes over the error. PostgreSQL refuses every further
    /// statement by itself.
    const CONTENTION_IS_FINAL: bool;

    /// Opens the transaction of an operation, and marks it. Inside, the operation waits for locks as long as the server's
    /// default says.
    fn begin(&self, connection: &mut Self::Connection) -> impl Future<Output = QueryResult<()>> + Send;

    /// Whether the open transaction is still the one that [`begin`](Self::begin) opened. An operation may have ended it by
    /// a statement that Diesel does not see, and what follows would be committed by itself.
    fn is_as_begun(&self, connection: &mut Self::Connection) -> impl Future<Output = QueryResult<bool>> + Send;

    /// Sets the connection back to what it was before [`begin`](Self::begin), once its transaction has ended.
    fn set_back(&self, _: &mut Self::Connection) -> impl Future<Output = QueryResult<()>> + Send {
        ready(Ok(()))
    }

    /// Undoes what an operation has left on its connection, once [set back](Self::set_back); false where that can't be: the
    /// connection is then closed. The next user of it would work in another schema, another time zone, or with a lock that
    /// nobody gives up.
    fn clean(&self, connection: &mut Self::Connection) -> impl Future<Output = QueryResult<bool>> + Send;

    /// Whether the server has a transaction open on the caller's own connection, where Diesel believes that it has.
    fn is_in_transaction(&self, connection: &mut Self::Connection) -> impl Future<Output = QueryResult<bool>> + Send;
}
