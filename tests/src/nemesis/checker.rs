//! Compares what every client saw with the contents of the shop's tables.

use std::collections::HashMap;
use std::fmt;
use std::time::Instant;

use futures_util::future::join_all;
use parking_lot::Mutex;
use serde_json::Value;

use super::apps::{Apps, Freeing};
use super::connections::Connections;
use super::history::{End, History, Kind, Operation, Seen};
use super::stores::Kind as Store;
use super::workload::{end_of, request};
use crate::http::Request;
use crate::process::PATIENCE;

/// The kind of a violation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wrong {
    /// The operation happened more than once.
    Double,
    /// A client got a success, but the operation did not happen or its outcome is gone.
    Lost,
    /// Two answers to one key differ, or both claim to be the first.
    Unlike,
    /// No final answer came, long after the last fault.
    Stuck,
    /// The key is indeterminate, and nothing that a client saw explains it.
    Unexplained,
    /// An answer that no client of a correct shop gets.
    Unexpected,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Double => "double executions",
            Self::Lost => "lost outcomes",
            Self::Unlike => "replays unlike their first",
            Self::Stuck => "stuck keys",
            Self::Unexplained => "indeterminate without a cause",
            Self::Unexpected => "unexpected answers",
        })
    }
}

impl Wrong {
    /// All kinds.
    pub const ALL: [Self; 6] =
        [Self::Double, Self::Lost, Self::Unlike, Self::Stuck, Self::Unexplained, Self::Unexpected];
}

/// All violations, each with the operation that shows it.
#[derive(Debug, Clone, Default)]
pub struct Findings {
    /// The kind, and how it shows.
    pub wrong: Vec<(Wrong, String)>,
    /// How many keys were requested once more at the end.
    pub asked_again: usize,
    /// How many indeterminate keys no attempt explains, although the former rule excused them: it accepted any answer
    /// of 500 or above.
    pub excused_before: usize,
    /// How many of these a shop was about to free when it was killed.
    pub killed_before_freed: usize,
    /// How many of these were freed later, because their store was away for longer than their lease.
    pub freed_late: usize,
}

impl Findings {
    /// Returns the number of violations of one kind.
    pub fn count(&self, wrong: Wrong) -> usize {
        self.wrong.iter().filter(|(found, _)| *found == wrong).count()
    }

    fn add(&mut self, wrong: Wrong, operation: &Operation, why: impl fmt::Display) {
        let last: Vec<_> = operation.tries.iter().rev().take(6).rev().map(Seen::to_string).collect();
        self.wrong.push((
            wrong,
            format!("{} ({:?}): {why}; its last tries: {}", operation.key, operation.kind, last.join(", ")),
        ));
    }
}

/// Reads the shop's tables, requests every success once more, and compares.
///
/// # Panics
/// If the shop cannot be read.
pub async fn check(history: &History, apps: &Apps, store: Store, control: bool) -> Findings {
    let mut findings = Findings::default();
    let rows = Rows::read(apps).await;
    for operation in &history.operations {
        judge(&mut findings, operation, rows.of(operation));
    }
    if !control {
        if !apps.have_freed_all() {
            let why = "a shop has not freed its claims, long after all faults were over";
            findings.wrong.push((Wrong::Stuck, why.to_owned()));
        }
        let answers = ask_all_again(history, apps).await;
        findings.asked_again = answers.len();
        // A paused holder may have finished its work between the first reading and the last answer for its key.
        let after = Rows::read(apps).await;
        for operation in &history.operations {
            let (before, after) = (rows.of(operation), after.of(operation));
            if after.len() > 1 && before.len() <= 1 {
                findings.add(Wrong::Double, operation, format_args!("asked once more, it ran again: {after:?}"));
            }
        }
        let freeing = apps.freeing();
        for (operation, again) in answers {
            judge_again(&mut findings, operation, &again, after.of(operation));
            if operation.end == End::Indeterminate && !is_explained(operation, store.has_transactions()) {
                judge_unexplained(&mut findings, operation, &again, &freeing, store.has_transactions());
            }
        }
    }
    findings
}

/// The numbers of the shop's rows, by name.
struct Rows {
    orders: HashMap<String, Vec<i64>>,
    charges: HashMap<String, Vec<i64>>,
}

impl Rows {
    async fn read(apps: &Apps) -> Self {
        Self { orders: read(apps, "/orders", "item").await, charges: read(apps, "/payments", "reference").await }
    }

    fn of(&self, operation: &Operation) -> &[i64] {
        let table = match operation.kind {
            Kind::Order => &self.orders,
            Kind::Payment => &self.charges,
        };
        table.get(&operation.name).map(Vec::as_slice).unwrap_or_default()
    }
}

/// Returns the number of the row that a success names.
fn row_of(seen: &Seen) -> Option<i64> {
    let Seen::Answer { body, .. } = seen else { return None };
    serde_json::from_slice::<Value>(body).ok()?["id"].as_i64()
}

/// Reads the rows of a table, and returns their numbers by name.
async fn read(apps: &Apps, target: &str, name: &str) -> HashMap<String, Vec<i64>> {
    let deadline = Instant::now() + PATIENCE;
    let rows: Vec<Value> = loop {
        let found = Request::new("GET", target, "").send(apps.address(0)).await;
        // The first request may use a connection that the last fault has cut.
        match serde_json::from_slice(&found.body) {
            Ok(rows) => break rows,
            Err(_) => assert!(Instant::now() < deadline, "{target} can't be read: {}", found.status),
        }
    };
    let mut by_name: HashMap<String, Vec<i64>> = HashMap::new();
    for row in rows {
        let (Some(name), Some(id)) = (row[name].as_str(), row["id"].as_i64()) else { panic!("no row: {row}") };
        by_name.entry(name.to_owned()).or_default().push(id);
    }
    by_name
}

fn judge(findings: &mut Findings, operation: &Operation, rows: &[i64]) {
    if rows.len() > 1 {
        findings.add(Wrong::Double, operation, format_args!("{} rows: {rows:?}", rows.len()));
    }
    let successes: Vec<_> = operation.all_tries().filter(|seen| seen.is_success()).collect();
    for seen in &successes {
        let id = row_of(seen);
        match id {
            Some(id) if rows.contains(&id) => {}
            _ => findings.add(
                Wrong::Lost,
                operation,
                format_args!("it was answered with row {id:?}, and there are {rows:?}"),
            ),
        }
    }
    // In a control run the attempts are independent of each other.
    let is_first = |seen: &&&Seen| matches!(seen, Seen::Answer { is_replay: false, .. });
    if rows.len() <= 1 && (successes.iter().filter(is_first).count() > 1 || !all_same(&successes)) {
        findings.add(Wrong::Unlike, operation, "its successes differ, or more than one is no replay");
    }
    for replay in &operation.replays {
        match replay.last().map(|last| (end_of(last), last)) {
            Some((Some(End::Success), Seen::Answer { is_replay: true, .. })) => {}
            Some((Some(_), last)) => {
                findings.add(Wrong::Lost, operation, format_args!("asked once more, it gave {last}"));
            }
            Some((None, _)) | None => {
                findings.add(Wrong::Stuck, operation, format_args!("asked once more, {} tries", replay.len()));
            }
        }
    }
    match operation.end {
        End::Success => {}
        End::Stuck => findings.add(Wrong::Stuck, operation, format_args!("{} tries", operation.tries.len())),
        End::Refused => findings.add(Wrong::Unexpected, operation, "refused for good"),
        // The request at the end shows what explains it.
        End::Indeterminate => {}
    }
}

/// Returns whether an operation may be indeterminate. It may not if an order's row and its outcome commit together.
fn may_be_indeterminate(operation: &Operation, transactions: bool) -> bool {
    operation.kind == Kind::Payment || !transactions
}

/// Returns whether an answer to a client explains why the key is indeterminate.
fn is_explained(operation: &Operation, transactions: bool) -> bool {
    may_be_indeterminate(operation, transactions) && operation.tries.iter().any(Seen::leaves_open)
}

/// Judges a key that became indeterminate although every answer said that nothing ran. Only two events can cause this:
/// a shop was killed before it could free the claim, or a store was away for longer than the lease. The shops' logs
/// show which.
fn judge_unexplained(
    findings: &mut Findings,
    operation: &Operation,
    again: &Seen,
    freeing: &Freeing,
    transactions: bool,
) {
    let may_be = may_be_indeterminate(operation, transactions);
    if may_be && operation.tries.iter().any(Seen::left_open_before) {
        findings.excused_before += 1;
    }
    if may_be && freeing.never_freed.contains(&operation.key) {
        findings.killed_before_freed += 1;
    } else if may_be && freeing.begun.contains(&operation.key) && !again.is_indeterminate() {
        findings.freed_late += 1;
    } else {
        findings.add(Wrong::Unexplained, operation, format_args!("it is indeterminate; at the end, {again}"));
    }
}

fn all_same(successes: &[&Seen]) -> bool {
    let body = |seen: &Seen| match seen {
        Seen::Answer { body, status, .. } => Some((*status, body.clone())),
        Seen::Unknown | Seen::Left => None,
    };
    successes.windows(2).all(|pair| body(pair[0]) == body(pair[1]))
}

/// How many concurrent requests are made at the end.
const ASKING_AGAIN: usize = 16;

/// Requests every finished operation again, on either shop, until the answer is final.
async fn ask_all_again<'a>(history: &'a History, apps: &Apps) -> Vec<(&'a Operation, Seen)> {
    let ended = |operation: &&Operation| matches!(operation.end, End::Success | End::Indeterminate);
    let operations = Mutex::new(history.operations.iter().filter(ended).enumerate());
    let asking = (0..ASKING_AGAIN).map(|_| async {
        let (mut connections, mut answers) = (Connections::default(), Vec::new());
        loop {
            let Some((number, operation)) = operations.lock().next() else { return answers };
            let request = request(operation.kind, &operation.name, &operation.key);
            let deadline = Instant::now() + PATIENCE;
            let again = loop {
                let again = connections.ask(&request, apps, number % 2).await;
                if end_of(&again).is_some() || Instant::now() > deadline {
                    break again;
                }
            };
            answers.push((operation, again));
        }
    });
    join_all(asking).await.into_iter().flatten().collect()
}

/// Judges the final answers. No outcome may be lost: each success is a replay, and is the same on either shop. An
/// unknown operation is still unknown, or its holder woke up and completed it, or released it because it had not begun;
/// then it runs now. An effect that has happened never runs again, so no key has more than one row.
fn judge_again(findings: &mut Findings, operation: &Operation, again: &Seen, rows: &[i64]) {
    let is_replay = matches!(again, Seen::Answer { status: 200..300, is_replay: true, .. });
    match operation.end {
        End::Indeterminate if again.is_indeterminate() => return,
        End::Indeterminate if again.is_success() => {}
        End::Success if is_replay => {
            let first = operation.tries.iter().find(|seen| seen.is_success());
            if !first.is_some_and(|first| all_same(&[first, again])) {
                findings.add(Wrong::Unlike, operation, "asked once more at the end, it gave something else");
            }
        }
        _ => {
            findings.add(Wrong::Lost, operation, format_args!("asked once more at the end, it gave {again}"));
            return;
        }
    }
    let row = row_of(again);
    if !row.is_some_and(|row| rows.contains(&row)) {
        findings.add(Wrong::Lost, operation, format_args!("asked once more, it gave {row:?}, and there are {rows:?}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn success(id: i64, is_replay: bool) -> Seen {
        Seen::Answer { status: 201, is_replay, problem: None, body: format!(r#"{{"id": {id}}}"#).into_bytes() }
    }

    fn wrong(kind: Kind, end: End, tries: &[Seen], rows: &[i64]) -> Vec<Wrong> {
        let mut findings = Findings::default();
        let operation = Operation {
            kind,
            name: "op".to_owned(),
            key: "key".to_owned(),
            tries: tries.to_vec(),
            end,
            replays: Vec::new(),
        };
        judge(&mut findings, &operation, rows);
        if end == End::Indeterminate && !is_explained(&operation, true) {
            let held =
                Seen::Answer { status: 409, is_replay: false, problem: Some("indeterminate".into()), body: vec![] };
            judge_unexplained(&mut findings, &operation, &held, &Freeing::default(), true);
        }
        findings.wrong.into_iter().map(|(wrong, _)| wrong).collect()
    }

    #[test]
    fn a_sound_history_is_sound() {
        let tries = [Seen::Unknown, success(7, false), success(7, true)];
        assert_eq!(wrong(Kind::Order, End::Success, &tries, &[7]), []);
        let held = Seen::Answer { status: 409, is_replay: false, problem: Some("indeterminate".into()), body: vec![] };
        assert_eq!(wrong(Kind::Payment, End::Indeterminate, &[Seen::Unknown, held.clone()], &[7]), []);
        assert_eq!(wrong(Kind::Payment, End::Indeterminate, &[Seen::Left, held], &[]), []);
    }

    #[test]
    fn a_key_that_is_asked_for_once_more_gives_its_one_row() {
        let again = |end, tries: &[Seen], again: &Seen, rows: &[i64]| {
            let mut findings = Findings::default();
            let (name, key) = ("op".to_owned(), "key".to_owned());
            let operation =
                Operation { kind: Kind::Payment, name, key, tries: tries.to_vec(), end, replays: Vec::new() };
            judge_again(&mut findings, &operation, again, rows);
            findings.wrong.into_iter().map(|(wrong, _)| wrong).collect::<Vec<_>>()
        };
        let held = Seen::Answer { status: 409, is_replay: false, problem: Some("indeterminate".into()), body: vec![] };
        let open = [Seen::Unknown, held.clone()];
        assert_eq!(again(End::Indeterminate, &open, &held, &[7]), []);
        // Its holder woke up and completed it, or released it, so that it ran now.
        for is_replay in [true, false] {
            assert_eq!(again(End::Indeterminate, &open, &success(7, is_replay), &[7]), []);
            assert_eq!(again(End::Indeterminate, &open, &success(7, is_replay), &[]), [Wrong::Lost]);
        }
        let first = [success(7, false)];
        assert_eq!(again(End::Success, &first, &success(7, true), &[7]), []);
        assert_eq!(again(End::Success, &first, &success(7, true), &[]), [Wrong::Lost]);
        assert_eq!(again(End::Success, &first, &success(7, false), &[7]), [Wrong::Lost]);
        assert_eq!(again(End::Success, &first, &success(8, true), &[8]), [Wrong::Unlike]);
        assert_eq!(again(End::Success, &first, &held, &[7]), [Wrong::Lost]);
    }

    #[test]
    fn what_is_asked_for_once_more_while_faults_strike_is_the_first_answer() {
        let judged = |last: Seen| {
            let mut findings = Findings::default();
            let (name, key) = ("op".to_owned(), "key".to_owned());
            let (tries, replays) = (vec![success(7, false)], vec![vec![Seen::Unknown, last]]);
            judge(
                &mut findings,
                &Operation { kind: Kind::Payment, name, key, tries, end: End::Success, replays },
                &[7],
            );
            findings.wrong.into_iter().map(|(wrong, _)| wrong).collect::<Vec<_>>()
        };
        let held = Seen::Answer { status: 409, is_replay: false, problem: Some("indeterminate".into()), body: vec![] };
        assert_eq!(judged(success(7, true)), []);
        assert_eq!(judged(success(7, false)), [Wrong::Unlike, Wrong::Lost]);
        assert_eq!(judged(success(8, true)), [Wrong::Lost, Wrong::Unlike]);
        assert_eq!(judged(held), [Wrong::Lost]);
        assert_eq!(judged(Seen::Unknown), [Wrong::Stuck]);
    }

    #[test]
    fn every_wrong_is_found() {
        let first = success(7, false);
        assert_eq!(wrong(Kind::Order, End::Success, std::slice::from_ref(&first), &[7, 8]), [Wrong::Double]);
        assert_eq!(wrong(Kind::Order, End::Success, std::slice::from_ref(&first), &[]), [Wrong::Lost]);
        assert_eq!(wrong(Kind::Order, End::Success, std::slice::from_ref(&first), &[8]), [Wrong::Lost]);
        assert_eq!(wrong(Kind::Order, End::Success, &[first.clone(), first.clone()], &[7]), [Wrong::Unlike]);
        let other = Seen::Answer { status: 200, is_replay: true, problem: None, body: br#"{"id": 7}"#.to_vec() };
        assert_eq!(wrong(Kind::Order, End::Success, &[first, other], &[7]), [Wrong::Unlike]);
        assert_eq!(wrong(Kind::Order, End::Stuck, &[Seen::Unknown], &[]), [Wrong::Stuck]);
        assert_eq!(wrong(Kind::Order, End::Indeterminate, &[Seen::Unknown], &[]), [Wrong::Unexplained]);
        assert_eq!(wrong(Kind::Payment, End::Indeterminate, &[], &[]), [Wrong::Unexplained]);
        assert_eq!(wrong(Kind::Payment, End::Refused, &[], &[]), [Wrong::Unexpected]);
    }

    #[test]
    fn e19_a_claim_that_was_never_freed_explains_what_no_answer_does() {
        let held = Seen::Answer { status: 409, is_replay: false, problem: Some("indeterminate".into()), body: vec![] };
        let judged = |kind, again: &Seen, freeing: &Freeing| {
            let mut findings = Findings::default();
            let (name, key) = ("op".to_owned(), "key".to_owned());
            let operation =
                Operation { kind, name, key, tries: vec![held.clone()], end: End::Indeterminate, replays: Vec::new() };
            judge_unexplained(&mut findings, &operation, again, freeing, true);
            (findings.wrong.len(), findings.killed_before_freed, findings.freed_late)
        };
        let key = || std::collections::HashSet::from(["key".to_owned()]);
        let (freed, killed) =
            (Freeing { begun: key(), ..Freeing::default() }, Freeing { begun: key(), never_freed: key() });
        assert_eq!(judged(Kind::Payment, &held, &killed), (0, 1, 0));
        assert_eq!(judged(Kind::Payment, &success(7, false), &freed), (0, 0, 1));
        // The key was freed and is still indeterminate.
        assert_eq!(judged(Kind::Payment, &held, &freed), (1, 0, 0));
        assert_eq!(judged(Kind::Payment, &success(7, false), &Freeing::default()), (1, 0, 0));
        // An order is never indeterminate.
        assert_eq!(judged(Kind::Order, &held, &killed), (1, 0, 0));
    }

    /// The shop's answers must be true: if every answer said that nothing ran, the key may not be indeterminate.
    #[test]
    fn e19_a_key_of_which_all_answers_say_that_nothing_ran_is_not_indeterminate() {
        let problem = |status, name: &str| Seen::Answer {
            status,
            is_replay: false,
            problem: Some(name.into()),
            body: Vec::new(),
        };
        let held = problem(409, "indeterminate");
        for nothing_ran in ["store-unavailable", "overloaded", "shutting-down"] {
            let tries = [problem(503, nothing_ran), problem(409, "in-progress"), held.clone()];
            assert_eq!(wrong(Kind::Payment, End::Indeterminate, &tries, &[]), [Wrong::Unexplained], "{nothing_ran}");
        }
        for may_have_run in ["outcome-not-stored", "commit-unknown", "handler-panicked"] {
            let tries = [problem(500, may_have_run), held.clone()];
            assert_eq!(wrong(Kind::Payment, End::Indeterminate, &tries, &[]), [], "{may_have_run}");
        }
    }
}
