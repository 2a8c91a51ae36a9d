//! Callers that disconnect, operations that never end, and user code that panics: the engine still settles each claim.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::poll;
use serde::{Deserialize, Serialize, Serializer};
use tokio::sync::{Notify, oneshot};
use tokio::time::{sleep, timeout};

use super::{Fault, Faulty, LONG, SHORT, Steps, Store, acquire, claim, fingerprint, fresh_key, outcome, until};
use crate::backend::{Acquired, Backend, Complete, Completed, Remove, Removed};
use crate::{Engine, Error, OnAbandoned, OnStoreFailure, Outcome, RunError};

/// E23: the run limit counts from the start of the operation. A granted call that waits for its turn keeps its claim.
pub async fn e23_a_run_limit_counts_from_the_begin(store: &Store) {
    for on_abandoned in [OnAbandoned::Hold, OnAbandoned::Rerun] {
        let engine = store.engine(|builder| builder.on_abandoned(on_abandoned)).await;
        let (limited, key) = (engine.with_run_limit(SHORT), fresh_key());
        let mut call =
            Box::pin(limited.run(key.clone(), fingerprint(), |_| async { Ok::<_, &str>("in its turn".to_owned()) }));
        assert!(poll!(&mut call).is_pending());
        // The claim is granted, but the call is not polled, as in a stream of calls that are taken one at a time.
        until("the grant", async || engine.lookup(&key).await.unwrap().is_some()).await;
        sleep(2 * SHORT).await;
        let second = engine.run(key.clone(), fingerprint(), |_| async { Ok::<_, &str>("a second run".to_owned()) });
        let second = second.await;
        assert!(matches!(second, Err(RunError::Engine(Error::InProgress { .. }))), "{second:?}");
        assert_eq!(call.await.unwrap(), Outcome::Ran("in its turn".to_owned()));
    }
}

/// E08: once a claim is known to be lost, callers of its key ask the store, even while its operation continues.
pub async fn e08_a_lost_claim_holds_no_callers(store: &Store) {
    // On a busy machine the waiting caller may claim the key before the other holder does.
    while !another_holder_claims_first(store).await {}
}

/// Returns whether another holder claimed the key after its claim was lost. If so, the waiting callers got that
/// holder's outcome.
async fn another_holder_claims_first(store: &Store) -> bool {
    let backend = store.connect().await;
    let engine = store.engine(|builder| builder.lease(SHORT)).await.with_wait(LONG);
    let (key, go, began) = (fresh_key(), Arc::new(Notify::new()), oneshot::channel());
    let running = {
        let (engine, key, go) = (engine.clone(), key.clone(), Arc::clone(&go));
        actix_rt::spawn(async move {
            let wait = move |_| async move {
                let _ = began.0.send(());
                go.notified().await;
                Ok::<_, &str>("the first".to_owned())
            };
            engine.run(key, fingerprint(), wait).await
        })
    };
    began.1.await.unwrap();
    let never = |_| async { Ok::<_, &str>("never".to_owned()) };
    let waiting = {
        let (engine, key) = (engine.clone(), key.clone());
        actix_rt::spawn(async move { engine.run(key, fingerprint(), never).await })
    };
    // An operator removes the record. Another holder claims the key and completes it.
    assert_eq!(backend.remove(Remove { key: key.clone() }).await, Ok(Removed::Removed));
    let message = acquire(&key, LONG, OnAbandoned::Hold);
    let owner = message.owner;
    if !matches!(backend.acquire(message).await, Ok(Acquired::Claimed { .. })) {
        assert_eq!(waiting.await.unwrap().unwrap(), Outcome::Ran("never".to_owned()));
        go.notify_one();
        let first = running.await.unwrap();
        assert!(matches!(first, Err(RunError::Engine(Error::ClaimLost))), "{first:?}");
        return false;
    }
    let message = Complete { key: key.clone(), owner, outcome: outcome(&key, "\"the other\""), retention: LONG };
    assert_eq!(backend.complete(message).await, Ok(Completed::Stored));
    let soon = |call| timeout(Duration::from_secs(20), call);
    let replayed = Outcome::Replayed("the other".to_owned());
    assert_eq!(soon(waiting).await.expect("a waiting caller was kept").unwrap().unwrap(), replayed);
    let late = actix_rt::spawn({
        let (engine, key) = (engine.clone(), key.clone());
        async move { engine.run(key, fingerprint(), never).await }
    });
    assert_eq!(soon(late).await.expect("a later caller was kept").unwrap().unwrap(), replayed);
    go.notify_one();
    let first = running.await.unwrap();
    assert!(matches!(first, Err(RunError::Engine(Error::ClaimLost))), "{first:?}");
    assert_eq!(engine.keys_in_flight().await, 0);
    true
}

/// E28: a caller that leaves during its request to the store leaves nothing behind that waits.
pub async fn e28_a_caller_that_leaves_while_the_store_is_asked_holds_nothing(store: &Store) {
    let key = fresh_key();
    claim(&store.connect().await, &key, LONG, OnAbandoned::Hold).await;
    let engine = store.engine(|builder| builder.max_calls_per_arbiter(1)).await;
    let patient = engine.with_wait(LONG);
    let mut call = Box::pin(patient.run(key.clone(), fingerprint(), |_| async { Ok::<_, &str>("never".to_owned()) }));
    assert!(poll!(&mut call).is_pending());
    drop(call);
    until("the end of the call", async || engine.keys_in_flight().await == 0).await;
    let ran = engine.run(fresh_key(), fingerprint(), |_| async { Ok::<_, &str>(17) }).await;
    assert_eq!(ran.unwrap(), Outcome::Ran(17), "its place is free");
}

/// A value whose conversion is user code and panics.
#[derive(Debug, Deserialize)]
struct Panics;

impl Serialize for Panics {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        panic!("this panic is part of a check")
    }
}

/// E09: a value whose conversion panics is an error. Its operation has run and does not run again.
pub async fn e09_a_panic_of_the_value_is_an_error(store: &Store) {
    let engine = store.engine(|builder| builder.on_abandoned(OnAbandoned::Rerun)).await;
    let keys = [fresh_key(), fresh_key()];
    let ran = engine.run(keys[0].clone(), fingerprint(), |_| async { Ok::<_, ()>(Panics) }).await;
    assert!(matches!(ran, Err(RunError::Engine(Error::Panicked))), "{ran:?}");
    let (blocking, key) = (engine.clone(), keys[1].clone());
    let ran = tokio::task::spawn_blocking(move || blocking.run_blocking(key, fingerprint(), |_| Ok::<_, ()>(Panics)));
    let ran = ran.await.expect("the thread survives");
    assert!(matches!(ran, Err(RunError::Engine(Error::Panicked))), "{ran:?}");
    for key in keys {
        let again = engine.run(key, fingerprint(), |_| async { Ok::<_, ()>(17) }).await;
        assert!(matches!(again, Err(RunError::Engine(Error::Indeterminate { .. }))), "{again:?}");
    }
}

/// E16: after its shutdown an engine runs nothing, even where its policy lets operations run unguarded.
pub async fn e16_after_the_shutdown_nothing_runs_unguarded(store: &Store) {
    let faulty = Faulty::new(store.connect().await);
    let engine = Engine::builder(faulty.clone()).on_store_failure(OnStoreFailure::Run).start().unwrap();
    assert_eq!(engine.shutdown(LONG).await.unfinished, 0);
    faulty.strike(Steps::All, Fault::Down);
    let late = engine.run(fresh_key(), fingerprint(), |_| async { Ok::<_, &str>(17) }).await;
    assert!(matches!(late, Err(RunError::Engine(Error::ShuttingDown))), "{late:?}");
    assert!(faulty.struck() > 0, "the fault never struck");
}

/// E10: an unguarded operation also continues when its caller leaves.
pub async fn e10_a_dropped_caller_does_not_stop_an_unguarded_operation(store: &Store) {
    let faulty = Faulty::new(store.connect().await);
    faulty.strike(Steps::All, Fault::Down);
    let engine = Engine::builder(faulty.clone()).on_store_failure(OnStoreFailure::Run).start().unwrap();
    let (go, began, done) = (Arc::new(Notify::new()), oneshot::channel(), Arc::new(AtomicBool::new(false)));
    let calling = {
        let (go, done) = (Arc::clone(&go), Arc::clone(&done));
        actix_rt::spawn(async move {
            let work = move |_| async move {
                let _ = began.0.send(());
                go.notified().await;
                done.store(true, Ordering::Relaxed);
                Ok::<_, &str>(17)
            };
            engine.run(fresh_key(), fingerprint(), work).await
        })
    };
    began.1.await.unwrap();
    calling.abort();
    go.notify_one();
    until("the operation's end", async || done.load(Ordering::Relaxed)).await;
}
