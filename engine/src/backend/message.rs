//! The persistence messages and their answers: the whole protocol between the engine and a store.

use std::time::Duration;

use crate::record::{Attempt, FencingToken, Owner, Record, SealedOutcome, State, StepName, Steps, StoreTime};
use crate::{Fingerprint, Key, OnAbandoned};

/// Claim a key, or learn what stands in the way: look-up and claim are one atomic step.
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
    /// What to claim.
    pub key: Key,
    /// What was asked.
    pub fingerprint: Fingerprint,
    /// Who claims.
    pub owner: Owner,
    /// For how long the claim holds unless it is renewed.
    pub lease: Duration,
    /// What a lapse of this claim means. It is stored with the claim.
    pub on_abandoned: OnAbandoned,
    /// The owner from an earlier [`Acquired::Withdrawn`]: proof that this message was sent after that withdrawal. `None`
    /// at first. Boxed, since few messages have one and all are moved often.
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
    /// The claim is the sender's.
    Claimed {
        /// How often the key has been claimed.
        attempt: Attempt,
        /// The fencing token of the claim.
        token: FencingToken,
        /// Whether a lapsed claim of another holder was taken over.
        took_over: bool,
        /// The steps of earlier attempts, read in the same atomic step.
        steps: Option<Box<Steps>>,
    },
    /// Another holder is at work.
    InProgress {
        /// How long its lease still holds.
        lease_left: Duration,
    },
    /// It was done before.
    Completed {
        /// The answer to replay.
        outcome: SealedOutcome,
    },
    /// The key was used for something else.
    Mismatch,
    /// The effect may or may not have happened.
    Indeterminate {
        /// The claim that nobody knows the outcome of.
        attempt: Attempt,
        /// Its holder.
        owner: Owner,
    },
    /// The key is free, but a claim of it was withdrawn a short while ago and may still arrive. Send the message again,
    /// with this owner in [`Acquire::past_withdrawal`].
    Withdrawn {
        /// The owner of the withdrawn claim.
        owner: Owner,
    },
}

/// Lengthen the holder's lease.
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
    /// The lease, counted from now.
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
    /// The claim is not the sender's; nothing was changed.
    Lost,
}

/// Store the outcome.
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
    /// The answer to replay.
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
    /// The outcome is stored, and will answer every retry.
    Stored,
    /// The claim is not the sender's; nothing was changed.
    Lost,
}

/// Give the claim up.
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
    /// The claim is gone: the next acquire wins. A record with steps keeps them and its fingerprint.
    Released,
    /// A step began, and its result is unknown. The key is indeterminate until that step is resolved.
    Unsettled {
        /// The step.
        step: StepName,
    },
    /// The claim is not the sender's; nothing was changed.
    Lost,
}

/// Take back a claim that may or may not be in the store, and on which nothing has begun.
///
/// Afterwards the claim is gone **and can no longer arrive**, however late the network or the server delivers it: see
/// [`transition::withdraw`](crate::record::transition::withdraw).
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

/// Make the claim indeterminate.
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
    /// The claim is not the sender's; nothing was changed.
    Lost,
}

/// Settle an indeterminate key.
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
    /// The claim that the word is about; `None` for whichever stands there.
    pub attempt: Option<Attempt>,
    /// The claim's holder, where it is known. A key that was released starts again at the first attempt, so that a word
    /// that comes late could meet a later claim of the same number; an owner never comes again.
    pub owner: Option<Owner>,
    /// The word.
    pub with: Resolution,
}

/// What an indeterminate key is settled with.
///
/// ```
/// # use oncekey::backend::Resolution;
/// assert_eq!(Resolution::Release, Resolution::Release);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolution {
    /// The effect happened, and this is its outcome.
    Complete {
        /// The answer to replay.
        outcome: SealedOutcome,
        /// How long it is kept, counted from now.
        retention: Duration,
    },
    /// The effect did not happen: the key is free.
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
    /// The key can't be released: nobody knows what became of this step. Resolve the step first.
    UnsettledStep {
        /// The step.
        step: StepName,
    },
    /// The key, or that attempt of it, is not indeterminate; nothing was changed.
    NotIndeterminate,
}

/// Read one record.
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
    /// What was asked by the first caller.
    pub fingerprint: Fingerprint,
    /// The number of the last claim.
    pub attempt: Attempt,
    /// The fencing token of the last claim.
    pub token: FencingToken,
    /// The holder of the last claim.
    pub owner: Owner,
    /// The steps of the operation, where it has any.
    pub steps: Option<Box<Steps>>,
    /// Where in its life the record is.
    pub state: StateView,
    /// When the lease lapsed, of a claim that nobody has taken over.
    pub lapsed_at: Option<StoreTime>,
    /// The store's time at which the record was read. Two views of one record are equal whenever they were read.
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
    /// When the last claim was made. It is read from the fencing token, which follows the store's clock. `None` for a
    /// record from before fencing tokens.
    pub fn claimed_at(&self) -> Option<StoreTime> {
        (self.token > FencingToken::ZERO).then(|| StoreTime::from_millis(self.token.get() / 1_000))
    }

    /// A record as it stands at `now`; `None` if its time is over.
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

/// The state in a [`RecordView`], with durations where the record has points in the store's time.
///
/// ```
/// # use oncekey::backend::StateView;
/// assert_ne!(StateView::Indeterminate, StateView::InProgress { lease_left: std::time::Duration::ZERO });
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StateView {
    /// A holder works on it; zero is left if its lease has lapsed and nobody has taken it over yet.
    InProgress {
        /// How long the lease still holds.
        lease_left: Duration,
    },
    /// The outcome is known.
    Completed {
        /// The answer to replay.
        outcome: SealedOutcome,
        /// How long the record is still kept.
        expires_in: Duration,
    },
    /// It waits for somebody's word.
    Indeterminate,
    /// It was released with steps, which the next claim of the same request continues.
    Released {
        /// How long the steps are still kept.
        expires_in: Duration,
    },
}

/// Remove a record, whatever its state. An operator's tool: removing a claim lets its operation run again.
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
    /// There was none.
    Absent,
}

/// Read records in the order of their stored keys.
///
/// ```
/// # use oncekey::backend::List;
/// let first_page = List { after: None, limit: 100 };
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List {
    /// Where the page before this one ended.
    pub after: Option<Key>,
    /// The most records to give.
    pub limit: usize,
}

/// Remove records whose time is over.
///
/// ```
/// # use oncekey::backend::Purge;
/// let one_batch = Purge { limit: 1_000 };
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Purge {
    /// The most records to remove in this one step.
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
    /// Whether the limit was reached, so that there may be more.
    pub more: bool,
}

/// Count the records.
///
/// ```
/// # use oncekey::backend::Stats;
/// let message = Stats;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats;

/// The answer to [`Stats`]. Records whose time is over count until they are purged.
///
/// ```
/// # use oncekey::backend::StoreStats;
/// assert_eq!(StoreStats::default().completed, 0);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Claims, lapsed ones that were not taken over included.
    pub in_progress: u64,
    /// Outcomes kept.
    pub completed: u64,
    /// Keys that wait for somebody's word. Claims that lapsed with an unsettled step count as in progress.
    pub indeterminate: u64,
    /// Keys that were released with steps, which are kept for the next try.
    pub released: u64,
}

/// Tell when a key is no longer in progress.
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
    /// How long the answer is of use. The engine drops the backend's future after this, so that a backend need not
    /// count; one that blocks in a read of its own takes it as that read's limit.
    pub limit: Duration,
}

/// The answer to [`Watch`]: a hint that it is worth asking again. It may come too often, never too seldom.
///
/// ```
/// # use oncekey::backend::Changed;
/// let hint = Changed;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Changed;
