//! The waiting callers of this process, by key. A backend registers a caller here, and wakes it when the key changes.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// The keys with waiting callers, under the store's names for them.
pub(crate) struct Waiters<K: Eq + Hash> {
    keys: Mutex<HashMap<K, Waiting>>,
}

struct Waiting {
    signal: Arc<Notify>,
    waiters: usize,
}

/// One waiting caller's registration. Dropping it ends the wait.
pub(crate) struct Waiter<K: Eq + Hash> {
    waiters: Arc<Waiters<K>>,
    key: K,
    signal: Arc<Notify>,
}

impl<K: Eq + Hash> Default for Waiters<K> {
    fn default() -> Self {
        Self { keys: Mutex::default() }
    }
}

impl<K: Eq + Hash + Clone> Waiters<K> {
    pub(crate) fn register(self: &Arc<Self>, key: K) -> Waiter<K> {
        let mut keys = self.keys.lock();
        let waiting = keys.entry(key.clone()).or_insert_with(|| Waiting { signal: Arc::default(), waiters: 0 });
        waiting.waiters += 1;
        Waiter { waiters: Arc::clone(self), key, signal: Arc::clone(&waiting.signal) }
    }

    /// Wakes the waiting callers of this key.
    #[cfg(any(feature = "postgres", feature = "redis"))]
    pub(crate) fn wake<Q: Eq + Hash + ?Sized>(&self, key: &Q)
    where
        K: std::borrow::Borrow<Q>,
    {
        if let Some(waiting) = self.keys.lock().get(key) {
            waiting.signal.notify_waiters();
        }
    }

    /// Wakes the waiting callers of each of these keys.
    #[cfg(feature = "sqlite")]
    pub(crate) fn wake_each(&self, settled: impl Iterator<Item = K>) {
        let keys = self.keys.lock();
        if keys.is_empty() {
            return settled.for_each(drop);
        }
        settled.filter_map(|key| keys.get(&key)).for_each(|waiting| waiting.signal.notify_waiters());
    }

    #[cfg(any(feature = "postgres", feature = "redis"))]
    pub(crate) fn wake_all(&self) {
        self.keys.lock().values().for_each(|waiting| waiting.signal.notify_waiters());
    }

    #[cfg(feature = "sqlite")]
    pub(crate) fn keys(&self) -> Vec<K> {
        self.keys.lock().keys().cloned().collect()
    }
}

impl<K: Eq + Hash> Waiter<K> {
    #[cfg(feature = "redis")]
    pub(crate) fn key(&self) -> &K {
        &self.key
    }

    /// Returns a future that resolves at the next change after this call, even if it has not been polled by then.
    pub(crate) fn changed(&self) -> Notified<'_> {
        self.signal.notified()
    }
}

impl<K: Eq + Hash> Drop for Waiter<K> {
    fn drop(&mut self) {
        let mut keys = self.waiters.keys.lock();
        if let Some(waiting) = keys.get_mut(&self.key) {
            waiting.waiters -= 1;
            if waiting.waiters == 0 {
                keys.remove(&self.key);
            }
        }
    }
}
