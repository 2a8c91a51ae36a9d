//! Fencing tokens, across every way in which a claim can end.

use std::time::Duration;

use futures_util::future::join_all;
use oncekey::backend::{
    Acquire, Acquired, Backend as _, Complete, Completed, Held, Hold, Lookup, Release, Released, Remove, Removed,
    Renew, Renewed, Resolution, Resolve, Resolved, Withdraw, Withdrawn,
};
use oncekey::record::{Owner, SealedOutcome};
use oncekey::{FencingToken, Fingerprint, Key, OnAbandoned};
use oncekey_backends::redis::RedisBackend;
use tests::server::Redis;

use super::values::crc32;
use super::withdrawals::Place;
use super::{CLUSTER, SENTINEL, SERVER, acquire, fresh_prefix, open};

async fn claimed(backend: &RedisBackend, message: Acquire) -> FencingToken {
    let answer = backend.acquire(message).await;
    let Ok(Acquired::Claimed { token, .. }) = answer else { panic!("{answer:?}") };
    token
}

async fn tokens_rise_on(url: &str) {
    let prefix = fresh_prefix();
    let (one, other) = (open(url, &prefix).await, open(url, &prefix).await);
    let mut last = FencingToken::ZERO;
    let ends = ["release", "resolve", "remove", "withdraw", "expire", "lapse", "remove what is completed"];
    for round in 0..3 * ends.len() {
        let end = ends[round % ends.len()];
        // Each arbiter has its own clock.
        let (backend, beside) = if round % 2 == 0 { (&one, &other) } else { (&other, &one) };
        let policy = if end == "lapse" { OnAbandoned::Rerun } else { OnAbandoned::Hold };
        let claim = acquire("k", policy);
        let (key, owner) = (claim.key.clone(), claim.owner);
        let token = claimed(backend, claim.clone()).await;
        assert!(token > last, "{token} after {last}, before {end}");
        last = token;
        // The token belongs to one claim: a repetition and a renewal do not change it.
        assert_eq!(claimed(beside, claim).await, token);
        let lease = if end == "lapse" { Duration::from_millis(1) } else { Duration::from_secs(60) };
        assert_eq!(backend.renew(Renew { key: key.clone(), owner, lease }).await, Ok(Renewed::Renewed));
        assert_eq!(beside.lookup(Lookup { key: key.clone() }).await.unwrap().map(|view| view.token), Some(token));
        let outcome = SealedOutcome::tombstone(&key);
        let complete = Complete { key: key.clone(), owner, outcome, retention: Duration::from_millis(250) };
        match end {
            "release" => {
                assert_eq!(backend.release(Release { key: key.clone(), owner }).await, Ok(Released::Released));
            }
            "resolve" => {
                assert_eq!(backend.hold(Hold { key: key.clone(), owner }).await, Ok(Held::Held));
                let release = Resolve { key: key.clone(), attempt: None, owner: None, with: Resolution::Release };
                assert_eq!(beside.resolve(release).await, Ok(Resolved::Resolved));
            }
            "withdraw" => {
                assert_eq!(backend.withdraw(Withdraw { key: key.clone(), owner }).await, Ok(Withdrawn));
            }
            "lapse" => tokio::time::sleep(Duration::from_millis(5)).await,
            "expire" => {
                // This claim is new, so that no withdrawal keeps its outcome.
                assert_eq!(backend.release(Release { key: key.clone(), owner }).await, Ok(Released::Released));
                let fresh = acquire("expiring", OnAbandoned::Hold);
                let (name, owner) = (fresh.key.clone(), fresh.owner);
                let token = claimed(backend, fresh).await;
                let outcome = SealedOutcome::tombstone(&name);
                let complete = Complete { key: name.clone(), owner, outcome, ..complete };
                assert_eq!(backend.complete(complete).await, Ok(Completed::Stored));
                while beside.lookup(Lookup { key: name.clone() }).await.unwrap().is_some() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                let later = acquire("expiring", OnAbandoned::Hold);
                let owner = later.owner;
                assert!(claimed(beside, later).await > token, "after its retention");
                assert_eq!(beside.release(Release { key: name, owner }).await, Ok(Released::Released));
            }
            _ => {
                if end.ends_with("completed") {
                    assert_eq!(backend.complete(complete).await, Ok(Completed::Stored));
                }
                assert_eq!(beside.remove(Remove { key: key.clone() }).await, Ok(Removed::Removed));
            }
        }
        if end != "lapse" && !end.starts_with("expire") {
            assert_eq!(beside.lookup(Lookup { key: key.clone() }).await, Ok(None), "{end}");
            assert_eq!(beside.remove(Remove { key }).await, Ok(Removed::Absent), "{end}");
        }
    }
}

#[actix_rt::test]
async fn e25_tokens_rise_on_one_server() {
    tokens_rise_on(&SERVER.url()).await;
}

#[actix_rt::test]
async fn e25_tokens_rise_behind_sentinels() {
    tokens_rise_on(&SENTINEL.url()).await;
}

#[actix_rt::test]
async fn e25_tokens_rise_in_a_cluster() {
    tokens_rise_on(&CLUSTER.url()).await;
}

/// Concurrent takeovers: each winner's token is above that of the claim it replaced.
#[actix_rt::test]
async fn e25_tokens_rise_over_takeovers_by_many() {
    let prefix = fresh_prefix();
    let url = SERVER.url();
    let backends: Vec<RedisBackend> = join_all((0..8).map(|_| open(&url, &prefix))).await;
    let mut tokens = Vec::new();
    for _ in 0..20 {
        let claim = || Acquire { lease: Duration::from_millis(1), ..acquire("k", OnAbandoned::Rerun) };
        let answers = join_all(backends.iter().map(|backend| backend.acquire(claim()))).await;
        let mut won: Vec<(u64, FencingToken)> = answers
            .into_iter()
            .filter_map(|answer| match answer.unwrap() {
                Acquired::Claimed { attempt, token, .. } => Some((attempt.get(), token)),
                _ => None,
            })
            .collect();
        won.sort();
        tokens.extend(won);
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    assert!(tokens.len() >= 20 && tokens.is_sorted_by(|one, next| one.0 < next.0 && one.1 < next.1), "{tokens:?}");
}

/// A server that does not report its time cannot be a store, because claims could not be numbered.
#[actix_rt::test]
async fn e25_a_server_that_does_not_tell_its_time_is_refused() {
    let server = Redis::start_with(&["--requirepass", "root"]);
    let set = ["-a", "root", "acl", "setuser", "shop", "on", ">secret", "~*", "&*", "+@all", "-time"];
    assert_eq!(server.cli(&set), "OK");
    let refused = RedisBackend::open(&format!("redis://shop:secret@127.0.0.1:{}/0", server.port())).await.unwrap_err();
    assert!(refused.to_string().contains("time"), "{refused}");
}

/// Returns a value as version 2 writes it, with the given token.
fn with_token(key: &Key, owner: Owner, token: u64, state: u8) -> Vec<u8> {
    let name = key.as_stored().as_bytes();
    let fingerprint = Fingerprint::of(b"asked");
    let parts: [&[u8]; 5] =
        [&[2], owner.as_bytes(), fingerprint.as_bytes(), &1_u64.to_be_bytes(), &token.to_be_bytes()];
    let claim = parts.concat();
    let (claimed, stated) = (crc32(&[name, &[0], &claim]), crc32(&[name, &[0, state], owner.as_bytes()]));
    [&claim[..], &claimed, &[state], &stated].concat()
}

/// Checks claims whose tokens are an hour ahead of the server's clock, as after the clock was set back, or after a
/// master failed. However they end, the key stays until the clock has passed the token, and the next claim's token is
/// higher.
async fn a_token_ahead_of_the_clock_is_kept(place: Place) {
    const HOUR: u64 = 3_600_000;
    let backend = RedisBackend::builder(&place.url).open().await.unwrap();
    let client = redis::Client::open(place.server.url()).unwrap();
    let mut raw = client.get_multiplexed_async_connection().await.unwrap();
    let (seconds, _): (u64, u64) = redis::cmd("TIME").query_async(&mut raw).await.unwrap();
    let token = (seconds * 1_000 + HOUR) * 1_000;
    let brief = Duration::from_millis(1);
    for end in ["complete", "release", "withdraw", "withdraw twice", "resolve", "free", "remove"] {
        let (key, owner) = (Key::new("s", end).unwrap(), Owner::random());
        let stored = format!("oncekey:{}", key.as_stored());
        let is_resolved = matches!(end, "resolve" | "free");
        let value = with_token(&key, owner, token, if is_resolved { b'i' } else { b'r' });
        let mut set = redis::cmd("SET").arg(&stored).arg(value).take();
        if !is_resolved {
            set.arg("PX").arg(24 * HOUR + 60_000);
        }
        set.exec_async(&mut raw).await.unwrap();
        let outcome = SealedOutcome::tombstone(&key);
        let resolve = |with| Resolve { key: key.clone(), attempt: None, owner: None, with };
        match end {
            "complete" => {
                let complete = Complete { key: key.clone(), owner, outcome, retention: brief };
                assert_eq!(backend.complete(complete).await, Ok(Completed::Stored));
            }
            "release" => {
                assert_eq!(backend.release(Release { key: key.clone(), owner }).await, Ok(Released::Released));
            }
            "withdraw" | "withdraw twice" => {
                assert_eq!(backend.withdraw(Withdraw { key: key.clone(), owner }).await, Ok(Withdrawn));
                if end == "withdraw twice" {
                    let other = Withdraw { key: key.clone(), owner: Owner::random() };
                    assert_eq!(backend.withdraw(other).await, Ok(Withdrawn));
                }
            }
            "resolve" => {
                let with = Resolution::Complete { outcome, retention: brief };
                assert_eq!(backend.resolve(resolve(with)).await, Ok(Resolved::Resolved));
            }
            "free" => assert_eq!(backend.resolve(resolve(Resolution::Release)).await, Ok(Resolved::Resolved)),
            _ => assert_eq!(backend.remove(Remove { key: key.clone() }).await, Ok(Removed::Removed)),
        }
        let left: u64 = redis::cmd("PTTL").arg(&stored).query_async(&mut raw).await.unwrap();
        assert!((HOUR - 60_000..HOUR + 60_000).contains(&left), "{end}: {left} ms are left");
        if !matches!(end, "complete" | "resolve") {
            let next = claimed(&backend, acquire(end, OnAbandoned::Hold)).await;
            assert!(next.get() > token, "{end}: {next} after {token}");
        }
    }
}

#[actix_rt::test]
async fn e25_a_token_ahead_of_the_clock_is_kept_on_one_server() {
    a_token_ahead_of_the_clock_is_kept(Place::single()).await;
}

#[actix_rt::test]
async fn e25_a_token_ahead_of_the_clock_is_kept_behind_sentinels() {
    a_token_ahead_of_the_clock_is_kept(Place::sentinel()).await;
}

#[actix_rt::test]
async fn e25_a_token_ahead_of_the_clock_is_kept_in_a_cluster() {
    a_token_ahead_of_the_clock_is_kept(Place::cluster()).await;
}
