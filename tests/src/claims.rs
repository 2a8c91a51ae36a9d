//! Claims for the suites of the databases.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use oncekey::backend::Acquire;
use oncekey::record::Owner;
use oncekey::{Fingerprint, Key, OnAbandoned};

/// Returns a new table name for each check.
pub fn fresh_table() -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    format!("records_{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Returns a claim for one minute, under Rerun.
///
/// # Panics
/// If `key` is not a valid key.
pub fn acquire(key: &str) -> Acquire {
    Acquire {
        key: Key::new("s", key).unwrap(),
        fingerprint: Fingerprint::of(b"asked"),
        owner: Owner::random(),
        lease: Duration::from_secs(60),
        on_abandoned: OnAbandoned::Rerun,
        past_withdrawal: None,
    }
}
