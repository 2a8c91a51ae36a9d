//! Each step does what the protocol says, through the file.

use std::collections::HashSet;
use std::time::Duration;

use oncekey::backend::{
    Acquired, Backend as _, Completed, Held, Hold, List, Lookup, Purge, Purged, Release, Released, Remove, Removed,
    Renew, Renewed, Reply, Request, Resolution, Resolve, Resolved, StateView, Stats, StoreStats, Withdraw, Withdrawn,
};
use oncekey::record::Owner;
use oncekey::{Attempt, FencingToken, Fingerprint, OnAbandoned};

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
    let again = backend.acquire(claim(&key, Owner::random())).await;
    assert!(matches!(again, Ok(Acquired::Claimed { attempt: Attempt::FIRST, took_over: false, .. })), "{again:?}");
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
    for (name, on_abandoned) in
        [("rerun", OnAbandoned::Rerun), ("resume", OnAbandoned::Resume), ("hold", OnAbandoned::Hold)]
    {
        let key = key(name);
        let lapsing = Acquire { lease: Duration::from_millis(5), on_abandoned, ..claim(&key, first) };
        assert!(is_claimed(&backend, lapsing).await);
        tokio::time::sleep(Duration::from_millis(10)).await;
        let view = backend.lookup(Lookup { key: key.clone() }).await.unwrap().unwrap();
        let found = backend.acquire(claim(&key, Owner::random())).await.unwrap();
        match on_abandoned {
            OnAbandoned::Rerun | OnAbandoned::Resume => {
                assert_eq!(view.state, StateView::InProgress { lease_left: Duration::ZERO });
                let second = Attempt::new(2);
                let Acquired::Claimed { attempt, token, took_over: true, steps: None } = found else {
                    panic!("{found:?}")
                };
                assert!(attempt == second && token > view.token);
            }
            OnAbandoned::Hold => {
                assert_eq!(view.state, StateView::Indeterminate);
                assert_eq!(found, Acquired::Indeterminate { attempt: Attempt::FIRST, owner: first });
            }
        }
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
    let count = |completed| StoreStats { in_progress: 1, completed, indeterminate: 1, released: 0 };
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

/// Claims a key past whatever withdrawal stands.
async fn claimed(backend: &SqliteBackend, message: Acquire) -> FencingToken {
    let mut answer = backend.acquire(message.clone()).await.unwrap();
    if let Acquired::Withdrawn { owner } = answer {
        answer = backend.acquire(Acquire { past_withdrawal: Some(Box::new(owner)), ..message }).await.unwrap();
    }
    let Acquired::Claimed { token, .. } = answer else { panic!("{answer:?}") };
    token
}

async fn withdraw(backend: &SqliteBackend, key: &Key, owner: Owner) {
    assert_eq!(backend.withdraw(Withdraw { key: key.clone(), owner }).await, Ok(Withdrawn));
}

#[actix_rt::test]
async fn e20_a_withdrawn_claim_never_lands() {
    let (_folder, backend) = fresh();
    let (key, late) = (key(1), Owner::random());
    withdraw(&backend, &key, late).await;
    for _ in 0..2 {
        let answer = backend.acquire(claim(&key, late)).await;
        assert_eq!(answer, Ok(Acquired::Withdrawn { owner: late }));
    }
    // Nobody sees the row that stands in its way.
    assert_eq!(backend.lookup(Lookup { key: key.clone() }).await, Ok(None));
    assert_eq!(backend.list(List { after: None, limit: 10 }).await, Ok(Vec::new()));
    assert_eq!(backend.stats(Stats).await, Ok(StoreStats::default()));
    assert_eq!(backend.remove(Remove { key: key.clone() }).await, Ok(Removed::Absent));
    assert_eq!(backend.purge(Purge { limit: 10 }).await, Ok(Purged { removed: 0, more: false }));
    // Another holder's life of the key does not end the barrier.
    let other = Owner::random();
    claimed(&backend, claim(&key, other)).await;
    let short = Complete { retention: Duration::from_millis(1), ..completion(&key, other) };
    assert_eq!(backend.complete(short).await, Ok(Completed::Stored));
    tokio::time::sleep(Duration::from_millis(10)).await;
    let answer = backend.acquire(claim(&key, late)).await;
    assert!(matches!(answer, Ok(Acquired::Completed { .. })), "{answer:?}");
    assert_eq!(backend.remove(Remove { key: key.clone() }).await, Ok(Removed::Removed));
    assert_eq!(backend.acquire(claim(&key, late)).await, Ok(Acquired::Withdrawn { owner: late }));
}

#[actix_rt::test]
async fn e20_a_withdrawn_takeover_never_lands() {
    let (_folder, backend) = fresh();
    let (key, late) = (key(1), Owner::random());
    let lapsing =
        Acquire { lease: Duration::from_millis(1), on_abandoned: OnAbandoned::Rerun, ..claim(&key, Owner::random()) };
    claimed(&backend, lapsing).await;
    tokio::time::sleep(Duration::from_millis(10)).await;
    withdraw(&backend, &key, late).await;
    assert_eq!(backend.acquire(claim(&key, late)).await, Ok(Acquired::Withdrawn { owner: late }));
    let holder = Owner::random();
    claimed(&backend, claim(&key, holder)).await;
    // One that has landed is gone.
    withdraw(&backend, &key, holder).await;
    assert_eq!(backend.lookup(Lookup { key: key.clone() }).await, Ok(None));
    assert_eq!(backend.complete(completion(&key, holder)).await, Ok(Completed::Lost));
}

#[actix_rt::test]
async fn e25_the_token_rises_over_every_end_of_a_life() {
    let (_folder, backend) = fresh();
    let key = key(1);
    let mut last = FencingToken::ZERO;
    let ends = ["release", "resolve", "remove", "withdraw", "expire", "lapse", "remove what is completed"];
    for end in ends.iter().cycle().take(3 * ends.len()) {
        let owner = Owner::random();
        let rerun = Acquire { lease: Duration::from_millis(1), on_abandoned: OnAbandoned::Rerun, ..claim(&key, owner) };
        let token = claimed(&backend, if *end == "lapse" { rerun } else { claim(&key, owner) }).await;
        assert!(token > last, "{token} after {last}, before {end}");
        last = token;
        let view = backend.lookup(Lookup { key: key.clone() }).await.unwrap().unwrap();
        assert_eq!(view.token, token);
        // It stays over a renewal, and over a claim that is repeated.
        assert_eq!(backend.renew(Renew { key: key.clone(), owner, lease: LEASE }).await, Ok(Renewed::Renewed));
        if *end != "lapse" {
            assert_eq!(claimed(&backend, claim(&key, owner)).await, token);
        }
        match *end {
            "release" => {
                assert_eq!(backend.release(Release { key: key.clone(), owner }).await, Ok(Released::Released));
            }
            "resolve" => {
                assert_eq!(backend.hold(Hold { key: key.clone(), owner }).await, Ok(Held::Held));
                let release = Resolve { key: key.clone(), attempt: None, owner: None, with: Resolution::Release };
                assert_eq!(backend.resolve(release).await, Ok(Resolved::Resolved));
            }
            "withdraw" => withdraw(&backend, &key, owner).await,
            "expire" => {
                // No barrier stands that would keep it.
                let sql = "UPDATE oncekey_records SET barrier_owner = NULL, barrier_until = NULL";
                beside(&backend).batch_execute(sql).unwrap();
                let short = Complete { retention: Duration::from_millis(1), ..completion(&key, owner) };
                assert_eq!(backend.complete(short).await, Ok(Completed::Stored));
                tokio::time::sleep(Duration::from_millis(5)).await;
                backend.purge(Purge { limit: 10 }).await.unwrap();
            }
            "lapse" => {
                let lapsing = Renew { key: key.clone(), owner, lease: Duration::from_millis(1) };
                assert_eq!(backend.renew(lapsing).await, Ok(Renewed::Renewed));
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            _ => {
                if end.ends_with("completed") {
                    assert_eq!(backend.complete(completion(&key, owner)).await, Ok(Completed::Stored));
                }
                assert_eq!(backend.remove(Remove { key: key.clone() }).await, Ok(Removed::Removed));
            }
        }
    }
}

/// A clock that was set back, as by a copy of the file on another machine, gives no lower token: the row outlives it.
#[actix_rt::test]
async fn e25_a_token_ahead_of_the_clock_is_kept_after_release() {
    let (_folder, backend) = fresh();
    let (key, owner) = (key(1), Owner::random());
    claimed(&backend, claim(&key, owner)).await;
    let ahead: i64 = 9_000_000_000_000_000;
    beside(&backend).batch_execute(&format!("UPDATE oncekey_records SET fencing_token = {ahead}")).unwrap();
    assert_eq!(backend.release(Release { key: key.clone(), owner }).await, Ok(Released::Released));
    assert_eq!(backend.purge(Purge { limit: 10 }).await, Ok(Purged { removed: 0, more: false }));
    assert_eq!(claimed(&backend, claim(&key, Owner::random())).await.get(), ahead as u64 + 1);
}
