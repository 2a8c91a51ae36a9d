//! Operations with steps: what each one does, and what can go wrong in it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use oncekey::{Claim, Engine, Key, OnAbandoned, Outcome, RunError, StepError, StepOptions, StepPolicy};
use rand::RngExt as _;
use tokio::time::timeout;

use super::clients::{stands_still, takes_a_while};
use super::world::{Fault, Life, Shared, Transaction};
use super::{LEASE, Value};

/// The meaning of an interrupted step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StepKind {
    /// At most once.
    Hold,
    /// At least once.
    Rerun,
    /// Exactly once: the effect is in the store's transaction.
    Transaction,
}

/// Returns one to three steps, depending on the key's number.
pub(super) fn steps(key: &Key) -> &'static [(&'static str, StepKind)] {
    use StepKind::{Hold, Rerun, Transaction};
    let number: usize = key.idempotency_key().parse().unwrap();
    match number / super::MODES.len() % 4 {
        0 => &[("reserve", Transaction), ("charge", Hold), ("mail", Rerun)],
        1 => &[("charge", Hold), ("mail", Hold)],
        2 => &[("mail", Rerun), ("reserve", Hold), ("charge", Transaction)],
        _ => &[("charge", Hold)],
    }
}

/// Makes a call for a key whose operation has steps.
pub(super) async fn call(
    world: &Shared,
    engine: &Engine,
    life: &Arc<Life>,
    key: &Key,
) -> Result<Outcome<Value>, RunError<&'static str>> {
    let (world, life) = (world.clone(), Arc::clone(life));
    let engine = engine.with_on_abandoned(OnAbandoned::Resume);
    engine.run_local(key.clone(), &"the same", move |claim| check_out(world, life, claim)).await
}

/// Runs the steps. The operation's outcome is that of the last step.
async fn check_out(world: Shared, life: Arc<Life>, claim: Claim) -> Result<Value, &'static str> {
    stands_still(&life).await;
    let working = world.begins(claim.key(), claim.attempt(), &life);
    let steps = steps(claim.key());
    let side_by_side = world.with(|world| world.chance.random_bool(0.2));
    let mut value = 0;
    if side_by_side {
        let running = steps.iter().map(|(name, kind)| one(&world, &life, &claim, name, *kind));
        for told in join_all(running).await {
            value = told.map_err(|_| "simulated: a step beside others gave nothing")?;
        }
    } else {
        for &(name, kind) in steps {
            takes_a_while(&world, &life).await;
            match one(&world, &life, &claim, name, kind).await {
                Ok(told) => value = told,
                Err(Some(StepError::Operation(_))) => {
                    working.fails();
                    return Err("simulated: a step fails");
                }
                Err(_) => return Err("simulated: a step gave nothing"),
            }
            if world.with(|world| world.strikes(Fault::Failure, 3.0)) {
                working.fails();
                return Err("simulated: the operation fails between its steps");
            }
        }
    }
    stands_still(&life).await;
    working.finishes(value, &life);
    Ok(Value::of(value))
}

type Told = Result<u64, Option<StepError<&'static str>>>;

/// Runs one step. Returns `None` if its future was dropped.
async fn one(world: &Shared, life: &Arc<Life>, claim: &Claim, name: &'static str, kind: StepKind) -> Told {
    let key = claim.key();
    let policy = if kind == StepKind::Rerun { StepPolicy::Rerun } else { StepPolicy::Hold };
    let options = StepOptions::new(name).fingerprint(name).policy(policy);
    let running = async {
        if kind == StepKind::Transaction {
            let transact = |transaction: &mut Transaction, _: &oncekey::Step| {
                transaction.wrote = true;
                if transaction.fails { Err("simulated: the step fails") } else { Ok(transaction.value) }
            };
            return claim.step_in_transaction(options, transact).await;
        }
        let run = async |step: oncekey::Step| {
            stands_still(life).await;
            takes_a_while(world, life).await;
            stands_still(life).await;
            if world.with(|world| world.strikes(Fault::Failure, 5.0)) {
                return Err("simulated: the step fails");
            }
            if world.with(|world| world.strikes(Fault::Panic, 2.0)) {
                std::panic::resume_unwind(Box::new("simulated: the step panics"));
            }
            let value = world.step_effect(key, name, kind, step.key().as_str());
            takes_a_while(world, life).await;
            stands_still(life).await;
            Ok(value)
        };
        claim.step_with(options, run).await
    };
    let told = if world.with(|world| world.strikes(Fault::StepDropped, 4.0)) {
        let patience: Duration = world.up_to(LEASE.as_millis() as u64 / 5);
        match timeout(patience, running).await {
            Ok(told) => told,
            Err(_) => return Err(None),
        }
    } else {
        running.await
    };
    stands_still(life).await;
    match &told {
        Ok(value) => world.is_told_of_step(key, name, *value),
        Err(
            StepError::Operation(_)
            | StepError::Lost
            | StepError::Unsettled
            | StepError::Store(_)
            | StepError::OutcomeNotStored(_)
            | StepError::Stopped,
        ) => world.with(|world| world.note(format_args!("{key} is told of {name}: {told:?}"))),
        Err(error) => world.with(|world| world.breaks(format!("{key} is told of {name}: {error:?}"))),
    }
    told.map_err(Some)
}
