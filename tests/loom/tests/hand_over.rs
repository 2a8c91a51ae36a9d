//! The workers of a blocking processor under every interleaving: they hand retries to each other, find out together that
//! all is done, and `join` returns.
//!
//! This compiles `crew.rs` of the engine, the very file, with the primitives of `loom` in place of the standard ones. The
//! bounds of each run stand at its call. A worker that would wait for ever is a deadlock, which `loom` reports.

#![allow(clippy::unwrap_used, clippy::panic, dead_code, reason = "in a test, what fails fails the test")]

use std::cell::Cell;
use std::collections::VecDeque;
use std::process::Command;

use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

thread_local! {
    /// Whether the error is planted. All threads of a model run on the one that called it.
    static PLANTED: Cell<bool> = const { Cell::new(false) };
}

macro_rules! planted {
    (LastRingsNobody) => {
        crate::PLANTED.get()
    };
}

mod sync {
    pub(super) use loom::sync::{Arc, Condvar, Mutex};
}

#[path = "../../../engine/src/consumer/blocking/crew.rs"]
mod crew;
#[path = "../../../engine/src/consumer/later.rs"]
mod later;

use crew::{Bell, Crew, Next, Seat};

/// The user's channel and the bells: what a worker's `select!` waits for.
struct Inbox {
    state: Mutex<Posted>,
    changed: Condvar,
}

struct Posted {
    messages: VecDeque<u32>,
    is_closed: bool,
    rung: Vec<bool>,
}

struct Ring {
    inbox: Arc<Inbox>,
    worker: usize,
}

impl Bell for Ring {
    fn ring(&self) {
        self.inbox.state.lock().unwrap().rung[self.worker] = true;
        self.inbox.changed.notify_all();
    }
}

enum Heard {
    Rung,
    Due,
    New(u32),
    EndOfChannel,
}

impl Inbox {
    fn new(workers: usize, messages: u32, is_closed: bool) -> Arc<Self> {
        let posted = Posted { messages: (0..messages).collect(), is_closed, rung: vec![false; workers] };
        Arc::new(Self { state: Mutex::new(posted), changed: Condvar::new() })
    }

    fn wait(&self, worker: usize, takes_new: bool, is_timed: bool) -> Heard {
        let mut state = self.state.lock().unwrap();
        loop {
            if std::mem::take(&mut state.rung[worker]) {
                return Heard::Rung;
            }
            if takes_new && let Some(message) = state.messages.pop_front() {
                return Heard::New(message);
            }
            if takes_new && state.is_closed {
                return Heard::EndOfChannel;
            }
            // A time comes by itself.
            if is_timed {
                return Heard::Due;
            }
            state = self.changed.wait(state).unwrap();
        }
    }

    fn close(&self) {
        self.state.lock().unwrap().is_closed = true;
        self.changed.notify_all();
    }
}

/// What a worker does with a message that it takes from the channel.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Done,
    /// It fails, and is due again at once, or at a later time.
    Retry(u32),
    /// The worker gives it back, and its thread ends.
    LastOfItsWorker,
}

/// One worker, as `worker.rs` is: the same calls of its seat, in the same order.
fn work(worker: usize, mut seat: Seat<u32, u32, Ring>, inbox: &Inbox, fate: fn(u32) -> Fate, done: &Mutex<Vec<u32>>) {
    let mut now = 0;
    loop {
        let (takes_new, until) = match seat.next(now) {
            Next::End => return,
            Next::Retry(message) => {
                done.lock().unwrap().push(message);
                continue;
            }
            Next::Wait { takes_new, until } => (takes_new, until),
        };
        match inbox.wait(worker, takes_new, until.is_some()) {
            Heard::Rung => {}
            Heard::Due => now = until.unwrap(),
            Heard::EndOfChannel => seat.found_the_end(),
            Heard::New(message) => match fate(message) {
                Fate::Done => done.lock().unwrap().push(message),
                Fate::Retry(due) => assert_eq!(seat.put_back(due, message), Ok(())),
                Fate::LastOfItsWorker => {
                    assert_eq!(seat.put_back(0, message), Ok(()));
                    return;
                }
            },
        }
    }
}

/// How a run is set up: two workers, room for one retry.
#[derive(Clone, Copy)]
struct Run {
    messages: u32,
    fate: fn(u32) -> Fate,
    /// The channel is closed by another thread, while the workers work.
    closes_late: bool,
    stops: bool,
    /// At how many places `loom` may put another thread in the way of one that could go on.
    preemptions: usize,
}

fn explore(run: Run) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(run.preemptions);
    model.check(move || {
        const WORKERS: usize = 2;

        let inbox = Inbox::new(WORKERS, run.messages, !run.closes_late && !run.stops);
        let bells = (0..WORKERS).map(|worker| Ring { inbox: Arc::clone(&inbox), worker }).collect();
        let (crew, seats) = Crew::new(1, bells);
        let done = Arc::new(Mutex::new(Vec::new()));
        for (worker, seat) in seats.into_iter().enumerate() {
            let (inbox, done) = (Arc::clone(&inbox), Arc::clone(&done));
            thread::spawn(move || work(worker, seat, &inbox, run.fate, &done));
        }
        if run.closes_late {
            inbox.close();
        }
        if run.stops {
            crew.stop();
        }
        let left_over = crew.join();
        let mut all: Vec<u32> = done.lock().unwrap().clone();
        assert!(run.stops || left_over.is_empty(), "join returned while {left_over:?} waited");
        all.extend(left_over);
        all.extend(inbox.state.lock().unwrap().messages.iter());
        all.sort_unstable();
        assert_eq!(all, (0..run.messages).collect::<Vec<_>>(), "each message is somewhere, once");
    });
}

const ALL_FAIL_ONCE: Run =
    Run { messages: 2, fate: |_| Fate::Retry(0), closes_late: false, stops: false, preemptions: 2 };

#[test]
fn j05_join_returns_whichever_worker_takes_a_retry() {
    explore(ALL_FAIL_ONCE);
}

#[test]
fn j05_join_returns_whenever_the_channel_closes() {
    let fate = |message| if message == 0 { Fate::Retry(0) } else { Fate::Done };
    explore(Run { fate, closes_late: true, ..ALL_FAIL_ONCE });
}

#[test]
fn j05_join_returns_when_retries_are_due_later() {
    explore(Run { fate: |message| Fate::Retry(1 + message), ..ALL_FAIL_ONCE });
}

#[test]
fn j07_join_returns_though_a_worker_s_thread_ends() {
    let fate = |message| if message == 0 { Fate::LastOfItsWorker } else { Fate::Retry(0) };
    explore(Run { fate, ..ALL_FAIL_ONCE });
}

#[test]
fn j05_a_told_end_returns_every_message() {
    explore(Run { stops: true, ..ALL_FAIL_ONCE });
}

/// A worker waits while another is at the last retry, and is not woken when that one leaves: `join` would never return.
/// A deadlock ends the process that finds it, so that the model runs in a child.
#[test]
fn j05_the_model_catches_a_worker_that_leaves_and_rings_nobody() {
    const CHILD: &str = "ONCEKEY_PLANTED_IN_MODEL";
    const NAME: &str = "j05_the_model_catches_a_worker_that_leaves_and_rings_nobody";

    if std::env::var_os(CHILD).is_some() {
        PLANTED.set(true);
        return explore(ALL_FAIL_ONCE);
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    let ran = child.args(["--exact", NAME, "--nocapture"]).env(CHILD, "1").output().unwrap();
    let text = String::from_utf8_lossy(&ran.stderr);
    assert!(!ran.status.success() && text.contains("deadlock"), "the planted error goes unnoticed: {text}");
}
