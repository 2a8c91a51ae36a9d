//! Steps of operations on a real server: what each message does to the rows, and how it behaves beside others.

use std::time::Duration;

use futures_util::future::join_all;
use oncekey::backend::{
    Acquire, Acquired, Backend, BeginStep, Complete, CompleteStep, Completed, FailStep, List, Lookup, Purge,
    RecordView, Release, Released, Remove, Removed, Renew, Renewed, Request, Resolution, Resolve, ResolveStep,
    Resolved, StateView, StepBegun, StepCompleted, StepFailed, StepResolution, Withdraw, Withdrawn,
};
use oncekey::record::{Binding, Owner, PayloadKind, Progress, SealedOutcome, StepName, StepRun, Steps};
use oncekey::{Attempt, FencingToken, Fingerprint, Key, OnAbandoned, StepPolicy};

use crate::common::acquire;
use crate::sessions::reply;

pub(crate) const RETENTION: Duration = Duration::from_secs(60);

/// A claim that can be continued.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub(crate) key: Key,
    pub(crate) owner: Owner,
    pub(crate) token: FencingToken,
    pub(crate) steps: Option<Box<Steps>>,
}

pub(crate) fn name(name: &str) -> StepName {
    StepName::new(name).unwrap()
}

pub(crate) async fn claim_for(backend: &impl Backend, key: &str, lease: Duration) -> Held {
    let mut message = Acquire { lease, on_abandoned: OnAbandoned::Resume, ..acquire(key) };
    loop {
        match backend.acquire(message.clone()).await.unwrap() {
            Acquired::Claimed { token, steps, .. } => {
                return Held { key: message.key, owner: message.owner, token, steps };
            }
            Acquired::Withdrawn { owner } => message.past_withdrawal = Some(Box::new(owner)),
            // Its lease is about to lapse.
            Acquired::InProgress { lease_left } if lease_left < Duration::from_secs(1) => {}
            other => panic!("not claimed: {other:?}"),
        }
    }
}

pub(crate) async fn claim(backend: &impl Backend, key: &str) -> Held {
    claim_for(backend, key, Duration::from_secs(60)).await
}

impl Held {
    pub(crate) fn begin(&self, step: &str, number: u32) -> BeginStep {
        BeginStep {
            key: self.key.clone(),
            owner: self.owner,
            name: name(step),
            fingerprint: None,
            number,
            policy: StepPolicy::Hold,
            retention: RETENTION,
        }
    }

    pub(crate) fn run(&self, number: u32) -> StepRun {
        StepRun { token: self.token, number }
    }

    pub(crate) fn outcome(&self, life: FencingToken, step: &str, value: u32) -> SealedOutcome {
        SealedOutcome::seal(Binding::step(&self.key, life, &name(step)), PayloadKind::Json, |payload| {
            payload.extend_from_slice(value.to_string().as_bytes());
        })
    }

    pub(crate) fn complete(&self, life: FencingToken, step: &str, number: u32) -> CompleteStep {
        CompleteStep {
            key: self.key.clone(),
            life,
            name: name(step),
            run: self.run(number),
            outcome: self.outcome(life, step, number),
        }
    }

    pub(crate) fn fail(&self, step: &str, number: u32) -> FailStep {
        let (key, owner) = (self.key.clone(), self.owner);
        FailStep { key, owner, name: name(step), run: self.run(number), retention: RETENTION }
    }

    /// Begins a step and completes it, and returns the life.
    pub(crate) async fn done(&self, backend: &impl Backend, step: &str, number: u32) -> FencingToken {
        let begun = backend.begin_step(self.begin(step, number)).await.unwrap();
        let StepBegun::Begun { life, run, .. } = begun else { panic!("{begun:?}") };
        assert_eq!(run, self.run(number));
        assert_eq!(backend.complete_step(self.complete(life, step, number)).await, Ok(StepCompleted::Stored));
        life
    }

    pub(crate) async fn view(&self, backend: &impl Backend) -> Option<RecordView> {
        let view = backend.lookup(Lookup { key: self.key.clone() }).await.unwrap();
        let list = backend.list(List { after: None, limit: 100 }).await.unwrap();
        let listed = list.into_iter().find(|view| view.key == self.key);
        let steps = |view: &Option<RecordView>| view.as_ref().map(|view| view.steps.clone());
        assert_eq!(steps(&view), steps(&listed), "a list shows what a look-up shows");
        view
    }

    pub(crate) async fn lapsed(&self, backend: &impl Backend) {
        loop {
            match backend.lookup(Lookup { key: self.key.clone() }).await.unwrap().unwrap().state {
                StateView::InProgress { lease_left } if !lease_left.is_zero() => {}
                _ => return,
            }
        }
    }
}

/// Returns the names of the steps, and how far each has progressed.
pub(crate) fn progress(steps: Option<&Steps>) -> Vec<(String, &'static str)> {
    let steps = steps.map_or(&[][..], |steps| &steps.list);
    steps.iter().map(|step| (step.name.to_string(), step.progress.name())).collect()
}

fn told(steps: &[(&str, &'static str)]) -> Vec<(String, &'static str)> {
    steps.iter().map(|(name, progress)| ((*name).to_owned(), *progress)).collect()
}

/// A step begins once, and a repeated begin returns what is known about it.
pub(crate) async fn begins_once(backend: impl Backend) {
    let held = claim(&backend, "k").await;
    assert_eq!(held.steps, None);
    let begun = StepBegun::Begun { attempt: Attempt::FIRST, run: held.run(1), life: held.token };
    assert_eq!(backend.begin_step(held.begin("charge", 1)).await, Ok(begun.clone()));
    assert_eq!(backend.begin_step(held.begin("charge", 1)).await, Ok(begun), "the message was sent again");
    assert_eq!(backend.begin_step(held.begin("charge", 2)).await, Ok(StepBegun::Unsettled));
    let other = BeginStep { fingerprint: Some(Fingerprint::of(b"other")), ..held.begin("charge", 2) };
    assert_eq!(backend.begin_step(other.clone()).await, Ok(StepBegun::Mismatch));
    let completion = held.complete(held.token, "charge", 1);
    assert_eq!(backend.complete_step(completion.clone()).await, Ok(StepCompleted::Stored));
    assert_eq!(backend.complete_step(completion.clone()).await, Ok(StepCompleted::Stored), "sent again");
    let late = CompleteStep { run: held.run(9), ..completion.clone() };
    assert_eq!(backend.complete_step(late).await, Ok(StepCompleted::Lost));
    let replayed = StepBegun::Completed { outcome: completion.outcome, life: held.token };
    assert_eq!(backend.begin_step(held.begin("charge", 3)).await, Ok(replayed));
    assert_eq!(backend.begin_step(BeginStep { number: 4, ..other }).await, Ok(StepBegun::Mismatch));
    let stranger = BeginStep { owner: Owner::random(), ..held.begin("mail", 5) };
    assert_eq!(backend.begin_step(stranger).await, Ok(StepBegun::Lost));
    let view = held.view(&backend).await.unwrap();
    assert_eq!(progress(view.steps.as_deref()), told(&[("charge", "completed")]));
}

/// Checks each message of a failed step. A begin that arrives after its failure does not take effect.
pub(crate) async fn fails(backend: impl Backend) {
    let held = claim(&backend, "k").await;
    assert_eq!(backend.fail_step(held.fail("never", 1)).await, Ok(StepFailed::Failed));
    assert_eq!(backend.begin_step(held.begin("never", 1)).await, Ok(StepBegun::Lost), "it is late");
    let again = backend.begin_step(held.begin("never", 2)).await.unwrap();
    assert!(matches!(again, StepBegun::Begun { attempt: Attempt::FIRST, .. }), "{again:?}");
    assert_eq!(backend.fail_step(held.fail("never", 2)).await, Ok(StepFailed::Failed));
    let again = backend.begin_step(held.begin("never", 3)).await.unwrap();
    assert!(matches!(again, StepBegun::Begun { attempt, .. } if attempt.get() == 2), "{again:?}");
    assert_eq!(backend.complete_step(held.complete(held.token, "never", 3)).await, Ok(StepCompleted::Stored));
    let completed = backend.fail_step(held.fail("never", 3)).await.unwrap();
    assert!(matches!(completed, StepFailed::Completed { life, .. } if life == held.token), "{completed:?}");
}

/// A takeover brings all steps. The earlier holder begins nothing more, but may report on what it began.
pub(crate) async fn is_taken_over(backend: impl Backend) {
    let first = claim_for(&backend, "k", Duration::from_secs(1)).await;
    let life = first.done(&backend, "reserve", 1).await;
    let rerun = BeginStep { policy: StepPolicy::Rerun, ..first.begin("charge", 2) };
    assert!(matches!(backend.begin_step(rerun).await, Ok(StepBegun::Begun { .. })));
    first.lapsed(&backend).await;
    assert_eq!(backend.begin_step(first.begin("late", 3)).await, Ok(StepBegun::Lost), "its lease has lapsed");
    let second = claim(&backend, "k").await;
    let steps = second.steps.as_deref().unwrap();
    assert_eq!((steps.life, steps.retention), (life, RETENTION));
    assert_eq!(progress(Some(steps)), told(&[("reserve", "completed"), ("charge", "begun")]));
    assert!(
        matches!(&steps.list[0].progress, Progress::Completed(outcome) if *outcome == first.outcome(life, "reserve", 1))
    );
    assert_eq!(backend.begin_step(first.begin("late", 4)).await, Ok(StepBegun::Lost));
    // The first holder's outcome is a fact, until another run begins.
    assert_eq!(backend.complete_step(first.complete(life, "charge", 2)).await, Ok(StepCompleted::Stored));
    let replayed = backend.begin_step(second.begin("charge", 1)).await.unwrap();
    assert!(matches!(&replayed, StepBegun::Completed { outcome, .. } if *outcome == first.outcome(life, "charge", 2)));
    // The same owner gets the same answer again.
    let again = Acquire { owner: second.owner, on_abandoned: OnAbandoned::Resume, ..acquire("k") };
    let again = backend.acquire(again).await.unwrap();
    assert!(matches!(&again, Acquired::Claimed { steps: Some(steps), .. } if steps.list.len() == 2), "{again:?}");
}

/// A run of unknown effect makes the parent indeterminate, until that step is resolved.
pub(crate) async fn is_resolved(backend: impl Backend, sql: impl Fn(&str) -> String, table: &str) {
    for with in
        [StepResolution::Release, StepResolution::Complete { outcome: SealedOutcome::tombstone(&acquire("k").key) }]
    {
        let held = claim_for(&backend, "k", Duration::from_secs(1)).await;
        assert!(matches!(backend.begin_step(held.begin("charge", 1)).await, Ok(StepBegun::Begun { .. })));
        held.lapsed(&backend).await;
        let asked = backend.acquire(acquire("k")).await.unwrap();
        assert!(matches!(asked, Acquired::Indeterminate { .. }), "{asked:?}");
        assert_eq!(held.view(&backend).await.unwrap().state, StateView::Indeterminate);
        // The time since then does not matter, because the result is still unknown.
        sql(&format!("UPDATE {table} SET lease_until = 1, purge_at = 2"));
        assert_eq!(backend.purge(Purge { limit: 10 }).await.unwrap().removed, 0);
        assert_eq!(held.view(&backend).await.unwrap().state, StateView::Indeterminate);
        let release = Resolve { key: held.key.clone(), attempt: None, owner: None, with: Resolution::Release };
        let refused = backend.resolve(release).await;
        assert_eq!(refused, Ok(Resolved::UnsettledStep { step: name("charge") }));
        let word =
            ResolveStep { key: held.key.clone(), name: name("charge"), run: None, life: None, with: with.clone() };
        let other_run = ResolveStep { run: Some(held.run(7)), ..word.clone() };
        assert_eq!(backend.resolve_step(other_run).await, Ok(Resolved::NotIndeterminate));
        assert_eq!(backend.resolve_step(word.clone()).await, Ok(Resolved::Resolved));
        assert_eq!(backend.resolve_step(word).await, Ok(Resolved::NotIndeterminate));
        sql(&format!(
            "UPDATE {table} SET lease_until = {}, purge_at = 9000000000000",
            sql(&format!("SELECT max(began_at) FROM {table}_steps"))
        ));
        let next = claim(&backend, "k").await;
        let wanted = if with == StepResolution::Release { "failed" } else { "completed" };
        assert_eq!(progress(next.steps.as_deref()), told(&[("charge", wanted)]));
        assert_eq!(backend.remove(Remove { key: held.key.clone() }).await, Ok(Removed::Removed));
    }
}

/// A release keeps the steps and the fingerprint, and ends the key if no step is worth keeping.
pub(crate) async fn is_released(backend: impl Backend, sql: impl Fn(&str) -> String, table: &str) {
    let steps_left = || sql(&format!("SELECT count(*) FROM {table}_steps"));
    let held = claim(&backend, "k").await;
    let life = held.done(&backend, "reserve", 1).await;
    let release = Release { key: held.key.clone(), owner: held.owner };
    assert_eq!(backend.release(release.clone()).await, Ok(Released::Released));
    assert_eq!(backend.release(release).await, Ok(Released::Released), "sent again");
    let view = held.view(&backend).await.unwrap();
    assert!(matches!(view.state, StateView::Released { expires_in } if expires_in > RETENTION / 2), "{view:?}");
    assert_eq!(progress(view.steps.as_deref()), told(&[("reserve", "completed")]));
    let other = Acquire { fingerprint: Fingerprint::of(b"other"), ..acquire("k") };
    assert_eq!(backend.acquire(other).await, Ok(Acquired::Mismatch));
    let next = claim(&backend, "k").await;
    assert_eq!(next.steps.as_ref().map(|steps| steps.life), Some(life));
    // A key with a step of unknown effect is not released.
    assert!(matches!(backend.begin_step(next.begin("charge", 1)).await, Ok(StepBegun::Begun { .. })));
    let release = Release { key: next.key.clone(), owner: next.owner };
    assert_eq!(backend.release(release).await, Ok(Released::Unsettled { step: name("charge") }));
    assert_eq!(next.view(&backend).await.unwrap().state, StateView::Indeterminate);
    // Its owner may still report the outcome.
    assert_eq!(backend.complete_step(next.complete(life, "charge", 1)).await, Ok(StepCompleted::Stored));
    let third = claim(&backend, "k").await;
    let withdraw = Withdraw { key: third.key.clone(), owner: third.owner };
    assert_eq!(backend.withdraw(withdraw).await, Ok(Withdrawn));
    assert!(matches!(third.view(&backend).await.unwrap().state, StateView::Released { .. }));
    // Its time ends. The next life has none of its steps, and no row is left.
    sql(&format!("UPDATE {table} SET purge_at = 1, barrier_until = 1"));
    assert_eq!(third.view(&backend).await, None);
    assert_eq!(steps_left(), "2");
    let fourth = claim(&backend, "k").await;
    assert_eq!(fourth.steps, None);
    assert_eq!(steps_left(), "0");
    assert_eq!(backend.complete_step(next.complete(life, "charge", 1)).await, Ok(StepCompleted::Lost));
    assert_ne!(fourth.done(&backend, "reserve", 1).await, life);
    // A failed step left nothing.
    let fifth = claim(&backend, "failed").await;
    assert!(matches!(backend.begin_step(fifth.begin("charge", 1)).await, Ok(StepBegun::Begun { .. })));
    assert_eq!(backend.fail_step(fifth.fail("charge", 1)).await, Ok(StepFailed::Failed));
    let release = Release { key: fifth.key.clone(), owner: fifth.owner };
    assert_eq!(backend.release(release).await, Ok(Released::Released));
    assert_eq!(fifth.view(&backend).await, None);
    assert_eq!(steps_left(), "1");
}

/// A completed parent keeps its steps until its time ends. Its renewals and its completion do not touch them.
pub(crate) async fn completes_with_its_steps(backend: impl Backend, sql: impl Fn(&str) -> String, table: &str) {
    let held = claim(&backend, "k").await;
    held.done(&backend, "reserve", 1).await;
    let renew = Renew { key: held.key.clone(), owner: held.owner, lease: Duration::from_secs(60) };
    assert_eq!(backend.renew(renew.clone()).await, Ok(Renewed::Renewed));
    assert!(matches!(backend.begin_step(held.begin("charge", 2)).await, Ok(StepBegun::Begun { .. })));
    assert_eq!(backend.renew(renew).await, Ok(Renewed::Renewed));
    let outcome = SealedOutcome::of_value(&held.key, &17).unwrap();
    let completion =
        Complete { key: held.key.clone(), owner: held.owner, outcome: outcome.clone(), retention: RETENTION };
    assert_eq!(backend.complete(completion.clone()).await, Ok(Completed::Stored));
    assert_eq!(backend.complete(completion).await, Ok(Completed::Stored), "sent again");
    assert_eq!(backend.acquire(acquire("k")).await, Ok(Acquired::Completed { outcome }));
    assert_eq!(backend.complete_step(held.complete(held.token, "charge", 2)).await, Ok(StepCompleted::Stored));
    let view = held.view(&backend).await.unwrap();
    assert_eq!(progress(view.steps.as_deref()), told(&[("reserve", "completed"), ("charge", "completed")]));
    sql(&format!("UPDATE {table} SET purge_at = 1"));
    assert_eq!(held.view(&backend).await, None);
    assert_eq!(claim(&backend, "k").await.steps, None);
    assert_eq!(sql(&format!("SELECT count(*) FROM {table}_steps")), "0");
}

/// Removal and purge delete the steps too, and a purge counts them.
pub(crate) async fn are_removed(backend: impl Backend, sql: impl Fn(&str) -> String, table: &str) {
    let count = || sql(&format!("SELECT (SELECT count(*) FROM {table}) + (SELECT count(*) FROM {table}_steps)"));
    let with_steps = async |key: &str, steps: u32| {
        let held = claim(&backend, key).await;
        for number in 1..=steps {
            held.done(&backend, &format!("step {number}"), number).await;
        }
        held
    };
    let held = with_steps("removed", 3).await;
    assert_eq!(backend.remove(Remove { key: held.key.clone() }).await, Ok(Removed::Removed));
    assert_eq!(count(), "0");
    let held = with_steps("corrupt", 2).await;
    sql(&format!("UPDATE {table} SET state = 9"));
    assert_eq!(backend.remove(Remove { key: held.key.clone() }).await, Ok(Removed::Removed));
    assert_eq!(count(), "0");
    for key in ["a", "b", "c", "d"] {
        let held = with_steps(key, 3).await;
        let release = Release { key: held.key.clone(), owner: held.owner };
        assert_eq!(backend.release(release).await, Ok(Released::Released));
    }
    with_steps("stays", 2).await;
    with_steps("alone", 0).await;
    // The released records, and one claim that no caller takes over.
    sql(&format!("UPDATE {table} SET purge_at = 1 WHERE state = 5"));
    assert_eq!(count(), "20");
    for (limit, removed, more) in [(1, 4, true), (10, 8, true), (100, 4, false), (100, 0, false)] {
        let purged = backend.purge(Purge { limit }).await.unwrap();
        assert_eq!((purged.removed, purged.more), (removed, more), "{limit}");
    }
    assert_eq!(count(), "4");
    // An abandoned claim is purged once its steps are settled and its retention has passed.
    sql(&format!("UPDATE {table} SET purge_at = 1 WHERE state = 1 AND steps_life IS NOT NULL"));
    assert_eq!(backend.purge(Purge { limit: 100 }).await.unwrap().removed, 0);
    sql(&format!("UPDATE {table} SET purge_at = 1, lease_until = 1 WHERE state = 1 AND steps_life IS NOT NULL"));
    assert_eq!(backend.purge(Purge { limit: 100 }).await.unwrap().removed, 3);
    assert_eq!(count(), "1");
}

/// A decision from before a record's first step does not undo the step when it arrives after it.
pub(crate) async fn first_step_beats_a_late_release(
    backend: impl Backend,
    late: impl Backend,
    proxy: &tests::proxy::Proxy,
) {
    let held = claim(&backend, "k").await;
    proxy.hold("DELETE");
    let release = Release { key: held.key.clone(), owner: held.owner };
    let releasing = actix_rt::spawn(async move { late.release(release).await });
    tests::process::until("a release on its way", async || proxy.held() == 1).await;
    held.done(&backend, "charge", 1).await;
    proxy.let_go();
    assert_eq!(releasing.await.unwrap(), Ok(Released::Released));
    let view = held.view(&backend).await.unwrap();
    assert!(matches!(view.state, StateView::Released { .. }), "{view:?}");
    assert_eq!(progress(view.steps.as_deref()), told(&[("charge", "completed")]));
}

/// Steps of many records and of one run concurrently. A leftover row of an earlier life belongs to no record.
pub(crate) async fn run_side_by_side(
    backend: impl Backend,
    sql: impl Fn(&str) -> String,
    table: &str,
    key_column: &str,
) {
    let (answered, answers) = std::sync::mpsc::channel();
    let mut holders = Vec::new();
    for number in 0..40 {
        holders.push(claim(&backend, &format!("k{number:02}")).await);
    }
    // The application's own SQL left these rows of an earlier life.
    let left_over = format!(
        "INSERT INTO {table}_steps ({key_column}, name, life, ordinal, attempt, run_token, run_number, began_at, state) VALUES \
         ('{}', '{{}}', 5, 0, 1, 5, 1, 1, 1)",
        holders[3].key.as_stored()
    );
    for step in ["left over", "a"] {
        sql(&left_over.replace("{}", step));
    }
    let begins = |step: &str, number: u32| -> Vec<Request> {
        let begin = |held: &Held| {
            let message = Box::new(held.begin(step, number));
            Request::BeginStep(message, reply(held.key.as_stored(), &answered))
        };
        holders.iter().map(begin).collect()
    };
    let mut batch = begins("a", 1);
    batch.extend(begins("b", 2));
    backend.execute(batch).await;
    let begun: Vec<_> = answers.try_iter().collect();
    assert_eq!(begun.len(), 80);
    for (key, answer) in &begun {
        assert!(matches!(answer, Ok(StepBegun::Begun { attempt: Attempt::FIRST, .. })), "{key}: {answer:?}");
    }
    let (answered, answers) = std::sync::mpsc::channel();
    let mut batch: Vec<Request> = Vec::new();
    for (step, number) in [("a", 1), ("b", 2)] {
        batch.extend(holders.iter().enumerate().map(|(index, held)| {
            let mut message = held.complete(held.token, step, number);
            // One of them is not of this run.
            if index == 7 {
                message.run.number += 5;
            }
            Request::CompleteStep(Box::new(message), reply(&format!("{index}"), &answered))
        }));
    }
    backend.execute(batch).await;
    for (index, answer) in answers.try_iter() {
        let wanted = if index == "7" { StepCompleted::Lost } else { StepCompleted::Stored };
        assert_eq!(answer, Ok(wanted), "{index}");
    }
    for (index, held) in holders.iter().enumerate() {
        let view = held.view(&backend).await.unwrap();
        let wanted = if index == 7 { "begun" } else { "completed" };
        assert_eq!(progress(view.steps.as_deref()), told(&[("a", wanted), ("b", wanted)]), "{index}");
        if index != 7 {
            let outcomes: Vec<_> = view.steps.unwrap().list.into_iter().map(|step| step.progress).collect();
            let of = |step, number| Progress::Completed(held.outcome(held.token, step, number));
            assert_eq!(outcomes, [of("a", 1), of("b", 2)]);
        }
    }
    // Connections of many batches begin these steps at once.
    let held = claim(&backend, "one").await;
    let names: Vec<_> = (1..=20).map(|number| format!("s{number}")).collect();
    let begun = join_all((1..).zip(&names).map(|(number, step)| held.done(&backend, step, number))).await;
    assert!(begun.iter().all(|life| *life == held.token));
    assert_eq!(held.view(&backend).await.unwrap().steps.unwrap().list.len(), 20);
}

/// A record has no more steps than the limit.
pub(crate) async fn are_limited(backend: impl Backend) {
    let held = claim(&backend, "k").await;
    let (answered, answers) = std::sync::mpsc::channel();
    let begin = |number: u32| {
        let message = Box::new(held.begin(&format!("s{number}"), number));
        Request::BeginStep(message, reply("k", &answered))
    };
    let limit = u32::try_from(Steps::MAX).unwrap();
    let batches =
        (0..2).map(|half| backend.execute((1..=limit).filter(|number| number % 2 == half).map(begin).collect()));
    join_all(batches).await;
    backend.execute(vec![begin(limit + 1)]).await;
    let answers: Vec<_> = answers.try_iter().map(|(_, answer)| answer.unwrap()).collect();
    assert_eq!(answers.iter().filter(|answer| matches!(answer, StepBegun::Begun { .. })).count(), Steps::MAX);
    assert_eq!(answers.last(), Some(&StepBegun::TooMany));
    assert_eq!(held.view(&backend).await.unwrap().steps.unwrap().list.len(), Steps::MAX);
}

/// Checks for every database, in the module of one of them.
macro_rules! steps_on_database {
    (
        backend: $backend:ident,
        connection: $connection:ty,
        key_column: $key_column:literal $(,)?
    ) => {
        mod with_steps {
            use oncekey::StepError;
            use oncekey::backend::{BeginStep, CommitStep, StepBegun, StepCommitted, StepCompleted, StepInTransaction};
            use oncekey::record::Progress;

            use super::*;
            use crate::steps::{Held, RETENTION, claim, claim_for, name, progress};

            #[actix_rt::test]
            async fn e26_a_step_begins_once() {
                steps::begins_once(open(&fresh_table()).await).await;
            }

            #[actix_rt::test]
            async fn e26_a_failed_step_runs_again_and_a_late_begin_does_not_land() {
                steps::fails(open(&fresh_table()).await).await;
            }

            #[actix_rt::test]
            async fn e26_a_takeover_brings_the_steps() {
                steps::is_taken_over(open(&fresh_table()).await).await;
            }

            #[actix_rt::test]
            async fn e26_an_unsettled_step_is_for_somebody_to_settle() {
                let table = fresh_table();
                steps::is_resolved(open(&table).await, |text| SERVER.sql(text), &table).await;
            }

            #[actix_rt::test]
            async fn e26_a_released_parent_keeps_its_steps_until_its_time_ends() {
                let table = fresh_table();
                steps::is_released(open(&table).await, |text| SERVER.sql(text), &table).await;
            }

            #[actix_rt::test]
            async fn e26_a_completed_parent_keeps_its_steps_until_its_time_ends() {
                let table = fresh_table();
                steps::completes_with_its_steps(open(&table).await, |text| SERVER.sql(text), &table).await;
            }

            #[actix_rt::test]
            async fn e26_removal_and_purge_leave_no_orphan() {
                let table = fresh_table();
                steps::are_removed(open(&table).await, |text| SERVER.sql(text), &table).await;
            }

            #[actix_rt::test]
            async fn e26_a_release_that_arrives_late_frees_no_key_with_a_step() {
                let (table, proxy) = (fresh_table(), Proxy::before(SERVER.port()));
                let (backend, late) = (open(&table).await, open_through(&proxy, &table).await);
                steps::first_step_beats_a_late_release(backend, late, &proxy).await;
            }

            #[actix_rt::test]
            async fn e26_steps_run_side_by_side() {
                let table = fresh_table();
                steps::run_side_by_side(open(&table).await, |text| SERVER.sql(text), &table, $key_column).await;
            }

            #[actix_rt::test]
            async fn e26_a_parent_has_a_thousand_steps_at_most() {
                steps::are_limited(open(&fresh_table()).await).await;
            }

            fn commit(held: &Held, step: &str, number: u32) -> CommitStep {
                CommitStep {
                    key: held.key.clone(),
                    owner: held.owner,
                    name: name(step),
                    fingerprint: None,
                    number,
                    life: held.steps.as_ref().map_or(held.token, |steps| steps.life),
                    retention: RETENTION,
                }
            }

            fn inserting(held: &Held, rows: &str) -> TransactionOperation {
                let (text, outcome) = (format!("INSERT INTO {rows} VALUES (1)"), held.outcome(held.token, "order", 1));
                TransactionOperation::new_async(async move |tx: &mut $connection| {
                    tx.batch_execute(&text).await.unwrap();
                    Ok(outcome.clone())
                })
            }

            /// The rows and the step commit together, once.
            #[actix_rt::test]
            async fn e26_a_steps_rows_commit_with_its_outcome() {
                SERVER.sql("CREATE TABLE step_rows (n int)");
                let table = fresh_table();
                let backend = open(&table).await;
                let held = claim(&backend, "k").await;
                for number in 1..=2 {
                    let operation = inserting(&held, "step_rows");
                    let message = StepInTransaction { step: commit(&held, "order", number), operation };
                    let answer = backend.step_in_transaction(message).await.unwrap();
                    let (outcome, life) = (held.outcome(held.token, "order", 1), held.token);
                    let wanted = match number {
                        1 => StepCommitted::Stored { outcome, life },
                        _ => StepCommitted::Completed { outcome, life },
                    };
                    assert_eq!(answer, wanted);
                }
                let failing = TransactionOperation::new_async(async move |tx: &mut $connection| {
                    tx.batch_execute("INSERT INTO step_rows VALUES (2)").await.unwrap();
                    Err(oncekey::backend::OperationFailure::RollBack)
                });
                let message = StepInTransaction { step: commit(&held, "failing", 3), operation: failing };
                assert_eq!(backend.step_in_transaction(message).await, Ok(StepCommitted::RolledBack));
                assert_eq!(SERVER.sql("SELECT n FROM step_rows"), "1");
                let view = held.view(&backend).await.unwrap();
                assert_eq!(progress(view.steps.as_deref()), [("order".to_owned(), "completed")]);
            }

            /// While a step's operation runs, its parent is renewed, and its sibling steps begin and end.
            #[actix_rt::test]
            async fn e26_a_steps_transaction_keeps_nobody_waiting() {
                SERVER.sql("CREATE TABLE slow_step (n int)");
                let table = fresh_table();
                let backend = open(&table).await;
                let held = claim(&backend, "k").await;
                let (beside, sibling) = (backend.clone(), held.clone());
                let outcome = held.outcome(held.token, "order", 1);
                let operation = TransactionOperation::new_async(async move |tx: &mut $connection| {
                    tx.batch_execute("INSERT INTO slow_step VALUES (1)").await.unwrap();
                    let (key, owner) = (sibling.key.clone(), sibling.owner);
                    let renew = Renew { key, owner, lease: Duration::from_secs(60) };
                    assert_eq!(beside.renew(renew).await, Ok(Renewed::Renewed));
                    sibling.done(&beside, "sibling", 2).await;
                    Ok(outcome.clone())
                });
                let message = StepInTransaction { step: commit(&held, "order", 1), operation };
                let answer = backend.step_in_transaction(message).await;
                assert!(matches!(answer, Ok(StepCommitted::Stored { .. })), "{answer:?}");
                let view = held.view(&backend).await.unwrap();
                assert_eq!(view.steps.unwrap().list.len(), 2);
            }

            /// A holder that was away for longer than its lease while its step ran commits nothing.
            #[actix_rt::test]
            async fn e26_a_step_of_a_lost_claim_commits_nothing() {
                SERVER.sql("CREATE TABLE late_step (n int)");
                let table = fresh_table();
                let (backend, other) = (open(&table).await, open(&table).await);
                let held = claim_for(&backend, "k", Duration::from_millis(500)).await;
                let outcome = held.outcome(held.token, "order", 1);
                let operation = TransactionOperation::new_async(async move |tx: &mut $connection| {
                    tx.batch_execute("INSERT INTO late_step VALUES (1)").await.unwrap();
                    assert_eq!(claim(&other, "k").await.steps, None);
                    Ok(outcome.clone())
                });
                let message = StepInTransaction { step: commit(&held, "order", 1), operation };
                assert_eq!(backend.step_in_transaction(message).await, Ok(StepCommitted::Lost));
                // It does not run again either.
                let operation = inserting(&held, "late_step");
                let message = StepInTransaction { step: commit(&held, "order", 2), operation };
                assert_eq!(backend.step_in_transaction(message).await, Ok(StepCommitted::Lost));
                assert_eq!(SERVER.sql("SELECT count(*) FROM late_step"), "0");
                assert_eq!(SERVER.sql(&format!("SELECT count(*) FROM {table}_steps")), "0");
            }

            /// Another run of the step ends while this run's transaction is open, which may have an older snapshot.
            #[actix_rt::test]
            async fn e26_a_step_that_was_completed_meanwhile_is_not_committed_again() {
                SERVER.sql("CREATE TABLE twice_step (n int)");
                let table = fresh_table();
                let backend = open(&table).await;
                let first = claim_for(&backend, "k", Duration::from_millis(500)).await;
                let rerun = BeginStep { policy: oncekey::StepPolicy::Rerun, ..first.begin("order", 1) };
                assert!(matches!(backend.begin_step(rerun).await, Ok(StepBegun::Begun { .. })));
                first.lapsed(&backend).await;
                let second = claim(&backend, "k").await;
                let (beside, life) = (backend.clone(), first.token);
                let (completion, outcome) = (first.complete(life, "order", 1), second.outcome(life, "order", 9));
                let stored = completion.outcome.clone();
                let operation = TransactionOperation::new_async(async move |tx: &mut $connection| {
                    tx.batch_execute("INSERT INTO twice_step VALUES (1)").await.unwrap();
                    assert_eq!(beside.complete_step(completion.clone()).await, Ok(StepCompleted::Stored));
                    Ok(outcome.clone())
                });
                let message = StepInTransaction { step: commit(&second, "order", 1), operation };
                let answer = backend.step_in_transaction(message).await;
                assert_eq!(answer, Ok(StepCommitted::Completed { outcome: stored, life }));
                assert_eq!(SERVER.sql("SELECT count(*) FROM twice_step"), "0");
            }

            /// A step's operation must not end its transaction. If it does, the step is not completed by itself.
            #[actix_rt::test]
            async fn e26_a_step_that_ends_its_transaction_completes_nothing() {
                let table = fresh_table();
                let backend = open(&table).await;
                let held = claim(&backend, "k").await;
                let outcome = held.outcome(held.token, "order", 1);
                let operation = TransactionOperation::new_async(async move |tx: &mut $connection| {
                    tx.batch_execute("COMMIT").await.unwrap();
                    Ok(outcome.clone())
                });
                let message = StepInTransaction { step: commit(&held, "order", 1), operation };
                assert_eq!(backend.step_in_transaction(message).await, Err(StoreError::TransactionEnded));
                assert_eq!(SERVER.sql(&format!("SELECT count(*) FROM {table}_steps")), "0");
            }

            /// The connection is cut after COMMIT. The step shows that the commit took place, and nothing runs again.
            #[actix_rt::test]
            async fn e26_a_steps_commit_without_an_answer_is_found_again() {
                SERVER.sql("CREATE TABLE cut_step (n int)");
                let (table, proxy) = (fresh_table(), Proxy::before(SERVER.port()));
                let backend = open_through(&proxy, &table).await;
                let engine = Engine::builder(backend).on_abandoned(OnAbandoned::Resume).start().unwrap();
                for number in 0..5 {
                    let cutting = proxy.clone();
                    let ran = engine.run_local(Key::new("s", number).unwrap(), b"", async move |claim: Claim| {
                        let plain = claim.step("plain", async |_| Ok::<u32, diesel::result::Error>(3)).await?;
                        cutting.cut_commits(1);
                        let ordered = claim
                            .step_in_async_transaction("order", async |tx: &mut $connection, _| {
                                tx.batch_execute("INSERT INTO cut_step VALUES (1)").await?;
                                Ok::<u32, diesel::result::Error>(14)
                            })
                            .await?;
                        Ok::<u32, StepError<diesel::result::Error>>(plain + ordered)
                    });
                    assert_eq!(ran.await.unwrap(), Outcome::Ran(17));
                    assert_eq!(proxy.commits_left(), 0);
                }
                assert_eq!(SERVER.sql("SELECT count(*) FROM cut_step"), "5");
                let begun = format!("SELECT count(*) FROM {table}_steps WHERE state <> 2");
                assert_eq!(SERVER.sql(&begun), "0");
            }

            /// This runs on the application's own pool.
            #[actix_rt::test]
            async fn e26_an_operation_continues_where_its_last_try_ended() {
                let backend = $backend::from_pool(pool()).table(&fresh_table()).unwrap().open().await.unwrap();
                let engine = Engine::builder(backend).on_abandoned(OnAbandoned::Resume).start().unwrap();
                let charged = Arc::new(AtomicUsize::new(0));
                let checkout = async |fails: bool| {
                    let charged = Arc::clone(&charged);
                    let operation = async move |claim: Claim| {
                        let (one, other) = futures_util::future::join(
                            claim.step("reserve", async |_| Ok::<u32, ()>(1)),
                            claim.step("charge", async |_| {
                                charged.fetch_add(1, Ordering::Relaxed);
                                Ok::<u32, ()>(2)
                            }),
                        )
                        .await;
                        if fails { Err(()) } else { Ok(one.map_err(drop)? + other.map_err(drop)?) }
                    };
                    engine.run_local(Key::new("s", "checkout").unwrap(), b"", operation).await
                };
                assert!(matches!(checkout(true).await, Err(RunError::Operation(()))));
                assert_eq!(checkout(false).await.unwrap(), Outcome::Ran(3));
                assert_eq!(checkout(false).await.unwrap(), Outcome::Replayed(3));
                assert_eq!(charged.load(Ordering::Relaxed), 1);
                let view = engine.lookup(&Key::new("s", "checkout").unwrap()).await.unwrap().unwrap();
                let steps = view.steps.unwrap().list;
                assert!(steps.iter().all(|step| matches!(step.progress, Progress::Completed(_))), "{steps:?}");
            }
        }
    };
}
pub(crate) use steps_on_database;
