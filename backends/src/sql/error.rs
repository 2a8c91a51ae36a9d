//! How a driver's errors become the store's.

use diesel::result::Error;
use oncekey::backend::StoreError;

use super::dialect::{Dialect, Failure};

/// What the failure of a statement says about the rows that it was to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The server wrote nothing.
    NotWritten,
    /// The statement is finished, and what it wrote can be read.
    Finished,
    /// The answer is lost: the server may still be at it, or not have begun.
    Lost,
}

pub(crate) fn fate<D: Dialect>(error: &Error) -> Fate {
    match (D::failure(error), error) {
        (Failure::Disconnected, _) => Fate::Lost,
        (Failure::Contended | Failure::Locked | Failure::ReadOnly | Failure::Full, _) => Fate::NotWritten,
        (Failure::Refused, Error::DatabaseError(..) | Error::SerializationError(_)) => Fate::NotWritten,
        // The server's answer was read, and was an error of a kind that is not known here, or could not be decoded.
        (Failure::Refused | Failure::Other, Error::DatabaseError(..) | Error::DeserializationError(_)) => {
            Fate::Finished
        }
        // Diesel's own: it is not known whether it had sent the statement.
        (Failure::Refused | Failure::Other, _) => Fate::Lost,
    }
}

/// For a statement that writes nothing.
pub(crate) fn of_read<D: Dialect>(error: &Error) -> StoreError {
    match D::failure(error) {
        Failure::Refused => StoreError::corrupt(error),
        _ => StoreError::unavailable(error),
    }
}

/// For a statement in a transaction whose COMMIT was not sent: nothing of it takes effect.
pub(crate) fn of_unsent<D: Dialect>(error: &Error) -> StoreError {
    match of_write::<D>(error) {
        StoreError::Unknown(what) => StoreError::Unavailable(what),
        error => error,
    }
}

/// For a statement that writes: what is not known to have been rolled back may have been committed.
pub(crate) fn of_write<D: Dialect>(error: &Error) -> StoreError {
    match D::failure(error) {
        Failure::ReadOnly => StoreError::ReadOnly(error.to_string()),
        Failure::Full => StoreError::Full(error.to_string()),
        Failure::Contended | Failure::Locked => StoreError::unavailable(error),
        Failure::Refused if fate::<D>(error) == Fate::NotWritten => StoreError::unavailable(error),
        Failure::Disconnected | Failure::Refused | Failure::Other => StoreError::unknown(error),
    }
}
