//! A short run of the nemesis. `tests/nemesis` runs it for any length of time.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test, what fails fails the test")]
#![expect(clippy::print_stdout, reason = "the report is told")]

use std::time::Duration;

use tests::nemesis::stores::Kind;
use tests::nemesis::{Plan, run};

fn short(store: Kind, seconds: u64, control: bool) {
    let report = run(Plan { store, duration: Duration::from_secs(seconds), seed: 1, control, clients: 32 });
    println!("{report}");
    assert_eq!(report.failures(), [""; 0], "{report}");
}

#[test]
fn e05_nemesis_on_sqlite() {
    short(Kind::Sqlite, 20, false);
}

#[test]
fn e05_nemesis_on_postgres() {
    short(Kind::Postgres, 20, false);
}

#[test]
fn e05_nemesis_on_mariadb() {
    short(Kind::MariaDb, 20, false);
}

#[test]
fn e05_control_without_the_guard_the_nemesis_doubles_on_sqlite() {
    short(Kind::Sqlite, 10, true);
}

#[test]
fn e05_control_without_the_guard_the_nemesis_doubles_on_postgres() {
    short(Kind::Postgres, 10, true);
}

#[test]
fn e05_control_without_the_guard_the_nemesis_doubles_on_mariadb() {
    short(Kind::MariaDb, 10, true);
}

#[test]
fn e05_nemesis_on_redis() {
    short(Kind::Redis, 20, false);
}

#[test]
fn e05_control_without_the_guard_the_nemesis_doubles_on_redis() {
    short(Kind::Redis, 10, true);
}
