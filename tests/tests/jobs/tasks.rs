//! The tasks of the processor's tests.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use oncekey::consumer::in_process::{self, DeadLetter, InProcess, Publisher};
use oncekey::consumer::{Call, Delivery, Disposition, Job, MessageKey, RetryPolicy, Source, job};
use oncekey::{Engine, Key};
use oncekey_backends::MemoryBackend;
use tokio::sync::mpsc;

/// A task: a number, and what to do with it.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub(crate) struct Task {
    pub(crate) number: u64,
    pub(crate) what: &'static str,
}

pub(crate) fn task(number: u64, what: &'static str) -> Task {
    Task { number, what }
}

pub(crate) fn identify(task: &Task) -> Result<MessageKey, oncekey::consumer::IdentifyError> {
    if task.what == "unreadable" {
        return Err("it has no number".into());
    }
    Ok(MessageKey::new(Key::new("task", task.number)?, task)?)
}

/// The error of the tests' sources that refuse a settle.
#[derive(Debug, thiserror::Error)]
#[error("the broker refuses")]
pub(crate) struct Refused;

/// A receipt with its task's number.
pub(crate) type Numbered = (<InProcess<Task> as Source>::Receipt, u64);

/// Returns the next task, with its number in the receipt.
pub(crate) async fn next_numbered(source: &InProcess<Task>) -> Option<Delivery<Task, Numbered>> {
    let Delivery { message, receipt, failures } = source.next().await.unwrap()?;
    let number = message.number;
    Some(Delivery { message, receipt: (receipt, number), failures })
}

/// Counts how often each number was processed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ledger(Arc<Mutex<HashMap<u64, u32>>>);

impl Ledger {
    pub(crate) fn add(&self, number: u64) -> u32 {
        let mut counts = self.0.lock().unwrap();
        let count = counts.entry(number).or_default();
        *count += 1;
        *count
    }

    pub(crate) fn of(&self, number: u64) -> u32 {
        self.0.lock().unwrap().get(&number).copied().unwrap_or(0)
    }
}

/// Returns a job that does its task's work, or fails if the task says so.
pub(crate) fn work(ledger: &Ledger) -> impl Job<Task, Output = u64, Error = String> + use<> {
    let ledger = ledger.clone();
    job(identify, move |call: Call, task: Arc<Task>| {
        let ledger = ledger.clone();
        async move {
            call.run(move |_| async move {
                let tried = ledger.add(task.number);
                match task.what {
                    "poison" => Err(format!("try {tried} of {} failed", task.number)),
                    "panic" => panic!("as told"),
                    "third time" if tried < 3 => Err("not yet".to_owned()),
                    _ => Ok(task.number),
                }
            })
            .await
        }
    })
}

pub(crate) fn quick() -> RetryPolicy {
    RetryPolicy {
        max_attempts: 3,
        first_delay: Duration::from_millis(5),
        max_delay: Duration::from_millis(20),
        in_flight_delay: Duration::from_millis(5),
        store_away_delay: Duration::from_millis(20),
        ..RetryPolicy::default()
    }
}

pub(crate) fn queue() -> (Publisher<Task>, InProcess<Task>, mpsc::Receiver<DeadLetter<Task>>) {
    let (publisher, source) = in_process::channel(1_000);
    let (source, dead) = source.with_dead_letters(1_000);
    (publisher, source, dead)
}

/// A source that outlives its processor, and counts retries.
#[derive(Clone)]
pub(crate) struct Kept {
    pub(crate) source: Arc<InProcess<Task>>,
    retries: Arc<AtomicUsize>,
}

impl Kept {
    pub(crate) fn new(source: InProcess<Task>) -> Self {
        Self { source: Arc::new(source), retries: Arc::default() }
    }

    pub(crate) fn retries(&self) -> usize {
        self.retries.load(Ordering::Relaxed)
    }
}

impl Source for Kept {
    type Message = <InProcess<Task> as Source>::Message;
    type Receipt = <InProcess<Task> as Source>::Receipt;
    type Error = <InProcess<Task> as Source>::Error;

    async fn next(&self) -> Result<Option<Delivery<Self::Message, Self::Receipt>>, Self::Error> {
        self.source.next().await
    }

    async fn settle(&self, receipt: Self::Receipt, disposition: Disposition) -> Result<(), Self::Error> {
        if matches!(disposition, Disposition::RetryLater { .. }) {
            self.retries.fetch_add(1, Ordering::Relaxed);
        }
        self.source.settle(receipt, disposition).await
    }
}

pub(crate) fn engine() -> Engine {
    Engine::builder(MemoryBackend::new()).start().unwrap()
}

pub(crate) async fn all_of(tasks: impl IntoIterator<Item = Task>, publisher: Publisher<Task>) {
    for task in tasks {
        publisher.send(task).await.unwrap();
    }
}
