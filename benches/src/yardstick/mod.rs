//! The yardstick: the call sequence of GoPotency, the library that Oncekey grew out of, in Rust.
//!
//! A first use is a lookup, a lock, storing a pending record, the operation, another lookup, storing the completed
//! record, and the unlock. A replay is a lookup and a comparison of hashes. The request's hash is the SHA-256 of its
//! body in hexadecimal, and a lookup returns a copy of the record. The sequence has no lease, no owner and no waiting.
//! It is the minimum cost of a design that lets two callers run one key.

pub mod memory;
pub mod sqlite;
mod tables;

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// How long GoPotency keeps a record by default.
pub const RETENTION: Duration = Duration::from_secs(24 * 60 * 60);
/// How long GoPotency's lock holds by default.
pub const LOCK_TIMEOUT: Duration = Duration::from_secs(5 * 60);

/// Where a record is in its life cycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// A caller is working on it.
    Pending,
    /// The response is known.
    Completed,
}

/// A response as GoPotency stores it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    /// The status code.
    pub status_code: u16,
    /// The headers. The benches store none on either side.
    pub headers: HashMap<String, Vec<String>>,
    /// The body.
    pub body: String,
}

/// A record as GoPotency stores it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The caller's key.
    pub key: String,
    /// SHA-256 of the body, in hexadecimal.
    pub request_hash: String,
    /// Where the record is in its life cycle.
    pub status: Status,
    /// The response for a retry.
    pub response: Option<Response>,
    /// When the record was created.
    pub created_at: SystemTime,
    /// When the record expires.
    pub expires_at: SystemTime,
}

impl Record {
    /// Returns the record of a request whose operation begins.
    pub fn pending(key: &str, request_hash: String) -> Self {
        let now = SystemTime::now();
        Self {
            key: key.to_owned(),
            request_hash,
            status: Status::Pending,
            response: None,
            created_at: now,
            expires_at: now + RETENTION,
        }
    }

    /// Stores the response in the record.
    pub fn complete(&mut self, response: Response) {
        self.status = Status::Completed;
        self.response = Some(response);
        self.expires_at = SystemTime::now() + RETENTION;
    }
}

/// Returns the result of the benches' operation as a response.
pub fn response() -> Response {
    Response { status_code: 200, headers: HashMap::new(), body: crate::OUTCOME.to_owned() }
}

/// Returns the SHA-256 of the body in hexadecimal. It uses a table, because formatting each byte would slow the
/// yardstick down in our favour.
pub fn hash(body: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut hex = String::with_capacity(64);
    for byte in Sha256::digest(body) {
        hex.push(char::from(DIGITS[usize::from(byte >> 4)]));
        hex.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    hex
}

#[cfg(test)]
mod tests {
    #[test]
    fn hashes_are_hexadecimal() {
        assert!(super::hash(b"abc").starts_with("ba7816bf8f01cfea"));
        assert_eq!(super::hash(b"").len(), 64);
    }
}
