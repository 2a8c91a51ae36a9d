//! Each step does what the protocol says, through the file.

use std::collections::HashSet;
use std::time::Duration;

use oncekey::backend::{
    Acquired, Backend as _, Completed, Held, Hold, List, Lookup, Purge, Purged, Release, Released, Remove, Removed,
    Renew, Renewed, Reply, Request, Resolution, Resolve, Resolved, StateView, Stats, StoreStats,
};
use oncekey::record::Owner;
use oncekey::{Attempt, Fingerprint, OnAbandoned};

use super::*;

#[actix_rt::test]
async fn e02_a_completed_key_replays_its_outcome_until_its_retention_ends() {
    let (_folder, backend) = fresh();
    let (key, owner) = (key(1), Owner::random());
    assert!(is_claimed(&backend, claim(&key, owner)).await);
    let short = Complete { retention: Duration::from_millis(150), ..completion(&key, owner) };
    assert_eq!(backend.complete(short.clone()).await, Ok(Completed::Stored));
    assert_eq!(backend.complete(short.clone()).await, Ok(Completed::Stored));
    let replayed = Acquired::Completed { outcome: short.outcome };
    assert_eq!(backend.acquire(claim(&key, Owner::random())).await, Ok(replayed));
    tokio::time::sleep(Duration::from_millis(160)).await;
    assert_eq!(backend.lookup(Lookup { key: key.clone() }).await, Ok(None));
    let again = Acquired::Claimed { attempt: Attempt::FIRST, took_over: false };
    assert_eq!(backend.acquire(claim(&key, Owner::random())).await, Ok(again));
}

#[actix_rt::test]
async fn e03_another_fingerprint_is_a_mismatch() {
    let (_folder, backend) = fresh();
    let (key, owner) = (key(1), Owner::random());
    assert!(is_claimed(&backend, claim(&key, owner)).await);
    let other = Acquire { fingerprint: Fingerprint::of(b"other"), ..claim(&key, Owner::random()) };
    assert_eq!(backend.acquire(other.clone()).await, Ok(Acquired::Mismatch));
    backend.complete(completion(&key, owner)).await.unwrap();
    assert_eq!(backend.acquire(other).await, Ok(Acquired::Mismatch));
}

#[actix_rt::test]
async fn e04_a_renewed_lease_holds() {
    let (_folder, backend) = fresh();
    let (key, owner) = (key(1), Owner::random());
    let short = Acquire { lease: Duration::from_millis(100), on_abandoned: OnAbandoned::Rerun, ..claim(&key, owner) };
    assert!(is_claimed(&backend, short).await);
    let renew = Renew { key: key.clone(), owner, lease: LEASE };
    assert_eq!(backend.renew(renew).await, Ok(Renewed::Renewed));
    tokio::time::sleep(Duration::from_millis(110)).await;
    let found = backend.acquire(claim(&key, Owner::random())).await.unwrap();
    assert!(matches!(found, Acquired::InProgress { lease_left } if lease_left > LEASE / 2), "{found:?}");
}

#[actix_rt::test]
async fn e05_a_lapsed_lease_is_taken_over_or_held_as_its_claim_said() {
    let (_folder, backend) = fresh();
    let first = Owner::random();
    for (name, on_abandoned, expected) in [
        ("rerun", OnAbandoned::Rerun, Acquired::Claimed { attempt: Attempt::new(2), took_over: true }),
        ("hold", OnAbandoned::Hold, Acquired::Indeterminate { attempt: Attempt::FIRST, owner: first }),
    ] {
        let key = key(name);
        let lapsing = Acquire { lease: Duration::from_millis(5), on_abandoned, ..claim(&key, first) };
        assert!(is_claimed(&backend, lapsing).await);
        tokio::time::sleep(Duration::from_millis(10)).await;
        let view = backend.lookup(Lookup { key: key.clone() }).await.unwrap().unwrap();
        match on_abandoned {
            OnAbandoned::Rerun => assert_eq!(view.state, StateView::InProgress { lease_left: Duration::ZERO }),
            OnAbandoned::Hold => assert_eq!(view.state, StateView::Indeterminate),
        }
        assert_eq!(backend.acquire(claim(&key, Owner::random())).await, Ok(expected));
    }
}

#[actix_rt::test]
async fn e06_a_stale_owner_changes_nothing() {
    let (_folder, backend) = fresh();
    let (key, owner, stale) = (key(1), Owner::random(), Owner::random());
    let lapsing = Acquire { lease: Duration::from_millis(5), on_abandoned: OnAbandoned::Rerun, ..claim(&key, stale) };
    assert!(is_claimed(&backend, lapsing).await);
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert!(is_claimed(&backend, claim(&key, owner)).await);
    let before = backend.lookup(Lookup { key: key.clone() }).await.unwrap().unwrap();
    let renew = Renew { key: key.clone(), owner: stale, lease: LEASE * 2 };
    assert_eq!(backend.renew(renew).await, Ok(Renewed::Lost));
    assert_eq!(backend.complete(completion(&key, stale)).await, Ok(Completed::Lost));
    assert_eq!(backend.release(Release { key: key.clone(), owner: stale }).await, Ok(Released::Lost));
    assert_eq!(backend.hold(Hold { key: key.clone(), owner: stale }).await, Ok(Held::Lost));
    let after = backend.lookup(Lookup { key: key.clone() }).await.unwrap().unwrap();
    assert!(matches!(after.state, StateView::InProgress { lease_left } if lease_left <= LEASE));
    assert_eq!((after.attempt, after.fingerprint), (before.attempt, before.fingerprint));
    assert_eq!(backend.complete(completion(&key, owner)).await, Ok(Completed::Stored));
}

#[actix_rt::test]
async fn e07_release_frees_at_once() {
    let (_folder, backend) = fresh();
    let (key, owner) = (key(1), Owner::random());
    assert!(is_claimed(&backend, claim(&key, owner)).await);
    assert_eq!(backend.release(Release { key: key.clone(), owner }).await, Ok(Released::Released));
    assert_eq!(backend.lookup(Lookup { key: key.clone() }).await, Ok(None));
    assert!(is_claimed(&backend, claim(&key, Owner::random())).await);
}

#[actix_rt::test]
async fn a_held_key_waits_for_a_word_about_its_attempt() {
    let (_folder, backend) = fresh();
    let (key, owner) = (key(1), Owner::random());
    assert!(is_claimed(&backend, claim(&key, owner)).await);
    assert_eq!(backend.hold(Hold { key: key.clone(), owner }).await, Ok(Held::Held));
    let with = Resolution::Complete { outcome: outcome(&key, "resolved"), retention: DAY };
    let resolve = |attempt| Resolve { key: key.clone(), attempt, owner: None, with: with.clone() };
    assert_eq!(backend.resolve(resolve(Some(Attempt::new(2)))).await, Ok(Resolved::NotIndeterminate));
    assert_eq!(backend.resolve(resolve(Some(Attempt::FIRST))).await, Ok(Resolved::Resolved));
    let replayed = Acquired::Completed { outcome: outcome(&key, "resolved") };
    assert_eq!(backend.acquire(claim(&key, Owner::random())).await, Ok(replayed));
    assert_eq!(backend.remove(Remove { key: key.clone() }).await, Ok(Removed::Removed));
    assert_eq!(backend.remove(Remove { key: key.clone() }).await, Ok(Removed::Absent));
}

#[actix_rt::test]
async fn lists_are_in_the_order_of_the_stored_bytes_and_pages_leave_nothing_out() {
    let (_folder, backend) = fresh();
    let mut names: Vec<String> = (0..25).map(|n| format!("{n}")).collect();
    names.extend(["é", "e", "E", "~", "ab:c", "日本"].map(str::to_owned));
    let mut expected = Vec::new();
    for (n, name) in names.iter().enumerate() {
        let (key, owner) = (Key::new(["s", "scope-of-twelve"][n % 2], name).unwrap(), Owner::random());
        assert!(is_claimed(&backend, claim(&key, owner)).await);
        expected.push(key.clone());
        // What is over is not shown, and does not make a page shorter.
        let over = Key::new("over", name).unwrap();
        assert!(is_claimed(&backend, claim(&over, owner)).await);
        backend.complete(Complete { retention: Duration::ZERO, ..completion(&over, owner) }).await.unwrap();
    }
    expected.sort();
    let (mut listed, mut after) = (Vec::new(), None);
    loop {
        let page = backend.list(List { after: after.clone(), limit: 4 }).await.unwrap();
        listed.extend(page.iter().map(|view| view.key.clone()));
        after = page.last().map(|view| view.key.clone());
        if page.len() < 4 {
            break;
        }
    }
    assert_eq!(listed, expected);
}

#[actix_rt::test]
async fn e14_purges_take_a_bounded_batch_of_what_is_over_and_stats_count() {
    let (_folder, backend) = fresh();
    for n in 0..10 {
        let (key, owner) = (key(n), Owner::random());
        assert!(is_claimed(&backend, claim(&key, owner)).await);
        let retention = if n < 7 { Duration::ZERO } else { DAY };
        backend.complete(Complete { retention, ..completion(&key, owner) }).await.unwrap();
    }
    let held = Owner::random();
    assert!(is_claimed(&backend, claim(&key("held"), held)).await);
    assert!(is_claimed(&backend, claim(&key("claimed"), Owner::random())).await);
    backend.hold(Hold { key: key("held"), owner: held }).await.unwrap();
    let count = |completed| StoreStats { in_progress: 1, completed, indeterminate: 1 };
    assert_eq!(backend.stats(Stats).await, Ok(count(10)));
    assert_eq!(backend.purge(Purge { limit: 5 }).await, Ok(Purged { removed: 5, more: true }));
    assert_eq!(backend.purge(Purge { limit: 5 }).await, Ok(Purged { removed: 2, more: false }));
    assert_eq!(backend.stats(Stats).await, Ok(count(3)));
}

#[test]
fn e01_of_64_concurrent_acquires_over_threads_and_handles_one_wins() {
    let (_folder, backend) = fresh();
    let path = backend.path().to_owned();
    let winners: Vec<usize> = std::thread::scope(|threads| {
        let thread = |_| {
            let path = path.clone();
            threads.spawn(move || {
                let backend = SqliteBackend::open(path).unwrap();
                actix_rt::System::new().block_on(async move {
                    let claims = (0..8).map(|_| {
                        let backend = backend.clone();
                        actix_rt::spawn(async move { is_claimed(&backend, claim(&key("one"), Owner::random())).await })
                    });
                    let claims: Vec<_> = claims.collect();
                    let mut won = 0;
                    for claim in claims {
                        won += usize::from(claim.await.unwrap());
                    }
                    won
                })
            })
        };
        let threads: Vec<_> = (0..8).map(thread).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(winners.iter().sum::<usize>(), 1);
}

#[actix_rt::test]
async fn a_claim_is_repeated_by_its_owner() {
    let (_folder, backend) = fresh();
    let owner = Owner::random();
    let answers = [backend.acquire(claim(&key(1), owner)).await, backend.acquire(claim(&key(1), owner)).await];
    assert_eq!(answers.iter().map(|answer| format!("{answer:?}")).collect::<HashSet<_>>().len(), 1);
}

#[actix_rt::test]
async fn a_batch_is_in_order_for_each_key() {
    let (_folder, backend) = fresh();
    let (key, owner) = (key(1), Owner::random());
    let (answered, answers) = std::sync::mpsc::channel();
    let lookup = || {
        let answered = answered.clone();
        Request::Lookup(Lookup { key: key.clone() }, Reply::new(move |answer| answered.send(answer).unwrap()))
    };
    let batch = vec![
        Request::Acquire(claim(&key, owner), Reply::new(drop)),
        lookup(),
        Request::Complete(completion(&key, owner), Reply::new(drop)),
        lookup(),
        Request::Remove(Remove { key: key.clone() }, Reply::new(drop)),
        lookup(),
    ];
    backend.execute(batch).await;
    let found: Vec<_> = answers.try_iter().map(|answer| answer.unwrap().map(|view| view.state)).collect();
    assert!(matches!(found[..], [Some(StateView::InProgress { .. }), Some(StateView::Completed { .. }), None]));
}
