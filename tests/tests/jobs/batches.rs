//! Several calls at once, async and on a plain thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use oncekey::{Error, Fingerprint, Key, Outcome, RunError};

use crate::tasks::engine;

fn calls(numbers: impl IntoIterator<Item = u64>) -> Vec<(Key, Fingerprint)> {
    numbers.into_iter().map(|number| (Key::new("batch", number).unwrap(), Fingerprint::of(b"work"))).collect()
}

fn check(results: Vec<Result<Outcome<usize>, RunError<String>>>) {
    assert_eq!(results.len(), 50);
    for (number, result) in results.into_iter().enumerate() {
        match number {
            7 => assert_eq!(result, Err(RunError::Operation("as told".to_owned()))),
            9 => assert_eq!(result, Err(RunError::Engine(Error::Panicked))),
            11 => assert_eq!(result, Err(RunError::Engine(Error::Mismatch))),
            0 => assert_eq!(result, Ok(Outcome::Replayed(1_000))),
            number => assert_eq!(result, Ok(Outcome::Ran(number))),
        }
    }
}

fn work(number: usize) -> Result<usize, String> {
    match number {
        7 => Err("as told".to_owned()),
        9 => panic!("as told"),
        number => Ok(number),
    }
}

fn batch() -> Vec<(Key, Fingerprint)> {
    let mut batch = calls(0..50);
    batch[11].1 = Fingerprint::of(b"other work");
    batch
}

#[test]
fn j04_a_batch_on_a_thread_has_each_call_s_own_result_in_order() {
    let engine = engine();
    for number in [0, 11] {
        let (key, fingerprint) = calls([number]).remove(0);
        engine.run_blocking(key, fingerprint, |_| Ok::<_, String>(1_000_usize)).unwrap();
    }
    check(engine.run_all_blocking(batch(), |number, _claim| work(number)));
    assert_eq!(engine.run_all_blocking(Vec::new(), |_, _| Ok::<(), String>(())), []);
}

#[actix_rt::test]
async fn j04_an_async_batch_has_each_call_s_own_result_in_order() {
    let engine = engine();
    for number in [0, 11] {
        let (key, fingerprint) = calls([number]).remove(0);
        engine.run(key, fingerprint, |_| async { Ok::<_, String>(1_000_usize) }).await.unwrap();
    }
    let ran = Arc::new(AtomicUsize::new(0));
    let counted = ran.clone();
    let results = engine
        .run_all(batch(), move |number, _claim| {
            let counted = counted.clone();
            async move {
                counted.fetch_add(1, Ordering::SeqCst);
                work(number)
            }
        })
        .await;
    check(results);
    assert_eq!(ran.load(Ordering::SeqCst), 48);
}

/// The error for an outcome of another type names the key and the type, and can read the outcome as its own type.
#[actix_rt::test]
async fn j06_an_outcome_of_an_older_type_is_read_by_a_fallback() {
    let engine = engine();
    let key = Key::new("mail", 17).unwrap();
    engine.run(key.clone(), &(), |_| async { Ok::<_, String>(17_u64) }).await.unwrap();
    let now = || async { Ok::<_, String>("mail 18".to_owned()) };
    let unreadable = engine.run(key.clone(), &(), move |_| now()).await.unwrap_err();
    let text = unreadable.to_string();
    assert!(text.contains("mail/17") && text.contains("String") && text.contains("does not run again"), "{text}");
    let RunError::Engine(Error::OutcomeUnreadable(unreadable)) = unreadable else { panic!("{unreadable}") };
    assert_eq!(unreadable.read::<u64>(), Ok(17));
    let read = engine.run_or_read(key.clone(), &(), move |_| now(), |old: u64| format!("mail {old}")).await;
    assert_eq!(read, Ok(Outcome::Replayed("mail 17".to_owned())));
    let neither = engine.run_or_read(key, &(), move |_| now(), |old: bool| old.to_string()).await;
    assert!(matches!(neither, Err(RunError::Engine(Error::OutcomeUnreadable(_)))), "{neither:?}");
}
