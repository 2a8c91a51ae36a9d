//! A tenant that floods the engine with keys.

use std::sync::Arc;
use std::time::Duration;

use oncekey::{Engine, Error, Key, OnInProgress, Outcome, RunError};
use oncekey_backends::MemoryBackend;
use tokio::sync::{Notify, Semaphore};

use super::stores::fresh_sqlite;

const LIMIT: usize = 20;

/// Begins `calls` operations of one scope, none of which ends before `go`, and returns how they ended.
struct Flood {
    calls: Vec<tokio::task::JoinHandle<Result<Outcome<u32>, RunError<String>>>>,
    began: Arc<Semaphore>,
    go: Arc<Notify>,
}

fn flood(engine: &Engine, scope: &str, calls: usize) -> Flood {
    let (began, go) = (Arc::new(Semaphore::new(0)), Arc::new(Notify::new()));
    let calls = (0..calls)
        .map(|n| {
            let (engine, key) = (engine.clone(), Key::new(scope, n).unwrap());
            let (began, go) = (Arc::clone(&began), Arc::clone(&go));
            actix_rt::spawn(async move {
                engine
                    .run(key, &1, |_| async move {
                        let released = go.notified();
                        began.add_permits(1);
                        released.await;
                        Ok(1)
                    })
                    .await
            })
        })
        .collect();
    Flood { calls, began, go }
}

/// The flooding tenant gets its error at once. The other tenant notices nothing, neither during the flood nor after it.
#[actix_rt::test]
async fn e15_a_tenant_at_its_limit_keeps_nobody_else_out() {
    let engine =
        Engine::builder(fresh_sqlite().await).max_calls_per_arbiter(100).max_calls_per_scope(LIMIT).start().unwrap();
    let flood = flood(&engine, "greedy", 500);
    drop(flood.began.acquire_many(LIMIT as u32).await.unwrap());
    for n in 0..50 {
        let ran = engine.run(Key::new("modest", n).unwrap(), &1, |_| async { Ok::<u32, String>(1) }).await;
        assert_eq!(ran, Ok(Outcome::Ran(1)));
    }
    flood.go.notify_waiters();
    let mut turned_away = 0;
    for call in flood.calls {
        match call.await.unwrap() {
            Ok(outcome) => assert_eq!(outcome, Outcome::Ran(1)),
            Err(RunError::Engine(Error::Overloaded { limit: LIMIT, what })) => {
                assert!(what.contains("scope"), "{what}");
                turned_away += 1;
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(turned_away, 500 - LIMIT);
    // The tenant may call again.
    let ran = engine.run(Key::new("greedy", 499).unwrap(), &1, |_| async { Ok::<u32, String>(2) }).await;
    assert_eq!(ran, Ok(Outcome::Ran(2)));
}

/// The control: without a limit per scope, one tenant takes all the capacity.
#[actix_rt::test]
async fn e15_control_without_the_limit_one_tenant_keeps_all_out() {
    let engine = Engine::builder(MemoryBackend::new()).max_calls_per_arbiter(100).start().unwrap();
    let flood = flood(&engine, "greedy", 500);
    drop(flood.began.acquire_many(100).await.unwrap());
    let ran = engine.run(Key::new("modest", 1).unwrap(), &1, |_| async { Ok::<u32, String>(1) }).await;
    assert!(matches!(ran, Err(RunError::Engine(Error::Overloaded { limit: 100, .. }))), "{ran:?}");
    flood.go.notify_waiters();
}

/// Calls that wait for one key count as well, so a tenant cannot hold more connections by waiting.
#[actix_rt::test]
async fn e15_waiting_calls_count_for_their_scope() {
    let engine = Engine::builder(MemoryBackend::new()).max_calls_per_scope(LIMIT).start().unwrap();
    let engine = engine.with_policy(oncekey::CallPolicy {
        on_in_progress: OnInProgress::Wait(Duration::from_secs(30)),
        ..*engine.policy()
    });
    let flood = flood(&engine, "greedy", 1);
    drop(flood.began.acquire().await.unwrap());
    let waiting: Vec<_> = (0..LIMIT)
        .map(|_| {
            let engine = engine.clone();
            let key = Key::new("greedy", 0).unwrap();
            actix_rt::spawn(async move { engine.run(key, &1, |_| async { Ok::<u32, String>(2) }).await })
        })
        .collect();
    let mut ended = Vec::new();
    let mut waiting = waiting.into_iter();
    // The last call is over the limit, and gets its error while the others wait.
    if let Some(last) = waiting.next_back() {
        ended.push(last.await.unwrap());
    }
    assert!(matches!(ended[..], [Err(RunError::Engine(Error::Overloaded { limit: LIMIT, .. }))]), "{ended:?}");
    flood.go.notify_waiters();
    for call in waiting {
        assert_eq!(call.await.unwrap(), Ok(Outcome::Replayed(1)));
    }
}

/// The same from plain threads.
#[test]
fn e15_threads_count_for_their_scope() {
    let engine = Engine::builder(MemoryBackend::new()).max_calls_per_scope(1).start().unwrap();
    let inner = engine.clone();
    let ran = engine.run_blocking(Key::new("a", 1).unwrap(), &1, move |_| {
        let same = inner.run_blocking(Key::new("a", 2).unwrap(), &1, |_| Ok::<u32, String>(1));
        assert!(matches!(same, Err(RunError::Engine(Error::Overloaded { limit: 1, .. }))), "{same:?}");
        let other = inner.run_blocking(Key::new("b", 1).unwrap(), &1, |_| Ok::<u32, String>(1));
        assert_eq!(other, Ok(Outcome::Ran(1)));
        Ok::<u32, String>(1)
    });
    assert_eq!(ran, Ok(Outcome::Ran(1)));
    assert!(engine.run_blocking(Key::new("a", 3).unwrap(), &1, |_| Ok::<u32, String>(1)).is_ok());
}
