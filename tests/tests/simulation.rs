//! The real engine in a simulated world: 500 seeds, or as many as `ONCEKEY_SIMULATION_SEEDS` says.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test, what fails fails the test")]
#![expect(clippy::print_stdout, reason = "what was simulated is told")]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use oncekey::{Engine, Error, OnAbandoned, Outcome, RunError};
use tests::simulation::{LEASE, Mode, Process, Sabotage, SimulatedStore, call, keys, on_virtual_time, run};

/// No effect happens twice, no outcome is lost or changed, and no key is stuck, whatever went wrong before.
#[test]
fn e06_no_promise_breaks_in_a_simulated_world() {
    let seeds = std::env::var("ONCEKEY_SIMULATION_SEEDS").map_or(500, |seeds| seeds.parse().unwrap());
    let mut faults = BTreeMap::<_, u64>::new();
    let (mut calls, mut answered) = (0, 0);
    for seed in 0..seeds {
        let report = run(seed, None);
        assert!(report.violations.is_empty(), "{report}");
        report.faults.into_iter().for_each(|(kind, times)| *faults.entry(kind).or_default() += times);
        (calls, answered) = (calls + report.calls, answered + report.answered);
    }
    println!("{seeds} seeds, {calls} calls, {answered} answered, {faults:?}");
    assert_eq!(faults.len(), 22, "some faults never struck: {faults:?}");
    assert!(faults.values().all(|times| *times * 5 >= seeds), "some faults struck rarely: {faults:?}");
    assert!(answered * 3 >= calls, "{answered} of {calls} calls had an outcome: the faults leave nothing to look at");
}

/// A failing seed can be reproduced, here and in another process.
#[test]
fn e06_a_seed_replays_exactly() {
    let report = run(7, None);
    run(8, None);
    assert_eq!(run(7, None), report);
    assert_ne!(run(8, None).trace, report.trace);
    let elsewhere = Command::new(env!("CARGO_BIN_EXE_simulation")).arg("7").output().unwrap();
    let elsewhere = String::from_utf8(elsewhere.stdout).unwrap();
    assert_eq!(elsewhere.lines().next(), Some(&*report.to_string()));
}

/// The control: with the guard removed, the same runs break promises.
#[test]
fn e06_the_simulation_notices_a_store_that_breaks_its_word() {
    for sabotage in [
        Sabotage::LeasesForgotten,
        Sabotage::OwnersIgnored,
        Sabotage::OutcomesDropped,
        Sabotage::StepsUnfenced,
        Sabotage::StepsForgotten,
    ] {
        let found = (0..200).map(|seed| run(seed, Some(sabotage))).find(|report| !report.violations.is_empty());
        let report = found.unwrap_or_else(|| panic!("{sabotage:?} went unnoticed"));
        println!("{sabotage:?}: {report}");
    }
}

/// A claim whose grant arrives only after its lease is not used: a resolver that saw no holder may have resolved the
/// key in the meantime.
#[test]
fn e06_a_grant_that_is_heard_after_its_lease_is_given_back() {
    on_virtual_time(1, async |world| {
        world.heal();
        let (key, _) = keys().remove(0);
        let process = Process::start(&world, 0);
        let slow = process.engine.clone();
        let run = async |engine: &oncekey::Engine| {
            let ran = world.clone();
            let key = key.clone();
            engine.run(key.clone(), &"the same", move |_| async move { Ok::<u64, ()>(ran.effect(&key)) }).await
        };
        world.slows_acquires(LEASE);
        let told = run(&slow).await;
        assert!(matches!(&told, Err(RunError::Engine(Error::Store(error))) if error.is_unknown()), "{told:?}");
        assert_eq!(world.effects_of(&key), 0);
        world.slows_acquires(std::time::Duration::ZERO);
        tokio::time::sleep(LEASE).await;
        assert!(!run(&slow).await.unwrap().is_replay(), "the claim was not given back");
        assert_eq!(world.effects_of(&key), 1);
    });
}

/// A key whose claim is on its way to the store is in flight. A shutdown waits for it, as it does for granted claims.
#[test]
fn e16_a_shutdown_waits_for_a_claim_that_is_on_its_way() {
    on_virtual_time(1, async |world| {
        world.heal();
        let (key, _) = keys().remove(0);
        let process = Process::start(&world, 0);
        world.slows_acquires(LEASE / 3);
        let (engine, ran, called) = (process.engine.clone(), world.clone(), key.clone());
        let running = actix_rt::spawn(async move {
            let effect = move |_| async move { Ok::<u64, ()>(ran.effect(&called)) };
            engine.run(key, &"the same", effect).await
        });
        tokio::time::sleep(LEASE / 12).await;
        assert_eq!(process.engine.keys_in_flight().await, 1);
        let ended = process.engine.shutdown(LEASE).await;
        assert_eq!(ended.unfinished, 0);
        // It was settled before the shutdown reported that nothing is in flight.
        assert!(running.is_finished());
        assert!(!running.await.unwrap().unwrap().is_replay());
    });
}

/// A transaction whose commit succeeded and whose answer was lost is found again: its caller has the outcome, and
/// nothing runs twice.
#[test]
fn e12_a_lost_answer_to_a_commit_is_found_again() {
    on_virtual_time(1, async |world| {
        world.heal();
        let (key, mode) = keys().remove(1);
        assert_eq!(mode, Mode::Transaction);
        let process = Process::start(&world, 0);
        world.loses_a_commit();
        let told = call(&world, &process.engine, &process.life, &key, mode).await.unwrap();
        assert_eq!((world.commits_to_lose(), world.effects_of(&key), told.is_replay()), (0, 1, false));
        let again = call(&world, &process.engine, &process.life, &key, mode).await.unwrap();
        assert!(again.is_replay() && again.into_inner() == told.into_inner());
    });
}

/// An operation that commits by itself has ended its transaction, and it is unknown which writes were kept. The key is
/// held until it is resolved, and nothing runs twice.
#[test]
fn e12_a_transaction_that_its_operation_has_ended_is_held() {
    on_virtual_time(1, async |world| {
        world.heal();
        let (key, mode) = keys().remove(1);
        assert_eq!(mode, Mode::Transaction);
        let process = Process::start(&world, 0);
        let call = async || call(&world, &process.engine, &process.life, &key, mode).await;
        world.ends_a_transaction();
        let told = call().await;
        assert!(matches!(told, Err(RunError::Engine(Error::OutcomeNotStored(_)))), "{told:?}");
        // The first of these calls invokes the reconciler, which knows the ledger.
        let mut told = call().await;
        for _ in 0..5 {
            tokio::time::sleep(LEASE).await;
            told = call().await;
        }
        assert!(told.is_ok_and(|outcome| outcome.is_replay()));
        assert_eq!(world.effects_of(&key), 1);
    });
}

/// What a waiting caller held is freed when the caller leaves: here its place among the arbiter's calls.
#[test]
fn e28_callers_that_leave_give_their_places_back() {
    on_virtual_time(1, async |world| {
        world.heal();
        let (key, _) = keys().remove(0);
        let store = SimulatedStore::new(world.clone(), world.is_born(0));
        let engine = Engine::builder(store).lease(LEASE).max_calls_per_arbiter(4).start().unwrap();
        let calls = |wait| {
            let (engine, key) = (engine.with_wait(wait), key.clone());
            let works = async |_| {
                tokio::time::sleep(100 * LEASE).await;
                Ok::<u64, ()>(1)
            };
            actix_rt::spawn(async move { engine.run(key, &"the same", works).await })
        };
        let works = calls(LEASE);
        tokio::time::sleep(LEASE / 4).await;
        for _ in 0..5 {
            let waiting: Vec<_> = (0..3).map(|_| calls(90 * LEASE)).collect();
            tokio::time::sleep(LEASE / 4).await;
            for caller in waiting {
                assert!(!caller.is_finished(), "{:?}", caller.await);
                caller.abort();
            }
            tokio::time::sleep(LEASE / 4).await;
        }
        assert!(!works.is_finished());
    });
}

/// A step stays while its operation is in progress, and disappears with it. In the next life of the key it runs again.
#[test]
fn e26_steps_have_the_life_of_their_key() {
    on_virtual_time(1, async |world| {
        world.heal();
        let (key, _) = keys().remove(3);
        let charged = Rc::new(Cell::new(0));
        let run = async |process: &Process, works: Duration| {
            let engine = process.engine.with_on_abandoned(OnAbandoned::Resume).with_retention(LEASE);
            let charged = Rc::clone(&charged);
            let operation = move |claim: oncekey::Claim| async move {
                let charge = async |_| {
                    charged.set(charged.get() + 1);
                    Ok::<u64, &str>(charged.get())
                };
                let told = claim.step("charge", charge).await.map_err(|_| "the step gave nothing");
                tokio::time::sleep(works).await;
                told
            };
            engine.run_local(key.clone(), &"the same", operation).await
        };
        let (first, second) = (Process::start(&world, 0), Process::start(&world, 1));
        tokio::select! {
            told = run(&first, 100 * LEASE) => panic!("{told:?}"),
            () = tokio::time::sleep(5 * LEASE) => world.dies(&first.life),
        }
        tokio::time::sleep(2 * LEASE).await;
        assert_eq!(run(&second, Duration::ZERO).await.unwrap(), Outcome::Ran(1), "it continues after a long while");
        assert_eq!(run(&second, Duration::ZERO).await.unwrap(), Outcome::Replayed(1));
        tokio::time::sleep(2 * LEASE).await;
        assert_eq!(run(&second, Duration::ZERO).await.unwrap(), Outcome::Ran(2), "the key is new");
    });
}
