//! The life of a record, step by step, through the backend's own messages.

use std::time::Duration;

use super::{LONG, SHORT, Store, acquire, claim, fingerprint, fresh_key, outcome, until};
use crate::backend::{
    Acquire, Acquired, Backend, Complete, Completed, Held, Hold, List, Lookup, Purge, RecordView, Release, Released,
    Remove, Removed, Renew, Renewed, Resolution, Resolve, Resolved, StateView, Stats,
};
use crate::record::{Owner, SealedOutcome};
use crate::{Attempt, Engine, Error, Fingerprint, Key, OnAbandoned, RunError};

async fn complete(backend: &impl Backend, key: &Key, owner: Owner, text: &str, retention: Duration) -> Completed {
    let message = Complete { key: key.clone(), owner, outcome: outcome(key, text), retention };
    backend.complete(message).await.unwrap()
}

async fn lookup(backend: &impl Backend, key: &Key) -> Option<RecordView> {
    backend.lookup(Lookup { key: key.clone() }).await.unwrap()
}

async fn has_lapsed(backend: &impl Backend, key: &Key) -> bool {
    match lookup(backend, key).await.map(|view| view.state) {
        Some(StateView::InProgress { lease_left }) => lease_left.is_zero(),
        _ => true,
    }
}

/// E01: of N concurrent acquires of a fresh key exactly one wins, across threads with their own connections.
pub async fn e01_one_of_many_acquires_wins(store: &Store) {
    for _ in 0..20 {
        let key = fresh_key();
        let won: usize = store
            .on_threads(4, move |backend, _| {
                let key = key.clone();
                async move {
                    let acquires = (0..16).map(|_| backend.acquire(acquire(&key, LONG, OnAbandoned::Rerun)));
                    let answers = futures_util::future::join_all(acquires).await;
                    answers
                        .into_iter()
                        .filter(|answer| match answer.as_ref().unwrap() {
                            Acquired::Claimed { attempt, took_over, .. } => {
                                assert_eq!((*attempt, *took_over), (Attempt::FIRST, false));
                                true
                            }
                            Acquired::InProgress { lease_left } => {
                                assert!(*lease_left <= LONG && *lease_left > LONG / 2, "{lease_left:?} left");
                                false
                            }
                            other => panic!("a concurrent acquire got {other:?}"),
                        })
                        .count()
                }
            })
            .into_iter()
            .sum();
        assert_eq!(won, 1, "64 acquires of one key at once: {won} won");
    }
}

/// E02: a completed key replays byte-identical outcomes until its retention ends, then it is absent.
pub async fn e02_a_completed_key_replays_until_its_retention_ends(store: &Store) {
    let (one, other) = (store.connect().await, store.connect().await);
    let key = fresh_key();
    let owner = claim(&one, &key, LONG, OnAbandoned::Hold).await;
    // The outcome has every byte value, so any change by an encoding on the way is noticed.
    let bytes: Vec<u8> = (0..=255).collect();
    let sealed = SealedOutcome::seal(&key, crate::record::PayloadKind::Http, |out| out.extend_from_slice(&bytes));
    let retention = 2 * SHORT;
    let message = Complete { key: key.clone(), owner, outcome: sealed.clone(), retention };
    assert_eq!(one.complete(message).await, Ok(Completed::Stored));
    for backend in [&one, &other] {
        let answer = backend.acquire(acquire(&key, LONG, OnAbandoned::Hold)).await;
        assert_eq!(answer, Ok(Acquired::Completed { outcome: sealed.clone() }));
        let Some(RecordView { state: StateView::Completed { outcome, expires_in }, attempt, .. }) =
            lookup(backend, &key).await
        else {
            panic!("the completed record is not found")
        };
        assert_eq!((outcome, attempt), (sealed.clone(), Attempt::FIRST));
        assert!(expires_in <= retention, "{expires_in:?} of {retention:?} are left");
    }
    until("the retention's end", async || lookup(&other, &key).await.is_none()).await;
    let answer = other.acquire(acquire(&key, LONG, OnAbandoned::Hold)).await;
    assert!(matches!(answer, Ok(Acquired::Claimed { attempt: Attempt::FIRST, took_over: false, .. })), "{answer:?}");
}

/// E03: another fingerprint is a mismatch: in flight, after completion, and while the key is indeterminate.
pub async fn e03_another_fingerprint_is_a_mismatch(store: &Store) {
    let backend = store.connect().await;
    let key = fresh_key();
    let owner = claim(&backend, &key, LONG, OnAbandoned::Hold).await;
    let other =
        || Acquire { fingerprint: Fingerprint::of(b"something else"), ..acquire(&key, LONG, OnAbandoned::Hold) };
    assert_eq!(backend.acquire(other()).await, Ok(Acquired::Mismatch), "in flight");
    assert_eq!(complete(&backend, &key, owner, "1", LONG).await, Completed::Stored);
    assert_eq!(backend.acquire(other()).await, Ok(Acquired::Mismatch), "after completion");

    let key = fresh_key();
    let owner = claim(&backend, &key, LONG, OnAbandoned::Hold).await;
    assert_eq!(backend.hold(Hold { key: key.clone(), owner }).await, Ok(Held::Held));
    let other = Acquire { fingerprint: Fingerprint::of(b"something else"), ..acquire(&key, LONG, OnAbandoned::Hold) };
    assert_eq!(backend.acquire(other).await, Ok(Acquired::Mismatch), "indeterminate");
}

/// E04: a held key stays held while its owner renews.
pub async fn e04_a_renewed_lease_holds(store: &Store) {
    let (holder, other) = (store.connect().await, store.connect().await);
    let key = fresh_key();
    let owner = claim(&holder, &key, SHORT, OnAbandoned::Rerun).await;
    let started = tokio::time::Instant::now();
    while started.elapsed() < 4 * SHORT {
        tokio::time::sleep(SHORT / 6).await;
        let renewed = holder.renew(Renew { key: key.clone(), owner, lease: 4 * SHORT }).await;
        assert_eq!(renewed, Ok(Renewed::Renewed));
        let answer = other.acquire(acquire(&key, LONG, OnAbandoned::Rerun)).await.unwrap();
        assert!(matches!(answer, Acquired::InProgress { .. }), "the key was renewed, and yet: {answer:?}");
    }
}

/// E05: a lapsed lease that may be rerun is taken over, and the attempt rises each time.
pub async fn e05_a_lapsed_lease_is_taken_over_where_it_may_be_rerun(store: &Store) {
    let backend = store.connect().await;
    let key = fresh_key();
    claim(&backend, &key, SHORT, OnAbandoned::Rerun).await;
    for attempt in [2, 3] {
        until("the lease's end", async || has_lapsed(&backend, &key).await).await;
        // The policy of the lapsed claim decides, not that of the next caller.
        let message = Acquire { on_abandoned: OnAbandoned::Rerun, ..acquire(&key, SHORT, OnAbandoned::Hold) };
        let answer = backend.acquire(message).await;
        let Ok(Acquired::Claimed { attempt: claimed, took_over: true, .. }) = answer else { panic!("{answer:?}") };
        assert_eq!(claimed, Attempt::new(attempt));
    }
}

/// E05: a lapsed lease under Hold makes the key indeterminate, whoever asks for it next.
pub async fn e05_a_lapsed_lease_is_indeterminate_where_it_is_held(store: &Store) {
    let backend = store.connect().await;
    let key = fresh_key();
    claim(&backend, &key, SHORT, OnAbandoned::Hold).await;
    until("the lease's end", async || {
        lookup(&backend, &key).await.is_some_and(|view| view.state == StateView::Indeterminate)
    })
    .await;
    for policy in [OnAbandoned::Rerun, OnAbandoned::Hold] {
        let answer = backend.acquire(acquire(&key, LONG, policy)).await;
        assert!(matches!(answer, Ok(Acquired::Indeterminate { attempt: Attempt::FIRST, .. })), "{answer:?}");
    }
    // A key that only a read has found indeterminate, before any caller asked for it, can be settled as well.
    let unseen = fresh_key();
    claim(&backend, &unseen, SHORT, OnAbandoned::Hold).await;
    until("the lease's end", async || {
        lookup(&backend, &unseen).await.is_some_and(|view| view.state == StateView::Indeterminate)
    })
    .await;
    let release = Resolve { key: unseen, attempt: None, owner: None, with: Resolution::Release };
    assert_eq!(backend.resolve(release).await, Ok(Resolved::Resolved));
}

/// E05: `Resolve` settles an indeterminate key with an outcome or by release. It changes nothing if it names another
/// attempt or another holder's claim, or if the key is not indeterminate.
pub async fn e05_resolve_settles_an_indeterminate_key(store: &Store) {
    let backend = store.connect().await;
    let key = fresh_key();
    let resolve = |attempt, with| backend.resolve(Resolve { key: key.clone(), attempt, owner: None, with });
    assert_eq!(resolve(None, Resolution::Release).await, Ok(Resolved::NotIndeterminate), "absent");
    let owner = claim(&backend, &key, LONG, OnAbandoned::Hold).await;
    assert_eq!(resolve(None, Resolution::Release).await, Ok(Resolved::NotIndeterminate), "in progress");
    assert_eq!(backend.hold(Hold { key: key.clone(), owner }).await, Ok(Held::Held));
    let wrong = Some(Attempt::new(2));
    assert_eq!(resolve(wrong, Resolution::Release).await, Ok(Resolved::NotIndeterminate), "another attempt");
    let sealed = outcome(&key, "17");
    let with = Resolution::Complete { outcome: sealed.clone(), retention: LONG };
    assert_eq!(resolve(Some(Attempt::FIRST), with).await, Ok(Resolved::Resolved));
    let answer = backend.acquire(acquire(&key, LONG, OnAbandoned::Hold)).await;
    assert_eq!(answer, Ok(Acquired::Completed { outcome: sealed }));

    let key = fresh_key();
    let owner = claim(&backend, &key, LONG, OnAbandoned::Hold).await;
    assert_eq!(backend.hold(Hold { key: key.clone(), owner }).await, Ok(Held::Held));
    let answer = backend.acquire(acquire(&key, LONG, OnAbandoned::Hold)).await;
    assert_eq!(answer, Ok(Acquired::Indeterminate { attempt: Attempt::FIRST, owner }));
    let release =
        Resolve { key: key.clone(), attempt: Some(Attempt::FIRST), owner: Some(owner), with: Resolution::Release };
    assert_eq!(backend.resolve(release.clone()).await, Ok(Resolved::Resolved));
    let later = claim(&backend, &key, LONG, OnAbandoned::Hold).await;
    assert_eq!(backend.hold(Hold { key: key.clone(), owner: later }).await, Ok(Held::Held));
    // The message arrives again, late: the current claim has the same attempt number.
    assert_eq!(backend.resolve(release).await, Ok(Resolved::NotIndeterminate), "a late word about an earlier claim");
    let with = Resolution::Release;
    let release = Resolve { key: key.clone(), attempt: Some(Attempt::FIRST), owner: Some(later), with };
    assert_eq!(backend.resolve(release).await, Ok(Resolved::Resolved));
}

/// E06: a stale owner's renew, complete, release and hold change nothing, and the answer says so.
pub async fn e06_a_stale_owner_changes_nothing(store: &Store) {
    let backend = store.connect().await;
    let key = fresh_key();
    let stale = claim(&backend, &key, SHORT, OnAbandoned::Rerun).await;
    until("the lease's end", async || has_lapsed(&backend, &key).await).await;
    let current = claim(&backend, &key, LONG, OnAbandoned::Rerun).await;
    let before = lookup(&backend, &key).await.map(|view| (view.attempt, view.fingerprint));
    for stranger in [stale, Owner::random()] {
        let (owner, key) = (stranger, key.clone());
        let renewed = backend.renew(Renew { key: key.clone(), owner, lease: LONG }).await;
        assert_eq!(renewed, Ok(Renewed::Lost));
        assert_eq!(complete(&backend, &key, owner, "0", LONG).await, Completed::Lost);
        assert_eq!(backend.release(Release { key: key.clone(), owner }).await, Ok(Released::Lost));
        assert_eq!(backend.hold(Hold { key, owner }).await, Ok(Held::Lost));
    }
    assert_eq!(lookup(&backend, &key).await.map(|view| (view.attempt, view.fingerprint)), before);
    assert_eq!(complete(&backend, &key, current, "1", LONG).await, Completed::Stored);
    assert_eq!(complete(&backend, &key, stale, "0", LONG).await, Completed::Lost);
    let answer = backend.acquire(acquire(&key, LONG, OnAbandoned::Rerun)).await;
    assert_eq!(answer, Ok(Acquired::Completed { outcome: outcome(&key, "1") }));
}

/// E06: an owner that lost the answer to a step sends it again, and learns that the step is done.
pub async fn e06_steps_can_be_repeated_by_their_owner(store: &Store) {
    let backend = store.connect().await;
    let key = fresh_key();
    let message = acquire(&key, LONG, OnAbandoned::Hold);
    let owner = message.owner;
    for _ in 0..2 {
        let answer = backend.acquire(message.clone()).await.unwrap();
        assert!(matches!(answer, Acquired::Claimed { attempt: Attempt::FIRST, .. }), "{answer:?}");
    }
    for _ in 0..2 {
        assert_eq!(complete(&backend, &key, owner, "1", LONG).await, Completed::Stored);
    }
    // Even its owner cannot change a stored outcome.
    complete(&backend, &key, owner, "2", LONG).await;
    let renewed = backend.renew(Renew { key: key.clone(), owner, lease: LONG }).await;
    assert_eq!(renewed, Ok(Renewed::Lost));
    assert_eq!(backend.release(Release { key: key.clone(), owner }).await, Ok(Released::Lost));
    assert_eq!(backend.hold(Hold { key: key.clone(), owner }).await, Ok(Held::Lost));
    let answer = backend.acquire(acquire(&key, LONG, OnAbandoned::Hold)).await;
    assert_eq!(answer, Ok(Acquired::Completed { outcome: outcome(&key, "1") }));

    let key = fresh_key();
    let owner = claim(&backend, &key, LONG, OnAbandoned::Hold).await;
    for _ in 0..2 {
        assert_eq!(backend.hold(Hold { key: key.clone(), owner }).await, Ok(Held::Held));
    }
}

/// E06: the owner of a lapsed claim that no caller has taken over can renew, complete or release it; it is not stale.
/// It makes no difference whether another caller has since found the key indeterminate.
pub async fn e06_a_late_owner_completes_what_nobody_took_over(store: &Store) {
    let backend = store.connect().await;
    for (policy, was_seen) in [(OnAbandoned::Rerun, false), (OnAbandoned::Hold, false), (OnAbandoned::Hold, true)] {
        let (completed, renewed, released) = (fresh_key(), fresh_key(), fresh_key());
        let mut owners = Vec::new();
        for key in [&completed, &renewed, &released] {
            owners.push(claim(&backend, key, SHORT, policy).await);
        }
        for key in [&completed, &renewed, &released] {
            until("the lease's end", async || has_lapsed(&backend, key).await).await;
            if was_seen {
                let answer = backend.acquire(acquire(key, LONG, policy)).await;
                assert!(matches!(answer, Ok(Acquired::Indeterminate { attempt: Attempt::FIRST, .. })), "{answer:?}");
            }
        }
        let what = format!("{policy:?}, seen by another: {was_seen}");
        assert_eq!(complete(&backend, &completed, owners[0], "1", LONG).await, Completed::Stored, "{what}");
        let renew = Renew { key: renewed.clone(), owner: owners[1], lease: LONG };
        assert_eq!(backend.renew(renew).await, Ok(Renewed::Renewed), "{what}");
        let answer = backend.acquire(acquire(&renewed, LONG, policy)).await.unwrap();
        assert!(matches!(answer, Acquired::InProgress { .. }), "{what}: {answer:?}");
        let release = Release { key: released.clone(), owner: owners[2] };
        assert_eq!(backend.release(release).await, Ok(Released::Released), "{what}");
        claim(&backend, &released, LONG, policy).await;
    }
}

/// E07: release frees the key at once, and removes the whole claim: the next acquire wins, whatever it asks for.
pub async fn e07_release_frees_at_once(store: &Store) {
    let (one, other) = (store.connect().await, store.connect().await);
    let key = fresh_key();
    let owner = claim(&one, &key, LONG, OnAbandoned::Hold).await;
    assert_eq!(one.release(Release { key: key.clone(), owner }).await, Ok(Released::Released));
    assert_eq!(lookup(&other, &key).await, None);
    let different =
        Acquire { fingerprint: Fingerprint::of(b"something else"), ..acquire(&key, LONG, OnAbandoned::Hold) };
    let answer = other.acquire(different).await;
    assert!(matches!(answer, Ok(Acquired::Claimed { attempt: Attempt::FIRST, took_over: false, .. })), "{answer:?}");
    assert_eq!(one.remove(Remove { key: key.clone() }).await, Ok(Removed::Removed));
    assert_eq!(one.remove(Remove { key }).await, Ok(Removed::Absent));
}

/// E13: an outcome that was damaged, or belongs to another key, is an error, and nothing runs.
pub async fn e13_a_corrupt_outcome_is_an_error(store: &Store) {
    let backend = store.connect().await;
    let engine = Engine::builder(backend.clone()).start().unwrap();
    let intact = |key: &Key| outcome(key, "17").as_stored().to_vec();
    let mut damaged: Vec<(Key, Vec<u8>)> = Vec::new();
    for byte in 0..intact(&fresh_key()).len() {
        let key = fresh_key();
        let mut bytes = intact(&key);
        bytes[byte] ^= 0x10;
        damaged.push((key, bytes));
    }
    damaged.push((fresh_key(), Vec::new()));
    damaged.push((fresh_key(), intact(&fresh_key())));
    for (key, bytes) in damaged {
        let owner = claim(&backend, &key, LONG, OnAbandoned::Hold).await;
        let outcome = SealedOutcome::from_stored(bytes.clone().into());
        let message = Complete { key: key.clone(), owner, outcome, retention: LONG };
        assert_eq!(backend.complete(message).await, Ok(Completed::Stored));
        let ran = engine.run(key, fingerprint(), |_| async { Ok::<u32, ()>(0) }).await;
        assert!(matches!(ran, Err(RunError::Engine(Error::Corrupt(_)))), "{bytes:?} gave {ran:?}");
    }
}

/// E14: expired records are purged in batches no larger than requested, or disappear by themselves. No other record
/// does.
pub async fn e14_expired_records_are_purged_in_bounded_batches(store: &Store) {
    let backend = store.connect().await;
    // Other checks left expired records behind.
    while backend.purge(Purge { limit: 1_000 }).await.unwrap().more {}
    let before = backend.stats(Stats).await.unwrap();
    let (kept, claimed) = (fresh_key(), fresh_key());
    let owner = claim(&backend, &kept, LONG, OnAbandoned::Hold).await;
    assert_eq!(complete(&backend, &kept, owner, "1", LONG).await, Completed::Stored);
    claim(&backend, &claimed, LONG, OnAbandoned::Hold).await;
    let mut last = fresh_key();
    for _ in 0..25 {
        last = fresh_key();
        let owner = claim(&backend, &last, LONG, OnAbandoned::Hold).await;
        assert_eq!(complete(&backend, &last, owner, "1", SHORT).await, Completed::Stored);
    }
    let after = backend.stats(Stats).await.unwrap();
    // On a busy machine some may have expired by now.
    let fewest = before.completed + if store.capabilities.expires_by_itself { 1 } else { 26 };
    assert!((fewest..=before.completed + 26).contains(&after.completed), "{before:?}, and then {after:?}");
    assert_eq!(after.in_progress, before.in_progress + 1);
    until("the retention's end", async || lookup(&backend, &last).await.is_none()).await;
    if store.capabilities.expires_by_itself {
        let purged = backend.purge(Purge { limit: 10 }).await.unwrap();
        assert_eq!(purged.removed, 0, "there was something to purge");
        assert_eq!(backend.stats(Stats).await.unwrap().completed, before.completed + 1);
    } else {
        let mut removed = 0;
        until("the purge of 25 records", async || {
            let purged = backend.purge(Purge { limit: 10 }).await.unwrap();
            assert!(purged.removed <= 10, "a batch of 10 removed {}", purged.removed);
            removed += purged.removed;
            removed >= 25
        })
        .await;
        assert_eq!(removed, 25, "what was not expired was purged");
    }
    assert!(lookup(&backend, &kept).await.is_some() && lookup(&backend, &claimed).await.is_some());
}

/// E14: the whole store can be read page by page, in the order of the stored keys.
pub async fn e14_list_pages_through_the_records(store: &Store) {
    let backend = store.connect().await;
    let mut made: Vec<Key> = Vec::new();
    for number in 0..7 {
        let key = Key::new(format!("conformance-list-{:016x}", rand::random::<u64>()), number).unwrap();
        claim(&backend, &key, LONG, OnAbandoned::Hold).await;
        made.push(key);
    }
    made.sort();
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = backend.list(List { after: after.take(), limit: 3 }).await.unwrap();
        assert!(page.len() <= 3);
        let Some(last) = page.last() else { break };
        after = Some(last.key.clone());
        found.extend(page.into_iter().map(|view| view.key));
    }
    assert!(found.windows(2).all(|pair| pair[0] < pair[1]), "the pages are not in the order of their keys");
    let found: Vec<_> = found.into_iter().filter(|key| made.contains(key)).collect();
    assert_eq!(found, made);
}
