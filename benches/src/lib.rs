//! The benches, and the code that they share to measure the engine's speed.
//!
//! The benches are:
//!
//! - `micro`, with criterion: what each part of a call costs by itself.
//! - `side_by_side`: the engine against the [yardstick], the call sequence of GoPotency, and a guarded HTTP route
//!   against the same route unguarded. It ends with one table, which is also written as JSON under `target/`.
//! - `servers`, `redis`: the engine on stores that are servers, against the six steps that it replaces and the bare
//!   commands that it is built on. They start the servers.
//! - `bridge`: plain threads against the async handle.
//! - `consumers`: what one damaged record costs a consumer.
//! - `steps`: an operation of three steps against nested `run`s with explicit keys.
//!
//! Every figure of the table that counts is a ratio within one run. Both sides take turns, round by round, and the
//! table shows the median of the rounds' ratios, so other load on the machine affects both. No figure fails a run,
//! because a busy machine is not a defect of the engine.
//!
//! `ONCEKEY_BENCH_QUICK=1` runs everything in a few seconds. It shows the shape of the table; its figures mean nothing.

pub mod compare;
pub mod drive;
pub mod flows;
pub mod http;
pub mod memory_use;
pub mod report;
pub mod settings;
pub mod yardstick;

/// The request of every operation. It is about as long as a small JSON request.
pub const BODY: &[u8; 100] =
    b"{\"item\":\"book\",\"quantity\":1,\"customer\":\"ada.lovelace@example.org\",\"note\":\"leave it at the red door\"}";

/// The result of every operation: an outcome of the same length on both sides.
pub const OUTCOME: &str =
    "{'id':'ord_01j9zv6kq5','item':'book','quantity':1,'created_at':'2026-11-24T09:00:00Z','status':'paid'}";

/// The scope of the benches' keys.
pub const SCOPE: &str = "bench";
