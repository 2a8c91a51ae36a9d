//! Keeps records in an SQLite file.

mod backend;
mod boot;
mod clock;
mod connection;
mod dispatch;
mod error;
mod identity;
mod job;
mod log;
pub(crate) mod migration;
mod options;
mod reader;
mod records;
mod registry;
mod schema;
mod session;
mod steps;
mod transaction;
mod unseen;
mod watch;
mod writer;

#[cfg(test)]
mod tests;

pub use backend::SqliteBackend;
pub use diesel::SqliteConnection;
pub use error::SqliteOpenError;
pub use options::{SqliteBuilder, Synchronous};
