//! Where the calls of a key are sent. Routes say nothing about claims: these have a structure of their own.

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
    /// The store is asked for the key. These calls wait for its answer.
    Asking(Vec<Begin>),
    /// The key has a lock, with its number.
    Locked(Lock, u64),
}

impl Routes {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether calls of a key are sent somewhere already. If not, and `asks`, the store is asked for the key from now on.
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

    /// Sends a call to where its key is being asked for, or is locked. Gives it back if that is nowhere.
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
                // The lock's task is gone, by a panic: what it held is left to its lease.
                Err(SendError::Closed(Join(call)) | SendError::Full(Join(call))) => {
                    tracing::error!(key = %call.key, "the lock of a key is gone; what it held is left to its lease");
                    self.0.remove(&call.key);
                    Err(call)
                }
            },
        }
    }

    /// The answer needs no lock: gives the calls that waited for it.
    pub(super) fn answered(&mut self, key: &Key) -> Vec<Begin> {
        match self.0.entry(key.clone()) {
            Entry::Occupied(place) if matches!(place.get(), Route::Asking(_)) => match place.remove() {
                Route::Asking(waiting) => waiting,
                Route::Locked(..) => Vec::new(),
            },
            _ => Vec::new(),
        }
    }

    /// The calls that wait for the answer, for the lock that is about to be started.
    pub(super) fn take_waiting(&mut self, key: &Key) -> Vec<Begin> {
        match self.0.get_mut(key) {
            Some(Route::Asking(waiting)) => std::mem::take(waiting),
            _ => Vec::new(),
        }
    }

    /// Routes a key to a lock, and gives the lock that had its place, if one had.
    pub(super) fn locked(&mut self, key: Key, lock: Lock, id: u64) -> Option<Lock> {
        match self.0.insert(key, Route::Locked(lock, id)) {
            Some(Route::Locked(replaced, _)) => Some(replaced),
            _ => None,
        }
    }

    /// Removes the route to a lock that has ended, and gives the lock back; not if a later one has its place.
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

    /// A caller that waited for the key has left.
    pub(super) fn left(&mut self, key: &Key) {
        match self.0.get_mut(key) {
            Some(Route::Asking(waiting)) => waiting.retain(|call| !call.reply.is_closed()),
            // A lock that is gone holds nothing.
            Some(Route::Locked(lock, _)) => drop(lock.address.try_send(Left)),
            None => {}
        }
    }

    /// Forgets the locks whose task is gone, by a panic.
    pub(super) fn sweep(&mut self) {
        self.0.retain(|_, route| match route {
            Route::Asking(_) => true,
            Route::Locked(lock, _) => lock.address.connected(),
        });
    }
}
