//! *Do it once, answer every time.* Oncekey is an actor-based, embedded idempotency engine.
//!
//! A caller names an operation with a [`Key`]. The engine runs the operation, keeps its outcome, and returns that
//! outcome to every retry. You use it from an actix-web middleware, from job processors, and from event consumers
//! inside one process.
//!
//! # A guarded route
//!
//! ```no_run
//! use actix_web::{App, HttpResponse, HttpServer, web};
//! use oncekey::{Engine, web::{Idempotency, Scope}};
//! use oncekey_backends::SqliteBackend;
//!
//! async fn create_order() -> HttpResponse {
//!     HttpResponse::Created().body("ordered")
//! }
//!
//! # #[actix_web::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let engine = Engine::builder(SqliteBackend::open("keys.db")?).start()?;
//! let guard = Idempotency::new(engine, Scope::header("X-Api-Key")).required();
//! HttpServer::new(move || {
//!     App::new()
//!         .wrap(guard.clone())
//!         .route("/orders", web::post().to(create_order))
//! })
//! .bind(("127.0.0.1", 8080))?
//! .run()
//! .await?;
//! # Ok(()) }
//! ```
//!
//! # A job
//!
//! ```
//! use oncekey::{Engine, Key, Outcome};
//! use oncekey_backends::MemoryBackend;
//!
//! # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let engine = Engine::builder(MemoryBackend::new()).start()?;
//! let order = 17;
//! let sent = engine
//!     .run(Key::new("mail", order)?, &order, move |claim| async move {
//!         Ok::<_, std::io::Error>(format!("mail for order {order}, attempt {}", claim.attempt()))
//!     })
//!     .await?;
//! match sent {
//!     Outcome::Ran(receipt) | Outcome::Replayed(receipt) => println!("acknowledge: {receipt}"),
//! }
//! # Ok(()) }
//! ```
//!
//! # How it works
//!
//! ```text
//! caller ──Begin──▶ Supervisor ──owns──▶ KeyLock (one actor per key in flight)
//!                      │                     │ heartbeat, waiters, fencing token
//!                      │                     ▼
//!                      └────────────▶ backend actor ──▶ memory | SQL | Redis | yours
//! ```
//!
//! Every arbiter, including each actix-web worker, is a node with its own supervisor, key locks and backend actor.
//! Nothing on the path of a call crosses threads. Two workers of one process meet in the store, through the same atomic
//! steps as two machines.
//!
//! # Guides and modules
//!
//! - [`guide::tutorial`]: build a payment service that charges each order once.
//! - [`guide::guarantees`]: what the engine promises under each failure, and what it does not promise.
//! - [`guide::choosing_a_store`]: the stores compared, and what each keeps in each failure.
//! - [`web`]: the middleware and its responses.
//! - [`guide::answers`]: what a handler's response means for its key, and what a retry gets.
//! - [`guide::http`]: middleware order, CORS, uploads, tests and upgrading.
//! - [`guide::steps`]: operations with several external effects; a retry continues where the last attempt ended.
//! - [`guide::jobs_and_threads`]: the engine without HTTP.
//! - [`guide::consumers`]: processing each broker message once, with [`guide::redis_streams`], [`guide::rabbitmq`] and
//!   [`guide::nats`] for each broker.
//! - [`guide::writing_a_source`]: messages from another broker.
//! - [`guide::security`] and [`at_rest`]: who can see and do what, hashed keys, encrypted outcomes.
//! - [`guide::operations`]: settings, metrics and shutdown.
//! - [`guide::stuck_keys`]: finding and settling stuck keys, on the console or from the command line.
//! - [`guide::proof`]: what is tested, by which means, and how to repeat it.
//! - [`guide::writing_a_backend`] and [`conformance`]: your own store.
//! - [`Engine`], [`EngineBuilder`], [`CallPolicy`]: the handle and its settings.
//!
//! # Features
//!
//! - `web`: the actix-web middleware, and the operator's console.
//! - `encryption`: encryption of stored outcomes.
//! - `consumer`: job processors and event consumers. `redis-streams`, `rabbitmq` and `nats` add the brokers.
//! - `apalis`: a layer for apalis workers.
//! - `conformance`: the test suite for backend authors.
//! - `simulation`: seeded randomness, for tests that run an engine on a virtual clock.
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(not(any(test, oncekey_planted_bugs)))]
#[macro_use]
mod planted;
#[cfg(any(test, oncekey_planted_bugs))]
#[macro_use]
pub mod planted;

#[cfg(feature = "web")]
mod activity;
mod answer;
pub mod at_rest;
pub mod backend;
mod bridge;
mod call;
mod chance;
mod claims;
#[cfg(feature = "conformance")]
pub mod conformance;
#[cfg(feature = "consumer")]
pub mod consumer;
mod derived_key;
mod detach;
mod engine;
mod error;
mod event;
mod fingerprint;
pub mod guide;
mod idle_locks;
mod key;
mod key_lock;
mod neighbours;
mod node;
#[cfg(any(feature = "consumer", feature = "web"))]
mod panics;
mod pending_settlements;
mod permit;
mod policy;
mod reconcile;
pub mod record;
mod scopes;
mod shared;
#[cfg(feature = "simulation")]
pub mod simulation;
mod supervisor;
mod unreadable;
#[cfg(feature = "web")]
pub mod web;

pub use derived_key::DerivedKey;
pub use engine::{Claim, Engine, EngineBuilder, Outcome, Shutdown, StartError, Step, StepError, StepOptions};
pub use error::{Error, RunError};
pub use event::{Event, EventKind, Observer};
pub use fingerprint::{Fingerprint, FingerprintBuilder, FingerprintError, ToFingerprint};
pub use key::{Key, KeyError, KeyHasher, KeyPart, MAX_PART_LEN};
pub use policy::{CallPolicy, OnAbandoned, OnFailure, OnInProgress, OnStoreFailure, StepPolicy};
pub use reconcile::{AbandonedClaim, AbandonedStep, ReconcileOutcome};
pub use record::{Attempt, CorruptOutcome, FencingToken};
pub use unreadable::UnreadableOutcome;

/// Compiles the examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
mod readme {}
