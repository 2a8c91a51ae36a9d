//! A waiting caller learns within 100 ms that its key was settled.

use std::time::{Duration, Instant};

use oncekey::OnAbandoned;
use oncekey::backend::{Backend as _, Changed, Release, StoreError, Watch};
use oncekey::record::Owner;
use tokio::time::timeout;

use super::*;

fn watch(name: &str) -> Watch {
    Watch { key: key(name), limit: Duration::from_secs(10) }
}

/// Starts a watch, lets it settle, and gives how long after `change` it resolved.
async fn heard_after(backend: &SqliteBackend, name: &'static str, change: impl AsyncFnOnce()) -> Duration {
    let watching = backend.clone();
    let watching = actix_rt::spawn(async move {
        let answer = watching.watch(watch(name)).await;
        (answer, Instant::now())
    });
    tokio::time::sleep(Duration::from_millis(120)).await;
    assert!(!watching.is_finished());
    change().await;
    let changed = Instant::now();
    let (answer, heard): (Result<Changed, StoreError>, _) = watching.await.unwrap();
    assert_eq!(answer, Ok(Changed));
    heard.saturating_duration_since(changed)
}

#[actix_rt::test]
async fn e08_a_change_by_this_process_is_heard_at_once() {
    let (_folder, backend) = fresh();
    let owner = Owner::random();
    for release in [true, false] {
        assert!(is_claimed(&backend, claim(&key("a"), owner)).await);
        let heard = heard_after(&backend, "a", async || {
            if release {
                backend.release(Release { key: key("a"), owner }).await.unwrap();
            } else {
                backend.complete(completion(&key("a"), owner)).await.unwrap();
            }
        });
        let heard = heard.await;
        assert!(heard < Duration::from_millis(20), "{heard:?}");
    }
}

#[actix_rt::test]
async fn e08_a_change_by_another_connection_is_heard_within_100_ms() {
    let (_folder, backend) = fresh();
    let mut other = beside(&backend);
    for _ in 0..5 {
        assert!(is_claimed(&backend, claim(&key("a"), Owner::random())).await);
        let heard = heard_after(&backend, "a", async || {
            other.batch_execute("DELETE FROM oncekey_records").unwrap();
        });
        let heard = heard.await;
        assert!(heard < Duration::from_millis(100), "{heard:?}");
    }
}

#[actix_rt::test]
async fn a_key_that_nobody_works_on_is_answered_at_once_and_another_keys_end_is_not_heard() {
    let (_folder, backend) = fresh();
    assert_eq!(backend.watch(watch("free")).await, Ok(Changed));
    let owner = Owner::random();
    assert!(is_claimed(&backend, claim(&key("a"), owner)).await);
    assert!(is_claimed(&backend, claim(&key("b"), owner)).await);
    let watching = backend.clone();
    let waiting = timeout(Duration::from_millis(150), async move { watching.watch(watch("a")).await });
    let waiting = actix_rt::spawn(waiting);
    tokio::time::sleep(Duration::from_millis(30)).await;
    backend.complete(completion(&key("b"), owner)).await.unwrap();
    assert!(waiting.await.unwrap().is_err());
}

#[actix_rt::test]
async fn a_lease_that_lapses_ends_the_wait() {
    let (_folder, backend) = fresh();
    let lease = Duration::from_millis(80);
    for (name, on_abandoned) in [("hold", OnAbandoned::Hold), ("rerun", OnAbandoned::Rerun)] {
        assert!(is_claimed(&backend, Acquire { lease, on_abandoned, ..claim(&key(name), Owner::random()) }).await);
        assert_eq!(timeout(lease + Duration::from_millis(100), backend.watch(watch(name))).await, Ok(Ok(Changed)));
    }
}
