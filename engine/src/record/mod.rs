//! The record of a key and its life cycle: what a store keeps, and the steps that change it.
//!
//! ```text
//!            acquire                      complete
//!  absent ───────────▶ in progress ───────────────────▶ completed ──retention──▶ absent
//!     ▲                 │  ▲    │ hold, or lease lapsed     ▲
//!     └──── release ────┘  │    └──────────▶ indeterminate ─┘ resolve
//!                     renew (heartbeat)            └── resolve(release) ──▶ absent
//! ```
//!
//! The steps in [`transition`] are pure functions. Each takes the record that the store found, and returns what to
//! write and what to answer. A store that can run them under a lock (the memory backend under a shard's lock, SQLite
//! inside a write transaction) needs no other logic. A store with its own steps (a Redis script) must behave the same,
//! and the [conformance suite](crate::conformance) checks it.

mod exact;
mod outcome;
mod steps;
pub mod transition;

pub use outcome::{Binding, CorruptOutcome, Payload, PayloadKind, SealedOutcome};
pub use steps::{Progress, StepName, StepNameError, StepRecord, StepRun, Steps};

use std::fmt;
use std::time::Duration;

use crate::{Fingerprint, OnAbandoned, chance};

/// A point in time, in milliseconds of the store's clock. Only differences count, so each store chooses its own origin.
///
/// ```
/// use std::time::Duration;
/// use oncekey::record::StoreTime;
///
/// let now = StoreTime::from_millis(1_000);
/// let lapses = now.after(Duration::from_secs(30));
/// assert_eq!(lapses.left(now), Duration::from_secs(30));
/// assert_eq!(now.left(lapses), Duration::ZERO);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreTime(u64);

impl StoreTime {
    /// The latest representable time. It fits a signed 64-bit column.
    pub const END: Self = Self(i64::MAX as u64);

    /// Returns the point at `millis` milliseconds of the store's clock.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Returns this point in milliseconds.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// Returns the point `duration` later, rounded up to whole milliseconds and capped at [`END`](Self::END).
    pub fn after(self, duration: Duration) -> Self {
        let millis = u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(millis)).min(Self::END)
    }

    /// Returns the time from `now` until this point, or zero if the point has passed.
    pub fn left(self, now: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(now.0))
    }
}

/// How often an operation has been claimed: 1 for a key's first claim, and one more for each claim that takes over a
/// lapsed one or continues a key released with steps. It restarts at 1 when the key becomes free without steps, and
/// when its record expires or is removed.
///
/// An attempt above 1 tells the operation that an earlier attempt may have had its effect. To fence off a stale holder,
/// use the [`FencingToken`], which never goes back.
///
/// ```
/// use oncekey::Attempt;
///
/// assert_eq!(Attempt::FIRST.next(), Attempt::new(2));
/// assert_eq!(Attempt::new(2).to_string(), "2");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attempt(u64);

impl Attempt {
    /// The first claim of a key.
    pub const FIRST: Self = Self(1);

    /// Wraps an attempt number read from a store.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Returns the number: 1, 2, 3, …
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Returns the attempt of the claim that takes this one over.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A number that rises with every claim of a key and never goes back, even after the key was released, resolved,
/// removed or purged.
///
/// Pass it to the services that the operation calls. A service that remembers the highest token it has seen can refuse
/// a late call from a holder that has lost its claim.
///
/// The token follows the store's clock. It is the store's time in microseconds, or one more than the token of the
/// record that the claim replaces, whichever is higher. Only tokens of the same key can be compared.
///
/// ```
/// use oncekey::FencingToken;
/// use oncekey::record::StoreTime;
///
/// let first = FencingToken::of_claim(None, StoreTime::from_millis(1_000));
/// assert_eq!(first.get(), 1_000_000);
/// // A clock that was set back does not take the token back.
/// assert!(FencingToken::of_claim(Some(first), StoreTime::from_millis(5)) > first);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FencingToken(u64);

impl FencingToken {
    /// The token of records written before tokens existed, and of runs without a claim. It is lower than any other
    /// token.
    pub const ZERO: Self = Self(0);

    /// Wraps a token read from a store.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Returns the number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Returns the token of a claim made at `now` that replaces a record with the token `previous`.
    #[must_use]
    pub fn of_claim(previous: Option<Self>, now: StoreTime) -> Self {
        let by_clock = now.as_millis().saturating_mul(1_000);
        // Every store can keep a signed 64-bit number.
        Self(previous.map_or(0, |previous| previous.0.saturating_add(1)).max(by_clock).min(i64::MAX as u64))
    }

    /// Returns the first time at which the clock alone gives a higher token.
    fn passed_at(self) -> StoreTime {
        StoreTime(self.0 / 1_000 + 1)
    }
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The owner token of a claim's holder: 128 random bits, new for every claim. Each later step must name it.
///
/// ```
/// use oncekey::record::Owner;
///
/// assert_ne!(Owner::random(), Owner::random());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Owner([u8; Self::LEN]);

impl Owner {
    /// The length in bytes.
    pub const LEN: usize = 16;

    /// Returns a new random owner.
    pub fn random() -> Self {
        Self(chance::bits())
    }

    /// Returns the bits, as a store keeps them.
    pub const fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// Restores an owner from its stored bits.
    ///
    /// ```
    /// # use oncekey::record::Owner;
    /// let owner = Owner::random();
    /// assert_eq!(Owner::from_bytes(*owner.as_bytes()), owner);
    /// ```
    pub const fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Owner({:032x})", u128::from_be_bytes(self.0))
    }
}

/// The record that a store keeps for one key.
///
/// ```
/// use std::time::Duration;
/// use oncekey::{Attempt, FencingToken, Fingerprint, OnAbandoned};
/// use oncekey::record::{Owner, Record, State, StoreTime};
///
/// let record = Record {
///     fingerprint: Fingerprint::of(b"order 17"),
///     attempt: Attempt::FIRST,
///     token: FencingToken::new(1),
///     barrier: None,
///     owner: Owner::random(),
///     steps: None,
///     state: State::InProgress { lease_until: StoreTime::from_millis(30_000), on_abandoned: OnAbandoned::Rerun },
/// };
/// assert_eq!(record.clone().at(StoreTime::from_millis(1_000)), Some(record));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The fingerprint of the first caller's request.
    pub fingerprint: Fingerprint,
    /// The number of the latest claim.
    pub attempt: Attempt,
    /// The fencing token of the latest claim.
    pub token: FencingToken,
    /// A barrier against a withdrawn claim that may still arrive at the store. Boxed, because few records have one.
    pub barrier: Option<Box<Barrier>>,
    /// The holder of the latest claim. It stays after completion, so that a holder that repeats its step after a lost
    /// answer learns that the step is done.
    pub owner: Owner,
    /// The operation's steps. Boxed, because most operations have none.
    pub steps: Option<Box<Steps>>,
    /// Where the record is in its life cycle.
    pub state: State,
}

/// Keeps a withdrawn claim from taking effect when it arrives late.
///
/// While a barrier stands, a claim succeeds only if its [`Acquire`](crate::backend::Acquire) names the withdrawn owner.
/// A claim sent before the withdrawal cannot name it, so the store refuses it however late it arrives. Some stores
/// claim by conditional writes: an insert where there is no row, or an update of an unchanged row. There, the record's
/// existence and the barrier have the same effect, because they change what such a write compares.
///
/// ```
/// use oncekey::record::{Barrier, Owner, StoreTime};
///
/// let barrier = Barrier { withdrawn: Owner::random(), until: StoreTime::from_millis(600_000) };
/// # let _ = barrier;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Barrier {
    /// What a claim must name: the owner of the withdrawn claim. Where another barrier already stood, this is a digest
    /// of that barrier's name and the owner. Otherwise a withdrawal that arrives twice could restore a name that a
    /// claim withdrawn in between was sent with.
    pub withdrawn: Owner,
    /// When the barrier ends. No network and no server delays a command for longer than [`WITHDRAWAL_KEPT`].
    pub until: StoreTime,
}

impl Barrier {
    /// Returns the barrier that a withdrawal of `owner`'s claim leaves where the barrier `standing` already exists.
    fn of_withdrawal(standing: Option<&Self>, owner: Owner, now: StoreTime) -> Self {
        let until = now.after(WITHDRAWAL_KEPT);
        match standing {
            Some(standing) if standing.withdrawn != owner => {
                let both = [*standing.withdrawn.as_bytes(), *owner.as_bytes()].concat();
                let mut name = [0; Owner::LEN];
                name.copy_from_slice(&Fingerprint::of(&both).as_bytes()[..Owner::LEN]);
                Self { withdrawn: Owner::from_bytes(name), until: until.max(standing.until) }
            }
            standing => Self { withdrawn: owner, until: standing.map_or(until, |standing| until.max(standing.until)) },
        }
    }
}

/// How long the store refuses a withdrawn claim.
pub const WITHDRAWAL_KEPT: Duration = Duration::from_secs(10 * 60);

/// Where a [`Record`] is in its life cycle. An absent key has no record.
///
/// ```
/// use oncekey::record::{State, StoreTime};
///
/// assert_eq!(State::Indeterminate.name(), "indeterminate");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// A holder has claimed the key.
    InProgress {
        /// When the lease lapses.
        lease_until: StoreTime,
        /// What a lapse of this claim means. The caller that made the claim decides, because nobody else knows whether
        /// its operation may run twice.
        on_abandoned: OnAbandoned,
    },
    /// The outcome is known and answers every retry.
    Completed {
        /// The outcome to replay.
        outcome: SealedOutcome,
        /// When the retention ends.
        expires_at: StoreTime,
    },
    /// The effect may or may not have happened. Only a reconciler or an operator can settle the key. The record never
    /// expires.
    Indeterminate,
    /// The key was released, and its steps are kept for the next claim. The same request can claim the key; any other
    /// request is a mismatch.
    Released {
        /// When the retention ends, counted from the last change.
        expires_at: StoreTime,
    },
    /// The key is free. The store keeps the record for a short time, for its [barrier](Barrier) or its token.
    /// Inspection does not show it.
    Vacant {
        /// When the store may delete the record.
        until: StoreTime,
    },
}

impl State {
    /// Returns the state's name, as lists and logs show it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::InProgress { .. } => "in progress",
            Self::Completed { .. } => "completed",
            Self::Indeterminate => "indeterminate",
            Self::Released { .. } => "released",
            Self::Vacant { .. } => "vacant",
        }
    }
}

/// How long a store keeps a lapsed claim that may be rerun and that no caller takes over, so that the next claim still
/// learns its attempt.
pub const ABANDONED_CLAIM_KEPT: Duration = Duration::from_secs(24 * 60 * 60);

impl Record {
    /// Returns when the record expires by itself, or `None` if a reconciler or an operator must settle it.
    ///
    /// A store that purges by an index keeps this value beside the record.
    pub fn purge_at(&self) -> Option<StoreTime> {
        match &self.state {
            State::Completed { expires_at: at, .. }
            | State::Released { expires_at: at }
            | State::Vacant { until: at } => Some(*at),
            // The key is indeterminate, or becomes so when its lease lapses.
            _ if self.steps.as_ref().is_some_and(|steps| steps.may_be_unsettled()) => None,
            State::InProgress { lease_until, on_abandoned: OnAbandoned::Rerun | OnAbandoned::Resume } => {
                // Keep the record until its barrier ends and the clock has passed its token.
                let retention = self.steps.as_ref().map_or(ABANDONED_CLAIM_KEPT, |steps| steps.retention);
                let kept = lease_until.after(ABANDONED_CLAIM_KEPT.max(retention));
                let barrier = self.barrier.as_deref().map_or(kept, |barrier| kept.max(barrier.until));
                Some(barrier.max(self.token.passed_at()))
            }
            State::InProgress { on_abandoned: OnAbandoned::Hold, .. } | State::Indeterminate => None,
        }
    }

    /// Returns the record as it stands at `now`. An expired or vacant record is absent, and a lapsed claim under Hold
    /// is indeterminate.
    #[must_use]
    pub fn at(mut self, now: StoreTime) -> Option<Self> {
        if matches!(self.state, State::Vacant { .. }) || self.purge_at().is_some_and(|at| at <= now) {
            return None;
        }
        if self.is_indeterminate(now) {
            self.state = State::Indeterminate;
        }
        Some(self)
    }

    /// Returns the barrier while it stands.
    pub(crate) fn barrier_at(&self, now: StoreTime) -> Option<&Barrier> {
        self.barrier.as_deref().filter(|barrier| barrier.until > now)
    }

    /// Returns whether a reconciler or an operator must settle the key: after a hold, after a lapse under Hold, or
    /// after a lapse with an unsettled step.
    pub(crate) fn is_indeterminate(&self, now: StoreTime) -> bool {
        match self.state {
            State::Indeterminate => true,
            State::InProgress { lease_until, .. } if lease_until <= now => {
                self.is_lapsed_hold(now) || self.steps.as_ref().is_some_and(|steps| steps.unsettled(now).is_some())
            }
            _ => false,
        }
    }

    fn is_lapsed_hold(&self, now: StoreTime) -> bool {
        matches!(self.state, State::InProgress { lease_until, on_abandoned: OnAbandoned::Hold } if lease_until <= now)
    }
}

#[cfg(test)]
mod tests;
