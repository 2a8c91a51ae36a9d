//! PostgreSQL's statements on the table of records.
//!
//! Rows are passed as one array per column, so a statement has the same text for any number of rows.

use diesel::QueryResult;
use diesel::pg::Pg;
use diesel::query_builder::AstPass;
use diesel::sql_types::{Array, BigInt, Binary, Bool, Nullable, SmallInt, Text};
use diesel_async::{AnsiTransactionManager, AsyncPgConnection, RunQueryDsl};
use oncekey::record::StoreTime;

use super::session;
use super::texts::Texts;
use crate::sql::{
    Bind, Claimed, Columns, Completion, Connections, Database, Dialect, Expected, Failure, FirstClaim, Fragment, Keyed,
    Part, Row, RowTypes, TimedTypes, Written, locked, timed,
};

/// A parameter: one value, or a column of values.
pub(super) enum Param<'a> {
    One(Bind<'a>),
    Texts(Vec<&'a str>),
    Blobs(Vec<&'a [u8]>),
    MaybeBlobs(Vec<Option<&'a [u8]>>),
    BigInts(Vec<i64>),
    MaybeBigInts(Vec<Option<i64>>),
    SmallInts(Vec<i16>),
    MaybeSmallInts(Vec<Option<i16>>),
}

impl Part<Pg> for Param<'_> {
    fn push<'b>(&'b self, out: &mut AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        match self {
            Self::One(value) => Part::<Pg>::push(value, out),
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

/// Returns the values of the rows, column by column.
pub(super) fn columns<'a, const N: usize>(rows: impl Iterator<Item = [Bind<'a>; N]>) -> Vec<Param<'a>> {
    let mut columns: Vec<Param<'a>> = Vec::with_capacity(N);
    for row in rows {
        if columns.is_empty() {
            columns.extend(row.iter().map(Param::column_of));
        }
        columns.iter_mut().zip(row).for_each(|(column, value)| column.push_value(value));
    }
    columns
}

impl<'a> Param<'a> {
    /// Creates an empty column for values of this kind.
    fn column_of(value: &Bind<'a>) -> Self {
        match value {
            Bind::Text(_) => Self::Texts(Vec::new()),
            Bind::Bytes(_) => Self::Blobs(Vec::new()),
            Bind::MaybeBytes(_) => Self::MaybeBlobs(Vec::new()),
            Bind::BigInt(_) => Self::BigInts(Vec::new()),
            Bind::MaybeBigInt(_) => Self::MaybeBigInts(Vec::new()),
            Bind::SmallInt(_) => Self::SmallInts(Vec::new()),
            Bind::MaybeSmallInt(_) => Self::MaybeSmallInts(Vec::new()),
        }
    }

    fn push_value(&mut self, value: Bind<'a>) {
        match (self, value) {
            (Self::Texts(column), Bind::Text(value)) => column.push(value),
            (Self::Blobs(column), Bind::Bytes(value)) => column.push(value),
            (Self::MaybeBlobs(column), Bind::MaybeBytes(value)) => column.push(value),
            (Self::BigInts(column), Bind::BigInt(value)) => column.push(value),
            (Self::MaybeBigInts(column), Bind::MaybeBigInt(value)) => column.push(value),
            (Self::SmallInts(column), Bind::SmallInt(value)) => column.push(value),
            (Self::MaybeSmallInts(column), Bind::MaybeSmallInt(value)) => column.push(value),
            // All rows of a statement have the same kinds of values. The server refuses a column that is too short.
            _ => debug_assert!(false, "rows of different kinds"),
        }
    }
}

/// PostgreSQL on the connections of one arbiter.
pub(super) struct Postgres {
    pub(super) connections: Connections<AsyncPgConnection>,
    pub(super) texts: Texts,
}

/// Returns the statement that opens an operation's transaction, on the backend's or the application's connection.
pub(super) fn begin(is_own: bool) -> String {
    let lock_wait = if is_own { "; SET LOCAL lock_timeout = DEFAULT" } else { "" };
    let remember = if is_own { String::new() } else { session::remember() };
    format!("BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL oncekey.begun = 'yes'{lock_wait}{remember}")
}

/// Checks whether that transaction is still open.
pub(super) const IS_BEGUN: &str = "SELECT coalesce(current_setting('oncekey.begun', true), '') = 'yes'";

pub(super) const SET_HERE: &str = "SELECT set_config('oncekey.here', 'yes', true)";
/// Checks whether the transaction in which that was set is open.
pub(super) const IS_HERE: &str = "SELECT coalesce(current_setting('oncekey.here', true), '') = 'yes'";

impl Postgres {
    /// Runs a statement that returns the keys that it wrote, and announces changes.
    pub(super) async fn announcing(
        connection: &mut AsyncPgConnection,
        text: &str,
        binds: &[impl Part<Pg>],
    ) -> QueryResult<Written> {
        let written: Vec<(Vec<u8>, Option<String>)> =
            Fragment::<(Binary, Nullable<Text>), _>::new(text, binds).load(connection).await?;
        Ok(Written::Only(written.into_iter().map(|(key, _)| key).collect()))
    }
}

impl Database for Postgres {
    const NAME: &'static str = "PostgreSQL";

    type Connection = AsyncPgConnection;

    fn connections(&self) -> &Connections<AsyncPgConnection> {
        &self.connections
    }
}

impl Dialect for Postgres {
    const CONTENTION_IS_FINAL: bool = false;

    async fn read(&self, connection: &mut AsyncPgConnection, keys: &[&str]) -> QueryResult<(StoreTime, Vec<Keyed>)> {
        let binds = [Param::Texts(keys.to_vec())];
        Fragment::<TimedTypes, _>::new(&self.texts.read, &binds).load(connection).await.map(timed)
    }

    /// PostgreSQL flushes a commit before it shows it to others.
    async fn await_flush(&self, _: &mut AsyncPgConnection) -> QueryResult<()> {
        Ok(())
    }

    async fn lock(&self, connection: &mut AsyncPgConnection, key: &str) -> QueryResult<(StoreTime, Option<Row>)> {
        let binds = [Bind::Text(key)];
        Fragment::<(BigInt, RowTypes), _>::new(&self.texts.lock, &binds).load(connection).await.map(locked)
    }

    async fn claim(&self, connection: &mut AsyncPgConnection, rows: &[FirstClaim<'_>]) -> QueryResult<Vec<Claimed>> {
        let binds = columns(rows.iter().map(FirstClaim::binds));
        Fragment::<(Binary, BigInt), _>::new(&self.texts.claim, &binds).load(connection).await
    }

    async fn insert(&self, connection: &mut AsyncPgConnection, rows: &[Columns<'_>]) -> QueryResult<Written> {
        let keys = Param::Texts(rows.iter().map(|row| row.key).collect());
        let binds: Vec<_> = [keys].into_iter().chain(columns(rows.iter().map(Columns::binds))).collect();
        Fragment::<Binary, _>::new(&self.texts.insert, &binds).load(connection).await.map(Written::Only)
    }

    async fn update(
        &self,
        connection: &mut AsyncPgConnection,
        rows: &[(Expected<'_>, Columns<'_>)],
    ) -> QueryResult<Written> {
        let mut binds = columns(rows.iter().map(|(was, _)| was.binds()));
        binds.extend(columns(rows.iter().map(|(_, row)| row.binds())));
        Self::announcing(connection, &self.texts.update, &binds).await
    }

    async fn complete(&self, connection: &mut AsyncPgConnection, rows: &[Completion<'_>]) -> QueryResult<Written> {
        if let [row] = rows {
            return Self::announcing(connection, &self.texts.complete_one, &row.binds()).await;
        }
        let binds = columns(rows.iter().map(Completion::binds));
        Self::announcing(connection, &self.texts.complete, &binds).await
    }

    async fn delete(&self, connection: &mut AsyncPgConnection, rows: &[Expected<'_>]) -> QueryResult<Written> {
        let binds = columns(rows.iter().map(Expected::binds));
        Self::announcing(connection, &self.texts.delete, &binds).await
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
        Fragment::<TimedTypes, _>::new(&self.texts.list, &binds).load(connection).await.map(timed)
    }

    async fn purge(&self, connection: &mut AsyncPgConnection, limit: usize) -> QueryResult<(usize, bool)> {
        let rows = i64::try_from(limit).unwrap_or(i64::MAX);
        let binds = [Bind::BigInt(rows), Bind::BigInt(rows), Bind::BigInt(rows)];
        let (removed, more): (i64, bool) =
            Fragment::<(BigInt, Bool), _>::new(&self.texts.purge, &binds).get_result(connection).await?;
        Ok((usize::try_from(removed).unwrap_or(0), more && limit > 0))
    }

    async fn stats(&self, connection: &mut AsyncPgConnection) -> QueryResult<Vec<(i16, i64)>> {
        Fragment::<(SmallInt, BigInt), Bind<'_>>::new(&self.texts.stats, &[]).load(connection).await
    }

    async fn unlocked(&self, connection: &mut AsyncPgConnection, keys: &[&str]) -> QueryResult<Vec<Vec<u8>>> {
        Fragment::<Binary, _>::new(&self.texts.unlocked, &[Param::Texts(keys.to_vec())]).load(connection).await
    }

    /// A LOCAL setting ends with the transaction in which it was made. Any role may make a setting whose name has a
    /// prefix of its own. `lock_timeout` returns to the database's default, with which the connection was opened.
    async fn begin(&self, connection: &mut AsyncPgConnection) -> QueryResult<()> {
        AnsiTransactionManager::begin_transaction_sql(connection, &begin(self.connections.are_own)).await
    }

    async fn is_as_begun(&self, connection: &mut AsyncPgConnection) -> QueryResult<bool> {
        Fragment::<Bool, Bind<'_>>::new(IS_BEGUN, &[]).get_result(connection).await
    }

    async fn clean(&self, connection: &mut AsyncPgConnection) -> QueryResult<bool> {
        if self.connections.are_own {
            return session::make_new(connection).await.map(|()| true);
        }
        session::is_as_remembered(connection).await
    }

    /// Outside a transaction, a LOCAL setting ends with its statement.
    async fn is_in_transaction(&self, connection: &mut AsyncPgConnection) -> QueryResult<bool> {
        let _: String = Fragment::<Text, Bind<'_>>::new(SET_HERE, &[]).get_result(connection).await?;
        Fragment::<Bool, Bind<'_>>::new(IS_HERE, &[]).get_result(connection).await
    }

    fn failure_by_message(message: &str) -> Failure {
        match message {
            "deadlock detected" => Failure::Contended,
            "canceling statement due to lock timeout" => Failure::Locked,
            message if message.starts_with("terminating connection") => Failure::Disconnected,
            message if message.starts_with("the database system is") => Failure::Disconnected,
            message if message.starts_with("could not extend file") => Failure::Full,
            message if message.contains("No space left on device") => Failure::Full,
            _ => Failure::Other,
        }
    }
}
