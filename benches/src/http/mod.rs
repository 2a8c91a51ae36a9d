//! A guarded route over loopback HTTP, and the load for it.
//!
//! The server is a process of its own: this one's executable, started again by [`server::Server::start`]. The client is
//! one thread with raw connections that does as little as it can, since both share the machine's cores.

pub mod client;
pub mod server;

/// What the handler answers: its last bytes end a response, by which the client knows it.
pub const ANSWER: &str =
    r#"{"id":"ord_01j9zv6kq5","item":"book","quantity":1,"created_at":"2026-11-24T09:00:00Z","status":"paid"}"#;

/// What is measured. Every kind of request has the same bytes but for the name of one header, or the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Without a key, on a route where it is optional.
    Unguarded,
    /// A fresh key.
    FirstUse,
    /// A key that is completed.
    Replay,
    /// With a key, on a route without the middleware.
    Bare,
}

impl Kind {
    fn path(self) -> &'static str {
        if self == Self::Bare { "/bare" } else { "/echo" }
    }

    fn header(self) -> &'static str {
        if self == Self::Unguarded { "Idempotency-Kez" } else { "Idempotency-Key" }
    }
}
