//! Explores the model to its full bounds, or to the given ones: `model [CALLS FAULTS]`.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "its output is its result")]

use std::process::ExitCode;

use tests::model::{Bounds, Mode, explore};

fn main() -> ExitCode {
    let mut numbers = std::env::args().skip(1).map_while(|argument| argument.parse().ok());
    let (calls, faults) = (numbers.next().unwrap_or(3), numbers.next().unwrap_or(1));
    let threads = std::thread::available_parallelism().map_or(1, Into::into);
    let mut sound = true;
    for keys in [&[Mode::Hold, Mode::Transaction], &[Mode::Hold, Mode::Rerun]] {
        let explored = explore(Bounds { processes: 3, keys, calls, faults }, None, threads, false);
        println!("{explored}");
        sound &= explored.violations.is_empty();
    }
    if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
