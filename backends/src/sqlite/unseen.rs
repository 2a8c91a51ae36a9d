//! Stores the outcome of a step in one statement, without reading the record first.
//!
//! That works for the run that began the step last, while its claim holds its lease: for nearly every step. The
//! statement's conditions are those under which the protocol's pure function would store the outcome. If they are not
//! met, nothing changes; the caller then reads the record with its steps and lets that function decide. A begin always
//! reads first, because a damaged step must not run again.

use diesel::prelude::*;
use diesel::query_builder::{AstPass, QueryFragment, QueryId};
use diesel::sql_types::{BigInt, Binary, Text};
use diesel::sqlite::Sqlite;
use oncekey::backend::{CompleteStep, StepCompleted, StoreError};
use oncekey::record::StoreTime;

use super::error::not_taken;
use crate::columns::to_column;
use crate::step_columns::number_column;

/// Stores the outcome of a step. Returns `None` if the statement's conditions are not met.
pub(super) fn complete(
    connection: &mut SqliteConnection,
    message: &CompleteStep,
    now: StoreTime,
) -> Result<Option<StepCompleted>, StoreError> {
    // An empty outcome is never stored. The path that reads first refuses it with a specific error.
    if message.outcome.as_stored().is_empty() {
        return Ok(None);
    }
    let statement = Complete {
        message,
        life: number_column(message.life.get()),
        run_token: number_column(message.run.token.get()),
        run_number: message.run.number.into(),
        now: to_column(now),
    };
    let completed = statement.execute(connection).map_err(|error| not_taken(&error))?;
    Ok((completed > 0).then_some(StepCompleted::Stored))
}

struct Complete<'a> {
    message: &'a CompleteStep,
    life: i64,
    run_token: i64,
    run_number: i64,
    now: i64,
}

/// The text never changes, so each connection prepares it once.
impl QueryId for Complete<'_> {
    type QueryId = Complete<'static>;

    const HAS_STATIC_QUERY_ID: bool = true;
}

impl RunQueryDsl<SqliteConnection> for Complete<'_> {}

impl QueryFragment<Sqlite> for Complete<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        out.push_sql("UPDATE oncekey_steps SET progress = 2, outcome = ");
        out.push_bind_param::<Binary, _>(&**self.message.outcome.as_stored())?;
        out.push_sql(" WHERE record_id = (SELECT r.id FROM oncekey_records AS r WHERE r.key = ");
        out.push_bind_param::<Text, _>(self.message.key.as_stored())?;
        out.push_sql(" AND r.state = 1 AND r.lease_until > ");
        out.push_bind_param::<BigInt, _>(&self.now)?;
        out.push_sql(" AND r.steps_life = ");
        out.push_bind_param::<BigInt, _>(&self.life)?;
        out.push_sql(") AND life = ");
        out.push_bind_param::<BigInt, _>(&self.life)?;
        out.push_sql(" AND name = ");
        out.push_bind_param::<Text, _>(self.message.name.as_str())?;
        out.push_sql(" AND run_token = ");
        out.push_bind_param::<BigInt, _>(&self.run_token)?;
        out.push_sql(" AND run_number = ");
        out.push_bind_param::<BigInt, _>(&self.run_number)?;
        out.push_sql(" AND progress = 1");
        Ok(())
    }
}
