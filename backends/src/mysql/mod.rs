//! Records in MySQL or MariaDB.

mod backend;
mod connect;
mod error;
pub(crate) mod flush;
mod migration;
mod options;
mod steps;
mod table;

pub use backend::MysqlBackend;
pub use error::MysqlOpenError;
pub use options::MysqlBuilder;

pub use crate::sql::InvalidName;

/// For the fuzz targets.
#[cfg(fuzzing)]
pub(crate) fn read_url(url: &str) -> Result<(), MysqlOpenError> {
    connect::Connector::new(url).map(drop)
}
