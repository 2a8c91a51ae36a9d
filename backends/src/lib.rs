//! Stores for the [Oncekey](oncekey) idempotency engine.

#[cfg(feature = "memory")]
mod memory;
#[cfg(feature = "sqlite")]
pub mod sqlite;

#[cfg(feature = "memory")]
pub use memory::{MemoryBackend, MemoryBackendBuilder};
#[cfg(feature = "sqlite")]
pub use sqlite::{SqliteBackend, SqliteBuilder, SqliteOpenError, Synchronous};
