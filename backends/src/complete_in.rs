//! Errors of completing a claim in the user's own transaction.

use diesel::result::Error;
use oncekey::backend::StoreError;

/// Why a claim was not completed in the caller's transaction. **Roll that transaction back**: return the error from it.
///
/// ```
/// use oncekey_backends::CompleteInError;
///
/// assert!(CompleteInError::ClaimLost.to_string().contains("roll the transaction back"));
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompleteInError {
    /// Another holder has the key now: what the transaction wrote must not be committed.
    #[error("the claim was lost to another holder: roll the transaction back")]
    ClaimLost,
    /// The connection is in no transaction. The outcome would be committed by itself, before the rows.
    #[error("the connection is in no transaction: open one, and complete the claim as its last step")]
    NoTransaction,
    /// Diesel believes that a transaction is open, but the server has none. Either the server rolled it back (MySQL
    /// does so at a deadlock, whose error the caller ignored), or one of the caller's own statements ended it.
    /// **Anything written after that is committed already**, and rolling back does not undo it.
    #[error(
        "the server has ended the transaction before its last step, by a deadlock whose error was passed over or by a \
         statement that commits: what was written before a deadlock is gone, what was written since is committed. The \
         outcome was not written; return every database error from the transaction"
    )]
    TransactionEnded,
    /// The database returned an error.
    #[error("the outcome could not be written, roll the transaction back: {0}")]
    Database(#[from] Error),
    /// The record's row holds no valid record.
    #[error("the record could not be read or written, roll the transaction back: {0}")]
    Record(#[from] StoreError),
}
