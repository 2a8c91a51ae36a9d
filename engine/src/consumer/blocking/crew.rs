//! How the workers of a processor share retries, and how they detect together that all work is done.
//!
//! A worker waits for three things: a message in the user's channel, a retry that is due, or the end. The channel wakes
//! a worker by itself. All other state is behind one mutex, and every change that matters to other workers rings every
//! worker's bell. A bell that rings while its worker is busy stays rung, so no change is missed.
//!
//! A worker holds a [`Seat`] as long as its thread lives. Dropping the seat removes the worker from all counts, however
//! its thread ends.
//!
//! `tests/loom` compiles this file a second time with the primitives of `loom`, and runs it under every interleaving
//! within its bounds.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::later::Later;
use super::sync::{Arc, Condvar, Mutex};

/// Wakes one worker. It is rung under the crew's mutex, so it must not block.
pub(super) trait Bell {
    fn ring(&self);
}

pub(super) struct Crew<I, T, B> {
    state: Mutex<State<I, T, B>>,
    /// Signals that a worker has left its seat.
    ended: Condvar,
    max_waiting: usize,
}

struct State<I, T, B> {
    /// Messages to be retried.
    later: Later<I, T>,
    /// Workers that have not found the channel closed. Only these can hold a message from it.
    reading: usize,
    /// Workers that process a retry.
    retrying: usize,
    /// Workers that have a seat.
    seated: usize,
    /// The store is unavailable, so no worker takes a new message before this time.
    paused_until: Option<I>,
    is_stopping: bool,
    /// The processor has ended and the remaining messages were returned, so nothing can be put back.
    is_cleared: bool,
    bells: Vec<B>,
}

impl<I: Ord + Copy, T, B: Bell> State<I, T, B> {
    fn ring_all(&self) {
        self.bells.iter().for_each(Bell::ring);
    }

    fn is_all_done(&self) -> bool {
        self.reading == 0 && self.retrying == 0 && self.later.len() == 0
    }
}

/// What a worker does next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next<I, T> {
    /// Retry this item.
    Retry(T),
    /// Wait for the bell, for `until` if it is set, and for a message from the channel if `takes_new` is set.
    Wait { takes_new: bool, until: Option<I> },
    /// Leave.
    End,
}

impl<I: Ord + Copy, T, B: Bell> Crew<I, T, B> {
    /// Creates a crew with a seat for each bell. While `max_waiting` items wait to be retried, no worker takes a new
    /// message.
    pub(super) fn new(max_waiting: usize, bells: Vec<B>) -> (Arc<Self>, Vec<Seat<I, T, B>>) {
        let seats = bells.len();
        let state = State {
            later: Later::default(),
            reading: seats,
            retrying: 0,
            seated: seats,
            paused_until: None,
            is_stopping: false,
            is_cleared: false,
            bells,
        };
        let crew = Arc::new(Self { state: Mutex::new(state), ended: Condvar::new(), max_waiting });
        let seats =
            (0..seats).map(|_| Seat { crew: Arc::clone(&crew), is_reading: true, is_retrying: false }).collect();
        (crew, seats)
    }

    fn with<R>(&self, change: impl FnOnce(&mut State<I, T, B>) -> R) -> R {
        // A poisoned lock is safe to use, because no change here panics midway.
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes every worker leave after its current message.
    pub(super) fn stop(&self) {
        self.with(|state| {
            state.is_stopping = true;
            state.ring_all();
        });
    }

    /// Waits until every worker has left. Returns the items that are still to be retried.
    pub(super) fn join(&self) -> Vec<T> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.seated > 0 {
            state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.is_cleared = true;
        state.later.drain().collect()
    }

    /// Like [`join`](Self::join), but waits at most `limit`. Returns the items to be retried, and whether every worker
    /// has left.
    pub(super) fn join_within(&self, limit: Duration) -> (Vec<T>, bool) {
        // Bounds a single wait, so that no limit is too long to add to a time.
        const LONGEST: Duration = Duration::from_secs(3_600);

        let began = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.seated > 0 {
            let Some(left) = limit.checked_sub(began.elapsed()) else { break };
            state = self.ended.wait_timeout(state, left.min(LONGEST)).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.is_cleared = true;
        (state.later.drain().collect(), state.seated == 0)
    }
}

/// One worker's place in its crew.
pub(super) struct Seat<I: Ord + Copy, T, B: Bell> {
    crew: Arc<Crew<I, T, B>>,
    is_reading: bool,
    is_retrying: bool,
}

impl<I: Ord + Copy, T, B: Bell> Seat<I, T, B> {
    /// Returns what the worker does next. The call ends the worker's previous task.
    pub(super) fn next(&mut self, now: I) -> Next<I, T> {
        let Self { crew, is_reading, is_retrying } = self;
        let max_waiting = crew.max_waiting;
        crew.with(|state| {
            if std::mem::take(is_retrying) {
                state.retrying -= 1;
            }
            if state.is_stopping {
                return Next::End;
            }
            let was_full = state.later.len() >= max_waiting;
            if let Some(first) = state.later.pop_due(now) {
                *is_retrying = true;
                state.retrying += 1;
                // The other workers take no new messages while `later` is full, so they must learn that it has room.
                if was_full && state.later.len() < max_waiting {
                    state.ring_all();
                }
                return Next::Retry(first);
            }
            if state.is_all_done() {
                return Next::End;
            }
            let pause = state.paused_until.filter(|until| now < *until);
            let until = state.later.next_due().into_iter().chain(pause).min();
            Next::Wait { takes_new: *is_reading && !was_full && pause.is_none(), until }
        })
    }

    /// Notes that the channel is closed and that this worker holds no message from it.
    pub(super) fn found_the_end(&mut self) {
        if std::mem::take(&mut self.is_reading) {
            self.crew.with(|state| state.reading -= 1);
        }
    }

    /// Keeps all workers from taking a new message before this time.
    pub(super) fn pause(&self, until: I) {
        self.crew.with(|state| state.paused_until = state.paused_until.max(Some(until)));
    }

    /// Stores an item to be retried when it is due. Returns the item if the processor has ended.
    pub(super) fn put_back(&self, due: I, what: T) -> Result<(), T> {
        self.crew.with(|state| {
            if state.is_cleared {
                return Err(what);
            }
            let is_first = state.later.next_due().is_none_or(|first| due < first);
            state.later.insert(due, what);
            if is_first {
                // The other workers wait for a later time.
                state.ring_all();
            }
            Ok(())
        })
    }
}

impl<I: Ord + Copy, T, B: Bell> Drop for Seat<I, T, B> {
    fn drop(&mut self) {
        let Self { crew, is_reading, is_retrying } = self;
        crew.with(|state| {
            state.reading -= usize::from(*is_reading);
            state.retrying -= usize::from(*is_retrying);
            state.seated -= 1;
            // The other workers may wait for exactly this: the last retry, or the last message of the channel, is done.
            if !planted!(LastRingsNobody) {
                state.ring_all();
            }
        });
        crew.ended.notify_all();
    }
}
