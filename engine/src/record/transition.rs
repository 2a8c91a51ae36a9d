//! The steps of a record's life, as pure functions.
//!
//! Each function takes the record that the store found, the store's time and the message. It returns what to write and
//! what to answer. These functions define the protocol. A store must run each one so that the lookup and the write are
//! one atomic step.
//!
//! The owner of a claim can safely repeat every step: if it lost the answer, it sends the step again and learns that
//! the step is done.
//!
//! ```
//! use std::time::Duration;
//! use oncekey::{Attempt, FencingToken, Fingerprint, Key, OnAbandoned};
//! use oncekey::backend::{Acquire, Acquired};
//! use oncekey::record::{transition, Owner, StoreTime};
//!
//! let message = Acquire {
//!     key: Key::new("mail", 17)?,
//!     fingerprint: Fingerprint::of(b"to: ada"),
//!     owner: Owner::random(),
//!     lease: Duration::from_secs(30),
//!     on_abandoned: OnAbandoned::Hold,
//!     past_withdrawal: None,
//! };
//! let step = transition::acquire(None, StoreTime::from_millis(17), &message);
//! let token = FencingToken::new(17_000);
//! assert_eq!(step.answer, Acquired::Claimed { attempt: Attempt::FIRST, token, took_over: false, steps: None });
//! # Ok::<(), oncekey::KeyError>(())
//! ```

mod steps;

pub use steps::{begin_step, commit_step, complete_step, fail_step, may_commit_step, resolve_step};

use std::time::Duration;

use super::{Attempt, Barrier, FencingToken, Owner, Record, SealedOutcome, State, StoreTime};
use crate::backend::{
    Acquire, Acquired, Complete, Completed, Held, Hold, Release, Released, Remove, Removed, Renew, Renewed, Resolution,
    Resolve, Resolved, Withdraw, Withdrawn,
};
use crate::{Fingerprint, OnAbandoned};

/// The result of a step.
///
/// ```
/// use oncekey::record::transition::{Step, Write};
///
/// let step = Step { write: Write::Nothing, answer: 1 };
/// assert_eq!(step.answer, 1);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step<Answer> {
    /// What happens to the record.
    pub write: Write,
    /// The answer to the message's sender, valid once the write is done.
    pub answer: Answer,
}

/// What a step writes.
///
/// ```
/// use oncekey::record::transition::Write;
///
/// assert_ne!(Write::Nothing, Write::Delete);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// The record stays as it is.
    Nothing,
    /// This record replaces the one that was found.
    Put(Record),
    /// The record is deleted.
    Delete,
}

fn unchanged<Answer>(answer: Answer) -> Step<Answer> {
    Step { write: Write::Nothing, answer }
}

fn put<Answer>(record: Record, answer: Answer) -> Step<Answer> {
    Step { write: Write::Put(record), answer }
}

/// Claims the key, or returns what stands in the way.
pub fn acquire(found: Option<&Record>, now: StoreTime, message: &Acquire) -> Step<Acquired> {
    let barrier = found.and_then(|record| record.barrier_at(now)).copied();
    // When a key's earlier life is over, a new claim starts without that life's steps.
    let kept = || {
        let is_kept = |record: &&Record| !is_free(record, now) || planted!(OlderLifeReplays);
        let mut kept = found.filter(is_kept).and_then(|record| record.steps.clone());
        if planted!(OneStepExpires)
            && let Some(steps) = &mut kept
        {
            let retention = steps.retention;
            steps.list.retain(|step| step.began_at.after(retention) > now);
        }
        kept
    };
    let write = |attempt: Attempt, token: FencingToken, took_over: bool| {
        put(
            Record {
                fingerprint: message.fingerprint,
                attempt,
                token,
                barrier: barrier.map(Box::new),
                owner: message.owner,
                steps: kept(),
                state: State::InProgress { lease_until: now.after(message.lease), on_abandoned: message.on_abandoned },
            },
            Acquired::Claimed { attempt, token, took_over, steps: kept() },
        )
    };
    let claim = |attempt: Attempt, took_over: bool| match barrier {
        // This may be the withdrawn claim itself, or another claim sent before the withdrawal. Neither knows of the
        // barrier.
        Some(Barrier { withdrawn, .. })
            if message.past_withdrawal.as_deref() != Some(&withdrawn) && !planted!(WithdrawnClaimLands) =>
        {
            unchanged(Acquired::Withdrawn { owner: withdrawn })
        }
        _ => {
            let previous = found.map(|record| record.token).filter(|_| !planted!(TokenForgotten));
            write(attempt, FencingToken::of_claim(previous, now), took_over)
        }
    };
    let Some(record) = found.filter(|record| !is_free(record, now)) else {
        return claim(Attempt::FIRST, false);
    };
    if asks_otherwise(record, message) {
        return unchanged(Acquired::Mismatch);
    }
    match &record.state {
        // The same holder asks again because the answer to its claim was lost.
        State::InProgress { .. } if record.owner == message.owner => write(record.attempt, record.token, false),
        State::InProgress { .. } if planted!(ClaimedWhileHeld) => claim(record.attempt.next(), true),
        State::InProgress { lease_until, .. } if *lease_until > now => {
            unchanged(Acquired::InProgress { lease_left: lease_until.left(now) })
        }
        // The result of a step is unknown. The steps show this; the record's own state does not.
        State::InProgress { on_abandoned: OnAbandoned::Rerun | OnAbandoned::Resume, .. }
            if record.is_indeterminate(now) =>
        {
            unchanged(Acquired::Indeterminate { attempt: record.attempt, owner: record.owner })
        }
        State::InProgress { .. } if planted!(AttemptNotRaised) => claim(record.attempt, true),
        State::InProgress { on_abandoned: OnAbandoned::Rerun | OnAbandoned::Resume, .. } => {
            claim(record.attempt.next(), true)
        }
        State::InProgress { .. } if planted!(HeldTakenOver) => claim(record.attempt.next(), true),
        State::InProgress { on_abandoned: OnAbandoned::Hold, .. } => put(
            Record { state: State::Indeterminate, ..record.clone() },
            Acquired::Indeterminate { attempt: record.attempt, owner: record.owner },
        ),
        State::Completed { outcome, .. } => unchanged(Acquired::Completed { outcome: outcome.clone() }),
        State::Indeterminate => unchanged(Acquired::Indeterminate { attempt: record.attempt, owner: record.owner }),
        State::Released { .. } => claim(record.attempt.next(), false),
        // Handled above.
        State::Vacant { .. } => claim(Attempt::FIRST, false),
    }
}

/// Renews the holder's lease.
///
/// A lapsed lease that no other caller has taken over can still be renewed, even if the lapse made the key
/// *indeterminate*: see [`complete`].
pub fn renew(found: Option<&Record>, now: StoreTime, message: &Renew) -> Step<Renewed> {
    let owner = anyone_if(planted!(RenewByAnyone), found, message.owner);
    let Some(record) = owned(found, now, owner) else { return unchanged(Renewed::Lost) };
    let on_abandoned = match record.state {
        State::InProgress { on_abandoned, .. } => on_abandoned,
        State::Indeterminate => OnAbandoned::Hold,
        State::Completed { .. } | State::Released { .. } | State::Vacant { .. } => return unchanged(Renewed::Lost),
    };
    let state = State::InProgress { lease_until: now.after(message.lease), on_abandoned };
    put(Record { state, ..record.clone() }, Renewed::Renewed)
}

/// Stores the outcome.
///
/// The owner of a claim that lapsed into *indeterminate* is not stale: nobody has run the operation since, and nobody
/// knows better what happened. Until the key is resolved, its owner may complete, renew or release it.
pub fn complete(found: Option<&Record>, now: StoreTime, message: &Complete) -> Step<Completed> {
    match owned(found, now, anyone_if(planted!(CompleteByAnyone), found, message.owner)) {
        Some(Record { state: State::Completed { .. }, .. }) => unchanged(Completed::Stored),
        Some(record) if record.is_claim() => {
            put(record.completed(message.outcome.clone(), now, message.retention), Completed::Stored)
        }
        _ => unchanged(Completed::Lost),
    }
}

/// Releases the claim: nothing happened, and the next acquire wins.
pub fn release(found: Option<&Record>, now: StoreTime, message: &Release) -> Step<Released> {
    match owned(found, now, anyone_if(planted!(ReleaseByAnyone), found, message.owner)) {
        Some(_) if planted!(ReleaseLeavesTheRecord) => unchanged(Released::Released),
        Some(record) if record.is_claim() => match &record.steps {
            // An unsettled step outranks what the operation reports. Once it is settled, this lapsed claim leaves the
            // key free.
            Some(steps)
                if !planted!(DroppedStepReleased)
                    && let Some(step) = steps.unsettled(now) =>
            {
                let step = step.name.clone();
                let state = State::InProgress { lease_until: now, on_abandoned: OnAbandoned::Resume };
                put(Record { state, ..record.clone() }, Released::Unsettled { step })
            }
            _ => Step { write: freed(record, now), answer: Released::Released },
        },
        // The sender repeated its release.
        Some(Record { state: State::Released { .. }, .. }) => unchanged(Released::Released),
        _ => unchanged(Released::Lost),
    }
}

/// Withdraws a claim on which nothing has begun, and of which the sender does not know whether it reached the store.
///
/// Afterwards the claim is gone and can no longer take effect. A [`Barrier`] refuses it for
/// [`WITHDRAWAL_KEPT`](super::WITHDRAWAL_KEPT), whoever holds the key in that time. The barrier also refuses a
/// withdrawn takeover of a lapsed claim.
pub fn withdraw(found: Option<&Record>, now: StoreTime, message: &Withdraw) -> Step<Withdrawn> {
    let standing = found.and_then(|record| record.barrier_at(now));
    let barrier = Barrier::of_withdrawal(standing, message.owner, now);
    let free = |token: FencingToken| State::Vacant { until: barrier.until.max(token.passed_at()) };
    let put_barrier = Some(Box::new(barrier));
    let Some(record) = found.filter(|record| !is_free(record, now)) else {
        // If a record was here and expired, this clock has passed its token, so the token computed here is higher.
        let token = found.map_or_else(|| FencingToken::of_claim(None, now), |record| record.token);
        let vacant = Record {
            fingerprint: Fingerprint::of(b""),
            attempt: Attempt::FIRST,
            token,
            barrier: put_barrier,
            owner: message.owner,
            steps: None,
            state: free(token),
        };
        return put(vacant, Withdrawn);
    };
    let state = match &record.state {
        State::InProgress { .. } | State::Indeterminate if record.owner == message.owner => {
            released(record, now).unwrap_or_else(|| free(record.token))
        }
        // The record must outlive its barrier.
        State::Completed { outcome, expires_at } => {
            State::Completed { outcome: outcome.clone(), expires_at: barrier.until.max(*expires_at) }
        }
        other => other.clone(),
    };
    let state = match state {
        State::Released { expires_at } => State::Released { expires_at: barrier.until.max(expires_at) },
        other => other,
    };
    // A free key has no steps.
    let steps = record.steps.clone().filter(|_| !matches!(state, State::Vacant { .. }));
    put(Record { barrier: put_barrier, state, steps, ..record.clone() }, Withdrawn)
}

/// Removes the record, whatever its state.
pub fn remove(found: Option<&Record>, now: StoreTime, _: &Remove) -> Step<Removed> {
    match found {
        Some(record) if !is_free(record, now) => Step { write: free(record, now), answer: Removed::Removed },
        _ => unchanged(Removed::Absent),
    }
}

/// Makes the claim indeterminate at its holder's request.
pub fn hold(found: Option<&Record>, now: StoreTime, message: &Hold) -> Step<Held> {
    match owned(found, now, anyone_if(planted!(HoldByAnyone), found, message.owner)) {
        Some(record @ Record { state: State::InProgress { .. }, .. }) => {
            put(Record { state: State::Indeterminate, ..record.clone() }, Held::Held)
        }
        Some(Record { state: State::Indeterminate, .. }) => unchanged(Held::Held),
        _ => unchanged(Held::Lost),
    }
}

/// Settles an indeterminate key, as a reconciler or an operator decided.
pub fn resolve(found: Option<&Record>, now: StoreTime, message: &Resolve) -> Step<Resolved> {
    let Some(record) = found.filter(|record| {
        let indeterminate = record.is_indeterminate(now);
        // A decision about attempt 1 says nothing about attempt 2, nor about the first attempt of a later life of the
        // key.
        let is_meant = message.attempt.is_none_or(|attempt| attempt == record.attempt)
            && (planted!(LateWordTaken) || message.owner.is_none_or(|owner| owner == record.owner));
        indeterminate && (is_meant || planted!(ResolvesAnotherAttempt))
    }) else {
        return unchanged(Resolved::NotIndeterminate);
    };
    match &message.with {
        // The step's effect may have happened, and only a resolution of this step settles that.
        Resolution::Release if let Some(step) = record.steps.as_ref().and_then(|steps| steps.unsettled(now)) => {
            unchanged(Resolved::UnsettledStep { step: step.name.clone() })
        }
        Resolution::Release => Step { write: freed(record, now), answer: Resolved::Resolved },
        Resolution::Complete { outcome, retention } => {
            put(record.completed(outcome.clone(), now, *retention), Resolved::Resolved)
        }
    }
}

impl Record {
    /// Returns the record with its outcome. The record is kept at least as long as its barrier stands. If the clock was
    /// set back, the record is also kept until the clock has passed its token, so that the next claim gets a higher
    /// token.
    fn completed(&self, outcome: SealedOutcome, now: StoreTime, retention: Duration) -> Self {
        let expires_at = now.after(retention).max(self.token.passed_at());
        let expires_at = self.barrier_at(now).map_or(expires_at, |barrier| expires_at.max(barrier.until));
        Self { state: State::Completed { outcome, expires_at }, ..self.clone() }
    }

    /// Returns whether the key is claimed or indeterminate.
    fn is_claim(&self) -> bool {
        matches!(self.state, State::InProgress { .. } | State::Indeterminate)
    }
}

/// Frees a key whose operation may be tried again, and keeps its steps for the next claim.
fn freed(record: &Record, now: StoreTime) -> Write {
    match released(record, now) {
        Some(state) => Write::Put(Record { state, ..record.clone() }),
        None => free(record, now),
    }
}

/// Returns the state of a free key that keeps its steps, or `None` if there are no steps to keep.
fn released(record: &Record, now: StoreTime) -> Option<State> {
    let steps = record.steps.as_ref().filter(|steps| steps.is_worth_keeping() && !planted!(StepsForgottenAtRelease))?;
    let expires_at = now.after(steps.retention).max(record.token.passed_at());
    let expires_at = record.barrier_at(now).map_or(expires_at, |barrier| expires_at.max(barrier.until));
    Some(State::Released { expires_at })
}

/// Frees a key. The record stays while its barrier stands, and until the clock has passed its token: a clock that was
/// set back must not give the next claim a lower token.
fn free(record: &Record, now: StoreTime) -> Write {
    let barrier = record.barrier_at(now);
    let until = barrier.map_or(now, |barrier| barrier.until).max(record.token.passed_at());
    if until <= now || planted!(TokenForgotten) {
        return Write::Delete;
    }
    let barrier = barrier.copied().map(Box::new);
    let steps = record.steps.clone().filter(|_| planted!(OrphanLeft));
    Write::Put(Record { state: State::Vacant { until }, barrier, steps, ..record.clone() })
}

fn asks_otherwise(record: &Record, message: &Acquire) -> bool {
    let overlooked = match record.state {
        State::InProgress { .. } => planted!(FingerprintIgnoredInFlight),
        State::Released { .. } => planted!(ReleasedKeyTakesAnotherBody),
        State::Completed { .. } | State::Indeterminate | State::Vacant { .. } => {
            planted!(FingerprintIgnoredWhenCompleted)
        }
    };
    record.fingerprint != message.fingerprint && !overlooked
}

fn owned(found: Option<&Record>, now: StoreTime, owner: Owner) -> Option<&Record> {
    let refused = |record: &Record| planted!(LateOwnerRefused) && record.is_lapsed_hold(now);
    found.filter(|record| record.owner == owner && !is_free(record, now) && !refused(record))
}

/// Returns the owner that a step is checked against: the sender, unless the planted bug is active.
fn anyone_if(planted: bool, found: Option<&Record>, sender: Owner) -> Owner {
    found.filter(|_| planted).map_or(sender, |record| record.owner)
}

/// Returns whether the record leaves the key free to claim.
fn is_free(record: &Record, now: StoreTime) -> bool {
    matches!(record.state, State::Vacant { .. }) || is_expired(record, now)
}

fn is_expired(record: &Record, now: StoreTime) -> bool {
    !planted!(RetentionForgotten) && record.purge_at().is_some_and(|at| at <= now)
}

#[cfg(test)]
mod tests;
