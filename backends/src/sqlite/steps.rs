//! The statements on the table of steps.

use diesel::dsl::case_when;
use diesel::prelude::*;
use oncekey::backend::StoreError;
use oncekey::record::{StepName, StepRecord, Steps};

use super::error::not_taken;
use super::schema::oncekey_steps;
use super::schema::oncekey_steps::dsl;
use crate::columns::to_column;
use crate::step_columns::{StoredStep, number_column, outcome_of_step, progress_of};

/// Which outcomes of a record's steps are read with it. Outcomes are the only part of a step that may be large, and few
/// transitions need them.
#[derive(Debug, Clone, Copy)]
pub(super) enum Outcomes<'a> {
    All,
    /// The outcome of one step. The others are read as empty.
    Of(&'a StepName),
    /// No outcomes: all are read as empty.
    None,
}

#[derive(Queryable)]
struct Row {
    position: i64,
    name: String,
    fingerprint: Option<Vec<u8>>,
    attempt: i64,
    run_token: i64,
    run_number: i64,
    began_at: i64,
    reruns_until: Option<i64>,
    progress: i64,
    outcome: Option<Vec<u8>>,
}

// NULL is written explicitly, so that there is only one statement to prepare.
#[derive(Insertable)]
#[diesel(table_name = oncekey_steps, treat_none_as_default_value = false)]
struct Columns<'a> {
    record_id: i64,
    position: i64,
    life: i64,
    name: &'a str,
    fingerprint: Option<&'a [u8]>,
    attempt: i64,
    run_token: i64,
    run_number: i64,
    began_at: i64,
    reruns_until: Option<i64>,
    progress: i64,
    outcome: Option<&'a [u8]>,
}

/// Reads the list of a record's steps. Rows of another life do not belong to it.
pub(super) fn load(
    connection: &mut SqliteConnection,
    record: i64,
    steps: &mut Steps,
    outcomes: Outcomes<'_>,
) -> Result<(), StoreError> {
    let of_record = dsl::record_id.eq(record).and(dsl::life.eq(number_column(steps.life.get())));
    let rows = dsl::oncekey_steps.filter(of_record).order(dsl::position);
    macro_rules! load {
        ($outcome:expr) => {
            rows.select((
                dsl::position,
                dsl::name,
                dsl::fingerprint,
                dsl::attempt,
                dsl::run_token,
                dsl::run_number,
                dsl::began_at,
                dsl::reruns_until,
                dsl::progress,
                $outcome,
            ))
            .load::<Row>(connection)
        };
    }
    let wanted = match outcomes {
        Outcomes::All => None,
        Outcomes::Of(name) => Some(name.as_str()),
        // No step has this name.
        Outcomes::None => Some(""),
    };
    let rows = match wanted {
        None => load!(dsl::outcome),
        // SQLite does not read the column in the rows of other steps.
        Some(name) => load!(case_when(dsl::name.eq(name), dsl::outcome)),
    };
    for (position, row) in (0..).zip(rows.map_err(|error| not_taken(&error))?) {
        if row.position != position {
            return Err(StoreError::corrupt("a step of a record is missing"));
        }
        let has_outcome = wanted.is_none_or(|wanted| wanted == row.name);
        steps.list.push(decode(row, has_outcome)?);
    }
    if steps.list.is_empty() { Err(StoreError::corrupt("the steps of a record are missing")) } else { Ok(()) }
}

/// Writes the steps that changed. A step that was read without its outcome never counts as changed.
pub(super) fn write(
    connection: &mut SqliteConnection,
    record: i64,
    before: Option<&Steps>,
    after: Option<&Steps>,
) -> Result<(), StoreError> {
    let Some(after) = after else {
        return if before.is_some() { delete(connection, record) } else { Ok(()) };
    };
    let unchanged = match before {
        Some(before) if before.life == after.life => before.list.as_slice(),
        Some(_) => {
            delete(connection, record)?;
            &[]
        }
        None => &[],
    };
    for (position, step) in after.list.iter().enumerate() {
        if unchanged.get(position) != Some(step) {
            put(connection, record, position, after, step)?;
        }
    }
    Ok(())
}

/// Returns the number of a record's steps.
pub(super) fn count(connection: &mut SqliteConnection, record: i64) -> Result<usize, StoreError> {
    let counted: QueryResult<i64> = dsl::oncekey_steps.filter(dsl::record_id.eq(record)).count().get_result(connection);
    counted.map(|count| usize::try_from(count).unwrap_or(0)).map_err(|error| not_taken(&error))
}

fn delete(connection: &mut SqliteConnection, record: i64) -> Result<(), StoreError> {
    let deleted = diesel::delete(dsl::oncekey_steps.filter(dsl::record_id.eq(record))).execute(connection);
    deleted.map(drop).map_err(|error| not_taken(&error))
}

fn put(
    connection: &mut SqliteConnection,
    record: i64,
    position: usize,
    steps: &Steps,
    step: &StepRecord,
) -> Result<(), StoreError> {
    let outcome = outcome_of_step(step);
    if outcome.is_some_and(<[u8]>::is_empty) {
        return Err(StoreError::corrupt("the outcome of a completed step is empty"));
    }
    let columns = Columns {
        record_id: record,
        position: i64::try_from(position).map_err(StoreError::corrupt)?,
        life: number_column(steps.life.get()),
        name: step.name.as_str(),
        fingerprint: step.fingerprint.as_ref().map(|fingerprint| fingerprint.as_bytes().as_slice()),
        attempt: number_column(step.attempt.get()),
        run_token: number_column(step.run.token.get()),
        run_number: step.run.number.into(),
        began_at: to_column(step.began_at),
        reruns_until: step.reruns_until.map(to_column),
        progress: progress_of(step).into(),
        outcome,
    };
    let put = diesel::replace_into(dsl::oncekey_steps).values(columns).execute(connection);
    put.map(drop).map_err(|error| not_taken(&error))
}

fn decode(row: Row, has_outcome: bool) -> Result<StepRecord, StoreError> {
    StoredStep {
        name: row.name,
        fingerprint: row.fingerprint,
        attempt: row.attempt,
        run_token: row.run_token,
        run_number: row.run_number,
        began_at: row.began_at,
        reruns_until: row.reruns_until,
        progress: row.progress,
        outcome: row.outcome,
    }
    .decode(has_outcome)
}
