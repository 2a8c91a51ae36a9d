//! The steps of operations, through the file.

use std::time::Duration;

use oncekey::backend::{
    Acquired, Backend as _, BeginStep, CompleteStep, Completed, FailStep, Hold, List, Lookup, Purge, Purged, Release,
    Released, Remove, Removed, Renew, Renewed, Reply, Request, Resolution, Resolve, ResolveStep, Resolved, StateView,
    Stats, StepBegun, StepCompleted, StepFailed, StepResolution, StoreError, StoreStats, Withdraw, Withdrawn,
};
use oncekey::record::{Progress, StepName, StepRun, Steps};
use oncekey::{Attempt, FencingToken, OnAbandoned, StepPolicy};

use super::*;

pub(super) fn name(name: &str) -> StepName {
    StepName::new(name).unwrap()
}

pub(super) fn begin(key: &Key, owner: Owner, step: &str, number: u32) -> BeginStep {
    BeginStep {
        key: key.clone(),
        owner,
        name: name(step),
        fingerprint: None,
        number,
        policy: StepPolicy::Hold,
        retention: DAY,
    }
}

pub(super) fn end(key: &Key, life: FencingToken, run: StepRun, step: &str) -> CompleteStep {
    CompleteStep { key: key.clone(), life, name: name(step), run, outcome: outcome(key, step) }
}

/// Begins a step, and gives its run and its parent's life.
async fn begun(backend: &SqliteBackend, message: BeginStep) -> (StepRun, FencingToken) {
    match backend.begin_step(message).await.unwrap() {
        StepBegun::Begun { run, life, .. } => (run, life),
        other => panic!("{other:?}"),
    }
}

/// Runs a step to its end.
pub(super) async fn done(backend: &SqliteBackend, key: &Key, owner: Owner, step: &str, number: u32) -> FencingToken {
    let (run, life) = begun(backend, begin(key, owner, step, number)).await;
    assert_eq!(backend.complete_step(end(key, life, run, step)).await, Ok(StepCompleted::Stored));
    life
}

pub(super) async fn steps(backend: &SqliteBackend, key: &Key) -> Option<Box<Steps>> {
    backend.lookup(Lookup { key: key.clone() }).await.unwrap().unwrap().steps
}

fn progress(steps: &Steps) -> Vec<(&str, &str)> {
    steps.list.iter().map(|step| (step.name.as_str(), step.progress.name())).collect()
}

fn rows(backend: &SqliteBackend) -> i64 {
    diesel::dsl::sql::<diesel::sql_types::BigInt>("SELECT count(*) FROM oncekey_steps")
        .get_result(&mut beside(backend))
        .unwrap()
}

fn resuming(key: &Key, owner: Owner, lease: Duration) -> Acquire {
    Acquire { lease, on_abandoned: OnAbandoned::Resume, ..claim(key, owner) }
}

const LAPSING: Duration = Duration::from_millis(5);

/// Lets a claim lapse.
async fn lapse(backend: &SqliteBackend, key: &Key, owner: Owner) {
    let renew = Renew { key: key.clone(), owner, lease: LAPSING };
    assert_eq!(backend.renew(renew).await, Ok(Renewed::Renewed));
    tokio::time::sleep(LAPSING * 2).await;
}

#[actix_rt::test]
async fn e26_a_takeover_brings_all_steps_and_continues() {
    let (_folder, backend) = fresh();
    let (key, first, second) = (key(1), Owner::random(), Owner::random());
    assert!(is_claimed(&backend, resuming(&key, first, LEASE)).await);
    let life = done(&backend, &key, first, "reserve", 1).await;
    assert_eq!(done(&backend, &key, first, "charge", 2).await, life);
    lapse(&backend, &key, first).await;
    // A stale parent begins nothing, nor does it replay.
    for step in ["charge", "mail"] {
        assert_eq!(backend.begin_step(begin(&key, first, step, 3)).await, Ok(StepBegun::Lost));
    }
    let answer = backend.acquire(resuming(&key, second, LEASE)).await.unwrap();
    let Acquired::Claimed { attempt, token, took_over: true, steps: Some(found) } = answer else {
        panic!("{answer:?}")
    };
    assert_eq!((attempt, found.life, found.retention), (Attempt::new(2), life, DAY));
    assert!(token > life);
    assert_eq!(progress(&found), [("reserve", "completed"), ("charge", "completed")]);
    assert_eq!(steps(&backend, &key).await, Some(found));
    // A second request by the same owner gets the same answer.
    let again = backend.acquire(resuming(&key, second, LEASE)).await.unwrap();
    assert!(matches!(again, Acquired::Claimed { took_over: false, steps: Some(_), .. }), "{again:?}");
    let replayed = backend.begin_step(begin(&key, second, "charge", 1)).await;
    assert_eq!(replayed, Ok(StepBegun::Completed { outcome: outcome(&key, "charge"), life }));
    assert_eq!(done(&backend, &key, second, "mail", 2).await, life);
    assert_eq!(backend.complete(completion(&key, second)).await, Ok(Completed::Stored));
    assert_eq!(progress(&steps(&backend, &key).await.unwrap()).len(), 3, "kept until the retention ends");
}

#[actix_rt::test]
async fn e26_a_released_parent_keeps_its_steps_and_its_fingerprint() {
    let (_folder, backend) = fresh();
    let (key, owner) = (key(1), Owner::random());
    assert!(is_claimed(&backend, claim(&key, owner)).await);
    let life = done(&backend, &key, owner, "charge", 1).await;
    assert_eq!(backend.release(Release { key: key.clone(), owner }).await, Ok(Released::Released));
    let view = backend.lookup(Lookup { key: key.clone() }).await.unwrap().unwrap();
    assert!(matches!(view.state, StateView::Released { expires_in } if expires_in > DAY / 2), "{view:?}");
    let listed = backend.list(List { after: None, limit: 10 }).await.unwrap();
    assert_eq!(listed.iter().map(|listed| &listed.steps).collect::<Vec<_>>(), [&view.steps]);
    assert_eq!(backend.stats(Stats).await, Ok(StoreStats { released: 1, ..StoreStats::default() }));
    let other = Acquire { fingerprint: Fingerprint::of(b"other"), ..claim(&key, Owner::random()) };
    assert_eq!(backend.acquire(other).await, Ok(Acquired::Mismatch));
    let answer = backend.acquire(claim(&key, Owner::random())).await.unwrap();
    let Acquired::Claimed { took_over: false, steps: Some(found), .. } = answer else { panic!("{answer:?}") };
    assert_eq!((found.life, progress(&found)), (life, vec![("charge", "completed")]));
    // Without steps, a release leaves nothing.
    let (plain, owner) = (super::key("plain"), Owner::random());
    assert!(is_claimed(&backend, claim(&plain, owner)).await);
    assert_eq!(backend.release(Release { key: plain.clone(), owner }).await, Ok(Released::Released));
    assert_eq!(backend.lookup(Lookup { key: plain }).await, Ok(None));
}

#[actix_rt::test]
async fn e26_an_unsettled_step_outranks_its_parents_release_until_it_is_resolved() {
    let (_folder, backend) = fresh();
    let (key, owner) = (key(1), Owner::random());
    assert!(is_claimed(&backend, resuming(&key, owner, LEASE)).await);
    done(&backend, &key, owner, "reserve", 1).await;
    let (run, life) = begun(&backend, begin(&key, owner, "charge", 2)).await;
    let unsettled = Ok(Released::Unsettled { step: name("charge") });
    assert_eq!(backend.release(Release { key: key.clone(), owner }).await, unsettled);
    let answer = backend.acquire(resuming(&key, Owner::random(), LEASE)).await;
    assert!(matches!(answer, Ok(Acquired::Indeterminate { .. })), "{answer:?}");
    let release = Resolve { key: key.clone(), attempt: None, owner: None, with: Resolution::Release };
    assert_eq!(backend.resolve(release).await, Ok(Resolved::UnsettledStep { step: name("charge") }));
    // Nothing of it goes away by itself.
    assert_eq!(backend.purge(Purge { limit: 10 }).await, Ok(Purged { removed: 0, more: false }));
    let with = StepResolution::Complete { outcome: outcome(&key, "by hand") };
    let word = ResolveStep { key: key.clone(), name: name("charge"), run: Some(run), life: Some(life), with };
    let late = ResolveStep { run: Some(StepRun { number: 1, ..run }), ..word.clone() };
    assert_eq!(backend.resolve_step(late).await, Ok(Resolved::NotIndeterminate));
    assert_eq!(backend.resolve_step(word).await, Ok(Resolved::Resolved));
    // What ran says so too late.
    assert_eq!(backend.complete_step(end(&key, life, run, "charge")).await, Ok(StepCompleted::Stored));
    let answer = backend.acquire(resuming(&key, Owner::random(), LEASE)).await.unwrap();
    let Acquired::Claimed { steps: Some(found), .. } = answer else { panic!("{answer:?}") };
    assert_eq!(found.list[1].progress, Progress::Completed(outcome(&key, "by hand")));
}

#[actix_rt::test]
async fn e26_a_step_that_failed_may_run_again_and_its_late_begin_never_lands() {
    let (_folder, backend) = fresh();
    let (key, owner) = (key(1), Owner::random());
    assert!(is_claimed(&backend, claim(&key, owner)).await);
    let (run, _) = begun(&backend, begin(&key, owner, "charge", 1)).await;
    let fail = |run| FailStep { key: key.clone(), owner, name: name("charge"), run, retention: DAY };
    assert_eq!(backend.fail_step(fail(run)).await, Ok(StepFailed::Failed));
    assert_eq!(backend.begin_step(begin(&key, owner, "charge", 1)).await, Ok(StepBegun::Lost));
    // Failed before it began.
    let early = StepRun { number: 2, ..run };
    assert_eq!(backend.fail_step(fail(early)).await, Ok(StepFailed::Failed));
    assert_eq!(backend.begin_step(begin(&key, owner, "charge", 2)).await, Ok(StepBegun::Lost));
    let again = backend.begin_step(begin(&key, owner, "charge", 3)).await.unwrap();
    assert!(matches!(again, StepBegun::Begun { attempt, .. } if attempt == Attempt::new(2)), "{again:?}");
    assert_eq!(steps(&backend, &key).await.unwrap().list.len(), 1);
}

/// Renewals, holds and withdrawals do not look at the outcomes of steps, and lose none.
#[actix_rt::test]
async fn e26_other_transitions_keep_the_steps() {
    let (_folder, backend) = fresh();
    let (key, owner) = (key(1), Owner::random());
    assert!(is_claimed(&backend, claim(&key, owner)).await);
    done(&backend, &key, owner, "charge", 1).await;
    let kept = steps(&backend, &key).await;
    for _ in 0..2 {
        let renew = Renew { key: key.clone(), owner, lease: LEASE };
        assert_eq!(backend.renew(renew).await, Ok(Renewed::Renewed));
        assert_eq!(steps(&backend, &key).await, kept);
        backend.hold(Hold { key: key.clone(), owner }).await.unwrap();
        assert_eq!(steps(&backend, &key).await, kept);
    }
    assert_eq!(backend.withdraw(Withdraw { key: key.clone(), owner }).await, Ok(Withdrawn));
    assert_eq!(steps(&backend, &key).await, kept);
    assert_eq!(backend.remove(Remove { key: key.clone() }).await, Ok(Removed::Removed));
    assert_eq!(rows(&backend), 0);
}

#[actix_rt::test]
async fn e26_a_later_life_of_a_key_sees_no_step_of_an_earlier_one() {
    let (_folder, backend) = fresh();
    let (key, owner) = (key(1), Owner::random());
    assert!(is_claimed(&backend, claim(&key, owner)).await);
    let (run, life) = begun(&backend, begin(&key, owner, "charge", 1)).await;
    assert_eq!(backend.complete_step(end(&key, life, run, "charge")).await, Ok(StepCompleted::Stored));
    let short = Complete { retention: Duration::from_millis(1), ..completion(&key, owner) };
    assert_eq!(backend.complete(short).await, Ok(Completed::Stored));
    tokio::time::sleep(LAPSING).await;
    let next = Owner::random();
    let answer = backend.acquire(claim(&key, next)).await;
    assert!(matches!(answer, Ok(Acquired::Claimed { attempt: Attempt::FIRST, steps: None, .. })), "{answer:?}");
    assert_eq!((steps(&backend, &key).await, rows(&backend)), (None, 0));
    // A late completion of the earlier life finds nothing of it.
    begun(&backend, begin(&key, next, "charge", 1)).await;
    assert_eq!(backend.complete_step(end(&key, life, run, "charge")).await, Ok(StepCompleted::Lost));
}

#[actix_rt::test]
async fn e26_a_parent_has_a_thousand_steps_and_no_more() {
    let (_folder, backend) = fresh();
    let (key, owner) = (key(1), Owner::random());
    assert!(is_claimed(&backend, resuming(&key, owner, LEASE)).await);
    done(&backend, &key, owner, "step 0", 1).await;
    let sql = "INSERT INTO oncekey_steps
               WITH RECURSIVE more (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM more WHERE n < 998)
               SELECT record_id, n, life, 'step ' || n, fingerprint, attempt, run_token, n + 1, began_at, reruns_until,
               progress, outcome FROM more, oncekey_steps";
    beside(&backend).batch_execute(sql).unwrap();
    let (run, life) = begun(&backend, begin(&key, owner, "step 999", 1_000)).await;
    assert_eq!(backend.begin_step(begin(&key, owner, "step 1000", 1_001)).await, Ok(StepBegun::TooMany));
    // Those that are there go on.
    assert_eq!(backend.complete_step(end(&key, life, run, "step 999")).await, Ok(StepCompleted::Stored));
    let replayed = backend.begin_step(begin(&key, owner, "step 999", 1_002)).await;
    assert_eq!(replayed, Ok(StepBegun::Completed { outcome: outcome(&key, "step 999"), life }));
    lapse(&backend, &key, owner).await;
    let answer = backend.acquire(resuming(&key, Owner::random(), LEASE)).await.unwrap();
    let Acquired::Claimed { took_over: true, steps: Some(found), .. } = answer else { panic!("{answer:?}") };
    assert_eq!(found.list.len(), Steps::MAX);
    assert!((0..).zip(&found.list).all(|(n, step)| step.name.as_str() == format!("step {n}")));
}

#[actix_rt::test]
async fn e14_a_purge_counts_steps() {
    let (_folder, backend) = fresh();
    for family in ["a", "b"] {
        let (key, owner) = (key(family), Owner::random());
        assert!(is_claimed(&backend, claim(&key, owner)).await);
        for number in 1..5 {
            done(&backend, &key, owner, &format!("step {number}"), number).await;
        }
        backend.complete(Complete { retention: Duration::ZERO, ..completion(&key, owner) }).await.unwrap();
    }
    for plain in ["c", "d"] {
        let (key, owner) = (key(plain), Owner::random());
        assert!(is_claimed(&backend, claim(&key, owner)).await);
        backend.complete(Complete { retention: Duration::ZERO, ..completion(&key, owner) }).await.unwrap();
    }
    // One record with its four steps, and no part of the next.
    assert_eq!(backend.purge(Purge { limit: 6 }).await, Ok(Purged { removed: 1, more: true }));
    assert_eq!(rows(&backend), 4);
    // A family that is larger than the limit goes all the same, by itself.
    assert_eq!(backend.purge(Purge { limit: 3 }).await, Ok(Purged { removed: 1, more: true }));
    assert_eq!(rows(&backend), 0);
    assert_eq!(backend.purge(Purge { limit: 3 }).await, Ok(Purged { removed: 2, more: false }));
}

#[actix_rt::test]
async fn e13_a_corrupt_step_is_an_error_of_its_own_key_alone() {
    let (_folder, backend) = fresh();
    let damages = [
        "UPDATE oncekey_steps SET progress = 7",
        "UPDATE oncekey_steps SET name = ''",
        "UPDATE oncekey_steps SET fingerprint = x'00'",
        "UPDATE oncekey_steps SET run_number = -1",
        "UPDATE oncekey_steps SET outcome = NULL",
        "UPDATE oncekey_steps SET position = 3",
        "UPDATE oncekey_steps SET life = life + 1",
        "DELETE FROM oncekey_steps",
        "UPDATE oncekey_records SET steps_retention = NULL",
        "UPDATE oncekey_records SET steps_life = -1",
    ];
    for damage in damages {
        let (damaged, sound, owner) = (key("damaged"), key("sound"), Owner::random());
        assert!(is_claimed(&backend, claim(&damaged, owner)).await);
        done(&backend, &damaged, owner, "charge", 1).await;
        beside(&backend).batch_execute(damage).unwrap();
        assert!(is_claimed(&backend, claim(&sound, owner)).await);
        done(&backend, &sound, owner, "charge", 1).await;
        let answer = backend.acquire(claim(&damaged, owner)).await;
        assert!(matches!(answer, Err(StoreError::Corrupt(_))), "{damage}: {answer:?}");
        let answer = backend.begin_step(begin(&damaged, owner, "charge", 2)).await;
        assert!(matches!(answer, Err(StoreError::Corrupt(_))), "{damage}: {answer:?}");
        assert!(matches!(backend.lookup(Lookup { key: damaged.clone() }).await, Err(StoreError::Corrupt(_))));
        // An operator gets rid of it, with its steps.
        for key in [damaged, sound] {
            assert_eq!(backend.remove(Remove { key }).await, Ok(Removed::Removed), "{damage}");
        }
        beside(&backend)
            .batch_execute("DELETE FROM oncekey_steps WHERE record_id NOT IN (SELECT id FROM oncekey_records)")
            .unwrap();
    }
}

/// A step is not half there: what one transaction writes of it and its parent is seen together, also by readers beside it.
#[actix_rt::test]
async fn e26_lookups_see_a_parent_with_all_its_steps_or_none() {
    let (_folder, backend) = fresh();
    let key = key(1);
    let writing = {
        let (backend, key) = (backend.clone(), key.clone());
        actix_rt::spawn(async move {
            for _ in 0..100 {
                let owner = Owner::random();
                let mut answer = backend.acquire(claim(&key, owner)).await.unwrap();
                if let Acquired::Withdrawn { owner: withdrawn } = answer {
                    let past_withdrawal = Some(Box::new(withdrawn));
                    answer = backend.acquire(Acquire { past_withdrawal, ..claim(&key, owner) }).await.unwrap();
                }
                assert!(matches!(answer, Acquired::Claimed { .. }), "{answer:?}");
                done(&backend, &key, owner, "charge", 1).await;
                backend.remove(Remove { key: key.clone() }).await.unwrap();
            }
        })
    };
    let mut seen = [0_u32; 2];
    while !writing.is_finished() {
        // A parent whose steps were read after its removal would be corrupt.
        let found = backend.lookup(Lookup { key: key.clone() }).await.unwrap();
        let listed = backend.list(List { after: None, limit: 10 }).await.unwrap();
        for view in found.into_iter().chain(listed) {
            seen[usize::from(view.steps.is_some())] += 1;
        }
    }
    writing.await.unwrap();
    assert!(seen[1] > 0, "no look-up met a step: {seen:?}");
}

#[actix_rt::test]
async fn e26_a_batch_of_steps_is_in_order_for_its_key() {
    let (_folder, backend) = fresh();
    let (key, owner) = (key(1), Owner::random());
    assert!(is_claimed(&backend, claim(&key, owner)).await);
    let (answered, answers) = std::sync::mpsc::channel();
    let lookup = || {
        let answered = answered.clone();
        Request::Lookup(Lookup { key: key.clone() }, Reply::new(move |answer| answered.send(answer).unwrap()))
    };
    let token = backend.lookup(Lookup { key: key.clone() }).await.unwrap().unwrap().token;
    let run = StepRun { token, number: 1 };
    let batch = vec![
        lookup(),
        Request::BeginStep(Box::new(begin(&key, owner, "charge", 1)), Reply::new(drop)),
        lookup(),
        Request::CompleteStep(Box::new(end(&key, token, run, "charge")), Reply::new(drop)),
        lookup(),
    ];
    backend.execute(batch).await;
    let progress = |found: oncekey::backend::RecordView| {
        found.steps.map_or("none", |steps| steps.list.first().map_or("empty", |step| step.progress.name()))
    };
    let found: Vec<_> = answers.try_iter().map(|answer| progress(answer.unwrap().unwrap())).collect();
    assert_eq!(found[1..], ["begun", "completed"], "{found:?}");
}
