//! Operations whose rows and outcome commit together.

use diesel::sql_types::BigInt;
use oncekey::backend::{
    Acquired, Backend as _, CompleteInTransaction, CompletedInTransaction, Lookup, OperationFailure, Reply, Request,
    StateView, StoreError, TransactionOperation,
};
use oncekey::record::Owner;

use super::*;

type Operation = Result<SealedOutcome, OperationFailure>;

fn in_transaction(
    key: &Key,
    owner: Owner,
    operation: impl FnOnce(&mut SqliteConnection) -> Operation + Send + 'static,
) -> CompleteInTransaction {
    let operation = TransactionOperation::new(operation);
    CompleteInTransaction { key: key.clone(), owner, retention: DAY, operation }
}

/// Runs statements on the writer's connection, inside a transaction of its.
pub(super) async fn on_writer(backend: &SqliteBackend, sql: &'static str) {
    let (key, owner) = (key("on the writer"), Owner::random());
    assert!(is_claimed(backend, claim(&key, owner)).await);
    on_writer_as(backend, &key, owner, sql).await;
}

/// The same in an operation of a claim that there is.
pub(super) async fn on_writer_as(backend: &SqliteBackend, key: &Key, owner: Owner, sql: &'static str) {
    let sealed = outcome(key, "1");
    let message = in_transaction(key, owner, move |connection| {
        connection.batch_execute(sql).unwrap();
        Ok(sealed)
    });
    let answer = backend.complete_in_transaction(message).await;
    assert!(matches!(answer, Ok(CompletedInTransaction::Stored { .. })), "{answer:?}");
}

/// Runs statements as [`on_writer`] does, and rolls back.
pub(super) async fn rolled_back_on_writer(backend: &SqliteBackend, sql: &'static str) {
    let (key, owner) = (key("rolled back on the writer"), Owner::random());
    assert!(is_claimed(backend, claim(&key, owner)).await);
    let message = in_transaction(&key, owner, move |connection| {
        connection.batch_execute(sql).unwrap();
        Err(OperationFailure::RollBack)
    });
    assert_eq!(backend.complete_in_transaction(message).await, Ok(CompletedInTransaction::RolledBack));
}

/// A backend whose file has a table of the user's.
pub(super) fn shop() -> (TempDir, SqliteBackend) {
    let (folder, backend) = fresh();
    let sql = "CREATE TABLE orders (id INTEGER PRIMARY KEY, item TEXT NOT NULL);
               CREATE TABLE lines (order_id INTEGER REFERENCES orders (id) DEFERRABLE INITIALLY DEFERRED);";
    beside(&backend).batch_execute(sql).unwrap();
    (folder, backend)
}

pub(super) fn orders(backend: &SqliteBackend) -> i64 {
    diesel::dsl::sql::<BigInt>("SELECT count(*) FROM orders").get_result(&mut beside(backend)).unwrap()
}

pub(super) fn order(connection: &mut SqliteConnection) {
    connection.batch_execute("INSERT INTO orders (item) VALUES ('book')").unwrap();
}

#[actix_rt::test]
async fn rows_and_outcome_commit_together_and_once() {
    let (_folder, backend) = shop();
    let (key, owner) = (key(1), Owner::random());
    assert!(is_claimed(&backend, claim(&key, owner)).await);
    let stored = CompletedInTransaction::Stored { outcome: outcome(&key, "1") };
    for _ in 0..2 {
        let sealed = outcome(&key, "1");
        let message = in_transaction(&key, owner, move |connection| {
            // Diesel's own transactions nest.
            connection
                .transaction::<_, diesel::result::Error, _>(|connection| {
                    order(connection);
                    Ok(())
                })
                .unwrap();
            Ok(sealed)
        });
        assert_eq!(backend.complete_in_transaction(message).await, Ok(stored.clone()));
        assert_eq!(orders(&backend), 1);
    }
    let replayed = Acquired::Completed { outcome: outcome(&key, "1") };
    assert_eq!(backend.acquire(claim(&key, Owner::random())).await, Ok(replayed));
}

#[actix_rt::test]
async fn a_failure_and_a_panic_roll_back_and_the_claim_stands() {
    let (_folder, backend) = shop();
    let (key, owner) = (key(1), Owner::random());
    assert!(is_claimed(&backend, claim(&key, owner)).await);
    let failing = in_transaction(&key, owner, |connection| {
        order(connection);
        Err(OperationFailure::RollBack)
    });
    assert_eq!(backend.complete_in_transaction(failing).await, Ok(CompletedInTransaction::RolledBack));
    let panicking = in_transaction(&key, owner, |connection| {
        let _: Result<(), diesel::result::Error> = connection.transaction(|connection| {
            order(connection);
            panic!("the operation's own affair")
        });
        Err(OperationFailure::RollBack)
    });
    assert_eq!(backend.complete_in_transaction(panicking).await, Ok(CompletedInTransaction::RolledBack));
    assert_eq!(orders(&backend), 0);
    let view = backend.lookup(Lookup { key: key.clone() }).await.unwrap().unwrap();
    assert!(matches!(view.state, StateView::InProgress { .. }));
}

#[actix_rt::test]
async fn a_lost_claim_and_a_wrong_connection_do_not_run() {
    let (_folder, backend) = shop();
    let (key, owner) = (key(1), Owner::random());
    let runs = |key: &Key| {
        let sealed = outcome(key, "1");
        move |connection: &mut SqliteConnection| {
            order(connection);
            Ok(sealed)
        }
    };
    let absent = in_transaction(&key, owner, runs(&key));
    assert_eq!(backend.complete_in_transaction(absent).await, Ok(CompletedInTransaction::Lost));
    assert!(is_claimed(&backend, claim(&key, owner)).await);
    let stale = in_transaction(&key, Owner::random(), runs(&key));
    assert_eq!(backend.complete_in_transaction(stale).await, Ok(CompletedInTransaction::Lost));
    let operation = TransactionOperation::new(|_: &mut String| Err(OperationFailure::RollBack));
    let wrong = CompleteInTransaction { key: key.clone(), owner, retention: DAY, operation };
    let answer = backend.complete_in_transaction(wrong).await.unwrap();
    assert!(matches!(answer, CompletedInTransaction::WrongConnection { wanted } if wanted.contains("String")));
    assert_eq!(orders(&backend), 0);
    let good = in_transaction(&key, owner, runs(&key));
    assert!(matches!(backend.complete_in_transaction(good).await, Ok(CompletedInTransaction::Stored { .. })));
}

/// Keeps the writer busy for a moment, so that it finds the whole batch at once.
async fn execute_at_once(backend: &SqliteBackend, batch: Vec<Request>) {
    let mut other = beside(backend);
    other.batch_execute("BEGIN IMMEDIATE").unwrap();
    let busy = backend.clone();
    let busy = actix_rt::spawn(async move { busy.acquire(claim(&key("busy"), Owner::random())).await });
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    let running = backend.clone();
    let running = actix_rt::spawn(async move { running.execute(batch).await });
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    other.batch_execute("ROLLBACK").unwrap();
    running.await.unwrap();
    busy.await.unwrap().unwrap();
}

/// Puts an operation between steps of one batch, and gives the answers of the steps before and after it, and its own.
async fn amid_neighbours(
    backend: &SqliteBackend,
    operation: impl FnOnce(&mut SqliteConnection) -> Operation + Send + 'static,
) -> (Vec<Result<Acquired, StoreError>>, Result<CompletedInTransaction, StoreError>) {
    let (key_of_it, owner) = (key("it"), Owner::random());
    assert!(is_claimed(backend, claim(&key_of_it, owner)).await);
    let (its_answer, its_answers) = std::sync::mpsc::channel();
    let message = in_transaction(&key_of_it, owner, operation);
    let it = Request::CompleteInTransaction(message, Reply::new(move |answer| its_answer.send(answer).unwrap()));
    (among_neighbours(backend, it).await, its_answers.try_recv().unwrap())
}

/// Puts a request between ten claims of one batch, and gives their answers.
pub(super) async fn among_neighbours(backend: &SqliteBackend, it: Request) -> Vec<Result<Acquired, StoreError>> {
    let (answered, answers) = std::sync::mpsc::channel();
    let neighbour = |n: u32| {
        let answered = answered.clone();
        let reply = Reply::new(move |answer| answered.send((n, answer)).unwrap());
        Request::Acquire(claim(&key(n), Owner::random()), reply)
    };
    let mut batch: Vec<_> = (0..5).map(neighbour).collect();
    batch.push(it);
    batch.extend((5..10).map(neighbour));
    execute_at_once(backend, batch).await;
    let mut answers: Vec<_> = answers.try_iter().collect();
    answers.sort_by_key(|(n, _)| *n);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

#[actix_rt::test]
async fn an_operation_that_fails_does_not_touch_its_neighbours() {
    let (_folder, backend) = shop();
    let (neighbours, it) = amid_neighbours(&backend, |connection| {
        order(connection);
        panic!("the operation's own affair")
    })
    .await;
    assert_eq!(it, Ok(CompletedInTransaction::RolledBack));
    assert_eq!(neighbours.len(), 10);
    assert!(neighbours.iter().all(|answer| matches!(answer, Ok(Acquired::Claimed { .. }))), "{neighbours:?}");
    assert_eq!(orders(&backend), 0);
}

#[actix_rt::test]
async fn an_operation_that_leaves_a_transaction_open_is_rolled_back() {
    use diesel::connection::{AnsiTransactionManager, TransactionManager as _};
    let (_folder, backend) = shop();
    let (neighbours, it) = amid_neighbours(&backend, |connection| {
        AnsiTransactionManager::begin_transaction(connection).unwrap();
        order(connection);
        Ok(outcome(&key("it"), "1"))
    })
    .await;
    assert_eq!(it, Ok(CompletedInTransaction::RolledBack));
    assert!(neighbours.iter().all(|answer| matches!(answer, Ok(Acquired::Claimed { .. }))), "{neighbours:?}");
    assert_eq!(orders(&backend), 0);
}

#[actix_rt::test]
async fn an_operation_that_ends_the_transaction_is_found_out() {
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
        // Those behind it are taken in a transaction of their own.
        assert!(after.iter().all(|answer| matches!(answer, Ok(Acquired::Claimed { .. }))), "{ending}: {after:?}");
        // Nothing that was called unknown is half there, and the writer goes on.
        for n in 0..5 {
            let found = backend.lookup(Lookup { key: key(n) }).await.unwrap();
            assert_eq!(found.is_some(), ending != "ROLLBACK", "{ending}");
        }
        assert!(is_claimed(&backend, claim(&key("next"), Owner::random())).await);
    }
}

#[actix_rt::test]
async fn a_deferred_constraint_that_is_violated_refuses_the_operation_alone() {
    let (_folder, backend) = shop();
    let (neighbours, it) = amid_neighbours(&backend, |connection| {
        connection.batch_execute("INSERT INTO lines VALUES (4711)").unwrap();
        Ok(outcome(&key("it"), "1"))
    })
    .await;
    // The operation's own failure, and not the store's.
    assert_eq!(it, Ok(CompletedInTransaction::RolledBack));
    assert_eq!(neighbours.len(), 10);
    assert!(neighbours.iter().all(|answer| matches!(answer, Ok(Acquired::Claimed { .. }))), "{neighbours:?}");
    let view = backend.lookup(Lookup { key: key("it") }).await.unwrap().unwrap();
    assert!(matches!(view.state, StateView::InProgress { .. }));
}

/// SQLite does not say whose row it refused at COMMIT: the operations that share it are rolled back, and none is lost or
/// unknown. From then on the one at fault fails alone.
#[actix_rt::test]
async fn e12_a_deferred_constraint_of_one_operation_fails_no_other_twice() {
    let (_folder, backend) = shop();
    let answers = operations_at_once(&backend, 0).await;
    assert!(answers.iter().all(|(_, answer)| *answer == Ok(CompletedInTransaction::RolledBack)), "{answers:?}");
    assert_eq!(orders(&backend), 0);
    for (n, answer) in operations_at_once(&backend, 5).await {
        match n {
            7 => assert_eq!(answer, Ok(CompletedInTransaction::RolledBack)),
            n => assert_eq!(answer, Ok(CompletedInTransaction::Stored { outcome: outcome(&key(n), "1") }), "{n}"),
        }
    }
    assert_eq!(orders(&backend), 4);
}

type Answers = Vec<(u32, Result<CompletedInTransaction, StoreError>)>;

/// Five operations that the writer finds at once, of which the third violates a deferred constraint.
async fn operations_at_once(backend: &SqliteBackend, first: u32) -> Answers {
    let (answered, answers) = std::sync::mpsc::channel();
    let mut batch = Vec::new();
    for n in first..first + 5 {
        let (key, owner) = (key(n), Owner::random());
        assert!(is_claimed(backend, claim(&key, owner)).await);
        let sealed = outcome(&key, "1");
        let message = in_transaction(&key, owner, move |connection| {
            order(connection);
            if n == first + 2 {
                connection.batch_execute("INSERT INTO lines VALUES (4711)").unwrap();
            }
            Ok(sealed)
        });
        let answered = answered.clone();
        let reply = Reply::new(move |answer| answered.send((n, answer)).unwrap());
        batch.push(Request::CompleteInTransaction(message, reply));
    }
    execute_at_once(backend, batch).await;
    answers.try_iter().collect()
}

/// After some errors SQLite has rolled everything back and goes on in autocommit. An operation that passes over such an error
/// has no rows, and its outcome is not stored.
#[actix_rt::test]
async fn e19_an_outcome_is_not_stored_without_rows_that_sqlite_has_rolled_back() {
    let conflicts = [
        "INSERT OR ROLLBACK INTO orders (id, item) VALUES (1, 'twice')",
        "INSERT INTO orders (item) VALUES ('cursed')",
    ];
    // Diesel notices the end of its transaction after a batch of statements, and not after a prepared one.
    for (conflict, is_prepared) in conflicts.iter().flat_map(|conflict| [(*conflict, false), (*conflict, true)]) {
        let (_folder, backend) = shop();
        let sql = "INSERT INTO orders (id, item) VALUES (1, 'before');
                   CREATE TRIGGER curse BEFORE INSERT ON orders WHEN NEW.item = 'cursed'
                   BEGIN SELECT RAISE(ROLLBACK, 'cursed'); END;";
        beside(&backend).batch_execute(sql).unwrap();
        let (neighbours, it) = amid_neighbours(&backend, move |connection| {
            order(connection);
            if is_prepared {
                diesel::sql_query(conflict).execute(connection).unwrap_err();
            } else {
                connection.batch_execute(conflict).unwrap_err();
            }
            Ok(outcome(&key("it"), "1"))
        })
        .await;
        assert_eq!(it, Err(StoreError::TransactionEnded), "{conflict}");
        assert_eq!(orders(&backend), 1, "{conflict}");
        let view = backend.lookup(Lookup { key: key("it") }).await.unwrap().unwrap();
        assert!(matches!(view.state, StateView::InProgress { .. }), "{conflict}: {view:?}");
        // The steps that shared its transaction were rolled back, and are not called done.
        let (before, after) = neighbours.split_at(5);
        assert!(before.iter().all(|answer| matches!(answer, Err(StoreError::Unknown(_)))), "{conflict}: {before:?}");
        assert!(after.iter().all(|answer| matches!(answer, Ok(Acquired::Claimed { .. }))), "{conflict}: {after:?}");
    }
}
