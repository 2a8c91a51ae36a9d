//! Connections to the file, and the settings that each connection must have.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection as _;
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::result::ConnectionError;
use diesel::sql_types::Text;
use oncekey::backend::StoreError;

use super::clock::{Clock, Machine};
use super::error::{Kind, at_open, kind};
use super::identity::Identity;
use super::migration::{self, NotMigrated};
use super::session::Session;
use super::{SqliteBuilder, SqliteOpenError, Synchronous};

/// Opens connections to one file. Each thread keeps one, to reconnect after an error that its connection does not
/// survive.
#[derive(Debug, Clone)]
pub(super) struct Opener {
    pub(super) path: PathBuf,
    url: String,
    busy_timeout: Duration,
    synchronous: Synchronous,
    migrate: bool,
    /// `None` until the file is open.
    pub(super) identity: Option<Arc<Identity>>,
}

impl Opener {
    /// Makes an opener. `path` must be absolute: SQLite treats a relative one that begins with `file:` as a URI.
    pub(super) fn new(path: PathBuf, options: &SqliteBuilder) -> Result<Self, SqliteOpenError> {
        let Some(url) = path.to_str().map(str::to_owned) else {
            return Err(SqliteOpenError::NotUtf8 { path });
        };
        let SqliteBuilder { busy_timeout, synchronous, migrate, .. } = *options;
        Ok(Self { path, url, busy_timeout, synchronous, migrate, identity: None })
    }

    /// Checks, at most once a second, that the file is still where it was opened.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        self.identity.as_ref().map_or(Ok(()), |identity| identity.check())
    }

    /// Opens a connection that writes, and brings the tables up to date.
    pub(super) fn writer(&self) -> Result<Session, SqliteOpenError> {
        let mut connection = self.connect()?;
        self.use_write_ahead_log(&mut connection)?;
        let synchronous = match self.synchronous {
            Synchronous::Full => "FULL",
            Synchronous::Normal => "NORMAL",
        };
        // After a burst, SQLite cuts the log's file back to this many bytes.
        let settings = format!("PRAGMA synchronous = {synchronous}; PRAGMA journal_size_limit = 67108864;");
        connection.batch_execute(&settings).map_err(|error| self.failed(&error))?;
        let clock = connection
            .immediate_transaction(|connection| {
                migration::bring_up_to_date(connection, self.migrate)?;
                // The clocks are read under the lock. Otherwise the later of two processes could anchor by an earlier
                // time.
                Ok::<_, NotMigrated>(Clock::anchor(connection, &Machine::now())?)
            })
            .map_err(|error| match error {
                NotMigrated::Newer { found, known } => {
                    SqliteOpenError::NewerSchema { path: self.path.clone(), found, known }
                }
                NotMigrated::Older { found, known } => {
                    SqliteOpenError::NotMigrated { path: self.path.clone(), found, known }
                }
                NotMigrated::NoBootId => SqliteOpenError::NoBootId { path: self.path.clone() },
                NotMigrated::Sqlite(error) => self.failed(&error),
            })?;
        Ok(Session::new(connection, clock))
    }

    /// Opens a connection that only reads. A writer must have brought the tables up to date before.
    pub(super) fn reader(&self, clock: &Clock) -> Result<Session, SqliteOpenError> {
        let mut connection = self.connect()?;
        // SQLite opens the file's log at a connection's first read.
        let settings = "PRAGMA query_only = ON; PRAGMA schema_version";
        connection.batch_execute(settings).map_err(|error| self.failed(&error))?;
        Ok(Session::new(connection, clock.clone()))
    }

    fn connect(&self) -> Result<SqliteConnection, SqliteOpenError> {
        // Checked before opening: SQLite would create a missing file.
        self.check_now()?;
        let mut connection = SqliteConnection::establish(&self.url).map_err(|error| match error {
            ConnectionError::CouldntSetupConfiguration(error) => self.failed(&error),
            other => SqliteOpenError::Unopenable { path: self.path.clone(), reason: other.to_string() },
        })?;
        let millis = i32::try_from(self.busy_timeout.as_millis()).unwrap_or(i32::MAX);
        let busy_timeout = format!("PRAGMA busy_timeout = {millis}");
        connection.batch_execute(&busy_timeout).map_err(|error| self.failed(&error))?;
        // Checked again after opening: the file may have been replaced in between.
        self.check_now()?;
        Ok(connection)
    }

    fn check_now(&self) -> Result<(), SqliteOpenError> {
        let Some(identity) = &self.identity else { return Ok(()) };
        identity
            .check_now()
            .map_err(|error| SqliteOpenError::Replaced { path: self.path.clone(), reason: error.to_string() })
    }

    /// Switches the file to write-ahead-log mode. SQLite does not wait for the lock that this takes: of the processes
    /// that open a fresh file at the same time, all but one get "locked" immediately.
    fn use_write_ahead_log(&self, connection: &mut SqliteConnection) -> Result<(), SqliteOpenError> {
        let started = Instant::now();
        loop {
            let mode = sql::<Text>("PRAGMA journal_mode = WAL").get_result::<String>(connection);
            match mode {
                Ok(mode) if mode.eq_ignore_ascii_case("wal") => return Ok(()),
                Ok(mode) => return Err(SqliteOpenError::NoWriteAheadLog { path: self.path.clone(), mode }),
                Err(error) if kind(&error) == Kind::Busy && started.elapsed() < self.busy_timeout => {
                    thread::sleep(Duration::from_millis(5));
                }
                Err(error) => return Err(self.failed(&error)),
            }
        }
    }

    fn failed(&self, error: &diesel::result::Error) -> SqliteOpenError {
        at_open(self.path.clone(), error)
    }
}
