//! The steps of an operation, through the backend's own messages.

use std::time::Duration;

use super::{LONG, SHORT, Store, acquire, claim, fresh_key, outcome, until};
use crate::backend::{
    Acquire, Acquired, Backend, BeginStep, CommitStep, Complete, CompleteStep, Completed, FailStep, List, Lookup,
    OperationFailure, Purge, RecordView, Release, Released, Remove, Removed, Renew, Renewed, Resolution, Resolve,
    ResolveStep, Resolved, StateView, StepBegun, StepCommitted, StepCompleted, StepFailed, StepInTransaction,
    StepResolution, StoreError, TransactionOperation,
};
use crate::record::{Binding, Owner, Progress, SealedOutcome, StepName, StepRun, Steps};
use crate::{Attempt, FencingToken, Fingerprint, Key, OnAbandoned, StepPolicy};

fn name(text: &str) -> StepName {
    StepName::new(text).unwrap()
}

/// Returns a begin message for the `number`th step of a claim.
fn begin(key: &Key, owner: Owner, step: &str, number: u32, policy: StepPolicy) -> BeginStep {
    let (key, name) = (key.clone(), name(step));
    BeginStep { key, owner, name, fingerprint: None, number, policy, retention: LONG }
}

fn value(key: &Key, life: FencingToken, step: &str, text: &str) -> SealedOutcome {
    SealedOutcome::of_value(Binding::step(key, life, &name(step)), text).unwrap()
}

/// Begins a step, and expects that the sender may run it.
async fn begun(backend: &impl Backend, message: BeginStep) -> (Attempt, StepRun, FencingToken) {
    match backend.begin_step(message).await.unwrap() {
        StepBegun::Begun { attempt, run, life } => (attempt, run, life),
        other => panic!("the step did not begin: {other:?}"),
    }
}

async fn completed(backend: &impl Backend, key: &Key, run: StepRun, life: FencingToken, step: &str) -> StepCompleted {
    let message = CompleteStep { key: key.clone(), life, name: name(step), run, outcome: value(key, life, step, step) };
    backend.complete_step(message).await.unwrap()
}

/// Begins and completes a step.
async fn done(backend: &impl Backend, key: &Key, owner: Owner, step: &str, number: u32) -> FencingToken {
    let (_, run, life) = begun(backend, begin(key, owner, step, number, StepPolicy::Hold)).await;
    assert_eq!(completed(backend, key, run, life, step).await, StepCompleted::Stored);
    life
}

async fn view(backend: &impl Backend, key: &Key) -> Option<RecordView> {
    backend.lookup(Lookup { key: key.clone() }).await.unwrap()
}

async fn has_lapsed(backend: &impl Backend, key: &Key) -> bool {
    match view(backend, key).await.map(|view| view.state) {
        Some(StateView::InProgress { lease_left }) => lease_left.is_zero(),
        _ => true,
    }
}

/// Claims the key, and returns the owner, the attempt and the steps that the claim brought.
async fn claim_again(backend: &impl Backend, key: &Key) -> (Owner, Attempt, Option<Box<Steps>>) {
    let message = acquire(key, LONG, OnAbandoned::Resume);
    let owner = message.owner;
    match backend.acquire(message).await.unwrap() {
        Acquired::Claimed { attempt, steps, .. } => (owner, attempt, steps),
        other => panic!("the key was not claimed: {other:?}"),
    }
}

fn names(steps: &Steps) -> Vec<&str> {
    let mut names: Vec<_> = steps.list.iter().map(|step| step.name.as_str()).collect();
    names.sort_unstable();
    names
}

/// Returns whether the store has steps. A store without steps must refuse them.
async fn has_steps(store: &Store, backend: &impl Backend) -> bool {
    if !store.capabilities.steps {
        let key = fresh_key();
        let owner = claim(backend, &key, LONG, OnAbandoned::Hold).await;
        let answer = backend.begin_step(begin(&key, owner, "a", 1, StepPolicy::Hold)).await;
        assert!(matches!(answer, Err(StoreError::Unsupported(_))), "{answer:?}");
    }
    store.capabilities.steps
}

/// E26: a step begins and completes once, even if its messages are repeated, and answers with its outcome from then on.
pub async fn e26_a_step_begins_and_completes_once(store: &Store) {
    let (backend, other) = (store.connect().await, store.connect().await);
    if !has_steps(store, &backend).await {
        return;
    }
    let key = fresh_key();
    let owner = claim(&backend, &key, LONG, OnAbandoned::Resume).await;
    let token = view(&backend, &key).await.unwrap().token;
    let message = BeginStep {
        fingerprint: Some(Fingerprint::of(b"1999")),
        ..begin(&key, owner, "charge/für Ada", 1, StepPolicy::Hold)
    };
    for backend in [&backend, &other] {
        let (attempt, run, life) = begun(backend, message.clone()).await;
        assert_eq!((attempt, run, life), (Attempt::FIRST, StepRun { token, number: 1 }, token), "also when repeated");
    }
    // This is another call of the name, while the result of the first call is unknown.
    let again = BeginStep { number: 2, ..message.clone() };
    assert_eq!(backend.begin_step(again.clone()).await, Ok(StepBegun::Unsettled));
    // The outcome has every byte value, so any change by an encoding on the way is noticed.
    let bytes: Vec<u8> = (0..=255).collect();
    let stored =
        SealedOutcome::seal(Binding::step(&key, token, &message.name), crate::record::PayloadKind::Json, |out| {
            out.extend_from_slice(&bytes);
        });
    let run = StepRun { token, number: 1 };
    let complete =
        CompleteStep { key: key.clone(), life: token, name: message.name.clone(), run, outcome: stored.clone() };
    let stale = CompleteStep { run: StepRun { token, number: 7 }, ..complete.clone() };
    assert_eq!(backend.complete_step(stale).await, Ok(StepCompleted::Lost), "of another run");
    let foreign = CompleteStep { life: FencingToken::new(token.get() - 1), ..complete.clone() };
    assert_eq!(backend.complete_step(foreign).await, Ok(StepCompleted::Lost), "of another life");
    for backend in [&backend, &other] {
        assert_eq!(backend.complete_step(complete.clone()).await, Ok(StepCompleted::Stored), "also when repeated");
    }
    assert_eq!(
        other.begin_step(again.clone()).await,
        Ok(StepBegun::Completed { outcome: stored.clone(), life: token }),
        "by another connection"
    );
    let otherwise = BeginStep { fingerprint: Some(Fingerprint::of(b"2000")), ..again.clone() };
    assert_eq!(backend.begin_step(otherwise).await, Ok(StepBegun::Mismatch));
    assert_eq!(backend.begin_step(BeginStep { fingerprint: None, ..again.clone() }).await, Ok(StepBegun::Mismatch));
    let stranger = BeginStep { owner: Owner::random(), ..again };
    assert_eq!(backend.begin_step(stranger).await, Ok(StepBegun::Lost), "by somebody else");
    // Inspection shows the step under its parent, and the parent's completion keeps it.
    assert_eq!(backend.renew(Renew { key: key.clone(), owner, lease: LONG }).await, Ok(Renewed::Renewed));
    let message = Complete { key: key.clone(), owner, outcome: outcome(&key, "1"), retention: LONG };
    assert_eq!(backend.complete(message).await, Ok(Completed::Stored));
    let shown = view(&other, &key).await.unwrap().steps.unwrap();
    assert_eq!((shown.life, shown.list[0].progress.clone()), (token, Progress::Completed(stored)));
    let listed = other.list(List { after: None, limit: 100_000 }).await.unwrap();
    let listed: Vec<_> = listed.into_iter().filter(|view| view.key == key).collect();
    assert_eq!(listed.len(), 1, "a step is no record of its own");
    assert_eq!(listed[0].steps.as_deref().map(names), Some(vec!["charge/für Ada"]));
}

/// E26: a takeover of a lapsed claim brings its steps, and the holder that lost the claim begins none.
pub async fn e26_a_takeover_brings_the_steps(store: &Store) {
    let (backend, other) = (store.connect().await, store.connect().await);
    if !has_steps(store, &backend).await {
        return;
    }
    for on_abandoned in [OnAbandoned::Resume, OnAbandoned::Rerun] {
        let key = fresh_key();
        let owner = claim(&backend, &key, SHORT, on_abandoned).await;
        let life = done(&backend, &key, owner, "a", 1).await;
        done(&backend, &key, owner, "b", 2).await;
        until("the lease's end", async || has_lapsed(&other, &key).await).await;
        let late = begin(&key, owner, "c", 3, StepPolicy::Hold);
        assert_eq!(backend.begin_step(late.clone()).await, Ok(StepBegun::Lost), "past the lease");
        let (next, attempt, steps) = claim_again(&other, &key).await;
        let steps = steps.expect("the takeover brings the steps");
        assert_eq!((attempt.get(), steps.life, names(&steps)), (2, life, vec!["a", "b"]));
        assert_eq!(steps.retention, LONG);
        for step in &steps.list {
            let stored = value(&key, life, step.name.as_str(), step.name.as_str());
            assert_eq!(step.progress, Progress::Completed(stored));
        }
        assert_eq!(backend.begin_step(late).await, Ok(StepBegun::Lost), "the claim is another's");
        // The life continues, and the steps of later attempts carry it too.
        let (_, run, later) = begun(&other, begin(&key, next, "c", 1, StepPolicy::Hold)).await;
        assert_eq!(later, life);
        assert_eq!(completed(&other, &key, run, later, "c").await, StepCompleted::Stored);
        // The same holder asks again because the answer to its claim was lost.
        let again = Acquire { owner: next, ..acquire(&key, LONG, OnAbandoned::Resume) };
        let Ok(Acquired::Claimed { steps: Some(steps), .. }) = other.acquire(again).await else { panic!("not again") };
        assert_eq!(names(&steps), ["a", "b", "c"]);
    }
}

/// E26: a step that began and whose result is unknown makes its abandoned parent indeterminate, until that step is
/// resolved.
pub async fn e26_an_unsettled_step_makes_its_parent_indeterminate(store: &Store) {
    let backend = store.connect().await;
    if !has_steps(store, &backend).await {
        return;
    }
    for on_abandoned in [OnAbandoned::Resume, OnAbandoned::Rerun] {
        for happened in [true, false] {
            let key = fresh_key();
            let owner = claim(&backend, &key, SHORT, on_abandoned).await;
            let life = done(&backend, &key, owner, "a", 1).await;
            begun(&backend, begin(&key, owner, "b", 2, StepPolicy::Hold)).await;
            let resolve = |with| ResolveStep { key: key.clone(), name: name("b"), run: None, life: Some(life), with };
            let early = backend.resolve_step(resolve(StepResolution::Release)).await;
            assert_eq!(early, Ok(Resolved::NotIndeterminate), "it runs");
            until("the lease's end", async || has_lapsed(&backend, &key).await).await;
            assert_eq!(view(&backend, &key).await.unwrap().state, StateView::Indeterminate);
            let asked = backend.acquire(acquire(&key, LONG, OnAbandoned::Resume)).await;
            assert_eq!(asked, Ok(Acquired::Indeterminate { attempt: Attempt::FIRST, owner }));
            let release = Resolve { key: key.clone(), attempt: None, owner: None, with: Resolution::Release };
            assert_eq!(backend.resolve(release).await, Ok(Resolved::UnsettledStep { step: name("b") }));
            let with = if happened {
                StepResolution::Complete { outcome: value(&key, life, "b", "found out") }
            } else {
                StepResolution::Release
            };
            let done = ResolveStep { name: name("a"), ..resolve(with.clone()) };
            assert_eq!(backend.resolve_step(done).await, Ok(Resolved::NotIndeterminate), "a settled step");
            assert_eq!(backend.resolve_step(resolve(with.clone())).await, Ok(Resolved::Resolved));
            assert_eq!(backend.resolve_step(resolve(with)).await, Ok(Resolved::NotIndeterminate), "twice");
            let (next, _, steps) = claim_again(&backend, &key).await;
            assert!(steps.is_some());
            let again = backend.begin_step(begin(&key, next, "b", 1, StepPolicy::Hold)).await.unwrap();
            match again {
                StepBegun::Completed { outcome, .. } if happened => {
                    assert_eq!(outcome, value(&key, life, "b", "found out"));
                }
                StepBegun::Begun { attempt, .. } if !happened => assert_eq!(attempt.get(), 2),
                other => panic!("{other:?}"),
            }
        }
    }
}

/// E26: a step that may run again does so under the claim that took over. Until it begins again, its first run may
/// still record its outcome. Where a limit is set, the provider's memory bounds the rerun.
pub async fn e26_a_step_that_may_run_again_does(store: &Store) {
    let backend = store.connect().await;
    if !has_steps(store, &backend).await {
        return;
    }
    for records_late in [true, false] {
        let key = fresh_key();
        let owner = claim(&backend, &key, SHORT, OnAbandoned::Resume).await;
        let (_, first, life) = begun(&backend, begin(&key, owner, "a", 1, StepPolicy::Rerun)).await;
        until("the lease's end", async || has_lapsed(&backend, &key).await).await;
        let (next, ..) = claim_again(&backend, &key).await;
        if records_late {
            assert_eq!(completed(&backend, &key, first, life, "a").await, StepCompleted::Stored, "it is a fact");
            let replayed = backend.begin_step(begin(&key, next, "a", 1, StepPolicy::Rerun)).await;
            assert_eq!(replayed, Ok(StepBegun::Completed { outcome: value(&key, life, "a", "a"), life }));
            continue;
        }
        let (attempt, second, _) = begun(&backend, begin(&key, next, "a", 1, StepPolicy::Rerun)).await;
        assert_eq!(attempt.get(), 2);
        assert_eq!(completed(&backend, &key, first, life, "a").await, StepCompleted::Lost, "it has begun again");
        assert_eq!(completed(&backend, &key, second, life, "a").await, StepCompleted::Stored);
    }
    let key = fresh_key();
    let owner = claim(&backend, &key, Duration::from_millis(1), OnAbandoned::Resume).await;
    assert_eq!(backend.renew(Renew { key: key.clone(), owner, lease: SHORT }).await, Ok(Renewed::Renewed));
    begun(&backend, begin(&key, owner, "a", 1, StepPolicy::RerunWithin(2 * SHORT))).await;
    until("the end of the provider's memory", async || {
        view(&backend, &key).await.unwrap().state == StateView::Indeterminate
    })
    .await;
    let asked = backend.acquire(acquire(&key, LONG, OnAbandoned::Resume)).await;
    assert!(matches!(asked, Ok(Acquired::Indeterminate { .. })), "{asked:?}");
}

/// E26, E07: a released parent keeps its steps for the next attempt of the same request, for its retention.
pub async fn e26_a_released_parent_keeps_its_steps(store: &Store) {
    let backend = store.connect().await;
    if !has_steps(store, &backend).await {
        return;
    }
    let key = fresh_key();
    let owner = claim(&backend, &key, LONG, OnAbandoned::Hold).await;
    let life = done(&backend, &key, owner, "a", 1).await;
    for _ in 0..2 {
        let answer = backend.release(Release { key: key.clone(), owner }).await;
        assert_eq!(answer, Ok(Released::Released), "also when repeated");
    }
    let found = view(&backend, &key).await.unwrap();
    assert!(matches!(found.state, StateView::Released { expires_in } if expires_in <= LONG && expires_in > LONG / 2));
    assert_eq!(found.steps.as_deref().map(names), Some(vec!["a"]));
    let other = Acquire { fingerprint: Fingerprint::of(b"other"), ..acquire(&key, LONG, OnAbandoned::Hold) };
    assert_eq!(backend.acquire(other).await, Ok(Acquired::Mismatch));
    let (next, attempt, steps) = claim_again(&backend, &key).await;
    let steps = steps.expect("the steps are kept");
    assert_eq!((attempt.get(), steps.life, names(&steps)), (2, life, vec!["a"]));
    // A step that is still unsettled outranks what the operation reports.
    begun(&backend, begin(&key, next, "b", 1, StepPolicy::Hold)).await;
    let answer = backend.release(Release { key: key.clone(), owner: next }).await;
    assert_eq!(answer, Ok(Released::Unsettled { step: name("b") }));
    assert_eq!(view(&backend, &key).await.unwrap().state, StateView::Indeterminate);

    // The retention of the steps bounds how long they are kept.
    let key = fresh_key();
    let owner = claim(&backend, &key, LONG, OnAbandoned::Hold).await;
    let message = BeginStep { retention: SHORT, ..begin(&key, owner, "a", 1, StepPolicy::Hold) };
    let (_, run, life) = begun(&backend, message).await;
    assert_eq!(completed(&backend, &key, run, life, "a").await, StepCompleted::Stored);
    assert_eq!(backend.release(Release { key: key.clone(), owner }).await, Ok(Released::Released));
    until("the retention's end", async || view(&backend, &key).await.is_none()).await;
    let (_, attempt, steps) = claim_again(&backend, &key).await;
    assert_eq!((attempt, steps), (Attempt::FIRST, None));
}

/// E26, E19: a run that had no effect leaves nothing, and its begin message never takes effect, however late it
/// arrives.
pub async fn e26_a_failed_run_never_lands(store: &Store) {
    let backend = store.connect().await;
    if !has_steps(store, &backend).await {
        return;
    }
    let key = fresh_key();
    let owner = claim(&backend, &key, LONG, OnAbandoned::Resume).await;
    let token = view(&backend, &key).await.unwrap().token;
    let fail =
        |number| FailStep { key: key.clone(), owner, name: name("a"), run: StepRun { token, number }, retention: LONG };
    // The begin message is on its way, and the engine has given its run up.
    for _ in 0..2 {
        assert_eq!(backend.fail_step(fail(1)).await, Ok(StepFailed::Failed), "also when repeated");
    }
    let late = backend.begin_step(begin(&key, owner, "a", 1, StepPolicy::Rerun)).await;
    assert_eq!(late, Ok(StepBegun::Lost));
    // The name can be called again, and its earlier messages change nothing.
    begun(&backend, begin(&key, owner, "a", 2, StepPolicy::Hold)).await;
    assert_eq!(backend.fail_step(fail(1)).await, Ok(StepFailed::Failed));
    let late = backend.begin_step(begin(&key, owner, "a", 1, StepPolicy::Rerun)).await;
    assert_eq!(late, Ok(StepBegun::Lost));
    assert_eq!(completed(&backend, &key, StepRun { token, number: 1 }, token, "a").await, StepCompleted::Lost);
    // A step's error is not kept, so it does not prevent the parent's release.
    assert_eq!(backend.fail_step(fail(2)).await, Ok(StepFailed::Failed));
    assert_eq!(completed(&backend, &key, StepRun { token, number: 2 }, token, "a").await, StepCompleted::Lost);
    assert_eq!(backend.release(Release { key: key.clone(), owner }).await, Ok(Released::Released));
    let (_, attempt, _) = claim_again(&backend, &key).await;
    assert_eq!(attempt, Attempt::FIRST, "no step was worth keeping");
    let late = backend.begin_step(begin(&key, owner, "a", 3, StepPolicy::Rerun)).await;
    assert_eq!(late, Ok(StepBegun::Lost), "of a claim that was released");
}

/// E26: steps disappear with their parent, by removal and by its retention, and a later life sees none of them.
pub async fn e26_steps_end_with_their_parent(store: &Store) {
    let backend = store.connect().await;
    if !has_steps(store, &backend).await {
        return;
    }
    for removed in [true, false] {
        let key = fresh_key();
        let owner = claim(&backend, &key, LONG, OnAbandoned::Resume).await;
        let life = done(&backend, &key, owner, "a", 1).await;
        let (_, run, _) = begun(&backend, begin(&key, owner, "b", 2, StepPolicy::Hold)).await;
        if removed {
            assert_eq!(backend.remove(Remove { key: key.clone() }).await, Ok(Removed::Removed));
        } else {
            let message = Complete { key: key.clone(), owner, outcome: outcome(&key, "1"), retention: SHORT };
            assert_eq!(backend.complete(message).await, Ok(Completed::Stored));
            until("the retention's end", async || view(&backend, &key).await.is_none()).await;
            backend.purge(Purge { limit: 100 }).await.unwrap();
        }
        assert_eq!(view(&backend, &key).await, None);
        assert_eq!(completed(&backend, &key, run, life, "b").await, StepCompleted::Lost);
        let (next, attempt, steps) = claim_again(&backend, &key).await;
        assert_eq!((attempt, steps), (Attempt::FIRST, None), "another life");
        let (attempt, ..) = begun(&backend, begin(&key, next, "a", 1, StepPolicy::Hold)).await;
        assert_eq!(attempt, Attempt::FIRST);
        assert_eq!(completed(&backend, &key, run, life, "b").await, StepCompleted::Lost, "of the earlier life");
    }
}

/// E26: a parent has at most 1,000 steps. Refusing one more does not change the others.
pub async fn e26_a_parent_has_a_bounded_number_of_steps(store: &Store) {
    let backend = store.connect().await;
    if !has_steps(store, &backend).await {
        return;
    }
    let key = fresh_key();
    let owner = claim(&backend, &key, LONG, OnAbandoned::Resume).await;
    let numbers: Vec<u32> = (1..=Steps::MAX as u32).collect();
    for some in numbers.chunks(50) {
        let begins = some.iter().map(|number| {
            let message = begin(&key, owner, &format!("item {number}"), *number, StepPolicy::Rerun);
            backend.begin_step(message)
        });
        for answer in futures_util::future::join_all(begins).await {
            assert!(matches!(answer, Ok(StepBegun::Begun { .. })), "{answer:?}");
        }
    }
    let over = backend.begin_step(begin(&key, owner, "one more", 5_000, StepPolicy::Hold)).await;
    assert_eq!(over, Ok(StepBegun::TooMany));
    begun(&backend, begin(&key, owner, "item 1", 5_001, StepPolicy::Hold)).await;
    let steps = view(&backend, &key).await.unwrap().steps.unwrap();
    assert_eq!(steps.list.len(), Steps::MAX);
}

/// E26: a step in a transaction commits with its rows, and only under a claim that is valid at the commit.
pub async fn e26_a_step_commits_with_its_rows(store: &Store) {
    let backend = store.connect().await;
    if !has_steps(store, &backend).await {
        return;
    }
    let key = fresh_key();
    let owner = claim(&backend, &key, LONG, OnAbandoned::Resume).await;
    let life = view(&backend, &key).await.unwrap().token;
    let step = |step: &str, number| {
        let (key, name) = (key.clone(), name(step));
        CommitStep { key, owner, name, fingerprint: None, number, life, retention: LONG }
    };
    let gives = |step: &str| {
        let outcome = value(&key, life, step, step);
        TransactionOperation::erased(move |_| Ok(outcome))
    };
    let answer = backend.step_in_transaction(StepInTransaction { step: step("a", 1), operation: gives("a") }).await;
    if !store.capabilities.transactions {
        assert!(matches!(answer, Err(StoreError::Unsupported(_))), "{answer:?}");
        return;
    }
    let stored = value(&key, life, "a", "a");
    assert_eq!(answer, Ok(StepCommitted::Stored { outcome: stored.clone(), life }));
    let never = || TransactionOperation::erased(|_| panic!("it runs although it may not"));
    let again = backend.step_in_transaction(StepInTransaction { step: step("a", 2), operation: never() }).await;
    assert_eq!(again, Ok(StepCommitted::Completed { outcome: stored, life }));
    let rolls_back = TransactionOperation::erased(|_| Err(OperationFailure::RollBack));
    let failed = backend.step_in_transaction(StepInTransaction { step: step("b", 3), operation: rolls_back }).await;
    assert_eq!(failed, Ok(StepCommitted::RolledBack));
    let again = backend.step_in_transaction(StepInTransaction { step: step("b", 4), operation: gives("b") }).await;
    assert!(matches!(again, Ok(StepCommitted::Stored { .. })), "{again:?}");
    let stranger = CommitStep { owner: Owner::random(), ..step("c", 5) };
    let lost = backend.step_in_transaction(StepInTransaction { step: stranger, operation: never() }).await;
    assert_eq!(lost, Ok(StepCommitted::Lost));
    // A run that was given up can no longer commit.
    let run = StepRun { token: life, number: 6 };
    let fail = FailStep { key: key.clone(), owner, name: name("d"), run, retention: LONG };
    assert_eq!(backend.fail_step(fail.clone()).await, Ok(StepFailed::Failed));
    let late = backend.step_in_transaction(StepInTransaction { step: step("d", 6), operation: gives("d") }).await;
    assert_eq!(late, Ok(StepCommitted::Lost));
    // A committed run whose answer was lost is found.
    let asked = FailStep { name: name("b"), run: StepRun { token: life, number: 4 }, ..fail };
    let found = StepFailed::Completed { outcome: value(&key, life, "b", "b"), life };
    assert_eq!(backend.fail_step(asked).await, Ok(found));
}
