//! What the engine's speed is measured by, and the pieces that measure it.
//!
//! The benches:
//!
//! - `micro`, by criterion: what each part of a call costs by itself.
//! - `side_by_side`: the engine against the [yardstick], the call sequence of GoPotency, and a guarded HTTP route against
//!   the same route unguarded. It ends with one table, which is also written as JSON under `target/`.
//!
//! - `servers`, `redis`: the engine on stores that are servers, against the six steps that it replaces and the bare commands
//!   that it stands on. They start the servers.
//! - `bridge`: plain threads beside the async handle.
//!
//! Every figure of the table that counts is a ratio within one run: both sides take turns, round by round, and the median
//! of the rounds' ratios is shown, so that another load on the machine meets both. No figure fails a run: a machine that
//! is busy is no defect of the engine.
//!
//! `ONCEKEY_BENCH_QUICK=1` runs everything in some seconds, for a look at the shape of the table and not at its figures.

pub mod compare;
pub mod drive;
pub mod flows;
pub mod http;
pub mod memory_use;
pub mod report;
pub mod settings;
pub mod yardstick;

/// What is asked in every operation: about as long as a small JSON request.
pub const BODY: &[u8; 100] =
    b"{\"item\":\"book\",\"quantity\":1,\"customer\":\"ada.lovelace@example.org\",\"note\":\"leave it at the red door\"}";

/// What every operation gives: an outcome of the same length on both sides.
pub const OUTCOME: &str =
    "{'id':'ord_01j9zv6kq5','item':'book','quantity':1,'created_at':'2026-11-24T09:00:00Z','status':'paid'}";

/// The scope of the keys of a bench.
pub const SCOPE: &str = "bench";
