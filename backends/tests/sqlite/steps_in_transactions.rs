//! Steps whose rows commit with their outcome.

use std::sync::mpsc;

use oncekey::backend::{
    Acquired, Backend as _, BeginStep, CommitStep, Lookup, OperationFailure, Reply, Request, StateView, StepBegun,
    StepCommitted, StepInTransaction, StoreError, TransactionOperation,
};
use oncekey::{FencingToken, OnAbandoned};

use super::operation_steps::{begin, name, steps};
use super::transactions::{among_neighbours, order, orders, shop};
use super::*;

type Operation = Result<SealedOutcome, OperationFailure>;

fn transact(
    step: CommitStep,
    operation: impl FnOnce(&mut SqliteConnection) -> Operation + Send + 'static,
) -> StepInTransaction {
    StepInTransaction { step, operation: TransactionOperation::new(operation) }
}

/// Claims a key, and gives the first step of its life.
async fn claimed(backend: &SqliteBackend, key: &Key) -> CommitStep {
    let owner = Owner::random();
    let answer = backend.acquire(claim(key, owner)).await.unwrap();
    let Acquired::Claimed { token, .. } = answer else { panic!("{answer:?}") };
    commit(key, owner, token, "order", 1)
}

fn commit(key: &Key, owner: Owner, life: FencingToken, step: &str, number: u32) -> CommitStep {
    CommitStep { key: key.clone(), owner, name: name(step), fingerprint: None, number, life, retention: DAY }
}

fn ordering(key: &Key) -> impl FnOnce(&mut SqliteConnection) -> Operation + Send + use<> {
    let sealed = outcome(key, "1");
    move |connection| {
        order(connection);
        Ok(sealed)
    }
}

#[actix_rt::test]
async fn e26_rows_and_step_commit_together_and_once() {
    let (_folder, backend) = shop();
    let key = key(1);
    let step = claimed(&backend, &key).await;
    let (outcome, life) = (outcome(&key, "1"), step.life);
    let answer = backend.step_in_transaction(transact(step.clone(), ordering(&key))).await;
    assert_eq!(answer, Ok(StepCommitted::Stored { outcome: outcome.clone(), life }));
    let again = CommitStep { number: 2, ..step.clone() };
    let answer = backend.step_in_transaction(transact(again, ordering(&key))).await;
    assert_eq!(answer, Ok(StepCommitted::Completed { outcome: outcome.clone(), life }));
    assert_eq!(orders(&backend), 1);
    let view = backend.lookup(Lookup { key: key.clone() }).await.unwrap().unwrap();
    assert!(matches!(view.state, StateView::InProgress { .. }), "{view:?}");
    let replayed = backend.begin_step(begin(&key, step.owner, "order", 3)).await;
    assert_eq!(replayed, Ok(StepBegun::Completed { outcome, life }));
}

#[actix_rt::test]
async fn e26_a_step_that_fails_or_panics_rolls_back_and_may_run_again() {
    let (_folder, backend) = shop();
    let key = key(1);
    let step = claimed(&backend, &key).await;
    let failing = transact(step.clone(), |connection| {
        order(connection);
        Err(OperationFailure::RollBack)
    });
    assert_eq!(backend.step_in_transaction(failing).await, Ok(StepCommitted::RolledBack));
    let panicking = transact(CommitStep { number: 2, ..step.clone() }, |connection| {
        order(connection);
        panic!("the step's own affair")
    });
    assert_eq!(backend.step_in_transaction(panicking).await, Ok(StepCommitted::RolledBack));
    let operation = TransactionOperation::new(|_: &mut String| Err(OperationFailure::RollBack));
    let wrong = StepInTransaction { step: CommitStep { number: 3, ..step.clone() }, operation };
    let answer = backend.step_in_transaction(wrong).await.unwrap();
    assert!(matches!(answer, StepCommitted::WrongConnection { wanted } if wanted.contains("String")), "{answer:?}");
    assert_eq!((orders(&backend), steps(&backend, &key).await), (0, None));
    let good = transact(CommitStep { number: 4, ..step }, ordering(&key));
    assert!(matches!(backend.step_in_transaction(good).await, Ok(StepCommitted::Stored { .. })));
    assert_eq!(orders(&backend), 1);
}

#[actix_rt::test]
async fn e26_a_stale_parent_commits_no_step() {
    let (_folder, backend) = shop();
    let key = key(1);
    let lost = |answer| assert_eq!(answer, Ok(StepCommitted::Lost));
    let absent = commit(&key, Owner::random(), FencingToken::new(1), "order", 1);
    lost(backend.step_in_transaction(transact(absent, ordering(&key))).await);
    let step = claimed(&backend, &key).await;
    let stranger = CommitStep { owner: Owner::random(), ..step.clone() };
    lost(backend.step_in_transaction(transact(stranger, ordering(&key))).await);
    let of_another_life = CommitStep { life: FencingToken::new(step.life.get() - 1), ..step.clone() };
    lost(backend.step_in_transaction(transact(of_another_life, ordering(&key))).await);
    // Its operation can reach the tables: a parent that is gone by the end refuses the rows.
    let removing = transact(step.clone(), {
        let ordering = ordering(&key);
        move |connection| {
            connection.batch_execute("DELETE FROM oncekey_records").unwrap();
            ordering(connection)
        }
    });
    lost(backend.step_in_transaction(removing).await);
    assert_eq!(orders(&backend), 0);
    let good = backend.step_in_transaction(transact(step, ordering(&key))).await;
    assert!(matches!(good, Ok(StepCommitted::Stored { .. })), "the parent is back: {good:?}");
    // A lease that lapsed.
    let (key, owner) = (super::key("lapsed"), Owner::random());
    let lapsing = Acquire { lease: Duration::from_millis(5), on_abandoned: OnAbandoned::Resume, ..claim(&key, owner) };
    let Ok(Acquired::Claimed { token, .. }) = backend.acquire(lapsing).await else { panic!() };
    tokio::time::sleep(Duration::from_millis(10)).await;
    lost(backend.step_in_transaction(transact(commit(&key, owner, token, "order", 1), ordering(&key))).await);
    assert_eq!(orders(&backend), 1);
}

#[actix_rt::test]
async fn e26_a_step_that_means_something_else_or_is_unsettled_does_not_run() {
    let (_folder, backend) = shop();
    let key = key(1);
    let step = claimed(&backend, &key).await;
    backend.step_in_transaction(transact(step.clone(), ordering(&key))).await.unwrap();
    let fingerprint = Some(Fingerprint::of(b"2 books"));
    let other = CommitStep { fingerprint, number: 2, ..step.clone() };
    let answer = backend.step_in_transaction(transact(other, ordering(&key))).await;
    assert_eq!(answer, Ok(StepCommitted::Mismatch));
    let held = BeginStep { name: name("charge"), ..begin(&key, step.owner, "charge", 3) };
    assert!(matches!(backend.begin_step(held).await, Ok(StepBegun::Begun { .. })));
    let charge = CommitStep { name: name("charge"), number: 4, ..step.clone() };
    let answer = backend.step_in_transaction(transact(charge, ordering(&key))).await;
    assert_eq!(answer, Ok(StepCommitted::Unsettled));
    assert_eq!(orders(&backend), 1);
}

type Answer = Result<StepCommitted, StoreError>;

/// Puts a step between claims of one batch, and gives their answers and its own.
async fn amid_neighbours(
    backend: &SqliteBackend,
    operation: impl FnOnce(&mut SqliteConnection) -> Operation + Send + 'static,
) -> (Vec<Result<Acquired, StoreError>>, Answer) {
    let step = claimed(backend, &key("it")).await;
    let (answered, answer) = mpsc::channel();
    let message = Box::new(transact(step, operation));
    let it = Request::StepInTransaction(message, Reply::new(move |answer| answered.send(answer).unwrap()));
    (among_neighbours(backend, it).await, answer.try_recv().unwrap())
}

#[actix_rt::test]
async fn e26_a_step_that_ends_the_transaction_is_found_out() {
    for ending in ["COMMIT", "ROLLBACK", "COMMIT; BEGIN"] {
        let (_folder, backend) = shop();
        let (neighbours, it) = amid_neighbours(&backend, move |connection| {
            connection.batch_execute(ending).unwrap();
            Ok(outcome(&key("it"), "1"))
        })
        .await;
        assert_eq!(it, Err(StoreError::TransactionEnded), "{ending}");
        let (before, after) = neighbours.split_at(5);
        assert!(before.iter().all(|answer| matches!(answer, Err(StoreError::Unknown(_)))), "{ending}: {before:?}");
        assert!(after.iter().all(|answer| matches!(answer, Ok(Acquired::Claimed { .. }))), "{ending}: {after:?}");
        assert_eq!(steps(&backend, &key("it")).await, None, "{ending}");
    }
}

#[actix_rt::test]
async fn e26_a_step_that_leaves_a_transaction_open_is_rolled_back() {
    use diesel::connection::{AnsiTransactionManager, TransactionManager as _};
    let (_folder, backend) = shop();
    let (neighbours, it) = amid_neighbours(&backend, |connection| {
        AnsiTransactionManager::begin_transaction(connection).unwrap();
        order(connection);
        Ok(outcome(&key("it"), "1"))
    })
    .await;
    assert_eq!(it, Ok(StepCommitted::RolledBack));
    assert!(neighbours.iter().all(|answer| matches!(answer, Ok(Acquired::Claimed { .. }))), "{neighbours:?}");
    assert_eq!((orders(&backend), steps(&backend, &key("it")).await), (0, None));
}

#[actix_rt::test]
async fn e26_a_deferred_constraint_refuses_the_step_alone() {
    let (_folder, backend) = shop();
    let (neighbours, it) = amid_neighbours(&backend, |connection| {
        connection.batch_execute("INSERT INTO lines VALUES (4711)").unwrap();
        Ok(outcome(&key("it"), "1"))
    })
    .await;
    assert_eq!(it, Ok(StepCommitted::RolledBack));
    assert!(neighbours.iter().all(|answer| matches!(answer, Ok(Acquired::Claimed { .. }))), "{neighbours:?}");
    assert_eq!(steps(&backend, &key("it")).await, None);
}

/// SQLite has rolled everything back and goes on in autocommit: the step's outcome is not committed without its rows.
#[actix_rt::test]
async fn e19_a_step_is_not_stored_without_rows_that_sqlite_has_rolled_back() {
    for is_prepared in [false, true] {
        let (_folder, backend) = shop();
        beside(&backend).batch_execute("INSERT INTO orders (id, item) VALUES (1, 'before')").unwrap();
        let (neighbours, it) = amid_neighbours(&backend, move |connection| {
            order(connection);
            let conflict = "INSERT OR ROLLBACK INTO orders (id, item) VALUES (1, 'twice')";
            if is_prepared {
                diesel::sql_query(conflict).execute(connection).unwrap_err();
            } else {
                connection.batch_execute(conflict).unwrap_err();
            }
            Ok(outcome(&key("it"), "1"))
        })
        .await;
        assert_eq!(it, Err(StoreError::TransactionEnded));
        assert_eq!((orders(&backend), steps(&backend, &key("it")).await), (1, None));
        assert!(neighbours[..5].iter().all(|answer| matches!(answer, Err(StoreError::Unknown(_)))), "{neighbours:?}");
    }
}
