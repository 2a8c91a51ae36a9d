//! `checkouts --store sqlite|postgres|mariadb|redis-cluster [--count N] [--control | --stale]`: see
//! [`tests::nemesis::checkouts`] and [`tests::nemesis::stale`]. The exit code is 0 if the run passed, 1 if it failed,
//! and 2 if the arguments were wrong.

#![allow(clippy::expect_used, reason = "a process of the tests: what fails fails the test")]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "its report is its output")]

use std::process::ExitCode;

use tests::nemesis::{checkouts, stale};
use tests::shared_store::StoreKind;

const USAGE: &str = "checkouts --store sqlite|postgres|mariadb|redis-cluster [--count N] [--control | --stale]";

struct Wanted {
    store: StoreKind,
    count: usize,
    control: bool,
    stale: bool,
}

fn wanted(mut arguments: impl Iterator<Item = String>) -> Option<Wanted> {
    let (mut store, mut count, mut control, mut stale) = (None, None, false, false);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--store" => store = Some(StoreKind::named(&arguments.next()?)?),
            "--count" => count = Some(arguments.next()?.parse().ok().filter(|count: &usize| *count > 0)?),
            "--control" if !stale => control = true,
            "--stale" if !control => stale = true,
            _ => return None,
        }
    }
    Some(Wanted { store: store?, count: count.unwrap_or(if stale { 1_000 } else { 2_000 }), control, stale })
}

fn main() -> ExitCode {
    let Some(Wanted { store, count, control, stale }) = wanted(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let passed = if stale {
        let keyholder = std::env::current_exe().expect("the path of this process").with_file_name("keyholder");
        let report = stale::run(stale::Plan { store, count, keyholder });
        print!("{report}");
        report.wrong.is_empty()
    } else {
        let report = checkouts::run(checkouts::Plan { store, count, control });
        print!("{report}");
        report.failures().is_empty()
    };
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
