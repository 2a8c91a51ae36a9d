//! The HTTP lines of the contract, over real sockets against the middleware on each embedded store.
//!
//! The acceptance script checks most of them from outside, against the shop. These tests cover the details, and what
//! needs a store that fails.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test, what fails fails the test")]

mod broken;
mod careful;
mod configured;
mod console;
mod edges;
mod ended;
mod everywhere;
mod handlers;
mod matrix;
mod routes;
mod running;
mod server;
mod uploads;
