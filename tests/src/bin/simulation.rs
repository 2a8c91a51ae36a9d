//! Runs seeds: `simulation [FIRST [COUNT]]`. Without a count, `ONCEKEY_SIMULATION_SEEDS` says how many.

#![allow(clippy::print_stdout, reason = "its output is its result")]

use std::collections::BTreeMap;
use std::process::ExitCode;

use tests::simulation::run;

fn main() -> ExitCode {
    let mut numbers = std::env::args().skip(1).map_while(|argument| argument.parse::<u64>().ok());
    let first = numbers.next().unwrap_or(0);
    let seeds = || std::env::var("ONCEKEY_SIMULATION_SEEDS").ok()?.parse().ok();
    let count = numbers.next().or_else(seeds).unwrap_or(1);
    let started = std::time::Instant::now();
    let (mut broken, mut faults, mut sums) = (0, BTreeMap::<_, u64>::new(), [0; 4]);
    for seed in first..first + count {
        let report = run(seed, None);
        if count == 1 || !report.violations.is_empty() {
            println!("{report}");
        }
        broken += u64::from(!report.violations.is_empty());
        report.faults.iter().for_each(|(kind, times)| *faults.entry(*kind).or_default() += times);
        for (sum, of) in sums.iter_mut().zip([report.events, report.calls, report.answered, report.effects]) {
            *sum += of;
        }
    }
    let [events, calls, answered, effects] = sums;
    println!(
        "{count} seeds in {:?}: {events} events, {calls} calls, {answered} answered, {effects} effects",
        started.elapsed()
    );
    println!("faults: {faults:?}");
    println!("seeds with a broken promise: {broken}");
    if broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
