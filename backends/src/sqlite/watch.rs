//! Who waits for which key, and the thread that looks for changes made by other processes.
//!
//! The process's own writer wakes the waiting by name, after its commit. A commit by another process is noticed by
//! SQLite's `data_version`, a number in shared memory, so that looking costs next to nothing while nothing happens.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crossbeam_channel::Receiver;
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use oncekey::backend::StoreError;
use oncekey::record::State;
use oncekey::{Key, KeyHasher};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tracing::warn;

use super::clock::Clock;
use super::connection::Opener;
use super::error::not_taken;
use super::records;
use super::session::Session;

struct Waiting {
    signal: Arc<Notify>,
    watchers: usize,
}

/// The keys that somebody waits for.
#[derive(Default)]
pub(super) struct Watchers {
    keys: Mutex<HashMap<Key, Waiting, KeyHasher>>,
}

/// One who waits. Dropping it ends the wait.
pub(super) struct Watcher {
    watchers: Arc<Watchers>,
    key: Key,
    signal: Arc<Notify>,
}

impl Watchers {
    pub(super) fn register(self: &Arc<Self>, key: Key) -> Watcher {
        let mut keys = self.keys.lock();
        let waiting = keys.entry(key.clone()).or_insert_with(|| Waiting { signal: Arc::default(), watchers: 0 });
        waiting.watchers += 1;
        Watcher { watchers: Arc::clone(self), key, signal: Arc::clone(&waiting.signal) }
    }

    /// Wakes those who wait for these keys.
    pub(super) fn wake(&self, settled: impl Iterator<Item = Key>) {
        let keys = self.keys.lock();
        if keys.is_empty() {
            return settled.for_each(drop);
        }
        settled.filter_map(|key| keys.get(&key)).for_each(|waiting| waiting.signal.notify_waiters());
    }

    fn watched(&self) -> Vec<Key> {
        self.keys.lock().keys().cloned().collect()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.keys.lock().len()
    }
}

impl Watcher {
    /// Resolves at the next change after this was called, whether it is polled by then or not.
    pub(super) fn changed(&self) -> impl Future<Output = ()> + '_ {
        self.signal.notified()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if let Entry::Occupied(mut entry) = self.watchers.keys.lock().entry(self.key.clone()) {
            entry.get_mut().watchers -= 1;
            if entry.get().watchers == 0 {
                entry.remove();
            }
        }
    }
}

/// The thread that looks. It sleeps while nobody waits.
pub(super) struct Lookout {
    /// Hears of new watchers; closed when the last handle has gone.
    pub(super) calls: Receiver<()>,
    pub(super) watchers: Arc<Watchers>,
    pub(super) opener: Opener,
    pub(super) clock: Clock,
}

impl Lookout {
    pub(super) fn run(self) {
        let mut session = None;
        while self.calls.recv().is_ok() {
            // Unknown, so that the first look reads the records: they may have changed while nobody looked.
            let mut seen = None;
            loop {
                if let Err(error) = self.look(&mut session, &mut seen) {
                    warn!(%error, "watching for other processes' changes failed, and is tried again");
                    (session, seen) = (None, None);
                }
                thread::sleep(pause());
                if self.watchers.keys.lock().is_empty() {
                    break;
                }
            }
        }
    }

    fn look(&self, session: &mut Option<Session>, seen: &mut Option<i64>) -> Result<(), StoreError> {
        let session = match session {
            Some(session) => session,
            None => session.insert(self.opener.reader(&self.clock).map_err(StoreError::unavailable)?),
        };
        let version = sql::<BigInt>("PRAGMA data_version")
            .get_result::<i64>(&mut session.connection)
            .map_err(|error| not_taken(&error))?;
        if *seen == Some(version) {
            return Ok(());
        }
        // The keys are read after the version: one that is added later has been looked up by its watcher, and a change
        // after that look-up shows in the next version.
        let settled = self.watchers.watched().into_iter().filter(|key| {
            let found = records::find(&mut session.connection, key);
            !matches!(found, Ok(Some(found)) if matches!(found.record.state, State::InProgress { .. }))
        });
        let settled: Vec<Key> = settled.collect();
        self.watchers.wake(settled.into_iter());
        *seen = Some(version);
        Ok(())
    }
}

/// 20 to 40 ms: jitter keeps the processes of a machine from looking in step.
fn pause() -> Duration {
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.subsec_nanos());
    Duration::from_millis(20 + u64::from(nanos / 1_000 % 20))
}
