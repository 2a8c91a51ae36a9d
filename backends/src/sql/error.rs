//! Converts the driver's errors to store errors.

use diesel::result::Error;
use oncekey::backend::StoreError;

use super::dialect::{Dialect, Failure};

/// What the failure of a statement says about the rows that it had to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The server wrote nothing.
    NotWritten,
    /// The statement has finished, and its writes can be read.
    Finished,
    /// The answer is lost. The server may still be executing the statement, or may not have started it.
    Lost,
}

pub(crate) fn fate<D: Dialect>(error: &Error) -> Fate {
    match (D::failure(error), error) {
        (Failure::Disconnected, _) => Fate::Lost,
        (Failure::Contended | Failure::Locked | Failure::ReadOnly | Failure::Full, _) => Fate::NotWritten,
        (Failure::Refused, Error::DatabaseError(..) | Error::SerializationError(_)) => Fate::NotWritten,
        // The server answered, either with an unknown kind of error or with data that could not be decoded.
        (Failure::Refused | Failure::Other, Error::DatabaseError(..) | Error::DeserializationError(_)) => {
            Fate::Finished
        }
        // Diesel's own error: it is unknown whether Diesel had sent the statement.
        (Failure::Refused | Failure::Other, _) => Fate::Lost,
    }
}

/// Converts the error of a statement that writes nothing.
pub(crate) fn of_read<D: Dialect>(error: &Error) -> StoreError {
    match D::failure(error) {
        Failure::Refused => StoreError::corrupt(error),
        _ => StoreError::unavailable(error),
    }
}

/// Converts the error of a statement in a transaction whose COMMIT was not sent: nothing in it takes effect.
pub(crate) fn of_unsent<D: Dialect>(error: &Error) -> StoreError {
    match of_write::<D>(error) {
        StoreError::Unknown(what) => StoreError::Unavailable(what),
        error => error,
    }
}

/// Converts the error of a statement that writes. Unless the rollback is certain, the writes may be committed.
pub(crate) fn of_write<D: Dialect>(error: &Error) -> StoreError {
    match D::failure(error) {
        Failure::ReadOnly => StoreError::ReadOnly(error.to_string()),
        Failure::Full => StoreError::Full(error.to_string()),
        Failure::Contended | Failure::Locked => StoreError::unavailable(error),
        Failure::Refused if fate::<D>(error) == Fate::NotWritten => StoreError::unavailable(error),
        Failure::Disconnected | Failure::Refused | Failure::Other => StoreError::unknown(error),
    }
}
