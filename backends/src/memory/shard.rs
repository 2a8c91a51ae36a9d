//! One shard of the map, and the order in which its records expire.

use std::collections::BTreeMap;

use hashbrown::HashMap;
use oncekey::backend::{List, RecordView, StoreStats};
use oncekey::record::transition::Write;
use oncekey::record::{Record, State, StoreTime};
use oncekey::{Key, KeyHasher};
use tokio::sync::oneshot;

use super::Usage;

/// Claims stand apart from settled records: they are few and often touched, and those that were abandoned are found
/// among them alone.
#[derive(Debug, Default)]
pub(super) struct Shard {
    claimed: HashMap<Key, Record, KeyHasher>,
    /// Completed or indeterminate.
    settled: HashMap<Key, Record, KeyHasher>,
    /// The keys of completed records by the second in which they expire. A key that was removed before its time stays
    /// until then, and is passed over.
    expiring: BTreeMap<u64, Vec<Key>>,
    watchers: HashMap<Key, Vec<oneshot::Sender<()>>, KeyHasher>,
    /// When to look for abandoned claims again.
    next_claim_walk: u64,
}

/// How often the claims are walked for those that were abandoned, in milliseconds.
const CLAIM_WALK_EVERY: u64 = 60_000;

/// What a record takes beside its key's text and its outcome: its place in the map, at the map's usual load, its entry
/// among the expiring, and the headers of its allocations.
const OVERHEAD: usize = (size_of::<Key>() + size_of::<Record>()) * 8 / 6 + size_of::<Key>() + 64;

fn size(key: &Key, record: &Record) -> usize {
    let outcome = match &record.state {
        State::Completed { outcome, .. } => outcome.as_stored().len(),
        State::InProgress { .. } | State::Indeterminate => 0,
    };
    OVERHEAD + key.as_stored().len() + outcome
}

fn expiry_second(at: StoreTime) -> u64 {
    // Rounded up: when the second has come, all that is in it has expired.
    at.as_millis().div_ceil(1_000)
}

impl Shard {
    pub(super) fn find(&self, key: &Key) -> Option<&Record> {
        self.claimed.get(key).or_else(|| self.settled.get(key))
    }

    /// Does what a step decided, and wakes those who watch the key.
    pub(super) fn write(&mut self, key: &Key, write: Write, usage: &Usage) {
        match write {
            Write::Nothing => return,
            Write::Put(record) => self.put(key, record, usage),
            Write::Delete => {
                if let Some(old) = self.claimed.remove(key).or_else(|| self.settled.remove(key)) {
                    usage.remove(size(key, &old));
                }
            }
        }
        if !self.watchers.is_empty() && !self.claimed.contains_key(key) {
            for watcher in self.watchers.remove(key).unwrap_or_default() {
                // Whoever no longer listens need not be told.
                let _ = watcher.send(());
            }
        }
    }

    fn put(&mut self, key: &Key, record: Record, usage: &Usage) {
        let new_size = size(key, &record);
        let is_claim = matches!(record.state, State::InProgress { .. });
        if let State::Completed { expires_at, .. } = &record.state {
            self.expiring.entry(expiry_second(*expires_at)).or_default().push(key.clone());
        }
        let (home, other) =
            if is_claim { (&mut self.claimed, &mut self.settled) } else { (&mut self.settled, &mut self.claimed) };
        let old = other.remove(key);
        let old = home.insert(key.clone(), record).or(old);
        match old {
            Some(old) => usage.replace(size(key, &old), new_size),
            None => usage.add(new_size),
        }
    }

    /// Removes up to `limit` records whose time is over, and gives their count.
    pub(super) fn purge(&mut self, now: StoreTime, limit: usize, usage: &Usage) -> usize {
        let mut removed = 0;
        while removed < limit
            && let Some(mut second) = self.expiring.first_entry()
            && *second.key() * 1_000 <= now.as_millis()
        {
            let Some(key) = second.get_mut().pop() else {
                second.remove();
                continue;
            };
            let is_expired = |record: &Record| record.purge_at().is_some_and(|at| at <= now);
            if self.settled.get(&key).is_some_and(is_expired)
                && let Some(old) = self.settled.remove(&key)
            {
                usage.remove(size(&key, &old));
                removed += 1;
            }
        }
        if now.as_millis() >= self.next_claim_walk {
            self.next_claim_walk = now.as_millis() + CLAIM_WALK_EVERY;
            removed += self.settle_abandoned(now, limit - removed, usage);
        }
        self.give_back_room();
        removed
    }

    /// Claims that nobody came back for: those that may be rerun go after their time, those to be held are indeterminate.
    fn settle_abandoned(&mut self, now: StoreTime, limit: usize, usage: &Usage) -> usize {
        let stale: Vec<_> = self
            .claimed
            .iter()
            .filter_map(|(key, record)| match record.clone().at(now) {
                None => Some((key.clone(), Write::Delete)),
                Some(record) if record.state == State::Indeterminate => Some((key.clone(), Write::Put(record))),
                Some(_) => None,
            })
            .take(limit)
            .collect();
        let removed = stale.iter().filter(|(_, write)| *write == Write::Delete).count();
        stale.into_iter().for_each(|(key, write)| self.write(&key, write, usage));
        removed
    }

    /// After a flood has expired, its room is not kept.
    fn give_back_room(&mut self) {
        for map in [&mut self.claimed, &mut self.settled] {
            if map.capacity() > 1_024 && map.len() < map.capacity() / 8 {
                map.shrink_to(map.len() * 2);
            }
        }
    }

    /// The `limit` smallest records after a key.
    pub(super) fn page(&self, now: StoreTime, message: &List) -> Vec<RecordView> {
        let is_later = |key: &Key| message.after.as_ref().is_none_or(|after| key > after);
        let mut found: Vec<_> =
            self.claimed.iter().chain(self.settled.iter()).filter(|(key, _)| is_later(key)).collect();
        found.sort_unstable_by_key(|(key, _)| *key);
        let views = found.into_iter().filter_map(|(key, record)| RecordView::of(key.clone(), record.clone(), now));
        views.take(message.limit).collect()
    }

    pub(super) fn count(&self, stats: &mut StoreStats) {
        stats.in_progress += self.claimed.len() as u64;
        for record in self.settled.values() {
            match record.state {
                State::Indeterminate => stats.indeterminate += 1,
                State::Completed { .. } | State::InProgress { .. } => stats.completed += 1,
            }
        }
    }

    /// A signal for when the key is no longer claimed; `None` if it is not claimed now.
    pub(super) fn watch(&mut self, key: &Key) -> Option<oneshot::Receiver<()>> {
        if !self.claimed.contains_key(key) {
            return None;
        }
        let (changed, watching) = oneshot::channel();
        let watchers = self.watchers.entry(key.clone()).or_default();
        watchers.retain(|watcher| !watcher.is_closed());
        watchers.push(changed);
        Some(watching)
    }
}
