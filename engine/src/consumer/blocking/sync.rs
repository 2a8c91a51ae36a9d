//! The synchronization primitives that [`crew`](super::crew) uses. The loom model replaces them with those of `loom`.

pub(super) use std::sync::{Arc, Condvar, Mutex};
