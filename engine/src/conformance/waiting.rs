//! Calls that find another call in progress on their key.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::{LONG, Store, acquire, claim, fingerprint, fresh_key, outcome, until};
use crate::backend::{Acquired, Backend, Complete, Completed};
use crate::{Engine, Error, Key, OnAbandoned, Outcome, RunError};

type Ran = Result<Outcome<u32>, RunError<&'static str>>;

/// Runs an operation that waits for `go`, in a task.
fn run_until(engine: &Engine, key: &Key, go: &Arc<Notify>) -> tokio::task::JoinHandle<Ran> {
    let (engine, key, go) = (engine.clone(), key.clone(), Arc::clone(go));
    actix_rt::spawn(async move {
        engine
            .run(key, fingerprint(), move |_| async move {
                go.notified().await;
                Ok(17)
            })
            .await
    })
}

fn run_now(engine: &Engine, key: &Key) -> tokio::task::JoinHandle<Ran> {
    let (engine, key) = (engine.clone(), key.clone());
    actix_rt::spawn(async move { engine.run(key, fingerprint(), |_| async { Ok(0) }).await })
}

async fn until_in_flight(engine: &Engine, key: &Key) {
    until("the operation's begin", async || engine.lookup(key).await.unwrap().is_some()).await;
}

/// E01, and the basis of H03: of many concurrent calls on several arbiters one runs its operation, and none runs it
/// twice.
pub async fn e01_one_of_many_calls_runs(store: &Store) {
    let ran = Arc::new(AtomicUsize::new(0));
    let keys: Arc<Vec<Key>> = Arc::new((0..50).map(|_| fresh_key()).collect());
    let (counter, all) = (Arc::clone(&ran), Arc::clone(&keys));
    store.on_threads(2, move |backend, _| {
        let (counter, all) = (Arc::clone(&counter), Arc::clone(&all));
        async move {
            let engine = Engine::builder(backend).start().unwrap().with_wait(LONG);
            let calls = all.iter().flat_map(|key| (0..8).map(move |_| key.clone())).map(|key| {
                let (engine, counter) = (engine.clone(), Arc::clone(&counter));
                async move {
                    let given = engine
                        .run(key, fingerprint(), move |_| async move {
                            counter.fetch_add(1, Ordering::Relaxed);
                            tokio::task::yield_now().await;
                            Ok::<u32, &str>(17)
                        })
                        .await;
                    assert_eq!(given.unwrap().into_inner(), 17);
                }
            });
            futures_util::future::join_all(calls).await;
        }
    });
    assert_eq!(ran.load(Ordering::Relaxed), keys.len(), "executions of {} keys", keys.len());
}

/// E08: a waiting caller on the same arbiter gets the outcome.
pub async fn e08_a_waiter_on_this_arbiter_gets_the_outcome(store: &Store) {
    let engine = store.engine(|builder| builder).await.with_wait(LONG);
    let (key, go) = (fresh_key(), Arc::new(Notify::new()));
    let first = run_until(&engine, &key, &go);
    until_in_flight(&engine, &key).await;
    let waiting: Vec<_> = (0..10).map(|_| run_now(&engine, &key)).collect();
    tokio::task::yield_now().await;
    go.notify_one();
    assert_eq!(first.await.unwrap().unwrap(), Outcome::Ran(17));
    for waiter in waiting {
        assert_eq!(waiter.await.unwrap().unwrap(), Outcome::Replayed(17));
    }
}

/// E08: a waiting caller on another connection has the outcome within 100 ms of its completion. The check takes the
/// median of several tries, because a busy machine may delay one.
pub async fn e08_a_waiter_elsewhere_gets_the_outcome_soon(store: &Store) {
    let mut delays = Vec::new();
    for _ in 0..5 {
        let (holder, key) = (store.connect().await, fresh_key());
        let owner = claim(&holder, &key, LONG, OnAbandoned::Hold).await;
        let engine = store.engine(|builder| builder).await.with_wait(LONG);
        let waiter = run_now(&engine, &key);
        // Wait until the caller has asked and follows the claim that it found.
        until("the waiter's lock", async || engine.keys_in_flight().await == 1).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        let message = Complete { key: key.clone(), owner, outcome: outcome(&key, "17"), retention: LONG };
        assert_eq!(holder.complete(message).await, Ok(Completed::Stored));
        let completed = Instant::now();
        assert_eq!(waiter.await.unwrap().unwrap(), Outcome::Replayed(17));
        delays.push(completed.elapsed());
    }
    delays.sort();
    assert!(delays[2] <= Duration::from_millis(100), "the waiters had the outcome after {delays:?}");
}

/// E08: past its limit a waiting caller gets `InProgress`, whether the key is held on this arbiter or elsewhere.
pub async fn e08_past_its_limit_a_waiter_is_told_in_progress(store: &Store) {
    let engine = store.engine(|builder| builder).await;
    let limit = Duration::from_millis(60);
    let (here, elsewhere, go) = (fresh_key(), fresh_key(), Arc::new(Notify::new()));
    let first = run_until(&engine, &here, &go);
    until_in_flight(&engine, &here).await;
    claim(&store.connect().await, &elsewhere, LONG, OnAbandoned::Hold).await;
    for key in [here, elsewhere] {
        let asked = Instant::now();
        let waited = run_now(&engine.with_wait(limit), &key).await.unwrap();
        assert!(matches!(waited, Err(RunError::Engine(Error::InProgress { .. }))), "{waited:?}");
        assert!(asked.elapsed() >= limit, "it was told after {:?}", asked.elapsed());
        let rejected = run_now(&engine, &key).await.unwrap();
        assert!(matches!(rejected, Err(RunError::Engine(Error::InProgress { .. }))), "{rejected:?}");
    }
    go.notify_one();
    assert_eq!(first.await.unwrap().unwrap(), Outcome::Ran(17));
}

/// E08: waiting callers are counted and capped, and one over the cap gets its answer at once.
pub async fn e08_waiters_are_capped(store: &Store) {
    let engine = store.engine(|builder| builder.max_waiters_per_key(3)).await.with_wait(LONG);
    let (key, go) = (fresh_key(), Arc::new(Notify::new()));
    let first = run_until(&engine, &key, &go);
    until_in_flight(&engine, &key).await;
    let mut waiting: Vec<_> = (0..4).map(|_| run_now(&engine, &key)).collect();
    let over = waiting.pop().unwrap().await.unwrap();
    assert!(matches!(over, Err(RunError::Engine(Error::Overloaded { limit: 3, .. }))), "{over:?}");
    go.notify_one();
    assert_eq!(first.await.unwrap().unwrap(), Outcome::Ran(17));
    for waiter in waiting {
        assert_eq!(waiter.await.unwrap().unwrap(), Outcome::Replayed(17));
    }
}

/// E08 and E09: if the operation fails, one waiting call runs, and the others continue to wait.
pub async fn e08_a_waiter_takes_its_turn_after_a_failure(store: &Store) {
    let engine = store.engine(|builder| builder).await.with_wait(LONG);
    let (key, go) = (fresh_key(), Arc::new(Notify::new()));
    let failing = {
        let (engine, key, go) = (engine.clone(), key.clone(), Arc::clone(&go));
        actix_rt::spawn(async move {
            engine
                .run::<u32, _, _, _>(key, fingerprint(), move |_| async move {
                    go.notified().await;
                    Err("the provider is down")
                })
                .await
        })
    };
    until_in_flight(&engine, &key).await;
    let waiting: Vec<_> = (0..5).map(|_| run_now(&engine, &key)).collect();
    tokio::task::yield_now().await;
    go.notify_one();
    assert!(matches!(failing.await.unwrap(), Err(RunError::Operation("the provider is down"))));
    let mut ran = 0;
    for waiter in waiting {
        ran += usize::from(waiter.await.unwrap().unwrap() == Outcome::Ran(0));
    }
    assert_eq!(ran, 1, "of five waiters {ran} ran");
    let answer = store.connect().await.acquire(acquire(&key, LONG, OnAbandoned::Hold)).await.unwrap();
    assert!(matches!(answer, Acquired::Completed { .. }), "{answer:?}");
}
