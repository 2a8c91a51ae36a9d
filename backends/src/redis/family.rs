//! Decisions about a record with steps: reads the record and its steps as a script returns them, lets the protocol's
//! functions decide, and plans what to write.

use oncekey::backend::{
    Acquire, BeginStep, FailStep, RecordView, Release, Released, Resolve, ResolveStep, Resolved, StepBegun, StepFailed,
    StoreError, Withdraw,
};
use oncekey::record::transition::{self, Write};
use oncekey::record::{Record, State, Steps, StoreTime, WITHDRAWAL_KEPT};
use oncekey::{Key, OnAbandoned};
use redis::Value as Answer;

use super::answer::{bytes_or_nil, endless, unexpected};
use super::field::{FAMILY, Family, Kept, corrupt};
use super::value::{Barrier, Claim, LONGEST, Met, Stored, Value, is_watched, millis, watched, window, with_steps};

/// What a script read in one atomic step.
#[derive(Debug)]
pub(super) struct Seen {
    key: Key,
    /// The name of the record's Redis key.
    parent: Vec<u8>,
    pub(super) met: Option<Met>,
    /// When the record's key expires, in milliseconds since 1970; negative for never.
    expiry: i64,
    now: StoreTime,
    /// The number of steps in the store. `steps` may hold fewer.
    count: usize,
    /// The data that the steps share, and its bytes.
    family: Option<(Family, Vec<u8>)>,
    /// In the order in which they first began.
    steps: Vec<Kept>,
}

/// What to write if the record and its steps have not changed since they were read.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) met: Vec<u8>,
    pub(super) met_expiry: i64,
    pub(super) met_family: Vec<u8>,
    /// The end of the lease within which the write must happen.
    pub(super) before: Option<StoreTime>,
    /// The record's new value, if it changes.
    pub(super) value: Option<Vec<u8>>,
    /// When the record must expire, in milliseconds since 1970; negative for never.
    pub(super) expiry: i64,
    /// Whether this write ends the claim that was read.
    pub(super) is_end: bool,
    /// Whether this write starts work. A server that is out of memory refuses such a write.
    pub(super) starts_work: bool,
    pub(super) steps: StepsPlan,
    pub(super) fields: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StepsPlan {
    Keep,
    Drop,
    /// This is the first step of a life: delete whatever an earlier life left.
    Anew,
}

/// The decision on a message: the answer, and a write that must happen first, if any.
#[derive(Debug)]
pub(super) struct Decision<T> {
    pub(super) plan: Option<Plan>,
    pub(super) answer: T,
}

impl Seen {
    /// Parses the values that follow the keyword in a script's answer.
    pub(super) fn read(key: &Key, parent: Vec<u8>, parts: Vec<Answer>) -> Result<Self, StoreError> {
        let Ok([value, Answer::Int(expiry), Answer::Int(now), Answer::Int(count), Answer::Array(fields)]) =
            <[Answer; 5]>::try_from(parts)
        else {
            return Err(unexpected());
        };
        let met = bytes_or_nil(value)?.map(|bytes| Met::read(key, bytes)).transpose()?;
        let now = StoreTime::from_millis(u64::try_from(now).map_err(|_| unexpected())?);
        let count = usize::try_from(count).unwrap_or(0);
        let mut seen = Self { key: key.clone(), parent, met, expiry, now, count, family: None, steps: Vec::new() };
        if seen.has_steps() {
            seen.read_fields(fields)?;
        }
        Ok(seen)
    }

    fn read_fields(&mut self, fields: Vec<Answer>) -> Result<(), StoreError> {
        let mut named = Vec::with_capacity(fields.len() / 2);
        let mut fields = fields.into_iter();
        while let (Some(name), Some(field)) = (fields.next(), fields.next()) {
            let (Some(name), Some(field)) = (bytes_or_nil(name)?, bytes_or_nil(field)?) else {
                return Err(unexpected());
            };
            named.push((name, field));
        }
        let own = named.iter().position(|(name, _)| name == FAMILY).ok_or_else(corrupt)?;
        let (_, bytes) = named.swap_remove(own);
        let family = Family::decode(&self.parent, &bytes)?;
        for (name, field) in named {
            self.steps.push(Kept::decode(&self.parent, family.life, &name, &field)?);
        }
        self.steps.sort_by_key(|kept| kept.place);
        self.family = Some((family, bytes));
        Ok(())
    }

    /// Returns whether the record's value says that it has steps.
    pub(super) fn has_steps(&self) -> bool {
        self.met.as_ref().is_some_and(|met| met.value.has_steps)
    }

    fn family(&self) -> Option<Family> {
        self.family.as_ref().map(|(family, _)| *family)
    }

    /// Returns the record in the form that the protocol's functions take.
    fn record(&self) -> Result<Option<Record>, StoreError> {
        let Some(Met { value: Value { claim, barrier, state, .. }, .. }) = &self.met else { return Ok(None) };
        let expiry = || u64::try_from(self.expiry).map_err(|_| endless());
        let state = match state {
            Stored::InProgress(on_abandoned) => {
                let lease_until = expiry()?.saturating_sub(window_of(*on_abandoned, self.family()));
                State::InProgress { lease_until: StoreTime::from_millis(lease_until), on_abandoned: *on_abandoned }
            }
            Stored::Completed(outcome) => {
                State::Completed { outcome: outcome.clone(), expires_at: StoreTime::from_millis(expiry()?) }
            }
            Stored::Indeterminate => State::Indeterminate,
            Stored::Released => State::Released { expires_at: StoreTime::from_millis(expiry()?) },
            Stored::Withdrawn => State::Vacant { until: StoreTime::from_millis(expiry()?) },
        };
        let Claim { owner, fingerprint, attempt, token } = *claim;
        // A mark does not say when it ends. Each end of a marked claim restarts the time.
        let until = self.now.after(WITHDRAWAL_KEPT);
        let barrier = barrier.map(|Barrier { withdrawn, .. }| Box::new(oncekey::record::Barrier { withdrawn, until }));
        let steps = self.family().map(|family| {
            let list = self.steps.iter().map(|kept| kept.step.clone()).collect();
            let retention = std::time::Duration::from_millis(family.retention);
            Box::new(Steps { life: family.life, retention, list })
        });
        Ok(Some(Record { fingerprint, attempt, token, barrier, owner, steps, state }))
    }

    pub(super) fn view(&self) -> Result<Option<RecordView>, StoreError> {
        Ok(self.record()?.and_then(|record| RecordView::of(self.key.clone(), record, self.now)))
    }

    /// Decides a claim of a record with steps, after [`read_found`](super::acquire::read_found) has let it pass. If no
    /// barrier stands yet, `barrier` stands from the start.
    pub(super) fn acquire(
        &self,
        message: &Acquire,
        barrier: Option<Barrier>,
    ) -> Result<Decision<oncekey::backend::Acquired>, StoreError> {
        let record = self.record()?;
        let standing = self.met.as_ref().and_then(|met| met.value.barrier);
        // A late command compares values, so the changed value keeps out whatever a barrier must keep out.
        let past_withdrawal = standing.map(|standing| Box::new(standing.withdrawn));
        let message = Acquire { past_withdrawal, ..message.clone() };
        let transition::Step { write, answer } = transition::acquire(record.as_ref(), self.now, &message);
        let is_own = record.is_some_and(|record| record.owner == message.owner);
        let standing = if is_own { standing } else { standing.map(|standing| Barrier::of(standing.withdrawn)) };
        let plan = match write {
            Write::Put(Record { state: State::Indeterminate, .. }) => {
                let standing = self.met.as_ref().and_then(|met| met.value.barrier);
                Some(self.plan(write, standing)?)
            }
            Write::Nothing => None,
            write => Some(Plan { starts_work: true, ..self.plan(write, standing.or(barrier))? }),
        };
        Ok(Decision { plan, answer })
    }

    pub(super) fn begin(&self, message: &BeginStep) -> Result<Decision<StepBegun>, StoreError> {
        let record = self.record()?;
        let transition::Step { write, answer } = transition::begin_step(record.as_ref(), self.now, message);
        let is_new = !self.steps.iter().any(|kept| kept.step.name == message.name);
        // Only the number of the step's siblings is known.
        if is_new && self.count >= Steps::MAX && matches!(answer, StepBegun::Begun { .. }) {
            return Ok(Decision { plan: None, answer: StepBegun::TooMany });
        }
        let before = match record.map(|record| record.state) {
            Some(State::InProgress { lease_until, .. }) => Some(lease_until),
            _ => None,
        };
        let decision = self.decided(write, answer)?;
        let plan = decision.plan.map(|plan| Plan { before, starts_work: true, ..plan });
        Ok(Decision { plan, ..decision })
    }

    pub(super) fn fail(&self, message: &FailStep) -> Result<Decision<StepFailed>, StoreError> {
        let transition::Step { write, answer } = transition::fail_step(self.record()?.as_ref(), self.now, message);
        self.decided(write, answer)
    }

    pub(super) fn resolve_step(&self, message: &ResolveStep) -> Result<Decision<Resolved>, StoreError> {
        let transition::Step { write, answer } = transition::resolve_step(self.record()?.as_ref(), self.now, message);
        self.decided(write, answer)
    }

    pub(super) fn resolve(&self, message: &Resolve) -> Result<Decision<Resolved>, StoreError> {
        let transition::Step { write, answer } = transition::resolve(self.record()?.as_ref(), self.now, message);
        self.decided(write, answer)
    }

    pub(super) fn release(&self, message: &Release) -> Result<Decision<Released>, StoreError> {
        let transition::Step { write, answer } = transition::release(self.record()?.as_ref(), self.now, message);
        self.decided(write, answer)
    }

    /// Keeps or creates a key, with a value that no takeover has read.
    pub(super) fn withdraw(&self, message: &Withdraw) -> Result<Plan, StoreError> {
        let transition::Step { write, .. } = transition::withdraw(self.record()?.as_ref(), self.now, message);
        let standing = self.met.as_ref().and_then(|met| met.value.barrier);
        let count = standing.map_or(0, |standing| standing.count) + 1;
        let plan = self.plan(write, Some(Barrier { withdrawn: message.owner, count: count % 10_000 }))?;
        // A claim that lapsed long ago will expire soon, and the barrier must not end with it.
        let least = i64_of(self.now.after(WITHDRAWAL_KEPT));
        let expiry = if plan.expiry < 0 { plan.expiry } else { plan.expiry.max(least) };
        Ok(Plan { expiry, ..plan })
    }

    fn decided<T>(&self, write: Write, answer: T) -> Result<Decision<T>, StoreError> {
        let plan = match write {
            Write::Nothing => None,
            write => Some(self.plan(write, self.met.as_ref().and_then(|met| met.value.barrier))?),
        };
        Ok(Decision { plan, answer })
    }

    fn plan(&self, write: Write, barrier: Option<Barrier>) -> Result<Plan, StoreError> {
        let met = self.met.as_ref().ok_or_else(unexpected)?;
        let plan = Plan {
            met: met.bytes.clone(),
            met_expiry: self.expiry,
            met_family: self.family.as_ref().map(|(_, bytes)| bytes.clone()).unwrap_or_default(),
            before: None,
            value: None,
            expiry: self.expiry,
            is_end: true,
            starts_work: false,
            steps: StepsPlan::Keep,
            fields: Vec::new(),
        };
        let record = match write {
            Write::Nothing => return Ok(Plan { is_end: false, ..plan }),
            Write::Put(record) if !matches!(record.state, State::Vacant { .. }) => record,
            Write::Put(_) | Write::Delete => return Ok(self.freed(met, barrier, plan)),
        };
        let (family, fields) = self.changed(record.steps.as_deref())?;
        let (state, expiry) = match &record.state {
            State::InProgress { lease_until, on_abandoned } => {
                // A claim that lapsed long ago is kept from its last change on.
                let lease_until = (*lease_until).max(self.now);
                let expiry = lease_until.as_millis().saturating_add(window_of(*on_abandoned, family));
                (Stored::InProgress(*on_abandoned), i64_of(StoreTime::from_millis(expiry)))
            }
            State::Completed { outcome, expires_at } => (Stored::Completed(outcome.clone()), i64_of(*expires_at)),
            State::Released { expires_at } => (Stored::Released, i64_of(*expires_at)),
            State::Indeterminate | State::Vacant { .. } => (Stored::Indeterminate, -1),
        };
        let barrier = barrier.filter(|_| !matches!(state, Stored::Completed(_)));
        let Record { owner, fingerprint, attempt, token, .. } = record;
        let claim = Claim { owner, fingerprint, attempt, token };
        let value = Value { claim, has_steps: family.is_some(), barrier, state };
        let old = self.record()?;
        let goes_on = old.is_some_and(|old| old.owner == record.owner && old.state == record.state);
        let bytes = if value == met.value {
            None
        } else if value == (Value { has_steps: true, ..met.value.clone() }) {
            Some(with_steps(met.bytes.clone()))
        } else {
            let bytes = value.encode(&self.key);
            let is_watched = goes_on && is_watched(&met.bytes);
            Some(if is_watched { watched(bytes) } else { bytes })
        };
        let steps = if met.value.has_steps { StepsPlan::Keep } else { StepsPlan::Anew };
        Ok(Plan { value: bytes, expiry, is_end: !goes_on, steps, fields, ..plan })
    }

    /// Plans a tombstone and no steps.
    fn freed(&self, met: &Met, barrier: Option<Barrier>, plan: Plan) -> Plan {
        let claim = met.value.claim;
        let tombstone = Value { claim, has_steps: false, barrier, state: Stored::Withdrawn };
        let passed_at = StoreTime::from_millis(claim.token.get() / 1_000 + 1);
        // A damaged token must not make the command fail.
        let passed_at = passed_at.min(self.now.after(LONGEST));
        let expiry = i64_of(self.now.after(WITHDRAWAL_KEPT).max(passed_at));
        Plan { value: Some(tombstone.encode(&self.key)), expiry, steps: StepsPlan::Drop, ..plan }
    }

    /// Returns what the steps share after the change, and the new or changed fields.
    #[expect(clippy::type_complexity, reason = "fields of a hash, by name")]
    fn changed(&self, steps: Option<&Steps>) -> Result<(Option<Family>, Vec<(Vec<u8>, Vec<u8>)>), StoreError> {
        let Some(steps) = steps else { return Ok((None, Vec::new())) };
        let mut fields = Vec::new();
        let new = || Family { life: steps.life, retention: millis(steps.retention), open: 0, changes: 0 };
        let mut family = self.family().unwrap_or_else(new);
        for step in &steps.list {
            let earlier = self.steps.iter().find(|kept| kept.step.name == step.name);
            if earlier.is_some_and(|kept| kept.step == *step) {
                continue;
            }
            let place = match earlier {
                Some(kept) => kept.place,
                None => u16::try_from(self.count).map_err(|_| corrupt())?,
            };
            let kept = Kept { place, step: step.clone() };
            let closed = u16::from(earlier.is_some_and(Kept::is_open));
            family.open = (family.open + u16::from(kept.is_open())).saturating_sub(closed);
            fields.push((step.name.as_str().as_bytes().to_vec(), kept.encode(&self.parent, family.life)));
        }
        if !fields.is_empty() {
            family.changes = family.changes.wrapping_add(1);
            fields.push((FAMILY.to_vec(), family.encode(&self.parent)));
        }
        Ok((Some(family), fields))
    }
}

/// Returns how much longer than its lease a claim's key lives, in milliseconds: as long as its steps must be kept.
fn window_of(on_abandoned: OnAbandoned, family: Option<Family>) -> u64 {
    match (on_abandoned, family) {
        (_, None) => millis(window(on_abandoned)),
        (OnAbandoned::Hold, _) => millis(LONGEST),
        (_, Some(family)) if family.open > 0 => millis(LONGEST),
        (_, Some(family)) => family.retention.min(millis(LONGEST)).max(millis(window(OnAbandoned::Rerun))),
    }
}

fn i64_of(time: StoreTime) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}
