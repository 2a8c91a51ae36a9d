//! MySQL's and MariaDB's statements on the table of steps.
//!
//! No statement locks the gaps between steps, where other sessions insert theirs. A step is read without a lock of its
//! own, under its record's lock, and written by its whole key.

use std::fmt::Write as _;

use diesel::QueryResult;
use diesel::sql_types::{BigInt, Binary};
use diesel_async::{AsyncMysqlConnection, RunQueryDsl, SimpleAsyncConnection as _};
use oncekey::record::Steps;

use super::table::{Mysql, NOW, padded, repeated, written};
use crate::sql::{
    Begun, Bind, Family, FirstRun, Fragment, StepChange, StepCompletion, StepRow, StepStatements, StepTypes, Written,
};

const COLUMNS: &str =
    "life, ordinal, fingerprint, attempt, run_token, run_number, began_at, reruns_until, state, outcome";

/// Returns bytes as a literal, for a statement without parameters.
fn literal(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len() + 3);
    text.push_str("X'");
    for byte in bytes {
        // Writing to a string never fails.
        let _ = write!(text, "{byte:02x}");
    }
    text.push('\'');
    text
}

fn or_null<T>(value: Option<T>, text: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| "NULL".to_owned(), text)
}

/// One of the statements that write a record and its steps.
pub(super) struct Put<'a> {
    pub(super) text: String,
    pub(super) binds: Vec<Bind<'a>>,
    /// Whether a missing row means that the data has changed since it was read.
    must_write: bool,
    /// How many of the following statements are skipped if this one writes a row.
    then_skips: usize,
}

impl<'a> Put<'a> {
    fn must_write(text: String, binds: Vec<Bind<'a>>) -> Self {
        Self { text, binds, must_write: true, then_skips: 0 }
    }
}

/// The statements in order, for an async or a blocking connection.
pub(super) struct Puts<'a> {
    puts: Vec<Put<'a>>,
    next: usize,
    has_changed: bool,
}

impl<'a> Puts<'a> {
    pub(super) fn of(puts: Vec<Put<'a>>) -> Self {
        Self { puts, next: 0, has_changed: false }
    }

    /// Returns the next statement.
    pub(super) fn next(&self) -> Option<&Put<'a>> {
        self.puts.get(self.next).filter(|_| !self.has_changed)
    }

    /// Records how many rows the statement wrote.
    pub(super) fn wrote(&mut self, rows: usize) {
        let Some(put) = self.puts.get(self.next) else { return };
        self.has_changed = rows == 0 && put.must_write;
        self.next += 1 + if rows > 0 { put.then_skips } else { 0 };
    }

    /// Returns whether everything is written.
    pub(super) fn are_done(&self) -> bool {
        !self.has_changed
    }
}

impl StepStatements for Mysql {
    async fn read_steps(
        &self,
        connection: &mut AsyncMysqlConnection,
        keys: &[&str],
    ) -> QueryResult<Vec<(Vec<u8>, StepRow)>> {
        let text = self.reading_steps(keys.len());
        let binds: Vec<_> = padded(keys).map(|key| Bind::Bytes(key.as_bytes())).collect();
        Fragment::<(Binary, StepTypes), _>::new(&text, &binds).load(connection).await
    }

    async fn put_family(&self, connection: &mut AsyncMysqlConnection, family: &Family<'_>) -> QueryResult<bool> {
        let mut puts = Puts::of(self.put_statements(family));
        while let Some(Put { text, binds, .. }) = puts.next() {
            let rows = Fragment::<(), _>::new(text, binds).execute(connection).await?;
            puts.wrote(rows);
        }
        Ok(puts.are_done())
    }

    /// Begins steps in one transaction, which is one message to the server. A read then shows which steps were begun.
    async fn begin_steps(
        &self,
        connection: &mut AsyncMysqlConnection,
        rows: &[FirstRun<'_>],
    ) -> QueryResult<Vec<Begun>> {
        let Self { table, steps, .. } = self;
        let text = self.begin_text(rows);
        if let Err(error) = connection.batch_execute(&text).await {
            // A failed statement leaves the transaction open. If the ROLLBACK fails too, the connection is closed.
            let _ = connection.batch_execute("ROLLBACK").await;
            return Err(error);
        }
        let each = "(s.record_key = ? AND s.name = ? AND s.run_number = ? AND r.owner = ?)";
        let text = format!(
            "SELECT s.record_key, s.life, s.run_token FROM {steps} AS s JOIN {table} AS r ON r.record_key = s.record_key \
             WHERE s.state = 1 AND s.attempt = 1 AND s.run_token = r.fencing_token AND s.life = r.steps_life AND ({})",
            repeated(each, " OR ", rows.len())
        );
        let binds: Vec<_> = padded(rows)
            .flat_map(|row| {
                let (key, name) = (Bind::Text(row.key), Bind::Text(row.name));
                [key, name, Bind::BigInt(row.number), Bind::Bytes(row.owner)]
            })
            .collect();
        Fragment::<(Binary, BigInt, BigInt), _>::new(&text, &binds).load(connection).await
    }

    /// Each pair of rows counts twice: the record is rewritten unchanged, so that it is locked at any isolation level.
    async fn complete_steps(
        &self,
        connection: &mut AsyncMysqlConnection,
        rows: &[StepCompletion<'_>],
    ) -> QueryResult<Written> {
        let each = "(r.record_key = ? AND r.steps_life = ? AND s.name = ? AND s.run_token = ? AND s.run_number = ?)";
        let (outcome, outcomes) = match rows {
            [row] => ("?".to_owned(), vec![Bind::Bytes(row.outcome)]),
            rows => {
                let outcome = repeated("WHEN ? THEN CAST(? AS BINARY)", " ", rows.len());
                let binds = padded(rows).flat_map(|row| [Bind::Text(row.key), Bind::Bytes(row.outcome)]);
                (format!("CASE s.record_key {outcome} END"), binds.collect())
            }
        };
        let text = format!(
            "UPDATE {} AS r STRAIGHT_JOIN {} AS s ON s.record_key = r.record_key AND s.life = r.steps_life \
             SET s.state = 2, s.outcome = {outcome}, r.attempt = r.attempt \
             WHERE r.state = 1 AND r.lease_until > {NOW} AND s.state = 1 AND r.record_key IN ({}) AND ({})",
            self.table,
            self.steps,
            repeated("?", ", ", rows.len()),
            repeated(each, " OR ", rows.len())
        );
        let conditions = padded(rows).flat_map(|row| row.binds().into_iter().take(5));
        let keys = padded(rows).map(|row| Bind::Text(row.key));
        let binds: Vec<_> = outcomes.into_iter().chain(keys).chain(conditions).collect();
        let counted = Fragment::<(), _>::new(&text, &binds).execute(connection).await?;
        Ok(written(counted, 2 * rows.len()))
    }
}

impl Mysql {
    /// Returns the statement that reads the steps of that many keys.
    pub(super) fn reading_steps(&self, keys: usize) -> String {
        format!(
            "SELECT record_key, name, life, fingerprint, attempt, run_token, run_number, began_at, reruns_until, state, \
             outcome FROM {} FORCE INDEX (PRIMARY) WHERE record_key IN ({}) ORDER BY record_key, ordinal",
            self.steps,
            repeated("?", ", ", keys)
        )
    }

    /// Returns the statements that write a record with its steps.
    pub(super) fn put_statements<'a>(&self, family: &Family<'a>) -> Vec<Put<'a>> {
        let Family { row, steps, changes, drops_steps } = family;
        let key = row.key.as_bytes();
        let mut puts: Vec<_> = changes.iter().flat_map(|change| self.put_step(key, change)).collect();
        if *drops_steps {
            let text = format!("DELETE FROM {} WHERE record_key = ?", self.steps);
            puts.push(Put { text, binds: vec![Bind::Bytes(key)], must_write: false, then_skips: 0 });
        }
        let text = format!(
            "UPDATE {} SET fingerprint = ?, attempt = ?, owner = ?, state = ?, lease_until = ?, on_abandoned = ?, \
             outcome = ?, purge_at = ?, fencing_token = ?, barrier_owner = ?, barrier_until = ?, steps_life = ?, \
             steps_retention = ?, steps_count = CASE WHEN CAST(? AS SIGNED) IS NOT NULL \
             THEN COALESCE(steps_count, 0) + CAST(? AS SIGNED) END \
             WHERE record_key = ?",
            self.table
        );
        let of_steps = [
            Bind::MaybeBigInt(steps.map(|steps| steps.life)),
            Bind::MaybeBigInt(steps.map(|steps| steps.retention)),
            Bind::MaybeBigInt(steps.map(|steps| steps.life)),
            Bind::BigInt(steps.map_or(0, |steps| steps.added)),
            Bind::Bytes(key),
        ];
        puts.push(Put::must_write(text, row.binds().into_iter().chain(of_steps).collect()));
        puts
    }

    /// Returns the statements that write a step, if the step is still what was read. The application's transaction may
    /// have a snapshot from before it got the record's lock.
    fn put_step<'a>(&self, key: &'a [u8], change: &StepChange<'a>) -> Vec<Put<'a>> {
        let steps = &self.steps;
        let name = Bind::Bytes(change.step.name.as_bytes());
        if let Some(was) = &change.was {
            let text = format!(
                "UPDATE {steps} SET life = ?, ordinal = ?, fingerprint = ?, attempt = ?, run_token = ?, run_number = ?, \
                 began_at = ?, reruns_until = ?, state = ?, outcome = ? \
                 WHERE record_key = ? AND name = ? AND life = ? AND run_token = ? AND run_number = ? AND state = ?"
            );
            let expected = [
                Bind::Bytes(key),
                name,
                Bind::BigInt(was.life),
                Bind::BigInt(was.run_token),
                Bind::BigInt(was.run_number),
                Bind::SmallInt(was.state),
            ];
            return vec![Put::must_write(text, change.step.binds().into_iter().chain(expected).collect())];
        }
        let insert = format!(
            "INSERT IGNORE INTO {steps} (record_key, name, {COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        );
        let binds: Vec<_> = [Bind::Bytes(key), name].into_iter().chain(change.step.binds()).collect();
        // Removes a step of another life.
        let text = format!("DELETE FROM {steps} WHERE record_key = ? AND name = ? AND life <> ?");
        let other_life = vec![Bind::Bytes(key), name, Bind::BigInt(change.step.life)];
        vec![
            Put { text: insert.clone(), binds: binds.clone(), must_write: false, then_skips: 2 },
            Put::must_write(text, other_life),
            Put::must_write(insert, binds),
        ]
    }

    /// Returns the text that marks the records, which locks them, and inserts the steps of the marked records. If a
    /// record has too many steps, its count rises once more, above what the second statement accepts. If a step already
    /// exists, the count is one too high. The second statement locks too, because a lapsed claim may be renewed between
    /// the two.
    fn begin_text(&self, rows: &[FirstRun<'_>]) -> String {
        let Self { table, steps, .. } = self;
        let bytes = |text: &str| literal(text.as_bytes());
        let retention = match rows {
            [first, others @ ..] if others.iter().all(|row| row.retention == first.retention) => {
                first.retention.to_string()
            }
            rows => {
                let cases = rows.iter().map(|row| format!(" WHEN {} THEN {}", bytes(row.key), row.retention));
                format!("CASE record_key{} END", cases.collect::<String>())
            }
        };
        let owned =
            rows.iter().map(|row| format!("(record_key = {} AND owner = {})", bytes(row.key), literal(row.owner)));
        let owned: Vec<_> = owned.collect();
        let values = rows.iter().map(|row| {
            let reruns_until = or_null(row.reruns_for, |reruns_for| match reruns_for {
                i64::MAX => i64::MAX.to_string(),
                reruns_for => format!("{NOW} + {reruns_for}"),
            });
            format!(
                "SELECT {} AS a_key, {} AS a_owner, {} AS a_name, {} AS a_fingerprint, {} AS a_number, {reruns_until} AS a_until",
                bytes(row.key),
                literal(row.owner),
                bytes(row.name),
                or_null(row.fingerprint, literal),
                row.number,
            )
        });
        let values: Vec<_> = values.collect();
        format!(
            "BEGIN; UPDATE {table} FORCE INDEX (PRIMARY) SET steps_life = COALESCE(steps_life, fencing_token), \
             steps_retention = COALESCE(steps_retention, {retention}), steps_count = COALESCE(steps_count, 0) + 1 \
             WHERE ({owned}) AND state = 1 AND lease_until > {NOW} AND COALESCE(steps_count, 0) <= {max}; \
             INSERT IGNORE INTO {steps} (record_key, name, {COLUMNS}) \
             SELECT r.record_key, a_name, r.steps_life, r.steps_count - 1, a_fingerprint, 1, r.fencing_token, a_number, \
             {NOW}, a_until, 1, NULL FROM ({values}) AS a STRAIGHT_JOIN {table} AS r FORCE INDEX (PRIMARY) \
             ON r.record_key = a_key AND r.owner = a_owner \
             WHERE r.state = 1 AND r.lease_until > {NOW} AND r.steps_count <= {max} \
             AND r.steps_life IS NOT NULL FOR UPDATE; COMMIT",
            owned = owned.join(" OR "),
            values = values.join(" UNION ALL "),
            max = Steps::MAX
        )
    }
}
