//! The sequence over one pair of maps under one lock, like GoPotency's memory storage.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Instant, SystemTime};

use super::{LOCK_TIMEOUT, Record, Response, Status, hash};

/// GoPotency's memory storage: one lock over all records and all locks.
#[derive(Debug, Default)]
pub struct Memory(RwLock<Maps>);

#[derive(Debug, Default)]
struct Maps {
    records: HashMap<String, Record>,
    locks: HashMap<String, Instant>,
}

impl Memory {
    fn read(&self) -> RwLockReadGuard<'_, Maps> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Maps> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, key: &str) -> Option<Record> {
        self.read().records.get(key).filter(|record| SystemTime::now() <= record.expires_at).cloned()
    }

    fn set(&self, record: Record) {
        self.write().records.insert(record.key.clone(), record);
    }

    fn try_lock(&self, key: &str) -> bool {
        let mut maps = self.write();
        let now = Instant::now();
        if maps.locks.get(key).is_some_and(|until| now < *until) {
            return false;
        }
        maps.locks.insert(key.to_owned(), now + LOCK_TIMEOUT);
        true
    }

    fn unlock(&self, key: &str) {
        self.write().locks.remove(key);
    }

    /// Runs the whole sequence for a fresh key. Returns the operation's response, or `None` if the key is not fresh.
    pub fn first_use(&self, key: &str, body: &[u8], operation: impl FnOnce() -> Response) -> Option<Response> {
        if self.get(key).is_some() {
            return None;
        }
        let request_hash = hash(body);
        if !self.try_lock(key) {
            return None;
        }
        self.set(Record::pending(key, request_hash));
        let response = operation();
        let mut record = self.get(key)?;
        record.complete(response.clone());
        self.set(record);
        self.unlock(key);
        Some(response)
    }

    /// Runs the whole sequence for a completed key.
    pub fn replay(&self, key: &str, body: &[u8]) -> Option<Response> {
        let record = self.get(key)?;
        if record.request_hash != hash(body) || record.status != Status::Completed {
            return None;
        }
        record.response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yardstick::response;

    #[test]
    fn runs_once_and_replays() {
        let memory = Memory::default();
        assert_eq!(memory.first_use("k", b"body", response), Some(response()));
        assert_eq!(memory.first_use("k", b"body", response), None);
        assert_eq!(memory.replay("k", b"body"), Some(response()));
        assert_eq!(memory.replay("k", b"other"), None);
        assert!(memory.read().locks.is_empty());
    }
}
