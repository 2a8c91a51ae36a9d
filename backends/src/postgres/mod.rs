//! Stores records in PostgreSQL.

mod backend;
#[cfg(feature = "blocking")]
mod blocking;
mod connect;
mod doctor;
mod error;
pub(crate) mod migration;
mod pooler;
mod session;
mod steps;
pub(crate) mod table;
pub(crate) mod texts;
mod watch;

pub use backend::{PostgresBackend, PostgresBuilder};
pub use error::PostgresOpenError;

pub use crate::sql::InvalidName;

/// For the fuzz targets.
#[cfg(fuzzing)]
pub(crate) fn read_url(url: &str) -> Result<(), PostgresOpenError> {
    connect::read_url(url).map(drop)
}
