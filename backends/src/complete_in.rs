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
    /// Diesel believes that a transaction is open, and the server has none: it rolled the transaction back (MySQL does so
    /// at a deadlock, whose error the caller has passed over), or a statement of the caller's own ended it. **What was
    /// written after that is committed already**, and rolling back does not undo it.
    #[error(
        "the server has ended the transaction before its last step, by a deadlock whose error was passed over or by a \
         statement that commits: what was written before a deadlock is gone, what was written since is committed. The \
         outcome was not written; return every database error from the transaction"
    )]
    TransactionEnded,
    /// The database refused.
    #[error("the outcome could not be written, roll the transaction back: {0}")]
    Database(#[from] Error),
    /// What stands in the record's row is no record.
    #[error("the record could not be read or written, roll the transaction back: {0}")]
    Record(#[from] StoreError),
}
