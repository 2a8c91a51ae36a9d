//! Claims: what this arbiter holds in the store, or may hold, from the store's grant until the claim is settled.
//!
//! Heartbeat, confirmation, drain, shutdown and the run limit follow claims. The supervisor's routes decide only which
//! actor serves a key: a claim stays in [`Claims`] whatever happens to its key's route.
//!
//! A [`Claim`] is in one [phase](phase::Phase) at a time. The phase alone decides whether the lease is renewed, which
//! request goes to the store, and what is reported when the store does not accept it.

mod claim;
mod grant;
mod lease;
mod phase;
mod steps;

pub(crate) use claim::{Arbiter, Claim, Next};
pub(crate) use grant::{Answered, ClaimAddr, Grant, Settled, Settlement, ToClaim, What};
pub(crate) use steps::{BegunStep, EndOnDrop, NamedStep, StepCall, StepEnd, StepRefusal};

use std::time::Duration;

use slab::Slab;
use tokio::time::Instant;

/// All claims of one arbiter, owned by its supervisor.
#[derive(Default)]
pub(crate) struct Claims {
    entries: Slab<Entry>,
}

/// A claim's place in [`Claims`].
pub(crate) type ClaimPlace = usize;

struct Entry {
    claim: ClaimAddr,
    since: Instant,
}

impl Claims {
    /// Returns the place that the next [`insert`](Self::insert) uses.
    pub(crate) fn next_place(&self) -> ClaimPlace {
        self.entries.vacant_key()
    }

    pub(crate) fn insert(&mut self, claim: ClaimAddr, since: Instant) -> ClaimPlace {
        self.entries.insert(Entry { claim, since })
    }

    /// Removes a claim that is settled or given up.
    pub(crate) fn remove(&mut self, place: ClaimPlace) {
        let _ = self.entries.try_remove(place);
    }

    /// Loses a claim. Used only by a planted bug.
    pub(crate) fn forget(&mut self, claim: &ClaimAddr) {
        self.entries.retain(|_, entry| !std::sync::Arc::ptr_eq(&entry.claim, claim));
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Wakes the claims that are older than `age`, and removes those whose actor is gone. Returns how many it removed;
    /// what they held is left to its lease.
    ///
    /// Most claims are settled before any sweep sees them, so they need no timer of their own.
    pub(crate) fn tick(&mut self, age: Duration) -> usize {
        let before = self.entries.len();
        self.entries
            .retain(|_, Entry { claim, since }| since.elapsed() < age || ToClaim::send(claim, What::Tick).is_ok());
        before - self.entries.len()
    }
}
