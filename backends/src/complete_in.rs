//! Completing a claim in a transaction that is the user's own.

use diesel::result::Error;
use oncekey::backend::StoreError;

/// Why a claim was not completed in the caller's transaction, **which is to be rolled back**: return the error from it.
///
/// ```
/// use oncekey_backends::CompleteInError;
///
/// assert!(CompleteInError::ClaimLost.to_string().contains("roll the transaction back"));
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompleteInError {
    /// Another holder has the key by now: what the transaction wrote must not be.
    #[error("the claim was lost to another holder: roll the transaction back")]
    ClaimLost,
    /// The connection is in no transaction, so that the outcome would be committed by itself, before the rows.
    #[error("the connection is in no transaction: open one, and complete the claim as its last step")]
    NoTransaction,
    /// The database refused.
    #[error("the outcome could not be written, roll the transaction back: {0}")]
    Database(#[from] Error),
    /// What stands in the record's row is no record.
    #[error("the record could not be read or written, roll the transaction back: {0}")]
    Record(#[from] StoreError),
}
