//! What the memory backend promises beyond the suite: its cap.

#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test, what fails fails the test")]

use std::time::Duration;

use oncekey::backend::{Acquire, Acquired, Backend, Complete, Completed, Stats, StoreError};
use oncekey::record::{Owner, PayloadKind, SealedOutcome};
use oncekey::{Fingerprint, Key, OnAbandoned};
use oncekey_backends::MemoryBackend;

const LONG: Duration = Duration::from_secs(60);

fn acquire(number: usize) -> Acquire {
    Acquire {
        key: Key::new("memory", number).unwrap(),
        fingerprint: Fingerprint::of(b"asked"),
        owner: Owner::random(),
        lease: LONG,
        on_abandoned: OnAbandoned::Hold,
        past_withdrawal: None,
    }
}

/// Claims and completes a key, with an outcome of `len` bytes.
async fn run(store: &MemoryBackend, number: usize, len: usize, retention: Duration) -> Result<(), StoreError> {
    let message = acquire(number);
    let (key, owner) = (message.key.clone(), message.owner);
    store.acquire(message).await?;
    let outcome = SealedOutcome::seal(&key, PayloadKind::Json, |bytes| bytes.resize(len, b'x'));
    assert_eq!(store.complete(Complete { key, owner, outcome, retention }).await, Ok(Completed::Stored));
    Ok(())
}

#[actix_rt::test]
async fn e15_a_full_store_refuses_new_claims_and_keeps_what_it_has() {
    let store = MemoryBackend::builder().max_records(10).build();
    for number in 0..10 {
        run(&store, number, 10, LONG).await.unwrap();
    }
    assert!(matches!(run(&store, 10, 10, LONG).await, Err(StoreError::Full(_))));
    for number in 0..10 {
        let answer = store.acquire(acquire(number)).await.unwrap();
        assert!(matches!(answer, Acquired::Completed { .. }), "{number}: {answer:?}");
    }
    assert_eq!(store.stats(Stats).await.unwrap().completed, 10);
}

#[actix_rt::test]
async fn e15_bytes_are_capped_and_an_outcome_is_never_refused() {
    let store = MemoryBackend::builder().max_bytes(100_000).build();
    // The claim came in under the cap: its outcome is stored, however large.
    run(&store, 0, 200_000, LONG).await.unwrap();
    assert!(store.bytes() > 200_000);
    assert!(matches!(run(&store, 1, 10, LONG).await, Err(StoreError::Full(_))));
}

#[actix_rt::test]
async fn e14_room_is_made_of_what_has_expired() {
    let store = MemoryBackend::builder().max_records(10).build();
    for number in 0..10 {
        run(&store, number, 10, Duration::from_millis(100)).await.unwrap();
    }
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    let mut number = 10;
    while run(&store, number, 10, LONG).await.is_err() {
        assert!(std::time::Instant::now() < deadline, "expired records are not made room of");
        number += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[actix_rt::test]
async fn e14_counts_come_out_even_over_many_records() {
    let store = MemoryBackend::new();
    for number in 0..5_000 {
        run(&store, number, 10, Duration::from_millis(1)).await.unwrap();
    }
    assert_eq!(store.stats(Stats).await.unwrap().completed, 5_000);
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while store.stats(Stats).await.unwrap().completed > 0 {
        assert!(std::time::Instant::now() < deadline, "expired records are not purged");
        store.purge(oncekey::backend::Purge { limit: 1_000 }).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(store.bytes(), 0);
}
