//! One shard of the map, and the order in which its records expire.

use std::collections::BTreeMap;

use hashbrown::{HashMap, HashTable};
use oncekey::backend::{Find, List, RecordView, StateName, StoreStats};
use oncekey::record::transition::Write;
use oncekey::record::{Record, State, StoreTime};
use oncekey::{Key, KeyHasher};
use tokio::sync::oneshot;

use super::{Tally, Usage};

/// Claims are kept apart from settled records: they are few and change often, and abandoned claims can only be among
/// them.
#[derive(Debug, Default)]
pub(super) struct Shard {
    claimed: Table,
    /// Completed or indeterminate records.
    settled: Table,
    /// Hashes of the keys of completed records, by the second in which they expire. The hash of a record that was
    /// removed early stays until then, and finds nothing.
    expiring: BTreeMap<u64, Vec<u64>>,
    watchers: HashMap<Key, Vec<oneshot::Sender<()>>, KeyHasher>,
    tally: Tally,
    /// When to look for abandoned claims again, in milliseconds of the store's time.
    next_claim_walk: u64,
}

#[derive(Debug)]
struct Entry {
    key: Key,
    record: Record,
}

/// How often to look through the claims for abandoned ones, in milliseconds.
const CLAIM_WALK_EVERY: u64 = 60_000;

/// A table of boxed entries with their hashes beside them. Growing it moves sixteen bytes per record and reads no
/// record, and a completion moves its record's box from one table to the other.
#[derive(Debug, Default)]
struct Table(HashTable<(u64, Box<Entry>)>);

impl Table {
    fn get(&self, key: &Key) -> Option<&Record> {
        let found = self.0.find(key.table_hash(), |(hash, entry)| *hash == key.table_hash() && entry.key == *key)?;
        Some(&found.1.record)
    }

    fn take(&mut self, key: &Key) -> Option<Box<Entry>> {
        self.take_where(key.table_hash(), |entry| entry.key == *key)
    }

    fn take_where(&mut self, wanted: u64, is_it: impl Fn(&Entry) -> bool) -> Option<Box<Entry>> {
        let found = self.0.find_entry(wanted, |(hash, entry)| *hash == wanted && is_it(entry)).ok()?;
        Some(found.remove().0.1)
    }

    /// Adds an entry whose key is not in the table.
    fn add(&mut self, entry: Box<Entry>) {
        let hash = entry.key.table_hash();
        self.0.insert_unique(hash, (hash, entry), |(hash, _)| *hash);
    }

    fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.0.iter().map(|(_, entry)| &**entry)
    }

    /// Releases the memory that a flood of records needed, once they have expired.
    fn give_back_room(&mut self) {
        if self.0.capacity() > 1_024 && self.0.len() < self.0.capacity() / 8 {
            self.0.shrink_to(self.0.len() * 2, |(hash, _)| *hash);
        }
    }
}

/// The memory that a record uses besides its key's text and its outcome: its box, its place in the table at the table's
/// usual load, its hash in `expiring`, and the headers of four allocations.
const OVERHEAD: usize = size_of::<Entry>() + size_of::<(u64, Box<Entry>)>() * 8 / 5 + size_of::<u64>() + 4 * 16;

impl Entry {
    fn size(&self) -> usize {
        let outcome = match &self.record.state {
            State::Completed { outcome, .. } => outcome.as_stored().len(),
            State::InProgress { .. } | State::Indeterminate | State::Released { .. } | State::Vacant { .. } => 0,
        };
        let steps = self.record.steps.as_ref().map_or(0, |steps| steps.bytes());
        OVERHEAD + self.key.as_stored().len() + outcome + steps
    }

    fn is_expired(&self, now: StoreTime) -> bool {
        self.record.purge_at().is_some_and(|at| at <= now)
    }
}

fn expiry_second(at: StoreTime) -> u64 {
    // Rounded up, so that every record of a second has expired when that second begins.
    at.as_millis().div_ceil(1_000)
}

impl Shard {
    pub(super) fn find(&self, key: &Key) -> Option<&Record> {
        self.claimed.get(key).or_else(|| self.settled.get(key))
    }

    /// Writes a decision, and wakes the watchers of the key. `was_there` says whether [`find`](Self::find) has found
    /// the key; a new key needs no lookup.
    pub(super) fn write(&mut self, key: &Key, was_there: bool, write: Write, usage: &Usage) {
        match write {
            Write::Nothing => return,
            Write::Put(record) => self.put(key, was_there, record),
            Write::Delete => {
                if let Some(old) = self.claimed.take(key).or_else(|| self.settled.take(key)) {
                    self.tally.remove(old.size());
                }
            }
        }
        usage.take_in(&mut self.tally);
        if !self.watchers.is_empty() && self.claimed.get(key).is_none() {
            for watcher in self.watchers.remove(key).unwrap_or_default() {
                // The watcher may have gone, and then needs no message.
                let _ = watcher.send(());
            }
        }
    }

    fn put(&mut self, key: &Key, was_there: bool, record: Record) {
        if let State::Completed { expires_at: at, .. }
        | State::Released { expires_at: at }
        | State::Vacant { until: at } = &record.state
        {
            self.expiring.entry(expiry_second(*at)).or_default().push(key.table_hash());
        }
        let old = was_there.then(|| self.claimed.take(key).or_else(|| self.settled.take(key))).flatten();
        let entry = match old {
            Some(mut entry) => {
                let old_size = entry.size();
                entry.record = record;
                self.tally.replace(old_size, entry.size());
                entry
            }
            None => {
                let entry = Box::new(Entry { key: key.clone(), record });
                self.tally.add(entry.size());
                entry
            }
        };
        let is_claim = matches!(entry.record.state, State::InProgress { .. });
        if is_claim { &mut self.claimed } else { &mut self.settled }.add(entry);
    }

    /// Removes up to `limit` expired records, and returns their count.
    pub(super) fn purge(&mut self, now: StoreTime, limit: usize, usage: &Usage) -> usize {
        let mut removed = 0;
        while removed < limit
            && let Some(mut second) = self.expiring.first_entry()
            && *second.key() * 1_000 <= now.as_millis()
        {
            let Some(hash) = second.get_mut().pop() else {
                second.remove();
                continue;
            };
            if let Some(old) = self.settled.take_where(hash, |entry| entry.is_expired(now)) {
                self.tally.remove(old.size());
                removed += 1;
            }
        }
        if oncekey::__planted!(PurgeTakesLiveClaims) {
            removed += self.claimed.0.drain().count();
        }
        if now.as_millis() >= self.next_claim_walk {
            self.next_claim_walk = now.as_millis() + CLAIM_WALK_EVERY;
            removed += self.settle_abandoned(now, limit - removed, usage);
        }
        usage.take_in(&mut self.tally);
        self.claimed.give_back_room();
        self.settled.give_back_room();
        removed
    }

    /// Returns the bytes that are not yet added to the total.
    pub(super) fn held_back_bytes(&self) -> isize {
        self.tally.bytes
    }

    /// Handles claims that no caller has taken over: removes those that may rerun once they expire, and makes those to
    /// be held indeterminate.
    fn settle_abandoned(&mut self, now: StoreTime, limit: usize, usage: &Usage) -> usize {
        let stale = self.claimed.iter().filter_map(|entry| match entry.record.clone().at(now) {
            None => Some((entry.key.clone(), Write::Delete)),
            Some(record) if record.state == State::Indeterminate => Some((entry.key.clone(), Write::Put(record))),
            Some(_) => None,
        });
        let stale: Vec<_> = stale.take(limit).collect();
        let removed = stale.iter().filter(|(_, write)| *write == Write::Delete).count();
        stale.into_iter().for_each(|(key, write)| self.write(&key, true, write, usage));
        removed
    }

    /// Returns the `limit` smallest records after a key.
    pub(super) fn page(&self, now: StoreTime, message: &List) -> Vec<RecordView> {
        let is_later = |entry: &&Entry| message.after.as_ref().is_none_or(|after| entry.key > *after);
        let mut found: Vec<_> = self.claimed.iter().chain(self.settled.iter()).filter(is_later).collect();
        found.sort_unstable_by_key(|entry| &entry.key);
        let views = found.into_iter().filter_map(|entry| RecordView::of(entry.key.clone(), entry.record.clone(), now));
        views.take(message.limit).collect()
    }

    /// Returns the `wanted` smallest records after a key that match the filter.
    pub(super) fn find_page(&self, now: StoreTime, message: &Find, wanted: usize) -> Vec<RecordView> {
        let Find { filter, after, .. } = message;
        // Checked without copying the record, because most records do not match.
        let may_be_it = |entry: &&Entry| {
            let is_of_state = match filter.state {
                None => true,
                Some(StateName::InProgress) => matches!(entry.record.state, State::InProgress { .. }),
                Some(StateName::Completed) => matches!(entry.record.state, State::Completed { .. }),
                Some(StateName::Released) => matches!(entry.record.state, State::Released { .. }),
                Some(StateName::Indeterminate) => match entry.record.state {
                    State::InProgress { lease_until, .. } => lease_until <= now,
                    State::Indeterminate => true,
                    State::Completed { .. } | State::Released { .. } | State::Vacant { .. } => false,
                },
            };
            is_of_state
                && filter.scope.as_deref().is_none_or(|scope| scope == entry.key.scope())
                && after.as_ref().is_none_or(|after| entry.key > *after)
        };
        let mut found: Vec<_> = self.claimed.iter().chain(self.settled.iter()).filter(may_be_it).collect();
        found.sort_unstable_by_key(|entry| &entry.key);
        let views = found.into_iter().filter_map(|entry| RecordView::of(entry.key.clone(), entry.record.clone(), now));
        views.filter(|view| filter.takes(view)).take(wanted).collect()
    }

    pub(super) fn count(&self, stats: &mut StoreStats) {
        stats.in_progress += self.claimed.iter().count() as u64;
        for entry in self.settled.iter() {
            match entry.record.state {
                State::Indeterminate => stats.indeterminate += 1,
                State::Completed { .. } | State::InProgress { .. } => stats.completed += 1,
                State::Released { .. } => stats.released += 1,
                State::Vacant { .. } => {}
            }
        }
    }

    /// Returns a signal for the end of the key's claim; `None` if the key is not claimed.
    pub(super) fn watch(&mut self, key: &Key) -> Option<oneshot::Receiver<()>> {
        self.claimed.get(key)?;
        let (changed, watching) = oneshot::channel();
        let watchers = self.watchers.entry(key.clone()).or_default();
        watchers.retain(|watcher| !watcher.is_closed());
        watchers.push(changed);
        Some(watching)
    }
}
