//! The primitives that [`crew`](super::crew) is made of. The model of it puts those of `loom` in their place.

pub(super) use std::sync::{Arc, Condvar, Mutex};
