//! What the keys hold: damaged, foreign, and how long it lives.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use oncekey::backend::{
    Acquired, Backend as _, Complete, Completed, Hold, List, Lookup, Release, Released, Stats, StoreError,
};
use oncekey::record::{Owner, SealedOutcome};
use oncekey::{Engine, Error, Fingerprint, Key, OnAbandoned, RunError};
use redis::aio::MultiplexedConnection;

use super::{SERVER, acquire, fresh_prefix, open};

async fn raw() -> MultiplexedConnection {
    redis::Client::open(SERVER.url()).unwrap().get_multiplexed_async_connection().await.unwrap()
}

/// Every byte of every kind of record, flipped in turn: an error to each who reads it, and nothing runs.
#[actix_rt::test]
async fn e13_every_flipped_byte_is_an_error() {
    let prefix = fresh_prefix();
    let backend = open(&SERVER.url(), &prefix).await;
    let engine = Engine::builder(backend.clone()).start().unwrap();
    let executions = Arc::new(AtomicUsize::new(0));
    let mut raw = raw().await;
    for state in ["rerun", "hold", "completed", "indeterminate"] {
        let policy = if state == "rerun" { OnAbandoned::Rerun } else { OnAbandoned::Hold };
        let claim = acquire(state, policy);
        let (key, owner) = (claim.key.clone(), claim.owner);
        backend.acquire(claim).await.unwrap();
        let outcome = SealedOutcome::of_value(&key, &17).unwrap();
        let complete = Complete { key: key.clone(), owner, outcome, retention: Duration::from_secs(60) };
        match state {
            "completed" => drop(backend.complete(complete.clone()).await.unwrap()),
            "indeterminate" => drop(backend.hold(Hold { key: key.clone(), owner }).await.unwrap()),
            _ => {}
        }
        let name = format!("{prefix}{}", key.as_stored());
        let intact: Vec<u8> = redis::cmd("GET").arg(&name).query_async(&mut raw).await.unwrap();
        assert!(intact.len() >= 66);
        for byte in 0..intact.len() {
            let mut damaged = intact.clone();
            damaged[byte] ^= 0x10;
            let set = redis::cmd("SET").arg(&name).arg(&damaged).arg("KEEPTTL").take();
            set.exec_async(&mut raw).await.unwrap();
            let what = format!("byte {byte} of a record that is {state}");
            let looked = backend.lookup(Lookup { key: key.clone() }).await;
            assert!(matches!(looked, Err(StoreError::Corrupt(_))), "{what}: {looked:?}");
            let counter = Arc::clone(&executions);
            let work = move |_| async move {
                counter.fetch_add(1, Ordering::Relaxed);
                Ok::<u32, ()>(0)
            };
            let ran = engine.run(key.clone(), Fingerprint::of(b"asked"), work).await;
            assert!(matches!(ran, Err(RunError::Engine(Error::Store(StoreError::Corrupt(_))))), "{what}: {ran:?}");
            // The claim's own part is checked by its owner's steps as well.
            if byte < 61 {
                let completed = backend.complete(complete.clone()).await;
                assert!(matches!(completed, Err(StoreError::Corrupt(_))), "{what}: {completed:?}");
            }
        }
        redis::cmd("DEL").arg(&name).exec_async(&mut raw).await.unwrap();
    }
    assert_eq!(executions.load(Ordering::Relaxed), 0);
}

#[actix_rt::test]
async fn e13_foreign_keys_are_errors() {
    let prefix = fresh_prefix();
    let backend = open(&SERVER.url(), &prefix).await;
    let mut raw = raw().await;
    let claim = acquire("k", OnAbandoned::Hold);
    let name = format!("{prefix}{}", claim.key.as_stored());
    for command in [vec!["SET", &name, ""], vec!["SET", &name, "hello"], vec!["LPUSH", &name, "hello"]] {
        redis::cmd("DEL").arg(&name).exec_async(&mut raw).await.unwrap();
        let mut foreign = redis::cmd(command[0]);
        for word in &command[1..] {
            foreign.arg(word);
        }
        foreign.exec_async(&mut raw).await.unwrap();
        let acquired = backend.acquire(claim.clone()).await;
        assert!(matches!(acquired, Err(StoreError::Corrupt(_))), "{command:?}: {acquired:?}");
        let looked = backend.lookup(Lookup { key: claim.key.clone() }).await;
        assert!(matches!(looked, Err(StoreError::Corrupt(_))), "{command:?}: {looked:?}");
    }
    redis::cmd("SET").arg(format!("{prefix}of something else")).arg("x").exec_async(&mut raw).await.unwrap();
    let listed = backend.list(List { after: None, limit: 10 }).await;
    assert!(matches!(listed, Err(StoreError::Corrupt(_))), "{listed:?}");
}

/// A claim without its time to live has lost its clock: it is neither given away nor taken for settled.
#[actix_rt::test]
async fn e13_a_claim_that_lost_its_time_to_live_is_an_error() {
    let prefix = fresh_prefix();
    let backend = open(&SERVER.url(), &prefix).await;
    let claim = acquire("k", OnAbandoned::Rerun);
    backend.acquire(claim.clone()).await.unwrap();
    let name = format!("{prefix}{}", claim.key.as_stored());
    redis::cmd("PERSIST").arg(&name).exec_async(&mut raw().await).await.unwrap();
    let other = backend.acquire(acquire("k", OnAbandoned::Rerun)).await;
    assert!(matches!(other, Err(StoreError::Corrupt(_))), "{other:?}");
    // Its owner's next step mends it.
    let outcome = SealedOutcome::tombstone(&claim.key);
    let complete = Complete { key: claim.key, owner: claim.owner, outcome, retention: Duration::from_secs(60) };
    assert_eq!(backend.complete(complete).await, Ok(Completed::Stored));
}

/// What waits for somebody's word never expires, whoever's lease it was.
#[actix_rt::test]
async fn e05_what_is_to_be_held_does_not_vanish() {
    let prefix = fresh_prefix();
    let backend = open(&SERVER.url(), &prefix).await;
    let years = |count: i64| count * 365 * 24 * 60 * 60 * 1_000;
    let mut raw = raw().await;
    let claim = acquire("k", OnAbandoned::Hold);
    backend.acquire(claim.clone()).await.unwrap();
    let name = format!("{prefix}{}", claim.key.as_stored());
    let ttl: i64 = redis::cmd("PTTL").arg(&name).query_async(&mut raw).await.unwrap();
    assert!(ttl > years(99), "{ttl}");
    backend.hold(Hold { key: claim.key.clone(), owner: claim.owner }).await.unwrap();
    let ttl: i64 = redis::cmd("PTTL").arg(&name).query_async(&mut raw).await.unwrap();
    assert_eq!(ttl, -1);
}

/// A claim that its owner took back before it arrived does not arrive late: a command that lay in a paused server's or a
/// broken connection's buffers.
#[actix_rt::test]
async fn e11_a_claim_that_was_taken_back_does_not_arrive_late() {
    let backend = open(&SERVER.url(), &fresh_prefix()).await;
    let late = acquire("k", OnAbandoned::Hold);
    let taken_back = backend.release(Release { key: late.key.clone(), owner: late.owner }).await;
    assert_eq!(taken_back, Ok(Released::Lost));
    assert!(backend.acquire(late.clone()).await.is_err());
    assert_eq!(backend.lookup(Lookup { key: late.key.clone() }).await, Ok(None));
    assert_eq!(backend.stats(Stats).await.map(|stats| stats.in_progress), Ok(0));
    assert_eq!(backend.list(List { after: None, limit: 10 }).await, Ok(Vec::new()));
    // The key is free for everybody else, and it is a first attempt.
    let other = acquire("k", OnAbandoned::Hold);
    let claimed = backend.acquire(other.clone()).await;
    assert!(
        matches!(claimed, Ok(Acquired::Claimed { attempt: oncekey::Attempt::FIRST, took_over: false })),
        "{claimed:?}"
    );
    let late = backend.acquire(late).await;
    assert!(matches!(late, Ok(Acquired::InProgress { .. })), "{late:?}");
    assert_ne!(other.owner, Owner::random());
}

/// All records of a page, in their order, though the server has none.
#[actix_rt::test]
async fn e14_pages_are_whole() {
    let backend = open(&SERVER.url(), &fresh_prefix()).await;
    let claims = (0..2_500).map(|number| backend.acquire(acquire(&format!("{number:05}"), OnAbandoned::Hold)));
    futures_util::future::join_all(claims).await;
    assert_eq!(backend.stats(Stats).await.map(|stats| stats.in_progress), Ok(2_500));
    let (mut after, mut found): (Option<Key>, Vec<Key>) = (None, Vec::new());
    loop {
        let page = backend.list(List { after: after.take(), limit: 700 }).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.key.clone());
        found.extend(page.into_iter().map(|view| view.key));
    }
    assert!(found.len() == 2_500 && found.is_sorted());
}
