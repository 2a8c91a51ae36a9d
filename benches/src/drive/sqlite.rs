//! Loads on SQLite: first uses, then replays of the same keys, on a fresh file that forces every commit to the disk.
//!
//! A turn has a fixed time and not a fixed number of operations, because the two sides differ by an order of magnitude.

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use oncekey::Engine;
use oncekey_backends::SqliteBackend;

use super::{call, key, key_text};
use crate::BODY;
use crate::yardstick::response;
use crate::yardstick::sqlite::{Failure, Sqlite};

/// Measures the engine on one arbiter with `in_flight` concurrent calls. Returns the rates of first uses and of
/// replays.
///
/// # Errors
/// The file cannot be opened.
pub fn engine(folder: &Path, in_flight: usize, turn: Duration) -> Result<Vec<f64>, Failure> {
    let file = tempfile::tempdir_in(folder)?;
    actix_rt::System::new().block_on(async {
        let engine = Engine::builder(SqliteBackend::builder(file.path().join("keys.db")).open()?).start()?;
        call(&engine, key(0, usize::MAX)).await;
        let (first_uses, done) = calls(&engine, in_flight, turn, None).await?;
        let (replays, _) = calls(&engine, in_flight, turn, Some(done)).await?;
        Ok(vec![first_uses, replays])
    })
}

/// Makes calls until the turn is over, with fresh keys or with the first `completed` keys again and again. Returns
/// their rate and their count.
async fn calls(
    engine: &Engine,
    in_flight: usize,
    turn: Duration,
    completed: Option<usize>,
) -> Result<(f64, usize), Failure> {
    let next = Rc::new(Cell::new(0));
    let began = Instant::now();
    let mut tasks = Vec::new();
    for _ in 0..in_flight {
        let (engine, next) = (engine.clone(), Rc::clone(&next));
        tasks.push(actix_rt::spawn(async move {
            while began.elapsed() < turn {
                let operation = next.replace(next.get() + 1);
                let key = key(0, completed.map_or(operation, |completed| operation % completed));
                assert_eq!(call(&engine, key).await, completed.is_some(), "a key runs at its first use alone");
            }
        }));
    }
    for task in tasks {
        task.await?;
    }
    Ok((next.get() as f64 / began.elapsed().as_secs_f64(), next.get()))
}

/// Measures the yardstick on `connections` threads, each with a connection, that run flow after flow. Returns the rates
/// of first uses and of replays.
///
/// Any number of flows may be in flight. A flow without a connection waits, and each of its steps is its own commit on
/// any connection. So only the number of connections matters.
///
/// # Errors
/// SQLite's own errors.
///
/// # Panics
/// If a thread panics.
pub fn yardstick(folder: &Path, connections: usize, turn: Duration) -> Result<Vec<f64>, Failure> {
    let file = tempfile::tempdir_in(folder)?;
    let path = file.path().join("seed.db");
    // The first one creates the tables.
    let mut opened = Vec::new();
    for _ in 0..connections {
        opened.push(Sqlite::open(&path)?);
    }
    let next = AtomicUsize::new(0);
    let first_uses = flows(&mut opened, turn, |connection| {
        let key = key_text(0, next.fetch_add(1, Ordering::Relaxed));
        connection.first_use(&key, BODY, response).map(|done| done.is_some())
    })?;
    let (completed, next) = (next.into_inner(), AtomicUsize::new(0));
    let replays = flows(&mut opened, turn, |connection| {
        let key = key_text(0, next.fetch_add(1, Ordering::Relaxed) % completed);
        connection.replay(&key, BODY).map(|replayed| replayed.is_some())
    })?;
    Ok(vec![first_uses, replays])
}

/// Lets each connection run flows until the turn is over, and returns their rate.
fn flows(
    connections: &mut [Sqlite],
    turn: Duration,
    flow: impl Fn(&mut Sqlite) -> Result<bool, Failure> + Sync,
) -> Result<f64, Failure> {
    let began = Instant::now();
    let by_one = |connection: &mut Sqlite| {
        let mut done = 0;
        while began.elapsed() < turn {
            if !flow(connection)? {
                return Err("the yardstick refused a flow of the bench".into());
            }
            done += 1;
        }
        Ok::<usize, Failure>(done)
    };
    let done = thread::scope(|scope| {
        let threads: Vec<_> = connections.iter_mut().map(|connection| scope.spawn(|| by_one(connection))).collect();
        #[expect(clippy::expect_used, reason = "documented: a panic in a thread is one of the bench")]
        threads.into_iter().map(|thread| thread.join().expect("the flows of a thread")).sum::<Result<usize, _>>()
    })?;
    Ok(done as f64 / began.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_do_the_load() {
        let folder = tempfile::tempdir().unwrap();
        let turn = Duration::from_millis(20);
        assert!(engine(folder.path(), 4, turn).unwrap().iter().all(|rate| *rate > 0.0));
        assert!(yardstick(folder.path(), 2, turn).unwrap().iter().all(|rate| *rate > 0.0));
    }
}
