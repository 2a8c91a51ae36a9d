//! The actix-web middleware: a guarded route answers a retry with its first answer.
//!
//! [`Idempotency`] wraps an `App`, a scope or a resource. For each guarded request it makes a [`Key`](crate::Key) from
//! the scope and the `Idempotency-Key` header, and a [`Fingerprint`](crate::Fingerprint) of the request; it asks the
//! engine, and then runs the handler, replays its stored response, or refuses. It talks to the engine alone, never to a
//! store.
//!
//! The response goes out **after** it is stored. A client that leaves does not stop a handler that began: its response is
//! stored for the retry.
//!
//! | request | answer |
//! |---|---|
//! | first use of a key | the handler's response |
//! | a retry | the same status, body and kept headers, plus `Idempotent-Replayed: true` |
//! | another at work on the key | 409 and `Retry-After`, or with waiting on, the replay |
//! | same key, another method, path, query or body | 422 |
//! | no key, a bad key, two keys | 400 (no key: only where one is required) |
//! | a body over the limit | 413 |
//! | the handler answered 5xx, or panicked | released: a retry runs at once |
//! | the response was too large to keep, or a stream | 409: it is not run again |
//! | nobody knows whether it happened | 409 |
//! | the store is away | 503 and `Retry-After` |
//!
//! Each refusal is `application/problem+json` (RFC 9457); see [`Refusal`].
//!
//! ```no_run
//! use actix_web::{App, HttpResponse, HttpServer, web};
//! use oncekey::{Engine, web::Idempotency};
//! use oncekey_backends::SqliteBackend;
//!
//! # #[actix_web::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let engine = Engine::builder(SqliteBackend::open("keys.db")?).start()?;
//! HttpServer::new(move || {
//!     App::new()
//!         .wrap(Idempotency::new(engine.clone()).required().scope_by_header("X-Api-Key", "public"))
//!         .route("/orders", web::post().to(|| async { HttpResponse::Created().body("ordered") }))
//! })
//! .bind(("127.0.0.1", 8080))?
//! .run()
//! .await?;
//! # Ok(()) }
//! ```
//!
//! # Where to wrap
//! Inside `Compress`, so that what is stored is not compressed for one client; inside authentication, so that a refused
//! caller reaches no record; outside whatever answers differently each time. Where two guards are nested, the outer one
//! guards.

mod extract;
mod fate;
mod guard;
mod key;
mod middleware;
mod recorded;
mod refusal;
mod rules;

pub use extract::{Transaction, TransactionError};
pub use fate::{ResponseFate, WithFate};
pub use key::{BadKey, KeyStrategy};
pub use middleware::{Idempotency, IdempotencyService};
pub use recorded::{MalformedResponse, RecordedResponse};
pub use refusal::Refusal;
pub use rules::{FingerprintStrategy, RouteRules};

/// For the fuzz targets.
#[cfg(fuzzing)]
#[doc(hidden)]
pub fn key_of_header(value: &[u8]) -> Result<String, BadKey> {
    key::parse(value)
}

/// For the fuzz targets.
#[cfg(fuzzing)]
#[doc(hidden)]
pub fn replay_of(response: RecordedResponse) -> actix_web::HttpResponse {
    response.into_replay()
}
