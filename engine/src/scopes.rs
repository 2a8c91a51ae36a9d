//! Counts the calls of each scope, so that one tenant cannot use up the limit that all share.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::{Error, Key};

/// One per arbiter, so that calls do not contend for it. Only callers on plain threads share the home's.
#[derive(Debug)]
pub(crate) struct Scopes {
    limit: usize,
    /// A scope without calls has no entry, so scopes that were used once do not accumulate.
    taken: Mutex<HashMap<Box<str>, usize, foldhash::quality::RandomState>>,
}

/// One place among the calls of its scope. Dropping it frees the place.
#[derive(Debug)]
pub(crate) struct Share {
    scopes: Arc<Scopes>,
    key: Key,
}

impl Scopes {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, taken: Mutex::default() })
    }

    /// Takes a place, or returns an error if all places of this scope are taken.
    pub(crate) fn admit(self: &Arc<Self>, key: &Key) -> Result<Share, Error> {
        let mut taken = self.taken.lock();
        match taken.get_mut(key.scope()) {
            Some(calls) if *calls >= self.limit => {
                return Err(Error::Overloaded { what: "calls of one scope on this arbiter", limit: self.limit });
            }
            Some(calls) => *calls += 1,
            None => drop(taken.insert(key.scope().into(), 1)),
        }
        Ok(Share { scopes: Arc::clone(self), key: key.clone() })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.scopes.taken.lock();
        if let Some(calls) = taken.get_mut(self.key.scope()) {
            *calls -= 1;
            if *calls == 0 {
                taken.remove(self.key.scope());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e15_a_scope_at_its_limit_keeps_nobody_else_out_and_leaves_nothing_behind() {
        let scopes = Scopes::new(2);
        let key = |scope: &str, n: u32| Key::new(scope, n).unwrap();
        let held = [scopes.admit(&key("a", 1)).unwrap(), scopes.admit(&key("a", 2)).unwrap()];
        assert!(matches!(scopes.admit(&key("a", 3)), Err(Error::Overloaded { limit: 2, .. })));
        let other = scopes.admit(&key("b", 1)).unwrap();
        drop(held);
        let again = scopes.admit(&key("a", 3)).unwrap();
        drop((again, other));
        assert!(scopes.taken.lock().is_empty());
    }
}
