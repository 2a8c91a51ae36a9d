//! SQL databases: the conformance suite, and what is their own, on real servers.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test, what fails fails the test")]

mod common;
mod mysql;
mod postgres;
mod sessions;
mod steps;
mod withdrawals;
