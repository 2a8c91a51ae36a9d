//! Stores records in the process's memory: for a single process, for tests, and wherever losing the records at a
//! restart is acceptable.
//!
//! All arbiters of the process share one map in [shards](shard). Each shard has a lock, which is held for well under a
//! microsecond. Times come from the process's monotonic clock.
//!
//! # The cap
//! The store holds at most [`max_records`](MemoryBackendBuilder::max_records) and about
//! [`max_bytes`](MemoryBackendBuilder::max_bytes). At either limit, it first looks for expired records and then
//! **refuses new claims** with [`StoreError::Full`]. It never evicts a record early, because the operation of a lost
//! outcome runs twice. It never refuses a completion, so the bytes can exceed their limit by what the claims in flight
//! then store.

mod shard;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use oncekey::Key;
use oncekey::backend::{
    Acquire, Acquired, Backend, BeginStep, Changed, Complete, CompleteStep, Completed, FailStep, Find, Found, Held,
    Hold, List, Lookup, Purge, Purged, RecordView, Release, Released, Remove, Removed, Renew, Renewed, Request,
    Resolve, ResolveStep, Resolved, Stats, StepBegun, StepCompleted, StepFailed, StoreError, StoreStats, Watch,
    Withdraw, Withdrawn,
};
use oncekey::record::{Record, StoreTime, transition};
use parking_lot::{Mutex, MutexGuard};

use shard::Shard;

/// Enough shards that two threads rarely need the same lock.
const SHARDS: usize = 64;

/// Stores records in the process's memory.
///
/// Clones share the records.
///
/// ```
/// use oncekey::Engine;
/// use oncekey_backends::MemoryBackend;
///
/// let engine = Engine::builder(MemoryBackend::new()).start()?;
/// # Ok::<(), oncekey::StartError>(())
/// ```
#[derive(Debug, Clone)]
pub struct MemoryBackend {
    store: Arc<Store>,
}

#[derive(Debug)]
struct Store {
    shards: Box<[Mutex<Shard>]>,
    started: Instant,
    /// The wall clock's time at the start, so that fencing tokens rise across restarts. Nothing else depends on it.
    epoch: u64,
    usage: Usage,
    max_records: usize,
    max_bytes: usize,
}

/// The memory that the records of all shards use. Each shard counts by itself and adds its count here in portions,
/// because a counter that two threads update at every step would cost each of them more than the step.
#[derive(Debug)]
struct Usage {
    records: AtomicUsize,
    bytes: AtomicUsize,
    /// How far a shard's own count may go before it is added. Zero under a small limit, which is then exact.
    portion: usize,
}

impl Usage {
    fn new(max_records: usize, max_bytes: usize) -> Self {
        // All shards together hold back less than a sixteenth of either limit.
        let portion = max_records.min(max_bytes / BYTES_OF_A_RECORD) / (SHARDS * 16);
        let portion = portion.min(64);
        Self { records: AtomicUsize::new(0), bytes: AtomicUsize::new(0), portion }
    }

    /// Adds a shard's count if it exceeds a portion.
    fn take_in(&self, tally: &mut Tally) {
        let records = tally.records.unsigned_abs();
        if records <= self.portion && tally.bytes.unsigned_abs() <= self.portion * BYTES_OF_A_RECORD {
            return;
        }
        // These additions wrap: a negative count subtracts.
        self.records.fetch_add(tally.records as usize, Ordering::Relaxed);
        self.bytes.fetch_add(tally.bytes as usize, Ordering::Relaxed);
        *tally = Tally::default();
    }
}

/// The approximate size of a small record.
const BYTES_OF_A_RECORD: usize = 512;

/// What a shard has counted and not yet added to the total.
#[derive(Debug, Default)]
struct Tally {
    records: isize,
    bytes: isize,
}

impl Tally {
    fn add(&mut self, bytes: usize) {
        self.records += 1;
        self.bytes += bytes as isize;
    }

    fn remove(&mut self, bytes: usize) {
        self.records -= 1;
        self.bytes -= bytes as isize;
    }

    fn replace(&mut self, old: usize, new: usize) {
        self.bytes += new as isize - old as isize;
    }
}

/// Builds a [`MemoryBackend`].
///
/// ```
/// use oncekey_backends::MemoryBackend;
///
/// let small = MemoryBackend::builder().max_records(10_000).max_bytes(16 << 20).build();
/// ```
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct MemoryBackendBuilder {
    max_records: usize,
    max_bytes: usize,
}

impl MemoryBackendBuilder {
    /// Sets the most records to hold, including claims in flight. Default: 10 million.
    pub fn max_records(mut self, records: usize) -> Self {
        self.max_records = records;
        self
    }

    /// Sets the approximate number of bytes that the records may use, including the maps' own memory. Default: 4 GiB.
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// Creates an empty store.
    pub fn build(self) -> MemoryBackend {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        let store = Store {
            shards,
            started: Instant::now(),
            epoch: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64),
            usage: Usage::new(self.max_records, self.max_bytes),
            max_records: self.max_records,
            max_bytes: self.max_bytes,
        };
        MemoryBackend { store: Arc::new(store) }
    }
}

impl Default for MemoryBackend {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryBackend {
    /// Creates an empty store with the default limits.
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// Returns a builder for a store.
    pub fn builder() -> MemoryBackendBuilder {
        MemoryBackendBuilder { max_records: 10_000_000, max_bytes: 4 << 30 }
    }

    /// Returns the approximate number of bytes that the records use, including the maps' own memory.
    ///
    /// ```
    /// assert_eq!(oncekey_backends::MemoryBackend::new().bytes(), 0);
    /// ```
    pub fn bytes(&self) -> usize {
        let counted = self.store.usage.bytes.load(Ordering::Relaxed);
        let held_back = self.store.shards.iter().map(|shard| shard.lock().held_back_bytes());
        held_back.fold(counted, |sum, bytes| sum.wrapping_add_signed(bytes))
    }
}

impl Store {
    fn now(&self) -> StoreTime {
        // 584 million years in milliseconds fit.
        StoreTime::from_millis(self.epoch + self.started.elapsed().as_millis() as u64)
    }

    fn shard(&self, key: &Key) -> MutexGuard<'_, Shard> {
        // The tables in a shard do not use these bits to find a key's place.
        self.shards[(key.table_hash() >> 40) as usize % SHARDS].lock()
    }

    /// Executes one step on a key's record.
    fn step<Answer>(
        &self,
        key: &Key,
        decide: impl FnOnce(Option<&Record>) -> transition::Step<Answer>,
    ) -> Result<Answer, StoreError> {
        if oncekey::__planted!(CheckThenLock) {
            let found = self.shard(key).find(key).cloned();
            let step = decide(found.as_ref());
            std::thread::yield_now();
            self.shard(key).write(key, true, step.write, &self.usage);
            return Ok(step.answer);
        }
        let mut shard = self.shard(key);
        let found = shard.find(key);
        let was_there = found.is_some();
        let step = decide(found);
        shard.write(key, was_there, step.write, &self.usage);
        Ok(step.answer)
    }

    fn acquire(&self, now: StoreTime, message: &Acquire) -> Result<Acquired, StoreError> {
        if self.is_full() {
            self.make_room(now);
            if self.is_full() && self.shard(&message.key).find(&message.key).is_none() {
                return Err(StoreError::Full(format!(
                    "the memory store is at its cap of {} records or {} bytes",
                    self.max_records, self.max_bytes
                )));
            }
        }
        self.step(&message.key, |found| transition::acquire(found, now, message))
    }

    fn is_full(&self) -> bool {
        self.usage.records.load(Ordering::Relaxed) >= self.max_records
            || self.usage.bytes.load(Ordering::Relaxed) >= self.max_bytes
    }

    fn make_room(&self, now: StoreTime) {
        self.purge(now, Purge { limit: 64 });
    }

    fn purge(&self, now: StoreTime, message: Purge) -> Purged {
        let mut removed = 0;
        for shard in &self.shards {
            removed += shard.lock().purge(now, message.limit - removed, &self.usage);
            if removed >= message.limit {
                return Purged { removed, more: true };
            }
        }
        Purged { removed, more: false }
    }

    fn list(&self, now: StoreTime, message: &List) -> Vec<RecordView> {
        let mut views = Vec::new();
        for shard in &self.shards {
            views.extend(shard.lock().page(now, message));
            // Keeps only the smallest records so far: memory never holds more than a page and one shard's share of it.
            views.sort_unstable_by(|one: &RecordView, other| one.key.cmp(&other.key));
            views.truncate(message.limit);
        }
        views
    }

    /// Collects the records of one page from all shards, and one more record, which shows whether there is another
    /// page.
    fn find(&self, now: StoreTime, message: &Find) -> Found {
        let wanted = message.limit.saturating_add(1);
        let mut records = Vec::new();
        for shard in &self.shards {
            records.extend(shard.lock().find_page(now, message, wanted));
            records.sort_unstable_by(|one: &RecordView, other| one.key.cmp(&other.key));
            records.truncate(wanted);
        }
        let is_last = records.len() < wanted;
        records.truncate(message.limit);
        let next = if is_last { None } else { records.last().map(|last| last.key.clone()) };
        Found { records, next }
    }

    fn stats(&self) -> StoreStats {
        let mut stats = StoreStats::default();
        self.shards.iter().for_each(|shard| shard.lock().count(&mut stats));
        stats
    }

    /// Answers a request that needs no waiting. Returns any other request.
    fn take(&self, now: StoreTime, request: Request) -> Option<Request> {
        match request {
            Request::Acquire(message, reply) => reply.send(self.acquire(now, &message)),
            Request::Renew(message, reply) => {
                reply.send(self.step(&message.key, |found| transition::renew(found, now, &message)));
            }
            Request::Complete(message, reply) => {
                reply.send(self.step(&message.key, |found| transition::complete(found, now, &message)));
            }
            Request::Release(message, reply) => {
                reply.send(self.step(&message.key, |found| transition::release(found, now, &message)));
            }
            other => return Some(other),
        }
        None
    }
}

impl Backend for MemoryBackend {
    async fn acquire(&self, message: Acquire) -> Result<Acquired, StoreError> {
        self.store.acquire(self.store.now(), &message)
    }

    async fn renew(&self, message: Renew) -> Result<Renewed, StoreError> {
        self.store.step(&message.key, |found| transition::renew(found, self.store.now(), &message))
    }

    async fn complete(&self, message: Complete) -> Result<Completed, StoreError> {
        self.store.step(&message.key, |found| transition::complete(found, self.store.now(), &message))
    }

    async fn release(&self, message: Release) -> Result<Released, StoreError> {
        self.store.step(&message.key, |found| transition::release(found, self.store.now(), &message))
    }

    async fn withdraw(&self, message: Withdraw) -> Result<Withdrawn, StoreError> {
        self.store.step(&message.key, |found| transition::withdraw(found, self.store.now(), &message))
    }

    async fn hold(&self, message: Hold) -> Result<Held, StoreError> {
        self.store.step(&message.key, |found| transition::hold(found, self.store.now(), &message))
    }

    async fn resolve(&self, message: Resolve) -> Result<Resolved, StoreError> {
        self.store.step(&message.key, |found| transition::resolve(found, self.store.now(), &message))
    }

    async fn begin_step(&self, message: BeginStep) -> Result<StepBegun, StoreError> {
        self.store.step(&message.key, |found| transition::begin_step(found, self.store.now(), &message))
    }

    async fn complete_step(&self, message: CompleteStep) -> Result<StepCompleted, StoreError> {
        self.store.step(&message.key, |found| transition::complete_step(found, self.store.now(), &message))
    }

    async fn fail_step(&self, message: FailStep) -> Result<StepFailed, StoreError> {
        self.store.step(&message.key, |found| transition::fail_step(found, self.store.now(), &message))
    }

    async fn resolve_step(&self, message: ResolveStep) -> Result<Resolved, StoreError> {
        self.store.step(&message.key, |found| transition::resolve_step(found, self.store.now(), &message))
    }

    async fn lookup(&self, message: Lookup) -> Result<Option<RecordView>, StoreError> {
        let now = self.store.now();
        let found = self.store.shard(&message.key).find(&message.key).cloned();
        Ok(found.and_then(|record| RecordView::of(message.key, record, now)))
    }

    async fn remove(&self, message: Remove) -> Result<Removed, StoreError> {
        self.store.step(&message.key, |found| transition::remove(found, self.store.now(), &message))
    }

    async fn list(&self, message: List) -> Result<Vec<RecordView>, StoreError> {
        Ok(self.store.list(self.store.now(), &message))
    }

    async fn find(&self, message: Find) -> Result<Found, StoreError> {
        Ok(self.store.find(self.store.now(), &message))
    }

    async fn purge(&self, message: Purge) -> Result<Purged, StoreError> {
        Ok(self.store.purge(self.store.now(), message))
    }

    async fn stats(&self, _: Stats) -> Result<StoreStats, StoreError> {
        Ok(self.store.stats())
    }

    /// The step that changes the record wakes the watcher, on any arbiter.
    async fn watch(&self, message: Watch) -> Result<Changed, StoreError> {
        if oncekey::__planted!(WatchNeverTells) {
            std::future::pending::<()>().await;
        }
        let changed = self.store.shard(&message.key).watch(&message.key);
        if let Some(changed) = changed {
            // If the sender is dropped, no message will follow, so the caller checks the record too.
            let _ = tokio::time::timeout(message.limit.min(Duration::from_secs(3_600)), changed).await;
        }
        Ok(Changed)
    }

    /// Executes the whole batch without waiting: the steps of an operation's life need neither their own task nor their
    /// own allocation.
    async fn execute(&self, batch: Vec<Request>) {
        let now = self.store.now();
        for request in batch {
            if let Some(rare) = self.store.take(now, request) {
                // Boxed, so that the future for the common steps stays small.
                Box::pin(rare.dispatch(self)).await;
            }
        }
    }
}
