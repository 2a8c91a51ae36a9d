//! From a decision of the engine to a disposition.

use std::fmt::Display;
use std::time::Duration;

use super::{Disposition, JobError};
use crate::{Error, Outcome, RunError};

/// What becomes of a message whose key is indeterminate: an earlier attempt may or may not have had its effect.
///
/// ```
/// use oncekey::consumer::OnIndeterminate;
///
/// assert_eq!(OnIndeterminate::default(), OnIndeterminate::DeadLetter);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnIndeterminate {
    /// It is put aside with that reason. The key stays indeterminate until it is resolved. The default.
    #[default]
    DeadLetter,
    /// It comes again after this time, until a reconciler or an operator has resolved the key.
    RetryLater(Duration),
}

/// How a consumer maps the engine's decisions to [`Disposition`]s.
///
/// | decision | disposition |
/// |---|---|
/// | ran, or replayed | ack |
/// | in flight elsewhere | retry later |
/// | mismatch; a message from which no key or fingerprint can be read | dead letter |
/// | the store is away, a limit is reached, the engine is ending | retry later |
/// | the job failed or panicked | retry later with a growing delay, after `max_attempts` a dead letter with its error |
/// | indeterminate | as [`OnIndeterminate`] says |
///
/// Only tries of the job count as attempts: those that failed, and those whose process died with the claim in hand,
/// which the store counts by the claim's attempt number. A message that waits for its store is never given up.
///
/// ```
/// use std::time::Duration;
/// use oncekey::consumer::{Disposition, JobError, RetryPolicy};
/// use oncekey::{Error, Outcome, RunError};
///
/// let policy = RetryPolicy { max_attempts: 3, ..RetryPolicy::default() };
/// type Decision = Result<Outcome<u32>, RunError<JobError<std::io::Error>>>;
///
/// let ran: Decision = Ok(Outcome::Ran(1));
/// assert_eq!(policy.disposition(&ran, 0), Disposition::Ack);
/// let mismatch: Decision = Err(Error::Mismatch.into());
/// assert!(matches!(policy.disposition(&mismatch, 0), Disposition::DeadLetter { .. }));
/// let failed: Decision = Err(RunError::Operation(JobError::Failed(std::io::Error::other("no route"))));
/// assert!(matches!(policy.disposition(&failed, 1), Disposition::RetryLater { failed: true, .. }));
/// assert_eq!(policy.disposition(&failed, 2), Disposition::DeadLetter { reason: "no route".into() });
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// How often the job may be tried for one message. Default: 5.
    pub max_attempts: u32,
    /// How long after its first failure a message comes again; doubled with each further one. Default: 1 s.
    pub first_delay: Duration,
    /// The longest of these delays. Default: 60 s.
    pub max_delay: Duration,
    /// The longest delay for a message whose key is in flight elsewhere; it is shorter where the other's lease is.
    /// Default: 1 s.
    pub in_flight_delay: Duration,
    /// How long a consumer takes no further messages after it found the store away. Default: 2 s.
    pub store_away_delay: Duration,
    /// See [`OnIndeterminate`].
    pub on_indeterminate: OnIndeterminate,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: 5,
            first_delay: Duration::from_secs(1),
            max_delay: Duration::from_secs(60),
            in_flight_delay: Duration::from_secs(1),
            store_away_delay: Duration::from_secs(2),
            on_indeterminate: OnIndeterminate::default(),
        }
    }
}

impl RetryPolicy {
    /// The disposition for what the engine decided about a message whose job failed `failures` times before.
    pub fn disposition<T, E: Display>(
        &self,
        decision: &Result<Outcome<T>, RunError<JobError<E>>>,
        failures: u32,
    ) -> Disposition {
        let dead = |reason: &dyn Display| Disposition::DeadLetter { reason: reason.to_string() };
        match decision {
            Ok(_) => Disposition::Ack,
            Err(RunError::Operation(JobError::Failed(error))) => self.after_failure(error, failures),
            Err(RunError::Operation(given_up @ JobError::GivenUp { .. })) => dead(given_up),
            Err(RunError::Engine(error)) => match error {
                // It was done, and its outcome was too large to keep: there is nothing left to do.
                Error::OutcomeNotKept => Disposition::Ack,
                Error::InProgress { lease_left } => again(self.in_flight_delay.min(*lease_left)),
                Error::Panicked => self.after_failure(error, failures),
                Error::Indeterminate { .. } => match self.on_indeterminate {
                    OnIndeterminate::DeadLetter => dead(error),
                    OnIndeterminate::RetryLater(after) => again(after),
                },
                // None of them becomes another by waiting.
                Error::Mismatch | Error::Corrupt(_) | Error::Fingerprint(_) | Error::Unserializable(_) => dead(error),
                // The store is away, or says so by its state: nothing ran, or what ran left its claim to its lease, and
                // the next delivery is told by the key.
                Error::Store(_)
                | Error::Overloaded { .. }
                | Error::ShuttingDown
                | Error::Stopped
                | Error::OutcomeNotStored(_)
                | Error::CommitUnknown(_)
                | Error::ClaimLost => again(self.store_away_delay),
                // A fault of the setup, which no message should pay for.
                Error::NoSuchTransaction { .. } => again(self.max_delay),
            },
        }
    }

    /// The same, where the job itself says which of its errors no further try helps.
    pub(super) fn disposition_unless_poison<T, E: Display>(
        &self,
        decision: &Result<Outcome<T>, RunError<JobError<E>>>,
        failures: u32,
        is_poison: impl FnOnce(&E) -> bool,
    ) -> Disposition {
        match decision {
            Err(RunError::Operation(JobError::Failed(error))) if is_poison(error) => {
                Disposition::DeadLetter { reason: error.to_string() }
            }
            _ => self.disposition(decision, failures),
        }
    }

    fn after_failure(&self, error: &dyn Display, failures: u32) -> Disposition {
        if failures.saturating_add(1) >= self.max_attempts {
            return Disposition::DeadLetter { reason: error.to_string() };
        }
        let factor = 2_u32.saturating_pow(failures);
        Disposition::RetryLater { after: self.first_delay.saturating_mul(factor).min(self.max_delay), failed: true }
    }
}

/// Whether the decision says that the store can't be asked now, whoever asks.
pub(super) fn is_store_away<T, E>(decision: &Result<T, RunError<E>>) -> bool {
    matches!(
        decision,
        Err(RunError::Engine(Error::Store(_) | Error::OutcomeNotStored(_) | Error::Overloaded { .. } | Error::Stopped))
    )
}

fn again(after: Duration) -> Disposition {
    Disposition::RetryLater { after, failed: false }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::StoreError;
    use crate::{Attempt, CorruptOutcome};

    type Decision = Result<Outcome<u32>, RunError<JobError<&'static str>>>;

    fn engine(error: Error) -> Decision {
        Err(RunError::Engine(error))
    }

    /// Every decision that the engine can come to, and where it leads.
    #[test]
    fn j02_one_decision_maps_to_one_disposition() {
        let policy = RetryPolicy::default();
        let of = |decision: Decision| policy.disposition(&decision, 0);
        let retry = |after| Disposition::RetryLater { after, failed: false };
        assert_eq!(of(Ok(Outcome::Ran(1))), Disposition::Ack);
        assert_eq!(of(Ok(Outcome::Replayed(1))), Disposition::Ack);
        assert_eq!(of(engine(Error::OutcomeNotKept)), Disposition::Ack);

        let short = Duration::from_millis(300);
        assert_eq!(of(engine(Error::InProgress { lease_left: short })), retry(short));
        assert_eq!(
            of(engine(Error::InProgress { lease_left: Duration::from_secs(30) })),
            retry(Duration::from_secs(1))
        );

        for error in [
            Error::Store(StoreError::unavailable("away")),
            Error::Store(StoreError::unknown("silence")),
            Error::OutcomeNotStored(StoreError::unavailable("away")),
            Error::ClaimLost,
            Error::Overloaded { what: "calls", limit: 1 },
            Error::ShuttingDown,
            Error::Stopped,
        ] {
            assert_eq!(of(engine(error.clone())), retry(policy.store_away_delay), "{error}");
        }
        let misbuilt = Error::NoSuchTransaction { wanted: "PgConnection", what: "it has none".into() };
        assert_eq!(of(engine(misbuilt)), retry(policy.max_delay));

        for error in [
            Error::Mismatch,
            Error::Corrupt(CorruptOutcome::TooShort(0)),
            Error::Fingerprint("no JSON".into()),
            Error::Unserializable("no JSON".into()),
            Error::Indeterminate { attempt: Attempt::FIRST },
        ] {
            assert_eq!(of(engine(error.clone())), Disposition::DeadLetter { reason: error.to_string() });
        }
        let patient = RetryPolicy { on_indeterminate: OnIndeterminate::RetryLater(short), ..policy.clone() };
        let held: Decision = engine(Error::Indeterminate { attempt: Attempt::FIRST });
        assert_eq!(patient.disposition(&held, 0), retry(short));
    }

    #[test]
    fn j02_a_failing_job_is_retried_up_to_its_attempts() {
        let policy = RetryPolicy { max_attempts: 4, max_delay: Duration::from_secs(3), ..RetryPolicy::default() };
        let failed = Err::<Outcome<u32>, _>(RunError::Operation(JobError::Failed("no route")));
        let panicked: Decision = engine(Error::Panicked);
        for (failures, delay) in [(0, 1), (1, 2), (2, 3)] {
            let again = Disposition::RetryLater { after: Duration::from_secs(delay), failed: true };
            assert_eq!(policy.disposition(&failed, failures), again);
            assert_eq!(policy.disposition(&panicked, failures), again);
        }
        assert_eq!(policy.disposition(&failed, 3), Disposition::DeadLetter { reason: "no route".into() });
        assert_eq!(policy.disposition(&panicked, 3), Disposition::DeadLetter { reason: Error::Panicked.to_string() });
        let endless = RetryPolicy { max_attempts: u32::MAX, ..policy };
        let capped = Disposition::RetryLater { after: Duration::from_secs(3), failed: true };
        assert_eq!(endless.disposition(&failed, u32::MAX - 2), capped);
    }
}
