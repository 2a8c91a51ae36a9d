//! Claims that are completed in the caller's own transaction.

use std::time::Duration;

use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use oncekey::backend::{Acquire, Acquired, Backend as _, Complete, Lookup, StateView};
use oncekey::record::{Owner, Progress, SealedOutcome};
use oncekey::{Engine, Fingerprint, Key, OnAbandoned, Outcome, RunError};
use oncekey_backends::{CompleteInError, SqliteBackend};

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn connect(file: &std::path::Path) -> SqliteConnection {
    let mut connection = SqliteConnection::establish(file.to_str().unwrap()).unwrap();
    connection.batch_execute("PRAGMA busy_timeout = 10000; CREATE TABLE IF NOT EXISTS own (item TEXT)").unwrap();
    connection
}

fn rows(connection: &mut SqliteConnection) -> i64 {
    diesel::dsl::sql::<diesel::sql_types::BigInt>("SELECT count(*) FROM own").get_result(connection).unwrap()
}

/// The rows and the outcome commit together, or neither does.
#[actix_rt::test]
async fn e18_a_claim_is_completed_in_the_callers_own_transaction() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.db");
    let backend = SqliteBackend::open(&file).unwrap();
    let engine = Engine::builder(backend.clone()).on_abandoned(OnAbandoned::Rerun).start().unwrap();
    let order = async |commits: bool| {
        let (backend, mut connection) = (backend.clone(), connect(&file));
        let operation = move |claim: oncekey::Claim| async move {
            let completion = claim.completion(&17_u32)?;
            // Outside of a transaction it would be committed by itself.
            let alone = backend.complete_in(&mut connection, completion.clone());
            assert!(matches!(alone, Err(CompleteInError::NoTransaction)));
            connection.immediate_transaction(|tx| {
                tx.batch_execute("INSERT INTO own VALUES ('book')")?;
                backend.complete_in(tx, completion.clone())?;
                // As good as once.
                backend.complete_in(tx, completion)?;
                if commits { Ok(17_u32) } else { Err(Failure::from("changed its mind")) }
            })
        };
        engine.run_local(Key::new("s", "k").unwrap(), b"", operation).await
    };
    assert!(matches!(order(false).await, Err(RunError::Operation(_))));
    assert_eq!(rows(&mut connect(&file)), 0);
    assert_eq!(order(true).await.unwrap(), Outcome::Ran(17));
    assert_eq!(order(true).await.unwrap(), Outcome::Replayed(17));
    assert_eq!(rows(&mut connect(&file)), 1);
}

/// A holder that lost its claim gets an error in its own transaction, and rolls the transaction back.
#[actix_rt::test]
async fn e06_a_stale_owner_completes_nothing_in_its_own_transaction() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.db");
    let backend = SqliteBackend::open(&file).unwrap();
    let acquire = |lease| Acquire {
        key: Key::new("s", "k").unwrap(),
        fingerprint: Fingerprint::of(b""),
        owner: Owner::random(),
        lease,
        on_abandoned: OnAbandoned::Rerun,
        past_withdrawal: None,
    };
    let claim = acquire(Duration::from_millis(1));
    let outcome = SealedOutcome::tombstone(&claim.key);
    let stale = Complete { key: claim.key.clone(), owner: claim.owner, outcome, retention: Duration::from_secs(60) };
    assert!(matches!(backend.acquire(claim).await, Ok(Acquired::Claimed { .. })));
    let next = || backend.acquire(acquire(Duration::from_secs(60)));
    while !matches!(next().await, Ok(Acquired::Claimed { took_over: true, .. })) {}
    let mut connection = connect(&file);
    let ended = connection.immediate_transaction(|tx| {
        tx.batch_execute("INSERT INTO own VALUES ('book')")?;
        backend.complete_in(tx, stale)
    });
    assert!(matches!(ended, Err(CompleteInError::ClaimLost)));
    assert_eq!(rows(&mut connect(&file)), 0);
}

/// SQLite rolls the caller's transaction back at some errors, and goes on in autocommit. The outcome is not committed alone.
#[actix_rt::test]
async fn e19_a_claim_is_not_completed_in_a_transaction_that_sqlite_rolled_back() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.db");
    let backend = SqliteBackend::open(&file).unwrap();
    let claim = Acquire {
        key: Key::new("s", "k").unwrap(),
        fingerprint: Fingerprint::of(b""),
        owner: Owner::random(),
        lease: Duration::from_secs(60),
        on_abandoned: OnAbandoned::Rerun,
        past_withdrawal: None,
    };
    let outcome = SealedOutcome::tombstone(&claim.key);
    let retention = Duration::from_secs(60);
    let completion = Complete { key: claim.key.clone(), owner: claim.owner, outcome, retention };
    let key = claim.key.clone();
    assert!(matches!(backend.acquire(claim).await, Ok(Acquired::Claimed { .. })));
    let mut connection = connect(&file);
    connection.batch_execute("CREATE UNIQUE INDEX once ON own (item); INSERT INTO own VALUES ('pen')").unwrap();
    let mut completed = None;
    let ended = connection.immediate_transaction(|tx| {
        tx.batch_execute("INSERT INTO own VALUES ('book')")?;
        // Prepared: Diesel does not notice the end of its transaction then.
        assert!(diesel::sql_query("INSERT OR ROLLBACK INTO own VALUES ('pen')").execute(tx).is_err());
        completed = Some(backend.complete_in(tx, completion));
        Err::<(), diesel::result::Error>(diesel::result::Error::RollbackTransaction)
    });
    assert!(ended.is_err());
    assert!(matches!(completed, Some(Err(CompleteInError::TransactionEnded))), "{completed:?}");
    assert_eq!(rows(&mut connect(&file)), 1);
    let view = backend.lookup(Lookup { key }).await.unwrap().unwrap();
    assert!(matches!(view.state, StateView::InProgress { .. }), "{view:?}");
}

/// A claim that is completed in the caller's own transaction keeps its steps, and their outcomes.
#[actix_rt::test]
async fn e26_a_claim_that_is_completed_in_its_own_transaction_keeps_its_steps() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.db");
    let backend = SqliteBackend::open(&file).unwrap();
    let engine = Engine::builder(backend.clone()).on_abandoned(OnAbandoned::Resume).start().unwrap();
    let key = Key::new("s", "k").unwrap();
    let (own, mut connection) = (backend.clone(), connect(&file));
    let operation = move |claim: oncekey::Claim| async move {
        let charge = claim.step("charge", async |_| Ok::<_, Failure>(17_u32)).await?;
        let completion = claim.completion(&charge)?;
        connection.immediate_transaction(|tx| {
            tx.batch_execute("INSERT INTO own VALUES ('book')")?;
            own.complete_in(tx, completion)?;
            Ok::<_, Failure>(charge)
        })
    };
    assert_eq!(engine.run_local(key.clone(), b"", operation).await.unwrap(), Outcome::Ran(17));
    let view = backend.lookup(Lookup { key }).await.unwrap().unwrap();
    assert!(matches!(view.state, StateView::Completed { .. }), "{view:?}");
    let steps = view.steps.unwrap();
    assert!(
        matches!(&steps.list[..], [step] if matches!(&step.progress, Progress::Completed(outcome) if !outcome.as_stored().is_empty()))
    );
}
