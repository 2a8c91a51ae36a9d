//! Operations of several steps on every store that processes share, killed between and inside steps, and paused past
//! their lease. `tests/checkouts` runs the same with any number of checkouts.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test, what fails fails the test")]
#![expect(clippy::print_stdout, reason = "the test prints its report")]

use std::sync::{Mutex, PoisonError};

use tests::nemesis::{checkouts, stale};
use tests::shared_store::StoreKind;

/// How many checkouts per shop are enough, and how many runs may be needed until the kills struck where they must,
/// which is chance.
const COUNT: usize = 60;
const RUNS: usize = 5;
/// The runs take turns: a run that is slow beside another one lets leases lapse without a kill.
static TURN: Mutex<()> = Mutex::new(());

fn under_kill_9(store: StoreKind, control: bool) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..RUNS {
        let report = checkouts::run(checkouts::Plan { store, count: COUNT, control });
        println!("{report}");
        assert_eq!(report.wrong, [""; 0], "{report}");
        if report.failures().is_empty() {
            return;
        }
    }
    panic!("in {RUNS} runs the kills did not strike where they have to");
}

#[test]
fn e26_kill_9_between_and_inside_of_steps_on_sqlite() {
    under_kill_9(StoreKind::Sqlite, false);
}

#[test]
fn e26_kill_9_between_and_inside_of_steps_on_postgres() {
    under_kill_9(StoreKind::Postgres, false);
}

#[test]
fn e26_kill_9_between_and_inside_of_steps_on_mariadb() {
    under_kill_9(StoreKind::MariaDb, false);
}

#[test]
fn e26_kill_9_between_and_inside_of_steps_on_redis_cluster() {
    under_kill_9(StoreKind::RedisCluster, false);
}

#[test]
fn e26_control_without_steps_the_kills_double_on_sqlite() {
    under_kill_9(StoreKind::Sqlite, true);
}

#[test]
fn e26_control_without_steps_the_kills_double_on_redis_cluster() {
    under_kill_9(StoreKind::RedisCluster, true);
}

/// A holder that was paused past its lease is refused before its next effect, whoever continues.
fn paused_past_its_lease(store: StoreKind) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let report = stale::run(stale::Plan { store, count: 50, keyholder: env!("CARGO_BIN_EXE_keyholder").into() });
    println!("{report}");
    assert!(report.wrong.is_empty(), "{report}");
}

#[test]
fn e26_a_holder_paused_past_its_lease_begins_no_step_on_sqlite() {
    paused_past_its_lease(StoreKind::Sqlite);
}

#[test]
fn e26_a_holder_paused_past_its_lease_begins_no_step_on_postgres() {
    paused_past_its_lease(StoreKind::Postgres);
}

#[test]
fn e26_a_holder_paused_past_its_lease_begins_no_step_on_mariadb() {
    paused_past_its_lease(StoreKind::MariaDb);
}

#[test]
fn e26_a_holder_paused_past_its_lease_begins_no_step_on_redis_cluster() {
    paused_past_its_lease(StoreKind::RedisCluster);
}
