//! A panic of user code becomes a value.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// User code panicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Panicked;

/// Calls user code.
pub(crate) fn guard<T>(code: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(code)).map_err(discard)
}

/// Drops what a panic carried.
pub(crate) fn discard(payload: Box<dyn Any + Send>) -> Panicked {
    // What a panic carries is a user's value too, and its `Drop` may panic in turn. That second payload is leaked: there
    // is no end to dropping such things.
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(second);
    }
    Panicked
}

/// Drops a user's value.
#[cfg(feature = "consumer")]
pub(crate) fn discard_value<T>(value: T) {
    let _ = guard(|| drop(value));
}
