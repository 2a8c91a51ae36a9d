//! Workers pass their messages to each other, and the last one ends the processor.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use oncekey::consumer::{BlockingProcessor, RetryPolicy, blocking_job, crossbeam_channel};

use crate::tasks::{Task, engine, identify, task};

const PATIENCE: Duration = Duration::from_secs(60);

/// There is room for one waiting message. Each worker is full in turn, and another takes the retry that frees it.
#[test]
fn j05_join_returns_whichever_worker_takes_the_last_retry() {
    let engine = engine();
    for round in 0..300_u64 {
        let tried: Arc<Mutex<HashMap<u64, u32>>> = Arc::default();
        let twice = blocking_job(identify, move |task: &Task, _claim| {
            let mut tried = tried.lock().unwrap();
            let tries = tried.entry(task.number).or_default();
            *tries += 1;
            if *tries < 2 { Err("not yet".to_owned()) } else { Ok(task.number) }
        });
        let policy = RetryPolicy {
            first_delay: Duration::from_micros(10 * (round % 7)),
            max_delay: Duration::from_micros(100),
            ..RetryPolicy::default()
        };
        let (messages, taken) = crossbeam_channel::bounded(8);
        let processor = BlockingProcessor::builder(engine.clone(), twice)
            .threads(3)
            .max_waiting(1)
            .retry(policy)
            .start(taken)
            .unwrap();
        let sending = std::thread::spawn(move || {
            (0..4).for_each(|number| messages.send(task(round * 4 + number, "work")).unwrap());
        });
        sending.join().unwrap();
        let (joined, ended) = crossbeam_channel::bounded(1);
        std::thread::spawn(move || joined.send(processor.join()));
        let processed = ended.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("round {round}: join hangs"));
        assert_eq!((processed.ran, processed.retried, processed.dead), (4, 4, 0));
    }
}
