//! The pool of idle locks: locks whose key is settled, kept briefly for the next key.
//!
//! Starting an actor is the most expensive part of a first use. Its task is allocated at an alignment that allocators
//! serve slowly, and freed again some microseconds later. Under load the next key arrives before that, and reuses an
//! idle lock. The pool keeps nothing beyond the supervisor's next sweep, so an idle engine has no locks.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::key_lock::Lock;

/// Owned by an arbiter's supervisor.
#[derive(Default)]
pub(crate) struct IdleLocks(VecDeque<Lock>);

/// A larger pool is of no use: a busy arbiter settles fewer keys between two turns.
const LIMIT: usize = 256;

impl IdleLocks {
    /// Keeps a lock whose role has ended.
    pub(crate) fn keep(&mut self, lock: Lock) {
        if self.0.len() < LIMIT {
            self.0.push_back(lock);
        }
    }

    /// Takes the lock that has been idle longest, if nothing else holds its address: then no message to it can concern
    /// its previous key. If its last holder still has the address, the lock is dropped.
    pub(crate) fn take(&mut self) -> Option<Lock> {
        let mut lock = self.0.pop_front()?;
        (Arc::get_mut(&mut lock.claim).is_some() && lock.address.connected()).then_some(lock)
    }

    /// Ends the idle locks.
    pub(crate) fn dismiss(&mut self) {
        self.0.clear();
    }
}
