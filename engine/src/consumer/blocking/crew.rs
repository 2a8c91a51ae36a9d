//! How workers hand retries to each other, and how they find out together that all is done.
//!
//! A worker waits for three things: a message in the user's channel, a retry that is due, and the end. The channel wakes a
//! worker by itself. Everything else that changes is in one state behind one mutex, and whoever makes such a change rings
//! the bell of every worker. A bell that rings while its worker is busy stays rung, so no change goes unseen.
//!
//! A worker has a [`Seat`] for as long as its thread lives. What a worker counts for is counted off when its seat is
//! dropped, however its thread ends.
//!
//! `tests/loom` compiles this file a second time, with the primitives of `loom`, and runs it under every
//! interleaving within its bounds.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::later::Later;
use super::sync::{Arc, Condvar, Mutex};

/// Wakes one worker. It is rung under the crew's mutex, and must not wait.
pub(super) trait Bell {
    fn ring(&self);
}

/// All workers of a processor.
pub(super) struct Crew<I, T, B> {
    state: Mutex<State<I, T, B>>,
    /// The last worker has left its seat.
    ended: Condvar,
    max_waiting: usize,
}

struct State<I, T, B> {
    /// What is to be tried again.
    later: Later<I, T>,
    /// Workers that have not found the channel at its end. Only they can be at messages of it.
    reading: usize,
    /// Workers that are at a retry.
    retrying: usize,
    /// Workers that have a seat.
    seated: usize,
    /// No new message is taken before this time: the store is away.
    paused_until: Option<I>,
    is_stopping: bool,
    /// What was left is with whoever ended the processor: nothing can be put back any more.
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

/// What a worker is to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next<I, T> {
    /// Try this again.
    Retry(T),
    /// Wait for the bell, until the time if there is one, and for a message of the channel if it is to take one.
    Wait { takes_new: bool, until: Option<I> },
    /// Leave.
    End,
}

impl<I: Ord + Copy, T, B: Bell> Crew<I, T, B> {
    /// A crew with a seat for each bell. No new message is taken while `max_waiting` wait to be tried again.
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
        // Nothing in here panics half-way through a change.
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Has every worker leave after what it is at.
    pub(super) fn stop(&self) {
        self.with(|state| {
            state.is_stopping = true;
            state.ring_all();
        });
    }

    /// Waits until every seat is left. Returns what is still to be tried again.
    pub(super) fn join(&self) -> Vec<T> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.seated > 0 {
            state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.is_cleared = true;
        state.later.drain().collect()
    }

    /// The same up to a limit. What is left then is returned either way, and whether every seat is left.
    pub(super) fn join_within(&self, limit: Duration) -> (Vec<T>, bool) {
        // No wait is longer, so that no limit is too long to add to a time.
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
    /// What to do now. The worker is done with what it did before.
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
                // The others wait for no new message while there is no room for its retry.
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

    /// The channel is at its end, and this worker is at no message of it.
    pub(super) fn found_the_end(&mut self) {
        if std::mem::take(&mut self.is_reading) {
            self.crew.with(|state| state.reading -= 1);
        }
    }

    /// Has no worker take a new message before this time.
    pub(super) fn pause(&self, until: I) {
        self.crew.with(|state| state.paused_until = state.paused_until.max(Some(until)));
    }

    /// Keeps something to be tried again when it is due. Gives it back if the processor has ended.
    pub(super) fn put_back(&self, due: I, what: T) -> Result<(), T> {
        self.crew.with(|state| {
            if state.is_cleared {
                return Err(what);
            }
            let is_first = state.later.next_due().is_none_or(|first| due < first);
            state.later.insert(due, what);
            if is_first {
                // The others wait until a later time.
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
            // The others may be waiting for just this: the last retry is done, or the last message of the channel.
            if !planted!(LastRingsNobody) {
                state.ring_all();
            }
        });
        crew.ended.notify_all();
    }
}
