//! The mapping from the engine's decision to a disposition.

use std::fmt::Display;
use std::time::Duration;

use super::backoff;
use super::fault::Affects;
use super::guard::{guard, text};
use super::{Disposition, JobError};
use crate::{Error, Outcome, RunError};

/// What happens to a message whose key is indeterminate: an earlier attempt may or may not have had its effect.
///
/// ```
/// use oncekey::consumer::OnIndeterminate;
///
/// assert_eq!(OnIndeterminate::default(), OnIndeterminate::DeadLetter);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnIndeterminate {
    /// The message becomes a dead letter with that reason. The key stays indeterminate until it is resolved. The
    /// default.
    #[default]
    DeadLetter,
    /// The message is retried after this time, until a reconciler or an operator has resolved the key.
    RetryLater(Duration),
}

/// Maps the engine's decisions to [`Disposition`]s.
///
/// | decision | disposition |
/// |---|---|
/// | ran, or replayed, or finished with an outcome that can't be read as the current type | ack |
/// | in flight elsewhere, or the claim was lost | retry later |
/// | mismatch; a damaged record; a message from which no key or fingerprint can be read | dead letter |
/// | the job failed or panicked, or its commit was refused | retry later with an increasing delay; after `max_attempts`, a dead letter with its error |
/// | its key or scope is at a limit | retry later with an increasing delay, never a dead letter |
/// | the store is unavailable, or the engine is at its limit | retry later; meanwhile, the processor takes no new messages |
/// | the engine is shutting down | given back |
/// | indeterminate | as [`OnIndeterminate`] says |
///
/// A failure of the job counts as an attempt of its message and does not pause the processor. So does a limit of one
/// key or scope, but that never uses the last attempt. An attempt whose process died while it held the claim also
/// counts: the store keeps that count as the claim's attempt number. Waiting for the store never exhausts the attempts.
///
/// Delays have jitter: each is drawn at random between its value and twice that, and never exceeds the maximum.
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
    /// How many times the job may be attempted for one message. Default: 5.
    pub max_attempts: u32,
    /// The shortest delay after the first failure. It doubles with each further failure. Default: 1 s.
    pub first_delay: Duration,
    /// The longest of these delays. Default: 60 s.
    pub max_delay: Duration,
    /// The longest delay for a message whose key is in flight elsewhere. The delay is shorter if the other caller's
    /// lease ends sooner. Default: 1 s.
    pub in_flight_delay: Duration,
    /// How long a consumer takes no new messages after it has found the store unavailable. Default: 2 s.
    pub store_away_delay: Duration,
    /// What happens to a message whose key is indeterminate.
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
    /// Returns the disposition for the engine's decision about a message whose job has failed `failures` times before.
    pub fn disposition<T, E: Display>(
        &self,
        decision: &Result<Outcome<T>, RunError<JobError<E>>>,
        failures: u32,
    ) -> Disposition {
        self.verdict(decision, failures, |_| false).disposition
    }

    /// Like [`disposition`](Self::disposition), and also returns what the decision affects. `is_poison` tests for
    /// errors that no retry resolves.
    pub(super) fn verdict<T, E: Display>(
        &self,
        decision: &Result<Outcome<T>, RunError<JobError<E>>>,
        failures: u32,
        is_poison: impl FnOnce(&E) -> bool,
    ) -> Verdict {
        let (affects, reason): (Affects, &dyn Display) = match decision {
            Ok(_) => (Affects::Nobody, &""),
            // A poison test that panics says nothing about the error.
            Err(RunError::Operation(JobError::Failed(error))) if guard(|| is_poison(error)) == Ok(true) => {
                (Affects::Message, error)
            }
            Err(RunError::Operation(JobError::Failed(error))) => (Affects::Attempt, error),
            Err(RunError::Operation(given_up @ JobError::GivenUp { .. })) => (Affects::Message, given_up),
            Err(RunError::Engine(error)) => (Affects::of(error), error),
        };
        let is_finished_before = matches!(decision, Ok(Outcome::Replayed(_)) | Err(_)) && affects == Affects::Nobody;
        Verdict { disposition: self.for_affected(affects, decision, reason, failures), affects, is_finished_before }
    }

    fn for_affected<T, E>(
        &self,
        affects: Affects,
        decision: &Result<T, RunError<E>>,
        reason: &dyn Display,
        failures: u32,
    ) -> Disposition {
        match (decision, self.on_indeterminate) {
            (Err(RunError::Engine(Error::InProgress { lease_left })), _) => {
                return again(self.in_flight_delay.min(*lease_left));
            }
            (Err(RunError::Engine(Error::Indeterminate { .. })), OnIndeterminate::RetryLater(after)) => {
                return again(after);
            }
            _ => {}
        }
        match affects {
            Affects::Nobody => Disposition::Ack,
            Affects::Message => Disposition::DeadLetter { reason: text(reason) },
            Affects::Attempt => self.after_failure(reason, failures),
            Affects::Limit => self.after_limit(failures),
            Affects::Key => again(backoff::spread(self.first_delay)),
            Affects::Store => again(self.store_away_delay),
            Affects::Shutdown => Disposition::give_back(),
        }
    }

    fn after_failure(&self, error: &dyn Display, failures: u32) -> Disposition {
        if failures.saturating_add(1) >= self.max_attempts {
            return Disposition::DeadLetter { reason: text(error) };
        }
        let after = backoff::delay(self.first_delay, self.max_delay, failures);
        Disposition::RetryLater { after, failed: true }
    }

    /// The failure counts, so the delay grows. It never uses the last attempt: a busy scope makes no dead letter.
    fn after_limit(&self, failures: u32) -> Disposition {
        let after = backoff::delay(self.first_delay, self.max_delay, failures);
        Disposition::RetryLater { after, failed: failures.saturating_add(1) < self.max_attempts }
    }
}

/// How a message is settled, and what else its decision affects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) disposition: Disposition,
    pub(super) affects: Affects,
    /// The job ran in an earlier delivery, not in this one.
    pub(super) is_finished_before: bool,
}

impl Verdict {
    /// The verdict for a message that never reaches the job.
    pub(super) fn dead(reason: String) -> Self {
        let disposition = Disposition::DeadLetter { reason };
        Self { disposition, affects: Affects::Message, is_finished_before: false }
    }
}

fn again(after: Duration) -> Disposition {
    Disposition::RetryLater { after: backoff::bounded(after), failed: false }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::StoreError;
    use crate::node::ALL_CALLS;
    use crate::{Attempt, CorruptOutcome};

    type Decision = Result<Outcome<u32>, RunError<JobError<&'static str>>>;

    fn engine(error: Error) -> Decision {
        Err(RunError::Engine(error))
    }

    /// Covers every decision of the engine.
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
        assert!(matches!(of(engine(Error::ClaimLost)), Disposition::RetryLater { failed: false, .. }));
        for error in [Error::ShuttingDown, Error::Stopped] {
            assert_eq!(of(engine(error)), Disposition::give_back());
        }
        for error in [
            Error::Mismatch,
            Error::Corrupt(CorruptOutcome::TooShort(0)),
            Error::Store(StoreError::corrupt("no record")),
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
    fn j09_only_a_problem_of_the_whole_store_pauses_and_counts_for_nobody() {
        let policy = RetryPolicy::default();
        let verdict = |error: &Error| policy.verdict(&engine(error.clone()), 0, |_| false);
        for error in [
            Error::Store(StoreError::unavailable("away")),
            Error::Store(StoreError::unknown("silence")),
            Error::Store(StoreError::Full("no room".into())),
            Error::Store(StoreError::ReadOnly("a replica".into())),
            Error::Store(StoreError::Replaced("another file".into())),
            Error::Store(StoreError::Overloaded("a batch".into())),
            Error::OutcomeNotStored(StoreError::unavailable("away")),
            Error::CommitUnknown(StoreError::unknown("silence")),
            Error::Overloaded { what: ALL_CALLS, limit: 1 },
        ] {
            let Verdict { disposition, affects, .. } = verdict(&error);
            let again = Disposition::RetryLater { after: policy.store_away_delay, failed: false };
            assert_eq!((disposition, affects.pauses()), (again, true), "{error}");
        }
        for error in [
            Error::Panicked,
            Error::NoSuchTransaction { wanted: "PgConnection", what: "it has none".into() },
            Error::CommitRefused("a constraint".into()),
            Error::Store(StoreError::Unsupported("transactions")),
            Error::OutcomeNotStored(StoreError::TransactionEnded),
            Error::OutcomeNotStored(StoreError::corrupt("no record")),
        ] {
            let Verdict { disposition, affects, .. } = verdict(&error);
            assert!(matches!(disposition, Disposition::RetryLater { failed: true, .. }), "{error}: {disposition}");
            assert!(!affects.pauses(), "{error}");
            let last = policy.disposition(&engine(error.clone()), policy.max_attempts - 1);
            assert_eq!(last, Disposition::DeadLetter { reason: error.to_string() });
        }
        for what in ["calls of one scope on this arbiter", "callers waiting for one key"] {
            let at_limit = Error::Overloaded { what, limit: 1 };
            let Verdict { disposition, affects, .. } = verdict(&at_limit);
            assert!(matches!(disposition, Disposition::RetryLater { failed: true, .. }), "{disposition}");
            assert!(!affects.pauses());
            // The message waits and keeps its last attempt.
            let last = policy.disposition(&engine(at_limit), policy.max_attempts - 1);
            assert!(matches!(last, Disposition::RetryLater { failed: false, .. }), "{last}");
        }
        for error in [Error::ClaimLost, Error::Mismatch, Error::Store(StoreError::corrupt("no record"))] {
            assert!(!verdict(&error).affects.pauses(), "{error}");
        }
    }

    #[test]
    fn j02_a_failing_job_is_retried_up_to_its_attempts() {
        let policy = RetryPolicy { max_attempts: 4, max_delay: Duration::from_secs(3), ..RetryPolicy::default() };
        let failed = Err::<Outcome<u32>, _>(RunError::Operation(JobError::Failed("no route")));
        let panicked: Decision = engine(Error::Panicked);
        let is_within = |disposition: &Disposition, (least, longest): (u64, u64)| {
            let range = Duration::from_millis(least)..=Duration::from_millis(longest);
            matches!(disposition, Disposition::RetryLater { after, failed: true } if range.contains(after))
        };
        for (failures, delay) in [(0, (1_000, 2_000)), (1, (1_500, 3_000)), (2, (1_500, 3_000))] {
            assert!(is_within(&policy.disposition(&failed, failures), delay));
            assert!(is_within(&policy.disposition(&panicked, failures), delay));
        }
        assert_eq!(policy.disposition(&failed, 3), Disposition::DeadLetter { reason: "no route".into() });
        assert_eq!(policy.disposition(&panicked, 3), Disposition::DeadLetter { reason: Error::Panicked.to_string() });
        let endless = RetryPolicy { max_attempts: u32::MAX, ..policy };
        assert!(is_within(&endless.disposition(&failed, u32::MAX - 2), (1_500, 3_000)));
    }
}
