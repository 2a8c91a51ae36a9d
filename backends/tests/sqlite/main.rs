//! The SQLite backend, from outside.
#![cfg(feature = "sqlite")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "clippy takes only functions with #[test] for tests")]

mod files;
mod files_beside;
mod locks;
mod long_readers;
mod operation_steps;
mod own_transaction;
mod processes;
mod steps;
mod steps_in_transactions;
mod transactions;
mod watches;

use std::path::Path;
use std::time::Duration;

use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use oncekey::backend::{Acquire, Acquired, Backend as _, Complete};
use oncekey::record::{Owner, PayloadKind, SealedOutcome};
use oncekey::{Fingerprint, Key, OnAbandoned};
use oncekey_backends::SqliteBackend;
use tempfile::TempDir;

const LEASE: Duration = Duration::from_secs(30);
const DAY: Duration = Duration::from_secs(86_400);

/// A backend on a fresh file; the folder goes with the returned guard.
fn fresh() -> (TempDir, SqliteBackend) {
    let folder = tempfile::tempdir().unwrap();
    let backend = SqliteBackend::open(folder.path().join("keys.db")).unwrap();
    (folder, backend)
}

/// Another connection to the backend's file, as another process would have it.
fn beside(backend: &SqliteBackend) -> SqliteConnection {
    connect(backend.path())
}

fn connect(path: &Path) -> SqliteConnection {
    let mut connection = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    connection.batch_execute("PRAGMA busy_timeout = 5000").unwrap();
    connection
}

fn key(name: impl std::fmt::Display) -> Key {
    Key::new("test", name).unwrap()
}

fn claim(key: &Key, owner: Owner) -> Acquire {
    Acquire {
        key: key.clone(),
        fingerprint: Fingerprint::of(b"asked"),
        owner,
        lease: LEASE,
        on_abandoned: OnAbandoned::Hold,
        past_withdrawal: None,
    }
}

fn outcome(key: &Key, text: &str) -> SealedOutcome {
    SealedOutcome::seal(key, PayloadKind::Json, |bytes| bytes.extend_from_slice(text.as_bytes()))
}

fn completion(key: &Key, owner: Owner) -> Complete {
    Complete { key: key.clone(), owner, outcome: outcome(key, "17"), retention: DAY }
}

async fn is_claimed(backend: &SqliteBackend, message: Acquire) -> bool {
    matches!(backend.acquire(message).await.unwrap(), Acquired::Claimed { .. })
}
