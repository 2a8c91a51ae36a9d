//! Loads: the same operations, run through the engine and through the yardstick.

pub mod memory;
pub mod sqlite;

use std::convert::Infallible;
use std::time::Instant;

use oncekey::{Claim, Engine, Fingerprint, Key, Outcome};

use crate::{BODY, OUTCOME, SCOPE};

/// How much runs at once.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// The number of threads. For the engine, each is an arbiter.
    pub threads: usize,
    /// Calls in flight on each arbiter. The yardstick's calls never wait, so its threads have one each.
    pub in_flight: usize,
    /// The number of operations per thread.
    pub operations: usize,
}

/// Returns the key of one operation as text.
pub fn key_text(thread: usize, operation: usize) -> String {
    format!("{SCOPE}:{thread:02}-order-{operation:010}")
}

/// Returns the same key for the engine.
///
/// # Panics
/// Never: the text is a valid key.
pub fn key(thread: usize, operation: usize) -> Key {
    #[expect(clippy::expect_used, reason = "the text is short and has no control characters")]
    Key::new(SCOPE, format_args!("{thread:02}-order-{operation:010}")).expect("a key that is fit")
}

/// Makes one call of the engine. Returns whether it was a replay.
///
/// # Panics
/// If the engine returns an error: a bench that does not do its work measures nothing.
pub async fn call(engine: &Engine, key: Key) -> bool {
    let operation = |_: Claim| async { Ok::<_, Infallible>(OUTCOME.to_owned()) };
    match engine.run(key, Fingerprint::of(BODY), operation).await {
        Ok(Outcome::Ran(value)) => {
            std::hint::black_box(value);
            false
        }
        Ok(Outcome::Replayed(value)) => {
            std::hint::black_box(value);
            true
        }
        #[expect(clippy::panic, reason = "documented")]
        Err(error) => panic!("the engine refused a call of the bench: {error}"),
    }
}

/// When a thread began and ended its part.
#[derive(Debug, Clone, Copy)]
struct Span {
    began: Instant,
    ended: Instant,
}

impl Span {
    fn of(work: impl FnOnce()) -> Self {
        let began = Instant::now();
        work();
        Self { began, ended: Instant::now() }
    }

    /// Returns the operations per second, from the first thread's start to the last one's end.
    fn rate(spans: &[Self], operations: usize) -> f64 {
        let began = spans.iter().map(|span| span.began).min();
        let ended = spans.iter().map(|span| span.ended).max();
        let elapsed = began.zip(ended).map_or(0.0, |(began, ended)| (ended - began).as_secs_f64());
        operations as f64 / elapsed.max(f64::EPSILON)
    }
}
