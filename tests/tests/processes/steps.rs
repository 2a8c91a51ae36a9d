//! Operations with steps, killed between and inside them, and taken over by another process. The controls of
//! `tests/checkouts.rs` show that the same kills duplicate effects without steps.

use std::collections::BTreeMap;

use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};
use tests::process::Process;

use super::{SHORT, Store, retry};

const STEPS: [&str; 3] = ["reserve", "charge", "mail"];

impl Store {
    /// Returns how often each step of a key had its effect.
    fn effects(&self, key: &str) -> [i64; 3] {
        let all = self.all_effects();
        STEPS.map(|step| all.get(&(key.to_owned(), step.to_owned())).copied().unwrap_or(0))
    }

    fn all_effects(&self) -> BTreeMap<(String, String), i64> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = Text)]
            key: String,
            #[diesel(sql_type = Text)]
            step: String,
            #[diesel(sql_type = BigInt)]
            times: i64,
        }
        let mut connection = self.connect();
        let outside = self.file.with_extension("db.outside");
        connection.batch_execute(&format!("ATTACH '{}' AS outside", outside.display())).unwrap();
        let sql = "SELECT key, step, count(*) AS times FROM
                   (SELECT * FROM main.effects UNION ALL SELECT * FROM outside.effects) GROUP BY key, step";
        let rows: Vec<Row> = diesel::sql_query(sql).load(&mut connection).unwrap();
        rows.into_iter().map(|row| ((row.key, row.step), row.times)).collect()
    }
}

/// Retries a checkout until it has ended, and returns the steps that ran and its last line.
fn finish(process: &mut Process, key: &str, kind: &str) -> (Vec<String>, String) {
    let mut line = retry(process, &format!("checkout {key} {kind} quick"));
    let mut ran = Vec::new();
    while let Some(step) = line.strip_prefix(&format!("step {key} ")) {
        ran.push(step.to_owned());
        line = process.next_line();
    }
    (ran, line)
}

#[test]
fn e26_kill_9_between_steps_is_continued_by_the_next_process() {
    let store = Store::new();
    let mut heir = store.holder(SHORT);
    for (stalls, left) in [("before-charge", &["charge 1", "mail 1"][..]), ("before-mail", &["mail 1"])] {
        for kind in ["hold", "rerun", "transaction"] {
            let key = format!("{kind}-{stalls}");
            let mut victim = store.holder(SHORT);
            victim.say(&format!("checkout {key} {kind} {stalls}"));
            victim.expect("stalled");
            victim.kill();
            let (ran, line) = finish(&mut heir, &key, kind);
            assert_eq!(ran, left, "{key}");
            assert!(line.starts_with(&format!("ran {key} ")), "{line}");
            assert_eq!(store.effects(&key), [1; 3], "{key}");
            let (ran, line) = finish(&mut heir, &key, kind);
            assert!(ran.is_empty() && line.starts_with("replayed"), "{ran:?} {line}");
        }
    }
}

#[test]
fn e26_kill_9_inside_a_step_follows_the_steps_own_policy() {
    let store = Store::new();
    let mut heir = store.holder(SHORT);
    for kind in ["hold", "rerun"] {
        let mut victim = store.holder(SHORT);
        victim.say(&format!("checkout {kind} {kind} in-charge"));
        victim.expect("stalled");
        victim.kill();
        let (ran, line) = finish(&mut heir, kind, kind);
        if kind == "rerun" {
            assert_eq!(ran, ["charge 2", "mail 1"]);
            assert_eq!(store.effects(kind), [1, 2, 1]);
            continue;
        }
        assert!(ran.is_empty() && line.starts_with("refused hold Indeterminate"), "{ran:?} {line}");
        heir.say("settle hold");
        assert_eq!(heir.expect("settled hold"), "charge");
        let (ran, line) = finish(&mut heir, kind, kind);
        assert_eq!(ran, ["mail 1"], "{line}");
        assert_eq!(store.effects(kind), [1; 3]);
    }
}

/// A step that was in progress when its process was paused is recorded once, when it ends.
#[test]
fn e26_a_step_that_outlasts_its_lease_is_recorded_once() {
    let store = Store::new();
    let (mut paused, mut heir) = (store.holder(SHORT), store.holder(SHORT));
    paused.say("checkout k hold in-charge");
    paused.expect("stalled");
    paused.pause();
    let (ran, line) = finish(&mut heir, "k", "hold");
    assert!(ran.is_empty() && line.starts_with("refused k Indeterminate"), "{line}");
    paused.resume();
    paused.say("go");
    // No other process has taken the key over, so its holder continues.
    paused.expect("ran k");
    let (ran, line) = finish(&mut heir, "k", "hold");
    assert!(ran.is_empty() && line.starts_with("replayed k"), "{ran:?} {line}");
    assert_eq!(store.effects("k"), [1; 3]);
}

/// Kills a process that runs checkouts again and again, and retries each checkout until it is finished. Returns how
/// often each step of each checkout had its effect. Steps with an unknown result are settled as an operator would, and
/// counted.
fn under_kill_9(kind: &str, checkouts: usize) -> (BTreeMap<(String, String), i64>, usize) {
    let store = Store::new();
    let mut finished = vec![false; checkouts];
    let (mut kills, mut settled) = (0, 0);
    let mut process = store.holder(SHORT);
    while finished.contains(&false) {
        let open: Vec<usize> = (0..checkouts).filter(|checkout| !finished[*checkout]).collect();
        open.iter().for_each(|checkout| process.say(&format!("checkout {checkout} {kind} quick")));
        let is_last = open.len() <= checkouts / 10;
        // The process is killed after some of the steps, while others are in flight. There is no kill in the last
        // round.
        let mut steps_left = if is_last { usize::MAX } else { 3 * (open.len() / 7 + 1) };
        let mut answers = 0;
        while answers < open.len() && steps_left > 0 {
            let line = process.next_line();
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["step", ..] => {
                    steps_left -= 1;
                    continue;
                }
                ["settled", ..] => continue,
                ["ran" | "replayed", checkout, _] => finished[checkout.parse::<usize>().unwrap()] = true,
                // The killed process abandoned the checkout; or the machine is busy, and the step did not begin.
                ["refused" | "failed", _, why, ..] if why == "InProgress" || why.starts_with("Store(") => {}
                ["refused", checkout, "Indeterminate", ..] if kind == "hold" => {
                    process.say(&format!("settle {checkout}"));
                    settled += 1;
                }
                _ => panic!("{line}"),
            }
            answers += 1;
        }
        if !is_last {
            process.kill();
            kills += 1;
            // Waits until the leases of its claims have lapsed.
            std::thread::sleep(SHORT);
            process = store.holder(SHORT);
        }
    }
    assert!(kills >= 5, "only {kills} kills: the fault hardly fired");
    (store.all_effects(), settled)
}

fn each_once(effects: &BTreeMap<(String, String), i64>, checkouts: usize) -> bool {
    effects.len() == 3 * checkouts && effects.values().all(|times| *times == 1)
}

#[test]
fn e26_steps_in_transactions_survive_kill_9_exactly_once() {
    let (effects, _) = under_kill_9("transaction", 60);
    assert!(each_once(&effects, 60), "{effects:?}");
}

/// Each step runs at most once. After an operator has settled the interrupted steps, each one has run once.
#[test]
fn e26_steps_under_hold_survive_kill_9_at_most_once() {
    let (effects, settled) = under_kill_9("hold", 60);
    assert!(each_once(&effects, 60), "{settled} were settled by hand: {effects:?}");
}
