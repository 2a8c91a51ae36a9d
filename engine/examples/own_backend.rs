//! A store of one's own, as any user can write it: records in a sorted map, and the whole conformance suite passed.
//!
//! ```text
//! cargo run -p oncekey --example own_backend --features conformance
//! cargo test -p oncekey --example own_backend --features conformance
//! ```

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use oncekey::backend::{
    Acquire, Acquired, Backend, BeginStep, Complete, CompleteStep, Completed, FailStep, Held, Hold, List, Lookup,
    Purge, Purged, RecordView, Release, Released, Remove, Removed, Renew, Renewed, Resolve, ResolveStep, Resolved,
    Stats, StepBegun, StepCompleted, StepFailed, StoreError, StoreStats, Withdraw, Withdrawn,
};
use oncekey::record::transition::{self, Step, Write};
use oncekey::record::{Record, State, StoreTime};
use oncekey::{Engine, Key, Outcome};

/// The store: what all its clones share. A database would stand here.
#[derive(Clone)]
struct MapBackend {
    records: Arc<Mutex<BTreeMap<Key, Record>>>,
    /// The store's clock begins here, and is the same for all that share the records.
    started: Instant,
}

impl MapBackend {
    fn new() -> Self {
        Self { records: Arc::default(), started: Instant::now() }
    }

    fn now(&self) -> StoreTime {
        StoreTime::from_millis(0).after(self.started.elapsed())
    }

    fn records(&self) -> MutexGuard<'_, BTreeMap<Key, Record>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One atomic step: nobody comes between the look-up and the write. This is all that a store has to see to; what a
    /// step decides is the library's.
    fn step<A>(&self, key: &Key, decide: impl FnOnce(Option<&Record>, StoreTime) -> Step<A>) -> Result<A, StoreError> {
        let mut records = self.records();
        let step = decide(records.get(key), self.now());
        match step.write {
            Write::Nothing => {}
            Write::Put(record) => drop(records.insert(key.clone(), record)),
            Write::Delete => drop(records.remove(key)),
        }
        Ok(step.answer)
    }
}

impl Backend for MapBackend {
    async fn acquire(&self, message: Acquire) -> Result<Acquired, StoreError> {
        self.step(&message.key, |found, now| transition::acquire(found, now, &message))
    }

    async fn renew(&self, message: Renew) -> Result<Renewed, StoreError> {
        self.step(&message.key, |found, now| transition::renew(found, now, &message))
    }

    async fn complete(&self, message: Complete) -> Result<Completed, StoreError> {
        self.step(&message.key, |found, now| transition::complete(found, now, &message))
    }

    async fn release(&self, message: Release) -> Result<Released, StoreError> {
        self.step(&message.key, |found, now| transition::release(found, now, &message))
    }

    async fn withdraw(&self, message: Withdraw) -> Result<Withdrawn, StoreError> {
        self.step(&message.key, |found, now| transition::withdraw(found, now, &message))
    }

    async fn hold(&self, message: Hold) -> Result<Held, StoreError> {
        self.step(&message.key, |found, now| transition::hold(found, now, &message))
    }

    async fn resolve(&self, message: Resolve) -> Result<Resolved, StoreError> {
        self.step(&message.key, |found, now| transition::resolve(found, now, &message))
    }

    async fn begin_step(&self, message: BeginStep) -> Result<StepBegun, StoreError> {
        self.step(&message.key, |found, now| transition::begin_step(found, now, &message))
    }

    async fn complete_step(&self, message: CompleteStep) -> Result<StepCompleted, StoreError> {
        self.step(&message.key, |found, now| transition::complete_step(found, now, &message))
    }

    async fn fail_step(&self, message: FailStep) -> Result<StepFailed, StoreError> {
        self.step(&message.key, |found, now| transition::fail_step(found, now, &message))
    }

    async fn resolve_step(&self, message: ResolveStep) -> Result<Resolved, StoreError> {
        self.step(&message.key, |found, now| transition::resolve_step(found, now, &message))
    }

    async fn lookup(&self, message: Lookup) -> Result<Option<RecordView>, StoreError> {
        let found = self.records().get(&message.key).cloned();
        Ok(found.and_then(|record| RecordView::of(message.key, record, self.now())))
    }

    async fn remove(&self, message: Remove) -> Result<Removed, StoreError> {
        self.step(&message.key, |found, now| transition::remove(found, now, &message))
    }

    async fn list(&self, message: List) -> Result<Vec<RecordView>, StoreError> {
        let (records, now) = (self.records(), self.now());
        let later = records.iter().filter(|(key, _)| message.after.as_ref().is_none_or(|after| *key > after));
        Ok(later
            .filter_map(|(key, record)| RecordView::of(key.clone(), record.clone(), now))
            .take(message.limit)
            .collect())
    }

    async fn purge(&self, message: Purge) -> Result<Purged, StoreError> {
        let (mut records, now) = (self.records(), self.now());
        let expired = records.iter().filter(|(_, record)| record.purge_at().is_some_and(|at| at <= now));
        let expired: Vec<Key> = expired.map(|(key, _)| key.clone()).take(message.limit).collect();
        expired.iter().for_each(|key| drop(records.remove(key)));
        Ok(Purged { removed: expired.len(), more: expired.len() == message.limit })
    }

    async fn stats(&self, _: Stats) -> Result<StoreStats, StoreError> {
        let mut stats = StoreStats::default();
        for record in self.records().values() {
            match record.state {
                State::InProgress { .. } => stats.in_progress += 1,
                State::Completed { .. } => stats.completed += 1,
                State::Indeterminate => stats.indeterminate += 1,
                State::Released { .. } => stats.released += 1,
                State::Vacant { .. } => {}
            }
        }
        Ok(stats)
    }

    // `watch` looks every 30 ms or so unless the store can tell; `execute` takes the steps of a batch one by one unless
    // the store gains by taking them together.
}

#[actix_rt::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let engine = Engine::builder(MapBackend::new()).start()?;
    let key = Key::new("mail", 17)?;
    for _ in 0..2 {
        match engine.run(key.clone(), &"to: ada", |_| async { Ok::<_, std::io::Error>("sent".to_owned()) }).await? {
            Outcome::Ran(mail) => println!("ran: {mail}"),
            Outcome::Replayed(mail) => println!("replayed: {mail}"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod e18_any_user_can_write_a_backend {
    use super::*;
    use oncekey::conformance::{self, Capabilities};

    #[actix_rt::test]
    async fn e18_it_passes_the_conformance_suite() {
        let store = MapBackend::new();
        conformance::suite(move || std::future::ready(store.clone()), Capabilities::without_transactions()).await;
    }
}
