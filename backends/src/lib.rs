//! Stores for the [Oncekey](oncekey) idempotency engine.
//!
//! | backend | feature | shared by | survives |
//! |---|---|---|---|
//! | [`MemoryBackend`] | `memory` | one process | nothing |
//! | [`SqliteBackend`] | `sqlite` | the processes of one machine | kill -9; with `synchronous=FULL`, the default, a power cut |
//!
//! Each passes the public conformance suite, `oncekey::conformance`. The engine's
//! guide to choosing a store says what each keeps in which failure.
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

#[cfg(feature = "memory")]
mod memory;
#[cfg(feature = "sqlite")]
pub mod sqlite;

#[cfg(feature = "memory")]
pub use memory::{MemoryBackend, MemoryBackendBuilder};
#[cfg(feature = "sqlite")]
pub use sqlite::{SqliteBackend, SqliteBuilder, SqliteOpenError, Synchronous};
