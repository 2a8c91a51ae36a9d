//! Limits and shutdown.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};

use super::{LONG, Store, fingerprint, fresh_key, until};
use crate::{Error, Key, Outcome, RunError, Shutdown};

/// E15: a reached limit answers `Overloaded` at once, and calls are admitted again as soon as there is room.
pub async fn e15_a_reached_limit_is_overloaded_at_once(store: &Store) {
    let engine = store.engine(|builder| builder.max_calls_per_arbiter(4)).await;
    // A semaphore keeps its permits for operations that have not begun yet.
    let go = Arc::new(Semaphore::new(0));
    let running: Vec<_> = (0..4)
        .map(|_| {
            let (engine, go) = (engine.clone(), Arc::clone(&go));
            actix_rt::spawn(async move {
                let work = move |_| async move {
                    drop(go.acquire().await);
                    Ok::<u32, ()>(17)
                };
                engine.run(fresh_key(), fingerprint(), work).await
            })
        })
        .collect();
    until("four operations in flight", async || engine.keys_in_flight().await == 4).await;
    let patient = engine.with_wait(LONG);
    let over = patient.run(fresh_key(), fingerprint(), |_| async { Ok::<u32, ()>(0) });
    let over = tokio::time::timeout(Duration::from_secs(5), over).await.expect("it hung");
    assert!(matches!(over, Err(RunError::Engine(Error::Overloaded { limit: 4, .. }))), "{over:?}");
    go.add_permits(4);
    for call in running {
        assert_eq!(call.await.unwrap().unwrap(), Outcome::Ran(17));
    }
    let after = engine.run(fresh_key(), fingerprint(), |_| async { Ok::<u32, ()>(0) }).await;
    assert_eq!(after.unwrap(), Outcome::Ran(0));
}

async fn hold_one_in_flight(
    store: &Store,
    key: &Key,
    go: &Arc<Notify>,
) -> (crate::Engine, tokio::task::JoinHandle<Result<Outcome<u32>, RunError<()>>>) {
    let engine = store.engine(|builder| builder).await;
    let (caller, called, go) = (engine.clone(), key.clone(), Arc::clone(go));
    let running = actix_rt::spawn(async move {
        let work = move |_| async move {
            go.notified().await;
            Ok(17)
        };
        caller.run(called, fingerprint(), work).await
    });
    until("the operation's begin", async || engine.lookup(key).await.unwrap().is_some()).await;
    (engine, running)
}

/// E16: a shutdown accepts no new claims, and lets those in flight finish.
pub async fn e16_shutdown_lets_what_is_in_flight_finish(store: &Store) {
    let (key, go) = (fresh_key(), Arc::new(Notify::new()));
    let (engine, running) = hold_one_in_flight(store, &key, &go).await;
    let ending = {
        let engine = engine.clone();
        actix_rt::spawn(async move { engine.shutdown(LONG).await })
    };
    until("the engine's closing", async || {
        let late = engine.run(fresh_key(), fingerprint(), |_| async { Ok::<u32, ()>(0) }).await;
        matches!(late, Err(RunError::Engine(Error::ShuttingDown)))
    })
    .await;
    assert!(!ending.is_finished(), "it did not wait");
    go.notify_one();
    assert_eq!(running.await.unwrap().unwrap(), Outcome::Ran(17));
    assert_eq!(ending.await.unwrap(), Shutdown { unfinished: 0 });
    let other = store.engine(|builder| builder).await;
    let again = other.run(key, fingerprint(), |_| async { Ok::<u32, ()>(0) }).await;
    assert_eq!(again.unwrap(), Outcome::Replayed(17), "what finished was stored");
}

/// E16: at its limit, a shutdown leaves the remaining claims to their lease, and reports how many.
pub async fn e16_shutdown_leaves_the_rest_at_its_limit(store: &Store) {
    let (key, go) = (fresh_key(), Arc::new(Notify::new()));
    let (engine, running) = hold_one_in_flight(store, &key, &go).await;
    let ended = engine.shutdown(Duration::from_millis(50)).await;
    assert_eq!(ended, Shutdown { unfinished: 1 });
    go.notify_one();
    assert_eq!(running.await.unwrap().unwrap(), Outcome::Ran(17));
}
