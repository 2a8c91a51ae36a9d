//! The processor on plain threads.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::{TrySendError, bounded};
use oncekey::consumer::{
    BlockingJob, BlockingProcessor, Disposition, MessageKey, RetryPolicy, blocking_job, crossbeam_channel,
};
use oncekey::{Engine, Key};
use oncekey_backends::MemoryBackend;

fn engine() -> Engine {
    Engine::builder(MemoryBackend::new()).start().unwrap()
}

fn quick() -> RetryPolicy {
    RetryPolicy {
        max_attempts: 3,
        first_delay: Duration::from_millis(5),
        max_delay: Duration::from_millis(20),
        in_flight_delay: Duration::from_millis(2),
        ..RetryPolicy::default()
    }
}

fn identify(number: &u64) -> Result<MessageKey, oncekey::consumer::IdentifyError> {
    Ok(MessageKey::new(Key::new("task", number)?, number)?)
}

fn counting(done: &Arc<AtomicUsize>) -> impl BlockingJob<u64, Output = u64, Error = String> + use<> {
    let done = done.clone();
    blocking_job(identify, move |number: &u64, _claim| {
        done.fetch_add(1, Ordering::SeqCst);
        Ok(*number)
    })
}

#[test]
fn j04_eight_threads_do_each_message_once() {
    let done = Arc::new(AtomicUsize::new(0));
    let (messages, taken) = bounded(64);
    let processor =
        BlockingProcessor::builder(engine(), counting(&done)).threads(8).retry(quick()).start(taken).unwrap();
    for _ in 0..3 {
        for number in 0..2_000 {
            messages.send(number).unwrap();
        }
    }
    drop(messages);
    let processed = processor.join();
    assert_eq!((processed.ran, processed.replayed, processed.dead), (2_000, 4_000, 0));
    assert_eq!(done.load(Ordering::SeqCst), 2_000);
}

/// A slow job fills the channel, and a full channel makes its sender wait. Nothing accumulates in between.
#[test]
fn j04_a_slow_consumer_makes_its_producer_wait() {
    let (go, gate) = bounded::<()>(0);
    let slow = blocking_job(identify, move |number: &u64, _claim| {
        let _ = gate.recv();
        Ok::<_, String>(*number)
    });
    let (messages, taken) = bounded(10);
    let processor = BlockingProcessor::builder(engine(), slow).threads(3).start(taken).unwrap();
    // Ten messages are in the channel, and one is with each thread.
    let mut sent = 0;
    while sent < 13 {
        match messages.try_send(sent) {
            Ok(()) => sent += 1,
            Err(TrySendError::Full(_)) => std::thread::yield_now(),
            Err(TrySendError::Disconnected(_)) => panic!("the processor ended"),
        }
    }
    assert!(matches!(messages.send_timeout(13, Duration::from_millis(300)), Err(error) if error.is_timeout()));
    drop(go);
    messages.send(13).unwrap();
    drop(messages);
    assert_eq!(processor.join().ran, 14);
}

/// When all messages fail, the number that waits for a retry is bounded too: the producer waits, and memory use stays
/// flat.
#[test]
fn j04_messages_that_wait_to_be_retried_are_bounded() {
    let failing = blocking_job(identify, |_: &u64, _claim| Err::<u64, _>("no route"));
    let patient = RetryPolicy { first_delay: Duration::from_secs(60), ..RetryPolicy::default() };
    let (messages, taken) = bounded(5);
    let processor =
        BlockingProcessor::builder(engine(), failing).threads(2).max_waiting(20).retry(patient).start(taken).unwrap();
    let mut sent = 0;
    while messages.send_timeout(sent, Duration::from_millis(500)).is_ok() {
        sent += 1;
    }
    // Twenty messages wait, or one more if a second thread had looked earlier, and five are in the channel.
    assert!((25..=26).contains(&sent), "{sent}");
    let processed = processor.shutdown(Duration::from_secs(10));
    assert!(!processed.is_unfinished);
    assert_eq!(processed.given_back.len() + 5, usize::try_from(sent).unwrap());
}

#[test]
fn j04_a_poison_message_is_put_aside_and_holds_up_nobody() {
    let mixed = blocking_job(identify, |number: &u64, _claim| match number {
        0 => panic!("as told"),
        1 => Err("no route"),
        number => Ok(*number),
    });
    let (settled, told) = crossbeam_channel::unbounded();
    let (messages, taken) = bounded(100);
    // The delay is longer than all the other messages take.
    let patient = RetryPolicy { first_delay: Duration::from_secs(1), max_delay: Duration::from_secs(2), ..quick() };
    let processor = BlockingProcessor::builder(engine(), mixed)
        .threads(1)
        .retry(patient)
        .on_settled(move |message, disposition| settled.send((message, disposition)).unwrap())
        .start(taken)
        .unwrap();
    (0..50).for_each(|number| messages.send(number).unwrap());
    drop(messages);
    let processed = processor.join();
    // A job that panics does not report what happened. It is retried once, and its key is indeterminate.
    assert_eq!((processed.ran, processed.dead, processed.retried), (48, 2, 3));
    let settled: Vec<_> = told.try_iter().collect();
    assert_eq!(settled.iter().map(|(message, _)| *message).collect::<HashSet<_>>().len(), 50);
    assert!(settled.contains(&(1, Disposition::DeadLetter { reason: "no route".into() })));
    assert!(settled.iter().any(|(message, put)| *message == 0 && put.name() == "dead_letter"), "{settled:?}");
    assert!(settled[48..].iter().all(|(message, _)| *message < 2), "others waited for the poison: {settled:?}");
}

/// Messages already taken when the processor is told to end are finished or given back, and the rest is still in the
/// channel.
#[test]
fn j05_a_told_end_loses_nothing() {
    let done = Arc::new(Mutex::new(Vec::new()));
    let work = {
        let done = done.clone();
        blocking_job(identify, move |number: &u64, _claim| {
            if number.is_multiple_of(7) {
                return Err("not now");
            }
            done.lock().unwrap().push(*number);
            Ok(*number)
        })
    };
    let (messages, taken) = bounded(100);
    let patient = RetryPolicy { first_delay: Duration::from_secs(60), ..RetryPolicy::default() };
    let processor = BlockingProcessor::builder(engine(), work).threads(4).retry(patient).start(taken.clone()).unwrap();
    let sending = std::thread::spawn(move || {
        let mut sent = 0;
        while messages.send_timeout(sent, Duration::from_millis(500)).is_ok() {
            sent += 1;
        }
        sent
    });
    while done.lock().unwrap().len() < 500 {
        std::thread::yield_now();
    }
    let processed = processor.shutdown(Duration::from_secs(10));
    assert!(!processed.is_unfinished);
    let sent: u64 = sending.join().unwrap();
    let mut all: Vec<u64> = done.lock().unwrap().clone();
    assert_eq!(all.len() as u64, processed.ran);
    assert!(processed.given_back.iter().all(|number| number.is_multiple_of(7)) && !processed.given_back.is_empty());
    all.extend(processed.given_back);
    all.extend(taken.try_iter());
    all.sort_unstable();
    assert_eq!(all, (0..sent).collect::<Vec<_>>());
}

#[test]
fn j05_a_worker_beyond_the_limit_is_told_of() {
    let (go, gate) = bounded::<()>(0);
    let (began, beginning) = bounded(1);
    let stuck = blocking_job(identify, move |number: &u64, _claim| {
        began.send(()).unwrap();
        let _ = gate.recv();
        Ok::<_, String>(*number)
    });
    let (settled, told) = bounded(1);
    let (messages, taken) = bounded(1);
    let processor = BlockingProcessor::builder(engine(), stuck)
        .on_settled(move |message, disposition| settled.send((message, disposition)).unwrap())
        .start(taken)
        .unwrap();
    messages.send(17).unwrap();
    beginning.recv().unwrap();
    assert!(processor.shutdown(Duration::from_millis(50)).is_unfinished);
    drop(go);
    assert_eq!(told.recv().unwrap(), (17, Disposition::Ack));
}
