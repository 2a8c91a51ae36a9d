//! Stores for the [Oncekey](oncekey) idempotency engine.

#[cfg(feature = "memory")]
mod memory;

#[cfg(feature = "memory")]
pub use memory::{MemoryBackend, MemoryBackendBuilder};
