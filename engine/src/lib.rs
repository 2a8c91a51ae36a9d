//! *Do it once, answer every time.* Oncekey is an actor-based, embedded idempotency engine.
//!
//! A caller names an operation with a [`Key`]. The engine makes sure that it happens once, keeps its outcome, and answers
//! every retry with it: from the actix-web middleware, from job processors, and from events inside one process.
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
//!                      └────────────▶ backend actor ──▶ memory | SQLite | yours
//! ```
//!
//! Every arbiter, and each actix-web worker is one, has its own supervisor, key locks and backend actor: on the way of a
//! call nothing crosses a thread. Two workers of a process meet in the store, as two machines do, by the same atomic
//! steps.
//!
//! # Where to read on
//!
//! - [`guide::guarantees`]: what is promised under which failure, and what is not.
//! - [`guide::choosing_a_store`]: memory, SQLite, or your own.
//! - [`web`]: the middleware, and what it answers.
//! - [`guide::answers`]: what a handler's answer means for its key.
//! - [`guide::http`]: the order of middleware, CORS, uploads, tests, and upgrading.
//! - [`guide::steps`]: several effects, each once; a retry continues.
//! - [`guide::jobs_and_threads`]: without HTTP.
//! - [`guide::security`] and [`at_rest`]: who sees what, hashed keys, encrypted outcomes.
//! - [`guide::consumers`]: messages from a broker, each with its effect once.
//! - [`guide::operations`]: settings, metrics, stuck keys, shutdown.
//! - [`guide::proof`]: what is proven of it, by which means, and how to run it again.
//! - [`guide::writing_a_backend`] and [`conformance`]: a store of your own.
//! - [`Engine`], [`EngineBuilder`], [`CallPolicy`]: the handle and its settings.
//!
//! # Features
//!
//! - `web`: the actix-web middleware.
//! - `encryption`: encryption of stored outcomes.
//! - `consumer`: job processors and event consumers; with `redis-streams`, `rabbitmq` and `nats` their brokers.
//! - `apalis`: a layer for workers of apalis.
//! - `conformance`: the suite for authors of backends.
//! - `simulation`: chance that a test can seed, for whoever tests with an engine on a virtual clock.
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
pub use reconcile::{Abandoned, AbandonedStep, Verdict};
pub use record::{Attempt, CorruptOutcome, FencingToken};
pub use unreadable::UnreadableOutcome;

/// The examples of the README, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
mod readme {}
