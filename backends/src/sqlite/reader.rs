//! The threads that read. Look-ups, lists and counts do not wait for the writer, and the writer does not wait for them.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crossbeam_channel::Receiver;
use oncekey::backend::StoreError;
use tracing::error;

use super::clock::Clock;
use super::connection::Opener;
use super::error::not_opened;
use super::job::{Job, Ran};
use super::session::Session;

pub(super) struct Reader {
    pub(super) queue: Receiver<Box<dyn Job>>,
    pub(super) opener: Opener,
    pub(super) clock: Clock,
    /// `None` after an error, until the next read.
    pub(super) session: Option<Session>,
}

impl Reader {
    /// Runs until the last handle is dropped and the waiting reads are done.
    pub(super) fn run(mut self) {
        while let Ok(job) = self.queue.recv() {
            if catch_unwind(AssertUnwindSafe(|| self.read(job))).is_err() {
                error!("an SQLite reader panicked, and goes on with a new connection");
                self.session = None;
            }
        }
    }

    fn read(&mut self, mut job: Box<dyn Job>) {
        if let Err(replaced) = self.opener.check() {
            return job.refuse(replaced);
        }
        let session = match self.session.as_mut() {
            Some(session) => session,
            None => match self.opener.reader(&self.clock) {
                Ok(session) => self.session.insert(session),
                Err(error) => return job.refuse(not_opened(&error)),
            },
        };
        match job.run(session) {
            Ran::Abandoned => return,
            Ran::Done | Ran::Failed(StoreError::Corrupt(_)) => {}
            Ran::Failed(_) => self.session = None,
        }
        job.settle(Ok(()));
    }
}
