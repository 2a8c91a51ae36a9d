//! A broker that refuses to settle. The processor keeps the disposition and sends it again, and the job does not run
//! for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use oncekey::consumer::in_process::InProcess;
use oncekey::consumer::{Delivery, Disposition, Processor, Source};
use tokio::time::timeout;

use crate::tasks::{Ledger, Numbered, Refused, Task, all_of, engine, next_numbered, queue, quick, task, work};

const PATIENCE: Duration = Duration::from_secs(60);

/// Refuses the first settles of some kind.
struct Refusing {
    source: InProcess<Task>,
    kind: &'static str,
    left: AtomicUsize,
}

impl Source for Refusing {
    type Message = Task;
    type Receipt = <InProcess<Task> as Source>::Receipt;
    type Error = Refused;

    async fn next(&self) -> Result<Option<Delivery<Task, Self::Receipt>>, Refused> {
        Ok(self.source.next().await.unwrap())
    }

    async fn settle(&self, receipt: Self::Receipt, disposition: Disposition) -> Result<(), Refused> {
        let is_refused = disposition.name() == self.kind
            && self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        if is_refused {
            return Err(Refused);
        }
        self.source.settle(receipt, disposition).await.unwrap();
        Ok(())
    }
}

#[actix_rt::test]
async fn j08_a_refused_disposition_is_sent_again_and_the_job_does_not_run_for_it() {
    for kind in ["ack", "dead_letter", "retry_later"] {
        for is_ordered in [false, true] {
            let ledger = Ledger::default();
            let (publisher, source, mut dead) = queue();
            all_of((0..40).map(|number| task(number, if number % 4 == 0 { "poison" } else { "work" })), publisher)
                .await;
            let refusing = Refusing { source, kind, left: AtomicUsize::new(30) };
            let processor = Processor::new(engine(), refusing, work(&ledger)).concurrency(2).retry(quick());
            let processor = if is_ordered { processor.in_order_by(|task: &Task| task.number) } else { processor };
            let running = processor.run(std::future::pending());
            let processed = timeout(PATIENCE, running).await.expect("it ends");
            assert_eq!((processed.ran, processed.dead, processed.unsettled), (30, 10, 0), "{kind}: {processed:?}");
            for number in 0..40 {
                let tries = if number % 4 == 0 { 3 } else { 1 };
                assert_eq!(ledger.of(number), tries, "{kind}, ordered {is_ordered}: {number}");
            }
            for _ in 0..10 {
                assert!(dead.recv().await.unwrap().reason.starts_with("try 3 of"));
            }
        }
    }
}

/// Messages whose settles are refused take no job's place, and the others continue.
#[actix_rt::test]
async fn j08_a_broker_that_refuses_dead_letters_holds_up_nobody() {
    let ledger = Ledger::default();
    let (publisher, source, mut dead) = queue();
    all_of((0..50).map(|number| task(number, "poison")), publisher.clone()).await;
    let refusing = Arc::new(Refusing { source, kind: "dead_letter", left: AtomicUsize::new(usize::MAX) });
    let running = Processor::new(engine(), refusing.clone(), work(&ledger)).concurrency(2).retry(quick());
    let mut running = std::pin::pin!(running.run(std::future::pending()));
    // Each dead letter is refused many times, and all valid messages are done in the meantime.
    let all_done = async {
        while (0..50).any(|number| ledger.of(number) < 3) || refusing.left.load(Ordering::SeqCst) > usize::MAX - 100 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        all_of((50..250).map(|number| task(number, "work")), publisher).await;
        while (50..250).any(|number| ledger.of(number) == 0) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        () = async { timeout(PATIENCE, all_done).await.expect("nobody waits for a refused dead letter") } => {}
        _ = &mut running => panic!("it has ended"),
    }
    refusing.left.store(0, Ordering::SeqCst);
    let processed = timeout(PATIENCE, running).await.expect("it ends");
    assert_eq!((processed.ran, processed.dead, processed.unsettled), (200, 50, 0));
    assert!((0..50).all(|number| ledger.of(number) == 3));
    for _ in 0..50 {
        assert!(dead.recv().await.unwrap().message.what == "poison");
    }
}

/// Never answers the acknowledgements of the first messages.
struct Silent {
    source: InProcess<Task>,
    first: u64,
}

impl Source for Silent {
    type Message = Task;
    type Receipt = Numbered;
    type Error = Refused;

    async fn next(&self) -> Result<Option<Delivery<Task, Self::Receipt>>, Refused> {
        Ok(next_numbered(&self.source).await)
    }

    async fn settle(&self, (receipt, number): Self::Receipt, disposition: Disposition) -> Result<(), Refused> {
        if number < self.first {
            std::future::pending::<()>().await;
        }
        self.source.settle(receipt, disposition).await.unwrap();
        Ok(())
    }
}

/// A settle that is never answered takes no job's place, and does not delay the end.
#[actix_rt::test]
async fn j08_a_broker_that_answers_no_settle_holds_up_nobody() {
    for is_ordered in [false, true] {
        let ledger = Ledger::default();
        let (publisher, source, _dead) = queue();
        all_of((0..100).map(|number| task(number, "work")), publisher.clone()).await;
        let silent = Silent { source, first: 6 };
        let until = async {
            while (0..100).any(|number| ledger.of(number) == 0) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            // Waits for the last message's settle.
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        let processor = Processor::new(engine(), silent, work(&ledger))
            .concurrency(2)
            .retry(quick())
            .drain_limit(Duration::from_millis(500));
        let processor = if is_ordered { processor.in_order_by(|task: &Task| task.number) } else { processor };
        let running = timeout(PATIENCE, processor.run_and_return(until));
        let (silent, processed) = running.await.expect("nobody waits for a settle without an answer");
        assert_eq!((processed.ran, processed.unsettled, processed.left), (94, 6, 0), "{processed:?}");
        assert_eq!(silent.source.into_remaining().len(), 6);
        drop(publisher);
    }
}
