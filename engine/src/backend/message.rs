//! The persistence messages and their answers: the whole protocol between the engine and a store.

use std::time::Duration;

use crate::record::{Attempt, FencingToken, Owner, SealedOutcome, StepName, Steps};
use crate::{Fingerprint, Key, OnAbandoned};

/// Claims a key, or returns what stands in the way. Lookup and claim are one atomic step.
///
/// ```
/// use std::time::Duration;
/// use oncekey::{Fingerprint, Key, OnAbandoned};
/// use oncekey::backend::Acquire;
/// use oncekey::record::Owner;
///
/// let message = Acquire {
///     key: Key::new("mail", 17)?,
///     fingerprint: Fingerprint::of(b"to: ada"),
///     owner: Owner::random(),
///     lease: Duration::from_secs(30),
///     on_abandoned: OnAbandoned::Rerun,
///     past_withdrawal: None,
/// };
/// # Ok::<(), oncekey::KeyError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acquire {
    /// The key to claim.
    pub key: Key,
    /// The fingerprint of the request.
    pub fingerprint: Fingerprint,
    /// The owner token of the new claim.
    pub owner: Owner,
    /// How long the claim holds unless it is renewed.
    pub lease: Duration,
    /// What a lapse of this claim means. The store keeps it with the claim.
    pub on_abandoned: OnAbandoned,
    /// The owner from an earlier [`Acquired::Withdrawn`]: it proves that this message was sent after that withdrawal.
    /// `None` at first. Boxed, because few messages have one and every message is moved often.
    pub past_withdrawal: Option<Box<Owner>>,
}

/// The answer to [`Acquire`].
///
/// ```
/// use oncekey::{Attempt, FencingToken};
/// use oncekey::backend::Acquired;
///
/// let token = FencingToken::new(1);
/// assert_ne!(Acquired::Mismatch, Acquired::Claimed { attempt: Attempt::FIRST, token, took_over: false, steps: None });
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acquired {
    /// The sender holds the claim.
    Claimed {
        /// How often the key has been claimed.
        attempt: Attempt,
        /// The fencing token of the claim.
        token: FencingToken,
        /// Whether the claim took over another holder's lapsed claim.
        took_over: bool,
        /// The steps of earlier attempts, read in the same atomic step.
        steps: Option<Box<Steps>>,
    },
    /// Another holder's claim is in progress.
    InProgress {
        /// How much of its lease is left.
        lease_left: Duration,
    },
    /// The operation was completed before.
    Completed {
        /// The outcome to replay.
        outcome: SealedOutcome,
    },
    /// The key was used for another request.
    Mismatch,
    /// The effect may or may not have happened.
    Indeterminate {
        /// The attempt whose outcome is unknown.
        attempt: Attempt,
        /// The holder of that claim.
        owner: Owner,
    },
    /// The key is free, but one of its claims was withdrawn recently and may still arrive. Send the message again, with
    /// this owner in [`Acquire::past_withdrawal`].
    Withdrawn {
        /// The owner of the withdrawn claim.
        owner: Owner,
    },
}

/// Renews the holder's lease.
///
/// ```
/// # use std::time::Duration;
/// # use oncekey::{Key, backend::Renew, record::Owner};
/// let message = Renew { key: Key::new("mail", 17)?, owner: Owner::random(), lease: Duration::from_secs(30) };
/// # Ok::<(), oncekey::KeyError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renew {
    /// The claimed key.
    pub key: Key,
    /// The claim's holder.
    pub owner: Owner,
    /// The new lease, counted from now.
    pub lease: Duration,
}

/// The answer to [`Renew`].
///
/// ```
/// # use oncekey::backend::Renewed;
/// assert_ne!(Renewed::Renewed, Renewed::Lost);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewed {
    /// The claim holds for another lease.
    Renewed,
    /// The sender does not hold the claim. Nothing was changed.
    Lost,
}

/// Stores the outcome.
///
/// ```
/// # use std::time::Duration;
/// # use oncekey::{Key, backend::Complete, record::{Owner, SealedOutcome}};
/// let key = Key::new("mail", 17)?;
/// let outcome = SealedOutcome::tombstone(&key);
/// let message = Complete { key, owner: Owner::random(), outcome, retention: Duration::from_secs(86_400) };
/// # Ok::<(), oncekey::KeyError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complete {
    /// The claimed key.
    pub key: Key,
    /// The claim's holder.
    pub owner: Owner,
    /// The outcome to replay.
    pub outcome: SealedOutcome,
    /// How long the record is kept, counted from now.
    pub retention: Duration,
}

/// The answer to [`Complete`].
///
/// ```
/// # use oncekey::backend::Completed;
/// assert_ne!(Completed::Stored, Completed::Lost);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completed {
    /// The outcome is stored and answers every retry.
    Stored,
    /// The sender does not hold the claim. Nothing was changed.
    Lost,
}

/// Releases the claim.
///
/// ```
/// # use oncekey::{Key, backend::Release, record::Owner};
/// let message = Release { key: Key::new("mail", 17)?, owner: Owner::random() };
/// # Ok::<(), oncekey::KeyError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// The claimed key.
    pub key: Key,
    /// The claim's holder.
    pub owner: Owner,
}

/// The answer to [`Release`].
///
/// ```
/// # use oncekey::backend::Released;
/// assert_ne!(Released::Released, Released::Lost);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Released {
    /// The claim is gone, and the next acquire wins. A record with steps keeps them and its fingerprint.
    Released,
    /// A step began and its result is unknown. The key is indeterminate until that step is resolved.
    Unsettled {
        /// The step.
        step: StepName,
    },
    /// The sender does not hold the claim. Nothing was changed.
    Lost,
}

/// Withdraws a claim that may or may not be in the store, and on which nothing has begun.
///
/// Afterwards the claim is gone **and can no longer take effect**, however late the network or the server delivers it.
/// See [`transition::withdraw`](crate::record::transition::withdraw).
///
/// ```
/// # use oncekey::{Key, backend::Withdraw, record::Owner};
/// let message = Withdraw { key: Key::new("mail", 17)?, owner: Owner::random() };
/// # Ok::<(), oncekey::KeyError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Withdraw {
    /// The key.
    pub key: Key,
    /// The owner of the claim.
    pub owner: Owner,
}

/// The answer to [`Withdraw`].
///
/// ```
/// # use oncekey::backend::Withdrawn;
/// let gone = Withdrawn;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Withdrawn;

/// Makes the claim indeterminate.
///
/// ```
/// # use oncekey::{Key, backend::Hold, record::Owner};
/// let message = Hold { key: Key::new("mail", 17)?, owner: Owner::random() };
/// # Ok::<(), oncekey::KeyError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// The claimed key.
    pub key: Key,
    /// The claim's holder.
    pub owner: Owner,
}

/// The answer to [`Hold`].
///
/// ```
/// # use oncekey::backend::Held;
/// assert_ne!(Held::Held, Held::Lost);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// The key is indeterminate until it is resolved.
    Held,
    /// The sender does not hold the claim. Nothing was changed.
    Lost,
}

/// Settles an indeterminate key.
///
/// ```
/// # use oncekey::{Attempt, Key, backend::{Resolution, Resolve}};
/// let message =
///     Resolve { key: Key::new("mail", 17)?, attempt: Some(Attempt::FIRST), owner: None, with: Resolution::Release };
/// # Ok::<(), oncekey::KeyError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolve {
    /// The key.
    pub key: Key,
    /// The attempt to settle; `None` for whichever is indeterminate.
    pub attempt: Option<Attempt>,
    /// The claim's holder, if known. A key released without steps restarts at the first attempt, so a late message
    /// could match a later claim with the same attempt number. An owner is never used again.
    pub owner: Option<Owner>,
    /// How to settle the key.
    pub with: Resolution,
}

/// How an indeterminate key is settled.
///
/// ```
/// # use oncekey::backend::Resolution;
/// assert_eq!(Resolution::Release, Resolution::Release);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolution {
    /// The effect happened, and this is its outcome.
    Complete {
        /// The outcome to replay.
        outcome: SealedOutcome,
        /// How long the record is kept, counted from now.
        retention: Duration,
    },
    /// The effect did not happen, and the key becomes free.
    Release,
}

/// The answer to [`Resolve`].
///
/// ```
/// # use oncekey::backend::Resolved;
/// assert_ne!(Resolved::Resolved, Resolved::NotIndeterminate);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolved {
    /// The key, or the step, is settled.
    Resolved,
    /// The key cannot be released, because the result of this step is unknown. Resolve the step first.
    UnsettledStep {
        /// The step.
        step: StepName,
    },
    /// The key, or that attempt of it, is not indeterminate. Nothing was changed.
    NotIndeterminate,
}

/// Reads one record.
///
/// ```
/// # use oncekey::{Key, backend::Lookup};
/// let message = Lookup { key: Key::new("mail", 17)? };
/// # Ok::<(), oncekey::KeyError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lookup {
    /// The key.
    pub key: Key,
}

/// Removes a record, whatever its state. This is a tool for operators: removing a claim lets its operation run again.
///
/// ```
/// # use oncekey::{Key, backend::Remove};
/// let message = Remove { key: Key::new("mail", 17)? };
/// # Ok::<(), oncekey::KeyError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remove {
    /// The key.
    pub key: Key,
}

/// The answer to [`Remove`].
///
/// ```
/// # use oncekey::backend::Removed;
/// assert_ne!(Removed::Removed, Removed::Absent);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    /// The record is gone.
    Removed,
    /// There was no record.
    Absent,
}

/// Reads records in the order of their stored keys.
///
/// ```
/// # use oncekey::backend::List;
/// let first_page = List { after: None, limit: 100 };
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List {
    /// The key at which the previous page ended.
    pub after: Option<Key>,
    /// The maximum number of records to return.
    pub limit: usize,
}

/// Removes expired records.
///
/// ```
/// # use oncekey::backend::Purge;
/// let one_batch = Purge { limit: 1_000 };
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Purge {
    /// The maximum number of records to remove in this step.
    pub limit: usize,
}

/// The answer to [`Purge`].
///
/// ```
/// # use oncekey::backend::Purged;
/// let nothing_left = Purged { removed: 12, more: false };
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Purged {
    /// How many records were removed.
    pub removed: usize,
    /// Whether the limit was reached, so that more records may be left.
    pub more: bool,
}

/// Counts the records.
///
/// ```
/// # use oncekey::backend::Stats;
/// let message = Stats;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats;

/// The answer to [`Stats`]. Expired records count until they are purged.
///
/// ```
/// # use oncekey::backend::StoreStats;
/// assert_eq!(StoreStats::default().completed, 0);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Claims, including lapsed ones that no caller has taken over.
    pub in_progress: u64,
    /// Stored outcomes.
    pub completed: u64,
    /// Indeterminate keys. Claims that lapsed with an unsettled step count as in progress.
    pub indeterminate: u64,
    /// Keys that were released with steps, which are kept for the next attempt.
    pub released: u64,
}

/// Reports when a key is no longer in progress.
///
/// ```
/// # use std::time::Duration;
/// # use oncekey::{Key, backend::Watch};
/// let message = Watch { key: Key::new("mail", 17)?, limit: Duration::from_secs(10) };
/// # Ok::<(), oncekey::KeyError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watch {
    /// The key.
    pub key: Key,
    /// How long the answer is useful. The engine drops the backend's future after this time, so a backend need not
    /// measure it. A backend that blocks in its own read uses it as that read's limit.
    pub limit: Duration,
}

/// The answer to [`Watch`]: a hint to ask again. It may arrive too early or too often, but must not be missing.
///
/// ```
/// # use oncekey::backend::Changed;
/// let hint = Changed;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Changed;
