//! The harness of the suites: processes and servers that can be killed and paused, and a plain HTTP client.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a harness, what fails fails the test")]

pub mod broker;
pub mod claims;
pub mod command_line;
pub mod http;
pub mod malformed;
pub mod model;
pub mod nemesis;
pub mod process;
pub mod proxy;
pub mod rows;
pub mod server;
pub mod shared_store;
pub mod shop;
#[cfg(feature = "simulation")]
pub mod simulation;
