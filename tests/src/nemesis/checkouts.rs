//! Checkouts of several steps in two shops on one store, which are killed again and again.
//!
//! Clients begin the same number of checkouts at each shop. They retry each one, at either shop, until it has finished
//! or its key is indeterminate. When all clients are done, an operator settles the steps that a kill interrupted,
//! according to the ledger. Each of these checkouts must then finish at its next retry.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use oncekey::backend::{Resolved, StateView};
use oncekey::record::{Progress, StepRecord, Steps, StoreTime};
use oncekey::{Attempt, Engine, Key};
use serde_json::{Value, json};

use super::apps::Apps;
use super::connections::Connections;
use super::history::Seen;
use super::ledger::Ledger;
use crate::http::Request;
use crate::shared_store::{SharedStore, StoreKind, engine_on};

/// The plan of a run.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// The store.
    pub store: StoreKind,
    /// How many checkouts begin at each shop.
    pub count: usize,
    /// Removes the steps: the handler performs the effects directly, and repeats them after a crash. Such a run must
    /// show doubles.
    pub control: bool,
}

/// The lease of a claim. It is long enough that only the claims of a killed shop lapse.
const LEASE: Duration = Duration::from_millis(1_500);
/// How many clients run at once.
const CLIENTS: usize = 32;
/// How often the shops are killed in a long run. In a short run there is a kill for every few checkouts.
const KILLS: usize = 40;
const CHECKOUTS_PER_KILL: usize = 10;
/// A checkout that has not finished after this time is stuck.
const PATIENCE: Duration = Duration::from_secs(120);
/// The scope of requests without an API key.
const SCOPE: &str = "public";

/// One checkout, as its client saw it.
#[derive(Debug)]
pub struct Checkout {
    /// Its reference, which is also its key.
    pub reference: String,
    /// The attempts, in the order of their answers.
    pub tries: Vec<Try>,
}

/// One attempt: its shop, its start and end, and its result.
#[derive(Debug)]
pub struct Try {
    shop: usize,
    began: Instant,
    ended: Instant,
    seen: Seen,
}

impl Checkout {
    fn last(&self) -> Option<&Seen> {
        self.tries.last().map(|last| &last.seen)
    }

    fn has_finished(&self) -> bool {
        self.last().is_some_and(Seen::is_success)
    }

    /// Returns whether a kill alone explains the interruption: it interrupted an attempt, and no shop has reported a
    /// failure.
    fn was_struck(&self, kills: &[Kill]) -> bool {
        let failed = |tried: &Try| matches!(tried.seen, Seen::Answer { status: 500.., .. });
        let met = |tried: &Try| {
            let during = |kill: &&Kill| tried.began <= kill.at && kill.at <= tried.ended;
            tried.seen == Seen::Unknown && kills.iter().filter(during).any(|kill| kill.shop == tried.shop)
        };
        !self.tries.iter().any(failed) && self.tries.iter().any(met)
    }
}

/// A kill of a shop.
#[derive(Debug, Clone, Copy)]
struct Kill {
    shop: usize,
    at: Instant,
}

#[derive(Debug)]
struct Shared {
    plan: Plan,
    apps: Apps,
    next: AtomicUsize,
    /// How many checkouts have finished or are held.
    over: AtomicUsize,
    is_done: AtomicBool,
}

/// The result of a run.
#[derive(Debug)]
pub struct Report {
    /// The plan.
    pub plan: Plan,
    /// How long the clients ran.
    pub worked: Duration,
    /// How often a shop was killed.
    pub kills: usize,
    /// How many checkouts a kill interrupted inside a step, and between two steps.
    pub struck: [usize; 2],
    /// How many finished without an operator.
    pub finished: usize,
    /// How many steps the operator settled: those whose effect had happened, and those whose effect had not.
    pub settled: [usize; 2],
    /// How many effects happened, by name and number of times.
    pub effects: BTreeMap<(String, usize), usize>,
    /// The attempts, by result.
    pub tries: BTreeMap<String, usize>,
    /// The violations.
    pub wrong: Vec<String>,
}

/// Runs a plan.
///
/// # Panics
/// If the store or the shops cannot be started, or do not come back.
pub fn run(plan: Plan) -> Report {
    let folder = tempfile::tempdir().unwrap();
    let store = SharedStore::start(plan.store, folder.path());
    let urls = [store.url().to_owned(), store.url().to_owned()];
    let flags: &[&str] = if plan.control { &["--bare-checkouts"] } else { &[] };
    let shared = Arc::new(Shared {
        plan,
        apps: Apps::open_with(folder.path(), &urls, LEASE, flags),
        next: AtomicUsize::new(0),
        over: AtomicUsize::new(0),
        is_done: AtomicBool::new(false),
    });
    let killer = {
        let shared = Arc::clone(&shared);
        std::thread::spawn(move || shared.kill_again_and_again())
    };
    actix_rt::System::new().block_on(async {
        let began = Instant::now();
        let mut checkouts: Vec<Checkout> =
            join_all((0..CLIENTS).map(|_| shared.client())).await.into_iter().flatten().collect();
        let worked = began.elapsed();
        shared.is_done.store(true, Ordering::SeqCst);
        let kills = killer.join().unwrap();
        let mut report = Report {
            plan,
            worked,
            kills: kills.len(),
            struck: [0; 2],
            finished: checkouts.iter().filter(|checkout| checkout.has_finished()).count(),
            settled: [0; 2],
            effects: BTreeMap::new(),
            tries: BTreeMap::new(),
            wrong: Vec::new(),
        };
        if !plan.control {
            let engine = engine_on(store.url(), LEASE).await;
            // No process is left that may still run a step, so the ledger is final.
            shared.apps.kill(0);
            shared.apps.kill(1);
            settle_all(&engine, &shared.apps, &checkouts, &kills, &mut report).await;
            shared.finish_all(&mut checkouts, &mut report).await;
            count_between(&engine, &checkouts, &kills, &mut report).await;
        }
        judge(&shared.apps, &checkouts, &mut report).await;
        report
    })
}

impl Shared {
    /// Kills the two shops in turn, each time after more checkouts have finished and while others are in flight.
    fn kill_again_and_again(&self) -> Vec<Kill> {
        let every = (2 * self.plan.count / KILLS).max(CHECKOUTS_PER_KILL);
        let (mut kills, mut at) = (Vec::new(), every);
        while !self.is_done.load(Ordering::SeqCst) {
            if self.over.load(Ordering::Relaxed) < at {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
            let shop = kills.len() % 2;
            kills.push(Kill { shop, at: Instant::now() });
            self.apps.kill(shop);
            at = self.over.load(Ordering::Relaxed) + every;
        }
        kills
    }

    async fn client(&self) -> Vec<Checkout> {
        let (mut done, mut connections) = (Vec::new(), Connections::default());
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= 2 * self.plan.count {
                return done;
            }
            let mut checkout = Checkout { reference: format!("r-{number}"), tries: Vec::new() };
            self.ask_until_over(&mut checkout, number, &mut connections).await;
            self.over.fetch_add(1, Ordering::Relaxed);
            done.push(checkout);
        }
    }

    /// Retries until the checkout has finished or the time limit has passed.
    async fn ask_until_over(&self, checkout: &mut Checkout, number: usize, by: &mut Connections) {
        let began = Instant::now();
        while began.elapsed() < PATIENCE && !self.is_over_after_a_try(checkout, number, by).await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Makes one attempt. The first one is at the checkout's own shop, and the shops alternate after that.
    async fn is_over_after_a_try(&self, checkout: &mut Checkout, number: usize, by: &mut Connections) -> bool {
        let (shop, began) = ((number + checkout.tries.len()) % 2, Instant::now());
        let seen = by.ask(&request(&checkout.reference), &self.apps, shop).await;
        // The key is in progress, or the result is unknown: ask again.
        let is_open = matches!(seen, Seen::Answer { status: 409 | 500.., .. } | Seen::Unknown);
        let is_over = !is_open || seen.is_indeterminate();
        checkout.tries.push(Try { shop, began, ended: Instant::now(), seen });
        is_over
    }

    /// Requests each held checkout once more. It must finish.
    async fn finish_all(&self, checkouts: &mut [Checkout], report: &mut Report) {
        let mut connections = Connections::default();
        for (number, checkout) in checkouts.iter_mut().enumerate().filter(|(_, checkout)| !checkout.has_finished()) {
            // A busy shop answers late, or answers that nothing ran.
            self.ask_until_over(checkout, number, &mut connections).await;
            let (reference, last) = (&checkout.reference, checkout.last());
            if !checkout.has_finished() {
                report.wrong.push(format!("{reference} did not finish with all of its steps settled: {last:?}"));
            }
        }
    }
}

fn request(reference: &str) -> Request {
    let body = json!({"item": "book", "amount": 1999, "card": "tok_visa", "reference": reference});
    Request::post("/checkouts", body.to_string()).header("Content-Type", "application/json").key(reference)
}

fn key_of(checkout: &Checkout) -> Key {
    Key::new(SCOPE, &checkout.reference).unwrap()
}

/// Settles the steps of the held checkouts, like an operator who has asked the provider.
async fn settle_all(engine: &Engine, apps: &Apps, checkouts: &[Checkout], kills: &[Kill], report: &mut Report) {
    let ledger = Ledger::read(apps, checkouts.iter().map(|checkout| &checkout.reference)).await;
    for checkout in checkouts.iter().filter(|checkout| checkout.last().is_some_and(Seen::is_indeterminate)) {
        let (key, reference) = (key_of(checkout), &checkout.reference);
        let view = engine.lookup(&key).await.unwrap();
        let steps = view.and_then(|view| view.steps);
        // On a busy machine, a holder whose lease lapsed may have recorded its step in the meantime.
        let Some(step) = steps.as_deref().and_then(|steps| steps.unsettled(StoreTime::END)) else { continue };
        let name = step.name.as_str();
        let has_happened = ledger.times(reference, name) > 0;
        let value = has_happened.then(|| outcome(name, reference));
        let resolved = engine.resolve_step(&key, name, value.as_ref()).await.unwrap();
        if resolved != Resolved::Resolved {
            report.wrong.push(format!("the step {name} of {reference} could not be settled: {resolved:?}"));
        }
        report.settled[usize::from(!has_happened)] += 1;
        report.struck[0] += usize::from(checkout.was_struck(kills));
    }
}

/// Returns what the step would have returned.
fn outcome(step: &str, reference: &str) -> Value {
    match step {
        "charge" => json!({"Charge": "charge: tok_visa"}),
        step => json!(format!("{step}: {reference}")),
    }
}

/// Counts the checkouts whose claim a killed shop lost between steps: another claim continued them, and no step began
/// twice.
async fn count_between(engine: &Engine, checkouts: &[Checkout], kills: &[Kill], report: &mut Report) {
    for checkout in checkouts.iter().filter(|checkout| checkout.was_struck(kills)) {
        let Some(view) = engine.lookup(&key_of(checkout)).await.unwrap() else { continue };
        let was_held = checkout.tries.iter().any(|tried| tried.seen.is_indeterminate());
        let is_completed = matches!(view.state, StateView::Completed { .. });
        let continued = view.steps.as_deref().is_some_and(is_continued);
        report.struck[1] += usize::from(is_completed && !was_held && continued);
    }
}

fn is_continued(steps: &Steps) -> bool {
    let began_once =
        |step: &StepRecord| step.attempt == Attempt::FIRST && matches!(step.progress, Progress::Completed(_));
    let mut tokens = steps.list.iter().map(|step| step.run.token);
    let first = tokens.next();
    steps.list.iter().all(began_once) && tokens.any(|token| Some(token) != first)
}

/// Compares what the clients saw with the ledger.
async fn judge(apps: &Apps, checkouts: &[Checkout], report: &mut Report) {
    let ledger = Ledger::read(apps, checkouts.iter().map(|checkout| &checkout.reference)).await;
    for checkout in checkouts {
        for tried in &checkout.tries {
            *report.tries.entry(tried.seen.to_string()).or_default() += 1;
        }
        let (reference, finished) = (&checkout.reference, checkout.has_finished());
        for effect in Ledger::EFFECTS {
            let times = ledger.times(reference, effect);
            *report.effects.entry((effect.to_owned(), times)).or_default() += 1;
            if times > 1 && !report.plan.control {
                report.wrong.push(format!("{effect} of {reference} happened {times} times"));
            }
            if times == 0 && finished {
                report.wrong.push(format!("{reference} has finished without {effect}"));
            }
        }
        if !finished && report.plan.control {
            report.wrong.push(format!("{reference} did not finish: {:?}", checkout.last()));
        }
    }
}
