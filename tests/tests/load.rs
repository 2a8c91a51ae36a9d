//! Many keys at once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test, what fails fails the test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use oncekey::{Engine, Error, Fingerprint, Key, Outcome, RunError};
use oncekey_backends::MemoryBackend;

const DUPLICATES: usize = 16;

/// 100,000 keys with 16 concurrent duplicates each, half of them on either of two arbiters: none runs twice.
#[test]
fn e01_100_000_keys_with_16_duplicates_each_run_once() {
    const KEYS: usize = 100_000;
    let engine = Engine::builder(MemoryBackend::new()).start().unwrap();
    let runs: Arc<Vec<AtomicU8>> = Arc::new((0..KEYS).map(|_| AtomicU8::new(0)).collect());
    let (conflicts, replays) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let barrier = Arc::new(std::sync::Barrier::new(2));
    let threads: Vec<_> = (0..2)
        .map(|_| {
            let (engine, runs, barrier) = (engine.clone(), Arc::clone(&runs), Arc::clone(&barrier));
            let (conflicts, replays) = (Arc::clone(&conflicts), Arc::clone(&replays));
            std::thread::spawn(move || {
                actix_rt::System::new().block_on(async move {
                    let mut calls = FuturesUnordered::new();
                    for number in 0..KEYS {
                        if number % 1_000 == 0 {
                            // Both arbiters work on the same keys at the same time.
                            barrier.wait();
                        }
                        for _ in 0..DUPLICATES / 2 {
                            let (engine, runs) = (engine.clone(), Arc::clone(&runs));
                            calls.push(async move {
                                let key = Key::new("load", number).unwrap();
                                let work = move |_| async move {
                                    runs[number].fetch_add(1, Ordering::Relaxed);
                                    // The operation takes a while, so its duplicates find it in flight.
                                    tokio::task::yield_now().await;
                                    Ok::<usize, ()>(number)
                                };
                                (number, engine.run(key, Fingerprint::of(b"asked"), work).await)
                            });
                        }
                        while calls.len() > 32 * DUPLICATES / 2
                            && let Some((number, given)) = calls.next().await
                        {
                            count(number, given, &conflicts, &replays);
                        }
                    }
                    while let Some((number, given)) = calls.next().await {
                        count(number, given, &conflicts, &replays);
                    }
                });
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let twice = runs.iter().filter(|runs| runs.load(Ordering::Relaxed) > 1).count();
    let never = runs.iter().filter(|runs| runs.load(Ordering::Relaxed) == 0).count();
    assert_eq!((twice, never), (0, 0), "keys executed more than once, and never");
    let (conflicts, replays) = (conflicts.load(Ordering::Relaxed), replays.load(Ordering::Relaxed));
    assert_eq!(KEYS + conflicts + replays, KEYS * DUPLICATES);
    assert!(conflicts > KEYS, "the duplicates hardly met: {conflicts} conflicts");
}

fn count(number: usize, given: Result<Outcome<usize>, RunError<()>>, conflicts: &AtomicUsize, replays: &AtomicUsize) {
    match given {
        Ok(Outcome::Ran(value)) => assert_eq!(value, number),
        Ok(Outcome::Replayed(value)) => {
            assert_eq!(value, number);
            replays.fetch_add(1, Ordering::Relaxed);
        }
        Err(RunError::Engine(Error::InProgress { .. })) => {
            conflicts.fetch_add(1, Ordering::Relaxed);
        }
        Err(error) => panic!("{error:?}"),
    }
}

/// An idle engine with a million completed keys holds no key lock.
#[actix_rt::test]
async fn e14_an_idle_engine_with_a_million_keys_holds_no_lock() {
    const KEYS: usize = 1_000_000;
    let backend = MemoryBackend::new();
    let engine = Engine::builder(backend.clone()).start().unwrap();
    let mut calls = FuturesUnordered::new();
    for number in 0..KEYS {
        let engine = engine.clone();
        calls.push(async move {
            let key = Key::new("load", number).unwrap();
            engine.run(key, Fingerprint::of(b"asked"), |_| async { Ok::<u32, ()>(1) }).await.unwrap();
        });
        if calls.len() >= 256 {
            calls.next().await;
        }
    }
    while calls.next().await.is_some() {}
    // The last retirements are on their way, and the last locks stay idle until the next sweep.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while engine.key_lock_actors() > 0 {
        assert!(std::time::Instant::now() < deadline, "{} key locks of an idle engine", engine.key_lock_actors());
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(engine.keys_in_flight().await, 0);
    assert_eq!(engine.stats().await.unwrap().completed, KEYS as u64);
    let per_key = backend.bytes() / KEYS;
    assert!(per_key < 512, "{per_key} bytes a key");
}
