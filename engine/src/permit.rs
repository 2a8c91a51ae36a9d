//! Permits: places among the calls that an arbiter admits.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::scopes::Share;

/// One place among the admitted calls. Dropping it frees the place.
#[derive(Debug)]
pub(crate) struct Permit {
    taken: Arc<AtomicUsize>,
    /// The call's place among those of its scope, if the engine limits scopes. Boxed, since a permit moves often and
    /// few have one.
    _share: Option<Box<Share>>,
}

impl Permit {
    /// Takes a place. Returns `None` if all `limit` places are taken.
    pub(crate) fn take(taken: &Arc<AtomicUsize>, limit: usize, share: Option<Share>) -> Option<Self> {
        // One addition, and a second operation only for refused calls. The counter may briefly exceed the limit, but no
        // more than `limit` calls are ever admitted.
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
