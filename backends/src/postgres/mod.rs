//! Records in PostgreSQL.

mod backend;
mod connect;
mod error;
mod migration;
mod options;
mod steps;
mod table;
mod texts;
mod watch;

pub use backend::PostgresBackend;
pub use error::PostgresOpenError;
pub use options::PostgresBuilder;

pub use crate::sql::InvalidName;

/// For the fuzz targets.
#[cfg(fuzzing)]
pub(crate) fn read_url(url: &str) -> Result<(), PostgresOpenError> {
    connect::Connector::new(url).map(drop)
}
