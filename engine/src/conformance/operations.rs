//! Operations that take long, fail, panic, or lose their caller.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};

use super::{LONG, SHORT, Store, acquire, claim, fingerprint, fresh_key, until};
use crate::backend::{Acquired, Backend, RecordView, StateView};
use crate::record::SealedOutcome;
use crate::{AbandonedClaim, Attempt, Engine, Error, Key, OnAbandoned, OnFailure, Outcome, ReconcileOutcome, RunError};

/// E04: an operation that takes several leases keeps its key, and its outcome is stored.
///
/// The lease is long enough for a busy machine to renew it in time. A store that is slower than the lease rightly loses
/// it.
pub async fn e04_a_long_operation_keeps_its_key(store: &Store) {
    let lease = Duration::from_secs(2);
    let engine = store.engine(|builder| builder.lease(lease)).await.with_on_abandoned(OnAbandoned::Rerun);
    let (key, other) = (fresh_key(), store.connect().await);
    let running = {
        let (engine, key) = (engine.clone(), key.clone());
        actix_rt::spawn(async move {
            let work = move |_| async move {
                tokio::time::sleep(5 * lease / 2).await;
                Ok::<u32, ()>(17)
            };
            engine.run(key, fingerprint(), work).await
        })
    };
    until("the operation's begin", async || engine.lookup(&key).await.unwrap().is_some()).await;
    while !running.is_finished() {
        let answer = other.acquire(acquire(&key, LONG, OnAbandoned::Rerun)).await.unwrap();
        let held = matches!(answer, Acquired::InProgress { .. } | Acquired::Completed { .. });
        assert!(held, "a live operation's key was given away: {answer:?}");
        tokio::time::sleep(SHORT / 10).await;
    }
    assert_eq!(running.await.unwrap().unwrap(), Outcome::Ran(17));
    let again = engine.run(key, fingerprint(), |_| async { Ok::<u32, ()>(0) }).await.unwrap();
    assert_eq!(again, Outcome::Replayed(17));
}

/// E02: the retention of an outcome counts from its completion, however long its operation took.
pub async fn e02_retention_begins_with_the_completion(store: &Store) {
    let engine = store.engine(|builder| builder.lease(LONG)).await.with_retention(LONG);
    let key = fresh_key();
    let work = |_| async {
        tokio::time::sleep(2 * SHORT).await;
        Ok::<_, ()>(())
    };
    let began = Instant::now();
    engine.run(key.clone(), fingerprint(), work).await.unwrap();
    let Some(RecordView { state: StateView::Completed { expires_in, .. }, .. }) = engine.lookup(&key).await.unwrap()
    else {
        panic!("the completed record is not found")
    };
    let since_its_end = began.elapsed() - 2 * SHORT;
    // Stores keep times in whole milliseconds.
    let left = expires_in + since_its_end + Duration::from_millis(5);
    assert!(left >= LONG, "{expires_in:?} of {LONG:?} are left {since_its_end:?} after the operation's end");
}

/// E05: a call that finds an abandoned key has the reconciler settle it, and gets what the reconciler found.
pub async fn e05_the_reconciler_settles_an_abandoned_key(store: &Store) {
    let backend = store.connect().await;
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let happened = fresh_key();
    let known = happened.clone();
    let engine = store
        .engine(|builder| {
            builder.reconciler(move |AbandonedClaim { key, attempt, .. }| {
                counter.fetch_add(1, Ordering::Relaxed);
                assert_eq!(attempt, Attempt::FIRST);
                let happened = key == known;
                async move {
                    if happened {
                        ReconcileOutcome::Completed(SealedOutcome::of_value(&key, &17).unwrap())
                    } else {
                        ReconcileOutcome::NotDone
                    }
                }
            })
        })
        .await
        .with_wait(LONG);
    let did_not_happen = fresh_key();
    for (key, expected) in [(happened, Outcome::Replayed(17)), (did_not_happen, Outcome::Ran(0))] {
        claim(&backend, &key, SHORT, OnAbandoned::Hold).await;
        let given = engine.run(key, fingerprint(), |_| async { Ok::<u32, ()>(0) }).await.unwrap();
        assert_eq!(given, expected);
    }
    assert_eq!(asked.load(Ordering::Relaxed), 2);
}

/// E09: an operation's error goes to its caller and settles the key by policy.
pub async fn e09_an_error_frees_the_key_or_holds_it(store: &Store) {
    let engine = store.engine(|builder| builder).await;
    let fail = |_| async { Err::<u32, _>("declined") };
    let key = fresh_key();
    for _ in 0..2 {
        let failed = engine.run(key.clone(), fingerprint(), fail).await;
        assert!(matches!(failed, Err(RunError::Operation("declined"))), "{failed:?}");
        assert_eq!(engine.lookup(&key).await.unwrap(), None, "released");
    }
    let key = fresh_key();
    let failed = engine.with_on_failure(OnFailure::Hold).run(key.clone(), fingerprint(), fail).await;
    assert!(matches!(failed, Err(RunError::Operation("declined"))), "{failed:?}");
    assert_eq!(engine.lookup(&key).await.unwrap().unwrap().state, StateView::Indeterminate);
    let again = engine.run(key, fingerprint(), fail).await;
    assert!(matches!(again, Err(RunError::Engine(Error::Indeterminate { attempt: Attempt::FIRST }))), "{again:?}");
}

/// E09: a panic is an error to its caller, and says nothing about the effect. The key is settled as after a crash, and
/// waiting callers are answered.
pub async fn e09_a_panic_is_settled_as_a_crash_and_answers_waiting_callers(store: &Store) {
    for on_abandoned in [OnAbandoned::Rerun, OnAbandoned::Hold] {
        panics_once(&store.engine(|builder| builder.on_abandoned(on_abandoned)).await.with_wait(LONG), on_abandoned)
            .await;
    }
}

async fn panics_once(engine: &Engine, on_abandoned: OnAbandoned) {
    let (key, go) = (fresh_key(), Arc::new(Notify::new()));
    let panicking = {
        let (engine, key, go) = (engine.clone(), key.clone(), Arc::clone(&go));
        actix_rt::spawn(async move {
            engine
                .run::<u32, (), _, _>(key, fingerprint(), move |_| async move {
                    go.notified().await;
                    panic!("this panic is part of a check");
                })
                .await
        })
    };
    until("the operation's begin", async || engine.lookup(&key).await.unwrap().is_some()).await;
    let waiter = {
        let (engine, key) = (engine.clone(), key.clone());
        let attempt = |claim: crate::Claim| async move { Ok::<u64, ()>(claim.attempt().get()) };
        actix_rt::spawn(async move { engine.run(key, fingerprint(), attempt).await })
    };
    tokio::task::yield_now().await;
    go.notify_one();
    assert!(matches!(panicking.await.unwrap(), Err(RunError::Engine(Error::Panicked))));
    let waited = waiter.await.unwrap();
    match on_abandoned {
        OnAbandoned::Rerun | OnAbandoned::Resume => assert_eq!(waited.unwrap(), Outcome::Ran(2), "the second attempt"),
        OnAbandoned::Hold => {
            assert!(matches!(waited, Err(RunError::Engine(Error::Indeterminate { .. }))), "{waited:?}");
        }
    }
    // This operation panics before its first await, in the function that returns the future.
    let early = engine
        .run::<u32, (), _, std::future::Ready<_>>(fresh_key(), fingerprint(), |_| {
            panic!("this panic is part of a check")
        })
        .await;
    assert!(matches!(early, Err(RunError::Engine(Error::Panicked))), "{early:?}");
}

/// E10: dropping a caller does not stop an operation that began.
pub async fn e10_a_dropped_caller_does_not_stop_its_operation(store: &Store) {
    let engine = store.engine(|builder| builder).await;
    for local in [false, true] {
        let (key, go) = (fresh_key(), Arc::new(Notify::new()));
        let (began, has_begun) = oneshot::channel();
        let waits = Arc::clone(&go);
        let operation = move |_| async move {
            let _ = began.send(());
            waits.notified().await;
            Ok::<u32, ()>(17)
        };
        let (caller, called) = (engine.clone(), key.clone());
        let calling = actix_rt::spawn(async move {
            if local {
                caller.run_local(called, fingerprint(), operation).await
            } else {
                caller.run(called, fingerprint(), operation).await
            }
        });
        has_begun.await.unwrap();
        calling.abort();
        assert!(calling.await.unwrap_err().is_cancelled());
        go.notify_one();
        let again = engine.with_wait(LONG).run(key, fingerprint(), |_| async { Ok::<u32, ()>(0) }).await;
        assert_eq!(again.unwrap(), Outcome::Replayed(17), "local: {local}");
    }
}

/// E10: a call that is dropped before its operation began leaves no claim behind, at whatever point it is dropped.
pub async fn e10_a_call_that_is_dropped_early_leaves_no_claim(store: &Store) {
    let engine = store.engine(|builder| builder).await;
    let keys: Vec<Key> = (0..20).map(|_| fresh_key()).collect();
    for (polls, key) in keys.iter().enumerate() {
        let mut call = Box::pin(engine.run(key.clone(), fingerprint(), |_| async {
            std::future::pending::<()>().await;
            Ok::<u32, ()>(0)
        }));
        for _ in 0..polls.min(1) {
            assert!(futures_util::future::poll_immediate(call.as_mut()).await.is_none());
        }
        drop(call);
        // Let the pending messages advance to every stage.
        for _ in 0..polls {
            tokio::task::yield_now().await;
        }
    }
    until("the end of all claims", async || engine.keys_in_flight().await == 0).await;
    for key in keys {
        // A claim whose answer is still on its way is not counted yet. It is released when the answer arrives.
        until("the claim's end", async || {
            let ran = engine.run(key.clone(), fingerprint(), |_| async { Ok::<u32, ()>(17) });
            let ran = tokio::time::timeout(Duration::from_secs(10), ran).await.unwrap();
            ran.is_ok_and(|ran| ran == Outcome::Ran(17))
        })
        .await;
    }
}
