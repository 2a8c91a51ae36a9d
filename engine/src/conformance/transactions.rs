//! Operations in the transaction that completes their record, for stores with transactions.

use super::{LONG, Store, acquire, claim, fresh_key, outcome};
use crate::OnAbandoned;
use crate::backend::{
    Acquired, Backend, Complete, CompleteInTransaction, Completed, CompletedInTransaction, OperationFailure,
    StoreError, TransactionOperation,
};
use crate::record::Owner;

/// Exactly once: the transaction stores the outcome that its operation returns. A stale owner's operation never runs,
/// and a repeated one does not run again. A store without transactions says so.
pub async fn e18_the_outcome_commits_with_the_operation(store: &Store) {
    let backend = store.connect().await;
    let key = fresh_key();
    let owner = claim(&backend, &key, LONG, OnAbandoned::Rerun).await;
    let sealed = outcome(&key, "17");
    let transact = |owner: Owner, gives| {
        let operation = TransactionOperation::erased(move |_| gives);
        let message = CompleteInTransaction { key: key.clone(), owner, retention: LONG, operation };
        backend.complete_in_transaction(message)
    };
    if !store.capabilities.transactions {
        let answer = transact(owner, Ok(sealed)).await;
        assert!(matches!(answer, Err(StoreError::Unsupported(_))), "{answer:?}");
        return;
    }
    let stale = transact(Owner::random(), Ok(sealed.clone())).await;
    assert_eq!(stale, Ok(CompletedInTransaction::Lost));
    let stored = Ok(CompletedInTransaction::Stored { outcome: sealed.clone() });
    assert_eq!(transact(owner, Ok(sealed.clone())).await, stored);
    // An owner that lost the answer finds the stored outcome, not that of an operation that would run again.
    assert_eq!(transact(owner, Err(OperationFailure::RollBack)).await, stored);
    let answer = backend.acquire(acquire(&key, LONG, OnAbandoned::Rerun)).await;
    assert_eq!(answer, Ok(Acquired::Completed { outcome: sealed }));
}

/// An operation that fails, panics, or asks for another connection leaves its claim unchanged.
pub async fn e18_a_failed_transaction_leaves_the_claim(store: &Store) {
    struct NoSuchConnection;

    if !store.capabilities.transactions {
        return;
    }
    let backend = store.connect().await;
    let key = fresh_key();
    let owner = claim(&backend, &key, LONG, OnAbandoned::Rerun).await;
    let transact = |operation| {
        backend.complete_in_transaction(CompleteInTransaction { key: key.clone(), owner, retention: LONG, operation })
    };
    let failed = transact(TransactionOperation::erased(|_| Err(OperationFailure::RollBack))).await;
    assert_eq!(failed, Ok(CompletedInTransaction::RolledBack));
    let panicked = transact(TransactionOperation::erased(|_| panic!("this panic is part of a check"))).await;
    assert_eq!(panicked, Ok(CompletedInTransaction::RolledBack));
    let sealed = outcome(&key, "17");
    let asked = transact(TransactionOperation::new(move |_: &mut NoSuchConnection| Ok(sealed))).await;
    assert!(matches!(asked, Ok(CompletedInTransaction::WrongConnection { .. })), "{asked:?}");
    let message = Complete { key: key.clone(), owner, outcome: outcome(&key, "18"), retention: LONG };
    assert_eq!(backend.complete(message).await, Ok(Completed::Stored));
}
