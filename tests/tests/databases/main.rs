//! SQL databases: the conformance suite, and what is their own, on real servers.

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
