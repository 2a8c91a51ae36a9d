//! Steps: where and how long they are kept, and messages and records that are late or damaged.

use std::time::{Duration, Instant};

use oncekey::backend::{
    Acquire, Acquired, Backend as _, BeginStep, Complete, CompleteStep, Completed, FailStep, Held, Hold, List, Lookup,
    RecordView, Release, Released, Remove, Removed, Renew, Renewed, ResolveStep, Resolved, StateView, Stats, StepBegun,
    StepCompleted, StepFailed, StepResolution, StoreError, Watch,
};
use oncekey::record::{Progress, SealedOutcome, StepName, StepRun, Steps};
use oncekey::{Attempt, FencingToken, Key, OnAbandoned, StepPolicy};
use oncekey_backends::redis::RedisBackend;
use redis::aio::MultiplexedConnection;
use tests::process::PATIENCE;
use tests::server::Redis;

use super::withdrawals::Place;
use super::{CLUSTER, SERVER, acquire, fresh_prefix, open};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const YEARS: i64 = 99 * 365 * 24 * 60 * 60 * 1_000;

async fn connect(server: &Redis) -> MultiplexedConnection {
    redis::Client::open(server.url()).unwrap().get_multiplexed_async_connection().await.unwrap()
}

async fn raw() -> MultiplexedConnection {
    connect(&SERVER).await
}

fn name(name: &str) -> StepName {
    StepName::new(name).unwrap()
}

async fn claimed(backend: &RedisBackend, message: &Acquire) -> (FencingToken, Option<Box<Steps>>) {
    let answer = backend.acquire(message.clone()).await;
    let Ok(Acquired::Claimed { token, steps, .. }) = answer else { panic!("{answer:?}") };
    (token, steps)
}

fn begin(claim: &Acquire, step: &str, number: u32) -> BeginStep {
    BeginStep {
        key: claim.key.clone(),
        owner: claim.owner,
        name: name(step),
        fingerprint: None,
        number,
        policy: StepPolicy::Hold,
        retention: DAY,
    }
}

async fn begun(backend: &RedisBackend, message: BeginStep) -> (StepRun, FencingToken) {
    let answer = backend.begin_step(message).await;
    let Ok(StepBegun::Begun { run, life, .. }) = answer else { panic!("{answer:?}") };
    (run, life)
}

fn completion(key: &Key, step: &str, run: StepRun, life: FencingToken) -> CompleteStep {
    let outcome = SealedOutcome::of_value(key, &17).unwrap();
    CompleteStep { key: key.clone(), life, name: name(step), run, outcome }
}

async fn done(backend: &RedisBackend, claim: &Acquire, step: &str, number: u32) {
    let (run, life) = begun(backend, begin(claim, step, number)).await;
    let stored = backend.complete_step(completion(&claim.key, step, run, life)).await;
    assert_eq!(stored, Ok(StepCompleted::Stored));
}

fn complete(claim: &Acquire, retention: Duration) -> Complete {
    let outcome = SealedOutcome::of_value(&claim.key, &17).unwrap();
    Complete { key: claim.key.clone(), owner: claim.owner, outcome, retention }
}

fn released(claim: &Acquire) -> Release {
    Release { key: claim.key.clone(), owner: claim.owner }
}

async fn lapse(backend: &RedisBackend, claim: &Acquire) {
    let renew = Renew { key: claim.key.clone(), owner: claim.owner, lease: Duration::ZERO };
    assert_eq!(backend.renew(renew).await, Ok(Renewed::Renewed));
    tokio::time::sleep(Duration::from_millis(3)).await;
}

async fn look(backend: &RedisBackend, key: &Key) -> Option<RecordView> {
    backend.lookup(Lookup { key: key.clone() }).await.unwrap()
}

fn shown(steps: Option<Box<Steps>>) -> Vec<(String, &'static str)> {
    let list = steps.map(|steps| steps.list).unwrap_or_default();
    list.into_iter().map(|step| (step.name.to_string(), step.progress.name())).collect()
}

/// Returns the names of a record's two keys, as found in the store. One may be absent.
async fn keys_of(raw: &mut MultiplexedConnection, prefix: &str, key: &Key) -> (Vec<u8>, Option<Vec<u8>>) {
    let parent = format!("{prefix}{}", key.as_stored()).into_bytes();
    let all: Vec<Vec<u8>> = redis::cmd("KEYS").arg("*").query_async(raw).await.unwrap();
    let steps =
        all.into_iter().find(|name| name.len() > parent.len() && name.starts_with(&[&parent[..], &[0]].concat()));
    (parent, steps)
}

async fn ttl(raw: &mut MultiplexedConnection, name: &[u8]) -> i64 {
    redis::cmd("PTTL").arg(name).query_async(raw).await.unwrap()
}

/// Runs the whole life of a record with steps with any braces in the scope and in the key, on a cluster, where a script
/// that touches two slots is refused.
#[actix_rt::test]
async fn e26_braces_in_keys_and_prefixes_keep_a_family_in_one_slot() {
    let texts = ["{", "}", "{}", "}{", "{a}{b}", "{}{a}", "a{b", "a}b{c", "{{a}}", "plain", "ü{ß}"];
    for prefix in ["", "{", "a{b:", "{shop}:", "{}:", "}:"] {
        let prefix = format!("{}{prefix}", fresh_prefix());
        let backend = open(&CLUSTER.url(), &prefix).await;
        let lives = texts.iter().flat_map(|scope| texts.map(|text| (*scope, text))).map(async |(scope, text)| {
            let claim = Acquire { key: Key::new(scope, text).unwrap(), ..acquire("k", OnAbandoned::Resume) };
            claimed(&backend, &claim).await;
            done(&backend, &claim, "charge", 1).await;
            lapse(&backend, &claim).await;
            let next = Acquire { owner: oncekey::record::Owner::random(), ..claim.clone() };
            let (_, steps) = claimed(&backend, &next).await;
            assert_eq!(shown(steps), [("charge".to_owned(), "completed")]);
            let (run, _) = begun(&backend, begin(&next, "mail", 1)).await;
            let failed = FailStep { key: claim.key, owner: next.owner, name: name("mail"), run, retention: DAY };
            assert_eq!(backend.fail_step(failed).await, Ok(StepFailed::Failed));
            let view = look(&backend, &next.key).await.unwrap();
            assert_eq!(view.steps.map(|steps| steps.list.len()), Some(2));
            assert_eq!(backend.complete(complete(&next, DAY)).await, Ok(Completed::Stored));
        });
        futures_util::future::join_all(lives).await;
        let listed = backend.list(List { after: None, limit: 1_000 }).await.unwrap();
        assert_eq!(listed.len(), texts.len() * texts.len());
        assert!(listed.iter().all(|view| view.steps.as_ref().is_some_and(|steps| steps.list.len() == 2)));
        assert!(listed.is_sorted_by(|one, next| one.key < next.key));
        let stats = backend.stats(Stats).await.unwrap();
        assert_eq!((stats.completed, stats.in_progress), (121, 0));
    }
}

/// In every state the steps live as long as their record, and a second longer.
#[actix_rt::test]
async fn e26_steps_live_for_as_long_as_their_record() {
    let prefix = fresh_prefix();
    let backend = open(&SERVER.url(), &prefix).await;
    let mut raw = raw().await;
    let claim = acquire("k", OnAbandoned::Resume);
    claimed(&backend, &claim).await;
    let life = async |raw: &mut MultiplexedConnection, what: &str| {
        let (parent, steps) = keys_of(raw, &prefix, &claim.key).await;
        let (record, steps) = (ttl(raw, &parent).await, ttl(raw, &steps.unwrap()).await);
        if record == -1 {
            assert_eq!(steps, -1, "{what}");
        } else {
            assert!((record..=record + 1_100).contains(&steps), "{what}: {record} and {steps}");
        }
        record
    };
    let day = i64::try_from(DAY.as_millis()).unwrap();
    let two_days = BeginStep { retention: 2 * DAY, ..begin(&claim, "charge", 1) };
    let (run, first) = begun(&backend, two_days).await;
    assert!(life(&mut raw, "while a step may be unsettled").await > YEARS);
    let stored = backend.complete_step(completion(&claim.key, "charge", run, first)).await;
    assert_eq!(stored, Ok(StepCompleted::Stored));
    let settled = life(&mut raw, "when all steps are settled").await;
    assert!((2 * day..2 * day + 61_000).contains(&settled), "{settled}");
    let renew = Renew { key: claim.key.clone(), owner: claim.owner, lease: Duration::from_secs(600) };
    assert_eq!(backend.renew(renew).await, Ok(Renewed::Renewed));
    let renewed = life(&mut raw, "renewed").await;
    assert!((2 * day + 590_000..2 * day + 601_000).contains(&renewed), "{renewed}");
    let StateView::InProgress { lease_left } = look(&backend, &claim.key).await.unwrap().state else { panic!() };
    assert!(lease_left > Duration::from_secs(590) && lease_left <= Duration::from_secs(600), "{lease_left:?}");
    assert_eq!(backend.release(released(&claim)).await, Ok(Released::Released));
    let free = life(&mut raw, "released").await;
    assert!((2 * day - 5_000..=2 * day).contains(&free), "{free}");
    let next = acquire("k", OnAbandoned::Resume);
    claimed(&backend, &next).await;
    life(&mut raw, "claimed again").await;
    let hold = Hold { key: next.key.clone(), owner: next.owner };
    assert_eq!(backend.hold(hold).await, Ok(Held::Held));
    assert_eq!(life(&mut raw, "held").await, -1);
    let renew = Renew { key: next.key.clone(), owner: next.owner, lease: Duration::from_secs(60) };
    assert_eq!(backend.renew(renew).await, Ok(Renewed::Renewed));
    assert!(life(&mut raw, "renewed under hold").await > YEARS);
    let brief = Duration::from_millis(300);
    assert_eq!(backend.complete(complete(&next, brief)).await, Ok(Completed::Stored));
    let kept = life(&mut raw, "completed").await;
    assert!(kept <= 300, "{kept}");
    // They disappear with their record.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (parent, steps) = keys_of(&mut raw, &prefix, &claim.key).await;
        if steps.is_none() {
            assert_eq!(ttl(&mut raw, &parent).await, -2);
            break;
        }
        assert!(Instant::now() < deadline, "the steps were left behind");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Nothing of the steps remains after the record disappeared or was freed, and nothing of an earlier life is visible.
#[actix_rt::test]
async fn e26_no_orphan_is_left_or_seen() {
    let prefix = fresh_prefix();
    let backend = open(&SERVER.url(), &prefix).await;
    let mut raw = raw().await;
    for end in ["remove", "failed and released", "vanished"] {
        let claim = acquire(end, OnAbandoned::Resume);
        let (token, _) = claimed(&backend, &claim).await;
        let (run, _) = begun(&backend, begin(&claim, "charge", 1)).await;
        let fail = FailStep { key: claim.key.clone(), owner: claim.owner, name: name("charge"), run, retention: DAY };
        let (parent, steps) = keys_of(&mut raw, &prefix, &claim.key).await;
        assert!(steps.is_some());
        match end {
            "remove" => assert_eq!(backend.remove(Remove { key: claim.key.clone() }).await, Ok(Removed::Removed)),
            "vanished" => redis::cmd("DEL").arg(&parent).exec_async(&mut raw).await.unwrap(),
            _ => {
                assert_eq!(backend.fail_step(fail).await, Ok(StepFailed::Failed));
                assert_eq!(backend.release(released(&claim)).await, Ok(Released::Released));
            }
        }
        let (_, left) = keys_of(&mut raw, &prefix, &claim.key).await;
        assert_eq!(left.is_some(), end == "vanished", "{end}");
        assert_eq!(look(&backend, &claim.key).await, None);
        // A message of the earlier life is too late, before and after the next life has begun.
        let late = completion(&claim.key, "charge", run, token);
        assert_eq!(backend.complete_step(late.clone()).await, Ok(StepCompleted::Lost));
        let next = acquire(end, OnAbandoned::Resume);
        assert_eq!(claimed(&backend, &next).await.1, None, "{end}");
        assert_eq!(backend.complete_step(late.clone()).await, Ok(StepCompleted::Lost));
        let (_, life) = begun(&backend, begin(&next, "mail", 1)).await;
        assert!(life > token);
        assert_eq!(backend.complete_step(late).await, Ok(StepCompleted::Lost));
        let view = look(&backend, &next.key).await.unwrap();
        assert_eq!(shown(view.steps), [("mail".to_owned(), "begun")], "{end}");
        assert_eq!(backend.remove(Remove { key: next.key }).await, Ok(Removed::Removed));
    }
    assert_eq!(backend.list(List { after: None, limit: 10 }).await.unwrap(), []);
}

/// Damaged or missing steps are an error for every caller that needs them. They never count as "no steps".
#[actix_rt::test]
async fn e13_damaged_steps_are_errors() {
    let prefix = fresh_prefix();
    let backend = open(&SERVER.url(), &prefix).await;
    let mut raw = raw().await;
    let claim = acquire("k", OnAbandoned::Resume);
    claimed(&backend, &claim).await;
    let (run, life) = begun(&backend, begin(&claim, "charge", 1)).await;
    let (parent, steps) = keys_of(&mut raw, &prefix, &claim.key).await;
    let steps = steps.unwrap();
    lapse(&backend, &claim).await;
    let check = async |what: &str, completes: bool| {
        let is_corrupt = |error: &StoreError| matches!(error, StoreError::Corrupt(_));
        let acquired = backend.acquire(acquire("k", OnAbandoned::Resume)).await;
        assert!(acquired.as_ref().is_err_and(is_corrupt), "{what}: {acquired:?}");
        let looked = backend.lookup(Lookup { key: claim.key.clone() }).await;
        assert!(looked.as_ref().is_err_and(is_corrupt), "{what}: {looked:?}");
        let release = backend.release(released(&claim)).await;
        assert!(release.as_ref().is_err_and(is_corrupt), "{what}: {release:?}");
        let began = backend.begin_step(begin(&claim, "charge", 1)).await;
        assert!(began.as_ref().is_err_and(is_corrupt), "{what}: {began:?}");
        let stored = backend.complete_step(completion(&claim.key, "charge", run, life)).await;
        assert!(stored.as_ref().is_err_and(is_corrupt) || !completes, "{what}: {stored:?}");
        assert_ne!(stored, Ok(StepCompleted::Stored));
    };
    for field in [&[0][..], b"charge"] {
        let intact: Vec<u8> = redis::cmd("HGET").arg(&steps).arg(field).query_async(&mut raw).await.unwrap();
        for byte in 0..intact.len() {
            let mut damaged = intact.clone();
            damaged[byte] ^= 0x10;
            redis::cmd("HSET").arg(&steps).arg(field).arg(damaged).exec_async(&mut raw).await.unwrap();
            check(&format!("byte {byte} of {field:?}"), true).await;
        }
        redis::cmd("HSET").arg(&steps).arg(field).arg(intact).exec_async(&mut raw).await.unwrap();
    }
    assert_eq!(shown(look(&backend, &claim.key).await.unwrap().steps), [("charge".to_owned(), "begun")]);
    redis::cmd("DEL").arg(&steps).exec_async(&mut raw).await.unwrap();
    check("no steps at all", true).await;
    redis::cmd("SET").arg(&steps).arg("foreign").exec_async(&mut raw).await.unwrap();
    check("something else", true).await;
    assert!(ttl(&mut raw, &parent).await > 0);
    // An operator can still remove the whole record.
    assert_eq!(backend.remove(Remove { key: claim.key.clone() }).await, Ok(Removed::Removed));
    assert_eq!(keys_of(&mut raw, &prefix, &claim.key).await.1, None);
}

/// A server without memory begins no step and grants no claim, but accepts the end of everything.
#[actix_rt::test]
async fn e26_a_server_without_memory_takes_the_end_of_a_step() {
    let server = Redis::start();
    let backend = open(&server.url(), "oncekey:").await;
    let claim = acquire("k", OnAbandoned::Resume);
    claimed(&backend, &claim).await;
    let (one, life) = begun(&backend, begin(&claim, "charge", 1)).await;
    let (other, _) = begun(&backend, begin(&claim, "mail", 2)).await;
    let fresh = acquire("fresh", OnAbandoned::Resume);
    claimed(&backend, &fresh).await;
    let unsettled = acquire("unsettled", OnAbandoned::Resume);
    claimed(&backend, &unsettled).await;
    begun(&backend, begin(&unsettled, "charge", 1)).await;
    lapse(&backend, &unsettled).await;
    assert_eq!(server.cli(&["config", "set", "maxmemory", "1mb"]), "OK");
    for claim in [&claim, &fresh] {
        let refused = backend.begin_step(begin(claim, "late", 3)).await;
        assert!(matches!(refused, Err(StoreError::Full(_))), "{refused:?}");
        assert!(!shown(look(&backend, &claim.key).await.unwrap().steps).iter().any(|(name, _)| name == "late"));
    }
    let stored = backend.complete_step(completion(&claim.key, "charge", one, life)).await;
    assert_eq!(stored, Ok(StepCompleted::Stored));
    let answer = backend.begin_step(begin(&claim, "charge", 4)).await;
    assert!(matches!(answer, Ok(StepBegun::Completed { .. })), "{answer:?}");
    let fail = FailStep { key: claim.key.clone(), owner: claim.owner, name: name("mail"), run: other, retention: DAY };
    assert_eq!(backend.fail_step(fail).await, Ok(StepFailed::Failed));
    assert_eq!(backend.release(released(&claim)).await, Ok(Released::Released));
    let refused = backend.acquire(acquire("k", OnAbandoned::Resume)).await;
    assert!(matches!(refused, Err(StoreError::Full(_))), "{refused:?}");
    let with = StepResolution::Release;
    let resolve = ResolveStep { key: unsettled.key, name: name("charge"), run: None, life: None, with };
    assert_eq!(backend.resolve_step(resolve).await, Ok(Resolved::Resolved));
    assert_eq!(server.cli(&["config", "set", "maxmemory", "0"]), "OK");
    let next = acquire("k", OnAbandoned::Resume);
    let (_, steps) = claimed(&backend, &next).await;
    assert_eq!(shown(steps), [("charge".to_owned(), "completed"), ("mail".to_owned(), "failed")]);
}

/// A restarted server knows no script, at any point of a record's life.
#[actix_rt::test]
async fn e26_scripts_are_sent_anew() {
    let server = Redis::start();
    let backend = open(&server.url(), "oncekey:").await;
    let forget = || assert_eq!(server.cli(&["script", "flush"]), "OK");
    let claim = acquire("k", OnAbandoned::Resume);
    claimed(&backend, &claim).await;
    forget();
    let (run, life) = begun(&backend, begin(&claim, "charge", 1)).await;
    forget();
    let stored = backend.complete_step(completion(&claim.key, "charge", run, life)).await;
    assert_eq!(stored, Ok(StepCompleted::Stored));
    let (run, _) = begun(&backend, begin(&claim, "mail", 2)).await;
    forget();
    let fail = FailStep { key: claim.key.clone(), owner: claim.owner, name: name("mail"), run, retention: DAY };
    assert_eq!(backend.fail_step(fail).await, Ok(StepFailed::Failed));
    forget();
    lapse(&backend, &claim).await;
    forget();
    let next = acquire("k", OnAbandoned::Resume);
    let (_, steps) = claimed(&backend, &next).await;
    assert_eq!(shown(steps).len(), 2);
    forget();
    assert!(look(&backend, &claim.key).await.is_some());
    forget();
    assert_eq!(backend.release(released(&next)).await, Ok(Released::Released));
}

/// A begin is held back on its way while its step is failed, its claim is lost, or its record disappears. It never
/// takes effect.
async fn a_late_begin_never_lands_on(place: Place) {
    const LATE: &str = "late-step";
    let beside = open(&place.url, "oncekey:").await;
    // A late script that the server does not know would do nothing.
    let known = acquire("known", OnAbandoned::Resume);
    claimed(&beside, &known).await;
    let (run, _) = begun(&beside, begin(&known, "charge", 1)).await;
    let fail = FailStep { key: known.key.clone(), owner: known.owner, name: name("charge"), run, retention: DAY };
    assert_eq!(beside.fail_step(fail).await, Ok(StepFailed::Failed));
    begun(&beside, begin(&known, "charge", 2)).await;
    for between in ["nothing", "nothing again", "failed", "failed again", "taken over", "released", "removed"] {
        let claim = acquire(between, OnAbandoned::Resume);
        let (token, _) = claimed(&beside, &claim).await;
        let run = StepRun { token, number: 2 };
        let fail = |number| FailStep {
            key: claim.key.clone(),
            owner: claim.owner,
            name: name(LATE),
            run: StepRun { number, ..run },
            retention: DAY,
        };
        if between.ends_with("again") {
            // The late message is a rerun, which is written by its second command.
            begun(&beside, begin(&claim, LATE, 1)).await;
            assert_eq!(beside.fail_step(fail(1)).await, Ok(StepFailed::Failed));
        }
        let backend = RedisBackend::builder(&place.url)
            .prefix("oncekey:")
            .response_timeout(Duration::from_millis(300))
            .open()
            .await
            .unwrap();
        let held = place.proxy.held();
        // Hold the second command of the rerun, or the first command of all others.
        place.proxy.hold(if between.ends_with("again") { "\r\nkeep\r\n" } else { LATE });
        let answer = backend.begin_step(begin(&claim, LATE, 2)).await;
        assert!(answer.as_ref().is_err_and(StoreError::is_unknown), "{answer:?}");
        assert!(place.proxy.held() > held, "nothing was held back");
        place.proxy.hold("nothing has this word");
        match between {
            "nothing" | "nothing again" => {}
            "failed" | "failed again" => assert_eq!(beside.fail_step(fail(2)).await, Ok(StepFailed::Failed)),
            "taken over" => {
                lapse(&beside, &claim).await;
                claimed(&beside, &acquire(between, OnAbandoned::Resume)).await;
            }
            "released" => assert_eq!(beside.release(released(&claim)).await, Ok(Released::Released)),
            _ => assert_eq!(beside.remove(Remove { key: claim.key.clone() }).await, Ok(Removed::Removed)),
        }
        let calls = |place: &Place| place.calls("evalsha") + place.calls("eval");
        let before = calls(&place);
        place.proxy.let_go();
        let deadline = Instant::now() + PATIENCE;
        while calls(&place) == before {
            assert!(Instant::now() < deadline, "the late command did not arrive");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let steps = look(&beside, &claim.key).await.and_then(|view| view.steps);
        let has_begun = steps.is_some_and(|steps| steps.list.iter().any(|step| step.progress == Progress::Begun));
        assert_eq!(has_begun, between.starts_with("nothing"), "{between}");
    }
}

#[actix_rt::test]
async fn e26_a_late_begin_never_lands_on_one_server() {
    a_late_begin_never_lands_on(Place::single()).await;
}

#[actix_rt::test]
async fn e26_a_late_begin_never_lands_in_a_cluster() {
    a_late_begin_never_lands_on(Place::cluster()).await;
}

/// Beginning and completing a step take one round trip each, and so does a claim's end if its steps are known. A record
/// without steps takes as many as before.
#[actix_rt::test]
async fn e26_a_step_takes_two_round_trips() {
    let place = Place::single();
    let backend = open(&place.server.url(), "oncekey:").await;
    // This sends the scripts.
    let first = acquire("first", OnAbandoned::Resume);
    claimed(&backend, &first).await;
    done(&backend, &first, "charge", 1).await;
    assert_eq!(backend.complete(complete(&first, DAY)).await, Ok(Completed::Stored));
    let calls = || (place.calls("evalsha"), place.calls("eval"));
    let (before, texts) = calls();
    let claim = acquire("k", OnAbandoned::Resume);
    claimed(&backend, &claim).await;
    assert_eq!(calls(), (before, texts));
    for number in 1..=3 {
        done(&backend, &claim, &format!("step {number}"), number).await;
        assert_eq!(calls(), (before + 2 * number as usize, texts));
    }
    assert_eq!(backend.complete(complete(&claim, DAY)).await, Ok(Completed::Stored));
    assert_eq!(calls(), (before + 7, texts));
    let replayed = backend.acquire(acquire("k", OnAbandoned::Resume)).await;
    assert!(matches!(replayed, Ok(Acquired::Completed { .. })), "{replayed:?}");
    assert_eq!(calls(), (before + 7, texts));
    // Another process completes a claim that it did not begin, and learns of the steps.
    let other = open(&place.server.url(), "oncekey:").await;
    let claim = acquire("l", OnAbandoned::Resume);
    claimed(&backend, &claim).await;
    done(&backend, &claim, "charge", 1).await;
    let (before, _) = calls();
    assert_eq!(other.complete(complete(&claim, DAY)).await, Ok(Completed::Stored));
    assert_eq!(calls().0, before + 2);
    // A record without steps.
    let plain = acquire("plain", OnAbandoned::Resume);
    let (before, _) = calls();
    claimed(&backend, &plain).await;
    assert_eq!(backend.complete(complete(&plain, DAY)).await, Ok(Completed::Stored));
    assert_eq!(calls().0, before + 1);
}

/// A record that was abandoned days ago, and is settled only then, is kept for its retention from that time.
#[actix_rt::test]
async fn e26_a_step_that_is_resolved_late_is_kept() {
    let prefix = fresh_prefix();
    let backend = open(&SERVER.url(), &prefix).await;
    let mut raw = raw().await;
    for late in ["resolved", "completed"] {
        let claim = acquire(late, OnAbandoned::Resume);
        claimed(&backend, &claim).await;
        let (run, life) = begun(&backend, begin(&claim, "charge", 1)).await;
        let (parent, steps) = keys_of(&mut raw, &prefix, &claim.key).await;
        // This is the state after three days.
        for name in [&parent, &steps.unwrap()] {
            let left = ttl(&mut raw, name).await - 60_000 - 3 * 86_400_000;
            redis::cmd("PEXPIRE").arg(name).arg(left).exec_async(&mut raw).await.unwrap();
        }
        assert_eq!(look(&backend, &claim.key).await.unwrap().state, StateView::Indeterminate);
        let completion = completion(&claim.key, "charge", run, life);
        if late == "completed" {
            assert_eq!(backend.complete_step(completion).await, Ok(StepCompleted::Stored));
        } else {
            let with = StepResolution::Complete { outcome: completion.outcome };
            let key = claim.key.clone();
            let resolve = ResolveStep { key, name: name("charge"), run: Some(run), life: Some(life), with };
            assert_eq!(backend.resolve_step(resolve).await, Ok(Resolved::Resolved));
        }
        let left = ttl(&mut raw, &parent).await;
        assert!((86_390_000..=86_400_000).contains(&left), "{late}: {left}");
        let (_, steps) = claimed(&backend, &acquire(late, OnAbandoned::Resume)).await;
        assert_eq!(shown(steps), [("charge".to_owned(), "completed")], "{late}");
    }
}

/// A caller that waits for a record with steps learns of its end.
#[actix_rt::test]
async fn e08_a_record_with_steps_is_watched() {
    for url in [SERVER.url(), CLUSTER.url()] {
        let backend = open(&url, &fresh_prefix()).await;
        let claim = acquire("k", OnAbandoned::Resume);
        claimed(&backend, &claim).await;
        done(&backend, &claim, "charge", 1).await;
        let (run, life) = begun(&backend, begin(&claim, "mail", 2)).await;
        let watching = actix_rt::spawn({
            let (backend, key) = (backend.clone(), claim.key.clone());
            async move { backend.watch(Watch { key, limit: PATIENCE }).await }
        });
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!watching.is_finished());
        // The end of a step is not the end of the record.
        let stored = backend.complete_step(completion(&claim.key, "mail", run, life)).await;
        assert_eq!(stored, Ok(StepCompleted::Stored));
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!watching.is_finished());
        assert_eq!(backend.complete(complete(&claim, DAY)).await, Ok(Completed::Stored));
        let since = Instant::now();
        watching.await.unwrap().unwrap();
        assert!(since.elapsed() < Duration::from_millis(500), "{:?}", since.elapsed());
    }
}

/// A record has at most a thousand steps, and a claim returns them in order.
#[actix_rt::test]
async fn e26_a_record_has_at_most_a_thousand_steps() {
    let backend = open(&SERVER.url(), &fresh_prefix()).await;
    let claim = acquire("k", OnAbandoned::Resume);
    claimed(&backend, &claim).await;
    for number in 1..=1_000 {
        let message = BeginStep { policy: StepPolicy::Rerun, ..begin(&claim, &format!("step {number}"), number) };
        begun(&backend, message).await;
    }
    assert_eq!(backend.begin_step(begin(&claim, "one more", 1_001)).await, Ok(StepBegun::TooMany));
    lapse(&backend, &claim).await;
    let next = acquire("k", OnAbandoned::Resume);
    let steps = claimed(&backend, &next).await.1.unwrap();
    let names: Vec<String> = steps.list.iter().map(|step| step.name.to_string()).collect();
    assert_eq!(names, (1..=1_000).map(|number| format!("step {number}")).collect::<Vec<_>>());
    // One of them may begin again.
    let answer = backend.begin_step(begin(&next, "step 7", 1)).await;
    assert!(matches!(&answer, Ok(StepBegun::Begun { attempt, .. }) if *attempt == Attempt::new(2)), "{answer:?}");
}

/// The permissions that the guide lists suffice for the whole life of a record with steps.
#[actix_rt::test]
async fn e26_the_permissions_of_the_guide_suffice() {
    let guide = include_str!("../../../backends/guide/redis.md");
    let (_, rule) = guide.split_once("ACL SETUSER shop").unwrap();
    let (rule, _) = rule.split_once("```").unwrap();
    let server = Redis::start();
    let words: Vec<&str> = ["acl", "setuser", "shop"].into_iter().chain(rule.split_whitespace()).collect();
    assert_eq!(server.cli(&words), "OK");
    let backend = open(&format!("redis://shop:secret@127.0.0.1:{}/0", server.port()), "oncekey:").await;
    let claim = acquire("k", OnAbandoned::Resume);
    claimed(&backend, &claim).await;
    done(&backend, &claim, "charge", 1).await;
    let (run, _) = begun(&backend, begin(&claim, "mail", 2)).await;
    let fail = FailStep { key: claim.key.clone(), owner: claim.owner, name: name("mail"), run, retention: DAY };
    assert_eq!(backend.fail_step(fail).await, Ok(StepFailed::Failed));
    lapse(&backend, &claim).await;
    let next = acquire("k", OnAbandoned::Resume);
    assert_eq!(shown(claimed(&backend, &next).await.1).len(), 2);
    begun(&backend, begin(&next, "mail", 1)).await;
    let hold = Hold { key: next.key.clone(), owner: next.owner };
    assert_eq!(backend.hold(hold).await, Ok(Held::Held));
    let with = StepResolution::Release;
    let resolve = ResolveStep { key: next.key.clone(), name: name("mail"), run: None, life: None, with };
    assert_eq!(backend.resolve_step(resolve).await, Ok(Resolved::Resolved));
    let renew = Renew { key: next.key.clone(), owner: next.owner, lease: DAY };
    assert_eq!(backend.renew(renew).await, Ok(Renewed::Renewed));
    assert_eq!(backend.release(released(&next)).await, Ok(Released::Released));
    assert!(look(&backend, &next.key).await.is_some());
    assert_eq!(backend.list(List { after: None, limit: 10 }).await.unwrap().len(), 1);
    assert_eq!(backend.remove(Remove { key: next.key }).await, Ok(Removed::Removed));
}
