//! A record as a row of a table, in the columns that all dialects share.

use oncekey::backend::StoreError;
use oncekey::record::{Attempt, Owner, Record, SealedOutcome, State, StoreTime};
use oncekey::{Fingerprint, Key, OnAbandoned};

pub(crate) const IN_PROGRESS: i16 = 1;
pub(crate) const COMPLETED: i16 = 2;
pub(crate) const INDETERMINATE: i16 = 3;
const RERUN: i16 = 1;
const HOLD: i16 = 2;

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

pub(crate) fn to_column(time: StoreTime) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

pub(crate) fn from_column(millis: i64) -> StoreTime {
    StoreTime::from_millis(u64::try_from(millis).unwrap_or(0))
}

/// The time that stands in each row. (Diesel would take `rows.first()` for a query.)
pub(crate) fn time_of<R>(rows: &[R], time: impl Fn(&R) -> i64) -> i64 {
    rows.iter().map(time).max().unwrap_or(0)
}

fn state_of(record: &Record) -> (i16, Option<i64>, Option<i16>) {
    match &record.state {
        State::InProgress { lease_until, on_abandoned } => {
            let word = match on_abandoned {
                OnAbandoned::Rerun => RERUN,
                OnAbandoned::Hold => HOLD,
            };
            (IN_PROGRESS, Some(to_column(*lease_until)), Some(word))
        }
        State::Completed { .. } => (COMPLETED, None, None),
        State::Indeterminate => (INDETERMINATE, None, None),
    }
}

impl<'a> Columns<'a> {
    pub(crate) fn of(key: &'a Key, record: &'a Record) -> Self {
        let (state, lease_until, on_abandoned) = state_of(record);
        let outcome = match &record.state {
            State::Completed { outcome, .. } => Some(&outcome.as_stored()[..]),
            State::InProgress { .. } | State::Indeterminate => None,
        };
        Self {
            key: key.as_stored(),
            fingerprint: record.fingerprint.as_bytes(),
            attempt: i64::try_from(record.attempt.get()).unwrap_or(i64::MAX),
            owner: record.owner.as_bytes(),
            state,
            lease_until,
            on_abandoned,
            outcome,
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
        let fingerprint = <[u8; Fingerprint::LEN]>::try_from(self.fingerprint.as_slice());
        let owner = <[u8; Owner::LEN]>::try_from(self.owner.as_slice());
        let state = match self.state {
            IN_PROGRESS => State::InProgress {
                lease_until: time(self.lease_until, "lease")?,
                on_abandoned: match self.on_abandoned {
                    Some(RERUN) => OnAbandoned::Rerun,
                    Some(HOLD) => OnAbandoned::Hold,
                    other => return Err(unknown_number("word on a lapsed lease", other.unwrap_or(0).into())),
                },
            },
            COMPLETED => State::Completed {
                outcome: SealedOutcome::from_stored(
                    self.outcome.ok_or_else(|| StoreError::corrupt("a completed record has no outcome"))?.into(),
                ),
                expires_at: time(self.purge_at, "retention")?,
            },
            INDETERMINATE => State::Indeterminate,
            other => return Err(unknown_number("state", other.into())),
        };
        let attempt = u64::try_from(self.attempt).ok().filter(|attempt| *attempt > 0);
        Ok(Record {
            fingerprint: Fingerprint::from_bytes(
                fingerprint.map_err(|_| wrong_length("fingerprint", self.fingerprint.len()))?,
            ),
            attempt: attempt.map(Attempt::new).ok_or_else(|| unknown_number("attempt", self.attempt))?,
            owner: Owner::from_bytes(owner.map_err(|_| wrong_length("owner", self.owner.len()))?),
            state,
        })
    }
}

fn time(column: Option<i64>, what: &str) -> Result<StoreTime, StoreError> {
    let millis = column.and_then(|millis| u64::try_from(millis).ok());
    millis.map(StoreTime::from_millis).ok_or_else(|| StoreError::corrupt(format!("a record's {what} has no valid end")))
}

fn unknown_number(what: &str, number: i64) -> StoreError {
    StoreError::corrupt(format!("a record's {what} is {number}, which is not known here"))
}

fn wrong_length(what: &str, length: usize) -> StoreError {
    StoreError::corrupt(format!("a record's {what} has {length} bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        Row {
            fingerprint: vec![7; Fingerprint::LEN],
            attempt: 1,
            owner: vec![9; Owner::LEN],
            state: COMPLETED,
            lease_until: None,
            on_abandoned: None,
            outcome: Some(vec![1]),
            purge_at: Some(5),
        }
    }

    #[test]
    fn e13_a_row_that_is_no_record_is_an_error() {
        assert!(row().decode().is_ok());
        let bad = [
            Row { fingerprint: vec![7; 5], ..row() },
            Row { owner: Vec::new(), ..row() },
            Row { attempt: 0, ..row() },
            Row { state: 4, ..row() },
            Row { outcome: None, ..row() },
            Row { purge_at: None, ..row() },
            Row { state: IN_PROGRESS, ..row() },
            Row { state: IN_PROGRESS, lease_until: Some(1), on_abandoned: Some(3), ..row() },
        ];
        for row in bad {
            assert!(matches!(row.clone().decode(), Err(StoreError::Corrupt(_))), "{row:?}");
        }
    }
}
