//! MySQL's and MariaDB's statements on the table of records.
//!
//! Neither says which rows an UPDATE or a DELETE wrote, so that one that wrote fewer than it was to is followed by a look.

use diesel::QueryResult;
use diesel::result::{DatabaseErrorKind, Error};
use diesel::sql_types::{BigInt, Binary, SmallInt};
use diesel_async::{AnsiTransactionManager, AsyncMysqlConnection, RunQueryDsl, SimpleAsyncConnection as _};
use oncekey::backend::StoreError;
use oncekey::record::StoreTime;

use super::connect::{Checked, LOCK_WAIT_SECONDS};
use super::flush::await_flush;
use super::session::is_as_remembered;
use crate::sql::{
    Bind, Claimed, Columns, Completion, Connections, Database, Dialect, Expected, Failure, FirstClaim, Fragment, Keyed,
    Pooled, Row, RowTypes, TimedTypes, Written, locked, timed,
};

/// The server's time in milliseconds since 1970 when the statement began. By UTC: a local time, from which
/// `UNIX_TIMESTAMP` would count, comes twice where the clocks are put back, and leases would lapse an hour early.
pub(crate) const NOW: &str = "TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', UTC_TIMESTAMP(3)) DIV 1000";

/// Until when a completed record is kept whatever its retention: while its barrier stands, and until the clock alone gives a
/// higher fencing token. After a clock that was set back the next claim would get a lower one.
const KEPT_AT_LEAST_UNTIL: &str = "COALESCE(barrier_until, 0), fencing_token DIV 1000 + 1";

const ROW: &str = "fingerprint, attempt, owner, state, lease_until, on_abandoned, outcome, purge_at, fencing_token, \
                   barrier_owner, barrier_until, steps_life, steps_retention";

/// What a record has that has no steps.
const ROW_WITHOUT_STEPS: &str = "fingerprint, attempt, owner, state, lease_until, on_abandoned, outcome, purge_at, \
                                 fencing_token, barrier_owner, barrier_until";

/// MySQL or MariaDB, by one arbiter's connections, and the tables' quoted names.
pub(super) struct Mysql {
    pub(super) connections: Connections<AsyncMysqlConnection>,
    pub(super) table: String,
    /// The quoted name of the table of steps.
    pub(super) steps: String,
    /// The table by which the log's flush is awaited, and whose row [`PURGE_TURN`](super::purge::PURGE_TURN) says until when a process purges.
    pub(super) flushes: String,
    /// Whether a commit is shown before the log is flushed.
    pub(super) shows_too_early: bool,
    /// An expression for what a session has set, and whether it can give up locks by name.
    pub(super) left_there: String,
    pub(super) frees_locks: bool,
    /// `max_allowed_packet`, in bytes.
    pub(super) packet: usize,
    /// What an operation's transaction must not have, set before it and set back after it.
    pub(super) before: &'static str,
    pub(super) after: &'static str,
    /// Whether an INSERT can return what it inserted.
    pub(super) returns: bool,
    /// Which connections of an application's pool have been looked at.
    pub(super) checked: Checked,
}

/// The rows of a statement are repeated up to a power of two, so that a connection prepares few statements: a repeated
/// row finds its work done.
pub(super) fn padded<T: Copy>(rows: &[T]) -> impl Iterator<Item = T> + '_ {
    let last = rows.last().copied();
    let missing = rows.len().next_power_of_two() - rows.len();
    rows.iter().copied().chain(std::iter::repeat_n(last, missing).flatten())
}

pub(super) fn repeated(row: &str, separator: &str, rows: usize) -> String {
    vec![row; rows.next_power_of_two()].join(separator)
}

pub(super) fn written(rows: usize, wanted: usize) -> Written {
    if rows >= wanted { Written::All } else { Written::Some }
}

pub(super) const RELEASE_BEGUN: &str = "RELEASE SAVEPOINT oncekey_begun";
pub(super) const SET_AND_RELEASE: &str = "SAVEPOINT oncekey_here; RELEASE SAVEPOINT oncekey_here";
/// Gives up what a session has locked by name.
pub(super) const FREE_LOCKS: &str = "DO RELEASE_ALL_LOCKS()";

/// Whether the savepoint was there.
pub(super) fn released(result: QueryResult<()>) -> QueryResult<bool> {
    match result {
        Ok(()) => Ok(true),
        // 1305, in MySQL and in MariaDB. In another language the error itself is told.
        Err(Error::DatabaseError(DatabaseErrorKind::Unknown, information))
            if information.message().starts_with("SAVEPOINT") && information.message().contains("does not exist") =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

impl Mysql {
    /// How a completion's statement begins, and where a completion is not too late.
    fn completing(&self) -> (String, String) {
        let set = format!(
            "UPDATE {} FORCE INDEX (PRIMARY) SET state = 2, lease_until = NULL, on_abandoned = NULL",
            self.table
        );
        (set, format!("state IN (1, 3) AND (purge_at IS NULL OR purge_at > {NOW})"))
    }

    /// Completes one claim that is its owner's.
    pub(super) fn one_completion(&self) -> String {
        let (set, is_to_be_completed) = self.completing();
        format!(
            "{set}, outcome = ?, purge_at = GREATEST({NOW} + ?, {KEPT_AT_LEAST_UNTIL}) \
             WHERE record_key = ? AND owner = ? AND {is_to_be_completed}"
        )
    }

    /// Reads a record's row and locks it.
    pub(super) fn locking(&self) -> String {
        format!("SELECT {NOW}, {ROW} FROM {} WHERE record_key = ? FOR UPDATE", self.table)
    }

    /// Opens the transaction of an operation, on a connection of this backend's own or of the application's: see
    /// [`Dialect::begin`].
    pub(super) fn transaction_text(&self, is_own: bool) -> String {
        let lock_wait = if is_own { ", innodb_lock_wait_timeout = @oncekey_lock_wait" } else { "" };
        let was = &self.left_there;
        format!(
            "SET @oncekey_was = {was}, @oncekey_autocommit = @@autocommit, autocommit = 0{lock_wait}; {}BEGIN; \
             SAVEPOINT oncekey_begun",
            self.before
        )
    }

    /// Sets back what that has set.
    pub(super) fn set_back_text(&self, is_own: bool) -> String {
        let lock_wait =
            if is_own { format!(", innodb_lock_wait_timeout = {LOCK_WAIT_SECONDS}") } else { String::new() };
        format!("SET autocommit = @oncekey_autocommit{lock_wait}{}", self.after)
    }
}

impl Database for Mysql {
    const NAME: &'static str = "MySQL";

    type Connection = AsyncMysqlConnection;

    fn connections(&self) -> &Connections<AsyncMysqlConnection> {
        &self.connections
    }

    async fn check(&self, pooled: &mut Pooled<AsyncMysqlConnection>) -> Result<(), StoreError> {
        if self.connections.are_own { Ok(()) } else { self.checked.check(pooled).await }
    }
}

impl Dialect for Mysql {
    /// A deadlock rolls the whole transaction back, and the server goes on without one.
    const CONTENTION_IS_FINAL: bool = true;

    /// MySQL gives a parameter in a derived table the type VARBINARY, with room for 65,535 bytes: a longer outcome is cut or
    /// refused there.
    const LONGEST_SHARED_OUTCOME: usize = 60_000;

    /// A begin of a step is written out, in less than eight kilobytes.
    fn most_begun_together(&self) -> usize {
        (self.packet >> 13).max(1)
    }

    /// A batch has up to 128 rows, and some are sent twice. Half of the packet is for keys and the like.
    fn longest_shared_outcome(&self) -> usize {
        self.packet / 512
    }

    /// The rest of the statement has a few kilobytes at most.
    fn longest_outcome(&self) -> usize {
        self.packet.saturating_sub(8 << 10)
    }

    async fn read(&self, connection: &mut AsyncMysqlConnection, keys: &[&str]) -> QueryResult<(StoreTime, Vec<Keyed>)> {
        let marks = repeated("?", ", ", keys.len());
        // One row without a key, so that the time is known if there is no other.
        let text = format!(
            "SELECT {NOW}, r.record_key, COALESCE(r.fingerprint, X''), COALESCE(r.attempt, 0), COALESCE(r.owner, X''), \
             COALESCE(r.state, 0), r.lease_until, r.on_abandoned, r.outcome, r.purge_at, COALESCE(r.fencing_token, 0), \
             r.barrier_owner, r.barrier_until, r.steps_life, r.steps_retention FROM (SELECT 1 AS one) AS o LEFT JOIN {} AS r ON r.record_key IN ({marks})",
            self.table
        );
        let binds: Vec<_> = padded(keys).map(Bind::Text).collect();
        Fragment::<TimedTypes, _>::new(&text, &binds).load(connection).await.map(timed)
    }

    async fn await_flush(&self, connection: &mut AsyncMysqlConnection) -> QueryResult<()> {
        if self.shows_too_early { await_flush(connection, &self.flushes).await } else { Ok(()) }
    }

    async fn lock(&self, connection: &mut AsyncMysqlConnection, key: &str) -> QueryResult<(StoreTime, Option<Row>)> {
        let (text, binds) = (self.locking(), [Bind::Bytes(key.as_bytes())]);
        Fragment::<(BigInt, RowTypes), _>::new(&text, &binds).load(connection).await.map(locked)
    }

    async fn claim(&self, connection: &mut AsyncMysqlConnection, rows: &[FirstClaim<'_>]) -> QueryResult<Vec<Claimed>> {
        let table = &self.table;
        let each = format!("(?, ?, 1, ?, 1, {NOW} + ?, ?, NULL, {NOW} + ?, ({NOW}) * 1000, NULL, NULL)");
        let values = repeated(&each, ", ", rows.len());
        // As in `insert`.
        let text = format!("INSERT IGNORE INTO {table} (record_key, {ROW_WITHOUT_STEPS}) VALUES {values}");
        let binds: Vec<_> = padded(rows).flat_map(|row| row.binds()).collect();
        if self.returns {
            let text = format!("{text} RETURNING record_key, fencing_token");
            return Fragment::<(Binary, BigInt), _>::new(&text, &binds).load(connection).await;
        }
        Fragment::<(), _>::new(&text, &binds).execute(connection).await?;
        // What it inserted is what has its owners. Nobody else knows them, so that nobody else has changed it since.
        let each = "(record_key = ? AND owner = ? AND state = 1)";
        let text = format!(
            "SELECT record_key, fencing_token FROM {table} FORCE INDEX (PRIMARY) WHERE {}",
            repeated(each, " OR ", rows.len())
        );
        let binds: Vec<_> = padded(rows).flat_map(|row| [Bind::Text(row.key), Bind::Bytes(row.owner)]).collect();
        Fragment::<(Binary, BigInt), _>::new(&text, &binds).load(connection).await
    }

    async fn insert(&self, connection: &mut AsyncMysqlConnection, rows: &[Columns<'_>]) -> QueryResult<Written> {
        let marks = repeated("(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", ", ", rows.len());
        // IGNORE passes over rows that are there, and would also cut a value that does not fit; all of these do.
        let text = format!("INSERT IGNORE INTO {} (record_key, {ROW_WITHOUT_STEPS}) VALUES {marks}", self.table);
        let binds: Vec<_> = padded(rows).flat_map(|row| [Bind::Text(row.key)].into_iter().chain(row.binds())).collect();
        let counted = Fragment::<(), _>::new(&text, &binds).execute(connection).await?;
        Ok(written(counted, rows.len()))
    }

    async fn update(
        &self,
        connection: &mut AsyncMysqlConnection,
        rows: &[(Expected<'_>, Columns<'_>)],
    ) -> QueryResult<Written> {
        // By itself a row needs no derived table, so that its outcome may have any length.
        if let [(was, row)] = rows {
            let text = format!(
                "UPDATE {} SET fingerprint = ?, attempt = ?, owner = ?, state = ?, lease_until = ?, on_abandoned = ?, \
                 outcome = ?, purge_at = ?, fencing_token = ?, barrier_owner = ?, barrier_until = ? \
                 WHERE record_key = ? AND owner = ? AND state = ? AND lease_until <=> ? AND barrier_owner <=> ? \
                 AND steps_life <=> ?",
                self.table
            );
            let binds: Vec<_> = row.binds().into_iter().chain(was.binds()).collect();
            let counted = Fragment::<(), _>::new(&text, &binds).execute(connection).await?;
            return Ok(written(counted, 1));
        }
        const VALUES: &str = "SELECT CAST(? AS BINARY) AS was_key, CAST(? AS BINARY) AS was_owner, \
            CAST(? AS SIGNED) AS was_state, CAST(? AS SIGNED) AS was_lease, CAST(? AS BINARY) AS was_barrier, \
            CAST(? AS SIGNED) AS was_life, CAST(? AS BINARY) AS new_fingerprint, \
            CAST(? AS SIGNED) AS new_attempt, CAST(? AS BINARY) AS new_owner, CAST(? AS SIGNED) AS new_state, \
            CAST(? AS SIGNED) AS new_lease, CAST(? AS SIGNED) AS new_word, CAST(? AS BINARY) AS new_outcome, \
            CAST(? AS SIGNED) AS new_purge_at, CAST(? AS SIGNED) AS new_token, \
            CAST(? AS BINARY) AS new_barrier_owner, CAST(? AS SIGNED) AS new_barrier_until";
        let values = repeated(VALUES, " UNION ALL ", rows.len());
        let text = format!(
            "UPDATE ({values}) AS a STRAIGHT_JOIN {} AS r ON r.record_key = a.was_key AND r.owner = a.was_owner \
             AND r.state = a.was_state AND r.lease_until <=> a.was_lease AND r.barrier_owner <=> a.was_barrier \
             AND r.steps_life <=> a.was_life \
             SET r.fingerprint = a.new_fingerprint, r.attempt = a.new_attempt, r.owner = a.new_owner, \
             r.state = a.new_state, r.lease_until = a.new_lease, r.on_abandoned = a.new_word, \
             r.outcome = a.new_outcome, r.purge_at = a.new_purge_at, r.fencing_token = a.new_token, \
             r.barrier_owner = a.new_barrier_owner, r.barrier_until = a.new_barrier_until",
            self.table
        );
        let binds: Vec<_> = padded(rows).flat_map(|(was, row)| was.binds().into_iter().chain(row.binds())).collect();
        let counted = Fragment::<(), _>::new(&text, &binds).execute(connection).await?;
        Ok(written(counted, rows.len()))
    }

    async fn complete(&self, connection: &mut AsyncMysqlConnection, rows: &[Completion<'_>]) -> QueryResult<Written> {
        if let [row] = rows {
            let (text, binds) = (self.one_completion(), row.binds());
            let counted = Fragment::<(), _>::new(&text, &binds).execute(connection).await?;
            return Ok(written(counted, 1));
        }
        fn key<'a>(row: &Completion<'a>) -> Bind<'a> {
            Bind::Text(row.key)
        }

        let (set, is_to_be_completed) = self.completing();
        let text = format!(
            "{set}, outcome = CASE record_key {} END, \
             purge_at = GREATEST({NOW} + CASE record_key {} END, {KEPT_AT_LEAST_UNTIL}) \
             WHERE ({}) AND {is_to_be_completed}",
            repeated("WHEN ? THEN CAST(? AS BINARY)", " ", rows.len()),
            repeated("WHEN ? THEN CAST(? AS SIGNED)", " ", rows.len()),
            repeated("(record_key = ? AND owner = ?)", " OR ", rows.len())
        );
        let outcomes = padded(rows).flat_map(|row| [key(&row), Bind::Bytes(row.outcome)]);
        let retentions = padded(rows).flat_map(|row| [key(&row), Bind::BigInt(row.retention)]);
        let owners = padded(rows).flat_map(|row| [key(&row), Bind::Bytes(row.owner)]);
        let binds: Vec<_> = outcomes.chain(retentions).chain(owners).collect();
        let counted = Fragment::<(), _>::new(&text, &binds).execute(connection).await?;
        Ok(written(counted, rows.len()))
    }

    async fn delete(&self, connection: &mut AsyncMysqlConnection, rows: &[Expected<'_>]) -> QueryResult<Written> {
        let each = "(record_key = ? AND owner = ? AND state = ? AND lease_until <=> ? AND barrier_owner <=> ? \
                    AND steps_life <=> ?)";
        let text = format!("DELETE FROM {} WHERE {}", self.table, repeated(each, " OR ", rows.len()));
        let binds: Vec<_> = padded(rows).flat_map(|row| row.binds()).collect();
        let counted = Fragment::<(), _>::new(&text, &binds).execute(connection).await?;
        Ok(written(counted, rows.len()))
    }

    async fn remove(&self, connection: &mut AsyncMysqlConnection, key: &str) -> QueryResult<bool> {
        let text = format!(
            "DELETE r, s FROM {} AS r LEFT JOIN {} AS s ON s.record_key = r.record_key WHERE r.record_key = ?",
            self.table, self.steps
        );
        let removed = Fragment::<(), _>::new(&text, &[Bind::Text(key)]).execute(connection).await?;
        Ok(removed > 0)
    }

    async fn list(
        &self,
        connection: &mut AsyncMysqlConnection,
        after: &str,
        limit: usize,
    ) -> QueryResult<(StoreTime, Vec<Keyed>)> {
        let text = format!(
            "SELECT {NOW}, record_key, {ROW} FROM {} WHERE record_key > ? AND state <> 4 \
             AND (purge_at IS NULL OR purge_at > {NOW} OR state = 1 AND steps_life IS NOT NULL) \
             ORDER BY record_key LIMIT ?",
            self.table
        );
        // Before every key. An SQL mode of MariaDB's takes what is empty for NULL.
        let after = if after.is_empty() { &[0][..] } else { after.as_bytes() };
        let binds = [Bind::Bytes(after), Bind::BigInt(i64::try_from(limit).unwrap_or(i64::MAX))];
        Fragment::<TimedTypes, _>::new(&text, &binds).load(connection).await.map(timed)
    }

    async fn purge(&self, connection: &mut AsyncMysqlConnection, limit: usize) -> QueryResult<(usize, bool)> {
        self.purge_in_turn(connection, limit).await
    }

    async fn stats(&self, connection: &mut AsyncMysqlConnection) -> QueryResult<Vec<(i16, i64)>> {
        let text = format!("SELECT state, COUNT(*) FROM {} GROUP BY state", self.table);
        Fragment::<(SmallInt, BigInt), Bind<'_>>::new(&text, &[]).load(connection).await
    }

    /// Without autocommit, so that what an operation does after a deadlock that it has passed over is in a transaction as
    /// well, if another one, and can be rolled back. The savepoint goes with the transaction that it was set in.
    async fn begin(&self, connection: &mut AsyncMysqlConnection) -> QueryResult<()> {
        let text = self.transaction_text(self.connections.are_own);
        AnsiTransactionManager::begin_transaction_sql(connection, &text).await
    }

    async fn is_as_begun(&self, connection: &mut AsyncMysqlConnection) -> QueryResult<bool> {
        released(connection.batch_execute(RELEASE_BEGUN).await)
    }

    async fn set_back(&self, connection: &mut AsyncMysqlConnection) -> QueryResult<()> {
        connection.batch_execute(&self.set_back_text(self.connections.are_own)).await
    }

    async fn clean(&self, connection: &mut AsyncMysqlConnection) -> QueryResult<bool> {
        if self.frees_locks {
            connection.batch_execute(FREE_LOCKS).await?;
        }
        is_as_remembered(connection, &self.left_there).await
    }

    /// Outside of a transaction a savepoint is gone as soon as it is set.
    async fn is_in_transaction(&self, connection: &mut AsyncMysqlConnection) -> QueryResult<bool> {
        released(connection.batch_execute(SET_AND_RELEASE).await)
    }

    async fn unlocked(&self, connection: &mut AsyncMysqlConnection, keys: &[&str]) -> QueryResult<Vec<Vec<u8>>> {
        let marks = repeated("?", ", ", keys.len());
        let text = format!(
            "SELECT record_key FROM {} FORCE INDEX (PRIMARY) WHERE record_key IN ({marks}) FOR UPDATE SKIP LOCKED",
            self.table
        );
        let binds: Vec<_> = padded(keys).map(Bind::Text).collect();
        Fragment::<Binary, _>::new(&text, &binds).load(connection).await
    }

    /// The driver's own errors come the same way.
    fn failure_by_message(message: &str) -> Failure {
        match message {
            message if message.starts_with("Deadlock found") => Failure::Contended,
            message if message.starts_with("Lock wait timeout exceeded") => Failure::Locked,
            // MariaDB's snapshot isolation.
            message if message.starts_with("Record has changed since last read") => Failure::Contended,
            message if message.starts_with("Input/output error") => Failure::Disconnected,
            message if message.starts_with("Driver error") => Failure::Disconnected,
            message if message.starts_with("Server shutdown in progress") => Failure::Disconnected,
            message if message.starts_with("Connection was killed") => Failure::Disconnected,
            message if message.starts_with("The client was disconnected by the server because of inactivity") => {
                Failure::Disconnected
            }
            message if message.contains("read-only option") => Failure::ReadOnly,
            message if message.starts_with("Running in read-only mode") => Failure::ReadOnly,
            // A node of a Galera cluster that has lost the others.
            message if message.starts_with("WSREP has not yet prepared node") => Failure::ReadOnly,
            message if message.starts_with("The table") && message.ends_with("is full") => Failure::Full,
            message if message.starts_with("Data too long for column") => Failure::Refused,
            _ => Failure::Other,
        }
    }
}
