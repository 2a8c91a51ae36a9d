//! The steps of an operation, through the engine's own calls.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::join;
use futures_util::poll;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::{sleep, timeout};

use super::{Fault, Faulty, LONG, SHORT, Steps, Store, fingerprint, fresh_key, until};
use crate::backend::{Resolution, Resolved, StateView};
use crate::record::StepNameError;
use crate::{
    Claim, Engine, Error, Event, EventKind, OnAbandoned, Outcome, ReconcileOutcome, RunError, StepError, StepOptions,
    StepPolicy,
};

type Failure = StepError<&'static str>;

/// The effects of steps: each step's name and its provider's key.
#[derive(Clone, Default)]
struct Ledger(Arc<Mutex<Vec<(String, String)>>>);

impl Ledger {
    /// Runs a step whose effect is a line of the ledger.
    async fn step(&self, claim: &Claim, options: impl Into<StepOptions>) -> Result<String, Failure> {
        let effect = async |step: crate::Step| {
            self.0.lock().push((step.name().to_owned(), step.key().to_string()));
            Ok::<_, &str>(format!("{} is done", step.name()))
        };
        claim.step_with(options.into(), effect).await
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.0.lock().iter().map(|(name, _)| name.clone()).collect();
        names.sort_unstable();
        names
    }
}

fn resuming(builder: crate::EngineBuilder<super::any::AnyBackend>) -> crate::EngineBuilder<super::any::AnyBackend> {
    builder.on_abandoned(OnAbandoned::Resume)
}

/// E26: a retry replays the completed steps and continues, after a panic, after an error, and after a lapse. Steps run
/// concurrently. A renamed step is found, with its provider's key.
pub async fn e26_a_retry_continues_where_the_last_try_ended(store: &Store) {
    if !store.capabilities.steps {
        return;
    }
    let engine = store.engine(resuming).await;
    let other = store.engine(resuming).await;
    let (key, ledger, tries) = (fresh_key(), Ledger::default(), Arc::new(AtomicUsize::new(0)));
    let run = async |engine: &Engine| {
        let (ledger, tries) = (ledger.clone(), Arc::clone(&tries));
        let operation = async move |claim: Claim| {
            let this_try = tries.fetch_add(1, Ordering::Relaxed);
            let reserve =
                if this_try < 2 { StepOptions::new("hold") } else { StepOptions::new("reserve").formerly("hold") };
            let (reserved, charged) = join(ledger.step(&claim, reserve), ledger.step(&claim, "charge")).await;
            assert_eq!(charged?, "charge is done");
            assert_eq!(reserved?, "hold is done");
            match this_try {
                0 => panic!("this panic is part of a check"),
                1 => Err(StepError::Operation("not now")),
                _ => ledger.step(&claim, "mail").await,
            }
        };
        engine.run(key.clone(), fingerprint(), operation).await
    };
    assert!(matches!(run(&engine).await, Err(RunError::Engine(Error::Panicked))));
    assert!(matches!(run(&other).await, Err(RunError::Operation(StepError::Operation("not now")))));
    // Another request must not get the results of the first one's steps.
    let stranger = engine.run(key.clone(), &"something else", |_| async { Ok::<_, ()>(()) }).await;
    assert!(matches!(stranger, Err(RunError::Engine(Error::Mismatch))), "{stranger:?}");
    assert_eq!(run(&engine).await.unwrap(), Outcome::Ran("mail is done".to_owned()));
    assert_eq!(run(&other).await.unwrap(), Outcome::Replayed("mail is done".to_owned()));
    assert_eq!(ledger.names(), ["charge", "hold", "mail"], "each effect once");
    let lines = ledger.0.lock().clone();
    for (name, provider_key) in lines {
        let claim =
            engine
                .run(fresh_key(), fingerprint(), |claim: Claim| async move {
                    Ok::<_, ()>(claim.derive_key("x").to_string())
                })
                .await
                .unwrap();
        assert!(provider_key.starts_with("oncekey1-") && provider_key != claim.into_inner(), "of {name}");
    }
}

/// E26: a holder that was paused past its lease begins no further step once another holder has resumed.
pub async fn e26_a_stale_holder_begins_no_step(store: &Store) {
    if !store.capabilities.steps {
        return;
    }
    let faulty = Faulty::new(store.connect().await);
    let paused = Engine::builder(faulty.clone()).lease(SHORT).on_abandoned(OnAbandoned::Resume).start().unwrap();
    let other = store.engine(resuming).await;
    let (key, ledger) = (fresh_key(), Ledger::default());
    let (began, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let running = {
        let (paused, key, ledger) = (paused.clone(), key.clone(), ledger.clone());
        let (began, go_on) = (Arc::clone(&began), Arc::clone(&go_on));
        actix_rt::spawn(async move {
            let operation = async move |claim: Claim| {
                ledger.step(&claim, "charge").await?;
                began.notify_one();
                go_on.notified().await;
                // The completed step replays or is refused. The next one is refused.
                let _ = ledger.step(&claim, "charge").await;
                ledger.step(&claim, "mail").await
            };
            paused.run(key, fingerprint(), operation).await
        })
    };
    began.notified().await;
    faulty.strike(Steps::Renew, Fault::Down);
    until("the lapse", async || match other.lookup(&key).await.unwrap().map(|view| view.state) {
        Some(StateView::InProgress { lease_left }) => lease_left.is_zero(),
        _ => true,
    })
    .await;
    let resumed = {
        let ledger = ledger.clone();
        let operation = async move |claim: Claim| {
            ledger.step(&claim, "charge").await?;
            ledger.step(&claim, "mail").await
        };
        other.run(key.clone(), fingerprint(), operation).await
    };
    assert_eq!(resumed.unwrap(), Outcome::Ran("mail is done".to_owned()));
    go_on.notify_one();
    let stale = running.await.unwrap();
    assert!(matches!(stale, Err(RunError::Operation(StepError::Lost))), "{stale:?}");
    assert_eq!(ledger.names(), ["charge", "mail"]);
}

/// E26: a step that was dropped or panicked outranks what its operation reports. Where the step may run again, it does.
pub async fn e26_what_is_not_known_of_a_step_outranks_the_result(store: &Store) {
    if !store.capabilities.steps {
        return;
    }
    let engine = store.engine(resuming).await;
    for policy in [StepPolicy::Hold, StepPolicy::Rerun] {
        let (key, charged) = (fresh_key(), Arc::new(AtomicUsize::new(0)));
        let operation = |is_slow: bool| {
            let charged = Arc::clone(&charged);
            async move |claim: Claim| {
                let charge = claim.step_with(StepOptions::new("charge").policy(policy), async |_| {
                    charged.fetch_add(1, Ordering::Relaxed);
                    if is_slow {
                        sleep(LONG).await;
                    }
                    Ok::<_, ()>(17)
                });
                timeout(SHORT, charge).await.map_err(|_| "it took too long")?.map_err(|_| "it failed")
            }
        };
        let failed = engine.run(key.clone(), fingerprint(), operation(true)).await;
        assert!(matches!(failed, Err(RunError::Operation("it took too long"))), "{failed:?}");
        let retried = engine.run(key.clone(), fingerprint(), operation(false)).await;
        if policy == StepPolicy::Rerun {
            assert_eq!(retried.unwrap(), Outcome::Ran(17));
            assert_eq!(charged.load(Ordering::Relaxed), 2);
            continue;
        }
        assert!(matches!(retried, Err(RunError::Engine(Error::Indeterminate { .. }))), "{retried:?}");
        assert!(matches!(
            engine.resolve(&key, None, Resolution::Release).await,
            Ok(Resolved::UnsettledStep { step }) if step.as_str() == "charge"
        ));
        assert_eq!(engine.resolve_step(&key, "charge", Some(&18)).await.unwrap(), Resolved::Resolved);
        assert_eq!(engine.run(key.clone(), fingerprint(), operation(false)).await.unwrap(), Outcome::Ran(18));
        assert_eq!(charged.load(Ordering::Relaxed), 1);
    }
    // When an operation returns, the engine waits for its running steps.
    let (key, go) = (fresh_key(), Arc::new(Notify::new()));
    let task = Arc::new(Mutex::new(None));
    let operation = {
        let (go, task) = (Arc::clone(&go), Arc::clone(&task));
        async move |claim: Claim| {
            let (later, began) = (claim.clone(), Arc::new(Notify::new()));
            let inside = Arc::clone(&began);
            *task.lock() = Some(actix_rt::spawn(async move {
                let operation = async |_| {
                    inside.notify_one();
                    go.notified().await;
                    Ok::<_, ()>("in the end".to_owned())
                };
                later.step("late", operation).await
            }));
            began.notified().await;
            Ok::<_, ()>("returned".to_owned())
        }
    };
    let running = {
        let (engine, key) = (engine.clone(), key.clone());
        actix_rt::spawn(async move { engine.run_local(key, fingerprint(), operation).await })
    };
    until("the task", async || task.lock().is_some()).await;
    sleep(SHORT / 3).await;
    assert!(matches!(engine.lookup(&key).await.unwrap().unwrap().state, StateView::InProgress { .. }));
    go.notify_one();
    assert_eq!(running.await.unwrap().unwrap(), Outcome::Ran("returned".to_owned()));
    let task = task.lock().take().unwrap();
    assert_eq!(task.await.unwrap().unwrap(), "in the end");
}

/// E26, E19: a lost answer to a begin runs nothing and leaves nothing; a lost answer to a completion is found again.
pub async fn e26_lost_answers_change_nothing(store: &Store) {
    if !store.capabilities.steps {
        return;
    }
    let faulty = Faulty::new(store.connect().await);
    let engine = Engine::builder(faulty.clone()).on_abandoned(OnAbandoned::Resume).start().unwrap();
    let (key, ledger) = (fresh_key(), Ledger::default());
    let run = async || {
        let ledger = ledger.clone();
        engine.run(key.clone(), fingerprint(), async move |claim: Claim| ledger.step(&claim, "charge").await).await
    };
    for fault in [Fault::LosesAnswer, Fault::Down] {
        faulty.strike(Steps::BeginStep, fault);
        let refused = run().await;
        assert!(matches!(refused, Err(RunError::Operation(StepError::Store(_)))), "{refused:?}");
        faulty.heal();
    }
    assert!(faulty.struck() >= 2 && ledger.names().is_empty());
    faulty.strike(Steps::CompleteStep, Fault::LosesAnswer);
    let running = {
        let (engine, key, ledger) = (engine.clone(), key.clone(), ledger.clone());
        actix_rt::spawn(async move {
            engine.run(key, fingerprint(), async move |claim: Claim| ledger.step(&claim, "charge").await).await
        })
    };
    until("a lost answer", async || faulty.struck() >= 3).await;
    faulty.heal();
    assert_eq!(running.await.unwrap().unwrap(), Outcome::Ran("charge is done".to_owned()));
    assert_eq!(ledger.names(), ["charge"]);
}

/// E21, E19: what a process knows about a step reaches the store, even if the store was away for longer than the lease,
/// the settling limit and the run limit. Afterwards, a key on which every step failed is free, and a completed step
/// replays.
pub async fn e21_what_the_process_knows_of_a_step_is_settled_after_a_long_outage(store: &Store) {
    if !store.capabilities.steps {
        return;
    }
    let faulty = Faulty::new(store.connect().await);
    let builder = Engine::builder(faulty.clone()).lease(SHORT).settling_limit(SHORT / 2).run_limit(2 * SHORT);
    let engine = builder.on_abandoned(OnAbandoned::Resume).start().unwrap();
    let (failed, done) = (fresh_key(), fresh_key());
    let charged = Arc::new(AtomicUsize::new(0));
    let run = async |engine: &Engine, key: &crate::Key, declines: bool| {
        let charged = Arc::clone(&charged);
        let operation = async move |claim: Claim| {
            let charge = async |_| {
                charged.fetch_add(1, Ordering::Relaxed);
                if declines { Err("declined") } else { Ok(17_u32) }
            };
            claim.step("charge", charge).await
        };
        engine.run(key.clone(), fingerprint(), operation).await
    };
    faulty.strike(Steps::FailStep, Fault::Down);
    faulty.strike(Steps::CompleteStep, Fault::Down);
    let ran = run(&engine, &failed, true).await;
    assert!(matches!(ran, Err(RunError::Operation(StepError::Operation("declined")))), "{ran:?}");
    let ran = run(&engine, &done, false).await;
    assert!(matches!(ran, Err(RunError::Operation(StepError::OutcomeNotStored(_)))), "{ran:?}");
    until("both to be pending", async || engine.pending_settlements() == 2).await;
    sleep(3 * SHORT).await;
    faulty.heal();
    until("both to be settled", async || engine.pending_settlements() == 0).await;
    let other = store.engine(resuming).await;
    for (key, times) in [(&failed, 3), (&done, 3)] {
        let free = async || !matches!(other.lookup(key).await, Ok(Some(view)) if matches!(view.state, StateView::InProgress { .. }));
        until("the key to be free", free).await;
        assert_eq!(run(&other, key, false).await.unwrap(), Outcome::Ran(17));
        assert_eq!(charged.load(Ordering::Relaxed), times);
    }
}

/// E26, E19: a caller leaves after the store's answer to a begin and before the step's operation begins. No step is
/// left unsettled.
pub async fn e26_a_step_whose_caller_left_before_it_began_leaves_nothing(store: &Store) {
    if !store.capabilities.steps {
        return;
    }
    let engine = store.engine(resuming).await;
    let (key, ledger) = (fresh_key(), Ledger::default());
    let operation = {
        let (engine, key, ledger) = (engine.clone(), key.clone(), ledger.clone());
        async move |claim: Claim| {
            let mut leaving = Box::pin(ledger.step(&claim, "charge"));
            assert!(poll!(&mut leaving).is_pending());
            until("the begin", async || engine.lookup(&key).await.unwrap().is_some_and(|view| view.steps.is_some()))
                .await;
            // The answer has arrived, and nobody reads it.
            sleep(SHORT / 10).await;
            drop(leaving);
            Err::<String, _>("left")
        }
    };
    let left = engine.run_local(key.clone(), fingerprint(), operation).await;
    assert!(matches!(left, Err(RunError::Operation("left"))), "{left:?}");
    assert!(ledger.names().is_empty());
    let again = ledger.clone();
    let operation = async move |claim: Claim| again.step(&claim, "charge").await;
    assert_eq!(engine.run(key, fingerprint(), operation).await.unwrap(), Outcome::Ran("charge is done".to_owned()));
}

/// E26, E23: a step that is running when its operation's run limit passes still records its outcome, whether the
/// operation waits for it or has returned. The operation begins no other step, and a retry continues after it.
pub async fn e26_a_step_that_outlasts_the_run_limit_keeps_its_outcome(store: &Store) {
    if !store.capabilities.steps {
        return;
    }
    for has_returned in [false, true] {
        let engine = store.engine(resuming).await;
        let (key, ledger, go) = (fresh_key(), Ledger::default(), Arc::new(Notify::new()));
        let (charging, charged) = oneshot::channel();
        let operation = {
            let (ledger, go) = (ledger.clone(), Arc::clone(&go));
            async move |claim: Claim| {
                let charge = async move {
                    let effect = async |_| {
                        go.notified().await;
                        Ok::<_, &str>("charge is done".to_owned())
                    };
                    let charged = claim.step("charge", effect).await;
                    let _ = charging.send((charged, ledger.step(&claim, "mail").await));
                };
                if has_returned {
                    drop(actix_rt::spawn(charge));
                    // The step is requested before the operation ends.
                    sleep(SHORT / 10).await;
                } else {
                    charge.await;
                }
                Err::<String, Failure>(StepError::Operation("not now"))
            }
        };
        let running = {
            let (engine, key) = (engine.with_run_limit(SHORT), key.clone());
            actix_rt::spawn(async move { engine.run_local(key, fingerprint(), operation).await })
        };
        let again = {
            let ledger = ledger.clone();
            async move |engine: &Engine, key: &crate::Key| {
                let operation = async move |claim: Claim| {
                    let charged: String = claim.step("charge", async |_| Err("it ran again")).await?;
                    assert_eq!(charged, "charge is done");
                    ledger.step(&claim, "mail").await
                };
                engine.run_local(key.clone(), fingerprint(), operation).await
            }
        };
        // The result of the step is not known yet.
        let held = async || {
            let view = engine.lookup(&key).await.unwrap();
            view.is_some_and(|view| matches!(view.state, StateView::Indeterminate))
        };
        until("the run limit", held).await;
        // The store shows the change before its answer arrives.
        until("its key lock is free", async || engine.keys_in_flight().await == 0).await;
        go.notify_one();
        let (charged, mailed) = charged.await.unwrap();
        assert_eq!(charged, Ok("charge is done".to_owned()));
        assert!(matches!(mailed, Err(StepError::Lost)), "{mailed:?}");
        assert!(running.await.unwrap().is_err());
        assert_eq!(again(&engine, &key).await.unwrap(), Outcome::Ran("mail is done".to_owned()));
        assert_eq!(ledger.names(), ["mail"]);
    }
}

/// E23: an operation that returns past its run limit is answered at once, even though the store has not settled its
/// claim yet and one of its steps still runs.
pub async fn e23_past_the_run_limit_nobody_waits_for_a_step(store: &Store) {
    if !store.capabilities.steps {
        return;
    }
    let faulty = Faulty::new(store.connect().await);
    let engine = Engine::builder(faulty.clone()).lease(LONG).run_limit(SHORT).start().unwrap();
    let engine = engine.with_on_abandoned(OnAbandoned::Resume);
    let (began, has_begun) = oneshot::channel();
    let operation = async move |claim: Claim| {
        let charging = actix_rt::spawn(async move {
            let endless = async |_| {
                let _ = began.send(());
                std::future::pending::<Result<(), &str>>().await
            };
            claim.step("charge", endless).await
        });
        has_begun.await.unwrap();
        faulty.strike(Steps::All, Fault::Down);
        sleep(2 * SHORT).await;
        drop(charging);
        Err::<(), _>("not now")
    };
    let running = engine.run_local(fresh_key(), fingerprint(), operation);
    let ended = timeout(LONG, running).await.expect("it waits for no step");
    assert!(ended.is_err(), "{ended:?}");
}

/// E26: these are errors at once: a step in a step, two concurrent steps with one name, a bad name, and a step without
/// a claim.
pub async fn e26_misuse_is_an_error_at_once(store: &Store) {
    if !store.capabilities.steps {
        return;
    }
    let faulty = Faulty::new(store.connect().await);
    let engine = Engine::builder(faulty.clone()).on_abandoned(OnAbandoned::Resume).start().unwrap();
    let operation = async |claim: Claim| {
        let inner = claim.clone();
        let nested = claim.step("outer", async |_| inner.step("inner", async |_| Ok::<_, ()>(1)).await).await;
        assert!(matches!(nested, Err(StepError::Operation(StepError::Nested))), "{nested:?}");
        // Both begin before either ends.
        let slow = async |_| {
            sleep(SHORT / 10).await;
            Ok::<_, ()>(2)
        };
        let (one, other) = join(claim.step("twice", slow), claim.step("twice", slow)).await;
        assert_eq!(one, Ok(2));
        assert!(matches!(other, Err(StepError::Running)), "{other:?}");
        let unnamed = claim.step("", async |_| Ok::<_, ()>(3)).await;
        assert_eq!(unnamed, Err(StepError::Name(StepNameError::Empty)));
        let asked = |amount: u32| StepOptions::new("asked").fingerprint(&amount);
        assert_eq!(claim.step_with(asked(1), async |_| Ok::<_, ()>(4)).await, Ok(4));
        let otherwise = claim.step_with(asked(2), async |_| Ok::<_, ()>(4)).await;
        assert_eq!(otherwise, Err(StepError::Mismatch));
        Ok::<_, ()>(())
    };
    engine.run_local(fresh_key(), fingerprint(), operation).await.unwrap();
    // After the operation has returned, its claim begins no step.
    let kept = Arc::new(Mutex::new(None));
    let keeps = Arc::clone(&kept);
    let operation = async move |claim: Claim| {
        claim.step("a", async |_| Ok::<_, ()>(1)).await.unwrap();
        *keeps.lock() = Some(claim);
        Ok::<_, ()>(())
    };
    engine.run(fresh_key(), fingerprint(), operation).await.unwrap();
    let claim = kept.lock().take().unwrap();
    assert_eq!(claim.step("b", async |_| Ok::<_, ()>(2)).await, Err(StepError::Lost));
    faulty.strike(Steps::All, Fault::Down);
    let unguarded = engine.with_on_store_failure(crate::OnStoreFailure::Run);
    let refused = unguarded
        .run(fresh_key(), fingerprint(), async |claim: Claim| claim.step("a", async |_| Ok::<_, ()>(1)).await)
        .await;
    assert!(matches!(refused, Err(RunError::Operation(StepError::Unguarded))), "{refused:?}");
}

/// E26, E24: if an outcome is too large, or the current type cannot read it, the first call and every retry return the
/// same error, and the step never runs again.
pub async fn e26_an_outcome_that_cannot_be_kept_is_the_same_error_twice(store: &Store) {
    if !store.capabilities.steps {
        return;
    }
    let engine = store.engine(|builder| resuming(builder).max_step_bytes(1_000)).await;
    let (key, ran) = (fresh_key(), Arc::new(AtomicUsize::new(0)));
    for _ in 0..2 {
        let ran = Arc::clone(&ran);
        let operation = async move |claim: Claim| {
            for _ in 0..2 {
                let large = claim
                    .step("large", async |_| {
                        ran.fetch_add(1, Ordering::Relaxed);
                        Ok::<_, ()>("x".repeat(1_001))
                    })
                    .await;
                assert_eq!(large, Err(StepError::TooLarge));
            }
            claim.step("number", async |_| Ok::<_, ()>(17)).await.unwrap();
            let as_text: Result<String, StepError<()>> =
                claim.step("number", async |_| Ok("not again".to_owned())).await;
            assert!(matches!(as_text, Err(StepError::Corrupt(_))), "{as_text:?}");
            Err::<(), _>("again")
        };
        assert!(engine.run(key.clone(), fingerprint(), operation).await.is_err());
    }
    assert_eq!(ran.load(Ordering::Relaxed), 1);
}

/// E26: the reconciler is called for each step of an abandoned key, with the key that the step passed to its provider.
pub async fn e26_the_reconciler_is_asked_per_step(store: &Store) {
    if !store.capabilities.steps {
        return;
    }
    let asked = Arc::new(Mutex::new(Vec::new()));
    let observed = Arc::new(AtomicUsize::new(0));
    let (asks, observes) = (Arc::clone(&asked), Arc::clone(&observed));
    let engine = store
        .engine(move |builder| {
            resuming(builder)
                .observer(move |event: &Event<'_>| {
                    observes.fetch_add(usize::from(event.kind == EventKind::StepUnsettled), Ordering::Relaxed);
                })
                .reconciler(move |abandoned| {
                    let step = abandoned.step.clone();
                    asks.lock().push(step.as_ref().map(|step| (step.name.to_string(), step.key.clone())));
                    let verdict = match step {
                        Some(step) if step.name.as_str() == "charge" => {
                            ReconcileOutcome::Completed(abandoned.outcome(&"charged, says the provider").unwrap())
                        }
                        Some(_) => ReconcileOutcome::NotDone,
                        None => ReconcileOutcome::Unknown,
                    };
                    std::future::ready(verdict)
                })
        })
        .await;
    let (key, keys) = (fresh_key(), Arc::new(Mutex::new(Vec::new())));
    let first = {
        let keys = Arc::clone(&keys);
        let operation = async move |claim: Claim| {
            let never = async |step: crate::Step| {
                keys.lock().push(step.key().clone());
                sleep(LONG).await;
                Ok::<_, ()>("in time".to_owned())
            };
            let both = join(claim.step("charge", never), claim.step("mail", never));
            let _ = timeout(SHORT, both).await;
            Err::<String, _>("it took too long")
        };
        engine.run(key.clone(), fingerprint(), operation).await
    };
    assert!(matches!(first, Err(RunError::Operation("it took too long"))), "{first:?}");
    assert_eq!(observed.load(Ordering::Relaxed), 2);
    let operation = async |claim: Claim| {
        let charge: String = claim.step("charge", async |_| Err("a second charge")).await.map_err(|_| "charge")?;
        let mail = claim.step("mail", async |step| Ok::<_, ()>(format!("attempt {}", step.attempt()))).await;
        Ok::<_, &str>(format!("{charge}; {}", mail.map_err(|_| "mail")?))
    };
    // Callers that do not wait learn that the key is indeterminate while the reconciler works.
    let second = engine.with_wait(LONG).run(key.clone(), fingerprint(), operation).await;
    assert_eq!(second.unwrap(), Outcome::Ran("charged, says the provider; attempt 2".to_owned()));
    let mut asked: Vec<_> = asked.lock().drain(..).flatten().collect();
    asked.sort_by(|one, other| one.0.cmp(&other.0));
    let names: Vec<_> = asked.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["charge", "mail"]);
    let mut expected: Vec<_> = keys.lock().iter().map(|key| Some(key.clone())).collect();
    let mut given: Vec<_> = asked.into_iter().map(|(_, key)| key).collect();
    expected.sort_by_key(|key| key.as_ref().map(ToString::to_string));
    given.sort_by_key(|key| key.as_ref().map(ToString::to_string));
    assert_eq!(given, expected);
}
