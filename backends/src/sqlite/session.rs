//! A connection with the store's clock. Every request is executed on one.

use diesel::connection::{AnsiTransactionManager, SimpleConnection as _, TransactionManager as _};
use diesel::prelude::*;
use diesel::result::Error;
use oncekey::Key;
use oncekey::backend::{Acquire, Acquired, StoreError};
use oncekey::record::transition::{self, Step, Write};
use oncekey::record::{Record, State, StoreTime};

use super::clock::Clock;
use super::error::{Kind, kind, not_taken};
use super::records::{self, Found};
use super::steps::Outcomes;

/// A connection, owned by one thread.
pub(super) struct Session {
    pub(super) connection: SqliteConnection,
    clock: Clock,
    /// Keys that this transaction left without a claim in progress. Their waiting callers are woken after the commit.
    pub(super) settled: Vec<Key>,
    /// Set when a user's operation has ended or replaced the transaction that it ran in.
    pub(super) broken: bool,
    /// Whether each operation is the last of its commit. Set once SQLite has refused a commit that several operations
    /// shared.
    pub(super) operations_alone: bool,
    /// Set when the connection refuses to write, for whatever reason. The next batch gets a new connection.
    pub(super) worn: bool,
    /// The error for new claims of this batch, if they are refused.
    pub(super) claims_are_refused: Option<StoreError>,
}

/// Why a transaction is not known to be committed.
#[derive(Debug)]
pub(super) enum NotCommitted {
    /// It was rolled back.
    RolledBack(StoreError),
    /// It was rolled back because a row of a user's operation violates a deferred constraint.
    Refused(StoreError),
    /// It may or may not be on the disk.
    Unknown(StoreError),
}

impl Session {
    pub(super) fn new(connection: SqliteConnection, clock: Clock) -> Self {
        Self {
            connection,
            clock,
            settled: Vec::new(),
            broken: false,
            operations_alone: false,
            worn: false,
            claims_are_refused: None,
        }
    }

    pub(super) fn clock(&self) -> &Clock {
        &self.clock
    }

    pub(super) fn now(&self) -> StoreTime {
        self.clock.now()
    }

    /// Reads a key's record with the given outcomes of its steps, applies the transition, and writes its result.
    pub(super) fn step<Answer>(
        &mut self,
        key: &Key,
        outcomes: Outcomes<'_>,
        transition: impl FnOnce(Option<&Record>, StoreTime) -> Step<Answer>,
    ) -> Result<Answer, StoreError> {
        self.step_if(key, outcomes, |found, now| Ok(transition(found, now)))
    }

    /// Does the same as [`step`](Self::step) with a transition that may return a refusal.
    fn step_if<Answer>(
        &mut self,
        key: &Key,
        outcomes: Outcomes<'_>,
        transition: impl FnOnce(Option<&Record>, StoreTime) -> Result<Step<Answer>, StoreError>,
    ) -> Result<Answer, StoreError> {
        let found = records::find(&mut self.connection, key, outcomes)?;
        let step = transition(found.as_ref().map(|found| &found.record), self.now())?;
        self.write(key, found.as_ref(), &step.write)?;
        Ok(step.answer)
    }

    /// Claims a key. While new claims are refused, it still returns every other answer about the key.
    pub(super) fn acquire(&mut self, message: &Acquire) -> Result<Acquired, StoreError> {
        let refusal = self.claims_are_refused.clone();
        self.step_if(&message.key, Outcomes::All, |found, now| {
            let step = transition::acquire(found, now, message);
            // The owner asks again because the answer to its claim was lost.
            let is_asked_again = found.is_some_and(|record| {
                record.owner == message.owner && matches!(record.state, State::InProgress { .. })
            });
            match refusal {
                Some(refusal) if matches!(step.answer, Acquired::Claimed { .. }) && !is_asked_again => Err(refusal),
                _ => Ok(step),
            }
        })
    }

    fn write(&mut self, key: &Key, found: Option<&Found>, write: &Write) -> Result<(), StoreError> {
        let connection = &mut self.connection;
        let in_progress = match (write, found) {
            (Write::Nothing, _) | (Write::Delete, None) => return Ok(()),
            (Write::Delete, Some(found)) => {
                records::delete(connection, found.id)?;
                false
            }
            (Write::Put(record), found) => {
                match found {
                    Some(found) => records::replace(connection, found, record)?,
                    None => records::insert(connection, key, record)?,
                }
                matches!(record.state, State::InProgress { .. })
            }
        };
        if !in_progress {
            self.settled.push(key.clone());
        }
        Ok(())
    }

    /// Takes the file's write lock. Waits for it up to the busy time-out.
    pub(super) fn begin(&mut self) -> QueryResult<()> {
        self.settled.clear();
        AnsiTransactionManager::begin_transaction_sql(&mut self.connection, "BEGIN IMMEDIATE")?;
        // A failed note is not worth failing a batch.
        self.clock.note(&mut self.connection).or_else(|error| if self.in_transaction() { Ok(()) } else { Err(error) })
    }

    pub(super) fn commit(&mut self) -> Result<(), NotCommitted> {
        let Err(error) = AnsiTransactionManager::commit_transaction(&mut self.connection) else { return Ok(()) };
        Err(match kind(&error) {
            Kind::Constraint => NotCommitted::Refused(not_taken(&error)),
            Kind::Busy | Kind::Full | Kind::ReadOnly => NotCommitted::RolledBack(not_taken(&error)),
            // If the fsync of a commit record failed, recovery after a crash may still find that record.
            _ => NotCommitted::Unknown(StoreError::unknown(&error)),
        })
    }

    /// Whether a transaction is open. SQLite ends it by itself on some errors (a full disk, an I/O error), and so may a
    /// user's operation. Call it only after an error, because the check is a statement that fails inside a transaction.
    pub(super) fn in_transaction(&mut self) -> bool {
        is_in_transaction(&mut self.connection)
    }
}

/// Whether SQLite has a transaction open, whatever Diesel believes. Inside a transaction, BEGIN fails and changes
/// nothing.
pub(super) fn is_in_transaction(connection: &mut SqliteConnection) -> bool {
    match connection.batch_execute("BEGIN") {
        Err(_) => true,
        Ok(()) => {
            // This ends the transaction that the check opened. If even this fails, the caller gives the connection up.
            let _: Result<(), Error> = connection.batch_execute("ROLLBACK");
            false
        }
    }
}
