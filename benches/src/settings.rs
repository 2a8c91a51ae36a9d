//! How long a run takes, and how much it does.

use std::env;
use std::time::Duration;

/// The sizes of a run.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// How many turns each side takes where nothing waits for a disk.
    pub rounds: usize,
    /// Operations per thread in one turn.
    pub operations: usize,
    /// The length of one turn over HTTP.
    pub http_turn: Duration,
    /// How many turns each side takes on SQLite.
    pub sqlite_rounds: usize,
    /// The length of one turn on SQLite.
    pub sqlite_turn: Duration,
    /// How many completed keys the memory measurement uses.
    pub completed_keys: usize,
}

impl Settings {
    /// Returns the full sizes, or small ones if `ONCEKEY_BENCH_QUICK` is set.
    pub fn from_env() -> Self {
        if env::var_os("ONCEKEY_BENCH_QUICK").is_some() {
            return Self {
                rounds: 3,
                operations: 20_000,
                http_turn: Duration::from_millis(300),
                sqlite_rounds: 1,
                sqlite_turn: Duration::from_millis(300),
                completed_keys: 100_000,
            };
        }
        Self {
            rounds: 9,
            operations: 200_000,
            http_turn: Duration::from_millis(1_500),
            sqlite_rounds: 5,
            sqlite_turn: Duration::from_millis(1_500),
            completed_keys: 1_000_000,
        }
    }
}
