//! A record's steps as rows of their own table, in the columns that all dialects share.

use std::time::Duration;

use oncekey::backend::StoreError;
use oncekey::record::{Attempt, Progress, Record, SealedOutcome, StepName, StepRecord, StepRun, Steps, StoreTime};
use oncekey::{FencingToken, Fingerprint, Key};

use super::row::{Columns, from_column};
use super::step::millis;
use crate::columns::to_column;

pub(crate) const BEGUN: i16 = 1;
pub(crate) const COMPLETED: i16 = 2;
const FAILED: i16 = 3;

/// What is read of a step's row, the record's key aside.
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

/// What is written of a step.
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
    /// As it was read; `None` if it is new.
    pub(crate) was: Option<StepColumns<'a>>,
    pub(crate) step: StepColumns<'a>,
}

/// What a record says of its steps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StepsColumns {
    pub(crate) life: i64,
    pub(crate) retention: i64,
    /// How many are new.
    pub(crate) added: i64,
}

/// A record with its steps, written under the lock of its row.
#[derive(Debug)]
pub(crate) struct Family<'a> {
    pub(crate) row: Columns<'a>,
    /// `None` for a record that has none, or none any more.
    pub(crate) steps: Option<StepsColumns>,
    pub(crate) changes: Vec<StepChange<'a>>,
    /// Whether the steps that were read go.
    pub(crate) drops_steps: bool,
}

impl<'a> Family<'a> {
    /// What turns the record that was found into this one.
    pub(crate) fn of(key: &'a Key, found: &'a Record, record: &'a Record) -> Self {
        let before = found.steps.as_deref();
        let changes = record.steps.as_deref().map_or_else(Vec::new, |steps| changes(before, steps));
        let steps = record.steps.as_deref().map(|steps| StepsColumns {
            life: number(steps.life.get()),
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
        let (state, outcome) = match &step.progress {
            Progress::Begun => (BEGUN, None),
            Progress::Completed(outcome) => (COMPLETED, Some(&outcome.as_stored()[..])),
            Progress::Failed => (FAILED, None),
        };
        Self {
            name: step.name.as_str(),
            life: number(life.get()),
            ordinal,
            fingerprint: step.fingerprint.as_ref().map(|fingerprint| fingerprint.as_bytes().as_slice()),
            attempt: number(step.attempt.get()),
            run_token: number(step.run.token.get()),
            run_number: step.run.number.into(),
            began_at: to_column(step.began_at),
            reruns_until: step.reruns_until.map(to_column),
            state,
            outcome,
        }
    }
}

fn number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The steps of this life among the rows of one key, in their order.
pub(crate) fn steps_of(life: i64, retention: Option<i64>, rows: Vec<StepRow>) -> Result<Steps, StoreError> {
    let retention = retention.and_then(|millis| u64::try_from(millis).ok());
    let retention = retention.ok_or_else(|| StoreError::corrupt("a record's steps have no valid retention"))?;
    let list = rows.into_iter().filter(|row| row.life == life).map(StepRow::decode);
    Ok(Steps { life: token(life)?, retention: Duration::from_millis(retention), list: list.collect::<Result<_, _>>()? })
}

fn token(number: i64) -> Result<FencingToken, StoreError> {
    let token = u64::try_from(number).map(FencingToken::new);
    token.map_err(|_| StoreError::corrupt(format!("a step's fencing token is {number}")))
}

impl StepRow {
    fn decode(self) -> Result<StepRecord, StoreError> {
        let corrupt = |what: &str| StoreError::corrupt(format!("a step's {what} is not valid"));
        let name = std::str::from_utf8(&self.name).ok().and_then(|name| StepName::from_stored(name).ok());
        let fingerprint = self.fingerprint.map(|bytes| <[u8; Fingerprint::LEN]>::try_from(bytes.as_slice()));
        let progress = match (self.state, self.outcome) {
            (BEGUN, _) => Progress::Begun,
            (COMPLETED, Some(outcome)) => Progress::Completed(SealedOutcome::from_stored(outcome.into())),
            (FAILED, _) => Progress::Failed,
            _ => return Err(corrupt("state")),
        };
        let time = |millis: i64| u64::try_from(millis).map(StoreTime::from_millis).map_err(|_| corrupt("time"));
        Ok(StepRecord {
            name: name.ok_or_else(|| corrupt("name"))?,
            fingerprint: fingerprint.transpose().map_err(|_| corrupt("fingerprint"))?.map(Fingerprint::from_bytes),
            attempt: u64::try_from(self.attempt).map(Attempt::new).map_err(|_| corrupt("attempt"))?,
            run: StepRun {
                token: token(self.run_token)?,
                number: u32::try_from(self.run_number).map_err(|_| corrupt("run"))?,
            },
            began_at: time(self.began_at)?,
            reruns_until: self.reruns_until.map(time).transpose()?,
            progress,
        })
    }
}

/// A token that a statement has given.
pub(crate) fn given_token(number: i64) -> FencingToken {
    FencingToken::new(from_column(number).as_millis())
}
