//! The contract between processes that share an SQLite file: killed, paused, and with clocks that differ.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test, what fails fails the test")]

mod steps;
mod uploads;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use tests::process::Process;

/// A store's file in its own folder.
struct Store {
    _folder: tempfile::TempDir,
    file: PathBuf,
}

impl Store {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys.db");
        Self { _folder: folder, file }
    }

    fn holder(&self, lease: Duration) -> Process {
        Self::start(&self.file, Command::new(env!("CARGO_BIN_EXE_keyholder")), lease)
    }

    fn start(file: &Path, mut command: Command, lease: Duration) -> Process {
        let mut process = Process::start(command.arg(file).arg(lease.as_millis().to_string()));
        process.expect("ready");
        process
    }

    fn connect(&self) -> SqliteConnection {
        let mut connection = SqliteConnection::establish(self.file.to_str().unwrap()).unwrap();
        connection.batch_execute("PRAGMA busy_timeout = 10000").unwrap();
        connection
    }
}

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(500);

/// Runs the key repeatedly until the answer is not `InProgress`, and returns that answer.
fn retry(process: &mut Process, command: &str) -> String {
    let deadline = Instant::now() + tests::process::PATIENCE;
    loop {
        process.say(command);
        let line = process.next_line();
        if !line.contains(" InProgress ") {
            return line;
        }
        assert!(Instant::now() < deadline, "the key is stuck: {line}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn e01_of_many_processes_one_runs() {
    let store = Store::new();
    let mut processes: Vec<_> = (0..4).map(|_| store.holder(LONG)).collect();
    for key in 0..50 {
        processes.iter_mut().for_each(|process| process.say(&format!("run k{key} hold wait")));
    }
    let (mut began, mut values) = (0, std::collections::HashMap::new());
    for process in &mut processes {
        let mut answers = 0;
        while answers < 50 {
            let line = process.next_line();
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["began", _, "1"] => began += 1,
                ["ran" | "replayed", key, value] => {
                    answers += 1;
                    let first = values.entry(key.to_owned()).or_insert_with(|| value.to_owned());
                    assert_eq!(first, value, "two outcomes of {key}");
                }
                _ => panic!("{line}"),
            }
        }
    }
    assert_eq!(began, 50, "executions of 50 keys");
}

#[test]
fn e02_an_outcome_survives_kill_9_right_after_its_answer() {
    let store = Store::new();
    let mut other = store.holder(LONG);
    for round in 0..10 {
        let mut process = store.holder(LONG);
        process.say(&format!("run k{round} hold quick"));
        let value = process.expect("ran");
        process.kill();
        other.say(&format!("run k{round} hold quick"));
        assert_eq!(other.expect("replayed"), value);
    }
}

#[test]
fn e05_kill_9_between_acquire_and_complete_is_taken_over_by_rerun() {
    let store = Store::new();
    let (mut victim, mut heir) = (store.holder(SHORT), store.holder(SHORT));
    victim.say("run k rerun stall");
    assert_eq!(victim.expect("began"), "k 1");
    heir.say("run k rerun quick");
    heir.expect("refused k InProgress");
    victim.kill();
    assert_eq!(retry(&mut heir, "run k rerun quick"), "began k 2");
    heir.expect("ran k");
}

#[test]
fn e05_kill_9_between_acquire_and_complete_is_indeterminate_under_hold() {
    let store = Store::new();
    let (mut victim, mut other) = (store.holder(SHORT), store.holder(SHORT));
    victim.say("run k hold stall");
    victim.expect("began k");
    victim.kill();
    let line = retry(&mut other, "run k hold quick");
    assert!(line.starts_with("refused k Indeterminate"), "{line}");
}

#[test]
fn e06_a_process_paused_past_its_lease_finds_its_claim_lost() {
    let store = Store::new();
    let (mut paused, mut heir) = (store.holder(SHORT), store.holder(SHORT));
    paused.say("run k rerun stall");
    paused.expect("began k 1");
    paused.pause();
    assert_eq!(retry(&mut heir, "run k rerun quick"), "began k 2");
    let ran = heir.expect("ran k");
    paused.resume();
    paused.say("go");
    paused.expect("refused k ClaimLost");
    paused.say("run k rerun quick");
    assert_eq!(paused.expect("replayed k"), ran, "the outcome is that of the current holder");
}

#[test]
fn e06_a_process_paused_past_its_lease_completes_what_was_only_held() {
    let store = Store::new();
    let (mut paused, mut other) = (store.holder(SHORT), store.holder(SHORT));
    paused.say("run k hold stall");
    paused.expect("began k 1");
    paused.pause();
    let line = retry(&mut other, "run k hold quick");
    assert!(line.starts_with("refused k Indeterminate"), "{line}");
    paused.resume();
    paused.say("go");
    let ran = paused.expect("ran k");
    other.say("run k hold quick");
    assert_eq!(other.expect("replayed k"), ran);
}

#[test]
fn e08_a_waiter_in_another_process_has_the_outcome_soon() {
    let store = Store::new();
    let (mut holder, mut waiter) = (store.holder(LONG), store.holder(LONG));
    let mut delays = Vec::new();
    for round in 0..5 {
        holder.say(&format!("run k{round} hold stall"));
        holder.expect("began");
        waiter.say(&format!("run k{round} hold wait"));
        assert_eq!(waiter.expect_within("", Duration::from_millis(300)), None, "it waits");
        holder.say("go");
        holder.expect("ran");
        let completed = Instant::now();
        waiter.expect("replayed");
        delays.push(completed.elapsed());
    }
    delays.sort();
    assert!(delays[2] <= Duration::from_millis(100), "the waiters had the outcome after {delays:?}");
}

#[test]
fn e11_a_file_locked_by_a_paused_process_meets_the_deadline_and_recovers() {
    let store = Store::new();
    let mut process = store.holder(LONG);
    let mut locker = store.connect();
    locker.batch_execute("BEGIN IMMEDIATE").unwrap();
    process.say("run k hold quick");
    let refused = process.expect("refused k");
    assert!(refused.starts_with("Store("), "{refused}");
    locker.batch_execute("ROLLBACK").unwrap();
    assert!(retry_until_ran(&mut process), "the store is back, and the key is stuck");
}

fn retry_until_ran(process: &mut Process) -> bool {
    (0..200).any(|_| {
        process.say("run k hold quick");
        // The answer may come after `began`.
        let line = process.next_line();
        let line = if line.starts_with("began") { process.next_line() } else { line };
        std::thread::sleep(Duration::from_millis(20));
        line.starts_with("ran") || line.starts_with("replayed")
    })
}

/// Two time namespaces of one machine, as containers may have them: their times since boot differ by an hour.
#[test]
fn e17_an_hour_between_two_time_namespaces_changes_nothing() {
    let shifted = || {
        let mut command = Command::new("unshare");
        command.args(["--time", "--boottime", "3600", "--fork", "--kill-child"]);
        command
    };
    // This checks that the fault is real.
    let uptime = |mut command: Command| {
        let output = command.args(["cat", "/proc/uptime"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.split('.').next().unwrap().parse::<i64>().unwrap()
    };
    let difference = uptime(shifted()) - uptime(Command::new("env"));
    assert!((3_590..3_610).contains(&difference), "{difference}");

    for shifted_opens_first in [false, true] {
        let store = Store::new();
        let lease = Duration::from_secs(2);
        let start_shifted = || {
            let mut command = shifted();
            command.arg(env!("CARGO_BIN_EXE_keyholder"));
            Store::start(&store.file, command, lease)
        };
        let (mut one, mut other) = if shifted_opens_first {
            let shifted = start_shifted();
            (shifted, store.holder(lease))
        } else {
            let straight = store.holder(lease);
            (straight, start_shifted())
        };
        for (holder, asker, key) in [(0, 1, "a"), (1, 0, "b")] {
            let both = [&mut one, &mut other];
            both[holder].say(&format!("run {key} rerun stall"));
            both[holder].expect("began");
            both[asker].say(&format!("run {key} rerun quick"));
            let left: u64 = both[asker].expect(&format!("refused {key} InProgress")).parse().unwrap();
            assert!(left <= 2_000, "{left} ms of a lease of 2000 ms are left");
            both[holder].say("go");
            both[holder].expect(&format!("ran {key}"));
            both[asker].say(&format!("run {key} rerun quick"));
            both[asker].expect(&format!("replayed {key}"));
        }
    }
}

/// An hour of skew between two processes changes nothing: their clocks decide neither a lease nor a retention.
#[test]
fn e17_an_hour_of_skew_changes_nothing() {
    for (skew, seconds) in [("+3600", 3_600), ("-3600", -3_600)] {
        let store = Store::new();
        let mut straight = store.holder(Duration::from_secs(2));
        let mut command = Command::new("faketime");
        command.env("DONT_FAKE_MONOTONIC", "1").args(["-f", &format!("{skew}s"), env!("CARGO_BIN_EXE_keyholder")]);
        let mut skewed = Store::start(&store.file, command, Duration::from_secs(2));

        // This checks that the fault is real: the two processes disagree about the time.
        skewed.say("clock");
        straight.say("clock");
        let clock = |process: &mut Process| process.expect("clock").parse::<i64>().unwrap();
        let difference = clock(&mut skewed) - clock(&mut straight);
        assert!((difference - seconds).abs() < 60, "the clocks differ by {difference} s");

        let (one, other) = (&mut skewed, &mut straight);
        for (holder, asker, key) in [(0, 1, "a"), (1, 0, "b")] {
            let both = [&mut *one, &mut *other];
            both[holder].say(&format!("run {key} rerun stall"));
            both[holder].expect("began");
            both[asker].say(&format!("run {key} rerun quick"));
            let left: u64 = both[asker].expect(&format!("refused {key} InProgress")).parse().unwrap();
            assert!(left <= 2_000, "{left} ms of a lease of 2000 ms are left");
            // One clock renews the lease, and the other one sees it.
            std::thread::sleep(Duration::from_secs(3));
            both[asker].say(&format!("run {key} rerun quick"));
            both[asker].expect(&format!("refused {key} InProgress"));
            both[holder].say("go");
            let value = both[holder].expect("ran");
            both[asker].say(&format!("run {key} rerun quick"));
            assert_eq!(both[asker].expect("replayed"), value);
        }
    }
}

/// Makes a process place orders, kills it again and again in the middle, and retries each order until it gets an
/// answer. Returns the number of inserted rows, and how many different orders they are.
fn orders_under_kill_9(command: &str, orders: usize) -> (i64, i64) {
    let store = Store::new();
    let mut answered = vec![false; orders];
    let mut kills = 0;
    let mut process = store.holder(SHORT);
    while answered.contains(&false) {
        let open: Vec<usize> = (0..orders).filter(|order| !answered[*order]).collect();
        for order in &open {
            process.say(&format!("{command} {order}"));
        }
        // The process is killed after some of the answers, while the other orders are in flight. There are no kills in
        // the last rounds.
        let is_last = open.len() <= orders / 10;
        for _ in 0..if is_last { open.len() } else { open.len() / 7 + 1 } {
            let line = process.next_line();
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["ran" | "replayed", order, _] => answered[order.parse::<usize>().unwrap()] = true,
                // The killed process abandoned the order, and its lease has not lapsed yet.
                ["refused", _, "InProgress", _] => std::thread::sleep(Duration::from_millis(5)),
                _ => panic!("{line}"),
            }
        }
        if !is_last {
            process.kill();
            kills += 1;
            process = store.holder(SHORT);
        }
    }
    assert!(kills >= 5, "only {kills} kills: the fault hardly fired");

    #[derive(QueryableByName)]
    struct Count {
        #[diesel(sql_type = diesel::sql_types::BigInt)]
        rows: i64,
        #[diesel(sql_type = diesel::sql_types::BigInt)]
        keys: i64,
    }
    let count: Count = diesel::sql_query("SELECT count(*) AS rows, count(DISTINCT key) AS keys FROM orders")
        .get_result(&mut store.connect())
        .unwrap();
    (count.rows, count.keys)
}

/// The effect and the outcome commit together: each order exactly once.
#[test]
fn e05_orders_in_a_transaction_survive_kill_9_exactly_once() {
    assert_eq!(orders_under_kill_9("order", 300), (300, 300), "rows, different orders");
}

/// The control: without the guard the same kills duplicate orders.
#[test]
fn e05_control_orders_without_a_guard_are_doubled_by_kill_9() {
    // Whether a kill strikes between a row and its answer is chance. Some 15 kills usually do, and ten times as many
    // certainly do.
    let mut runs = (0..10).map(|_| orders_under_kill_9("order-unguarded", 300));
    assert!(runs.any(|(rows, orders)| rows > orders), "no order was doubled: the kills prove nothing");
}
