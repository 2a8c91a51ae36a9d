//! Checks of claims whose fate the engine does not know, and of claims that outlive a failure.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, oneshot};

use super::{Fault, Faulty, LONG, SHORT, Steps, Store, acquire, claim, fingerprint, fresh_key, outcome, until};
use crate::backend::{
    Acquire, Acquired, Backend, Complete, Completed, Lookup, Release, Released, Remove, Removed, Renew, Renewed,
    Resolution, Resolve, Resolved, StateView, Withdraw, Withdrawn,
};
use crate::record::Owner;
use crate::{Engine, Error, EventKind, FencingToken, Key, OnAbandoned, Outcome, RunError};

type Ran = Result<Outcome<u32>, RunError<&'static str>>;

async fn run(engine: &Engine, key: &Key) -> Ran {
    engine.run(key.clone(), fingerprint(), |_| async { Ok(17) }).await
}

fn is_unknown(ran: &Ran) -> bool {
    matches!(ran, Err(RunError::Engine(Error::Store(error))) if error.is_unknown())
}

/// Claims a key as the engine does: a claim that meets a withdrawal is sent again, past it.
async fn claim_past(backend: &impl Backend, message: Acquire) -> Acquired {
    match backend.acquire(message.clone()).await.unwrap() {
        Acquired::Withdrawn { owner } => {
            backend.acquire(Acquire { past_withdrawal: Some(Box::new(owner)), ..message }).await.unwrap()
        }
        other => other,
    }
}

async fn token_of(backend: &impl Backend, key: &Key, lease: Duration) -> (Owner, FencingToken) {
    let message = acquire(key, lease, OnAbandoned::Rerun);
    let owner = message.owner;
    match claim_past(backend, message).await {
        Acquired::Claimed { token, .. } => (owner, token),
        other => panic!("the key was not claimed: {other:?}"),
    }
}

/// E19: a claim's answer is lost in an outage longer than its lease and every limit. Its key is free afterwards, and
/// until then the engine reports only "nothing ran".
pub async fn e19_a_key_on_which_nothing_began_ends_free(store: &Store) {
    let faulty = Faulty::new(store.connect().await);
    let engine = Engine::builder(faulty.clone()).lease(SHORT).settling_limit(SHORT / 2).start().unwrap();
    let key = fresh_key();
    faulty.strike(Steps::Acquire, Fault::LosesAnswer);
    faulty.strike(Steps::Withdraw, Fault::Down);
    let lost = run(&engine, &key).await;
    assert!(is_unknown(&lost), "{lost:?}");
    until("tries past the lease and the limit", async || engine.pending_settlements() == 1).await;
    faulty.heal();
    until("the withdrawal", async || engine.pending_settlements() == 0).await;
    let other = store.engine(|builder| builder).await;
    assert_eq!(run(&other, &key).await.unwrap(), Outcome::Ran(17));
}

/// E19: what may have been executed is never reported as not executed, even if a later attempt cannot be sent at all.
pub async fn e19_a_lost_answer_stays_unknown(store: &Store) {
    let faulty = Faulty::new(store.connect().await);
    let engine = Engine::builder(faulty.clone()).start().unwrap();
    for fault in [Fault::LosesAnswer, Fault::BlackHole] {
        let engine = if fault == Fault::BlackHole {
            Engine::builder(faulty.clone()).store_deadline(SHORT).start().unwrap()
        } else {
            engine.clone()
        };
        let key = fresh_key();
        faulty.strike(Steps::Acquire, fault);
        let lost = run(&engine, &key).await;
        assert!(is_unknown(&lost), "{fault:?}: {lost:?}");
        faulty.heal();
        until("the withdrawal", async || run(&engine, &key).await.is_ok()).await;
    }
}

/// E20: a withdrawn claim is gone, and the same claim is refused when it arrives later.
pub async fn e20_a_withdrawn_claim_never_lands(store: &Store) {
    let (one, other) = (store.connect().await, store.connect().await);
    for landed_before in [false, true] {
        let key = fresh_key();
        let message = acquire(&key, LONG, OnAbandoned::Hold);
        if landed_before {
            assert!(matches!(one.acquire(message.clone()).await, Ok(Acquired::Claimed { .. })));
        }
        let withdraw = Withdraw { key: key.clone(), owner: message.owner };
        for _ in 0..2 {
            assert_eq!(one.withdraw(withdraw.clone()).await, Ok(Withdrawn));
        }
        assert_eq!(other.lookup(Lookup { key: key.clone() }).await, Ok(None));
        let late = other.acquire(message).await;
        assert!(!matches!(late, Ok(Acquired::Claimed { .. })), "{late:?}");
        assert_eq!(other.lookup(Lookup { key: key.clone() }).await, Ok(None), "it left something behind");
        // The key is free for all other callers.
        let (owner, _) = token_of(&other, &key, LONG).await;
        let done = Complete { key: key.clone(), owner, outcome: outcome(&key, "1"), retention: LONG };
        assert_eq!(other.complete(done).await, Ok(Completed::Stored));
        assert_eq!(one.withdraw(withdraw).await, Ok(Withdrawn), "it touches nobody else's record");
        let replay = one.acquire(acquire(&key, LONG, OnAbandoned::Hold)).await;
        assert_eq!(replay, Ok(Acquired::Completed { outcome: outcome(&key, "1") }));
    }
}

/// E20: a withdrawal does not change another holder's claim.
pub async fn e20_a_withdrawal_leaves_another_holder_alone(store: &Store) {
    let backend = store.connect().await;
    let key = fresh_key();
    let owner = claim(&backend, &key, LONG, OnAbandoned::Hold).await;
    assert_eq!(backend.withdraw(Withdraw { key: key.clone(), owner: Owner::random() }).await, Ok(Withdrawn));
    assert_eq!(backend.renew(Renew { key: key.clone(), owner, lease: LONG }).await, Ok(Renewed::Renewed));
    let answer = backend.acquire(acquire(&key, LONG, OnAbandoned::Hold)).await;
    assert!(matches!(answer, Ok(Acquired::InProgress { .. })), "{answer:?}");
    assert_eq!(backend.release(Release { key: key.clone(), owner }).await, Ok(Released::Released));
    token_of(&backend, &key, LONG).await;
}

/// E20: a withdrawn takeover of a lapsed claim never takes effect either.
pub async fn e20_a_withdrawn_takeover_never_lands(store: &Store) {
    let backend = store.connect().await;
    let key = fresh_key();
    claim(&backend, &key, SHORT, OnAbandoned::Rerun).await;
    let lapsed = async || match backend.lookup(Lookup { key: key.clone() }).await.unwrap().map(|view| view.state) {
        Some(StateView::InProgress { lease_left }) => lease_left.is_zero(),
        _ => false,
    };
    until("the lease's end", lapsed).await;
    let takeover = acquire(&key, LONG, OnAbandoned::Rerun);
    assert!(matches!(backend.acquire(takeover.clone()).await, Ok(Acquired::Claimed { took_over: true, .. })));
    assert_eq!(backend.withdraw(Withdraw { key: key.clone(), owner: takeover.owner }).await, Ok(Withdrawn));
    let late = backend.acquire(takeover).await;
    assert!(!matches!(late, Ok(Acquired::Claimed { .. })), "{late:?}");
    token_of(&backend, &key, LONG).await;
}

/// E21: an operation that reported that nothing happened frees its key, even if the store was away for longer than the
/// lease and every limit. An operation that reported that something may have happened holds its key.
pub async fn e21_what_the_process_knows_is_settled_after_a_long_outage(store: &Store) {
    let faulty = Faulty::new(store.connect().await);
    let engine = Engine::builder(faulty.clone()).lease(SHORT).settling_limit(SHORT / 2).start().unwrap();
    let engine = engine.with_on_abandoned(OnAbandoned::Rerun);
    let (failed, held) = (fresh_key(), fresh_key());
    let holding = engine.with_on_failure(crate::OnFailure::Hold);
    faulty.strike(Steps::Release, Fault::Down);
    faulty.strike(Steps::Hold, Fault::Down);
    for (engine, key) in [(&engine, &failed), (&holding, &held)] {
        let ran = engine.run(key.clone(), fingerprint(), |_| async { Err::<u32, _>("declined") }).await;
        assert!(matches!(ran, Err(RunError::Operation("declined"))), "{ran:?}");
    }
    until("both to be pending", async || engine.pending_settlements() == 2).await;
    // The hold is not stored yet. Its lease keeps every other caller out, whatever the claim's own policy says.
    let other = store.engine(|builder| builder).await;
    let until_lapsed = Instant::now() + 3 * SHORT;
    while Instant::now() < until_lapsed {
        let meanwhile = run(&other, &held).await;
        assert!(matches!(meanwhile, Err(RunError::Engine(Error::InProgress { .. }))), "{meanwhile:?}");
        tokio::time::sleep(SHORT / 6).await;
    }
    faulty.heal();
    until("both to be settled", async || engine.pending_settlements() == 0).await;
    let ran = run(&other, &held).await;
    assert!(matches!(ran, Err(RunError::Engine(Error::Indeterminate { .. }))), "{ran:?}");
    assert_eq!(run(&other, &failed).await.unwrap(), Outcome::Ran(17));
}

/// E21: past the bound a pending settlement is dropped, and an event reports it.
pub async fn e21_the_bound_drops_settlements_and_reports_each(store: &Store) {
    let faulty = Faulty::new(store.connect().await);
    let dropped = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&dropped);
    let engine = Engine::builder(faulty.clone())
        .settling_limit(SHORT)
        .max_pending_settlements(1, 1 << 20)
        .observer(move |event: &crate::Event<'_>| {
            counter.fetch_add(usize::from(event.kind == EventKind::SettlementDropped), Ordering::Relaxed);
        })
        .start()
        .unwrap();
    faulty.strike(Steps::Complete, Fault::Down);
    let keys = [fresh_key(), fresh_key()];
    let ran = join_all(keys.iter().map(|key| run(&engine, key))).await;
    for ran in ran {
        assert!(matches!(ran, Err(RunError::Engine(Error::OutcomeNotStored(_)))), "{ran:?}");
    }
    until("one to be dropped", async || dropped.load(Ordering::Relaxed) == 1).await;
    assert_eq!(engine.pending_settlements(), 1);
    faulty.heal();
    until("the other to be stored", async || engine.pending_settlements() == 0).await;
}

/// E22: a confirmation sends its own renewal. It neither waits for a renewal in flight nor takes its answer.
pub async fn e22_a_confirmation_asks_by_itself(store: &Store) {
    let faulty = Faulty::new(store.connect().await);
    let lease = Duration::from_secs(3);
    let engine = Engine::builder(faulty.clone()).lease(lease).store_deadline(lease * 2 / 3).start().unwrap();
    let (stuck, confirmed) = (faulty.clone(), Arc::new(Notify::new()));
    let tell = Arc::clone(&confirmed);
    let running = engine.run_local(fresh_key(), fingerprint(), move |claim| async move {
        stuck.strike(Steps::Renew, Fault::BlackHole);
        until("a heartbeat in a black hole", async || stuck.struck() > 0).await;
        stuck.heal();
        let asked = Instant::now();
        claim.confirm().await?;
        assert!(asked.elapsed() < lease / 2, "it waited for the heartbeat's answer");
        // A store that is away confirms nothing.
        stuck.strike(Steps::Renew, Fault::Down);
        assert!(claim.confirm().await.is_err());
        stuck.heal();
        tell.notify_one();
        Ok::<u32, Error>(17)
    });
    assert_eq!(running.await.unwrap(), Outcome::Ran(17));
    confirmed.notified().await;
}

/// E22: once another holder has the key, the former holder's confirmation fails.
pub async fn e22_a_lost_claim_is_not_confirmed(store: &Store) {
    let backend = store.connect().await;
    let engine = Engine::builder(store.connect().await).start().unwrap();
    let key = fresh_key();
    let taken = key.clone();
    let lost = engine.run_local(key, fingerprint(), move |claim| async move {
        // An operator removes the record, and another holder claims the key.
        assert_eq!(backend.remove(Remove { key: taken.clone() }).await, Ok(Removed::Removed));
        token_of(&backend, &taken, LONG).await;
        claim.confirm().await?;
        Ok::<u32, Error>(17)
    });
    let lost = lost.await;
    assert!(matches!(lost, Err(RunError::Operation(Error::ClaimLost))), "{lost:?}");
}

/// E23: past its run limit an operation is abandoned. Its key is settled by policy, waiting callers are answered, and
/// the engine keeps nothing of it.
pub async fn e23_a_run_limit_ends_the_claim(store: &Store) {
    for on_abandoned in [OnAbandoned::Hold, OnAbandoned::Rerun] {
        let limited = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&limited);
        let engine = store
            .engine(move |builder| {
                builder.max_calls_per_arbiter(2).on_abandoned(on_abandoned).observer(move |event: &crate::Event<'_>| {
                    counter.fetch_add(usize::from(event.kind == EventKind::RunLimit), Ordering::Relaxed);
                })
            })
            .await;
        let key = fresh_key();
        let (go, began) = (Arc::new(Notify::new()), oneshot::channel());
        let running = {
            let (engine, key, go) = (engine.with_run_limit(SHORT), key.clone(), Arc::clone(&go));
            actix_rt::spawn(async move {
                engine
                    .run(key, fingerprint(), move |_| async move {
                        let _ = began.0.send(());
                        go.notified().await;
                        Ok::<u32, &str>(1)
                    })
                    .await
            })
        };
        began.1.await.unwrap();
        let attempt = |claim: crate::Claim| async move { Ok::<u32, &str>(claim.attempt().get() as u32) };
        let waited = engine.with_wait(LONG).run(key.clone(), fingerprint(), attempt).await;
        match on_abandoned {
            OnAbandoned::Rerun | OnAbandoned::Resume => assert_eq!(waited.unwrap(), Outcome::Ran(2)),
            OnAbandoned::Hold => {
                assert!(matches!(waited, Err(RunError::Engine(Error::Indeterminate { .. }))), "{waited:?}");
            }
        }
        assert_eq!(limited.load(Ordering::Relaxed), 1);
        // The operation still runs but takes no place, so two more calls are admitted at once.
        let more = [fresh_key(), fresh_key()];
        let ran = join_all(more.iter().map(|key| run(&engine, key))).await;
        assert!(ran.iter().all(Result::is_ok), "{ran:?}");
        assert_eq!(engine.keys_in_flight().await, 0);
        go.notify_one();
        let late = running.await.unwrap();
        assert!(matches!(late, Err(RunError::Engine(Error::ClaimLost))), "{late:?}");
    }
}

/// A type that changes on its way through JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Receipt {
    number: f64,
    #[serde(skip)]
    note: String,
}

/// E24: the first call gets what every replay gets, even for a type that loses a field on its way.
pub async fn e24_a_replay_equals_the_first_answer(store: &Store) {
    let engine = store.engine(|builder| builder).await;
    let key = fresh_key();
    let give = |_| async { Ok::<_, ()>(Receipt { number: 0.1 + 0.2, note: "not stored".to_owned() }) };
    let first = engine.run(key.clone(), fingerprint(), give).await.unwrap();
    let replay = engine.run(key, fingerprint(), give).await.unwrap();
    assert!(!first.is_replay() && replay.is_replay());
    assert_eq!(first.into_inner(), replay.into_inner());
    let key = fresh_key();
    let (blocking, asked) = (engine.clone(), key.clone());
    let first = tokio::task::spawn_blocking(move || {
        blocking
            .run_blocking(asked, fingerprint(), |_| Ok::<_, ()>(Receipt { number: 1.0, note: "not stored".to_owned() }))
    });
    let first = first.await.unwrap().unwrap().into_inner();
    assert_eq!(first, engine.run(key, fingerprint(), give).await.unwrap().into_inner());
}

/// E24: a value that cannot be stored is an error before anything is stored, and the operation does not run again.
pub async fn e24_a_value_that_cannot_be_stored_is_an_error(store: &Store) {
    let engine = store.engine(|builder| builder).await;
    let numbers = [fresh_key(), fresh_key()];
    for (key, number) in numbers.iter().zip([f64::NAN, f64::NEG_INFINITY]) {
        let ran = engine.run(key.clone(), fingerprint(), move |_| async move { Ok::<_, ()>(Some(number)) }).await;
        assert!(matches!(ran, Err(RunError::Engine(Error::Unserializable(_)))), "{ran:?}");
    }
    let nested = fresh_key();
    let ran = engine.run(nested.clone(), fingerprint(), |_| async { Ok::<_, ()>(Some(())) }).await;
    assert!(matches!(ran, Err(RunError::Engine(Error::Unserializable(_)))), "{ran:?}");
    for key in numbers.iter().chain([&nested]) {
        let again = run(&engine, key).await;
        assert!(matches!(again, Err(RunError::Engine(Error::Indeterminate { .. }))), "{again:?}");
    }
}

/// E25: a fencing token never goes back, however the previous claim ended.
pub async fn e25_a_fencing_token_never_goes_back(store: &Store) {
    let backend = store.connect().await;
    let key = fresh_key();
    let (mut owner, mut last) = token_of(&backend, &key, LONG).await;
    let shown = backend.lookup(Lookup { key: key.clone() }).await.unwrap().unwrap();
    assert_eq!(shown.token, last);
    for round in 0..3 {
        let mut next = async |what: &str, lease: Duration| {
            let (owner, token) = token_of(&backend, &key, lease).await;
            assert!(token > last, "after {what}, in round {round}: {last} was followed by {token}");
            last = token;
            owner
        };
        assert_eq!(backend.release(Release { key: key.clone(), owner }).await, Ok(Released::Released));
        next("a release", LONG).await;
        assert_eq!(backend.remove(Remove { key: key.clone() }).await, Ok(Removed::Removed));
        owner = next("a removal", LONG).await;
        let hold = crate::backend::Hold { key: key.clone(), owner };
        assert_eq!(backend.hold(hold).await, Ok(crate::backend::Held::Held));
        let resolve = Resolve { key: key.clone(), attempt: None, owner: Some(owner), with: Resolution::Release };
        assert_eq!(backend.resolve(resolve).await, Ok(Resolved::Resolved));
        owner = next("a resolution", LONG).await;
        assert_eq!(backend.withdraw(Withdraw { key: key.clone(), owner }).await, Ok(Withdrawn));
        next("a withdrawal", SHORT).await;
        let lapsed = async || match backend.lookup(Lookup { key: key.clone() }).await.unwrap().map(|view| view.state) {
            Some(StateView::InProgress { lease_left }) => lease_left.is_zero(),
            _ => false,
        };
        until("the lease's end", lapsed).await;
        owner = next("a takeover", LONG).await;
    }
    // A record whose retention has ended may have been purged.
    let key = fresh_key();
    let (owner, first) = token_of(&backend, &key, LONG).await;
    let done = Complete { key: key.clone(), owner, outcome: outcome(&key, "1"), retention: SHORT };
    assert_eq!(backend.complete(done).await, Ok(Completed::Stored));
    until("the retention's end", async || backend.lookup(Lookup { key: key.clone() }).await.unwrap().is_none()).await;
    assert!(token_of(&backend, &key, LONG).await.1 > first);
}

/// E25: the operation receives its claim's token.
pub async fn e25_the_operation_has_its_fencing_token(store: &Store) {
    let engine = store.engine(|builder| builder).await;
    let key = fresh_key();
    let mut last = FencingToken::ZERO;
    for _ in 0..3 {
        let failed = engine
            .run::<(), _, _, _>(key.clone(), fingerprint(), |claim| async move { Err(claim.fencing_token()) })
            .await;
        let Err(RunError::Operation(token)) = failed else { panic!("{failed:?}") };
        assert!(token > last, "{last} was followed by {token}");
        last = token;
    }
}

/// E28: what a waiting caller held is freed when it leaves.
pub async fn e28_a_caller_that_leaves_holds_nothing(store: &Store) {
    const CALLERS: usize = 100;
    let (backend, key) = (store.connect().await, fresh_key());
    // The key is held by another engine, and then by this one.
    for is_here in [false, true] {
        let engine = store.engine(|builder| builder.max_calls_per_arbiter(CALLERS + 1)).await;
        let waiting_for = if is_here { fresh_key() } else { key.clone() };
        let go = Arc::new(Notify::new());
        let running = if is_here {
            let running = {
                let (engine, key, go) = (engine.clone(), waiting_for.clone(), Arc::clone(&go));
                actix_rt::spawn(async move {
                    let wait = move |_| async move {
                        go.notified().await;
                        Ok::<u32, &str>(17)
                    };
                    engine.run(key, fingerprint(), wait).await
                })
            };
            until("the operation's begin", async || engine.lookup(&waiting_for).await.unwrap().is_some()).await;
            Some(running)
        } else {
            claim(&backend, &key, LONG, OnAbandoned::Hold).await;
            None
        };
        let patient = engine.with_wait(LONG);
        let mut callers: Vec<_> = (0..CALLERS)
            .map(|_| {
                let (patient, key) = (patient.clone(), waiting_for.clone());
                Box::pin(async move { run(&patient, &key).await })
            })
            .collect();
        let all = join_all(callers.iter_mut());
        assert!(tokio::time::timeout(SHORT, all).await.is_err(), "nobody waited");
        // With the operation that runs here, or with one more call, the arbiter is full.
        let one_more = run(&engine, &fresh_key()).await;
        assert_eq!(one_more.is_ok(), !is_here, "{one_more:?}");
        drop(callers);
        until("the callers' places", async || {
            let more: Vec<_> = (0..CALLERS).map(|_| fresh_key()).collect();
            join_all(more.iter().map(|key| run(&engine, key))).await.iter().all(Result::is_ok)
        })
        .await;
        if let Some(running) = running {
            go.notify_one();
            assert_eq!(running.await.unwrap().unwrap(), Outcome::Ran(17));
        }
        until("the locks' end", async || engine.keys_in_flight().await == 0).await;
        until("the actors' end", async || engine.key_lock_actors() == 0).await;
    }
}

/// E01: callers of one arbiter that meet at a fresh key cost the store one claim, and share its answer.
pub async fn e01_callers_of_one_arbiter_share_one_claim(store: &Store) {
    let faulty = Faulty::new(store.connect().await);
    let engine = Engine::builder(faulty.clone()).start().unwrap().with_wait(LONG);
    let key = fresh_key();
    let ran = join_all((0..64).map(|_| run(&engine, &key))).await;
    let first = ran.iter().filter(|ran| matches!(ran, Ok(Outcome::Ran(17)))).count();
    let replayed = ran.iter().filter(|ran| matches!(ran, Ok(Outcome::Replayed(17)))).count();
    assert_eq!((first, replayed), (1, 63));
    assert_eq!(faulty.asked(Steps::Acquire), 1, "one question a key");
    // The same holds for a completed key.
    let ran = join_all((0..64).map(|_| run(&engine, &key))).await;
    assert!(ran.iter().all(|ran| matches!(ran, Ok(Outcome::Replayed(17)))));
    // Callers with another request under the key do not share that answer.
    let fresh = fresh_key();
    let others = (0..16).map(|number: u32| {
        let (engine, key) = (engine.clone(), fresh.clone());
        async move { engine.run(key, &(number % 2), move |_| async move { Ok::<_, &str>(number % 2) }).await }
    });
    let ran = join_all(others).await;
    let mismatches = ran.iter().filter(|ran| matches!(ran, Err(RunError::Engine(Error::Mismatch)))).count();
    assert_eq!((ran.iter().filter(|ran| ran.is_ok()).count(), mismatches), (8, 8), "{ran:?}");
}

/// E16: while the engine drains, completed keys replay and waiting callers get their outcome. Only new claims are
/// refused.
pub async fn e16_a_draining_engine_answers_what_it_can(store: &Store) {
    let engine = store.engine(|builder| builder).await;
    let (done, key, go) = (fresh_key(), fresh_key(), Arc::new(Notify::new()));
    assert_eq!(run(&engine, &done).await.unwrap(), Outcome::Ran(17));
    let running = {
        let (engine, key, go) = (engine.clone(), key.clone(), Arc::clone(&go));
        actix_rt::spawn(async move {
            let wait = move |_| async move {
                go.notified().await;
                Ok::<u32, &str>(17)
            };
            engine.run(key, fingerprint(), wait).await
        })
    };
    until("the operation's begin", async || engine.lookup(&key).await.unwrap().is_some()).await;
    let waiting = {
        let (engine, key) = (engine.with_wait(LONG), key.clone());
        actix_rt::spawn(async move { run(&engine, &key).await })
    };
    assert!(engine.is_accepting());
    let ending = {
        let engine = engine.clone();
        actix_rt::spawn(async move { engine.shutdown(LONG).await })
    };
    until("the engine's closing", async || !engine.is_accepting()).await;
    assert_eq!(run(&engine, &done).await.unwrap(), Outcome::Replayed(17));
    let other = engine.run(done.clone(), &"something else", |_| async { Ok::<u32, &str>(0) }).await;
    assert!(matches!(other, Err(RunError::Engine(Error::Mismatch))), "{other:?}");
    let late = run(&engine, &fresh_key()).await;
    assert!(matches!(late, Err(RunError::Engine(Error::ShuttingDown))), "{late:?}");
    go.notify_one();
    assert_eq!(running.await.unwrap().unwrap(), Outcome::Ran(17));
    assert_eq!(waiting.await.unwrap().unwrap(), Outcome::Replayed(17));
    assert_eq!(ending.await.unwrap().unfinished, 0);
    assert_eq!(run(&engine, &key).await.unwrap(), Outcome::Replayed(17), "after the drain too");
}
