//! A record as inspection shows it: built by the backends, read by operators and by the console.

use std::time::Duration;

use crate::record::{Attempt, FencingToken, Owner, Record, SealedOutcome, State, Steps, StoreTime};
use crate::{Fingerprint, Key};

/// A record as inspection shows it, at the store's time of reading.
///
/// ```
/// # use oncekey::{Attempt, FencingToken, Fingerprint, Key, backend::{RecordView, StateView}};
/// # use oncekey::record::{Owner, StoreTime};
/// let view = RecordView {
///     key: Key::new("mail", 17)?,
///     fingerprint: Fingerprint::of(b"to: ada"),
///     attempt: Attempt::FIRST,
///     token: FencingToken::new(1_000),
///     owner: Owner::random(),
///     steps: None,
///     state: StateView::Indeterminate,
///     lapsed_at: None,
///     read_at: StoreTime::from_millis(5),
/// };
/// assert_eq!(view.claimed_at(), Some(StoreTime::from_millis(1)));
/// # Ok::<(), oncekey::KeyError>(())
/// ```
#[derive(Debug, Clone)]
pub struct RecordView {
    /// The key.
    pub key: Key,
    /// The fingerprint of the first caller's request.
    pub fingerprint: Fingerprint,
    /// The number of the latest claim.
    pub attempt: Attempt,
    /// The fencing token of the latest claim.
    pub token: FencingToken,
    /// The holder of the latest claim.
    pub owner: Owner,
    /// The operation's steps, if it has any.
    pub steps: Option<Box<Steps>>,
    /// Where the record is in its life cycle.
    pub state: StateView,
    /// When the lease of a claim that no caller has taken over lapsed.
    pub lapsed_at: Option<StoreTime>,
    /// The store's time at which the record was read. The comparison of two views ignores it.
    pub read_at: StoreTime,
}

impl PartialEq for RecordView {
    fn eq(&self, other: &Self) -> bool {
        let Self { key, fingerprint, attempt, token, owner, steps, state, lapsed_at, read_at: _ } = self;
        (key, fingerprint, attempt, token) == (&other.key, &other.fingerprint, &other.attempt, &other.token)
            && (owner, steps, state, lapsed_at) == (&other.owner, &other.steps, &other.state, &other.lapsed_at)
    }
}

impl Eq for RecordView {}

impl RecordView {
    /// Returns when the latest claim was made. The time comes from the fencing token, which follows the store's clock.
    /// `None` for a record written before fencing tokens existed.
    pub fn claimed_at(&self) -> Option<StoreTime> {
        (self.token > FencingToken::ZERO).then(|| StoreTime::from_millis(self.token.get() / 1_000))
    }

    /// Returns a view of a record as it stands at `now`, or `None` if it has expired.
    ///
    /// ```
    /// # use oncekey::{Attempt, FencingToken, Fingerprint, Key};
    /// # use oncekey::backend::{RecordView, StateView};
    /// # use oncekey::record::{Owner, Record, State, StoreTime};
    /// let record = Record {
    ///     fingerprint: Fingerprint::of(b"to: ada"),
    ///     attempt: Attempt::FIRST,
    ///     token: FencingToken::new(1),
    ///     barrier: None,
    ///     owner: Owner::random(),
    ///     steps: None,
    ///     state: State::Indeterminate,
    /// };
    /// let view = RecordView::of(Key::new("mail", 17)?, record, StoreTime::from_millis(0));
    /// assert_eq!(view.map(|view| view.state), Some(StateView::Indeterminate));
    /// # Ok::<(), oncekey::KeyError>(())
    /// ```
    pub fn of(key: Key, record: Record, now: StoreTime) -> Option<Self> {
        let lapsed_at = match record.state {
            State::InProgress { lease_until, .. } => Some(lease_until).filter(|until| *until <= now),
            _ => None,
        };
        let record = record.at(now)?;
        let state = match record.state {
            State::InProgress { lease_until, .. } => StateView::InProgress { lease_left: lease_until.left(now) },
            State::Completed { outcome, expires_at } => {
                StateView::Completed { outcome, expires_in: expires_at.left(now) }
            }
            State::Indeterminate => StateView::Indeterminate,
            State::Released { expires_at } => StateView::Released { expires_in: expires_at.left(now) },
            State::Vacant { .. } => return None,
        };
        let Record { fingerprint, attempt, token, owner, steps, .. } = record;
        Some(Self { key, fingerprint, attempt, token, owner, steps, state, lapsed_at, read_at: now })
    }
}

/// The state in a [`RecordView`]. It has durations where the record has points in the store's time.
///
/// ```
/// # use oncekey::backend::StateView;
/// assert_ne!(StateView::Indeterminate, StateView::InProgress { lease_left: std::time::Duration::ZERO });
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StateView {
    /// A holder has claimed the key. No lease is left if it lapsed and no caller has taken the claim over yet.
    InProgress {
        /// How much of the lease is left.
        lease_left: Duration,
    },
    /// The outcome is known.
    Completed {
        /// The outcome to replay.
        outcome: SealedOutcome,
        /// How long the record is still kept.
        expires_in: Duration,
    },
    /// A reconciler or an operator must settle the key.
    Indeterminate,
    /// The key was released with steps. The next claim of the same request continues after them.
    Released {
        /// How long the steps are still kept.
        expires_in: Duration,
    },
}
