//! PostgreSQL's statements on the table of records.
//!
//! Rows travel as one array for each column, so that a statement has one text for any number of rows.

use diesel::QueryResult;
use diesel::pg::Pg;
use diesel::query_builder::AstPass;
use diesel::result::{DatabaseErrorKind, Error};
use diesel::sql_types::{Array, BigInt, Binary, Bool, Nullable, SmallInt, Text};
use diesel_async::{AnsiTransactionManager, AsyncPgConnection, RunQueryDsl};
use oncekey::backend::StoreError;
use oncekey::record::StoreTime;

use super::session;
use super::texts::Texts;
use crate::sql::{
    Begun, Claimed, Columns, Completion, Dialect, DieselPool, Expected, Failure, Family, FirstClaim, FirstRun,
    Fragment, Keyed, Part, Pooled, Row, StepCompletion, StepRow, Taken, Written, from_column, time_of,
};

pub(super) type RowTypes = (
    Binary,
    BigInt,
    Binary,
    SmallInt,
    Nullable<BigInt>,
    Nullable<SmallInt>,
    Nullable<Binary>,
    Nullable<BigInt>,
    BigInt,
    Nullable<Binary>,
    Nullable<BigInt>,
    Nullable<BigInt>,
    Nullable<BigInt>,
);

/// A parameter.
pub(crate) enum Bind<'a> {
    Text(&'a str),
    Blob(&'a [u8]),
    MaybeBlob(Option<&'a [u8]>),
    BigInt(i64),
    MaybeBigInt(Option<i64>),
    Texts(Vec<&'a str>),
    Blobs(Vec<&'a [u8]>),
    MaybeBlobs(Vec<Option<&'a [u8]>>),
    BigInts(Vec<i64>),
    MaybeBigInts(Vec<Option<i64>>),
    SmallInts(Vec<i16>),
    MaybeSmallInts(Vec<Option<i16>>),
}

impl Part<Pg> for Bind<'_> {
    fn push<'b>(&'b self, out: &mut AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        match self {
            Self::Text(value) => out.push_bind_param::<Text, _>(*value),
            Self::Blob(value) => out.push_bind_param::<Binary, _>(*value),
            Self::MaybeBlob(value) => out.push_bind_param::<Nullable<Binary>, _>(value),
            Self::BigInt(value) => out.push_bind_param::<BigInt, _>(value),
            Self::MaybeBigInt(value) => out.push_bind_param::<Nullable<BigInt>, _>(value),
            Self::Texts(values) => out.push_bind_param::<Array<Text>, _>(values),
            Self::Blobs(values) => out.push_bind_param::<Array<Binary>, _>(values),
            Self::MaybeBlobs(values) => out.push_bind_param::<Array<Nullable<Binary>>, _>(values),
            Self::BigInts(values) => out.push_bind_param::<Array<BigInt>, _>(values),
            Self::MaybeBigInts(values) => out.push_bind_param::<Array<Nullable<BigInt>>, _>(values),
            Self::SmallInts(values) => out.push_bind_param::<Array<SmallInt>, _>(values),
            Self::MaybeSmallInts(values) => out.push_bind_param::<Array<Nullable<SmallInt>>, _>(values),
        }
    }
}

/// PostgreSQL, by one arbiter's pool.
pub(super) struct Postgres {
    pub(super) pool: DieselPool<AsyncPgConnection>,
    /// How many connections that has at most, unless it tells.
    pub(super) size: usize,
    pub(super) texts: Texts,
    /// Whether the connections are this backend's own, which do not wait for locks for long.
    pub(super) limits_lock_waits: bool,
}

/// What is written of rows, a column each.
pub(super) fn columns<'a>(rows: impl Iterator<Item = &'a Columns<'a>> + Clone) -> [Bind<'a>; 11] {
    [
        Bind::Blobs(rows.clone().map(|row| row.fingerprint).collect()),
        Bind::BigInts(rows.clone().map(|row| row.attempt).collect()),
        Bind::Blobs(rows.clone().map(|row| row.owner).collect()),
        Bind::SmallInts(rows.clone().map(|row| row.state).collect()),
        Bind::MaybeBigInts(rows.clone().map(|row| row.lease_until).collect()),
        Bind::MaybeSmallInts(rows.clone().map(|row| row.on_abandoned).collect()),
        Bind::MaybeBlobs(rows.clone().map(|row| row.outcome).collect()),
        Bind::MaybeBigInts(rows.clone().map(|row| row.purge_at).collect()),
        Bind::BigInts(rows.clone().map(|row| row.fencing_token).collect()),
        Bind::MaybeBlobs(rows.clone().map(|row| row.barrier_owner).collect()),
        Bind::MaybeBigInts(rows.map(|row| row.barrier_until).collect()),
    ]
}

fn expected<'a>(rows: impl Iterator<Item = &'a Expected<'a>> + Clone) -> [Bind<'a>; 6] {
    [
        Bind::Texts(rows.clone().map(|row| row.key).collect()),
        Bind::Blobs(rows.clone().map(|row| row.owner).collect()),
        Bind::SmallInts(rows.clone().map(|row| row.state).collect()),
        Bind::MaybeBigInts(rows.clone().map(|row| row.lease_until).collect()),
        Bind::MaybeBlobs(rows.clone().map(|row| row.barrier_owner).collect()),
        Bind::MaybeBigInts(rows.map(|row| row.steps_life).collect()),
    ]
}

/// What `complete_one` is given.
pub(super) fn one_completion<'a>(row: &Completion<'a>) -> [Bind<'a>; 4] {
    let Completion { key, owner, outcome, retention } = *row;
    [Bind::Blob(outcome), Bind::BigInt(retention), Bind::Text(key), Bind::Blob(owner)]
}

/// Opens the transaction of an operation, on a connection of this backend's own or of the application's.
pub(super) fn begin(is_own: bool) -> String {
    let lock_wait = if is_own { "; SET LOCAL lock_timeout = DEFAULT" } else { "" };
    let remember = if is_own { String::new() } else { session::remember() };
    format!("BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL oncekey.begun = 'yes'{lock_wait}{remember}")
}

/// Whether that transaction is still open.
pub(super) const IS_BEGUN: &str = "SELECT coalesce(current_setting('oncekey.begun', true), '') = 'yes'";

pub(super) const SET_HERE: &str = "SELECT set_config('oncekey.here', 'yes', true)";
/// Whether the transaction is open in which that was set.
pub(super) const IS_HERE: &str = "SELECT coalesce(current_setting('oncekey.here', true), '') = 'yes'";

impl Postgres {
    /// Runs a statement that gives the keys that it wrote, and announcements.
    pub(super) async fn announcing(
        connection: &mut AsyncPgConnection,
        text: &str,
        binds: &[Bind<'_>],
    ) -> QueryResult<Written> {
        let written: Vec<(Vec<u8>, Option<String>)> =
            Fragment::<(Binary, Nullable<Text>), _>::new(text, binds).load(connection).await?;
        Ok(Written::Only(written.into_iter().map(|(key, _)| key).collect()))
    }
}

impl Dialect for Postgres {
    const CONTENTION_IS_FINAL: bool = false;

    type Connection = AsyncPgConnection;
    type Pooled = Pooled<AsyncPgConnection>;
    type Taken = Taken<AsyncPgConnection>;

    async fn lend(&self) -> Result<Self::Pooled, StoreError> {
        self.pool.lend().await.map_err(|error| StoreError::unavailable(format!("PostgreSQL: {error}")))
    }

    fn take(pooled: Self::Pooled) -> Self::Taken {
        pooled.take()
    }

    fn pool_size(&self) -> usize {
        self.pool.size().unwrap_or(self.size)
    }

    async fn read(&self, connection: &mut AsyncPgConnection, keys: &[&str]) -> QueryResult<(StoreTime, Vec<Keyed>)> {
        let binds = [Bind::Texts(keys.to_vec())];
        let rows: Vec<(i64, Option<Vec<u8>>, Row)> =
            Fragment::<(BigInt, Nullable<Binary>, RowTypes), _>::new(&self.texts.read, &binds).load(connection).await?;
        let now = time_of(&rows, |(now, ..)| *now);
        let rows = rows.into_iter().filter_map(|(_, key, row)| Some((key?, row)));
        Ok((from_column(now), rows.collect()))
    }

    /// A commit is flushed before it is shown.
    async fn await_flush(&self, _: &mut AsyncPgConnection) -> QueryResult<()> {
        Ok(())
    }

    async fn lock(&self, connection: &mut AsyncPgConnection, key: &str) -> QueryResult<(StoreTime, Option<Row>)> {
        let binds = [Bind::Text(key)];
        let rows: Vec<(i64, Row)> =
            Fragment::<(BigInt, RowTypes), _>::new(&self.texts.lock, &binds).load(connection).await?;
        let found = rows.into_iter().next();
        Ok(found.map_or((from_column(0), None), |(now, row)| (from_column(now), Some(row))))
    }

    async fn claim(&self, connection: &mut AsyncPgConnection, rows: &[FirstClaim<'_>]) -> QueryResult<Vec<Claimed>> {
        let binds = [
            Bind::Texts(rows.iter().map(|row| row.key).collect()),
            Bind::Blobs(rows.iter().map(|row| row.fingerprint).collect()),
            Bind::Blobs(rows.iter().map(|row| row.owner).collect()),
            Bind::BigInts(rows.iter().map(|row| row.lease).collect()),
            Bind::SmallInts(rows.iter().map(|row| row.on_abandoned).collect()),
            Bind::MaybeBigInts(rows.iter().map(|row| row.kept).collect()),
        ];
        Fragment::<(Binary, BigInt), _>::new(&self.texts.claim, &binds).load(connection).await
    }

    async fn insert(&self, connection: &mut AsyncPgConnection, rows: &[Columns<'_>]) -> QueryResult<Written> {
        let keys = Bind::Texts(rows.iter().map(|row| row.key).collect());
        let binds: Vec<_> = [keys].into_iter().chain(columns(rows.iter())).collect();
        Fragment::<Binary, _>::new(&self.texts.insert, &binds).load(connection).await.map(Written::Only)
    }

    async fn update(
        &self,
        connection: &mut AsyncPgConnection,
        rows: &[(Expected<'_>, Columns<'_>)],
    ) -> QueryResult<Written> {
        let was = expected(rows.iter().map(|(was, _)| was));
        let binds: Vec<_> = was.into_iter().chain(columns(rows.iter().map(|(_, row)| row))).collect();
        Self::announcing(connection, &self.texts.update, &binds).await
    }

    async fn complete(&self, connection: &mut AsyncPgConnection, rows: &[Completion<'_>]) -> QueryResult<Written> {
        if let [row] = rows {
            return Self::announcing(connection, &self.texts.complete_one, &one_completion(row)).await;
        }
        let binds = [
            Bind::Blobs(rows.iter().map(|row| row.outcome).collect()),
            Bind::BigInts(rows.iter().map(|row| row.retention).collect()),
            Bind::Texts(rows.iter().map(|row| row.key).collect()),
            Bind::Blobs(rows.iter().map(|row| row.owner).collect()),
        ];
        Self::announcing(connection, &self.texts.complete, &binds).await
    }

    async fn delete(&self, connection: &mut AsyncPgConnection, rows: &[Expected<'_>]) -> QueryResult<Written> {
        Self::announcing(connection, &self.texts.delete, &expected(rows.iter())).await
    }

    async fn remove(&self, connection: &mut AsyncPgConnection, key: &str) -> QueryResult<bool> {
        let removed = Self::announcing(connection, &self.texts.remove, &[Bind::Text(key), Bind::Text(key)]).await?;
        Ok(removed != Written::Only(Vec::new()))
    }

    async fn list(
        &self,
        connection: &mut AsyncPgConnection,
        after: &str,
        limit: usize,
    ) -> QueryResult<(StoreTime, Vec<Keyed>)> {
        let binds = [Bind::Text(after), Bind::BigInt(i64::try_from(limit).unwrap_or(i64::MAX))];
        let rows: Vec<(i64, Vec<u8>, Row)> =
            Fragment::<(BigInt, Binary, RowTypes), _>::new(&self.texts.list, &binds).load(connection).await?;
        let now = time_of(&rows, |(now, ..)| *now);
        Ok((from_column(now), rows.into_iter().map(|(_, key, row)| (key, row)).collect()))
    }

    async fn purge(&self, connection: &mut AsyncPgConnection, limit: usize) -> QueryResult<(usize, bool)> {
        let rows = i64::try_from(limit).unwrap_or(i64::MAX);
        let binds = [Bind::BigInt(rows), Bind::BigInt(rows), Bind::BigInt(rows)];
        let (removed, more): (i64, bool) =
            Fragment::<(BigInt, Bool), _>::new(&self.texts.purge, &binds).get_result(connection).await?;
        Ok((usize::try_from(removed).unwrap_or(0), more && limit > 0))
    }

    async fn read_steps(
        &self,
        connection: &mut AsyncPgConnection,
        keys: &[&str],
    ) -> QueryResult<Vec<(Vec<u8>, StepRow)>> {
        self.steps_of(connection, keys).await
    }

    async fn put_family(&self, connection: &mut AsyncPgConnection, family: &Family<'_>) -> QueryResult<bool> {
        self.put(connection, family).await
    }

    async fn begin_steps(&self, connection: &mut AsyncPgConnection, rows: &[FirstRun<'_>]) -> QueryResult<Vec<Begun>> {
        self.begin_unseen(connection, rows).await
    }

    async fn complete_steps(
        &self,
        connection: &mut AsyncPgConnection,
        rows: &[StepCompletion<'_>],
    ) -> QueryResult<Written> {
        self.complete_unseen(connection, rows).await
    }

    async fn stats(&self, connection: &mut AsyncPgConnection) -> QueryResult<Vec<(i16, i64)>> {
        Fragment::<(SmallInt, BigInt), Bind<'_>>::new(&self.texts.stats, &[]).load(connection).await
    }

    async fn unlocked(&self, connection: &mut AsyncPgConnection, keys: &[&str]) -> QueryResult<Vec<Vec<u8>>> {
        Fragment::<Binary, _>::new(&self.texts.unlocked, &[Bind::Texts(keys.to_vec())]).load(connection).await
    }

    /// A setting that is LOCAL ends with the transaction that it was made in. Roles need no right for one whose name has a
    /// prefix of its own. `lock_timeout` goes back to what the connection was opened with by the database's defaults.
    async fn begin(&self, connection: &mut AsyncPgConnection) -> QueryResult<()> {
        AnsiTransactionManager::begin_transaction_sql(connection, &begin(self.limits_lock_waits)).await
    }

    async fn is_as_begun(&self, connection: &mut AsyncPgConnection) -> QueryResult<bool> {
        Fragment::<Bool, Bind<'_>>::new(IS_BEGUN, &[]).get_result(connection).await
    }

    async fn clean(&self, connection: &mut AsyncPgConnection) -> QueryResult<bool> {
        if self.limits_lock_waits {
            return session::make_new(connection).await.map(|()| true);
        }
        session::is_as_remembered(connection).await
    }

    /// Outside of a transaction a LOCAL setting ends with its statement.
    async fn is_in_transaction(&self, connection: &mut AsyncPgConnection) -> QueryResult<bool> {
        let _: String = Fragment::<Text, Bind<'_>>::new(SET_HERE, &[]).get_result(connection).await?;
        Fragment::<Bool, Bind<'_>>::new(IS_HERE, &[]).get_result(connection).await
    }

    fn failure(error: &Error) -> Failure {
        match error {
            Error::DatabaseError(DatabaseErrorKind::SerializationFailure, _) => Failure::Contended,
            Error::DatabaseError(DatabaseErrorKind::ReadOnlyTransaction, _) => Failure::ReadOnly,
            // Without an SQLSTATE it is the connection that spoke.
            Error::DatabaseError(DatabaseErrorKind::UnableToSendCommand | DatabaseErrorKind::ClosedConnection, _)
            | Error::BrokenTransactionManager => Failure::Disconnected,
            // Diesel keeps the server's message and not its SQLSTATE. Where the server speaks another language a
            // deadlock is not known as one: it is then an error, and never taken for a success.
            Error::DatabaseError(DatabaseErrorKind::Unknown, information) => match information.message() {
                "deadlock detected" => Failure::Contended,
                "canceling statement due to lock timeout" => Failure::Locked,
                message if message.starts_with("terminating connection") => Failure::Disconnected,
                message if message.starts_with("the database system is") => Failure::Disconnected,
                message if message.starts_with("could not extend file") => Failure::Full,
                message if message.contains("No space left on device") => Failure::Full,
                _ => Failure::Other,
            },
            Error::DatabaseError(..) | Error::DeserializationError(_) | Error::SerializationError(_) => {
                Failure::Refused
            }
            _ => Failure::Other,
        }
    }
}
