//! The calls of each scope, counted where one tenant must not take up what all share.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::{Error, Key};

/// One for each arbiter, so that on the way of a call nobody else is waited for: only callers on plain threads share the home's.
#[derive(Debug)]
pub(crate) struct Scopes {
    limit: usize,
    /// A scope without calls has no entry: what was asked for once is not kept for ever.
    taken: Mutex<HashMap<Box<str>, usize, foldhash::quality::RandomState>>,
}

/// One place among the calls of its scope; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    scopes: Arc<Scopes>,
    key: Key,
}

impl Scopes {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, taken: Mutex::default() })
    }

    /// Takes a place, or tells that all of this scope are taken.
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
