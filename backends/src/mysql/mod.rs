//! Stores records in MySQL or MariaDB.

mod backend;
#[cfg(feature = "blocking")]
mod blocking;
mod connect;
mod doctor;
mod error;
pub(crate) mod flush;
pub(crate) mod migration;
mod purge;
mod session;
mod steps;
pub(crate) mod table;

pub use backend::{MysqlBackend, MysqlBuilder};
pub use error::MysqlOpenError;

pub use crate::sql::InvalidName;

/// For the fuzz targets.
#[cfg(fuzzing)]
pub(crate) fn read_url(url: &str) -> Result<(), MysqlOpenError> {
    connect::read_url(url).map(drop)
}
