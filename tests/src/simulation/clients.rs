//! The callers, and how they interpret the answers.

use std::future::pending;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::poll;
use oncekey::{Engine, Error, Key, OnAbandoned, Outcome, RunError};
use rand::RngExt as _;
use tokio::time::{Instant, sleep};

use super::world::{Fault, Life, Mode, Shared, Transaction};
use super::{BUSIEST, CHAOS, LEASE, Process, Value, checkouts};

type Processes = Arc<Mutex<Vec<Process>>>;
type Answered = Result<Outcome<u64>, RunError<&'static str>>;

/// Calls one key after another, through one process after another, until the faults end.
pub(super) async fn call_around(world: Shared, processes: Processes) {
    let end = Instant::now() + CHAOS;
    let keys = super::keys();
    while Instant::now() < end {
        sleep(world.up_to(300)).await;
        let (process, key) = world.with(|world| {
            let processes = processes.lock().unwrap();
            let process = world.chance.random_range(0..processes.len());
            (processes[process].clone(), world.chance.random_range(0..keys.len()))
        });
        let (key, mode) = &keys[key];
        if world.is_known(key) && world.with(|world| world.chance.random_bool(0.1)) {
            ask_for_something_else(&world, &process, key).await;
            continue;
        }
        let engine = match world.with(|world| world.chance.random_range(0..3)) {
            0 => process.engine.clone(),
            _ => process.engine.with_wait(world.up_to(2_000)),
        };
        // Duplicates reach the arbiter at the same instant.
        let calls = if world.with(|world| world.strikes(Fault::Twins, 15.0)) { 2 } else { 1 };
        let busy = world.with(|world| match world.strikes(Fault::BusyCaller, 10.0) {
            true => world.up_to((BUSIEST - LEASE).as_millis() as u64) + LEASE,
            false => Duration::ZERO,
        });
        let calling = join_all((0..calls).map(|_| call(&world, &engine, &process.life, key, *mode)));
        let calling = heard_late(calling, busy);
        drop(process.engine);
        let goes_away = world.with(|world| world.strikes(Fault::ClientGone, 10.0));
        let patience = if goes_away { world.up_to(400) } else { Duration::from_secs(60) };
        tokio::select! {
            biased;
            () = process.life.end() => {}
            () = sleep(patience) => {
                // A caller of an operation that never returns leaves eventually.
                if !goes_away && !world.with(|world| world.is_hung(key)) {
                    world.with(|world| world.breaks(format!("a call of {key} was never answered")));
                }
            }
            answers = calling => answers.into_iter().for_each(|answered| judge(&world, key, answered)),
        }
    }
}

/// Sends the call at once, and reads nothing for a while.
async fn heard_late<F: Future>(calling: F, busy: Duration) -> F::Output {
    let mut calling = pin!(calling);
    if let Poll::Ready(answers) = poll!(&mut calling) {
        return answers;
    }
    sleep(busy).await;
    calling.await
}

fn judge(world: &Shared, key: &Key, answered: Answered) {
    match answered {
        Ok(Outcome::Ran(value) | Outcome::Replayed(value)) => world.is_told(key, value),
        Err(RunError::Operation(_)) => {}
        Err(RunError::Engine(error)) => match error {
            Error::InProgress { .. }
            | Error::Indeterminate { .. }
            | Error::Store(_)
            // The transaction was rolled back, so nothing happened.
            | Error::CommitRefused(_)
            | Error::ShuttingDown
            | Error::Stopped
            | Error::OutcomeNotStored(_)
            | Error::CommitUnknown(_)
            | Error::ClaimLost
            | Error::Unserializable(_)
            | Error::Panicked => world.with(|world| world.note(format_args!("{key} is told: {error}"))),
            error => world.with(|world| world.breaks(format!("{key} is told: {error}"))),
        },
    }
}

async fn ask_for_something_else(world: &Shared, process: &Process, key: &Key) {
    let asking = process.engine.run(key.clone(), &"something else", |_| async { Ok::<_, &str>(Value::of(0)) });
    let answered = tokio::select! {
        biased;
        () = process.life.end() => return,
        answered = asking => answered,
    };
    match answered {
        Err(RunError::Engine(Error::Mismatch | Error::Store(_) | Error::ShuttingDown | Error::Stopped)) => {}
        other => world.with(|world| world.breaks(format!("something else under {key} is told {other:?}"))),
    }
}

/// Calls a key in the way that its mode requires.
pub async fn call(world: &Shared, engine: &Engine, life: &Arc<Life>, key: &Key, mode: Mode) -> Answered {
    world.calls();
    let told = world.clone();
    let (world, life) = (world.clone(), Arc::clone(life));
    let answered = match mode {
        Mode::Transaction => {
            let writes = |transaction: &mut Transaction, _: &oncekey::Claim| {
                transaction.wrote = true;
                if transaction.fails {
                    Err("simulated: the transaction fails")
                } else {
                    Ok(Value::of(transaction.value))
                }
            };
            let engine = engine.with_on_abandoned(OnAbandoned::Rerun);
            engine.run_in_transaction(key.clone(), &"the same", writes).await
        }
        Mode::Hold => engine.run(key.clone(), &"the same", move |claim| operate(world, life, claim)).await,
        Mode::Rerun => {
            let engine = engine.with_on_abandoned(OnAbandoned::Rerun);
            engine.run(key.clone(), &"the same", move |claim| operate(world, life, claim)).await
        }
        Mode::Steps => checkouts::call(&world, engine, &life, key).await,
    };
    if let Ok(Outcome::Ran(value)) = &answered
        && told.with(|world| world.is_unstorable(value.number))
    {
        told.with(|world| world.breaks(format!("{key} gave {value:?}, which is not what its operation gave")));
    }
    answered.map(|outcome| match outcome {
        Outcome::Ran(value) => Outcome::Ran(value.number),
        Outcome::Replayed(value) => Outcome::Replayed(value.number),
    })
}

/// Stops a process that has crashed from doing anything more.
pub(super) async fn stands_still(life: &Life) {
    if !life.is_alive() {
        pending::<()>().await;
    }
}

/// Runs an operation with an external effect.
async fn operate(world: Shared, life: Arc<Life>, claim: oncekey::Claim) -> Result<Value, &'static str> {
    stands_still(&life).await;
    let working = world.begins(claim.key(), claim.attempt(), &life);
    takes_a_while(&world, &life).await;
    stands_still(&life).await;
    if world.with(|world| world.chance.random_bool(0.3)) {
        let confirmed = claim.confirm().await;
        stands_still(&life).await;
        if confirmed.is_err() {
            working.fails();
            return Err("simulated: the claim is not confirmed");
        }
        world.with(|world| world.is_confirmed(claim.key(), claim.attempt()));
    }
    if world.with(|world| world.strikes(Fault::Failure, 10.0)) {
        working.fails();
        return Err("simulated: the operation fails");
    }
    if world.with(|world| world.strikes(Fault::Panic, 5.0)) {
        drop(working);
        std::panic::resume_unwind(Box::new("simulated: the operation panics"));
    }
    // The operation hangs, before or after its effect. It returns nothing any more.
    let hangs = world.with(|world| world.strikes(Fault::Hang, 4.0).then(|| world.chance.random_bool(0.5)));
    if hangs == Some(false) {
        return working.hangs().await;
    }
    let value = world.effect(claim.key());
    if hangs.is_some() {
        return working.hangs().await;
    }
    takes_a_while(&world, &life).await;
    stands_still(&life).await;
    if world.with(|world| world.strikes(Fault::Unstorable, 4.0)) {
        world.with(|world| world.gives_unstorable(value));
        return Ok(Value::unstorable(value));
    }
    working.finishes(value, &life);
    Ok(Value::of(value))
}

pub(super) async fn takes_a_while(world: &Shared, life: &Life) {
    let long = world.with(|world| world.chance.random_bool(0.2));
    let lease = LEASE.as_millis() as u64;
    sleep(world.up_to(if long { 3 * lease } else { lease / 10 })).await;
    sleep(world.with(|world| world.pause_left(life.process))).await;
}

/// Checks, after the last fault, that every key reaches its one outcome for every process.
pub(super) async fn settle_all(world: &Shared, processes: &Processes) {
    let processes = processes.lock().unwrap().clone();
    for (key, mode) in super::keys() {
        for process in &processes {
            let patient = process.engine.with_wait(Duration::from_secs(10));
            let mut told = Vec::new();
            let settled = loop {
                match call(world, &patient, &process.life, &key, mode).await {
                    Ok(Outcome::Ran(value) | Outcome::Replayed(value)) => break Some(value),
                    Err(error) => told.push(error.to_string()),
                }
                if told.len() == 5 {
                    break None;
                }
                sleep(LEASE).await;
            };
            match settled {
                Some(value) => world.is_told(&key, value),
                None => world.with(|world| world.breaks(format!("{key} is stuck: {told:?}"))),
            }
        }
        // A settled key replays once more.
        match call(world, &processes[0].engine, &processes[0].life, &key, mode).await {
            Ok(Outcome::Replayed(value)) => world.is_told(&key, value),
            other => world.with(|world| world.breaks(format!("{key} is not replayed: {other:?}"))),
        }
    }
    sleep(LEASE).await;
    for process in &processes {
        let left = process.engine.keys_in_flight().await;
        if left > 0 {
            world.with(|world| {
                world.breaks(format!("{left} keys are still in flight in process {}", process.life.process))
            });
        }
    }
}
