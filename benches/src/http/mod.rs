//! A guarded route over loopback HTTP, and the load for it.
//!
//! The server is a separate process: [`server::Server::start`] starts this executable again. The client is one thread
//! with raw connections that does as little as possible, because both share the machine's cores.

pub mod client;
pub mod server;

/// The handler's answer. Its last bytes end a response, which is how the client detects the end.
pub const ANSWER: &str =
    r#"{"id":"ord_01j9zv6kq5","item":"book","quantity":1,"created_at":"2026-11-24T09:00:00Z","status":"paid"}"#;

/// The kind of request to measure. All kinds have the same bytes except for the name of one header, or the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Without a key, on a route where the key is optional.
    Unguarded,
    /// With a fresh key.
    FirstUse,
    /// With a completed key.
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
