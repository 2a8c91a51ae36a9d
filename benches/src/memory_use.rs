//! The memory that a completed key takes, measured in a separate process.

use std::io::{self, Write as _};
use std::process::Command;
use std::time::Duration;

use oncekey::Engine;
use oncekey_backends::MemoryBackend;
use serde::{Deserialize, Serialize};

use crate::drive::{call, key};

/// The argument that makes the executable measure.
pub const ARGUMENT: &str = "memory-use";

/// Calls in flight while the keys are completed.
const IN_FLIGHT: usize = 64;

/// The result of the measurement.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct MemoryUse {
    /// How many keys were completed.
    pub completed_keys: usize,
    /// How much the process's resident memory grew per key.
    pub resident_bytes_per_key: f64,
    /// How much a record takes, as the memory backend reports it.
    pub backend_bytes_per_key: f64,
    /// How many KeyLock actors the idle engine has.
    pub key_locks_when_idle: usize,
}

/// Starts this executable again to measure, so that earlier work has left no free memory to reuse.
///
/// # Errors
/// The process does not start, or does not report its result.
pub fn measure_apart(completed_keys: usize) -> io::Result<MemoryUse> {
    let said = Command::new(std::env::current_exe()?).args([ARGUMENT, &completed_keys.to_string()]).output()?;
    serde_json::from_slice(&said.stdout).map_err(io::Error::other)
}

/// Measures, and prints the result as JSON.
///
/// # Errors
/// The engine does not start, or the system does not report the memory of a process.
pub fn measure_and_print(completed_keys: usize) -> io::Result<()> {
    let measured = measure(completed_keys)?;
    writeln!(io::stdout(), "{}", serde_json::to_string(&measured)?)
}

fn measure(completed_keys: usize) -> io::Result<MemoryUse> {
    actix_rt::System::new().block_on(async {
        let backend = MemoryBackend::new();
        let engine = Engine::builder(backend.clone()).start().map_err(io::Error::other)?;
        // Creates the actors and the allocator's first blocks before the measurement.
        complete(&engine, 1, 1_000).await?;
        let (resident, bytes) = (resident_bytes()?, backend.bytes());
        complete(&engine, 0, completed_keys).await?;
        // The last KeyLocks stay for up to a second. After that the engine is idle.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let grown = |now: usize, before: usize| now.saturating_sub(before) as f64 / completed_keys as f64;
        Ok(MemoryUse {
            completed_keys,
            resident_bytes_per_key: grown(resident_bytes()?, resident),
            backend_bytes_per_key: grown(backend.bytes(), bytes),
            key_locks_when_idle: engine.key_lock_actors(),
        })
    })
}

async fn complete(engine: &Engine, thread: usize, keys: usize) -> io::Result<()> {
    let tasks: Vec<_> = (0..IN_FLIGHT)
        .map(|task| {
            let engine = engine.clone();
            actix_rt::spawn(async move {
                for operation in (task..keys).step_by(IN_FLIGHT) {
                    call(&engine, key(thread, operation)).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.map_err(io::Error::other)?;
    }
    Ok(())
}

/// Returns the resident memory in bytes. The second figure of `/proc/self/statm` is in pages, which have 4096 bytes on
/// these machines.
fn resident_bytes() -> io::Result<usize> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages = statm.split_ascii_whitespace().nth(1).and_then(|pages| pages.parse::<usize>().ok());
    pages.map(|pages| pages * 4_096).ok_or_else(|| io::Error::other("/proc/self/statm is not as expected"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_idle_engine_has_no_locks() {
        let measured = super::measure(500).unwrap();
        assert_eq!(measured.key_locks_when_idle, 0);
        assert!(measured.backend_bytes_per_key > 100.0);
    }
}
