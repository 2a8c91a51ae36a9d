//! Checkouts of several steps in two shops on one store, which are killed again and again.
//!
//! Clients begin as many checkouts at each shop, and retry each of them, at either shop, until it has finished or its key is
//! indeterminate. When nobody is at work any more, an operator settles the steps that a kill struck by what the ledger says,
//! and each of their checkouts has to finish at its next retry.

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

/// What to do.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// On which store.
    pub store: StoreKind,
    /// How many checkouts begin at each shop.
    pub count: usize,
    /// Takes the steps away: the effects stand bare in the handler, and run again after a crash. Such a run must show doubles.
    pub control: bool,
}

/// How long a claim holds: long enough that only a killed shop's lapse.
const LEASE: Duration = Duration::from_millis(1_500);
/// How many clients work at once.
const CLIENTS: usize = 32;
/// How often the shops are killed, in a long run. In a short one there is a kill for every few checkouts.
const KILLS: usize = 40;
const CHECKOUTS_PER_KILL: usize = 10;
/// A checkout that is not over after this time is stuck.
const PATIENCE: Duration = Duration::from_secs(120);
/// The scope of requests without an API key.
const SCOPE: &str = "public";

/// One checkout, as its client saw it.
#[derive(Debug)]
pub struct Checkout {
    /// Its reference, and its key.
    pub reference: String,
    /// In the order of their answers.
    pub tries: Vec<Try>,
}

/// One try: at which shop, from when to when, and what came of it.
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

    /// Whether a kill alone explains that it was interrupted: it met a try, and no shop has said that it failed.
    fn was_struck(&self, kills: &[Kill]) -> bool {
        let failed = |tried: &Try| matches!(tried.seen, Seen::Answer { status: 500.., .. });
        let met = |tried: &Try| {
            let during = |kill: &&Kill| tried.began <= kill.at && kill.at <= tried.ended;
            tried.seen == Seen::Unknown && kills.iter().filter(during).any(|kill| kill.shop == tried.shop)
        };
        !self.tries.iter().any(failed) && self.tries.iter().any(met)
    }
}

/// A shop was killed.
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

/// What came of a run.
#[derive(Debug)]
pub struct Report {
    /// What was to be done.
    pub plan: Plan,
    /// For how long clients worked.
    pub worked: Duration,
    /// How often a shop was killed.
    pub kills: usize,
    /// How many checkouts were interrupted by a kill inside of a step, and between two of them.
    pub struck: [usize; 2],
    /// How many finished before an operator was asked.
    pub finished: usize,
    /// How many steps the operator settled: those whose effect had happened, and those whose had not.
    pub settled: [usize; 2],
    /// How many effects happened, by what they are and how often.
    pub effects: BTreeMap<(String, usize), usize>,
    /// The tries, by what they saw.
    pub tries: BTreeMap<String, usize>,
    /// What is wrong.
    pub wrong: Vec<String>,
}

/// Runs a plan.
///
/// # Panics
/// If the store or the shops can't be started, or do not come back.
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
            // No process is left that may still run a step: what the ledger says is the last word.
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
    /// Kills one shop and the other by turns, each time when some more checkouts are over and others are under way.
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

    /// Retries until the checkout is over, or for as long as patience lasts.
    async fn ask_until_over(&self, checkout: &mut Checkout, number: usize, by: &mut Connections) {
        let began = Instant::now();
        while began.elapsed() < PATIENCE && !self.is_over_after_a_try(checkout, number, by).await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The first try is at the checkout's own shop, and each one after it at the other one than the last.
    async fn is_over_after_a_try(&self, checkout: &mut Checkout, number: usize, by: &mut Connections) -> bool {
        let (shop, began) = ((number + checkout.tries.len()) % 2, Instant::now());
        let seen = by.ask(&request(&checkout.reference), &self.apps, shop).await;
        // In progress, or nothing is known: asked again.
        let is_open = matches!(seen, Seen::Answer { status: 409 | 500.., .. } | Seen::Unknown);
        let is_over = !is_open || seen.is_indeterminate();
        checkout.tries.push(Try { shop, began, ended: Instant::now(), seen });
        is_over
    }

    /// Asks once more for each checkout that was held: it has to finish.
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

/// Settles the steps of the checkouts that are held, as an operator does who has asked the provider.
async fn settle_all(engine: &Engine, apps: &Apps, checkouts: &[Checkout], kills: &[Kill], report: &mut Report) {
    let ledger = Ledger::read(apps, checkouts.iter().map(|checkout| &checkout.reference)).await;
    for checkout in checkouts.iter().filter(|checkout| checkout.last().is_some_and(Seen::is_indeterminate)) {
        let (key, reference) = (key_of(checkout), &checkout.reference);
        let view = engine.lookup(&key).await.unwrap();
        let steps = view.and_then(|view| view.steps);
        // A holder whose lease lapsed on a busy machine may have recorded its step since.
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

/// What the step would have returned.
fn outcome(step: &str, reference: &str) -> Value {
    match step {
        "charge" => json!({"Charge": "charge: tok_visa"}),
        step => json!(format!("{step}: {reference}")),
    }
}

/// Counts the checkouts whose claim was given up by a killed shop with some steps done and none running: another claim has
/// continued it, and no step began twice.
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
