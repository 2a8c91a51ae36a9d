//! The routes of an arbiter: where the calls of each key go. Routes do not own claims; the supervisor tracks those
//! separately.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use actix::prelude::*;

use crate::call::Begin;
use crate::key_lock::{Join, Left, Lock};
use crate::{Key, KeyHasher};

/// The routes of one arbiter, by key.
#[derive(Default)]
pub(super) struct Routes(HashMap<Key, Route, KeyHasher>);

enum Route {
    /// The store is being asked for the key. These calls wait for its answer.
    Asking(Vec<Begin>),
    /// The key's lock, with the lock's number.
    Locked(Lock, u64),
}

impl Routes {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether the key has a route. If it has none and `asks` is set, marks the key as being asked for.
    pub(super) fn is_routed(&mut self, key: &Key, asks: bool) -> bool {
        match self.0.entry(key.clone()) {
            Entry::Occupied(place) => !(planted!(ClaimFollowsTheRoute) && matches!(place.get(), Route::Asking(_))),
            Entry::Vacant(place) => {
                if asks {
                    place.insert(Route::Asking(Vec::new()));
                }
                false
            }
        }
    }

    /// Sends a call along its key's route. Returns the call if the key has no route.
    #[expect(clippy::result_large_err, reason = "given back at once, to be begun again")]
    pub(super) fn send(&mut self, call: Begin) -> Result<(), Begin> {
        match self.0.get_mut(&call.key) {
            None => Err(call),
            Some(Route::Asking(waiting)) => {
                waiting.push(call);
                Ok(())
            }
            Some(Route::Locked(lock, _)) => match lock.address.try_send(Join(call)) {
                Ok(()) => Ok(()),
                // The lock's task has ended in a panic. What it held is left to its lease.
                Err(SendError::Closed(Join(call)) | SendError::Full(Join(call))) => {
                    tracing::error!(key = %call.key, "the lock of a key is gone; what it held is left to its lease");
                    self.0.remove(&call.key);
                    Err(call)
                }
            },
        }
    }

    /// Handles an answer that needs no lock: removes the route and returns the calls that waited for the answer.
    pub(super) fn answered(&mut self, key: &Key) -> Vec<Begin> {
        match self.0.entry(key.clone()) {
            Entry::Occupied(place) if matches!(place.get(), Route::Asking(_)) => match place.remove() {
                Route::Asking(waiting) => waiting,
                Route::Locked(..) => Vec::new(),
            },
            _ => Vec::new(),
        }
    }

    /// Returns the calls that wait for the answer, for the lock that is about to start.
    pub(super) fn take_waiting(&mut self, key: &Key) -> Vec<Begin> {
        match self.0.get_mut(key) {
            Some(Route::Asking(waiting)) => std::mem::take(waiting),
            _ => Vec::new(),
        }
    }

    /// Routes a key to a lock. Returns the lock that it replaces, if there was one.
    pub(super) fn locked(&mut self, key: Key, lock: Lock, id: u64) -> Option<Lock> {
        match self.0.insert(key, Route::Locked(lock, id)) {
            Some(Route::Locked(replaced, _)) => Some(replaced),
            _ => None,
        }
    }

    /// Removes the route to a lock that has ended, and returns that lock, unless a later lock has taken the route.
    pub(super) fn retired(&mut self, key: Key, id: u64) -> Option<Lock> {
        match self.0.entry(key) {
            Entry::Occupied(place) if matches!(place.get(), Route::Locked(_, there) if *there == id) => {
                match place.remove() {
                    Route::Locked(lock, _) => Some(lock),
                    Route::Asking(_) => None,
                }
            }
            _ => None,
        }
    }

    /// Handles the departure of a caller that waited for the key.
    pub(super) fn left(&mut self, key: &Key) {
        match self.0.get_mut(key) {
            Some(Route::Asking(waiting)) => waiting.retain(|call| !call.reply.is_closed()),
            // A lock that is gone holds nothing.
            Some(Route::Locked(lock, _)) => drop(lock.address.try_send(Left)),
            None => {}
        }
    }

    /// Forgets the locks whose task has ended in a panic.
    pub(super) fn sweep(&mut self) {
        self.0.retain(|_, route| match route {
            Route::Asking(_) => true,
            Route::Locked(lock, _) => lock.address.connected(),
        });
    }
}
