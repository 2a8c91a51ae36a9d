//! Fingerprints: digests of what callers ask for. A retry must have the same fingerprint.

use std::fmt;

use serde::Serialize;
use sha2::{Digest, Sha256};

/// A 256-bit digest (SHA-256) of what an operation was asked to do.
///
/// The store keeps it with the claim, and the engine compares it on every later use of the key. Another fingerprint
/// under the same key is a mismatch, never a replay.
///
/// ```
/// use oncekey::Fingerprint;
///
/// let asked = Fingerprint::builder().field(b"POST").field(b"/orders").field(br#"{"item":"book"}"#).finish();
/// let other = Fingerprint::builder().field(b"POST").field(b"/orders").field(br#"{"item":"pen"}"#).finish();
/// assert_ne!(asked, other);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; Self::LEN]);

impl Fingerprint {
    /// The length in bytes.
    pub const LEN: usize = 32;

    /// Returns the fingerprint of one field.
    ///
    /// ```
    /// # use oncekey::Fingerprint;
    /// assert_eq!(Fingerprint::of(b"a"), Fingerprint::builder().field(b"a").finish());
    /// ```
    pub fn of(bytes: &[u8]) -> Self {
        Self::builder().field(bytes).finish()
    }

    /// Returns a builder for a fingerprint over several fields.
    pub fn builder() -> FingerprintBuilder {
        FingerprintBuilder(Sha256::new())
    }

    /// Returns the digest's bytes, as a store keeps them.
    pub fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// Creates a fingerprint from the bytes that a store keeps, or from a digest that the caller computed.
    ///
    /// ```
    /// # use oncekey::Fingerprint;
    /// let asked = Fingerprint::of(b"a");
    /// assert_eq!(Fingerprint::from_bytes(*asked.as_bytes()), asked);
    /// ```
    pub fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fingerprint(")?;
        self.0.iter().take(8).try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str("…)")
    }
}

/// Collects the fields of a [`Fingerprint`]. It hashes each field with its length, so that moving a byte from one field
/// to the next changes the digest.
///
/// ```
/// use oncekey::Fingerprint;
///
/// let one = Fingerprint::builder().field(b"ab").field(b"c").finish();
/// let other = Fingerprint::builder().field(b"a").field(b"bc").finish();
/// assert_ne!(one, other);
/// ```
#[derive(Debug, Clone)]
pub struct FingerprintBuilder(Sha256);

impl FingerprintBuilder {
    /// Adds one field.
    #[must_use]
    pub fn field(mut self, bytes: &[u8]) -> Self {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }

    /// Returns the digest of all fields.
    pub fn finish(self) -> Fingerprint {
        Fingerprint(self.0.finalize().into())
    }
}

/// A value that [`Engine::run`](crate::Engine::run) accepts as its `fingerprint`: a [`Fingerprint`], or a reference to
/// anything that `serde` can serialize.
///
/// A serialized value is digested in a canonical form, with its maps sorted by key. A `HashMap` in the request
/// therefore does not make a retry a mismatch.
///
/// ```
/// use oncekey::{Fingerprint, ToFingerprint};
///
/// let order = serde_json::json!({"item": "book", "quantity": 1});
/// let again = serde_json::json!({"quantity": 1, "item": "book"});
/// assert_eq!((&order).to_fingerprint()?, (&again).to_fingerprint()?);
/// # Ok::<(), oncekey::FingerprintError>(())
/// ```
pub trait ToFingerprint {
    /// Returns the digest of the request.
    ///
    /// # Errors
    /// [`FingerprintError`] for a value that JSON can't hold (a map whose keys are not strings, a failing `Serialize`).
    fn to_fingerprint(&self) -> Result<Fingerprint, FingerprintError>;
}

/// The error for a value that can't be serialized to compute its fingerprint.
///
/// ```
/// use std::collections::HashMap;
/// use oncekey::ToFingerprint;
///
/// let by_pair = HashMap::from([((1, 2), "a map whose keys are pairs is no JSON")]);
/// assert!((&by_pair).to_fingerprint().is_err());
/// ```
#[derive(Debug, thiserror::Error)]
#[error("what was asked can't be serialized to make its fingerprint: {0}")]
pub struct FingerprintError(#[from] serde_json::Error);

impl ToFingerprint for Fingerprint {
    fn to_fingerprint(&self) -> Result<Fingerprint, FingerprintError> {
        Ok(*self)
    }
}

impl<T: Serialize + ?Sized> ToFingerprint for &T {
    fn to_fingerprint(&self) -> Result<Fingerprint, FingerprintError> {
        let mut hasher = Sha256::new();
        digest_json(&serde_json::to_value(self)?, &mut hasher);
        Ok(Fingerprint(hasher.finalize().into()))
    }
}

/// Every node begins with a byte for its type, and every string and collection with its length, so that no two values
/// have the same hash input.
fn digest_json(value: &serde_json::Value, hasher: &mut Sha256) {
    use serde_json::Value;
    let text = |tag: u8, text: &str, hasher: &mut Sha256| {
        hasher.update([tag]);
        hasher.update((text.len() as u64).to_le_bytes());
        hasher.update(text);
    };
    match value {
        Value::Null => hasher.update(b"z"),
        Value::Bool(on) => hasher.update([b'b', u8::from(*on)]),
        Value::Number(number) => text(b'n', &number.to_string(), hasher),
        Value::String(string) => text(b's', string, hasher),
        Value::Array(items) => {
            hasher.update(b"a");
            hasher.update((items.len() as u64).to_le_bytes());
            items.iter().for_each(|item| digest_json(item, hasher));
        }
        Value::Object(members) => {
            hasher.update(b"o");
            hasher.update((members.len() as u64).to_le_bytes());
            let mut sorted: Vec<_> = members.iter().collect();
            sorted.sort_unstable_by_key(|(name, _)| *name);
            for (name, member) in sorted {
                text(b's', name, hasher);
                digest_json(member, hasher);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn a_hash_map_has_one_fingerprint() {
        let made = |order: &[u32]| order.iter().map(|n| (n.to_string(), *n)).collect::<HashMap<_, _>>();
        let (one, other) = (made(&[1, 2, 3, 4, 5, 6, 7, 8]), made(&[8, 7, 6, 5, 4, 3, 2, 1]));
        assert_eq!((&one).to_fingerprint().unwrap(), (&other).to_fingerprint().unwrap());
    }

    #[test]
    fn types_and_borders_tell_apart() {
        let values = serde_json::json!([null, false, true, 1, "1", "", [], {}, [[]], ["1", ""], ["", "1"], {"1": ""}, {"": "1"}]);
        let digests: std::collections::HashSet<_> =
            values.as_array().unwrap().iter().map(|value| value.to_fingerprint().unwrap()).collect();
        assert_eq!(digests.len(), values.as_array().unwrap().len());
    }

    #[test]
    fn debug_shows_no_more_than_a_prefix() {
        assert_eq!(format!("{:?}", Fingerprint::from_bytes([0xab; 32])), "Fingerprint(abababababababab…)");
    }
}
