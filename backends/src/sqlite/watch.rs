//! The thread that looks for changes by other processes while a caller waits.
//!
//! The process's own writer wakes the waiting callers of each key after its commit. SQLite's `data_version`, a number
//! in shared memory, reveals another process's commit, so a check costs next to nothing while nothing happens.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crossbeam_channel::Receiver;
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use oncekey::Key;
use oncekey::backend::StoreError;
use oncekey::record::State;
use tracing::warn;

use super::clock::Clock;
use super::connection::Opener;
use super::error::not_taken;
use super::records;
use super::session::Session;
use crate::waiters::Waiters;

/// The thread that looks for changes. It sleeps while no caller waits.
pub(super) struct Lookout {
    /// Announces new waiting callers; closed when the last handle is dropped.
    pub(super) calls: Receiver<()>,
    pub(super) waiters: Arc<Waiters<Key>>,
    pub(super) opener: Opener,
    pub(super) clock: Clock,
}

impl Lookout {
    pub(super) fn run(self) {
        let mut session = None;
        while self.calls.recv().is_ok() {
            // The version starts as unknown, so the first check reads the records: they may have changed while the
            // thread slept.
            let mut seen = None;
            loop {
                if let Err(error) = self.look(&mut session, &mut seen) {
                    warn!(%error, "watching for other processes' changes failed, and is tried again");
                    (session, seen) = (None, None);
                }
                thread::sleep(pause());
                if self.waiters.keys().is_empty() {
                    break;
                }
            }
        }
    }

    fn look(&self, session: &mut Option<Session>, seen: &mut Option<i64>) -> Result<(), StoreError> {
        let session = match session {
            Some(session) => session,
            None => session.insert(self.opener.reader(&self.clock).map_err(StoreError::unavailable)?),
        };
        let version = sql::<BigInt>("PRAGMA data_version")
            .get_result::<i64>(&mut session.connection)
            .map_err(|error| not_taken(&error))?;
        if *seen == Some(version) {
            return Ok(());
        }
        // The keys are read after the version. A key that is added later was looked up by its watcher, and a change
        // after that look-up raises the next version.
        let settled = self.waiters.keys().into_iter().filter(|key| {
            let found = records::find_without_steps(&mut session.connection, key);
            !matches!(found, Ok(Some(found)) if matches!(found.record.state, State::InProgress { .. }))
        });
        let settled: Vec<Key> = settled.collect();
        self.waiters.wake_each(settled.into_iter());
        *seen = Some(version);
        Ok(())
    }
}

/// Returns 20 to 40 ms. The jitter keeps the processes of a machine from polling in step.
fn pause() -> Duration {
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.subsec_nanos());
    Duration::from_millis(20 + u64::from(nanos / 1_000 % 20))
}
