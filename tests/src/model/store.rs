//! The store's side: the real transitions, on records in relative time.

use std::time::Duration;

use oncekey::backend::{
    Acquire, Acquired, Complete, Completed, Hold, Release, Renew, Renewed, Resolution, Resolve, Resolved, Withdraw,
};
use oncekey::record::transition::{self, Step, Write};
use oncekey::record::{
    ABANDONED_CLAIM_KEPT, Attempt, Barrier, FencingToken, Owner, PayloadKind, Record, SealedOutcome, State, StoreTime,
    WITHDRAWAL_KEPT,
};
use oncekey::{Fingerprint, Key, OnAbandoned};

use super::state::Name;
use super::{Ask, Mode, Mutation};

/// The lease of a claim, in ticks.
pub const LEASE: i8 = 2;
/// The retention of an outcome, in ticks.
pub const RETENTION: i8 = 2;
/// How many ticks a lapsed claim that may be rerun is kept.
pub const KEPT: i8 = 2;

const TICK: Duration = Duration::from_millis(ABANDONED_CLAIM_KEPT.as_millis() as u64 / KEPT as u64);
/// The store's time at every step. It is constant, and the records move instead.
const NOW: StoreTime = StoreTime::from_millis(1_000 * TICK.as_millis() as u64);
/// The outcome of a resolution by an operator, distinct from the owners' outcomes.
pub(super) const OPERATORS: u8 = u8::MAX;

/// A record, with the time left for each of its deadlines.
///
/// Fencing tokens are left out: each depends on the previous one and on the clock, which is constant here. Randomized
/// tests of the transitions check that they never go back.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Stored {
    /// The number of the latest claim.
    pub attempt: u8,
    /// The holder of the latest claim.
    pub owner: u8,
    /// Where the record is in its life cycle.
    pub life: Life,
    /// The name of its barrier, while it stands: see [`State::lifts_barriers`](super::State::lifts_barriers).
    pub barrier: Option<Name>,
}

/// A record's state, in ticks from now.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Life {
    /// In progress. Below zero, the lease has lapsed.
    Claimed {
        /// Ticks left of the lease.
        left: i8,
        /// Whether a lapse makes the key indeterminate.
        hold: bool,
    },
    /// Completed.
    Completed {
        /// The owner of the outcome.
        outcome: u8,
        /// Ticks left of the retention.
        left: i8,
    },
    /// A reconciler or an operator must settle the key.
    Indeterminate,
    /// The key is free behind a barrier. Without a barrier there is no record.
    Vacant,
}

impl Stored {
    /// Returns the record one tick later. Times that are far enough in the past stay constant, and no record disappears
    /// before its barrier.
    #[must_use]
    pub fn aged(mut self) -> Self {
        let stays = i8::from(self.barrier.is_some());
        match &mut self.life {
            Life::Claimed { left, .. } => *left = (*left - 1).max(stays - KEPT),
            Life::Completed { left, .. } => *left = (*left - 1).max(stays),
            Life::Indeterminate | Life::Vacant => {}
        }
        self
    }

    /// Returns the record without its barrier, as a reader sees it.
    #[must_use]
    pub fn shown(mut self) -> Option<Self> {
        self.barrier = None;
        (self.life != Life::Vacant).then_some(self)
    }
}

/// The store's answer, with everything that the ghost needs to know about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Answer {
    /// The sender holds the claim.
    Claimed {
        /// The number of the claim.
        attempt: u8,
        /// Whether the claim took over a lapsed one.
        took_over: bool,
    },
    /// Another owner holds the claim.
    InProgress,
    /// The operation was completed before.
    Replay(u8),
    /// The key was used for another request.
    Mismatch,
    /// The key is indeterminate.
    Indeterminate,
    /// The key is free, behind a barrier of this name.
    Withdrawn(Name),
    /// The request was executed.
    Done,
    /// The transaction ran, and its effect and its outcome are committed.
    Committed,
    /// The transaction is known not to have been committed.
    RolledBack,
    /// The sender does not hold the claim.
    Lost,
}

/// The real steps, with a translation on either side.
#[derive(Debug)]
pub struct Store {
    keys: Vec<(Key, Mode)>,
    mutation: Option<Mutation>,
}

impl Store {
    /// Returns a store of these keys.
    pub fn new(modes: &[Mode], mutation: Option<Mutation>) -> Self {
        let keys = modes.iter().enumerate().map(|(at, mode)| (Key::new("model", at).unwrap(), *mode)).collect();
        Self { keys, mutation }
    }

    /// Returns what the operations of a key do.
    pub fn mode(&self, key: u8) -> Mode {
        self.keys[usize::from(key)].1
    }

    pub(super) fn is(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    fn key(&self, key: u8) -> Key {
        self.keys[usize::from(key)].0.clone()
    }

    /// Executes a request, and returns the record afterwards.
    pub fn take(&self, found: Option<&Stored>, ask: Ask, key: u8, owner: u8) -> (Option<Stored>, Answer) {
        if let Ask::Word { happened, attempt } = ask {
            let (stored, resolved) = self.resolve(found, key, (attempt, Some(owner)), happened);
            return (stored, done_if(resolved));
        }
        let record = found.map(|stored| self.real(key, stored));
        let found_record = record.as_ref();
        let owner = by(owner);
        match ask {
            Ask::Acquire { past } => {
                let step = self.acquire(found_record, key, owner, fingerprint(), past);
                done(found, step, |answer| acquired(&answer))
            }
            Ask::Renew | Ask::Confirm => {
                let owner = self.owner_for(Mutation::RenewByAnyone, found_record, owner);
                let step = transition::renew(
                    found_record,
                    NOW,
                    &Renew { key: self.key(key), owner, lease: TICK * LEASE as u32 },
                );
                let step = self.refuse_late(found_record, step, Renewed::Lost);
                done(found, step, |answer| done_if(answer == Renewed::Renewed))
            }
            Ask::Complete => {
                let step = self.complete(found_record, key, owner);
                done(found, step, |answer| done_if(answer == Completed::Stored))
            }
            Ask::Transact => {
                let step = self.complete(found_record, key, owner);
                let committed = matches!(step.write, Write::Put(_));
                done(found, step, |answer| match answer {
                    Completed::Stored if committed => Answer::Committed,
                    Completed::Stored => Answer::Done,
                    Completed::Lost => Answer::Lost,
                })
            }
            Ask::Probe => {
                let step = self.complete(found_record, key, owner);
                let would_commit = matches!(step.write, Write::Put(_));
                let step = Step { write: Write::Nothing, answer: step.answer };
                done(found, step, |answer| match answer {
                    Completed::Stored if would_commit => Answer::RolledBack,
                    Completed::Stored => Answer::Done,
                    Completed::Lost => Answer::Lost,
                })
            }
            Ask::Release => {
                let owner = self.owner_for(Mutation::ReleaseByAnyone, found_record, owner);
                let mut step = transition::release(found_record, NOW, &Release { key: self.key(key), owner });
                if self.is(Mutation::ReleaseLeavesTheClaim) {
                    step.write = Write::Nothing;
                }
                done(found, step, |answer| done_if(answer == oncekey::backend::Released::Released))
            }
            Ask::Withdraw => {
                let message = Withdraw { key: self.key(key), owner };
                let mut step = transition::withdraw(found_record, NOW, &message);
                if self.is(Mutation::BarrierNameComesBack)
                    && let Write::Put(Record { barrier: Some(barrier), .. }) = &mut step.write
                {
                    barrier.withdrawn = owner;
                }
                done(found, step, |_| Answer::Done)
            }
            Ask::Hold => {
                let step = transition::hold(found_record, NOW, &Hold { key: self.key(key), owner });
                done(found, step, |answer| done_if(answer == oncekey::backend::Held::Held))
            }
            // Handled above.
            Ask::Word { .. } => (found.cloned(), Answer::Lost),
        }
    }

    fn acquire(
        &self,
        found: Option<&Record>,
        key: u8,
        owner: Owner,
        asked: Fingerprint,
        past: Option<Name>,
    ) -> Step<Acquired> {
        let on_abandoned = if self.mode(key) == Mode::Hold { OnAbandoned::Hold } else { OnAbandoned::Rerun };
        let message = Acquire {
            key: self.key(key),
            fingerprint: asked,
            owner,
            lease: TICK * LEASE as u32,
            on_abandoned,
            past_withdrawal: past.map(|owner| Box::new(Owner::from_bytes(owner))),
        };
        let mut found = found.cloned();
        if let Some(record) = &mut found {
            if self.is(Mutation::WithdrawnClaimLands) {
                record.barrier = None;
            }
            match &mut record.state {
                State::InProgress { on_abandoned, .. } if self.is(Mutation::HoldRerun) => {
                    *on_abandoned = OnAbandoned::Rerun;
                }
                State::InProgress { lease_until, .. } if self.is(Mutation::ClaimedWhileHeld) => *lease_until = NOW,
                State::Completed { expires_at, .. } if self.is(Mutation::CompletedForgotten) => *expires_at = NOW,
                _ => {}
            }
            if self.is(Mutation::FingerprintIgnored) {
                record.fingerprint = asked;
            }
        }
        let mut step = transition::acquire(found.as_ref(), NOW, &message);
        if self.is(Mutation::AttemptNotRaised)
            && let (Write::Put(record), Acquired::Claimed { attempt, took_over: true, .. }) =
                (&mut step.write, &mut step.answer)
        {
            *attempt = Attempt::new(attempt.get() - 1);
            record.attempt = *attempt;
        }
        step
    }

    fn complete(&self, found: Option<&Record>, key: u8, owner: Owner) -> Step<Completed> {
        let outcome = self.outcome(key, owner.as_bytes()[0]);
        let mut found = found.cloned();
        if let Some(record) = &mut found {
            if self.is(Mutation::CompleteByAnyone) {
                record.owner = owner;
            }
            let repeats = self.is(Mutation::CompletedTwice) || self.is(Mutation::CommitRepeatedBlindly);
            if repeats && matches!(record.state, State::Completed { .. }) && record.owner == owner {
                record.state = State::Indeterminate;
            }
        }
        let message = Complete { key: self.key(key), owner, outcome, retention: TICK * RETENTION as u32 };
        let step = transition::complete(found.as_ref(), NOW, &message);
        self.refuse_late(found.as_ref(), step, Completed::Lost)
    }

    fn owner_for(&self, mutation: Mutation, found: Option<&Record>, owner: Owner) -> Owner {
        found.filter(|_| self.is(mutation)).map_or(owner, |record| record.owner)
    }

    fn refuse_late<T>(&self, found: Option<&Record>, step: Step<T>, lost: T) -> Step<T> {
        let late = found
            .is_some_and(|record| matches!(record.state, State::InProgress { lease_until, .. } if lease_until <= NOW));
        if self.is(Mutation::LateOwnerRefused) && late {
            return Step { write: Write::Nothing, answer: lost };
        }
        step
    }

    /// Executes an operator's resolution of a key.
    pub fn resolve(
        &self,
        found: Option<&Stored>,
        key: u8,
        (attempt, owner): (u8, Option<u8>),
        complete: bool,
    ) -> (Option<Stored>, bool) {
        let record = found.map(|stored| self.real(key, stored));
        let with = if complete {
            Resolution::Complete { outcome: self.outcome(key, OPERATORS), retention: TICK * RETENTION as u32 }
        } else {
            Resolution::Release
        };
        let attempt = (!self.is(Mutation::ResolveAnything)).then(|| Attempt::new(attempt.into()));
        let owner = owner.filter(|_| !self.is(Mutation::LateWordTaken)).map(by);
        let step = transition::resolve(record.as_ref(), NOW, &Resolve { key: self.key(key), attempt, owner, with });
        let resolved = step.answer == Resolved::Resolved;
        (done(found, step, |_| Answer::Done).0, resolved)
    }

    /// Returns the record as it stands now: an expired one is absent, and a lapsed claim under Hold is indeterminate.
    pub fn now(&self, found: Option<&Stored>, key: u8) -> Option<Stored> {
        self.real(key, found?).at(NOW).and_then(|record| modelled(&record))
    }

    /// Returns what a purge leaves of a record.
    pub fn purged(&self, found: Option<&Stored>, key: u8) -> Option<Stored> {
        let lapsed = matches!(found, Some(Stored { life: Life::Claimed { left: ..=0, .. }, .. }));
        if lapsed && self.is(Mutation::PurgeTakesClaims) {
            return None;
        }
        // A vacant record stays for its barrier.
        self.now(found, key).or_else(|| found.filter(|found| found.life == Life::Vacant).cloned())
    }

    /// Returns whether another request under a used key is refused and changes nothing.
    pub fn refuses_another_fingerprint(&self, found: &Stored, key: u8) -> bool {
        let record = self.real(key, found);
        let step = self.acquire(Some(&record), key, by(OPERATORS), Fingerprint::of(b"something else"), None);
        step == Step { write: Write::Nothing, answer: Acquired::Mismatch }
    }

    fn outcome(&self, key: u8, whose: u8) -> SealedOutcome {
        SealedOutcome::seal(&self.keys[usize::from(key)].0, PayloadKind::Json, |bytes| bytes.push(whose))
    }

    fn real(&self, key: u8, stored: &Stored) -> Record {
        let state = match stored.life {
            Life::Claimed { left, hold } => State::InProgress {
                lease_until: in_ticks(left),
                on_abandoned: if hold { OnAbandoned::Hold } else { OnAbandoned::Rerun },
            },
            Life::Completed { outcome, left } => {
                State::Completed { outcome: self.outcome(key, outcome), expires_at: in_ticks(left) }
            }
            Life::Indeterminate => State::Indeterminate,
            Life::Vacant => State::Vacant { until: NOW.after(WITHDRAWAL_KEPT) },
        };
        let barrier = stored
            .barrier
            .map(|name| Box::new(Barrier { withdrawn: Owner::from_bytes(name), until: NOW.after(WITHDRAWAL_KEPT) }));
        Record {
            fingerprint: fingerprint(),
            attempt: Attempt::new(stored.attempt.into()),
            token: FencingToken::ZERO,
            barrier,
            owner: by(stored.owner),
            steps: None,
            state,
        }
    }
}

fn modelled(record: &Record) -> Option<Stored> {
    let barrier = record.barrier.as_ref().map(|barrier| *barrier.withdrawn.as_bytes());
    let life = match &record.state {
        State::InProgress { lease_until, on_abandoned } => {
            Life::Claimed { left: ticks_to(*lease_until), hold: *on_abandoned == OnAbandoned::Hold }
        }
        State::Completed { outcome, expires_at } => {
            Life::Completed { outcome: whose(outcome), left: ticks_to(*expires_at) }
        }
        State::Indeterminate => Life::Indeterminate,
        // The record stays for its token, which the model leaves out. The model has no steps, and only steps lead to
        // this state.
        State::Released { .. } => return None,
        State::Vacant { .. } if barrier.is_none() => return None,
        State::Vacant { .. } => {
            // Nothing reads who last held the key, or how often.
            return Some(Stored { attempt: 0, owner: 0, life: Life::Vacant, barrier });
        }
    };
    Some(Stored { attempt: record.attempt.get() as u8, owner: record.owner.as_bytes()[0], life, barrier })
}

fn acquired(answer: &Acquired) -> Answer {
    match answer {
        Acquired::Claimed { attempt, took_over, .. } => {
            Answer::Claimed { attempt: attempt.get() as u8, took_over: *took_over }
        }
        Acquired::InProgress { .. } => Answer::InProgress,
        Acquired::Completed { outcome } => Answer::Replay(whose(outcome)),
        Acquired::Mismatch => Answer::Mismatch,
        Acquired::Indeterminate { .. } => Answer::Indeterminate,
        Acquired::Withdrawn { owner } => Answer::Withdrawn(*owner.as_bytes()),
    }
}

fn done<T>(found: Option<&Stored>, step: Step<T>, answer: impl Fn(T) -> Answer) -> (Option<Stored>, Answer) {
    let stored = match &step.write {
        Write::Nothing => found.cloned(),
        Write::Put(record) => modelled(record),
        Write::Delete => None,
    };
    (stored, answer(step.answer))
}

fn by(owner: u8) -> Owner {
    Owner::from_bytes([owner; Owner::LEN])
}

fn fingerprint() -> Fingerprint {
    Fingerprint::from_bytes([7; Fingerprint::LEN])
}

/// Returns the single byte of the model's outcomes, behind the header.
fn whose(outcome: &SealedOutcome) -> u8 {
    *outcome.as_stored().last().unwrap()
}

fn in_ticks(left: i8) -> StoreTime {
    StoreTime::from_millis(NOW.as_millis().wrapping_add_signed(i64::from(left) * TICK.as_millis() as i64))
}

fn ticks_to(time: StoreTime) -> i8 {
    ((time.as_millis() as i64 - NOW.as_millis() as i64) / TICK.as_millis() as i64) as i8
}

fn done_if(yes: bool) -> Answer {
    if yes { Answer::Done } else { Answer::Lost }
}
