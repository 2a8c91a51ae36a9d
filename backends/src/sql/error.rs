//! How a driver's errors become the store's.

use diesel::result::Error;
use oncekey::backend::StoreError;

use super::dialect::{Dialect, Failure};

/// For a statement that writes nothing.
pub(crate) fn of_read<D: Dialect>(error: &Error) -> StoreError {
    match D::failure(error) {
        Failure::Refused => StoreError::corrupt(error),
        _ => StoreError::unavailable(error),
    }
}

/// For a statement that writes: what is not known to have been rolled back may have been committed.
pub(crate) fn of_write<D: Dialect>(error: &Error) -> StoreError {
    match D::failure(error) {
        Failure::ReadOnly => StoreError::ReadOnly(error.to_string()),
        Failure::Full => StoreError::Full(error.to_string()),
        Failure::Refused | Failure::Contended => StoreError::unavailable(error),
        Failure::Disconnected | Failure::Other => StoreError::unknown(error),
    }
}
