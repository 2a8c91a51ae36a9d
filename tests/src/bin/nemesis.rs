//! `tests/nemesis --store sqlite|postgres|mariadb|redis [--minutes N] [--seed S] [--clients N] [--control]`: see
//! [`tests::nemesis`]. The exit code is 0 if the run passed, 1 if it failed, and 2 if the arguments were wrong.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "its report is its output")]

use std::process::ExitCode;
use std::time::Duration;

use tests::nemesis::stores::Kind;
use tests::nemesis::{Plan, run};

const USAGE: &str = "nemesis --store sqlite|postgres|mariadb|redis [--minutes N] [--seed S] [--clients N] [--control]";

/// More clients do not get more done: each one waits longer than the shops' store deadline, and its store's work is
/// wasted.
const CLIENTS: usize = 32;

fn plan(mut arguments: impl Iterator<Item = String>) -> Option<Plan> {
    let (mut store, mut minutes, mut seed, mut clients, mut control) = (None, 10.0, 1, CLIENTS, false);
    while let Some(argument) = arguments.next() {
        let (flag, value) = match argument.split_once('=') {
            Some((flag, value)) => (flag.to_owned(), Some(value.to_owned())),
            None if argument == "--control" => (argument, None),
            None => (argument, arguments.next()),
        };
        match (flag.as_str(), value) {
            ("--store", Some(name)) => store = Some(Kind::named(&name)?),
            ("--minutes", Some(value)) => minutes = value.parse().ok().filter(|minutes: &f64| *minutes > 0.0)?,
            ("--seed", Some(value)) => seed = value.parse().ok()?,
            ("--clients", Some(value)) => clients = value.parse().ok().filter(|clients| *clients > 0)?,
            ("--control", None) => control = true,
            _ => return None,
        }
    }
    Some(Plan { store: store?, duration: Duration::try_from_secs_f64(60.0 * minutes).ok()?, seed, control, clients })
}

fn main() -> ExitCode {
    let Some(plan) = plan(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let report = run(plan);
    print!("{report}");
    if report.failures().is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
