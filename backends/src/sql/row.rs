//! A record as a row of a table, in the columns that all dialects share.

use diesel::sql_types::{BigInt, Binary, Nullable, SmallInt};
use oncekey::Key;
use oncekey::backend::StoreError;
use oncekey::record::{Record, State, Steps, StoreTime};

use super::dialect::Keyed;
use super::step_row::{StepRow, steps_of};
use crate::columns::{Stored, barrier_of, outcome_of, state_of, to_column, token_of};

/// The columns that are read from a row, without the key.
#[derive(Debug, Clone, diesel::Queryable)]
pub(crate) struct Row {
    pub(crate) fingerprint: Vec<u8>,
    pub(crate) attempt: i64,
    pub(crate) owner: Vec<u8>,
    pub(crate) state: i16,
    pub(crate) lease_until: Option<i64>,
    pub(crate) on_abandoned: Option<i16>,
    pub(crate) outcome: Option<Vec<u8>>,
    pub(crate) purge_at: Option<i64>,
    pub(crate) fencing_token: i64,
    pub(crate) barrier_owner: Option<Vec<u8>>,
    pub(crate) barrier_until: Option<i64>,
    /// The life of the record's steps, if it has any.
    pub(crate) steps_life: Option<i64>,
    pub(crate) steps_retention: Option<i64>,
}

/// The columns that are written for a record, without its steps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Columns<'a> {
    pub(crate) key: &'a str,
    pub(crate) fingerprint: &'a [u8],
    pub(crate) attempt: i64,
    pub(crate) owner: &'a [u8],
    pub(crate) state: i16,
    pub(crate) lease_until: Option<i64>,
    pub(crate) on_abandoned: Option<i16>,
    pub(crate) outcome: Option<&'a [u8]>,
    pub(crate) purge_at: Option<i64>,
    pub(crate) fencing_token: i64,
    pub(crate) barrier_owner: Option<&'a [u8]>,
    pub(crate) barrier_until: Option<i64>,
}

/// The state that a row must still have for a write that was decided on it.
///
/// If a record matches in these fields, it matches in everything on which a step is decided: each claim has its own
/// owner, a renewal changes the lease, a withdrawal changes the barrier, and every other change changes the state. So a
/// write that was decided before a withdrawal and arrives after it does nothing. The life of the steps shows that the
/// first step has begun in the meantime: a release that was decided before that does not free the key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected<'a> {
    pub(crate) key: &'a str,
    pub(crate) owner: &'a [u8],
    pub(crate) state: i16,
    pub(crate) lease_until: Option<i64>,
    pub(crate) barrier_owner: Option<&'a [u8]>,
    pub(crate) steps_life: Option<i64>,
}

pub(crate) fn from_column(millis: i64) -> StoreTime {
    StoreTime::from_millis(u64::try_from(millis).unwrap_or(0))
}

/// The columns of a [`Row`].
pub(crate) type RowTypes = (
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

/// Rows with their keys, each with the server's time. If a read found nothing, one row without a key gives the time.
pub(crate) type TimedTypes = (BigInt, Nullable<Binary>, RowTypes);

/// Separates the time from the rows.
pub(crate) fn timed(rows: Vec<(i64, Option<Vec<u8>>, Row)>) -> (StoreTime, Vec<Keyed>) {
    let now = rows.iter().map(|(now, ..)| *now).max().unwrap_or(0);
    (from_column(now), rows.into_iter().filter_map(|(_, key, row)| Some((key?, row))).collect())
}

/// Returns the one locked row, with the server's time. If there is no row, the time is unknown.
pub(crate) fn locked(rows: Vec<(i64, Row)>) -> (StoreTime, Option<Row>) {
    let found = rows.into_iter().next();
    found.map_or((from_column(0), None), |(now, row)| (from_column(now), Some(row)))
}

impl<'a> Columns<'a> {
    pub(crate) fn of(key: &'a Key, record: &'a Record) -> Self {
        let (state, lease_until, on_abandoned) = state_of(record);
        let (barrier_owner, barrier_until) = barrier_of(record);
        Self {
            key: key.as_stored(),
            fingerprint: record.fingerprint.as_bytes(),
            attempt: i64::try_from(record.attempt.get()).unwrap_or(i64::MAX),
            owner: record.owner.as_bytes(),
            state,
            lease_until,
            on_abandoned,
            outcome: outcome_of(record),
            purge_at: purge_at(record).map(to_column),
            fencing_token: token_of(record),
            barrier_owner,
            barrier_until,
        }
    }
}

impl<'a> Expected<'a> {
    pub(crate) fn of(key: &'a Key, found: &'a Record) -> Self {
        let (state, lease_until, _) = state_of(found);
        let (barrier_owner, _) = barrier_of(found);
        let steps_life = found.steps.as_ref().map(|steps| i64::try_from(steps.life.get()).unwrap_or(i64::MAX));
        Self { key: key.as_stored(), owner: found.owner.as_bytes(), state, lease_until, barrier_owner, steps_life }
    }
}

/// Returns when a purge must check the record. A claim stays while its steps are not settled, but the purge checks that
/// itself, so neither a renewal nor a step has to update this column.
fn purge_at(record: &Record) -> Option<StoreTime> {
    match (&record.state, record.steps.as_deref()) {
        (State::InProgress { .. }, Some(Steps { life, retention, list })) if !list.is_empty() => {
            let unread = Steps { life: *life, retention: *retention, list: Vec::new() };
            let (state, barrier) = (record.state.clone(), record.barrier.clone());
            let Record { fingerprint, attempt, token, owner, .. } = *record;
            Record { fingerprint, attempt, token, barrier, owner, steps: Some(Box::new(unread)), state }.purge_at()
        }
        _ => record.purge_at(),
    }
}

impl Row {
    /// Returns the record with its steps from these rows.
    pub(crate) fn decode_with(self, rows: Vec<StepRow>) -> Result<Record, StoreError> {
        let steps = steps_of(self.steps_life, self.steps_retention, rows)?;
        Ok(Record { steps: steps.map(Box::new), ..self.decode_own()? })
    }

    /// Returns the record without reading its steps: only their existence and their life are known.
    pub(crate) fn decode(self) -> Result<Record, StoreError> {
        self.decode_with(Vec::new())
    }

    fn decode_own(self) -> Result<Record, StoreError> {
        Stored {
            fingerprint: self.fingerprint,
            attempt: self.attempt,
            owner: self.owner,
            state: self.state.into(),
            lease_until: self.lease_until,
            on_abandoned: self.on_abandoned.map(i64::from),
            outcome: self.outcome,
            purge_at: self.purge_at,
            fencing_token: self.fencing_token,
            barrier_owner: self.barrier_owner,
            barrier_until: self.barrier_until,
        }
        .decode()
    }
}
