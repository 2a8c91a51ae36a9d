//! The actix-web middleware, which answers a retry of a guarded request with the first response.
//!
//! [`Idempotency`] wraps an `App`, a scope or a resource. For each guarded request it builds a [`Key`](crate::Key) from
//! the caller's [`Scope`] and the `Idempotency-Key` header, and a [`Fingerprint`](crate::Fingerprint) of the request.
//! It then asks the engine, and runs the handler, replays the stored response, or answers with a problem. It
//! communicates only with the engine, never with a store.
//!
//! The guard sends the response **after** it has stored it. If the client disconnects, a handler that has begun still
//! finishes, and its response is stored for the retry.
//!
//! | request | answer |
//! |---|---|
//! | first use of a key | the handler's response |
//! | a retry | the same status, body and kept headers, plus `Idempotent-Replayed: true` |
//! | the key is in progress | 409 and `Retry-After`; if waiting is on, the replay |
//! | same key, another method, path, query, media type or body | 422 |
//! | no key, a bad key, two keys | 400 (no key: only if the route requires one) |
//! | no caller, or two callers, in the scope's header | 400 |
//! | a body over the limit; a body that does not arrive in time | 413; 408 |
//! | the handler answered "not now" (503, 408, 425, 429) | released: a retry runs at once |
//! | the handler panicked, or answered 500, 502 or 504 | as after a crash: [`OnAbandoned`](crate::OnAbandoned) decides |
//! | no handler saw the request | the key is new |
//! | the response was too large to keep, or a stream | 409: the handler does not run again |
//! | the outcome is indeterminate | 409 |
//! | the store is unavailable | 503 and `Retry-After` |
//!
//! [What your handler's answer means](crate::guide::answers) has the details. The guard's own errors are
//! `application/problem+json` (RFC 9457); see [`IdempotencyError`]. Every answer that leaves the guard is an `Ok`
//! response, so outer middleware sees it.
//!
//! ```no_run
//! use actix_web::{App, HttpResponse, HttpServer, web};
//! use oncekey::{Engine, web::{Idempotency, Scope}};
//! use oncekey_backends::SqliteBackend;
//!
//! # #[actix_web::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let engine = Engine::builder(SqliteBackend::open("keys.db")?).start()?;
//! let guard = Idempotency::new(engine, Scope::header("X-Api-Key")).required();
//! HttpServer::new(move || {
//!     App::new()
//!         .wrap(guard.clone())
//!         .route("/orders", web::post().to(|| async { HttpResponse::Created().body("ordered") }))
//! })
//! .bind(("127.0.0.1", 8080))?
//! .run()
//! .await?;
//! # Ok(()) }
//! ```
//!
//! # The operator's console
//! [`console`] is a scope with pages on which your operators find and settle stuck keys. See the guide to
//! [stuck keys](crate::guide::stuck_keys).
//!
//! # Where to wrap
//! The guide [middleware around the guard](crate::guide::http) shows the order by example. If one guard is inside
//! another, only the outer one acts.

mod body;
mod canonical;
mod console;
mod disposition;
mod error;
mod extract;
mod fingerprint;
mod guard;
mod key;
mod middleware;
mod pattern;
mod recorded;
mod router_map;
mod rules;
mod scope;
mod settings;

pub(crate) use console::ConsoleHub;
pub use console::{ConsoleAccess, console};
pub use disposition::{ResponseDisposition, WithDisposition};
pub use error::IdempotencyError;
pub use extract::{Transaction, TransactionError};
pub use fingerprint::{CanonicalJson, Custom, FingerprintStrategy, Headers};
pub use key::{BadKey, KeyStrategy};
pub use middleware::{Idempotency, IdempotencyService};
pub use recorded::{MalformedResponse, RecordedResponse};
pub use rules::RouteRules;
pub use scope::Scope;
pub use settings::SettingProblem;

/// Exposes the key parser to the fuzz targets.
#[cfg(fuzzing)]
#[doc(hidden)]
pub fn key_of_header(value: &[u8]) -> Result<String, BadKey> {
    key::parse(value)
}

/// Exposes the replay to the fuzz targets.
#[cfg(fuzzing)]
#[doc(hidden)]
pub fn replay_of(response: RecordedResponse) -> actix_web::HttpResponse {
    response.into_replay()
}
