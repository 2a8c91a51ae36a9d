//! The model in its short form, and the controls that show that it notices errors.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test, what fails fails the test")]
#![expect(clippy::print_stdout, reason = "what was explored is told")]

use tests::model::{Bounds, Mode, Mutation, Transition, explore};

const BOTH: &[Mode] = &[Mode::Hold, Mode::Transaction];

const EACH: [&[Mode]; 3] = [&[Mode::Hold], &[Mode::Rerun], &[Mode::Transaction]];

fn short(keys: &'static [Mode], calls: u8, faults: u8) -> Bounds {
    Bounds { processes: 3, keys, calls, faults }
}

/// Explores every order of the results of two calls and one fault, on one key of each kind and on two keys, and of two
/// faults on a key with transactions. The program `model` goes further.
#[test]
fn e06_the_protocol_holds_in_every_state_of_the_model() {
    let mut seen = vec![0; Transition::ALL.len()];
    let of_each = EACH.map(|keys| short(keys, 2, if keys == [Mode::Transaction] { 2 } else { 1 }));
    for bounds in of_each.into_iter().chain([short(BOTH, 2, 1)]) {
        let explored = explore(bounds, None, 2, false);
        assert!(explored.violations.is_empty(), "{explored}");
        println!("{}: {} states", explored.bounds, explored.unique);
        explored.seen.iter().for_each(|(transition, times)| seen[*transition as usize] += times);
    }
    let unseen: Vec<_> = Transition::ALL.into_iter().filter(|transition| seen[*transition as usize] == 0).collect();
    assert!(unseen.is_empty(), "the model never takes {unseen:?}");
}

/// The model must notice each planted bug, because otherwise its verdict on the product proves nothing.
#[test]
fn e06_the_model_notices_every_planted_error() {
    for mutation in Mutation::ALL {
        // This uses the fewest faults that suffice, because each fault multiplies the states. Two withdrawals and a
        // repeated one are three faults.
        let fewest = if mutation == Mutation::BarrierNameComesBack { 3 } else { 0 };
        let found = (fewest..=3)
            .flat_map(|faults| EACH.map(|keys| short(keys, 2, faults)))
            .find_map(|bounds| explore(bounds, Some(mutation), 2, false).violations.into_iter().next());
        let (name, way) = found.unwrap_or_else(|| panic!("{mutation:?} went unnoticed"));
        println!("{mutation:?}: {name}, after {} steps", way.len());
    }
}

macro_rules! names {
    (($name:ident) $($check:ident)*) => { const $name: &[&str] = &[$(stringify!($check)),*]; };
}
oncekey::__for_each_conformance_check!(names, (KNOWN));

/// The conformance suite checks on every backend what the model does.
#[test]
fn e06_every_transition_of_the_model_has_its_conformance_checks() {
    for transition in Transition::ALL {
        assert!(!transition.checks().is_empty(), "{transition:?} is checked on no backend");
        for check in transition.checks() {
            assert!(KNOWN.contains(check), "{transition:?} names {check}, which the suite does not have");
        }
    }
    // Conversely, each check of the record's own life has its transition in the model.
    let named: Vec<_> = Transition::ALL.iter().flat_map(|transition| transition.checks()).collect();
    let of_the_life = ["e02_", "e04_", "e05_a", "e05_resolve", "e06_", "e07_", "e18_"];
    for check in KNOWN.iter().filter(|check| of_the_life.iter().any(|line| check.starts_with(line))) {
        assert!(named.contains(&check), "no transition of the model stands for {check}");
    }
}
