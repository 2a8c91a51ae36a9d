//! The clients. Each one orders and pays, again and again, and retries until it gets an answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::time::{sleep, timeout};

use super::apps::Apps;
use super::connections::{Connections, PATIENCE};
use super::faults::{Counts, Fault};
use super::history::{End, History, Kind, Operation, Seen};
use crate::http::{Answer, Request};

/// What the clients share.
#[derive(Debug, Clone)]
pub struct Clients {
    /// The shops.
    pub apps: Arc<Apps>,
    /// Where cut connections are counted.
    pub counts: Arc<Counts>,
    /// Set when no new operations may begin.
    pub stop: Arc<AtomicBool>,
    /// Whether every attempt has its own key.
    pub control: bool,
    /// The seed of the run.
    pub seed: u64,
    /// How long after the last fault a key without a final answer counts as stuck.
    pub give_up_after: Duration,
}

impl Clients {
    /// Runs this many clients until they are stopped, and then until every operation has ended.
    pub async fn work(self, clients: usize) -> History {
        let next = Arc::new(AtomicU64::new(0));
        let working: Vec<_> = (0..clients)
            .map(|client| {
                let (shared, next) = (self.clone(), Arc::clone(&next));
                tokio::spawn(async move { shared.client(client as u64, &next).await })
            })
            .collect();
        let mut history = History::default();
        for client in working {
            history.operations.extend(client.await.unwrap());
        }
        history
    }

    async fn client(&self, client: u64, next: &AtomicU64) -> Vec<Operation> {
        let mut rng = StdRng::seed_from_u64(self.seed ^ (client << 40));
        let mut done: Vec<Operation> = Vec::new();
        let mut connections = Connections::default();
        while !self.stop.load(Ordering::SeqCst) {
            match self.to_replay(&done, &mut rng) {
                Some(number) => {
                    let replay = self.replay(&done[number], &mut rng, &mut connections).await;
                    done[number].replays.push(replay);
                }
                None => {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    done.push(self.operate(number, &mut rng, &mut connections).await);
                }
            }
        }
        done
    }

    /// Runs one operation, from its first attempt to its final answer.
    async fn operate(&self, number: u64, rng: &mut StdRng, connections: &mut Connections) -> Operation {
        let kind = if rng.random_bool(0.5) { Kind::Order } else { Kind::Payment };
        let (name, key) = (format!("op-{number}"), format!("key-{}-{number}", self.seed));
        let mut operation = Operation { kind, name, key, tries: Vec::new(), end: End::Stuck, replays: Vec::new() };
        let mut patience = Patience::new(self);
        let mut shop = rng.random_range(0..2);
        loop {
            let seen = if rng.random_range(0..20) == 0 {
                // Two requests at once, one at each shop.
                let requests = [self.request(&operation), self.request(&operation)];
                let [one, other] = connections.ask_both([&requests[0], &requests[1]], &self.apps).await;
                operation.tries.push(one);
                other
            } else if rng.random_range(0..40) == 0 {
                self.leave(&operation, shop).await
            } else {
                connections.ask(&self.request(&operation), &self.apps, shop).await
            };
            // The other shop may be working.
            shop = 1 - shop;
            operation.tries.push(seen);
            // Of two concurrent requests, one may get "indeterminate" and the other a success. A holder that was paused
            // past its lease wakes up and completes, because under Hold nobody took over in the meantime.
            let ends = || operation.tries.iter().rev().take(2).filter_map(end_of);
            if let Some(end) = ends().find(|end| *end == End::Success).or_else(|| ends().next()) {
                operation.end = end;
                return operation;
            }
            if !patience.pauses(rng).await {
                return operation;
            }
        }
    }

    /// Picks, every second time, an operation that this client has seen succeed.
    fn to_replay(&self, done: &[Operation], rng: &mut StdRng) -> Option<usize> {
        let asks_again = rng.random_bool(0.5) && !self.control && !done.is_empty();
        let number = asks_again.then(|| rng.random_range(0..done.len()))?;
        (done[number].end == End::Success).then_some(number)
    }

    /// Requests the operation once more, until the answer is final.
    async fn replay(&self, operation: &Operation, rng: &mut StdRng, connections: &mut Connections) -> Vec<Seen> {
        let (mut tries, mut patience) = (Vec::new(), Patience::new(self));
        let mut shop = rng.random_range(0..2);
        loop {
            let seen = connections.ask(&self.request(operation), &self.apps, shop).await;
            shop = 1 - shop;
            let is_final = end_of(&seen).is_some();
            tries.push(seen);
            if is_final || !patience.pauses(rng).await {
                return tries;
            }
        }
    }

    fn request(&self, operation: &Operation) -> Request {
        request(operation.kind, &operation.name, &self.key(operation))
    }

    fn key(&self, operation: &Operation) -> String {
        if self.control { format!("try-{:032x}", rand::random::<u128>()) } else { operation.key.clone() }
    }

    /// Sends the request and cuts the connection.
    async fn leave(&self, operation: &Operation, shop: usize) -> Seen {
        let sent = timeout(PATIENCE, self.request(operation).try_send_only(self.apps.address(shop))).await;
        if let Ok(Ok(stream)) = sent {
            drop(stream);
            self.counts.add(Fault::CutsClient);
        }
        Seen::Left
    }
}

/// How a client waits between its attempts.
struct Patience<'a> {
    clients: &'a Clients,
    stopped_at: Option<Instant>,
    pause_ms: u64,
}

impl<'a> Patience<'a> {
    fn new(clients: &'a Clients) -> Self {
        Self { clients, stopped_at: None, pause_ms: 5 }
    }

    /// Waits longer each time, up to a fifth of a second, with jitter. Returns false if the client gives up because the
    /// faults ended long ago.
    async fn pauses(&mut self, rng: &mut StdRng) -> bool {
        if self.clients.stop.load(Ordering::SeqCst) {
            let stopped_at = self.stopped_at.get_or_insert_with(Instant::now);
            if stopped_at.elapsed() > self.clients.give_up_after {
                return false;
            }
        }
        sleep(Duration::from_millis(rng.random_range(self.pause_ms / 2..=self.pause_ms))).await;
        self.pause_ms = (self.pause_ms * 2).min(200);
        true
    }
}

/// Returns the request of an operation.
pub(super) fn request(kind: Kind, name: &str, key: &str) -> Request {
    let (target, body) = match kind {
        Kind::Order => ("/orders", format!(r#"{{"item": "{name}", "quantity": 1}}"#)),
        Kind::Payment => {
            let charge = r#""amount": 1999, "currency": "usd", "card": "tok_visa""#;
            ("/payments", format!(r#"{{{charge}, "reference": "{name}"}}"#))
        }
    };
    Request::post(target, body).header("Content-Type", "application/json").key(key)
}

pub(super) fn seen(answer: Answer) -> Seen {
    let is_problem = answer.header("content-type") == Some("application/problem+json");
    let problem = is_problem.then(|| answer.problem_name()).flatten();
    let is_success = (200..300).contains(&answer.status);
    let is_replay = answer.is_replay();
    Seen::Answer { status: answer.status, is_replay, problem, body: if is_success { answer.body } else { Vec::new() } }
}

/// Returns the end that an answer means: a success, an indeterminate key, or a refusal that no retry changes.
pub(super) fn end_of(seen: &Seen) -> Option<End> {
    match seen {
        Seen::Answer { status: 200..300, .. } => Some(End::Success),
        seen if seen.is_indeterminate() => Some(End::Indeterminate),
        // The key is in progress, or the claim was lost to another holder: ask again.
        Seen::Answer { status: 409 | 429 | 500.., .. } | Seen::Unknown | Seen::Left => None,
        Seen::Answer { .. } => Some(End::Refused),
    }
}
