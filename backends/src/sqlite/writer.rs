//! The process's one thread that writes to a file.
//!
//! It blocks for one request, takes all requests that wait behind it, and commits them together. They share one forced
//! write to the disk, which is nearly the whole cost of a commit. The thread answers after the commit.

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
    /// `None` after an error that the connection does not survive, until the next batch.
    pub(super) session: Option<Session>,
    pub(super) log: Log,
    pub(super) waiters: Arc<Waiters<Key>>,
    pub(super) commits: Arc<AtomicU64>,
}

impl Writer {
    /// Runs until the last handle is dropped and the waiting requests are done.
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
                    // A dropped job answers "unknown" if it has begun, and "unavailable" if not.
                    batch.clear();
                }
            }
            // By now every waiting caller has its answer.
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

    /// Executes the batch in one transaction. Jobs that remain in `batch` were not executed, or were rolled back, and
    /// need another transaction.
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
                // An operation can run only once. Without the operations, SQLite can't refuse the other requests again.
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

/// Runs jobs until none is left, or until their transaction is lost. In that case it returns the transaction's fate.
///
/// SQLite checks deferred constraints at COMMIT, and does not say whose row violates one. A commit waits for the disk,
/// so operations share commits until SQLite refuses one that they shared. All of its operations are then rolled back.
/// From then on, a user's operation is the last job of its transaction.
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
