//! The world as its processes and clients see it.

use std::future::pending;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use oncekey::record::{Owner, SealedOutcome};
use oncekey::{AbandonedClaim, Attempt, Key, ReconcileOutcome};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Engaged, Life, Mode, Promise, World};
use crate::simulation::{RUN_LIMITS, Report, Value};

/// A shared handle of the world.
#[derive(Debug, Clone)]
pub struct Shared(Arc<Mutex<World>>);

impl Shared {
    pub(super) fn of(world: World) -> Self {
        Self(Arc::new(Mutex::new(world)))
    }

    pub(in crate::simulation) fn with<T>(&self, act: impl FnOnce(&mut World) -> T) -> T {
        act(&mut self.0.lock().unwrap())
    }

    /// Returns a random duration.
    pub fn up_to(&self, millis: u64) -> Duration {
        self.with(|world| world.up_to(millis))
    }

    /// Ends all faults from now on.
    pub fn heal(&self) {
        self.with(|world| {
            world.note(format_args!("healed"));
            world.healed = true;
            world.paused.clear();
            world.away_until = None;
        });
    }

    /// Makes answers to acquires take this much longer from now on.
    pub fn slows_acquires(&self, by: Duration) {
        self.with(|world| world.slow_acquires = by);
    }

    /// Executes the next commit, and breaks the connection before its answer.
    pub fn loses_a_commit(&self) {
        self.with(|world| world.lost_commits += 1);
    }

    /// Returns how many commits' answers must still be lost.
    pub fn commits_to_lose(&self) -> u32 {
        self.with(|world| world.lost_commits)
    }

    /// Returns how often the effect of a key happened.
    pub fn effects_of(&self, key: &Key) -> usize {
        self.with(|world| world.ledger.iter().filter(|(other, _)| other == key).count())
    }

    pub(in crate::simulation) fn deadline(&self) -> usize {
        self.with(|world| (world.report.seed % 2) as usize)
    }

    /// Returns how long operations may run.
    pub fn run_limit(&self) -> Duration {
        self.with(|world| RUN_LIMITS[usize::from(world.calm)])
    }

    /// Makes the operation of the next transaction end it with its own commit.
    pub fn ends_a_transaction(&self) {
        self.with(|world| world.transactions_to_end += 1);
    }

    /// Starts a life of a process.
    pub fn is_born(&self, process: usize) -> Arc<Life> {
        let number = self.with(World::next_value);
        Arc::new(Life { process, number, alive: AtomicBool::new(true), died: Notify::new() })
    }

    /// Ends a life of a process. It does nothing more.
    pub fn dies(&self, life: &Life) {
        life.alive.store(false, Ordering::Relaxed);
        life.died.notify_waiters();
        self.with(|world| {
            world.promised.retain(|promise| promise.engaged.life != life.number);
            world.working.retain(|engaged| engaged.life != life.number);
        });
    }

    /// Begins an operation.
    pub(in crate::simulation) fn begins(&self, key: &Key, attempt: Attempt, life: &Life) -> Working {
        let engaged = Engaged { key: key.clone(), attempt, life: life.number };
        let owner = self.with(|world| {
            let is_it = |promise: &Promise| promise.heard && promise.engaged == engaged;
            // This takes the latest claim, because an earlier claim of the same attempt was released.
            let owner = world.promised.iter().rposition(is_it).map(|at| world.promised.remove(at).owner);
            if let Some(fate) = owner.and_then(|owner| world.fates.get_mut(owner.as_bytes())) {
                fate.began = true;
            }
            world.note(format_args!("{key} begins, attempt {attempt}, in life {}", life.number));
            world.checks_begin(key, attempt);
            // In a calm world the store answers every renewal in time, and no process crashes.
            if world.calm && world.working.iter().any(|other| other.key == *key) {
                world.breaks(format!("{key} begins while its operation runs"));
            }
            world.working.push(engaged.clone());
            owner
        });
        Working { world: self.clone(), engaged, owner, began: Instant::now() }
    }

    /// Performs an external effect, and returns its value.
    pub fn effect(&self, key: &Key) -> u64 {
        self.with(|world| {
            let value = world.next_value();
            world.has_effect(key, value);
            value
        })
    }

    /// Returns what happened to an abandoned claim, from the ledger and from the operations that still run.
    pub fn verdict(&self, abandoned: &AbandonedClaim) -> ReconcileOutcome {
        let AbandonedClaim { key, attempt, step } = abandoned;
        if let Some(step) = step {
            return self.verdict_of_step(abandoned, step);
        }
        self.with(|world| {
            let happened = world.ledger.iter().find(|(other, _)| other == key).map(|(_, value)| *value);
            let engaged = |engaged: &Engaged| engaged.key == *key && engaged.attempt == *attempt;
            let may_come =
                world.promised.iter().any(|promise| engaged(&promise.engaged)) || world.working.iter().any(engaged);
            let verdict = match happened {
                Some(value) => ReconcileOutcome::Completed(SealedOutcome::of_value(key, &Value::of(value)).unwrap()),
                None if may_come => ReconcileOutcome::Unknown,
                None => ReconcileOutcome::NotDone,
            };
            world.note(format_args!("verdict on {key}, attempt {attempt}: {verdict:?}"));
            verdict
        })
    }

    /// Records that a caller received an outcome.
    pub(in crate::simulation) fn is_told(&self, key: &Key, value: u64) {
        self.with(|world| {
            world.note(format_args!("{key} is told {value}"));
            world.report.answered += 1;
            if world.modes[key] == Mode::Steps {
                world.checks_finished(key, value);
            } else if !world.ledger.contains(&(key.clone(), value)) {
                world.breaks(format!("{key} is told {value}, which no effect gave"));
            }
            match world.outcomes.insert(key.clone(), value) {
                Some(other) if other != value => world.breaks(format!("{key} is told {value}, and was told {other}")),
                _ => {}
            }
        });
    }

    pub(in crate::simulation) fn is_known(&self, key: &Key) -> bool {
        self.with(|world| world.outcomes.contains_key(key) || world.has_steps(key))
    }

    pub(in crate::simulation) fn calls(&self) {
        self.with(|world| world.report.calls += 1);
    }

    pub(in crate::simulation) fn report(&self, seed: u64) -> Report {
        self.with(|world| Report { seed, trace: world.trace, ..world.report.clone() })
    }
}

/// A running operation. It is dropped when the operation no longer runs.
#[derive(Debug)]
pub(in crate::simulation) struct Working {
    world: Shared,
    engaged: Engaged,
    owner: Option<Owner>,
    began: Instant,
}

impl Working {
    /// Returns whether the operation's report still counts. Past its run limit, its claim is settled as abandoned.
    fn counts(&self) -> bool {
        self.began.elapsed() < self.world.run_limit()
    }

    /// Makes the operation hang: it never returns, and does nothing more.
    pub(in crate::simulation) async fn hangs<T>(self) -> T {
        self.world.with(|world| world.hung.push(self.engaged.key.clone()));
        drop(self);
        pending().await
    }

    /// Ends the operation with the report that nothing happened.
    pub(in crate::simulation) fn fails(self) {
        let owner = self.owner.filter(|_| self.counts());
        self.world.with(|world| {
            if let Some(fate) = owner.and_then(|owner| world.fates.get_mut(owner.as_bytes())) {
                fate.failed = true;
            }
        });
    }

    /// Ends the operation successfully.
    pub(in crate::simulation) fn finishes(self, value: u64, life: &Arc<Life>) {
        let key = self.engaged.key.clone();
        if self.counts() {
            self.world.with(|world| world.finished.push((key, value, Arc::clone(life))));
        }
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.world.with(|world| {
            if let Some(at) = world.working.iter().position(|other| *other == self.engaged) {
                world.working.swap_remove(at);
            }
        });
    }
}
