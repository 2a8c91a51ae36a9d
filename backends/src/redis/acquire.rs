//! Decides on a claim: what the value found, or a script's answer, means for the caller that asked.

use std::time::Duration;

use oncekey::backend::{Acquire, Acquired, StoreError};
use oncekey::record::Owner;
use oncekey::{Attempt, FencingToken};
use redis::Value as Answer;

use super::answer::{bytes_or_nil, endless, table, unexpected};
use super::value::{Barrier, Claim, Met, Stored, Value};

/// What follows for an acquire.
pub(super) enum Next {
    Answer(Acquired),
    TakeOver(Met),
    /// The record has steps, and the answer depends on them.
    Family,
    /// The value that was read is gone: start again.
    Again,
}

pub(super) fn claimed_first(token: FencingToken) -> Acquired {
    Acquired::Claimed { attempt: Attempt::FIRST, token, took_over: false, steps: None }
}

/// Decides on the value that `SET NX GET` found, or that a script returned.
pub(super) fn read_found(message: &Acquire, bytes: Vec<u8>) -> Result<Next, StoreError> {
    // Most values found are completed. Their bytes are not copied.
    let is_completed = matches!(super::value::letter(&bytes), Some(b'c' | b'C'));
    let met = if is_completed {
        Met { value: Value::decode(&message.key, bytes)?, bytes: Vec::new() }
    } else {
        Met::read(&message.key, bytes)?
    };
    let Value { claim, barrier, .. } = met.value;
    let withdrawn = |owner| Acquired::Withdrawn { owner };
    // Whether the message was sent before this claim was withdrawn. If the message's own claim still stands, it was not
    // withdrawn.
    let is_late = |owner| owner == message.owner && message.past_withdrawal.as_deref() != Some(&owner);
    let acquired = match met.value.state {
        Stored::Withdrawn if is_late(claim.owner) => withdrawn(claim.owner),
        Stored::Withdrawn => match barrier {
            Some(Barrier { withdrawn: owner, .. }) if is_late(owner) => withdrawn(owner),
            _ => return Ok(Next::TakeOver(met)),
        },
        _ if claim.fingerprint != message.fingerprint => Acquired::Mismatch,
        Stored::Completed(outcome) => Acquired::Completed { outcome },
        Stored::Indeterminate => Acquired::Indeterminate { attempt: claim.attempt, owner: claim.owner },
        Stored::InProgress(_) | Stored::Released => match barrier {
            Some(Barrier { withdrawn: owner, .. }) if is_late(owner) && is_withdrawn_owner(&met.value, owner) => {
                withdrawn(owner)
            }
            _ if met.value.has_steps => return Ok(Next::Family),
            _ => return Ok(Next::TakeOver(met)),
        },
    };
    Ok(Next::Answer(acquired))
}

/// Returns whether the barrier's owner was withdrawn. If that owner's claim still stands, it was not.
fn is_withdrawn_owner(met: &Value, owner: Owner) -> bool {
    met.claim.owner != owner || met.state == Stored::Released
}

pub(super) fn read_take_over(
    message: &Acquire,
    met: &Value,
    token: FencingToken,
    heard: Answer,
) -> Result<Next, StoreError> {
    let (verdict, detail) = table(heard)?;
    let claim = met.claim;
    let acquired = match verdict.as_slice() {
        b"claimed" if met.state == Stored::Withdrawn => claimed_first(token),
        b"claimed" if is_own_claim(message, met) => {
            Acquired::Claimed { attempt: claim.attempt, token, took_over: false, steps: None }
        }
        b"claimed" => Acquired::Claimed { attempt: claim.attempt.next(), token, took_over: true, steps: None },
        b"held" => match detail {
            Answer::Int(left) => {
                Acquired::InProgress { lease_left: Duration::from_millis(u64::try_from(left).unwrap_or(0)) }
            }
            _ => return Err(unexpected()),
        },
        b"indeterminate" => Acquired::Indeterminate { attempt: claim.attempt, owner: claim.owner },
        b"endless" => return Err(endless()),
        b"changed" => match bytes_or_nil(detail)? {
            None => return Ok(Next::Again),
            Some(bytes) => return read_found(message, bytes),
        },
        _ => return Err(unexpected()),
    };
    Ok(Next::Answer(acquired))
}

/// Returns whether the claim found is the sender's own: its answer was lost, and it asks again.
pub(super) fn is_own_claim(message: &Acquire, met: &Value) -> bool {
    met.claim.owner == message.owner && met.state != Stored::Withdrawn
}

/// Returns the value that claims a key.
pub(super) fn claimed(message: &Acquire, attempt: Attempt, token: FencingToken, barrier: Option<Barrier>) -> Vec<u8> {
    let claim = Claim { owner: message.owner, fingerprint: message.fingerprint, attempt, token };
    let state = Stored::InProgress(message.on_abandoned);
    Value { claim, has_steps: false, barrier, state }.encode(&message.key)
}
