//! A step as the columns of a table. All SQL stores share this encoding.

use std::time::Duration;

use oncekey::backend::StoreError;
use oncekey::record::{Attempt, Progress, SealedOutcome, StepName, StepRecord, StepRun, Steps, StoreTime};
use oncekey::{FencingToken, Fingerprint};

#[cfg(any(feature = "sqlite", test))]
use crate::columns::to_column;

pub(crate) const BEGUN: i16 = 1;
const COMPLETED: i16 = 2;
pub(crate) const FAILED: i16 = 3;

/// A step's row as read.
#[derive(Debug, Clone)]
pub(crate) struct StoredStep {
    pub(crate) name: String,
    pub(crate) fingerprint: Option<Vec<u8>>,
    pub(crate) attempt: i64,
    pub(crate) run_token: i64,
    pub(crate) run_number: i64,
    pub(crate) began_at: i64,
    pub(crate) reruns_until: Option<i64>,
    pub(crate) progress: i64,
    pub(crate) outcome: Option<Vec<u8>>,
}

/// Returns the number of a step's progress.
pub(crate) fn progress_of(step: &StepRecord) -> i16 {
    match step.progress {
        Progress::Begun => BEGUN,
        Progress::Completed(_) => COMPLETED,
        Progress::Failed => FAILED,
    }
}

/// Returns the outcome's bytes if the step is completed.
pub(crate) fn outcome_of_step(step: &StepRecord) -> Option<&[u8]> {
    match &step.progress {
        Progress::Completed(outcome) => Some(outcome.as_stored()),
        Progress::Begun | Progress::Failed => None,
    }
}

/// Converts a token or an attempt to a number that every store can keep.
pub(crate) fn number_column(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Returns the life of a record's steps, and how long a release keeps them, in milliseconds.
#[cfg(feature = "sqlite")]
pub(crate) fn life_of(steps: Option<&Steps>) -> (Option<i64>, Option<i64>) {
    let retention = |steps: &Steps| to_column(StoreTime::from_millis(0).after(steps.retention));
    (steps.map(|steps| number_column(steps.life.get())), steps.map(retention))
}

/// Returns the steps of a record, with an empty list; `None` if the columns say that it has none.
pub(crate) fn steps_of(life: Option<i64>, retention: Option<i64>) -> Result<Option<Steps>, StoreError> {
    let Some(life) = life else { return Ok(None) };
    let retention = retention.and_then(|millis| u64::try_from(millis).ok());
    let retention = retention.ok_or_else(|| StoreError::corrupt("the steps of a record have no valid retention"))?;
    let life = FencingToken::new(number(life, "life")?);
    Ok(Some(Steps { life, retention: Duration::from_millis(retention), list: Vec::new() }))
}

impl StoredStep {
    /// Decodes the row. `has_outcome` says whether it was read with its outcome. A completed step that was read without
    /// one gets an empty outcome.
    pub(crate) fn decode(self, has_outcome: bool) -> Result<StepRecord, StoreError> {
        let fingerprint = self.fingerprint.map(|bytes| {
            let length = bytes.len();
            let bytes = <[u8; Fingerprint::LEN]>::try_from(bytes);
            bytes.map_err(|_| StoreError::corrupt(format!("a step's fingerprint has {length} bytes")))
        });
        let progress = match i16::try_from(self.progress) {
            Ok(BEGUN) => Progress::Begun,
            Ok(COMPLETED) => {
                let outcome = if has_outcome { self.outcome } else { Some(Vec::new()) };
                let outcome = outcome.ok_or_else(|| StoreError::corrupt("a completed step has no outcome"))?;
                Progress::Completed(SealedOutcome::from_stored(outcome.into()))
            }
            Ok(FAILED) => Progress::Failed,
            _ => return Err(unknown_number("progress", self.progress)),
        };
        let run = StepRun {
            token: FencingToken::new(number(self.run_token, "fencing token")?),
            number: u32::try_from(self.run_number).map_err(|_| unknown_number("run", self.run_number))?,
        };
        let time = |millis| number(millis, "time").map(StoreTime::from_millis);
        Ok(StepRecord {
            name: StepName::from_stored(&self.name).map_err(StoreError::corrupt)?,
            fingerprint: fingerprint.transpose()?.map(Fingerprint::from_bytes),
            attempt: Attempt::new(number(self.attempt, "attempt")?),
            run,
            began_at: time(self.began_at)?,
            reruns_until: self.reruns_until.map(time).transpose()?,
            progress,
        })
    }
}

fn number(column: i64, what: &str) -> Result<u64, StoreError> {
    u64::try_from(column).map_err(|_| unknown_number(what, column))
}

fn unknown_number(what: &str, number: i64) -> StoreError {
    StoreError::corrupt(format!("a step's {what} is {number}, which is not known here"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored() -> StoredStep {
        StoredStep {
            name: "charge".to_owned(),
            fingerprint: None,
            attempt: 1,
            run_token: 1_000,
            run_number: 1,
            began_at: 5,
            reruns_until: None,
            progress: BEGUN.into(),
            outcome: None,
        }
    }

    /// A step that was written is read back as the same step.
    #[test]
    fn e26_a_step_comes_back_from_its_columns() {
        let outcome = SealedOutcome::of_value(&oncekey::Key::new("s", "k").unwrap(), &17).unwrap();
        for progress in [Progress::Begun, Progress::Completed(outcome), Progress::Failed] {
            for (fingerprint, reruns_until) in [
                (None, None),
                (Some(Fingerprint::of(b"1999")), Some(StoreTime::END)),
                (None, Some(StoreTime::from_millis(9))),
            ] {
                let step = StepRecord {
                    name: StepName::new("charge é").unwrap(),
                    fingerprint,
                    attempt: Attempt::new(0),
                    run: StepRun { token: FencingToken::new(i64::MAX as u64), number: u32::MAX },
                    began_at: StoreTime::from_millis(5),
                    reruns_until,
                    progress: progress.clone(),
                };
                let columns = StoredStep {
                    name: step.name.as_str().to_owned(),
                    fingerprint: step.fingerprint.map(|fingerprint| fingerprint.as_bytes().to_vec()),
                    attempt: number_column(step.attempt.get()),
                    run_token: number_column(step.run.token.get()),
                    run_number: step.run.number.into(),
                    began_at: to_column(step.began_at),
                    reruns_until: step.reruns_until.map(to_column),
                    progress: progress_of(&step).into(),
                    outcome: outcome_of_step(&step).map(<[u8]>::to_vec),
                };
                assert_eq!(columns.decode(true), Ok(step));
            }
        }
    }

    #[cfg(feature = "sqlite")]
    #[test]
    fn e26_the_life_and_the_retention_come_back() {
        assert_eq!(steps_of(None, None), Ok(None));
        for retention in [Duration::ZERO, Duration::from_secs(60), Duration::MAX] {
            let steps = Steps { life: FencingToken::new(7), retention, list: Vec::new() };
            let (life, millis) = life_of(Some(&steps));
            let read = steps_of(life, millis).unwrap().unwrap();
            assert_eq!(read.life, steps.life);
            assert_eq!(read.retention, retention.min(Duration::from_millis(i64::MAX as u64)));
        }
        for (life, retention) in [(Some(1), None), (Some(1), Some(-1)), (Some(-1), Some(1))] {
            assert!(matches!(steps_of(life, retention), Err(StoreError::Corrupt(_))));
        }
    }

    #[test]
    fn e13_a_row_that_is_no_step_is_an_error() {
        assert!(stored().decode(true).is_ok());
        let bad = [
            StoredStep { name: String::new(), ..stored() },
            StoredStep { name: "a\0".to_owned(), ..stored() },
            StoredStep { fingerprint: Some(vec![1]), ..stored() },
            StoredStep { attempt: -1, ..stored() },
            StoredStep { run_token: -1, ..stored() },
            StoredStep { run_number: -1, ..stored() },
            StoredStep { run_number: 1 << 32, ..stored() },
            StoredStep { began_at: -1, ..stored() },
            StoredStep { reruns_until: Some(-1), ..stored() },
            StoredStep { progress: 0, ..stored() },
            StoredStep { progress: 4, ..stored() },
            StoredStep { progress: COMPLETED.into(), ..stored() },
        ];
        for stored in bad {
            assert!(matches!(stored.clone().decode(true), Err(StoreError::Corrupt(_))), "{stored:?}");
        }
        // A completed step that is read without its outcome is still completed.
        let completed = StoredStep { progress: COMPLETED.into(), ..stored() };
        assert!(matches!(completed.decode(false).unwrap().progress, Progress::Completed(_)));
    }
}
