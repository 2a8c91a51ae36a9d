//! A record's steps as rows of a separate table, in the columns that all dialects share.

use diesel::sql_types::{BigInt, Binary, Nullable, SmallInt};
use oncekey::backend::StoreError;
use oncekey::record::{Record, StepRecord, Steps};
use oncekey::{FencingToken, Key};

use super::row::{Columns, from_column};
use super::step::millis;
use crate::columns::to_column;
use crate::step_columns::{self, StoredStep, number_column, outcome_of_step, progress_of};

/// The columns that are read from a step's row, without the record's key.
#[derive(Debug, Clone, diesel::Queryable)]
pub(crate) struct StepRow {
    pub(crate) name: Vec<u8>,
    pub(crate) life: i64,
    pub(crate) fingerprint: Option<Vec<u8>>,
    pub(crate) attempt: i64,
    pub(crate) run_token: i64,
    pub(crate) run_number: i64,
    pub(crate) began_at: i64,
    pub(crate) reruns_until: Option<i64>,
    pub(crate) state: i16,
    pub(crate) outcome: Option<Vec<u8>>,
}

/// The columns of a [`StepRow`].
pub(crate) type StepTypes =
    (Binary, BigInt, Nullable<Binary>, BigInt, BigInt, BigInt, BigInt, Nullable<BigInt>, SmallInt, Nullable<Binary>);

/// The columns that are written for a step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StepColumns<'a> {
    pub(crate) name: &'a str,
    pub(crate) life: i64,
    pub(crate) ordinal: i64,
    pub(crate) fingerprint: Option<&'a [u8]>,
    pub(crate) attempt: i64,
    pub(crate) run_token: i64,
    pub(crate) run_number: i64,
    pub(crate) began_at: i64,
    pub(crate) reruns_until: Option<i64>,
    pub(crate) state: i16,
    pub(crate) outcome: Option<&'a [u8]>,
}

/// A step that was added or changed.
#[derive(Debug)]
pub(crate) struct StepChange<'a> {
    /// The step as it was read; `None` if it is new.
    pub(crate) was: Option<StepColumns<'a>>,
    pub(crate) step: StepColumns<'a>,
}

/// What a record's row says about its steps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StepsColumns {
    pub(crate) life: i64,
    pub(crate) retention: i64,
    /// The number of new steps.
    pub(crate) added: i64,
}

/// A record with its steps, written under the lock of its row.
#[derive(Debug)]
pub(crate) struct Family<'a> {
    pub(crate) row: Columns<'a>,
    /// `None` for a record without steps, or with none any more.
    pub(crate) steps: Option<StepsColumns>,
    pub(crate) changes: Vec<StepChange<'a>>,
    /// Whether the steps that were read are deleted.
    pub(crate) drops_steps: bool,
}

impl<'a> Family<'a> {
    /// Returns the changes that turn `found` into `record`.
    pub(crate) fn of(key: &'a Key, found: &'a Record, record: &'a Record) -> Self {
        let before = found.steps.as_deref();
        let changes = record.steps.as_deref().map_or_else(Vec::new, |steps| changes(before, steps));
        let steps = record.steps.as_deref().map(|steps| StepsColumns {
            life: number_column(steps.life.get()),
            retention: millis(steps.retention),
            added: changes.iter().filter(|change| change.was.is_none()).count().try_into().unwrap_or(0),
        });
        Self { row: Columns::of(key, record), drops_steps: before.is_some() && steps.is_none(), steps, changes }
    }
}

fn changes<'a>(before: Option<&'a Steps>, after: &'a Steps) -> Vec<StepChange<'a>> {
    let ordinal = |index: usize| i64::try_from(index).unwrap_or(0);
    let steps = after.list.iter().enumerate().filter_map(|(index, step)| {
        let was = before.and_then(|steps| steps.get(&step.name));
        (was != Some(step)).then(|| StepChange {
            was: was.map(|was| StepColumns::of(was, after.life, ordinal(index))),
            step: StepColumns::of(step, after.life, ordinal(index)),
        })
    });
    steps.collect()
}

impl<'a> StepColumns<'a> {
    fn of(step: &'a StepRecord, life: FencingToken, ordinal: i64) -> Self {
        Self {
            name: step.name.as_str(),
            life: number_column(life.get()),
            ordinal,
            fingerprint: step.fingerprint.as_ref().map(|fingerprint| fingerprint.as_bytes().as_slice()),
            attempt: number_column(step.attempt.get()),
            run_token: number_column(step.run.token.get()),
            run_number: step.run.number.into(),
            began_at: to_column(step.began_at),
            reruns_until: step.reruns_until.map(to_column),
            state: progress_of(step),
            outcome: outcome_of_step(step),
        }
    }
}

/// Returns the steps of this life among the rows of one key, in order.
pub(crate) fn steps_of(
    life: Option<i64>,
    retention: Option<i64>,
    rows: Vec<StepRow>,
) -> Result<Option<Steps>, StoreError> {
    let Some(mut steps) = step_columns::steps_of(life, retention)? else { return Ok(None) };
    let of_life = rows.into_iter().filter(|row| Some(row.life) == life);
    steps.list = of_life.map(StepRow::decode).collect::<Result<_, _>>()?;
    Ok(Some(steps))
}

impl StepRow {
    fn decode(self) -> Result<StepRecord, StoreError> {
        let name = String::from_utf8(self.name).map_err(|_| StoreError::corrupt("a step's name is not UTF-8"))?;
        let stored = StoredStep {
            name,
            fingerprint: self.fingerprint,
            attempt: self.attempt,
            run_token: self.run_token,
            run_number: self.run_number,
            began_at: self.began_at,
            reruns_until: self.reruns_until,
            progress: self.state.into(),
            outcome: self.outcome,
        };
        stored.decode(true)
    }
}

/// Converts a token that a statement returned.
pub(crate) fn given_token(number: i64) -> FencingToken {
    FencingToken::new(from_column(number).as_millis())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use oncekey::Fingerprint;
    use oncekey::record::{Attempt, Binding, Progress, SealedOutcome, StepName, StepRun, StoreTime};

    use super::*;
    use crate::step_columns::{BEGUN, FAILED};

    fn row_of(step: &StepColumns<'_>) -> StepRow {
        StepRow {
            name: step.name.as_bytes().to_vec(),
            life: step.life,
            fingerprint: step.fingerprint.map(<[u8]>::to_vec),
            attempt: step.attempt,
            run_token: step.run_token,
            run_number: step.run_number,
            began_at: step.began_at,
            reruns_until: step.reruns_until,
            state: step.state,
            outcome: step.outcome.map(<[u8]>::to_vec),
        }
    }

    fn steps() -> Steps {
        let key = Key::new("s", "k").unwrap();
        let life = FencingToken::new(7);
        let outcome = |name: &StepName| SealedOutcome::of_value(Binding::step(&key, life, name), &17).unwrap();
        let step = |number: u32, name: &str, reruns_until: Option<StoreTime>| StepRecord {
            name: StepName::new(name).unwrap(),
            fingerprint: (number > 1).then(|| Fingerprint::of(b"asked")),
            attempt: Attempt::new(u64::from(number) - 1),
            run: StepRun { token: FencingToken::new(9), number },
            began_at: StoreTime::from_millis(5),
            reruns_until,
            progress: Progress::Begun,
        };
        let mut list = vec![
            step(1, "charge/für Ada", None),
            step(2, "mail", Some(StoreTime::END)),
            step(u32::MAX, "ship", Some(StoreTime::from_millis(6))),
        ];
        list[0].progress = Progress::Failed;
        list[1].progress = Progress::Completed(outcome(&list[1].name));
        Steps { life, retention: Duration::from_millis(60_001), list }
    }

    /// The steps that are written are read back unchanged; steps of another life are not.
    #[test]
    fn steps_come_back_from_their_rows() {
        let steps = steps();
        let changed = changes(None, &steps);
        assert!(changed.iter().all(|change| change.was.is_none()));
        let mut rows: Vec<_> = changed.iter().map(|change| row_of(&change.step)).collect();
        rows.insert(1, StepRow { life: 6, ..rows[0].clone() });
        assert_eq!(steps_of(Some(7), Some(60_001), rows), Ok(Some(steps)));
    }

    /// Only changes are written.
    #[test]
    fn a_step_that_is_as_it_was_is_not_written() {
        let before = steps();
        let mut after = before.clone();
        assert!(changes(Some(&before), &after).is_empty());
        after.list[2].progress = Progress::Failed;
        let changed = changes(Some(&before), &after);
        let [change] = &changed[..] else { panic!("{changed:?}") };
        assert_eq!((change.was.map(|was| was.state), change.step.state), (Some(BEGUN), FAILED));
        assert_eq!((change.step.name, change.step.ordinal), ("ship", 2));
    }

    #[test]
    fn e13_a_row_that_is_no_step_is_an_error() {
        let steps = steps();
        let row = row_of(&changes(None, &steps)[1].step);
        assert!(row.clone().decode().is_ok());
        let bad = [
            StepRow { name: b"".to_vec(), ..row.clone() },
            StepRow { name: b"\xff".to_vec(), ..row.clone() },
            StepRow { fingerprint: Some(vec![1; 5]), ..row.clone() },
            StepRow { attempt: -1, ..row.clone() },
            StepRow { run_token: -1, ..row.clone() },
            StepRow { run_number: i64::from(u32::MAX) + 1, ..row.clone() },
            StepRow { began_at: -1, ..row.clone() },
            StepRow { reruns_until: Some(-1), ..row.clone() },
            StepRow { state: 4, ..row.clone() },
            StepRow { outcome: None, ..row.clone() },
        ];
        for row in bad {
            assert!(matches!(steps_of(Some(7), Some(1), vec![row.clone()]), Err(StoreError::Corrupt(_))), "{row:?}");
        }
        assert!(matches!(steps_of(Some(7), None, Vec::new()), Err(StoreError::Corrupt(_))));
        assert!(matches!(steps_of(Some(-7), Some(1), Vec::new()), Err(StoreError::Corrupt(_))));
    }
}
