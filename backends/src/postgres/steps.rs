//! PostgreSQL's statements on the table of steps.

use diesel::QueryResult;
use diesel::sql_types::{BigInt, Binary};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use oncekey::record::Steps;

use super::table::{Param, Postgres, columns};
use super::texts::now;
use crate::sql::{
    Begun, Bind, Columns, Family, FirstRun, Fragment, StepCompletion, StepRow, StepStatements, StepTypes, Written,
};

/// A claim that is in progress and holds its lease.
macro_rules! is_live {
    () => {
        concat!("r.state = 1 AND r.lease_until > ", now!())
    };
}

/// Counts one more step in its record. If the step already exists, the count is one too high.
macro_rules! mark {
    ($retention:literal) => {
        concat!(
            "steps_life = coalesce(r.steps_life, r.fencing_token), steps_retention = coalesce(r.steps_retention, ",
            $retention,
            "), steps_count = coalesce(r.steps_count, 0) + 1 "
        )
    };
}

/// Whether the claim may begin a step.
macro_rules! may_begin {
    () => {
        concat!(is_live!(), " AND coalesce(r.steps_count, 0) < {max}")
    };
}

/// Hides from the planner a condition on a row that is joined with `a`. Otherwise, the planner would expect almost no
/// row to match it, read the whole table, and compare each row with every row of the batch.
macro_rules! opaque {
    ($condition:expr) => {
        concat!("CASE WHEN a.key IS NOT NULL THEN ", $condition, " END")
    };
}

/// The returned columns of a record that may begin a step.
macro_rules! returning_record {
    () => {
        concat!(" RETURNING r.key, r.steps_life, r.steps_count, r.fencing_token, ", now!(), " AS now")
    };
}

/// Inserts the steps of the records in `live`.
macro_rules! begin {
    ($name:literal, $fingerprint:literal, $number:literal, $reruns_until:literal, $reruns_for:literal) => {
        concat!(
            "INSERT INTO {steps} (key, name, life, ordinal, fingerprint, attempt, run_token, run_number, began_at, ",
            "reruns_until, state) SELECT key, ",
            $name,
            ", steps_life, steps_count - 1, ",
            $fingerprint,
            ", 1, fencing_token, ",
            $number,
            ", now, coalesce(",
            $reruns_until,
            ", now + ",
            $reruns_for,
            "), 1 FROM live ON CONFLICT (key, name) DO NOTHING RETURNING convert_to(key, 'UTF8'), life, run_token"
        )
    };
}

/// The texts of the statements, with the tables' names.
pub(super) struct StepTexts {
    pub(super) read: String,
    /// These write a record alone, with added or changed steps, and without its former steps.
    put: String,
    put_with_steps: String,
    put_without_steps: String,
    begin: String,
    /// The statement for a single row is planned in half the time.
    begin_one: String,
    complete: String,
    complete_one: String,
}

impl StepTexts {
    /// Fills in the names. `announce` announces a change to the rows in `written`.
    pub(super) fn new(table: &str, steps: &str, announce: &str) -> Self {
        let written = format!(
            "written AS (UPDATE {table} AS r SET fingerprint = a.fingerprint, attempt = a.attempt, owner = a.owner, \
             state = a.state, lease_until = a.lease_until, on_abandoned = a.on_abandoned, outcome = a.outcome, \
             purge_at = a.purge_at, fencing_token = a.token, barrier_owner = a.barrier_owner, \
             barrier_until = a.barrier_until, steps_life = a.life, steps_retention = a.retention, \
             steps_count = CASE WHEN a.life IS NOT NULL THEN coalesce(r.steps_count, 0) + a.added END, \
             watched = r.watched AND r.state = 1 \
             FROM unnest(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) AS a (key, life, retention, added, fingerprint, \
             attempt, owner, state, lease_until, on_abandoned, outcome, purge_at, token, barrier_owner, barrier_until) \
             WHERE r.key = a.key RETURNING r.key, r.watched AND a.state <> 1 AS watched)"
        );
        let told = format!("SELECT convert_to(key, 'UTF8'), {announce} FROM written");
        let columns = "name, life, ordinal, fingerprint, attempt, run_token, run_number, began_at, reruns_until, state, \
                       outcome";
        Self {
            read: format!(
                "SELECT convert_to(s.key, 'UTF8'), convert_to(s.name, 'UTF8'), s.life, s.fingerprint, s.attempt, \
                 s.run_token, s.run_number, s.began_at, s.reruns_until, s.state, s.outcome FROM {steps} AS s \
                 WHERE s.key = ANY(?) ORDER BY s.key, s.ordinal"
            ),
            put: format!("WITH {written} {told}"),
            // Replaces a step of another life.
            put_with_steps: format!(
                "WITH {written}, steps AS (INSERT INTO {steps} (key, {columns}) SELECT ?, s.* \
                 FROM unnest(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) AS s ({columns}) ON CONFLICT (key, name) DO UPDATE SET \
                 (life, ordinal, fingerprint, attempt, run_token, run_number, began_at, reruns_until, state, outcome) = \
                 (excluded.life, excluded.ordinal, excluded.fingerprint, excluded.attempt, excluded.run_token, \
                 excluded.run_number, excluded.began_at, excluded.reruns_until, excluded.state, excluded.outcome)) {told}"
            ),
            put_without_steps: format!("WITH {written}, steps AS (DELETE FROM {steps} WHERE key = ?) {told}"),
            begin: format!(
                concat!(
                    "WITH live AS (UPDATE {table} AS r SET ",
                    mark!("a.retention"),
                    "FROM unnest(?, ?, ?, ?, ?, ?, ?, ?) ",
                    "AS a (retention, key, owner, name, fingerprint, number, reruns_until, reruns_for) ",
                    "WHERE r.key = a.key AND r.owner = a.owner AND ",
                    opaque!(may_begin!()),
                    returning_record!(),
                    ", a.name, a.fingerprint, a.number, a.reruns_until, a.reruns_for) ",
                    begin!("name", "fingerprint", "number", "reruns_until", "reruns_for")
                ),
                table = table,
                steps = steps,
                max = Steps::MAX
            ),
            begin_one: format!(
                concat!(
                    "WITH live AS (UPDATE {table} AS r SET ",
                    mark!("?"),
                    "WHERE r.key = ? AND r.owner = ? AND ",
                    may_begin!(),
                    returning_record!(),
                    ") ",
                    begin!("?", "?", "?", "?", "?")
                ),
                table = table,
                steps = steps,
                max = Steps::MAX
            ),
            complete: format!(
                concat!(
                    "WITH a AS (SELECT * FROM unnest(?, ?, ?, ?, ?, ?) ",
                    "AS a (key, life, name, run_token, run_number, outcome)), ",
                    "live AS MATERIALIZED (SELECT r.key FROM a JOIN {table} AS r ON r.key = a.key ",
                    "WHERE r.steps_life = a.life AND ",
                    opaque!(is_live!()),
                    " FOR NO KEY UPDATE OF r) ",
                    "UPDATE {steps} AS s SET state = 2, outcome = a.outcome FROM a JOIN live ON live.key = a.key ",
                    "WHERE s.key = a.key AND s.name = a.name AND s.life = a.life AND s.run_token = a.run_token ",
                    "AND s.run_number = a.run_number AND ",
                    opaque!("s.state = 1"),
                    " RETURNING convert_to(s.key, 'UTF8')"
                ),
                table = table,
                steps = steps
            ),
            complete_one: format!(
                concat!(
                    "WITH live AS MATERIALIZED (SELECT r.key FROM {table} AS r WHERE r.key = ? AND r.steps_life = ? AND ",
                    is_live!(),
                    " FOR NO KEY UPDATE OF r) ",
                    "UPDATE {steps} AS s SET state = 2, outcome = ? FROM live WHERE s.key = ? AND s.name = ? ",
                    "AND s.life = ? AND s.run_token = ? AND s.run_number = ? AND s.state = 1 ",
                    "RETURNING convert_to(s.key, 'UTF8')"
                ),
                table = table,
                steps = steps
            ),
        }
    }
}

/// The time limit comes last: as the end of time, or as a duration from now.
fn first_run<'a>(row: &FirstRun<'a>) -> [Bind<'a>; 8] {
    let (until, lasting) = match row.reruns_for {
        Some(i64::MAX) => (row.reruns_for, None),
        lasting => (None, lasting),
    };
    [
        Bind::BigInt(row.retention),
        Bind::Text(row.key),
        Bind::Bytes(row.owner),
        Bind::Text(row.name),
        Bind::MaybeBytes(row.fingerprint),
        Bind::BigInt(row.number),
        Bind::MaybeBigInt(until),
        Bind::MaybeBigInt(lasting),
    ]
}

impl StepStatements for Postgres {
    async fn read_steps(
        &self,
        connection: &mut AsyncPgConnection,
        keys: &[&str],
    ) -> QueryResult<Vec<(Vec<u8>, StepRow)>> {
        let binds = [Param::Texts(keys.to_vec())];
        Fragment::<(Binary, StepTypes), _>::new(&self.texts.of_steps.read, &binds).load(connection).await
    }

    async fn put_family(&self, connection: &mut AsyncPgConnection, family: &Family<'_>) -> QueryResult<bool> {
        let (text, binds) = self.put_statement(family);
        Ok(Self::announcing(connection, text, &binds).await? != Written::Only(Vec::new()))
    }

    async fn begin_steps(&self, connection: &mut AsyncPgConnection, rows: &[FirstRun<'_>]) -> QueryResult<Vec<Begun>> {
        let texts = &self.texts.of_steps;
        if let [row] = rows {
            let binds = first_run(row);
            return Fragment::<(Binary, BigInt, BigInt), _>::new(&texts.begin_one, &binds).load(connection).await;
        }
        let binds = columns(rows.iter().map(first_run));
        Fragment::<(Binary, BigInt, BigInt), _>::new(&texts.begin, &binds).load(connection).await
    }

    async fn complete_steps(
        &self,
        connection: &mut AsyncPgConnection,
        rows: &[StepCompletion<'_>],
    ) -> QueryResult<Written> {
        let texts = &self.texts.of_steps;
        if let [row] = rows {
            let [key, life, name, run_token, run_number, outcome] = row.binds();
            let binds = [key, life, outcome, key, name, life, run_token, run_number];
            return Fragment::<Binary, _>::new(&texts.complete_one, &binds).load(connection).await.map(Written::Only);
        }
        let binds = columns(rows.iter().map(StepCompletion::binds));
        Fragment::<Binary, _>::new(&texts.complete, &binds).load(connection).await.map(Written::Only)
    }
}

impl Postgres {
    /// Returns the statement that writes a record with its steps.
    pub(super) fn put_statement<'a>(&'a self, family: &'a Family<'a>) -> (&'a str, Vec<Param<'a>>) {
        let Family { row, steps, changes, drops_steps } = family;
        let key = || Param::One(Bind::Text(row.key));
        let of_record = [
            Bind::Text(row.key),
            Bind::MaybeBigInt(steps.map(|steps| steps.life)),
            Bind::MaybeBigInt(steps.map(|steps| steps.retention)),
            Bind::BigInt(steps.map_or(0, |steps| steps.added)),
        ];
        let mut binds = columns([of_record].into_iter());
        binds.extend(columns([row].into_iter().map(Columns::binds)));
        let texts = &self.texts.of_steps;
        let text = if *drops_steps {
            binds.push(key());
            &texts.put_without_steps
        } else if changes.is_empty() {
            &texts.put
        } else {
            let steps = changes.iter().map(|change| &change.step);
            binds.extend([key(), Param::Texts(steps.clone().map(|step| step.name).collect())]);
            binds.extend(columns(steps.map(|step| step.binds())));
            &texts.put_with_steps
        };
        (text, binds)
    }
}
