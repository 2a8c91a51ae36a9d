//! Stores for the [Oncekey](oncekey) idempotency engine.
//!
//! | backend | feature | shared by | survives |
//! |---|---|---|---|
//! | [`MemoryBackend`] | `memory` | one process | nothing |
//! | [`SqliteBackend`] | `sqlite` | the processes of one machine | kill -9; with `synchronous=FULL`, the default, a power cut |
//! | `PostgresBackend` | `postgres` | every client of the server | what the server survives |
//! | `MysqlBackend` | `mysql` | every client of the server (MySQL or MariaDB) | what the server survives |
//! | `RedisBackend` | `redis` | every client of the server (Redis or Valkey) | what the server survives: less, see its page |
//!
//! With the feature `outbox`, a job's messages commit with its rows on the three SQL stores, and a relay publishes
//! them.
//!
//! Each backend passes the public conformance suite, `oncekey::conformance`. The engine's guide to choosing a store
//! says what each store keeps in which failure.
//!
//! ```
//! use oncekey::Engine;
//! use oncekey_backends::SqliteBackend;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("keys.db");
//! let engine = Engine::builder(SqliteBackend::open(&path)?).start()?;
//! # Ok(()) }
//! ```

#[cfg(any(feature = "mysql", feature = "postgres", feature = "redis", feature = "sqlite"))]
mod ask;
#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
mod columns;
#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
mod complete_in;
#[cfg(all(feature = "postgres", feature = "mysql"))]
#[doc = include_str!("../guide/databases.md")]
pub mod databases {}
#[cfg(any(feature = "mysql", feature = "postgres", feature = "redis", feature = "sqlite"))]
mod doctor;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(feature = "memory")]
mod memory;
#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
mod migration;
#[cfg(feature = "mysql")]
pub mod mysql;
#[cfg(all(feature = "outbox", any(feature = "mysql", feature = "postgres", feature = "sqlite")))]
pub mod outbox;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(any(feature = "mysql", feature = "postgres", feature = "redis"))]
mod query;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
mod schema;
#[cfg(any(feature = "postgres", feature = "mysql"))]
mod sql;
#[cfg(feature = "sqlite")]
pub mod sqlite;
#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
mod step_columns;
#[cfg(any(feature = "postgres", feature = "redis", feature = "sqlite"))]
mod waiters;

#[cfg(feature = "redis")]
pub use self::redis::RedisBackend;
#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
pub use complete_in::CompleteInError;
#[cfg(any(feature = "mysql", feature = "postgres", feature = "redis", feature = "sqlite"))]
pub use doctor::Finding;
#[cfg(feature = "memory")]
pub use memory::{MemoryBackend, MemoryBackendBuilder};
#[cfg(feature = "mysql")]
pub use mysql::MysqlBackend;
#[cfg(feature = "postgres")]
pub use postgres::PostgresBackend;
#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
pub use schema::schema;
#[cfg(any(feature = "mysql", feature = "postgres"))]
pub use sql::DieselPool;
#[cfg(feature = "sqlite")]
pub use sqlite::{SqliteBackend, SqliteBuilder, SqliteOpenError, Synchronous};
