//! MySQL's and MariaDB's statements on the table of records.
//!
//! Neither server says which rows an UPDATE or a DELETE wrote. If a statement wrote fewer rows than it should, a read
//! follows.

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

/// The server's time in milliseconds since 1970 when the statement began. It uses UTC: `UNIX_TIMESTAMP` would start
/// from local time, which repeats an hour when the clocks are put back, and leases would lapse an hour early.
pub(crate) const NOW: &str = "TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', UTC_TIMESTAMP(3)) DIV 1000";

/// Until when a completed record is kept, whatever its retention: while its barrier stands, and until the clock alone
/// yields a higher fencing token. If the clock was set back, the next claim would otherwise get a lower one.
const KEPT_AT_LEAST_UNTIL: &str = "COALESCE(barrier_until, 0), fencing_token DIV 1000 + 1";

const ROW: &str = "fingerprint, attempt, owner, state, lease_until, on_abandoned, outcome, purge_at, fencing_token, \
                   barrier_owner, barrier_until, steps_life, steps_retention";

/// The columns of a record without steps.
const ROW_WITHOUT_STEPS: &str = "fingerprint, attempt, owner, state, lease_until, on_abandoned, outcome, purge_at, \
                                 fencing_token, barrier_owner, barrier_until";

/// MySQL or MariaDB on the connections of one arbiter, and the tables' quoted names.
pub(super) struct Mysql {
    pub(super) connections: Connections<AsyncMysqlConnection>,
    pub(super) table: String,
    /// The quoted name of the table of steps.
    pub(super) steps: String,
    /// The table whose commits wait for the log's flush. Its row [`PURGE_TURN`](super::purge::PURGE_TURN) holds the
    /// time until which a process purges.
    pub(super) flushes: String,
    /// Whether the server shows a commit before it flushes the log.
    pub(super) shows_too_early: bool,
    /// An expression for the session's settings, and whether the session can release named locks.
    pub(super) left_there: String,
    pub(super) frees_locks: bool,
    /// `max_allowed_packet`, in bytes.
    pub(super) packet: usize,
    /// The statements that change unsuitable settings before an operation's transaction, and restore them after it.
    pub(super) before: &'static str,
    pub(super) after: &'static str,
    /// Whether an INSERT can return the inserted rows.
    pub(super) returns: bool,
    /// The connections of the application's pool that have been checked.
    pub(super) checked: Checked,
}

/// Repeats the last row until the number of rows is a power of two, so that a connection prepares few statements. A
/// repeated row finds its work done.
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
/// Releases a session's named locks.
pub(super) const FREE_LOCKS: &str = "DO RELEASE_ALL_LOCKS()";

/// Returns whether the savepoint existed.
pub(super) fn released(result: QueryResult<()>) -> QueryResult<bool> {
    match result {
        Ok(()) => Ok(true),
        // Error 1305 in MySQL and in MariaDB. If the server's messages are in another language, the error itself is
        // returned.
        Err(Error::DatabaseError(DatabaseErrorKind::Unknown, information))
            if information.message().starts_with("SAVEPOINT") && information.message().contains("does not exist") =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

impl Mysql {
    /// Returns the beginning of a completion's statement, and the condition that the completion is not too late.
    fn completing(&self) -> (String, String) {
        let set = format!(
            "UPDATE {} FORCE INDEX (PRIMARY) SET state = 2, lease_until = NULL, on_abandoned = NULL",
            self.table
        );
        (set, format!("state IN (1, 3) AND (purge_at IS NULL OR purge_at > {NOW})"))
    }

    /// Returns the statement that completes one claim of its owner.
    pub(super) fn one_completion(&self) -> String {
        let (set, is_to_be_completed) = self.completing();
        format!(
            "{set}, outcome = ?, purge_at = GREATEST({NOW} + ?, {KEPT_AT_LEAST_UNTIL}) \
             WHERE record_key = ? AND owner = ? AND {is_to_be_completed}"
        )
    }

    /// Returns the statement that reads a record's row and locks it.
    pub(super) fn locking(&self) -> String {
        format!("SELECT {NOW}, {ROW} FROM {} WHERE record_key = ? FOR UPDATE", self.table)
    }

    /// Returns the text that opens an operation's transaction, on the backend's or the application's connection: see
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

    /// Returns the text that restores those settings.
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
    /// A deadlock rolls the whole transaction back, and the server continues outside a transaction.
    const CONTENTION_IS_FINAL: bool = true;

    /// MySQL gives a parameter in a derived table the type VARBINARY, with room for 65,535 bytes. It would truncate or
    /// refuse a longer outcome.
    const LONGEST_SHARED_OUTCOME: usize = 60_000;

    /// The text that begins a step is shorter than eight kilobytes.
    fn most_begun_together(&self) -> usize {
        (self.packet >> 13).max(1)
    }

    /// A batch has up to 128 rows, and some are sent twice. Half of the packet is for keys and other columns.
    fn longest_shared_outcome(&self) -> usize {
        self.packet / 512
    }

    /// The rest of the statement takes a few kilobytes at most.
    fn longest_outcome(&self) -> usize {
        self.packet.saturating_sub(8 << 10)
    }

    async fn read(&self, connection: &mut AsyncMysqlConnection, keys: &[&str]) -> QueryResult<(StoreTime, Vec<Keyed>)> {
        let marks = repeated("?", ", ", keys.len());
        // If there is no row, returns one without a key, which gives the time.
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
        // `insert` explains IGNORE.
        let text = format!("INSERT IGNORE INTO {table} (record_key, {ROW_WITHOUT_STEPS}) VALUES {values}");
        let binds: Vec<_> = padded(rows).flat_map(|row| row.binds()).collect();
        if self.returns {
            let text = format!("{text} RETURNING record_key, fencing_token");
            return Fragment::<(Binary, BigInt), _>::new(&text, &binds).load(connection).await;
        }
        Fragment::<(), _>::new(&text, &binds).execute(connection).await?;
        // The rows with these owners are the ones that it inserted. No one else knows the owners, so no one else has
        // changed the rows since.
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
        // IGNORE skips existing rows. It would also truncate a value that is too long, but all of these fit.
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
        // A single row needs no derived table, so its outcome may have any length.
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
        // This sorts before every key. One of MariaDB's SQL modes treats an empty string as NULL.
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

    /// Without autocommit, everything that an operation does after ignoring a deadlock is also in a transaction, though
    /// another one, and can be rolled back. The savepoint disappears with the transaction in which it was set.
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

    /// Outside a transaction, a savepoint disappears as soon as it is set.
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

    /// The driver's own errors also arrive as messages.
    fn failure_by_message(message: &str) -> Failure {
        match message {
            message if message.starts_with("Deadlock found") => Failure::Contended,
            message if message.starts_with("Lock wait timeout exceeded") => Failure::Locked,
            // From MariaDB's snapshot isolation.
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
            // From a node of a Galera cluster that has lost the other nodes.
            message if message.starts_with("WSREP has not yet prepared node") => Failure::ReadOnly,
            message if message.starts_with("The table") && message.ends_with("is full") => Failure::Full,
            message if message.starts_with("Data too long for column") => Failure::Refused,
            _ => Failure::Other,
        }
    }
}
