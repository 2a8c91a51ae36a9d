//! The processor's drain in every order of events.
//!
//! All of a processor runs in one task, so no lock and no thread timing is part of it. Only the order varies in which
//! messages arrive, jobs finish, settles are refused, and the processor is told to end. This test runs the processor
//! itself under each of the 120 orders of five events, in four forms: 480 runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use oncekey::consumer::{Call, Delivery, Disposition, Processor, RetryPolicy, Source, job};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use crate::tasks::{Ledger, Task, engine, identify, quick, task};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Event {
    Arrives(u64),
    Finishes(u64),
    End,
}

const EVENTS: [Event; 5] = [Event::Arrives(0), Event::Arrives(1), Event::Finishes(0), Event::Finishes(1), Event::End];

/// Returns every order of the events.
fn orders(events: &[Event]) -> Vec<Vec<Event>> {
    if events.is_empty() {
        return vec![Vec::new()];
    }
    let begin_with = |at: usize| {
        let mut rest = events.to_vec();
        let first = rest.remove(at);
        orders(&rest).into_iter().map(move |order| [vec![first], order].concat())
    };
    (0..events.len()).flat_map(begin_with).collect()
}

#[derive(Debug, Clone, Copy)]
struct Form {
    is_ordered: bool,
    /// The first settle is refused once, and the first attempt of each job fails.
    has_faults: bool,
}

#[derive(Debug, thiserror::Error)]
#[error("refused")]
struct Refused;

/// A broker of two messages. Messages that are given back or retried are redelivered at once.
struct Script {
    arriving: tokio::sync::Mutex<mpsc::UnboundedReceiver<u64>>,
    again: mpsc::UnboundedSender<u64>,
    settled: Mutex<Vec<(u64, Disposition)>>,
    refuses: AtomicBool,
}

impl Source for Script {
    type Message = Task;
    type Receipt = u64;
    type Error = Refused;

    async fn next(&self) -> Result<Option<Delivery<Task, u64>>, Refused> {
        let number = self.arriving.lock().await.recv().await;
        let failures = u32::from(number.is_some_and(|number| self.has_settled(number)));
        Ok(number.map(|number| Delivery { message: Arc::new(task(number, "work")), receipt: number, failures }))
    }

    async fn settle(&self, number: u64, disposition: Disposition) -> Result<(), Refused> {
        if self.refuses.swap(false, Ordering::SeqCst) {
            return Err(Refused);
        }
        if let Disposition::RetryLater { .. } = disposition {
            let _ = self.again.send(number);
        }
        self.settled.lock().push((number, disposition));
        Ok(())
    }
}

impl Script {
    fn has_settled(&self, number: u64) -> bool {
        self.settled.lock().iter().any(|(settled, _)| *settled == number)
    }
}

async fn run(order: &[Event], form: Form) {
    let (again, arriving) = mpsc::unbounded_channel();
    let source = Arc::new(Script {
        arriving: tokio::sync::Mutex::new(arriving),
        again: again.clone(),
        settled: Mutex::default(),
        refuses: AtomicBool::new(form.has_faults),
    });
    let ledger = Ledger::default();
    let gates: Arc<[Semaphore; 2]> = Arc::new([Semaphore::new(0), Semaphore::new(0)]);
    let gated = {
        let (ledger, gates) = (ledger.clone(), gates.clone());
        job(identify, move |call: Call, task: Arc<Task>| {
            let (ledger, gates) = (ledger.clone(), gates.clone());
            async move {
                call.run(move |_| async move {
                    gates[usize::from(task.number == 1)].acquire().await.unwrap().forget();
                    let tries = ledger.add(task.number);
                    if form.has_faults && tries == 1 { Err("not yet".to_owned()) } else { Ok(task.number) }
                })
                .await
            }
        })
    };
    let retry = RetryPolicy { first_delay: Duration::from_millis(1), max_delay: Duration::from_millis(1), ..quick() };
    let processor = Processor::new(engine(), source.clone(), gated).concurrency(1).retry(retry);
    let processor = if form.is_ordered { processor.in_order_by(|_| 0).in_hand(2) } else { processor };
    let (end, ended) = oneshot::channel::<()>();
    let running = actix_rt::spawn(processor.run(async { drop(ended.await) }));
    let mut end = Some(end);
    for event in order {
        match event {
            Event::Arrives(number) => again.send(*number).unwrap(),
            Event::Finishes(number) => gates[usize::from(*number == 1)].add_permits(10),
            Event::End => drop(end.take()),
        }
        // The processor does everything that it can before the next event.
        for _ in 0..30 {
            tokio::task::yield_now().await;
        }
    }
    let processed = timeout(Duration::from_secs(20), running).await;
    let processed = processed.unwrap_or_else(|_| panic!("{order:?} {form:?}: the drain never ends")).unwrap();
    assert_eq!((processed.left, processed.unsettled), (0, 0), "{order:?} {form:?}");
    let settled = source.settled.lock();
    for number in [0, 1] {
        let of_it: Vec<_> = settled.iter().filter(|(settled, _)| *settled == number).map(|(_, put)| put).collect();
        let acks = of_it.iter().filter(|put| ***put == Disposition::Ack).count();
        // After its acknowledgement a message is neither redelivered nor settled again, and a message whose job
        // finished is never given back.
        assert!(
            acks == 0 || (acks == 1 && *of_it[of_it.len() - 1] == Disposition::Ack),
            "{order:?} {form:?}: {of_it:?}"
        );
        let succeeded = ledger.of(number) > u32::from(form.has_faults);
        assert_eq!(acks == 1, succeeded, "{order:?} {form:?}: {of_it:?}");
        assert!(ledger.of(number) <= 1 + u32::from(form.has_faults), "{order:?} {form:?}: its job ran again");
    }
}

#[actix_rt::test]
async fn j05_the_drain_ends_and_loses_nothing_in_every_order_of_events() {
    for is_ordered in [false, true] {
        for has_faults in [false, true] {
            for order in orders(&EVENTS) {
                run(&order, Form { is_ordered, has_faults }).await;
            }
        }
    }
}
