//! Do it once, answer every time.
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod backend;
mod fingerprint;
mod key;
mod policy;
pub mod record;

pub use fingerprint::{Fingerprint, FingerprintBuilder, FingerprintError, ToFingerprint};
pub use key::{Key, KeyError, KeyHasher, KeyPart, MAX_PART_LEN};
pub use policy::{CallPolicy, OnAbandoned, OnFailure, OnInProgress, OnStoreFailure};
pub use record::Attempt;
