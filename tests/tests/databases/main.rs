//! SQL databases on real servers: the conformance suite, and the tests of each database.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test, what fails fails the test")]

mod as_found;
mod common;
mod mysql;
mod names;
mod pools;
mod postgres;
mod roles;
mod sessions;
mod settings;
mod steps;
mod withdrawals;
