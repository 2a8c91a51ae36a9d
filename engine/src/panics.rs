//! Turns panics of user code into values.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// User code panicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Panicked;

/// Calls user code, and catches its panic.
pub(crate) fn guard<T>(code: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(code)).map_err(discard)
}

/// Drops the payload of a panic.
pub(crate) fn discard(payload: Box<dyn Any + Send>) -> Panicked {
    // The payload is a user's value too, and its `Drop` may panic in turn. The second payload is leaked, because
    // dropping payloads could go on without end.
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(second);
    }
    Panicked
}

/// Drops a user's value, and catches a panic in its `Drop`.
#[cfg(feature = "consumer")]
pub(crate) fn discard_value<T>(value: T) {
    let _ = guard(|| drop(value));
}
