//! Job processors and event consumers, on memory and SQLite: the J lines of the contract without a broker.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test, what fails fails the test")]

mod apalis;
mod batches;
mod drain;
mod ending;
mod extremes;
mod faults;
mod hand_over;
mod panics;
mod pause;
mod processor;
mod refusals;
mod retries;
mod sources;
mod survival;
mod tap;
mod tasks;
mod threads;
