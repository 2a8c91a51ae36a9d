//! A holder that was paused past its lease with many operations in progress, while another process takes them over.
//!
//! Half of the operations are paused before their step `charge`, and half in it, after its effect. The other process
//! continues the former. For the latter, an operator settles the charge first. Then the old holder resumes and ignores
//! every error: each of its operations tries its next steps.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};
use oncekey::record::Steps;
use oncekey::{Engine, Key};

use crate::process::{PATIENCE, Process};
use crate::shared_store::{SharedStore, StoreKind, engine_on};

/// The plan of a run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The store.
    pub store: StoreKind,
    /// How many operations the paused process has.
    pub count: usize,
    /// The path of the binary `keyholder`.
    pub keyholder: PathBuf,
}

/// The result of a run.
#[derive(Debug)]
pub struct Report {
    /// The plan.
    pub plan: Plan,
    /// How many steps the old holder tried to begin and was refused.
    pub refused: usize,
    /// How many steps it began.
    pub began: usize,
    /// How many of its steps in progress were recorded before it resumed, and are unchanged afterwards.
    pub kept: usize,
    /// The violations.
    pub wrong: Vec<String>,
}

const LEASE: Duration = Duration::from_secs(2);
/// How many operations the new holder runs at once.
const AT_ONCE: usize = 50;

/// Runs a plan.
///
/// # Panics
/// If a server or a process does not start, or stops answering.
pub fn run(plan: Plan) -> Report {
    let folder = tempfile::tempdir().unwrap();
    let store = SharedStore::start(plan.store, folder.path());
    let outside = folder.path().join("outside.db");
    let holder = || {
        let mut command = Command::new(&plan.keyholder);
        let mut process = Process::start(command.arg(store.url()).arg(LEASE.as_millis().to_string()).arg(&outside));
        process.expect("ready");
        process
    };
    let (mut paused, mut heir) = (holder(), holder());
    let keys: Vec<String> = (0..plan.count).map(|number| format!("k{number}")).collect();
    let every_second = |first| keys.iter().skip(first).step_by(2).cloned().collect::<Vec<_>>();
    let (before, inside) = (every_second(0), every_second(1));
    for (keys, stalls) in [(&before, "before-charge"), (&inside, "in-charge")] {
        keys.iter().for_each(|key| paused.say(&format!("checkout {key} heedless {stalls}")));
    }
    keys.iter().for_each(|_| drop(paused.expect("stalled")));
    paused.pause();

    let mut wrong = Vec::new();
    let ran = keys.chunks(AT_ONCE).flat_map(|keys| take_over(&mut heir, keys)).collect::<HashMap<_, _>>();
    for (keys, left) in [(&before, &["charge 1", "mail 1"][..]), (&inside, &["mail 1"])] {
        for key in keys.iter().filter(|key| ran[*key] != left) {
            wrong.push(format!("the new holder of {key} ran {:?}", ran[key]));
        }
    }

    let system = actix_rt::System::new();
    let recorded = || system.block_on(async { steps(&engine_on(store.url(), LEASE).await, &keys).await });
    let before_it_goes_on = recorded();
    paused.resume();
    paused.say("go");
    let (mut refused, mut began, mut ended) = (0, 0, 0);
    while ended < keys.len() {
        let line = paused.next_line();
        match line.split(' ').next().unwrap_or_default() {
            "lost" => refused += 1,
            "step" => began += 1,
            "failed" | "refused" => ended += 1,
            _ => wrong.push(format!("the old holder said: {line}")),
        }
    }
    let after = recorded();
    let kept = inside.iter().filter(|key| before_it_goes_on[*key] == after[*key]).count();
    for (key, effects) in effects(&outside).into_iter().filter(|(_, effects)| *effects != [1; 3]) {
        wrong.push(format!("the effects of {key} happened {effects:?} times"));
    }
    if kept < inside.len() {
        wrong.push(format!("the record of {} steps in progress changed", inside.len() - kept));
    }
    if began > 0 {
        wrong.push(format!("the old holder began {began} steps"));
    }
    if refused < keys.len() {
        wrong.push(format!("the old holder tried {refused} steps only"));
    }
    Report { plan, refused, began, kept, wrong }
}

/// Makes a process finish operations that another one holds, and returns the steps that it ran, by key. The process
/// first settles the steps whose result is unknown.
fn take_over(heir: &mut Process, keys: &[String]) -> HashMap<String, Vec<String>> {
    let mut ran: HashMap<String, Vec<String>> = keys.iter().map(|key| (key.clone(), Vec::new())).collect();
    let mut open = keys.len();
    let ask = |heir: &mut Process, key: &str| heir.say(&format!("checkout {key} hold quick"));
    keys.iter().for_each(|key| ask(heir, key));
    let deadline = Instant::now() + 2 * PATIENCE;
    while open > 0 {
        assert!(Instant::now() < deadline, "{open} keys are stuck");
        let line = heir.next_line();
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["step", key, step, attempt] => ran.get_mut(key).unwrap().push(format!("{step} {attempt}")),
            ["refused", key, "Indeterminate", ..] => heir.say(&format!("settle {key}")),
            ["settled", key, _] => ask(heir, key),
            // The old holder's lease has not lapsed yet; or the machine is busy, and this holder has lost its own
            // claim.
            ["refused" | "failed", key, ..] => {
                std::thread::sleep(Duration::from_millis(5));
                ask(heir, key);
            }
            ["ran", ..] => open -= 1,
            _ => panic!("{line}"),
        }
    }
    ran
}

async fn steps(engine: &Engine, keys: &[String]) -> HashMap<String, Option<Box<Steps>>> {
    let mut found = HashMap::new();
    for key in keys {
        let view = engine.lookup(&Key::new("checkout", key).unwrap()).await.unwrap();
        found.insert(key.clone(), view.and_then(|view| view.steps));
    }
    found
}

/// Reads how often each effect of each key happened, from the file that all effects are written to.
fn effects(outside: &Path) -> HashMap<String, [i64; 3]> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Text)]
        key: String,
        #[diesel(sql_type = BigInt)]
        reserve: i64,
        #[diesel(sql_type = BigInt)]
        charge: i64,
        #[diesel(sql_type = BigInt)]
        mail: i64,
    }
    let mut connection = SqliteConnection::establish(&outside.display().to_string()).unwrap();
    let sql = "SELECT key, sum(step = 'reserve') AS reserve, sum(step = 'charge') AS charge, sum(step = 'mail') AS mail
               FROM effects GROUP BY key";
    let rows: Vec<Row> = diesel::sql_query(sql).load(&mut connection).unwrap();
    rows.into_iter().map(|row| (row.key, [row.reserve, row.charge, row.mail])).collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { plan, refused, began, kept, wrong } = self;
        writeln!(f, "{:?}, {} operations of a holder that was paused past its lease", plan.store, plan.count)?;
        writeln!(f, "  {refused:>8} steps were refused to it, and {began} began")?;
        writeln!(f, "  {kept:>8} steps that it had in progress are recorded once")?;
        match &wrong[..] {
            [] => writeln!(f, "  passed"),
            wrong => wrong.iter().take(20).try_for_each(|wrong| writeln!(f, "  FAILED: {wrong}")),
        }
    }
}
