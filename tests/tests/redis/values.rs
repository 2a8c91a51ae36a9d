//! The values of the keys: damaged, foreign, and their time to live.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use oncekey::backend::{
    Acquired, Backend as _, Complete, Completed, Held, Hold, List, Lookup, Release, Released, Remove, Removed, Renew,
    Renewed, StateView, Stats, StoreError, Withdraw,
};
use oncekey::record::{Owner, SealedOutcome};
use oncekey::{Attempt, Engine, Error, FencingToken, Fingerprint, Key, OnAbandoned, RunError};
use oncekey_backends::redis::RedisBackend;
use redis::aio::MultiplexedConnection;

use super::withdrawals::Place;
use super::{SERVER, acquire, fresh_prefix, open};

async fn raw() -> MultiplexedConnection {
    redis::Client::open(SERVER.url()).unwrap().get_multiplexed_async_connection().await.unwrap()
}

/// Every byte of every kind of record is flipped in turn. Each reader gets an error, and nothing runs.
#[actix_rt::test]
async fn e13_every_flipped_byte_is_an_error() {
    let prefix = fresh_prefix();
    let backend = open(&SERVER.url(), &prefix).await;
    let engine = Engine::builder(backend.clone()).start().unwrap();
    let executions = Arc::new(AtomicUsize::new(0));
    let mut raw = raw().await;
    for state in ["rerun", "hold", "barred", "completed", "indeterminate"] {
        let policy = if state == "rerun" { OnAbandoned::Rerun } else { OnAbandoned::Hold };
        let claim = acquire(state, policy);
        let (key, owner) = (claim.key.clone(), claim.owner);
        backend.acquire(claim).await.unwrap();
        let outcome = SealedOutcome::of_value(&key, &17).unwrap();
        let complete = Complete { key: key.clone(), owner, outcome, retention: Duration::from_secs(60) };
        match state {
            "completed" => drop(backend.complete(complete.clone()).await.unwrap()),
            "indeterminate" => drop(backend.hold(Hold { key: key.clone(), owner }).await.unwrap()),
            "barred" => drop(backend.withdraw(Withdraw { key: key.clone(), owner: Owner::random() }).await.unwrap()),
            _ => {}
        }
        let name = format!("{prefix}{}", key.as_stored());
        let intact: Vec<u8> = redis::cmd("GET").arg(&name).query_async(&mut raw).await.unwrap();
        assert!(intact.len() >= 74);
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
            // The owner's steps also check the claim's own part.
            if byte < 69 {
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

/// A claim without its time to live has lost its clock. It is neither taken over nor treated as settled.
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
    // The owner's next step repairs it.
    let outcome = SealedOutcome::tombstone(&claim.key);
    let complete = Complete { key: claim.key, owner: claim.owner, outcome, retention: Duration::from_secs(60) };
    assert_eq!(backend.complete(complete).await, Ok(Completed::Stored));
}

/// A record that must be resolved never expires, whoever held its lease.
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

/// A page has all records in order, although the server has no order.
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

/// Released keys leave tombstones, which no page shows. One scan past all of them finds a page.
async fn pages_pass_tombstones_by(place: Place) {
    let backend = RedisBackend::open(&place.url).await.unwrap();
    let names: Vec<String> = (0..3_000).map(|number| format!("a{number:05}")).collect();
    let released = names.iter().map(async |name| {
        let claim = acquire(name, OnAbandoned::Hold);
        backend.acquire(claim.clone()).await.unwrap();
        backend.release(Release { key: claim.key, owner: claim.owner }).await.unwrap();
    });
    futures_util::future::join_all(released).await;
    for name in ["z1", "z2", "z3"] {
        backend.acquire(acquire(name, OnAbandoned::Hold)).await.unwrap();
    }
    let before = place.calls("scan");
    let page = backend.list(List { after: None, limit: 2 }).await.unwrap();
    let found: Vec<&str> = page.iter().map(|view| view.key.idempotency_key()).collect();
    assert_eq!(found, ["z1", "z2"]);
    let rest = backend.list(List { after: Some(page[1].key.clone()), limit: 2 }).await.unwrap();
    assert_eq!(rest.len(), 1);
    // Each page takes four scan steps of a thousand keys, and some more where the server's table is sparse.
    let scans = place.calls("scan") - before;
    assert!((2..=20).contains(&scans), "{scans} steps through the store");
}

#[actix_rt::test]
async fn e14_pages_pass_tombstones_by() {
    pages_pass_tombstones_by(Place::single()).await;
}

#[actix_rt::test]
async fn e14_pages_of_a_cluster_pass_tombstones_by() {
    pages_pass_tombstones_by(Place::cluster()).await;
}

/// Returns the checksum at the end of every value.
pub(super) fn crc32(parts: &[&[u8]]) -> [u8; 4] {
    let mut crc = u32::MAX;
    for byte in parts.concat() {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { 0xEDB8_8320 } else { 0 };
        }
    }
    (!crc).to_be_bytes()
}

/// Returns a value as version 1 wrote it, without a fencing token.
fn in_version_1(key: &Key, owner: Owner, state: u8, outcome: &[u8]) -> Vec<u8> {
    let name = key.as_stored().as_bytes();
    let claim =
        [&[1], owner.as_bytes().as_slice(), Fingerprint::of(b"asked").as_bytes(), &1_u64.to_be_bytes()].concat();
    let claimed = crc32(&[name, &[0], &claim]);
    let stated = crc32(&[name, &[0, state], owner.as_bytes(), outcome]);
    [&claim[..], &claimed, &[state], &stated, outcome].concat()
}

/// The backend reads records that an earlier release wrote, and every step accepts them.
#[actix_rt::test]
async fn e13_a_value_of_version_1_is_read_and_taken_on() {
    const DAY: u64 = 24 * 60 * 60 * 1_000;
    let prefix = fresh_prefix();
    let backend = open(&SERVER.url(), &prefix).await;
    let mut raw = raw().await;
    let mut put = async |name: &str, state: u8, ttl: u64| {
        let (key, owner) = (Key::new("s", name).unwrap(), Owner::random());
        let outcome =
            if state == b'c' { SealedOutcome::of_value(&key, &17).unwrap().as_stored().to_vec() } else { vec![] };
        let value = in_version_1(&key, owner, state, &outcome);
        let mut set = redis::cmd("SET");
        set.arg(format!("{prefix}{}", key.as_stored())).arg(value).arg("PX").arg(ttl);
        set.exec_async(&mut raw).await.unwrap();
        (key, owner)
    };
    let look = async |key: &Key| backend.lookup(Lookup { key: key.clone() }).await.unwrap();

    let (key, owner) = put("claimed", b'h', 100 * 365 * DAY + 60_000).await;
    let view = look(&key).await.unwrap();
    assert!(matches!(view.state, StateView::InProgress { lease_left } if !lease_left.is_zero()), "{view:?}");
    assert_eq!((view.attempt, view.token), (Attempt::FIRST, FencingToken::ZERO));
    // It is held, renewed and completed, and a withdrawal of another claim does not change it.
    backend.withdraw(Withdraw { key: key.clone(), owner: Owner::random() }).await.unwrap();
    assert_eq!(backend.hold(Hold { key: key.clone(), owner }).await, Ok(Held::Held));
    assert_eq!(look(&key).await.unwrap().state, StateView::Indeterminate);
    let lease = Duration::from_secs(60);
    assert_eq!(backend.renew(Renew { key: key.clone(), owner, lease }).await, Ok(Renewed::Renewed));
    assert!(matches!(look(&key).await.unwrap().state, StateView::InProgress { .. }));
    let outcome = SealedOutcome::of_value(&key, &17).unwrap();
    let complete = Complete { key: key.clone(), owner, outcome, retention: lease };
    assert_eq!(backend.complete(complete.clone()).await, Ok(Completed::Stored));
    assert_eq!(backend.complete(Complete { owner: Owner::random(), ..complete }).await, Ok(Completed::Lost));
    let replayed = backend.acquire(acquire("claimed", OnAbandoned::Hold)).await;
    assert!(matches!(replayed, Ok(Acquired::Completed { .. })), "{replayed:?}");

    put("completed", b'c', 60_000).await;
    let replayed = backend.acquire(acquire("completed", OnAbandoned::Hold)).await;
    assert!(matches!(replayed, Ok(Acquired::Completed { .. })), "{replayed:?}");

    let (key, owner) = put("released", b'r', DAY + 60_000).await;
    assert_eq!(backend.release(Release { key: key.clone(), owner }).await, Ok(Released::Released));
    assert_eq!(look(&key).await, None);
    let (key, owner) = put("withdrawn", b'r', DAY + 60_000).await;
    backend.withdraw(Withdraw { key: key.clone(), owner }).await.unwrap();
    assert_eq!(look(&key).await, None);
    let (key, _) = put("removed", b'i', DAY).await;
    assert_eq!(backend.remove(Remove { key: key.clone() }).await, Ok(Removed::Removed));
    let (key, _) = put("tombstone", b'w', 60_000).await;
    assert_eq!(look(&key).await, None);
    put("lapsed", b'r', DAY - 1).await;
    let stats = backend.stats(Stats).await.unwrap();
    assert_eq!((stats.in_progress, stats.completed, stats.indeterminate), (1, 2, 0));
    for name in ["released", "withdrawn", "removed", "tombstone", "lapsed"] {
        let claimed = backend.acquire(acquire(name, OnAbandoned::Hold)).await;
        let Ok(Acquired::Claimed { token, took_over, .. }) = claimed else { panic!("{name}: {claimed:?}") };
        assert!(token > FencingToken::ZERO && took_over == (name == "lapsed"), "{name}");
    }
}
