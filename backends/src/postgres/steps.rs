//! PostgreSQL's statements on the table of steps.

use diesel::QueryResult;
use diesel::sql_types::{BigInt, Binary, Nullable, SmallInt};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use oncekey::record::Steps;

use super::table::{Bind, Postgres, columns};
use super::texts::now;
use crate::sql::{Begun, Family, FirstRun, Fragment, StepCompletion, StepRow, Written};

type StepTypes =
    (Binary, BigInt, Nullable<Binary>, BigInt, BigInt, BigInt, BigInt, Nullable<BigInt>, SmallInt, Nullable<Binary>);

/// The texts of the statements, with the tables' names.
pub(super) struct StepTexts {
    read: String,
    /// Writes a record alone, with steps that were added or changed, and without those that it had.
    put: String,
    put_with_steps: String,
    put_without_steps: String,
    begin: String,
    complete: String,
}

impl StepTexts {
    /// `announce` tells of a change to the rows that are `written`.
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
            // What stands there of another life gives way.
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
                    "WITH live AS (UPDATE {table} AS r SET steps_life = coalesce(r.steps_life, r.fencing_token), ",
                    "steps_retention = coalesce(r.steps_retention, a.retention), ",
                    "steps_count = coalesce(r.steps_count, 0) + 1 ",
                    "FROM unnest(?, ?, ?, ?, ?, ?, ?) AS a (key, owner, name, fingerprint, number, reruns_for, retention) ",
                    "WHERE r.key = a.key AND r.owner = a.owner AND r.state = 1 AND r.lease_until > ",
                    now!(),
                    " AND coalesce(r.steps_count, 0) < {max} ",
                    "AND NOT EXISTS (SELECT FROM {steps} AS s WHERE s.key = a.key AND s.name = a.name) ",
                    "RETURNING r.key, r.steps_life, r.steps_count, r.fencing_token, a.name, a.fingerprint, a.number, ",
                    "a.reruns_for, ",
                    now!(),
                    " AS now), ",
                    "begun AS (INSERT INTO {steps} (key, name, life, ordinal, fingerprint, attempt, run_token, ",
                    "run_number, began_at, reruns_until, state) ",
                    "SELECT key, name, steps_life, steps_count - 1, fingerprint, 1, fencing_token, number, now, ",
                    "CASE reruns_for WHEN {end} THEN {end} ELSE now + reruns_for END, 1 FROM live ",
                    "ON CONFLICT (key, name) DO NOTHING RETURNING key, life, run_token) ",
                    "SELECT convert_to(key, 'UTF8'), life, run_token FROM begun"
                ),
                table = table,
                steps = steps,
                max = Steps::MAX,
                end = i64::MAX
            ),
            complete: format!(
                concat!(
                    "WITH a AS (SELECT * FROM unnest(?, ?, ?, ?, ?, ?) ",
                    "AS a (key, life, name, run_token, run_number, outcome)), ",
                    "live AS MATERIALIZED (SELECT r.key FROM a JOIN {table} AS r ON r.key = a.key WHERE r.state = 1 ",
                    "AND r.lease_until > ",
                    now!(),
                    " AND r.steps_life = a.life FOR NO KEY UPDATE OF r) ",
                    "UPDATE {steps} AS s SET state = 2, outcome = a.outcome FROM a JOIN live ON live.key = a.key ",
                    "WHERE s.key = a.key AND s.name = a.name AND s.life = a.life AND s.run_token = a.run_token ",
                    "AND s.run_number = a.run_number AND s.state = 1 RETURNING convert_to(s.key, 'UTF8')"
                ),
                table = table,
                steps = steps
            ),
        }
    }
}

impl Postgres {
    pub(super) async fn steps_of(
        &self,
        connection: &mut AsyncPgConnection,
        keys: &[&str],
    ) -> QueryResult<Vec<(Vec<u8>, StepRow)>> {
        let binds = [Bind::Texts(keys.to_vec())];
        Fragment::<(Binary, StepTypes), _>::new(&self.texts.of_steps.read, &binds).load(connection).await
    }

    pub(super) async fn put(&self, connection: &mut AsyncPgConnection, family: &Family<'_>) -> QueryResult<bool> {
        let Family { row, steps, changes, drops_steps } = family;
        let of_record = [
            Bind::Texts(vec![row.key]),
            Bind::MaybeBigInts(vec![steps.map(|steps| steps.life)]),
            Bind::MaybeBigInts(vec![steps.map(|steps| steps.retention)]),
            Bind::BigInts(vec![steps.map_or(0, |steps| steps.added)]),
        ];
        let mut binds: Vec<_> = of_record.into_iter().chain(columns(std::iter::once(row))).collect();
        let texts = &self.texts.of_steps;
        let text = if *drops_steps {
            binds.push(Bind::Text(row.key));
            &texts.put_without_steps
        } else if changes.is_empty() {
            &texts.put
        } else {
            let steps = changes.iter().map(|change| &change.step);
            binds.extend([
                Bind::Text(row.key),
                Bind::Texts(steps.clone().map(|step| step.name).collect()),
                Bind::BigInts(steps.clone().map(|step| step.life).collect()),
                Bind::BigInts(steps.clone().map(|step| step.ordinal).collect()),
                Bind::MaybeBlobs(steps.clone().map(|step| step.fingerprint).collect()),
                Bind::BigInts(steps.clone().map(|step| step.attempt).collect()),
                Bind::BigInts(steps.clone().map(|step| step.run_token).collect()),
                Bind::BigInts(steps.clone().map(|step| step.run_number).collect()),
                Bind::BigInts(steps.clone().map(|step| step.began_at).collect()),
                Bind::MaybeBigInts(steps.clone().map(|step| step.reruns_until).collect()),
                Bind::SmallInts(steps.clone().map(|step| step.state).collect()),
                Bind::MaybeBlobs(steps.map(|step| step.outcome).collect()),
            ]);
            &texts.put_with_steps
        };
        Ok(Self::announcing(connection, text, &binds).await? != Written::Only(Vec::new()))
    }

    pub(super) async fn begin_unseen(
        &self,
        connection: &mut AsyncPgConnection,
        rows: &[FirstRun<'_>],
    ) -> QueryResult<Vec<Begun>> {
        let binds = [
            Bind::Texts(rows.iter().map(|row| row.key).collect()),
            Bind::Blobs(rows.iter().map(|row| row.owner).collect()),
            Bind::Texts(rows.iter().map(|row| row.name).collect()),
            Bind::MaybeBlobs(rows.iter().map(|row| row.fingerprint).collect()),
            Bind::BigInts(rows.iter().map(|row| row.number).collect()),
            Bind::MaybeBigInts(rows.iter().map(|row| row.reruns_for).collect()),
            Bind::BigInts(rows.iter().map(|row| row.retention).collect()),
        ];
        let text = &self.texts.of_steps.begin;
        Fragment::<(Binary, BigInt, BigInt), _>::new(text, &binds).load(connection).await
    }

    pub(super) async fn complete_unseen(
        &self,
        connection: &mut AsyncPgConnection,
        rows: &[StepCompletion<'_>],
    ) -> QueryResult<Written> {
        let binds = [
            Bind::Texts(rows.iter().map(|row| row.key).collect()),
            Bind::BigInts(rows.iter().map(|row| row.life).collect()),
            Bind::Texts(rows.iter().map(|row| row.name).collect()),
            Bind::BigInts(rows.iter().map(|row| row.run_token).collect()),
            Bind::BigInts(rows.iter().map(|row| row.run_number).collect()),
            Bind::Blobs(rows.iter().map(|row| row.outcome).collect()),
        ];
        let text = &self.texts.of_steps.complete;
        Fragment::<Binary, _>::new(text, &binds).load(connection).await.map(Written::Only)
    }
}
