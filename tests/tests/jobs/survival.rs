//! The in-process source under the faults of the brokers' tests: its processor dies again and again, and for a while
//! the source refuses dead letters.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use oncekey::consumer::in_process::{self, InProcess};
use oncekey::consumer::{
    Call, Delivery, Disposition, IdentifyError, Job, JobResult, MessageKey, Processor, RetryPolicy, Source,
};
use oncekey::{Engine, OnAbandoned, Outcome};
use oncekey_backends::MemoryBackend;
use tokio::time::{sleep, timeout};

use crate::tasks::{Ledger, Numbered, Refused, Task, identify, next_numbered, task};

const MESSAGES: u64 = 10_000;
const POISON_EACH: u64 = 25;
const KILLS: u64 = 40;
const REFUSALS: u64 = 200;
const PATIENCE: Duration = Duration::from_secs(60);

/// Refuses dead letters while it is told to, and loses the first acknowledgement of each third message.
struct Troubled {
    source: InProcess<Task>,
    is_refusing: AtomicBool,
    refusals: AtomicU64,
    forgotten: Ledger,
}

impl Source for Troubled {
    type Message = Task;
    type Receipt = Numbered;
    type Error = Refused;

    async fn next(&self) -> Result<Option<Delivery<Task, Self::Receipt>>, Refused> {
        Ok(next_numbered(&self.source).await)
    }

    async fn settle(&self, (receipt, number): Self::Receipt, disposition: Disposition) -> Result<(), Refused> {
        if disposition.name() == "dead_letter" && self.is_refusing.load(Ordering::SeqCst) {
            self.refusals.fetch_add(1, Ordering::SeqCst);
            return Err(Refused);
        }
        let is_lost = disposition == Disposition::Ack && number.is_multiple_of(3) && self.forgotten.add(number) == 1;
        let lost = Disposition::RetryLater { after: Duration::ZERO, failed: false };
        self.source.settle(receipt, if is_lost { lost } else { disposition }).await.unwrap();
        Ok(())
    }
}

/// Performs each task, and counts.
#[derive(Clone)]
struct Counting {
    ledger: Ledger,
    done: Arc<AtomicUsize>,
    is_guarded: bool,
}

impl Counting {
    async fn work(self, task: Arc<Task>) -> Result<u64, String> {
        self.ledger.add(task.number);
        self.done.fetch_add(1, Ordering::SeqCst);
        tokio::task::yield_now().await;
        if task.what == "poison" { Err("no route".to_owned()) } else { Ok(task.number) }
    }
}

impl Job<Task> for Counting {
    type Output = u64;
    type Error = String;

    fn identify(&self, task: &Task) -> Result<MessageKey, IdentifyError> {
        identify(task)
    }

    async fn perform(&self, call: Call, task: Arc<Task>) -> JobResult<u64, String> {
        let work = self.clone().work(task);
        let done = if self.is_guarded {
            call.run(move |_| work).await
        } else {
            work.await
                .map(Outcome::Ran)
                .map_err(|error| oncekey::RunError::Operation(oncekey::consumer::JobError::Failed(error)))
        };
        // If the processor is dropped here, the outcome is kept and the message is not acknowledged.
        tokio::task::yield_now().await;
        done
    }

    fn is_poison(&self, _: &String) -> bool {
        true
    }
}

#[derive(Debug, Default, PartialEq)]
struct Left {
    kills: u64,
    refusals: u64,
    doubled: usize,
    lost: usize,
    letters: BTreeSet<u64>,
    reasons: BTreeSet<String>,
}

async fn run(is_guarded: bool) -> Left {
    let (publisher, source) = in_process::channel(MESSAGES as usize);
    let (source, mut dead) = source.with_dead_letters(MESSAGES as usize);
    let is_poison = |number: u64| number % POISON_EACH == 7;
    for number in 0..MESSAGES {
        publisher.send(task(number, if is_poison(number) { "poison" } else { "work" })).await.unwrap();
    }
    drop(publisher);
    let source = Arc::new(Troubled {
        source,
        is_refusing: AtomicBool::new(false),
        refusals: AtomicU64::new(0),
        forgotten: Ledger::default(),
    });
    let engine = Engine::builder(MemoryBackend::new()).on_abandoned(OnAbandoned::Hold).start().unwrap();
    let counting = Counting { ledger: Ledger::default(), done: Arc::default(), is_guarded };
    let retry = RetryPolicy { in_flight_delay: Duration::from_millis(5), ..RetryPolicy::default() };
    let processor = || Processor::new(engine.clone(), source.clone(), counting.clone()).retry(retry.clone());
    let done = || counting.done.load(Ordering::SeqCst) as u64;
    let mut kills = 0;
    while kills < KILLS {
        // The processor is dropped midway, wherever each message is.
        let next = (kills + 1) * MESSAGES / (KILLS + 10);
        tokio::select! {
            _ = processor().run(std::future::pending()) => panic!("it has ended after {kills} kills"),
            () = async { while done() < next { tokio::task::yield_now().await; } } => {}
        }
        kills += 1;
        // For a while in between, dead letters are refused.
        source.is_refusing.store((KILLS / 4..KILLS / 2).contains(&kills), Ordering::SeqCst);
    }
    source.is_refusing.store(true, Ordering::SeqCst);
    let began = Instant::now();
    let taking = async {
        while source.refusals.load(Ordering::SeqCst) < REFUSALS {
            assert!(began.elapsed() < PATIENCE, "{} refusals", source.refusals.load(Ordering::SeqCst));
            sleep(Duration::from_millis(5)).await;
        }
        source.is_refusing.store(false, Ordering::SeqCst);
        std::future::pending::<()>().await;
    };
    let processed = timeout(PATIENCE, processor().run(taking)).await.expect("all is settled");
    assert_eq!((processed.left, processed.unsettled), (0, 0), "{processed:?}");
    let mut left = Left { kills, refusals: source.refusals.load(Ordering::SeqCst), ..Left::default() };
    while let Ok(letter) = dead.try_recv() {
        left.letters.insert(letter.message.number);
        left.reasons.insert(letter.reason);
    }
    for number in 0..MESSAGES {
        left.doubled += usize::from(!is_poison(number) && counting.ledger.of(number) > 1);
        left.lost +=
            usize::from(is_poison(number) != left.letters.contains(&number) || counting.ledger.of(number) == 0);
    }
    left
}

#[actix_rt::test]
async fn j03_in_process_every_effect_is_exactly_once_under_kills_and_refusals() {
    let left = run(true).await;
    assert_eq!((left.kills, left.doubled, left.lost), (KILLS, 0, 0), "{left:?}");
    assert!(left.refusals >= REFUSALS && left.letters.len() as u64 == MESSAGES / POISON_EACH, "{left:?}");
    assert_eq!(left.reasons, BTreeSet::from(["no route".to_owned()]));
}

#[actix_rt::test]
async fn j03_in_process_control_without_the_engine_effects_are_doubled() {
    let left = run(false).await;
    assert!(left.doubled as u64 * 4 > MESSAGES, "only {} of {MESSAGES} are doubled", left.doubled);
}
