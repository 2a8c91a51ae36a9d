//! The one thread of the process that writes to a file.
//!
//! It blocks for one step, takes all that wait behind it, and commits them together: one forced write to the disk, which
//! is nearly all that a commit costs, serves them all. Answers are given after the commit.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::Receiver;
use oncekey::Key;
use oncekey::backend::StoreError;
use tracing::{error, warn};

use super::connection::Opener;
use super::error::{Kind, kind, not_opened, not_taken};
use super::job::{Job, Ran};
use super::log::Log;
use super::session::{NotCommitted, Session};
use crate::waiters::Waiters;

pub(super) struct Writer {
    pub(super) queue: Receiver<Box<dyn Job>>,
    pub(super) max_batch: usize,
    pub(super) opener: Opener,
    /// `None` after an error that a connection does not survive, until the next batch.
    pub(super) session: Option<Session>,
    pub(super) log: Log,
    pub(super) waiters: Arc<Waiters<Key>>,
    pub(super) commits: Arc<AtomicU64>,
}

impl Writer {
    /// Ends when the last handle has gone and what waited is done.
    pub(super) fn run(mut self) {
        let mut batch = VecDeque::with_capacity(self.max_batch);
        while let Ok(first) = self.queue.recv() {
            if self.log.is_to_be_looked_at_first() {
                self.watch_log();
            }
            batch.push_back(first);
            batch.extend(self.queue.try_iter().take(self.max_batch - 1));
            batch.retain(|job| job.is_wanted());
            while !batch.is_empty() {
                let committed = catch_unwind(AssertUnwindSafe(|| self.commit_together(&mut batch)));
                if committed.is_err() {
                    error!("the SQLite writer panicked, and goes on with a new connection");
                    self.session = None;
                    // A job that is dropped answers "unknown" if it was begun, and "unavailable" if not.
                    batch.clear();
                }
            }
            // Whoever waited has its answer by now.
            self.watch_log();
        }
    }

    fn watch_log(&mut self) {
        if let Some(session) = &mut self.session
            && let Err(error) = self.log.watch(&mut session.connection)
        {
            self.give_up(&error);
        }
    }

    /// Takes the batch in one transaction. What is left in `batch` was not touched, and needs another.
    fn commit_together(&mut self, batch: &mut VecDeque<Box<dyn Job>>) {
        if let Err(replaced) = self.opener.check() {
            return batch.drain(..).for_each(|job| job.refuse(replaced.clone()));
        }
        let session = match self.session.as_mut() {
            Some(session) => session,
            None => match self.opener.writer() {
                Ok(session) => self.session.insert(session),
                Err(error) => {
                    let error = not_opened(&error);
                    return batch.drain(..).for_each(|job| job.refuse(error.clone()));
                }
            },
        };
        if let Err(error) = session.begin() {
            let refusal = not_taken(&error);
            batch.drain(..).for_each(|job| job.refuse(refusal.clone()));
            if kind(&error) != Kind::Busy {
                self.give_up(&error);
            }
            return;
        }
        session.claims_are_refused = self.log.refusal();
        let mut taken = Vec::with_capacity(batch.len());
        let lost = take(session, batch, &mut taken);
        let fate = match lost {
            Some(lost) => Err(lost),
            None => session.commit(),
        };
        match &fate {
            Ok(()) => {
                self.commits.fetch_add(1, Ordering::Relaxed);
                self.waiters.wake_each(session.settled.drain(..));
                if session.worn {
                    self.give_up(&"it refuses to write");
                }
            }
            Err(NotCommitted::Refused(error)) => {
                warn!(%error, "SQLite refused a commit; the steps beside users' operations are taken again");
                // Operations can run only once; without them the other steps can't be refused again.
                let (operations, steps): (Vec<_>, Vec<_>) = taken.drain(..).partition(|job| job.is_operation());
                session.operations_alone |= operations.len() > 1;
                if operations.is_empty() {
                    steps.into_iter().for_each(|job| job.refuse(error.clone()));
                } else {
                    for mut job in steps.into_iter().rev() {
                        job.undone();
                        batch.push_front(job);
                    }
                }
                operations.into_iter().for_each(|job| job.commit_refused(error.clone()));
            }
            Err(NotCommitted::RolledBack(error) | NotCommitted::Unknown(error)) => self.give_up(error),
        }
        taken.into_iter().for_each(|job| job.settle(fate.as_ref().copied()));
    }

    fn give_up(&mut self, error: &dyn std::fmt::Display) {
        warn!(%error, "the SQLite writer goes on with a new connection");
        self.session = None;
    }
}

/// Runs jobs until there are none left, or until the transaction they run in is lost: then says what became of it.
///
/// SQLite checks deferred constraints at COMMIT, and does not say whose row violates one. Operations share a commit, since
/// a commit waits for the disk, until one that they shared is refused: then all of them are rolled back, and from there on
/// a user's operation is the last of its transaction.
fn take(
    session: &mut Session,
    batch: &mut VecDeque<Box<dyn Job>>,
    taken: &mut Vec<Box<dyn Job>>,
) -> Option<NotCommitted> {
    while let Some(mut job) = batch.pop_front() {
        let ran = job.run(session);
        let is_last = session.operations_alone && job.is_operation() && !matches!(ran, Ran::Abandoned);
        taken.push(job);
        if std::mem::take(&mut session.broken) {
            return Some(NotCommitted::Unknown(StoreError::unknown(
                "another step's operation ended the transaction that this step was part of",
            )));
        }
        let Ran::Failed(error) = ran else {
            if is_last {
                return None;
            }
            continue;
        };
        session.worn |= matches!(error, StoreError::ReadOnly(_));
        if !session.in_transaction() {
            return Some(NotCommitted::RolledBack(match error {
                StoreError::Full(_) | StoreError::ReadOnly(_) => error,
                other => StoreError::unavailable(format!("SQLite rolled the transaction back: {other}")),
            }));
        }
        if is_last {
            return None;
        }
    }
    None
}
