//! The store as a process sees it, over a network that loses, repeats and delays messages.

use std::fmt;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use oncekey::Key;
use oncekey::backend::{
    Acquire, Acquired, Backend, BeginStep, Changed, Complete, CompleteInTransaction, CompleteStep, Completed,
    CompletedInTransaction, FailStep, Held, Hold, List, Lookup, Purge, Purged, RecordView, Release, Released, Remove,
    Removed, Renew, Renewed, Resolve, ResolveStep, Resolved, StateView, Stats, StepBegun, StepCommitted, StepCompleted,
    StepFailed, StepInTransaction, StoreError, StoreStats, Watch, Withdraw, Withdrawn,
};
use oncekey::record::transition::{self, Step};
use rand::RngExt as _;
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::world::{Fault, Life, Shared, World};
use super::{BUSIEST, LATEST, LEASE};

/// The connection of one life of a process to the world's store.
#[derive(Debug, Clone)]
pub struct SimulatedStore {
    world: Shared,
    life: Arc<Life>,
}

/// What happens to one request, decided when it is sent.
#[derive(Debug)]
struct Fate {
    there: Duration,
    back: Duration,
    refused: bool,
    request_lost: bool,
    answer_lost: bool,
    reset: bool,
    /// If the request is executed twice, the time between the two.
    repeated: Option<Duration>,
}

impl World {
    fn fate(&mut self, life: &Life) -> Fate {
        let mut there = self.up_to(20) + self.pause_left(life.process);
        if self.strikes(Fault::Delayed, 3.0) {
            there += self.up_to(2_000);
        }
        let mut back = self.up_to(20);
        if self.strikes(Fault::Delayed, 2.0) {
            back += self.up_to(1_000);
        }
        Fate {
            there,
            back,
            refused: self.strikes(Fault::Refused, 3.0),
            request_lost: self.strikes(Fault::RequestLost, 3.0),
            answer_lost: !self.calm && self.strikes(Fault::AnswerLost, 3.0),
            reset: self.chance.random_bool(0.4),
            repeated: self.strikes(Fault::Repeated, 3.0).then(|| self.up_to(1_000)),
        }
    }
}

impl World {
    /// Returns the fate of an acquire. It may also arrive after its sender has stopped waiting.
    fn fate_of_acquire(&mut self, life: &Life) -> Fate {
        let mut fate = self.fate(life);
        if self.strikes(Fault::Late, 3.0) {
            fate.there += Duration::from_secs(1) + self.up_to(LATEST.as_millis() as u64 - 2_000);
        }
        if self.calm {
            fate.answer_lost = self.strikes(Fault::AnswerLost, 15.0);
        }
        fate
    }
}

impl SimulatedStore {
    /// Returns a connection for one life of a process.
    pub fn new(world: Shared, life: Arc<Life>) -> Self {
        Self { world, life }
    }

    /// Sends a request. Its fate does not depend on its sender: the store executes it even if the sender has given up
    /// or died.
    async fn ask<T: fmt::Debug + 'static>(
        &self,
        take: impl FnMut(&mut World) -> Option<T> + 'static,
        told: impl FnOnce(&mut World, &T, bool) + 'static,
    ) -> Result<T, StoreError> {
        if !self.life.is_alive() {
            return pending().await;
        }
        let fate = self.world.with(|world| world.fate(&self.life));
        self.send(fate, take, told).await
    }

    async fn send<T: fmt::Debug + 'static>(
        &self,
        fate: Fate,
        mut take: impl FnMut(&mut World) -> Option<T> + 'static,
        told: impl FnOnce(&mut World, &T, bool) + 'static,
    ) -> Result<T, StoreError> {
        if fate.refused || self.world.with(|world| world.is_away() && fate.reset) {
            sleep(fate.there).await;
            return Err(StoreError::unavailable("simulated: refused"));
        }
        let (sender, receiver) = oneshot::channel();
        let (world, life) = (self.world.clone(), Arc::clone(&self.life));
        actix_rt::spawn(async move {
            sleep(fate.there).await;
            if fate.request_lost || world.with(|world| world.is_away()) {
                return;
            }
            let Some(answer) = world.with(&mut take) else { return };
            sleep(fate.back + world.with(|world| world.pause_left(life.process))).await;
            let heard = !fate.answer_lost && life.is_alive() && !sender.is_closed();
            world.with(|world| told(world, &answer, heard));
            if heard {
                let _ = sender.send(answer);
            }
            if let Some(later) = fate.repeated {
                sleep(later).await;
                world.with(&mut take);
            }
        });
        match receiver.await {
            Ok(answer) if self.life.is_alive() => Ok(answer),
            Err(_) if fate.reset => {
                self.world.with(|world| world.counts(Fault::Reset));
                Err(StoreError::unknown("simulated: the connection broke"))
            }
            _ => pending().await,
        }
    }

    /// Executes a step of the record's life.
    async fn step<M: Clone + 'static, T: fmt::Debug + 'static>(
        &self,
        name: &'static str,
        key: Key,
        message: M,
        decide: fn(Option<&oncekey::record::Record>, oncekey::record::StoreTime, &M) -> Step<T>,
    ) -> Result<T, StoreError> {
        let take = move |world: &mut World| Some(world.step(name, &key, |found, now| decide(found, now, &message)));
        self.ask(take, |_, _, _| ()).await
    }
}

impl Backend for SimulatedStore {
    async fn acquire(&self, message: Acquire) -> Result<Acquired, StoreError> {
        if !self.life.is_alive() {
            return pending().await;
        }
        let (world, life) = (self.world.clone(), Arc::clone(&self.life));
        let fate = world.with(|world| {
            let fate = world.fate_of_acquire(&life);
            world.is_asked_for(message.owner, &life, fate.repeated.is_some());
            fate
        });
        let mut is_heard = true;
        let take = move |world: &mut World| {
            let key = &message.key;
            let answer = world.step("acquire", key, |found, now| transition::acquire(found, now, &message));
            // The answer to a repeated request reaches nobody.
            let is_heard = std::mem::replace(&mut is_heard, false) && life.is_alive();
            if let Acquired::Claimed { token, .. } = answer {
                world.is_granted(key, token, message.owner);
            }
            let promise = match answer {
                Acquired::Claimed { attempt, .. } if is_heard => {
                    Some(world.is_promised(key, attempt, message.owner, life.number))
                }
                _ => None,
            };
            Some((answer, promise))
        };
        let slow = self.world.with(|world| world.slow_acquires);
        let told = move |here: &mut World, (_, promise): &(Acquired, Option<u64>), heard: bool| {
            let Some(promise) = *promise else { return };
            if !heard {
                return here.is_not_promised(promise);
            }
            here.is_heard(promise);
            // A caller that learns of its claim begins at once, or after it was busy and the engine confirmed the
            // claim, or never.
            actix_rt::spawn(async move {
                sleep(BUSIEST + 2 * LEASE).await;
                world.with(|world| world.is_not_promised(promise));
            });
        };
        let (answer, _) = self.send(fate, take, told).await?;
        sleep(slow).await;
        Ok(answer)
    }

    async fn renew(&self, message: Renew) -> Result<Renewed, StoreError> {
        self.step("renew", message.key.clone(), message, transition::renew).await
    }

    async fn complete(&self, message: Complete) -> Result<Completed, StoreError> {
        let take = move |world: &mut World| {
            let mut message = message.clone();
            if world.ignores_owners() {
                message.owner = world.owner_of(&message.key).unwrap_or(message.owner);
            }
            Some(world.step("complete", &message.key, |found, now| transition::complete(found, now, &message)))
        };
        self.ask(take, |_, _, _| ()).await
    }

    async fn complete_in_transaction(
        &self,
        message: CompleteInTransaction,
    ) -> Result<CompletedInTransaction, StoreError> {
        let (life, mut message) = (Arc::clone(&self.life), Some(message));
        let take = move |world: &mut World| {
            // The transaction belongs to its client: it ends with the client, and its driver never sends it twice.
            let message = message.take().filter(|_| life.is_alive())?;
            Some(world.transact(message))
        };
        if self.world.commits_to_lose() > 0 && self.life.is_alive() {
            let fate = self.world.with(|world| {
                world.lost_commits -= 1;
                Fate { answer_lost: true, reset: true, ..world.fate(&self.life) }
            });
            return self.send(fate, take, |_, _, _| ()).await?;
        }
        self.ask(take, |_, _, _| ()).await?
    }

    async fn begin_step(&self, message: BeginStep) -> Result<StepBegun, StoreError> {
        self.ask(move |world: &mut World| Some(world.begin_step(&message)), |_, _, _| ()).await
    }

    async fn complete_step(&self, message: CompleteStep) -> Result<StepCompleted, StoreError> {
        self.step("complete step", message.key.clone(), message, transition::complete_step).await
    }

    async fn fail_step(&self, message: FailStep) -> Result<StepFailed, StoreError> {
        self.step("fail step", message.key.clone(), message, transition::fail_step).await
    }

    async fn resolve_step(&self, message: ResolveStep) -> Result<Resolved, StoreError> {
        self.step("resolve step", message.key.clone(), message, transition::resolve_step).await
    }

    async fn step_in_transaction(&self, message: StepInTransaction) -> Result<StepCommitted, StoreError> {
        let (life, mut message) = (Arc::clone(&self.life), Some(message));
        let take = move |world: &mut World| {
            // As for an operation, the transaction ends with its client, and is never sent twice.
            let message = message.take().filter(|_| life.is_alive())?;
            Some(world.transact_step(message))
        };
        self.ask(take, |_, _, _| ()).await
    }

    async fn release(&self, message: Release) -> Result<Released, StoreError> {
        self.step("release", message.key.clone(), message, transition::release).await
    }

    async fn withdraw(&self, message: Withdraw) -> Result<Withdrawn, StoreError> {
        self.step("withdraw", message.key.clone(), message, transition::withdraw).await
    }

    async fn hold(&self, message: Hold) -> Result<Held, StoreError> {
        self.step("hold", message.key.clone(), message, transition::hold).await
    }

    async fn resolve(&self, message: Resolve) -> Result<Resolved, StoreError> {
        self.step("resolve", message.key.clone(), message, transition::resolve).await
    }

    async fn lookup(&self, message: Lookup) -> Result<Option<RecordView>, StoreError> {
        let take = move |world: &mut World| {
            let (now, found) = (world.now(), world.record(&message.key));
            Some(found.and_then(|record| RecordView::of(message.key.clone(), record, now)))
        };
        self.ask(take, |_, _, _| ()).await
    }

    async fn remove(&self, message: Remove) -> Result<Removed, StoreError> {
        self.step("remove", message.key.clone(), message, transition::remove).await
    }

    async fn list(&self, message: List) -> Result<Vec<RecordView>, StoreError> {
        let take = move |world: &mut World| {
            let now = world.now();
            let later = world.records().filter(|(key, _)| message.after.as_ref().is_none_or(|after| *key > after));
            let views = later.filter_map(|(key, record)| RecordView::of(key.clone(), record.clone(), now));
            Some(views.take(message.limit).collect())
        };
        self.ask(take, |_, _, _| ()).await
    }

    async fn purge(&self, _: Purge) -> Result<Purged, StoreError> {
        // Nothing expires during a run.
        Ok(Purged { removed: 0, more: false })
    }

    async fn stats(&self, _: Stats) -> Result<StoreStats, StoreError> {
        let take = |world: &mut World| {
            let mut stats = StoreStats::default();
            for (_, record) in world.records() {
                match record.state {
                    oncekey::record::State::InProgress { .. } => stats.in_progress += 1,
                    oncekey::record::State::Completed { .. } => stats.completed += 1,
                    oncekey::record::State::Indeterminate => stats.indeterminate += 1,
                    oncekey::record::State::Released { .. } => stats.released += 1,
                    oncekey::record::State::Vacant { .. } => {}
                }
            }
            Some(stats)
        };
        self.ask(take, |_, _, _| ()).await
    }

    async fn watch(&self, message: Watch) -> Result<Changed, StoreError> {
        loop {
            sleep(Duration::from_millis(20) + self.world.up_to(40)).await;
            let found = self.lookup(Lookup { key: message.key.clone() }).await?;
            if !found.is_some_and(|view| matches!(view.state, StateView::InProgress { .. })) {
                return Ok(Changed);
            }
        }
    }
}
