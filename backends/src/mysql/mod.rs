//! Records in MySQL or MariaDB.

mod backend;
mod connect;
mod error;
mod migration;
mod options;
mod table;

pub use backend::MysqlBackend;
pub use error::MysqlOpenError;
pub use options::MysqlBuilder;

pub use crate::sql::InvalidName;
