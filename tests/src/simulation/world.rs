//! What really happens: chance, the records, the ledger of effects, and the promises that are checked against them.

mod shared;
mod steps;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use oncekey::backend::{CompletedInTransaction, StoreError};
use oncekey::record::transition::{self, Step, Write};
use oncekey::record::{FencingToken, Owner, Record, SealedOutcome, State, StoreTime};
use oncekey::{Attempt, Key};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::Notify;
use tokio::time::Instant;

pub use shared::Shared;
use steps::StepLedger;

use super::{LEASE, Report};

/// What the operations of a key do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// An external effect, at most once.
    Hold,
    /// An external effect, at least once.
    Rerun,
    /// An effect in the store's transaction, exactly once.
    Transaction,
    /// Several effects, each in its own step.
    Steps,
}

/// The faults of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The store refuses the connection.
    Refused,
    /// A request never arrives.
    RequestLost,
    /// A request arrives, and its answer does not.
    AnswerLost,
    /// The connection breaks after the request was sent.
    Reset,
    /// A request is executed twice.
    Repeated,
    /// A request takes longer than its sender waits.
    Delayed,
    /// A process crashes.
    Crash,
    /// A process pauses for longer than a lease.
    Pause,
    /// A process shuts down in order.
    Shutdown,
    /// A client disconnects.
    ClientGone,
    /// An operation fails.
    Failure,
    /// An operation panics.
    Panic,
    /// An acquire arrives long after its sender has given up.
    Late,
    /// The store is away for longer than a lease and than the settling limit.
    Outage,
    /// Several calls for one key reach one arbiter at the same instant.
    Twins,
    /// An operation no longer waits for its step.
    StepDropped,
    /// An operation never returns.
    Hang,
    /// An operation returns a value that would be read back as another value.
    Unstorable,
    /// The store aborts a transaction and rolls it back, and its operation ignores that.
    Contention,
    /// The store ends a transaction and continues without one, and its operation ignores that.
    TransactionEnd,
    /// The store's clock is set back.
    ClockBack,
    /// A caller reads nothing for longer than a lease, as if its thread were busy. Its grant ages in the meantime.
    BusyCaller,
}

/// A bug of the store that the checks must notice, as the control.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// Claims are granted even while another holder has the key.
    LeasesForgotten,
    /// Completions are accepted from any owner.
    OwnersIgnored,
    /// One outcome in a hundred is not written.
    OutcomesDropped,
    /// Steps begin for any owner.
    StepsUnfenced,
    /// A key loses its steps when it is released or taken over.
    StepsForgotten,
}

/// One life of a process, from its start to its crash.
#[derive(Debug)]
pub struct Life {
    /// The process.
    pub process: usize,
    /// The number of this life.
    pub number: u64,
    alive: AtomicBool,
    died: Notify,
}

impl Life {
    /// Returns whether this life has not ended.
    pub fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Relaxed)
    }

    /// Resolves when this life has ended.
    pub async fn end(&self) {
        let died = self.died.notified();
        if self.is_alive() {
            died.await;
        }
    }
}

/// What really happened to a requested claim.
#[derive(Debug)]
pub(super) struct Fate {
    life: Arc<Life>,
    /// Whether the network repeated the acquire. Its second arrival may leave a claim that no process knows about.
    repeated: bool,
    began: bool,
    /// Whether the operation reported that nothing happened.
    failed: bool,
}

/// A process that has a claim, or may still learn of it. A judgement that the effect will never happen must take it
/// into account.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Engaged {
    key: Key,
    attempt: Attempt,
    life: u64,
}

/// A granted claim whose operation has not begun.
#[derive(Debug)]
struct Promise {
    number: u64,
    /// Whether its holder has learned of it.
    heard: bool,
    owner: Owner,
    engaged: Engaged,
}

/// The world of one run.
#[derive(Debug)]
pub struct World {
    pub(super) chance: SmallRng,
    began: Instant,
    /// The pace of the store's clock relative to the processes' clocks.
    rate: f64,
    /// How far the clock was set back.
    back: Duration,
    records: BTreeMap<Key, Record>,
    pub(super) modes: BTreeMap<Key, Mode>,
    /// Each effect that happened: its key and its value.
    ledger: Vec<(Key, u64)>,
    steps: StepLedger,
    outcomes: BTreeMap<Key, u64>,
    promised: Vec<Promise>,
    /// Every requested claim, by its owner.
    fates: BTreeMap<[u8; Owner::LEN], Fate>,
    /// Operations that succeeded, each with its value and the life of its process.
    finished: Vec<(Key, u64, Arc<Life>)>,
    /// Until when the store is away.
    away_until: Option<Instant>,
    /// Whether the world is calm: processes live, the store answers, and only claims go astray. In a calm world nothing
    /// excuses a violation.
    pub(super) calm: bool,
    working: Vec<Engaged>,
    /// The keys of operations that never return.
    hung: Vec<Key>,
    /// The effects whose values cannot be stored.
    unstorable: Vec<u64>,
    /// The latest token of each key, and its owner. While there is a record, a lower token is an error even if the
    /// clock was set back.
    tokens: BTreeMap<Key, (FencingToken, Owner)>,
    paused: BTreeMap<usize, Instant>,
    pub(super) healed: bool,
    /// How much longer answers to acquires take.
    pub(super) slow_acquires: Duration,
    /// How many commits must still lose their answer and their connection.
    pub(super) lost_commits: u32,
    /// How many transactions must still be committed by their own operations.
    transactions_to_end: u32,
    sabotage: Option<Sabotage>,
    next: u64,
    trace: u64,
    show: bool,
    report: Report,
}

/// What a transaction writes. The ledger takes it over if the transaction commits.
#[derive(Debug)]
pub(crate) struct Transaction {
    pub(crate) value: u64,
    pub(crate) wrote: bool,
    pub(crate) fails: bool,
}

impl World {
    /// Returns a new world.
    pub fn shared(seed: u64, sabotage: Option<Sabotage>) -> Shared {
        let mut chance = SmallRng::seed_from_u64(seed);
        let rate = chance.random_range(0.9..1.1);
        let report = Report {
            seed,
            trace: 0,
            events: 0,
            calls: 0,
            answered: 0,
            effects: 0,
            faults: BTreeMap::new(),
            violations: Vec::new(),
        };
        Shared::of(Self {
            chance,
            began: Instant::now(),
            rate,
            back: Duration::ZERO,
            records: BTreeMap::new(),
            modes: super::keys().into_iter().collect(),
            ledger: Vec::new(),
            steps: StepLedger::default(),
            outcomes: BTreeMap::new(),
            promised: Vec::new(),
            fates: BTreeMap::new(),
            finished: Vec::new(),
            away_until: None,
            calm: seed % 4 == 3,
            working: Vec::new(),
            hung: Vec::new(),
            unstorable: Vec::new(),
            tokens: BTreeMap::new(),
            paused: BTreeMap::new(),
            healed: false,
            slow_acquires: Duration::ZERO,
            lost_commits: 0,
            transactions_to_end: 0,
            sabotage,
            next: 0,
            trace: 0xcbf2_9ce4_8422_2325,
            show: std::env::var_os("ONCEKEY_SIMULATION_TRACE").is_some(),
            report,
        })
    }

    pub(super) fn now(&self) -> StoreTime {
        // The store's clock is an hour ahead of the processes' clocks, and runs at a different pace.
        let millis = self.began.elapsed().as_millis() as f64 * self.rate;
        StoreTime::from_millis(3_600_000 + millis as u64 - self.back.as_millis() as u64)
    }

    pub(super) fn sets_its_clock_back(&mut self) {
        self.counts(Fault::ClockBack);
        let back = self.up_to(1_000);
        self.back += back;
        // A record keeps its token. If the record is gone, the clock had already passed its token.
        self.tokens.retain(|key, _| self.records.contains_key(key));
    }

    /// Records an event. The events make up the trace.
    pub(super) fn note(&mut self, what: fmt::Arguments<'_>) {
        let line = format!("{:>6} {what}", self.began.elapsed().as_millis());
        if self.show {
            #[expect(clippy::print_stdout, reason = "asked for")]
            {
                println!("{line}");
            }
        }
        for byte in line.bytes() {
            self.trace = (self.trace ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self.report.events += 1;
    }

    pub(super) fn breaks(&mut self, what: String) {
        self.note(format_args!("BROKEN: {what}"));
        self.report.violations.push(what);
    }

    pub(super) fn strikes(&mut self, fault: Fault, percent: f64) -> bool {
        // The number is drawn in any case, because healing must not change the random numbers of others.
        let is_left = !self.calm
            || matches!(
                fault,
                Fault::AnswerLost
                    | Fault::Reset
                    | Fault::Late
                    | Fault::Twins
                    | Fault::ClientGone
                    | Fault::Failure
                    | Fault::Hang
                    | Fault::Unstorable
            );
        let struck = self.chance.random_bool(percent / 100.0) && !self.healed && is_left;
        if struck {
            self.counts(fault);
        }
        struck
    }

    pub(super) fn counts(&mut self, fault: Fault) {
        let name = match fault {
            Fault::Refused => "refused",
            Fault::RequestLost => "request lost",
            Fault::AnswerLost => "answer lost",
            Fault::Reset => "reset",
            Fault::Repeated => "repeated",
            Fault::Delayed => "delayed",
            Fault::Crash => "crash",
            Fault::Pause => "pause",
            Fault::Shutdown => "shutdown",
            Fault::ClientGone => "client gone",
            Fault::Failure => "failure",
            Fault::Panic => "panic",
            Fault::Late => "late",
            Fault::Outage => "outage",
            Fault::Twins => "twins",
            Fault::StepDropped => "step dropped",
            Fault::Hang => "hang",
            Fault::Unstorable => "unstorable",
            Fault::Contention => "contention",
            Fault::TransactionEnd => "transaction end",
            Fault::ClockBack => "clock back",
            Fault::BusyCaller => "busy caller",
        };
        self.note(format_args!("fault: {name}"));
        *self.report.faults.entry(name).or_default() += 1;
    }

    pub(super) fn up_to(&mut self, millis: u64) -> Duration {
        Duration::from_millis(self.chance.random_range(0..=millis))
    }

    pub(super) fn pause_left(&self, process: usize) -> Duration {
        self.paused.get(&process).map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()))
    }

    pub(super) fn pauses(&mut self, process: usize, pause: Duration) {
        self.counts(Fault::Pause);
        self.paused.insert(process, Instant::now() + pause);
    }

    pub(super) fn is_away(&self) -> bool {
        self.away_until.is_some_and(|until| until > Instant::now())
    }

    pub(super) fn goes_away(&mut self, long: Duration) {
        self.counts(Fault::Outage);
        self.away_until = Some(Instant::now() + long);
    }

    /// Executes one step on a record.
    pub(super) fn step<Answer: fmt::Debug>(
        &mut self,
        name: &str,
        key: &Key,
        decide: impl FnOnce(Option<&Record>, StoreTime) -> Step<Answer>,
    ) -> Answer {
        let now = self.now();
        let before = self.records.get(key).cloned();
        let mut shown = before.clone();
        if let Some(record) = &mut shown {
            match &mut record.state {
                State::InProgress { lease_until, on_abandoned }
                    if name == "acquire" && self.sabotage == Some(Sabotage::LeasesForgotten) =>
                {
                    (*lease_until, *on_abandoned) = (now, oncekey::OnAbandoned::Rerun);
                }
                _ => {}
            }
        }
        if let Some(record) = &mut shown
            && matches!(name, "acquire" | "release")
            && self.sabotage == Some(Sabotage::StepsForgotten)
        {
            record.steps = None;
        }
        let mut step = decide(shown.as_ref(), now);
        if name == "complete" && self.sabotage == Some(Sabotage::OutcomesDropped) && self.chance.random_bool(0.01) {
            step.write = Write::Nothing;
        }
        match step.write {
            Write::Nothing => {}
            Write::Put(record) => drop(self.records.insert(key.clone(), record)),
            Write::Delete => drop(self.records.remove(key)),
        }
        let after = self.records.get(key).cloned();
        if let Some(Record { state: State::Completed { outcome, .. }, .. }) = &before
            && !matches!(&after, Some(Record { state: State::Completed { outcome: still, .. }, .. }) if still == outcome)
        {
            self.breaks(format!("{name} changed the outcome of {key}"));
        }
        self.checks_steps(name, key, before.as_ref(), after.as_ref());
        let state = after.as_ref().map_or("absent", |record| record.state.name());
        self.note(format_args!("{name} {key}: {:?}, now {state}", step.answer));
        step.answer
    }

    pub(super) fn ignores_owners(&self) -> bool {
        self.sabotage == Some(Sabotage::OwnersIgnored)
    }

    /// Checks that an operation begins only under a valid claim. Otherwise another holder could begin it too.
    pub(super) fn checks_begin(&mut self, key: &Key, attempt: Attempt) {
        let now = self.now();
        let record = self.records.get(key);
        let holds = record.is_some_and(|record| {
            // The clocks of the store and the process run at different paces.
            let has_lease = |lease_until: StoreTime| lease_until.after(LEASE / 8) > now;
            record.attempt == attempt
                && matches!(record.state, State::InProgress { lease_until, .. } if has_lease(lease_until))
        });
        if !holds {
            self.breaks(format!("{key} begins, attempt {attempt}, under a claim that has lapsed"));
        }
    }

    pub(super) fn owner_of(&self, key: &Key) -> Option<Owner> {
        self.records.get(key).map(|record| record.owner)
    }

    pub(super) fn record(&self, key: &Key) -> Option<Record> {
        self.records.get(key).cloned()
    }

    pub(super) fn records(&self) -> impl Iterator<Item = (&Key, &Record)> {
        self.records.iter()
    }

    /// Runs a transaction's operation, and commits it together with its outcome, or commits neither.
    pub(super) fn transact(
        &mut self,
        message: oncekey::backend::CompleteInTransaction,
    ) -> Result<CompletedInTransaction, StoreError> {
        let oncekey::backend::CompleteInTransaction { key, owner, retention, operation } = message;
        let complete = |outcome| oncekey::backend::Complete { key: key.clone(), owner, outcome, retention };
        let (found, now) = (self.records.get(&key).cloned(), self.now());
        let asked = transition::complete(found.as_ref(), now, &complete(SealedOutcome::tombstone(&key)));
        match (asked.answer, asked.write, found.map(|record| record.state)) {
            (oncekey::backend::Completed::Lost, ..) => Ok(CompletedInTransaction::Lost),
            (_, Write::Nothing, Some(State::Completed { outcome, .. })) => {
                Ok(CompletedInTransaction::Stored { outcome })
            }
            _ if operation.is_probe() => Ok(CompletedInTransaction::RolledBack),
            _ => {
                let fails = self.strikes(Fault::Failure, 10.0);
                let mut transaction = Transaction { value: self.next_value(), wrote: false, fails };
                match operation.run(&mut transaction) {
                    Ok(outcome) => self.commit(&complete(outcome), transaction),
                    Err(oncekey::backend::OperationFailure::RollBack) => Ok(CompletedInTransaction::RolledBack),
                    Err(oncekey::backend::OperationFailure::WrongConnection { wanted }) => {
                        Ok(CompletedInTransaction::WrongConnection { wanted })
                    }
                }
            }
        }
    }

    /// Commits the writes of a successful operation with its outcome, if the transaction is still the one that began.
    fn commit(
        &mut self,
        message: &oncekey::backend::Complete,
        transaction: Transaction,
    ) -> Result<CompletedInTransaction, StoreError> {
        let oncekey::backend::Complete { key, owner, outcome, .. } = message;
        let mut wrote = transaction.wrote;
        if self.strikes(Fault::Contention, 12.0) {
            wrote = false;
            if !oncekey::__planted!(ContentionSwallowed) {
                return Ok(CompletedInTransaction::RolledBack);
            }
        }
        let commits_itself = self.transactions_to_end > 0;
        self.transactions_to_end -= u32::from(commits_itself);
        if commits_itself || self.strikes(Fault::TransactionEnd, 12.0) {
            if commits_itself && wrote {
                self.has_effect(key, transaction.value);
            }
            wrote = false;
            if !oncekey::__planted!(TransactionNotProven) {
                // It is unknown how much was committed, as if an operation had begun and not ended.
                if let Some(fate) = self.fates.get_mut(owner.as_bytes()) {
                    fate.began = true;
                }
                return Err(StoreError::TransactionEnded);
            }
        }
        if wrote {
            self.has_effect(key, transaction.value);
        }
        self.step("commit", key, |found, now| transition::complete(found, now, message));
        Ok(CompletedInTransaction::Stored { outcome: outcome.clone() })
    }

    fn next_value(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn has_effect(&mut self, key: &Key, value: u64) {
        self.note(format_args!("EFFECT of {key}: {value}"));
        self.report.effects += 1;
        if self.modes[key] != Mode::Rerun && self.ledger.iter().any(|(other, _)| other == key) {
            self.breaks(format!("{key} ({:?}) had its effect twice", self.modes[key]));
        }
        self.ledger.push((key.clone(), value));
    }

    /// Records that a claim was requested.
    pub(super) fn is_asked_for(&mut self, owner: Owner, life: &Arc<Life>, repeated: bool) {
        let fate = Fate { life: Arc::clone(life), repeated, began: false, failed: false };
        self.fates.insert(*owner.as_bytes(), fate);
    }

    pub(super) fn is_hung(&self, key: &Key) -> bool {
        self.hung.contains(key)
    }

    pub(super) fn gives_unstorable(&mut self, value: u64) {
        self.unstorable.push(value);
    }

    pub(super) fn is_unstorable(&self, value: u64) -> bool {
        self.unstorable.contains(&value)
    }

    /// Records that a claim was granted, with its token.
    pub(super) fn is_granted(&mut self, key: &Key, token: FencingToken, owner: Owner) {
        match self.tokens.insert(key.clone(), (token, owner)) {
            // The same claim was requested again.
            Some((_, before)) if before == owner => {}
            Some((before, _)) if before >= token => self.breaks(format!("{key} is granted {token} after {before}")),
            _ => {}
        }
    }

    /// Records a granted claim whose caller may learn of it. The returned number identifies it.
    pub(super) fn is_promised(&mut self, key: &Key, attempt: Attempt, owner: Owner, life: u64) -> u64 {
        let number = self.next_value();
        let engaged = Engaged { key: key.clone(), attempt, life };
        self.promised.push(Promise { number, heard: false, owner, engaged });
        number
    }

    pub(super) fn is_heard(&mut self, promise: u64) {
        if let Some(promise) = self.promised.iter_mut().find(|promised| promised.number == promise) {
            promise.heard = true;
        }
    }

    pub(super) fn is_not_promised(&mut self, promise: u64) {
        self.promised.retain(|promised| promised.number != promise);
    }

    /// Records that a holder's claim was confirmed. If the store's clock is faster, it may end a lease that the process
    /// still counts as valid; nothing is promised for that moment.
    pub(super) fn is_confirmed(&mut self, key: &Key, attempt: Attempt) {
        let now = self.now();
        self.note(format_args!("{key} is confirmed, attempt {attempt}"));
        if let Some(Record { attempt: other, state: State::InProgress { lease_until, .. }, .. }) = self.records.get(key)
            && *lease_until > now
            && *other != attempt
            && self.rate <= 1.0
        {
            let other = *other;
            self.breaks(format!("{key} is confirmed for attempt {attempt}, while attempt {other} holds it"));
        }
    }

    /// Checks that everything that a process knows has reached the store. At this point the store is available, the
    /// living processes had all the time that they need, and every late message has arrived.
    pub(super) fn compares_what_is_known(&mut self) {
        let now = self.now();
        let mut broken = Vec::new();
        for (key, record) in &self.records {
            let Some(Record { owner, state: State::Indeterminate, .. }) = record.clone().at(now) else { continue };
            let Some(fate) = self.fates.get(owner.as_bytes()) else { continue };
            if !fate.life.is_alive() || fate.repeated {
                continue;
            }
            if !fate.began {
                broken.push(format!("{key} is indeterminate, and nothing began under it"));
            } else if fate.failed {
                broken.push(format!("{key} is indeterminate, and its operation said that nothing happened"));
            }
        }
        for (key, value, life) in &self.finished {
            let is_kept = matches!(self.records.get(key), Some(Record { state: State::Completed { .. }, .. }));
            if life.is_alive() && !is_kept && self.modes[key] == Mode::Hold {
                broken.push(format!("the outcome {value} of {key} was thrown away"));
            }
        }
        broken.into_iter().for_each(|what| self.breaks(what));
    }
}
