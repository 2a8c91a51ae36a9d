//! Locks whose key is settled, kept for a moment for the next key.
//!
//! Starting an actor is the dearest part of a first use: its task is allocated at an alignment that allocators serve
//! slowly, and taken apart again some microseconds later. Under load the next key is there before that, and takes a lock
//! over that is at rest. Nothing is kept beyond the supervisor's next sweep: an idle engine has no locks.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::key_lock::LockAddr;

/// Owned by an arbiter's supervisor.
#[derive(Debug, Default)]
pub(crate) struct Resting(VecDeque<LockAddr>);

/// More than are settled between two turns of a busy arbiter are of no use.
const LIMIT: usize = 256;

impl Resting {
    /// Keeps a lock that has played its role.
    pub(crate) fn keep(&mut self, lock: LockAddr) {
        if self.0.len() < LIMIT {
            self.0.push_back(lock);
        }
    }

    /// Gives a lock that nobody else has the address of, so that no message to it can be of the key that it had. The
    /// one that has rested for longest comes first; if its last holder still has it, it is let go.
    pub(crate) fn take(&mut self) -> Option<LockAddr> {
        let mut lock = self.0.pop_front()?;
        (Arc::get_mut(&mut lock).is_some() && lock.connected()).then_some(lock)
    }

    /// Ends those that rest.
    pub(crate) fn dismiss(&mut self) {
        self.0.clear();
    }
}
