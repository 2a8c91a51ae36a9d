//! A record's state as the columns of a table. All SQL stores share this encoding.

use oncekey::backend::{StoreError, StoreStats};
use oncekey::record::{Attempt, Barrier, Owner, Record, SealedOutcome, State, StoreTime};
use oncekey::{FencingToken, Fingerprint, OnAbandoned};

pub(crate) const IN_PROGRESS: i16 = 1;
pub(crate) const COMPLETED: i16 = 2;
pub(crate) const INDETERMINATE: i16 = 3;
/// The key is free: the row only keeps its barrier or its token, until `purge_at`.
pub(crate) const VACANT: i16 = 4;
pub(crate) const RELEASED: i16 = 5;
const RERUN: i16 = 1;
const HOLD: i16 = 2;
const RESUME: i16 = 3;

/// A record's row as read, without the key.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) fingerprint: Vec<u8>,
    pub(crate) attempt: i64,
    pub(crate) owner: Vec<u8>,
    pub(crate) state: i64,
    pub(crate) lease_until: Option<i64>,
    pub(crate) on_abandoned: Option<i64>,
    pub(crate) outcome: Option<Vec<u8>>,
    pub(crate) purge_at: Option<i64>,
    pub(crate) fencing_token: i64,
    pub(crate) barrier_owner: Option<Vec<u8>>,
    pub(crate) barrier_until: Option<i64>,
}

pub(crate) fn to_column(time: StoreTime) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// Returns the number for what a lapsed lease means.
pub(crate) fn word_of(on_abandoned: OnAbandoned) -> i16 {
    match on_abandoned {
        OnAbandoned::Rerun => RERUN,
        OnAbandoned::Hold => HOLD,
        OnAbandoned::Resume => RESUME,
    }
}

/// Returns the state, the end of the lease, and the policy for a lapsed lease.
pub(crate) fn state_of(record: &Record) -> (i16, Option<i64>, Option<i16>) {
    match &record.state {
        State::InProgress { lease_until, on_abandoned } => {
            (IN_PROGRESS, Some(to_column(*lease_until)), Some(word_of(*on_abandoned)))
        }
        State::Completed { .. } => (COMPLETED, None, None),
        State::Indeterminate => (INDETERMINATE, None, None),
        State::Released { .. } => (RELEASED, None, None),
        State::Vacant { .. } => (VACANT, None, None),
    }
}

/// Returns the fencing token's number.
pub(crate) fn token_of(record: &Record) -> i64 {
    i64::try_from(record.token.get()).unwrap_or(i64::MAX)
}

/// Returns the owner that the barrier names, and the barrier's end.
pub(crate) fn barrier_of(record: &Record) -> (Option<&[u8]>, Option<i64>) {
    let barrier = record.barrier.as_deref();
    (barrier.map(|barrier| barrier.withdrawn.as_bytes().as_slice()), barrier.map(|barrier| to_column(barrier.until)))
}

/// Returns the outcome's bytes if the record is completed.
pub(crate) fn outcome_of(record: &Record) -> Option<&[u8]> {
    match &record.state {
        State::Completed { outcome, .. } => Some(outcome.as_stored()),
        State::InProgress { .. } | State::Indeterminate | State::Released { .. } | State::Vacant { .. } => None,
    }
}

impl Stored {
    pub(crate) fn decode(self) -> Result<Record, StoreError> {
        let fingerprint = <[u8; Fingerprint::LEN]>::try_from(self.fingerprint.as_slice());
        let owner = owner(&self.owner)?;
        let barrier = match self.barrier_owner.as_deref() {
            Some(withdrawn) => {
                let until = time(self.barrier_until, "barrier")?;
                Some(Box::new(Barrier { withdrawn: self::owner(withdrawn)?, until }))
            }
            None => None,
        };
        let number = |number: i64| i16::try_from(number).ok();
        let state = match number(self.state) {
            Some(IN_PROGRESS) => State::InProgress {
                lease_until: time(self.lease_until, "lease")?,
                on_abandoned: match self.on_abandoned.and_then(number) {
                    Some(RERUN) => OnAbandoned::Rerun,
                    Some(HOLD) => OnAbandoned::Hold,
                    Some(RESUME) => OnAbandoned::Resume,
                    _ => return Err(unknown_number("word on a lapsed lease", self.on_abandoned.unwrap_or(0))),
                },
            },
            Some(COMPLETED) => State::Completed {
                outcome: SealedOutcome::from_stored(
                    self.outcome.ok_or_else(|| StoreError::corrupt("a completed record has no outcome"))?.into(),
                ),
                expires_at: time(self.purge_at, "retention")?,
            },
            Some(INDETERMINATE) => State::Indeterminate,
            Some(RELEASED) => State::Released { expires_at: time(self.purge_at, "retention")? },
            Some(VACANT) => State::Vacant { until: time(self.purge_at, "vacancy")? },
            _ => return Err(unknown_number("state", self.state)),
        };
        let attempt = u64::try_from(self.attempt).ok().filter(|attempt| *attempt > 0);
        Ok(Record {
            fingerprint: Fingerprint::from_bytes(
                fingerprint.map_err(|_| wrong_length("fingerprint", self.fingerprint.len()))?,
            ),
            attempt: attempt.map(Attempt::new).ok_or_else(|| unknown_number("attempt", self.attempt))?,
            token: u64::try_from(self.fencing_token)
                .map(FencingToken::new)
                .map_err(|_| unknown_number("fencing token", self.fencing_token))?,
            barrier,
            owner,
            steps: None,
            state,
        })
    }
}

/// Sums up counts by the state's number as the number of records in each state. Vacant rows are not records.
pub(crate) fn stats_of(counts: impl IntoIterator<Item = (i64, i64)>) -> Result<StoreStats, StoreError> {
    let mut stats = StoreStats::default();
    for (state, count) in counts {
        let count = u64::try_from(count).unwrap_or(0);
        match i16::try_from(state) {
            Ok(IN_PROGRESS) => stats.in_progress = count,
            Ok(COMPLETED) => stats.completed = count,
            Ok(INDETERMINATE) => stats.indeterminate = count,
            Ok(RELEASED) => stats.released = count,
            Ok(VACANT) => {}
            _ => return Err(unknown_number("state", state)),
        }
    }
    Ok(stats)
}

fn owner(bytes: &[u8]) -> Result<Owner, StoreError> {
    let bits = <[u8; Owner::LEN]>::try_from(bytes).map_err(|_| wrong_length("owner", bytes.len()))?;
    Ok(Owner::from_bytes(bits))
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

    fn stored() -> Stored {
        Stored {
            fingerprint: vec![7; Fingerprint::LEN],
            attempt: 1,
            owner: vec![9; Owner::LEN],
            state: COMPLETED.into(),
            lease_until: None,
            on_abandoned: None,
            outcome: Some(vec![1]),
            purge_at: Some(5),
            fencing_token: 0,
            barrier_owner: None,
            barrier_until: None,
        }
    }

    /// A record that was written is read back as the same record.
    #[test]
    fn a_record_comes_back_from_its_columns() {
        let key = oncekey::Key::new("s", "k").unwrap();
        let outcome = SealedOutcome::of_value(&key, &17).unwrap();
        let (lease_until, expires_at) = (StoreTime::from_millis(3), StoreTime::from_millis(5));
        let states = [
            State::InProgress { lease_until, on_abandoned: OnAbandoned::Rerun },
            State::InProgress { lease_until, on_abandoned: OnAbandoned::Hold },
            State::InProgress { lease_until, on_abandoned: OnAbandoned::Resume },
            State::Completed { outcome, expires_at },
            State::Indeterminate,
            State::Released { expires_at },
            State::Vacant { until: StoreTime::from_millis(6) },
        ];
        let barrier = Barrier { withdrawn: Owner::from_bytes([3; Owner::LEN]), until: StoreTime::from_millis(4) };
        let barriers = [None, Some(Box::new(barrier))];
        for (state, barrier) in states.iter().flat_map(|state| barriers.iter().map(move |barrier| (state, barrier))) {
            let record = Record {
                fingerprint: Fingerprint::from_bytes([7; Fingerprint::LEN]),
                attempt: Attempt::new(2),
                token: FencingToken::new(1_000),
                barrier: barrier.clone(),
                owner: Owner::from_bytes([9; Owner::LEN]),
                steps: None,
                state: state.clone(),
            };
            let (state, lease_until, on_abandoned) = state_of(&record);
            let (barrier_owner, barrier_until) = barrier_of(&record);
            let columns = Stored {
                attempt: 2,
                state: state.into(),
                lease_until,
                on_abandoned: on_abandoned.map(i64::from),
                outcome: outcome_of(&record).map(<[u8]>::to_vec),
                purge_at: record.purge_at().map(to_column),
                fencing_token: token_of(&record),
                barrier_owner: barrier_owner.map(<[u8]>::to_vec),
                barrier_until,
                ..stored()
            };
            assert_eq!(columns.decode(), Ok(record));
        }
    }

    #[test]
    fn counts_go_to_their_states() {
        let stats = stats_of([(3, 7), (1, 5), (4, 9), (2, 6)]).unwrap();
        assert_eq!((stats.in_progress, stats.completed, stats.indeterminate), (5, 6, 7));
        assert!(matches!(stats_of([(6, 1)]), Err(StoreError::Corrupt(_))));
    }

    #[test]
    fn e13_a_row_that_is_no_record_is_an_error() {
        assert!(stored().decode().is_ok());
        let bad = [
            Stored { fingerprint: vec![7; 5], ..stored() },
            Stored { owner: Vec::new(), ..stored() },
            Stored { attempt: 0, ..stored() },
            Stored { state: 6, ..stored() },
            Stored { state: VACANT.into(), purge_at: None, ..stored() },
            Stored { fencing_token: -1, ..stored() },
            Stored { barrier_owner: Some(vec![3; Owner::LEN]), ..stored() },
            Stored { barrier_owner: Some(vec![3; 5]), barrier_until: Some(1), ..stored() },
            Stored { state: i64::MAX, ..stored() },
            Stored { outcome: None, ..stored() },
            Stored { purge_at: None, ..stored() },
            Stored { state: IN_PROGRESS.into(), ..stored() },
            Stored { state: IN_PROGRESS.into(), lease_until: Some(1), on_abandoned: Some(4), ..stored() },
        ];
        for stored in bad {
            assert!(matches!(stored.clone().decode(), Err(StoreError::Corrupt(_))), "{stored:?}");
        }
    }
}
