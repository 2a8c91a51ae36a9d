//! Places among the calls that an arbiter admits.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::scopes::Share;

/// One place; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    taken: Arc<AtomicUsize>,
    /// The place among those of its scope, where these are counted. Boxed, since a permit moves often and few have one.
    _share: Option<Box<Share>>,
}

impl Permit {
    /// Takes a place, or tells that all `limit` are taken.
    pub(crate) fn take(taken: &Arc<AtomicUsize>, limit: usize, share: Option<Share>) -> Option<Self> {
        // One addition, and a second one only for those turned away: the counter may stand above the limit for a
        // moment, but no more than `limit` are ever admitted.
        if taken.fetch_add(1, Ordering::Relaxed) >= limit && !planted!(AdmissionNotCounted) {
            taken.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(Self { taken: Arc::clone(taken), _share: share.map(Box::new) })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.taken.fetch_sub(1, Ordering::Relaxed);
    }
}
