//! User code that panics wherever it is called. It ends no worker and no processor.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use oncekey::Claim;
use oncekey::consumer::{
    BlockingJob, BlockingProcessor, Call, Disposition, IdentifyError, Job, JobResult, MessageKey, Processor,
    crossbeam_channel, job,
};
use serde::{Deserialize, Serialize, Serializer};
use tokio::time::timeout;

use crate::tasks::{Ledger, Task, all_of, engine, identify, queue, quick, task, work};

const PATIENCE: Duration = Duration::from_secs(60);

/// Each place that calls user code, by the name of the task that makes it panic.
const PLACES: [&str; 6] = ["identify", "perform", "display", "is_poison", "serialize", "drop"];

/// Fails in the way that its task names.
struct Failing(&'static str);

impl fmt::Display for Failing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            "display" => panic!("in Display, as told"),
            other => f.write_str(other),
        }
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        assert!(std::thread::panicking() || self.0 != "drop", "in Drop, as told");
    }
}

#[derive(Deserialize)]
struct Value(String);

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        assert!(self.0 != "serialize", "in Serialize, as told");
        self.0.serialize(serializer)
    }
}

fn done(task: &Task) -> Result<Value, Failing> {
    match task.what {
        "perform" => panic!("in the job, as told"),
        "display" | "is_poison" | "drop" => Err(Failing(task.what)),
        what => Ok(Value(what.to_owned())),
    }
}

struct Explosive;

impl Explosive {
    fn read(task: &Task) -> Result<MessageKey, IdentifyError> {
        assert!(task.what != "identify", "in identify, as told");
        identify(task)
    }

    fn asks(error: &Failing) -> bool {
        assert!(error.0 != "is_poison", "in is_poison, as told");
        false
    }
}

impl Job<Task> for Explosive {
    type Output = Value;
    type Error = Failing;

    fn identify(&self, task: &Task) -> Result<MessageKey, IdentifyError> {
        Self::read(task)
    }

    async fn perform(&self, call: Call, task: Arc<Task>) -> JobResult<Value, Failing> {
        call.run(move |_| async move { done(&task) }).await
    }

    fn is_poison(&self, error: &Failing) -> bool {
        Self::asks(error)
    }
}

impl BlockingJob<Task> for Explosive {
    type Output = Value;
    type Error = Failing;

    fn identify(&self, task: &Task) -> Result<MessageKey, IdentifyError> {
        Self::read(task)
    }

    fn perform(&self, task: &Task, _claim: &Claim) -> Result<Value, Failing> {
        done(task)
    }

    fn is_poison(&self, error: &Failing) -> bool {
        Self::asks(error)
    }
}

/// Returns some tasks of each kind, among valid ones.
fn mixed() -> Vec<Task> {
    (0..120)
        .map(|number| task(number, if number % 5 == 0 { PLACES[number as usize / 5 % 6] } else { "work" }))
        .collect()
}

#[actix_rt::test]
async fn j07_user_code_that_panics_ends_no_processor() {
    let (publisher, source, mut dead) = queue();
    all_of(mixed(), publisher).await;
    let running = Processor::new(engine(), source, Explosive)
        .concurrency(4)
        .retry(quick())
        .in_order_by(|task: &Task| task.number)
        .run(std::future::pending());
    let processed = timeout(PATIENCE, running).await.expect("it ends");
    assert_eq!((processed.ran, processed.dead, processed.given_back), (96, 24, 0), "{processed:?}");
    for _ in 0..24 {
        let letter = dead.recv().await.unwrap();
        assert!(letter.message.number % 5 == 0 && !letter.reason.is_empty(), "{letter:?}");
    }
}

#[actix_rt::test]
async fn j07_an_order_that_panics_is_a_dead_letter() {
    let (publisher, source, mut dead) = queue();
    all_of((0..50).map(|number| task(number, "work")), publisher).await;
    let work = job(identify, |call: Call, task: Arc<Task>| async move {
        call.run(move |_| async move { Ok::<u64, String>(task.number) }).await
    });
    let running = Processor::new(engine(), source, work)
        .retry(quick())
        .in_order_by(|task: &Task| {
            assert!(task.number != 17, "in the order, as told");
            task.number % 3
        })
        .run(std::future::pending());
    let processed = timeout(PATIENCE, running).await.expect("it ends");
    assert_eq!((processed.ran, processed.dead), (49, 1));
    let letter = dead.recv().await.unwrap();
    assert!(letter.message.number == 17 && letter.reason.contains("panicked"), "{letter:?}");
}

#[test]
fn j07_user_code_that_panics_ends_no_worker() {
    for batch in [1, 7] {
        let (settled, told) = crossbeam_channel::unbounded();
        let (messages, taken) = crossbeam_channel::bounded(10);
        let processor = BlockingProcessor::builder(engine(), Explosive)
            .threads(2)
            .batch(batch)
            .retry(quick())
            .on_settled(move |message: Task, disposition| {
                settled.send((message, disposition)).unwrap();
                panic!("in what is told, as told");
            })
            .start(taken)
            .unwrap();
        let sending = std::thread::spawn(move || mixed().into_iter().for_each(|task| messages.send(task).unwrap()));
        let mut acknowledged = 0;
        for _ in 0..120 {
            let (task, disposition) = told.recv_timeout(PATIENCE).expect("each message is settled");
            match disposition {
                Disposition::Ack => acknowledged += 1,
                Disposition::DeadLetter { reason } => assert!(task.number % 5 == 0 && !reason.is_empty()),
                other => panic!("{other}"),
            }
        }
        sending.join().unwrap();
        let processed = processor.join();
        assert_eq!((acknowledged, processed.ran, processed.dead), (96, 96, 24), "batches of {batch}");
    }
}

/// A message whose last copy panics when it is dropped.
#[derive(Debug)]
struct Bomb(Task);

impl Drop for Bomb {
    fn drop(&mut self) {
        assert!(std::thread::panicking() || self.0.what != "drop", "in Drop, as told");
    }
}

#[actix_rt::test]
async fn j07_a_message_whose_drop_panics_ends_no_processor() {
    for is_ordered in [false, true] {
        let (publisher, source) = oncekey::consumer::in_process::channel(1_000);
        for number in 0..60 {
            publisher.send(Bomb(task(number, if number % 3 == 0 { "drop" } else { "work" }))).await.unwrap();
        }
        drop(publisher);
        let work = job(
            |bomb: &Bomb| identify(&bomb.0),
            |call: Call, bomb: Arc<Bomb>| async move {
                let number = bomb.0.number;
                call.run(move |_| async move { Ok::<u64, String>(number) }).await
            },
        );
        let processor = Processor::new(engine(), source, work).concurrency(4).retry(quick());
        let processor = if is_ordered { processor.in_order_by(|bomb: &Bomb| bomb.0.number % 5) } else { processor };
        let processed = timeout(PATIENCE, processor.run(std::future::pending())).await.expect("it ends");
        // A message that panics while its job still holds it has panicked in its job.
        assert_eq!(processed.ran + processed.replayed + processed.dead, 60, "{processed:?}");
        assert!(processed.ran >= 40, "{processed:?}");
    }
}

/// The future that signals the end panics, which counts as the end.
#[actix_rt::test]
async fn j07_an_end_that_panics_drains_the_processor() {
    let (publisher, source, _dead) = queue();
    all_of((0..10).map(|number| task(number, "work")), publisher).await;
    let done = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counted = done.clone();
    let work = job(identify, move |call: Call, task: Arc<Task>| {
        let counted = counted.clone();
        async move {
            call.run(move |_| async move {
                counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                Ok::<u64, String>(task.number)
            })
            .await
        }
    });
    let running = Processor::new(engine(), source, work).concurrency(2).run_and_return(async {
        while done.load(std::sync::atomic::Ordering::SeqCst) < 3 {
            tokio::task::yield_now().await;
        }
        panic!("in what ends the processor, as told");
    });
    let (source, processed) = timeout(PATIENCE, running).await.expect("it ends");
    assert!(processed.ran >= 3, "{processed:?}");
    assert_eq!(processed.ran as usize + source.into_remaining().len(), 10);
}

/// A user's source that panics wherever it is called, each time at first.
struct Shaky {
    source: oncekey::consumer::in_process::InProcess<Task>,
    calls: std::sync::atomic::AtomicU64,
}

#[derive(Debug)]
struct Untold;

impl fmt::Display for Untold {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("in Display, as told")
    }
}

impl std::error::Error for Untold {}

impl Drop for Untold {
    fn drop(&mut self) {
        assert!(std::thread::panicking(), "in Drop, as told");
    }
}

impl Shaky {
    /// Lets two of three calls fail: one with a panic, one with an error.
    fn shake(&self) -> Result<(), Untold> {
        match self.calls.fetch_add(1, std::sync::atomic::Ordering::SeqCst) % 3 {
            0 => panic!("in a source, as told"),
            1 => Err(Untold),
            _ => Ok(()),
        }
    }
}

type InQueue = <oncekey::consumer::in_process::InProcess<Task> as oncekey::consumer::Source>::Receipt;

impl oncekey::consumer::Source for Shaky {
    type Message = Task;
    type Receipt = InQueue;
    type Error = Untold;

    // This is not an async fn, because it panics before there is a future.
    fn next(&self) -> impl Future<Output = Result<Option<oncekey::consumer::Delivery<Task, InQueue>>, Untold>> + Send {
        let shaken = self.shake();
        async move {
            shaken?;
            Ok(self.source.next().await.unwrap())
        }
    }

    fn settle(&self, receipt: InQueue, disposition: Disposition) -> impl Future<Output = Result<(), Untold>> + Send {
        let shaken = self.shake();
        async move {
            shaken?;
            self.source.settle(receipt, disposition).await.unwrap();
            Ok(())
        }
    }

    fn can_settle(&self, _: &InQueue) -> bool {
        true
    }

    fn end_intake(&self) -> impl Future<Output = ()> + Send {
        panic!("in a source's end, as told");
        #[expect(unreachable_code, reason = "the type of the future")]
        async {}
    }

    fn close(&self) -> impl Future<Output = ()> + Send {
        panic!("in a source's close, as told");
        #[expect(unreachable_code, reason = "the type of the future")]
        async {}
    }
}

#[actix_rt::test]
async fn j07_a_source_that_panics_ends_no_processor() {
    let (publisher, source, _dead) = queue();
    all_of((0..6).map(|number| task(number, "work")), publisher).await;
    let work = work(&Ledger::default());
    let shaky = Shaky { source, calls: Default::default() };
    let running = Processor::new(engine(), shaky, work).concurrency(2).retry(quick()).run(std::future::pending());
    let processed = timeout(PATIENCE, running).await.expect("it ends");
    assert_eq!((processed.ran, processed.unsettled), (6, 0), "{processed:?}");
}
