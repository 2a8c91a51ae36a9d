//! The yardstick: the call sequence of GoPotency, the library that Oncekey set out from, written in Rust.
//!
//! A first use is a look-up, a lock, a pending record stored, the operation, a look-up again, the completed record
//! stored, and the unlock; a replay is a look-up and a comparison of hashes. The request's hash is the SHA-256 of its
//! body in hexadecimal, and a look-up gives a copy of the record. There is no lease, no owner and no waiting in it: it
//! is what must be paid for at the least, by a design that lets two callers run one key.

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

/// Where in its life a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// Somebody works on it.
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
    /// Where in its life the record is.
    pub status: Status,
    /// What a retry is given.
    pub response: Option<Response>,
    /// When the record was made.
    pub created_at: SystemTime,
    /// When it is over.
    pub expires_at: SystemTime,
}

impl Record {
    /// The record of a request that somebody begins to work on.
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

    /// Puts the response in.
    pub fn complete(&mut self, response: Response) {
        self.status = Status::Completed;
        self.response = Some(response);
        self.expires_at = SystemTime::now() + RETENTION;
    }
}

/// What the benches' operation gives, as a response.
pub fn response() -> Response {
    Response { status_code: 200, headers: HashMap::new(), body: crate::OUTCOME.to_owned() }
}

/// SHA-256 in hexadecimal. By a table: formatting each byte would slow the yardstick down, in our favour.
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
