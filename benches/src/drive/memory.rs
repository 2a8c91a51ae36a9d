//! Loads in memory: first uses, then replays of the same keys, on fresh stores.

use std::sync::{Arc, Barrier};
use std::thread;

use oncekey::{Engine, StartError};
use oncekey_backends::MemoryBackend;

use super::{Load, Span, call, key, key_text};
use crate::BODY;
use crate::yardstick::memory::Memory;
use crate::yardstick::response;

/// Measures the engine on a fresh memory backend. Returns the rates of first uses and of replays.
///
/// # Errors
/// The engine does not start.
///
/// # Panics
/// If a thread panics.
pub fn engine(load: Load) -> Result<Vec<f64>, StartError> {
    let engine = Engine::builder(MemoryBackend::new()).start()?;
    let at_once = Arc::new(Barrier::new(load.threads));
    let arbiter = |thread| {
        let (engine, at_once) = (engine.clone(), Arc::clone(&at_once));
        move || {
            actix_rt::System::new().block_on(async move {
                // The arbiter's actors start at its first call.
                call(&engine, key(thread, usize::MAX)).await;
                let mut spans = Vec::new();
                for replays in [false, true] {
                    at_once.wait();
                    let began = std::time::Instant::now();
                    calls(&engine, thread, load, replays).await;
                    spans.push(Span { began, ended: std::time::Instant::now() });
                }
                spans
            })
        }
    };
    Ok(on_threads(load, arbiter))
}

/// Makes all calls of one arbiter, in `in_flight` tasks.
async fn calls(engine: &Engine, thread: usize, load: Load, replays: bool) {
    let mut tasks = Vec::new();
    for task in 0..load.in_flight {
        let engine = engine.clone();
        tasks.push(actix_rt::spawn(async move {
            for operation in (task..load.operations).step_by(load.in_flight) {
                assert_eq!(call(&engine, key(thread, operation)).await, replays, "every key is used once before");
            }
        }));
    }
    for task in tasks {
        #[expect(clippy::expect_used, reason = "documented: a panic in a task is one of the bench")]
        task.await.expect("the calls of a task");
    }
}

/// Measures the yardstick on a fresh pair of maps. Returns the rates of first uses and of replays.
///
/// # Panics
/// If a thread panics.
pub fn yardstick(load: Load) -> Vec<f64> {
    let memory = Arc::new(Memory::default());
    let at_once = Arc::new(Barrier::new(load.threads));
    let worker = |thread| {
        let (memory, at_once) = (Arc::clone(&memory), Arc::clone(&at_once));
        move || {
            at_once.wait();
            let first_uses = Span::of(|| {
                for operation in 0..load.operations {
                    let done = memory.first_use(&key_text(thread, operation), BODY, response);
                    assert!(done.is_some(), "the key is fresh");
                }
            });
            at_once.wait();
            let replays = Span::of(|| {
                for operation in 0..load.operations {
                    let replayed = memory.replay(&key_text(thread, operation), BODY);
                    assert!(std::hint::black_box(replayed).is_some(), "the key is completed");
                }
            });
            vec![first_uses, replays]
        }
    };
    on_threads(load, worker)
}

/// Runs the parts of a load, and returns the rates of first uses and of replays.
fn on_threads<Part: FnOnce() -> Vec<Span> + Send + 'static>(load: Load, part: impl Fn(usize) -> Part) -> Vec<f64> {
    let threads: Vec<_> = (0..load.threads).map(|thread| thread::spawn(part(thread))).collect();
    #[expect(clippy::expect_used, reason = "documented: a panic in a thread is one of the bench")]
    let spans: Vec<_> = threads.into_iter().map(|thread| thread.join().expect("the work of a thread")).collect();
    let of = |phase: usize| spans.iter().map(|spans| spans[phase]).collect::<Vec<_>>();
    vec![Span::rate(&of(0), load.threads * load.operations), Span::rate(&of(1), load.threads * load.operations)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_do_the_load() {
        let load = Load { threads: 2, in_flight: 3, operations: 10 };
        assert!(engine(load).unwrap().iter().all(|rate| *rate > 0.0));
        assert!(yardstick(load).iter().all(|rate| *rate > 0.0));
    }
}
