//! Parses the server's answers.

use std::time::Duration;

use oncekey::backend::{RecordView, StateView, StoreError};
use oncekey::record::StoreTime;
use oncekey::{Key, OnAbandoned};
use redis::Value as Answer;

use super::clock::read_time;
use super::field::corrupt;
use super::value::{Claim, Stored, Value, millis, window};

/// What `READ` returns.
pub(super) enum Found {
    Nothing,
    Record(RecordView),
    /// A record with steps. The caller must read it again, together with its steps.
    Family,
}

/// Parses a record from the answer to `READ`.
pub(super) fn read_record(key: &Key, answer: Answer) -> Result<Found, StoreError> {
    let Answer::Array(parts) = answer else { return Err(unexpected()) };
    let Ok([value, ttl, time]) = <[Answer; 3]>::try_from(parts) else { return Err(unexpected()) };
    let now = read_time(time).map_err(|_| unexpected())?.as_millis();
    let now = u64::try_from(now).map_err(|_| unexpected())?;
    let (Some(bytes), Answer::Int(ttl)) = (bytes_or_nil(value)?, ttl) else {
        return Ok(Found::Nothing);
    };
    let Value { claim, has_steps, state, .. } = Value::decode(key, bytes)?;
    if has_steps {
        return Ok(Found::Family);
    }
    let lapsed_at = match &state {
        // The key outlives the lease by its window.
        Stored::InProgress(on_abandoned) => {
            u64::try_from(ttl).ok().and_then(|ttl| millis(window(*on_abandoned)).checked_sub(ttl))
        }
        _ => None,
    };
    let left = |longer: Duration| Duration::from_millis(u64::try_from(ttl).unwrap_or(0)).saturating_sub(longer);
    let state = match state {
        // A record is `Released` only if it has steps.
        Stored::Withdrawn | Stored::Released => return Ok(Found::Nothing),
        Stored::Indeterminate => StateView::Indeterminate,
        _ if ttl < 0 => return Err(endless()),
        Stored::Completed(outcome) => StateView::Completed { outcome, expires_in: left(Duration::ZERO) },
        Stored::InProgress(on_abandoned) => match (left(window(on_abandoned)), on_abandoned) {
            (Duration::ZERO, OnAbandoned::Hold) => StateView::Indeterminate,
            (lease_left, _) => StateView::InProgress { lease_left },
        },
    };
    let Claim { owner, fingerprint, attempt, token } = claim;
    let lapsed_at = lapsed_at.map(|ago| StoreTime::from_millis(now.saturating_sub(ago)));
    let (key, read_at) = (key.clone(), StoreTime::from_millis(now));
    let view = RecordView { key, fingerprint, attempt, token, owner, steps: None, state, lapsed_at, read_at };
    Ok(Found::Record(view))
}

/// The result of an owner's script.
pub(super) enum Verdict {
    Done,
    NotDone,
    /// The script did nothing, because the record has steps.
    HasSteps,
}

/// Parses the answer of an owner's script, and checks the head that the script found. A letter before the head means
/// that the script did nothing: `n` if the step does not apply, `s` if it needs the steps' key, and `d` if the steps
/// are damaged.
pub(super) fn verdict(key: &Key, answer: Answer) -> Result<Verdict, StoreError> {
    let bytes = bytes_or_nil(answer)?.unwrap_or_default();
    match bytes.split_first() {
        Some((b'n', [])) => Ok(Verdict::NotDone),
        Some((b'n', head)) => Claim::decode(key, head).map(|_| Verdict::NotDone),
        Some((b's', head)) => Claim::decode(key, head).map(|_| Verdict::HasSteps),
        Some((b'd', _)) => Err(corrupt()),
        Some(_) => Claim::decode(key, &bytes).map(|_| Verdict::Done),
        None => Err(unexpected()),
    }
}

/// Parses a script's table: a keyword and its argument.
pub(super) fn table(answer: Answer) -> Result<(Vec<u8>, Answer), StoreError> {
    let Answer::Array(parts) = answer else { return Err(unexpected()) };
    let mut parts = parts.into_iter();
    match parts.next() {
        Some(Answer::BulkString(word)) => Ok((word, parts.next().unwrap_or(Answer::Nil))),
        _ => Err(unexpected()),
    }
}

pub(super) fn bytes_or_nil(answer: Answer) -> Result<Option<Vec<u8>>, StoreError> {
    match answer {
        Answer::Nil | Answer::Boolean(false) => Ok(None),
        Answer::BulkString(bytes) => Ok(Some(bytes)),
        _ => Err(unexpected()),
    }
}

pub(super) fn endless() -> StoreError {
    StoreError::corrupt("a record in Redis has lost its time to live, which only somebody else's PERSIST can do")
}

/// An answer of an unexpected form does not show whether the step was executed.
pub(super) fn unexpected() -> StoreError {
    StoreError::unknown("Redis gave an answer of an unexpected form")
}
