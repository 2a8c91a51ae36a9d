//! Keys and fingerprints as keyed digests.

use std::fmt::{self, Write as _};

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::record::StepName;
use crate::{Fingerprint, Key};

/// Keys are stored as HMAC-SHA-256 of their scope and their idempotency key.
///
/// A caller's key is often an order's number or an address: a digest without a secret could be undone by trying them all.
/// The fingerprint, a digest of what was asked, is stored keyed as well, and differs from key to key.
///
/// **All processes on a store must have the same secret**, and it is for life: under another one every key is a new key, and
/// what was done is done again. Changing it is described in [`guide::security`](crate::guide::security).
///
/// The secret is wiped from memory when the engine ends, and no `Debug` shows it. The caller's own copy is the caller's to
/// wipe.
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

/// A secret that could be guessed.
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
    /// The shortest secret, in bytes: what the digest itself has.
    pub const SHORTEST_SECRET: usize = 32;

    /// Under a secret of at least [`SHORTEST_SECRET`](Self::SHORTEST_SECRET) random bytes.
    ///
    /// # Errors
    /// [`SecretTooShort`].
    pub fn hmac(secret: impl AsRef<[u8]>) -> Result<Self, SecretTooShort> {
        let secret = secret.as_ref();
        if secret.len() < Self::SHORTEST_SECRET {
            return Err(SecretTooShort(secret.len()));
        }
        // A secret of its own for each use, so that no digest of one is of any use against another.
        let derive = |purpose: &[u8]| Zeroizing::new(digest(&keyed(secret), &[purpose]));
        let id = hex(&derive(b"oncekey: the secret's name")[..4]);
        let keys = keyed(&*derive(b"oncekey: keys"));
        let fingerprints = keyed(&*derive(b"oncekey: fingerprints"));
        let derived_keys = keyed(&*derive(b"oncekey: derived keys"));
        Ok(Self { keys, fingerprints, derived_keys, id })
    }

    /// The secret's name, derived from it: eight hexadecimal digits with which the stored form of every key under it
    /// begins. It tells records of one secret from those of another.
    pub fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn hash(&self, key: &Key) -> Key {
        // The stored form carries the scope's length: no two pairs of scope and key are the same bytes.
        Key::hashed(&self.id, &hex(&digest(&self.keys, &[key.as_stored().as_bytes()])))
    }

    pub(super) fn fingerprint(&self, stored: &Key, asked: &Fingerprint) -> Fingerprint {
        // The key's form has one length, so that nothing can move from it into the fingerprint.
        Fingerprint::from_bytes(digest(&self.fingerprints, &[stored.as_stored().as_bytes(), asked.as_bytes()]))
    }

    /// Digests of one name under two keys do not look alike.
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

    /// The stored form is a promise: another one would be another key space. Checked by another implementation (Python's
    /// `hmac`).
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
