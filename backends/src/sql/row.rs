//! A record as a row of a table, in the columns that all dialects share.

use oncekey::Key;
use oncekey::backend::StoreError;
use oncekey::record::{Record, StoreTime};

use crate::columns::{Stored, outcome_of, state_of, to_column};

/// What is read of a row, the key aside.
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
}

/// What is written of a record.
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
}

/// What a row must still be for a write that was decided on it.
///
/// A record that differs in nothing of this differs in nothing: each claim has an owner of its own, a claim changes by
/// its lease, and every other change is one of the state.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected<'a> {
    pub(crate) key: &'a str,
    pub(crate) owner: &'a [u8],
    pub(crate) state: i16,
    pub(crate) lease_until: Option<i64>,
}

pub(crate) fn from_column(millis: i64) -> StoreTime {
    StoreTime::from_millis(u64::try_from(millis).unwrap_or(0))
}

/// The time that stands in each row. (Diesel would take `rows.first()` for a query.)
pub(crate) fn time_of<R>(rows: &[R], time: impl Fn(&R) -> i64) -> i64 {
    rows.iter().map(time).max().unwrap_or(0)
}

impl<'a> Columns<'a> {
    pub(crate) fn of(key: &'a Key, record: &'a Record) -> Self {
        let (state, lease_until, on_abandoned) = state_of(record);
        Self {
            key: key.as_stored(),
            fingerprint: record.fingerprint.as_bytes(),
            attempt: i64::try_from(record.attempt.get()).unwrap_or(i64::MAX),
            owner: record.owner.as_bytes(),
            state,
            lease_until,
            on_abandoned,
            outcome: outcome_of(record),
            purge_at: record.purge_at().map(to_column),
        }
    }
}

impl<'a> Expected<'a> {
    pub(crate) fn of(key: &'a Key, found: &'a Record) -> Self {
        let (state, lease_until, _) = state_of(found);
        Self { key: key.as_stored(), owner: found.owner.as_bytes(), state, lease_until }
    }
}

impl Row {
    pub(crate) fn decode(self) -> Result<Record, StoreError> {
        let Self { fingerprint, attempt, owner, state, lease_until, on_abandoned, outcome, purge_at } = self;
        let (state, on_abandoned) = (state.into(), on_abandoned.map(i64::from));
        Stored { fingerprint, attempt, owner, state, lease_until, on_abandoned, outcome, purge_at }.decode()
    }
}
