//! Locks whose key is settled, kept for a moment for the next key.
//!
//! Starting an actor is the most expensive part of a first use: its task is allocated at an alignment that allocators
//! serve slowly, and taken apart again some microseconds later. Under load the next key arrives before that, and reuses an
//! idle lock. Nothing is kept beyond the supervisor's next sweep: an idle engine has no locks.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::key_lock::Lock;

/// Owned by an arbiter's supervisor.
#[derive(Default)]
pub(crate) struct IdleLocks(VecDeque<Lock>);

/// More than are settled between two turns of a busy arbiter are of no use.
const LIMIT: usize = 256;

impl IdleLocks {
    /// Keeps a lock whose role has ended.
    pub(crate) fn keep(&mut self, lock: Lock) {
        if self.0.len() < LIMIT {
            self.0.push_back(lock);
        }
    }

    /// Gives a lock that nobody else has the address of, so that no message to it can be about the key that it had. The
    /// one that has been idle for longest comes first; if its last holder still has it, it is let go.
    pub(crate) fn take(&mut self) -> Option<Lock> {
        let mut lock = self.0.pop_front()?;
        (Arc::get_mut(&mut lock.claim).is_some() && lock.address.connected()).then_some(lock)
    }

    /// Ends those that are idle.
    pub(crate) fn dismiss(&mut self) {
        self.0.clear();
    }
}
