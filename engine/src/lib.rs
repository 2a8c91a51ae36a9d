//! Do it once, answer every time.
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod backend;
mod bridge;
mod call;
#[cfg(feature = "conformance")]
pub mod conformance;
mod detach;
mod engine;
mod error;
mod event;
mod fingerprint;
mod key;
mod key_lock;
mod node;
mod policy;
mod reconcile;
pub mod record;
mod resting;
mod shared;
mod supervisor;
#[cfg(feature = "web")]
pub mod web;

pub use engine::{Claim, Engine, EngineBuilder, Outcome, Shutdown, StartError};
pub use error::{Error, RunError};
pub use event::{Event, EventKind, Observer};
pub use fingerprint::{Fingerprint, FingerprintBuilder, FingerprintError, ToFingerprint};
pub use key::{Key, KeyError, KeyHasher, KeyPart, MAX_PART_LEN};
pub use policy::{CallPolicy, OnAbandoned, OnFailure, OnInProgress, OnStoreFailure};
pub use reconcile::{Abandoned, Verdict};
pub use record::{Attempt, CorruptOutcome};
