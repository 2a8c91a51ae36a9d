//! Keys and fingerprints as keyed digests.

use std::fmt::{self, Write as _};

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::record::StepName;
use crate::{Fingerprint, Key};

/// Stores keys as HMAC-SHA-256 of their scope and their idempotency key.
///
/// A caller's key is often an order number or an address, and a digest without a secret could be reversed by trying all
/// of them. The fingerprint, a digest of the request, is stored keyed as well, and differs from key to key.
///
/// **All processes on a store must have the same secret**, and it must never change: under another secret every key is
/// a new key, and completed operations run again. [`guide::security`](crate::guide::security) describes how to change
/// it.
///
/// The engine wipes the secret from memory when it ends, and no `Debug` shows it. You wipe your own copy.
///
/// ```
/// use oncekey::at_rest::KeyHashing;
///
/// let hashing = KeyHashing::hmac([7; 32])?;
/// assert_eq!(format!("{hashing:?}"), format!("KeyHashing({})", hashing.id()));
/// assert!(KeyHashing::hmac("hunter2").is_err());
/// # Ok::<(), oncekey::at_rest::SecretTooShort>(())
/// ```
#[derive(Clone)]
pub struct KeyHashing {
    keys: Hmac<Sha256>,
    fingerprints: Hmac<Sha256>,
    derived_keys: Hmac<Sha256>,
    id: String,
}

/// A secret that is short enough to guess.
///
/// ```
/// use oncekey::at_rest::{KeyHashing, SecretTooShort};
///
/// assert_eq!(KeyHashing::hmac([7; 16]).unwrap_err(), SecretTooShort(16));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a secret for the hashing of keys has at least {least} bytes; this one has {0}", least = KeyHashing::SHORTEST_SECRET)]
pub struct SecretTooShort(pub usize);

impl KeyHashing {
    /// The length of the shortest secret, in bytes. It equals the length of the digest.
    pub const SHORTEST_SECRET: usize = 32;

    /// Hashes keys with a secret of at least [`SHORTEST_SECRET`](Self::SHORTEST_SECRET) random bytes.
    ///
    /// # Errors
    /// [`SecretTooShort`].
    pub fn hmac(secret: impl AsRef<[u8]>) -> Result<Self, SecretTooShort> {
        let secret = secret.as_ref();
        if secret.len() < Self::SHORTEST_SECRET {
            return Err(SecretTooShort(secret.len()));
        }
        // Each purpose has its own derived secret, so a digest for one purpose is useless for another.
        let derive = |purpose: &[u8]| Zeroizing::new(digest(&keyed(secret), &[purpose]));
        let id = hex(&derive(b"oncekey: the secret's name")[..4]);
        let keys = keyed(&*derive(b"oncekey: keys"));
        let fingerprints = keyed(&*derive(b"oncekey: fingerprints"));
        let derived_keys = keyed(&*derive(b"oncekey: derived keys"));
        Ok(Self { keys, fingerprints, derived_keys, id })
    }

    /// Returns the secret's name, which is derived from it: eight hexadecimal digits. The stored form of every key
    /// begins with the name of its secret, which distinguishes the records of different secrets.
    pub fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn hash(&self, key: &Key) -> Key {
        // The stored form carries the scope's length, so no two pairs of scope and key have the same bytes.
        Key::hashed(&self.id, &hex(&digest(&self.keys, &[key.as_stored().as_bytes()])))
    }

    pub(super) fn fingerprint(&self, stored: &Key, asked: &Fingerprint) -> Fingerprint {
        // The stored key has a fixed length, so no byte of it can count as part of the fingerprint.
        Fingerprint::from_bytes(digest(&self.fingerprints, &[stored.as_stored().as_bytes(), asked.as_bytes()]))
    }

    /// Returns the digest of a step's name. Digests of one name under two keys differ.
    pub(super) fn step_name(&self, stored: &Key, name: &StepName) -> StepName {
        let parts = [stored.as_stored().as_bytes(), &[0], name.as_str().as_bytes()];
        StepName::hashed(&hex(&digest(&self.keys, &parts)))
    }

    pub(super) fn derived_key(&self, parts: &[u8]) -> [u8; 32] {
        digest(&self.derived_keys, &[parts])
    }
}

fn keyed(secret: &[u8]) -> Hmac<Sha256> {
    #[expect(clippy::expect_used, reason = "HMAC takes a secret of any length")]
    Hmac::new_from_slice(secret).expect("HMAC takes a secret of any length")
}

fn digest(keyed: &Hmac<Sha256>, parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = keyed.clone();
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

impl fmt::Debug for KeyHashing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyHashing({})", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_depends_on_the_secret_the_scope_and_the_key() {
        let key = |scope, key| Key::new(scope, key).unwrap();
        let [one, other] = [[1; 32], [2; 32]].map(|secret| KeyHashing::hmac(secret).unwrap());
        let digests = [
            one.hash(&key("a", "b:c")),
            one.hash(&key("a:b", "c")),
            one.hash(&key("b", "c")),
            other.hash(&key("a", "b:c")),
        ];
        let distinct: std::collections::HashSet<_> = digests.iter().map(Key::as_stored).collect();
        assert_eq!(distinct.len(), 4);
        assert_eq!(KeyHashing::hmac([1; 32]).unwrap().hash(&key("a", "b:c")), digests[0]);
        for digest in &digests {
            assert_eq!(&Key::from_stored(digest.as_stored()).unwrap(), digest);
        }
    }

    /// The stored form must never change: another form would be another key space. The value was checked with another
    /// implementation (Python's `hmac`).
    #[test]
    fn the_stored_form_never_changes() {
        let hashing = KeyHashing::hmac([7; 32]).unwrap();
        let stored = hashing.hash(&Key::new("mail", 17).unwrap());
        assert_eq!(stored.as_stored(), "0::d6a4c8c2-f79c2d5364ba343dab27239a8c4dbf03a9aaa6140c57335cf0c192f36feb7aef");
        let asked = hashing.fingerprint(&stored, &Fingerprint::of(b"asked"));
        assert_eq!(hex(asked.as_bytes()), "95f1570b0888e83589fbca5f7c7fdc97e49227bbd9ca37fc512e465550696ee4");
    }

    #[test]
    fn equal_requests_under_two_keys_do_not_show() {
        let hashing = KeyHashing::hmac([7; 32]).unwrap();
        let of = |key| hashing.fingerprint(&hashing.hash(&Key::new("s", key).unwrap()), &Fingerprint::of(b"asked"));
        assert_ne!(of(1), of(2));
        assert_eq!(of(1), of(1));
    }
}
