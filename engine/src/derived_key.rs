//! Derived keys: idempotency keys for the effects of an operation, derived from the operation's own key.

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};

use crate::Key;
use crate::at_rest::AtRest;

/// An idempotency key for one effect of an operation. Pass it to the provider that performs the effect. See
/// [`Claim::derive_key`](crate::Claim::derive_key).
///
/// It has 52 characters from `A-Z a-z 0-9 - _`. The same namespace, scope, key and name give the same derived key on
/// every machine and in every version of this crate.
///
/// ```
/// # #[actix_rt::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use oncekey::{Engine, Key};
/// # use oncekey_backends::MemoryBackend;
///
/// let engine = Engine::builder(MemoryBackend::new()).namespace("shop-staging").start()?;
/// let keys = engine
///     .run(Key::new("checkout", "r-1")?, &1999, |claim| async move {
///         Ok::<_, std::io::Error>((claim.derive_key("charge").to_string(), claim.derive_key("mail").to_string()))
///     })
///     .await?
///     .into_inner();
/// assert_eq!(keys.0, "oncekey1-bhjKk8RstgANjB_O0ojgPRLkVq9JU9NzYb7zocKoH5A");
/// assert_ne!(keys.0, keys.1);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DerivedKey(String);

impl DerivedKey {
    /// Returns the key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for DerivedKey {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl From<DerivedKey> for String {
    fn from(key: DerivedKey) -> Self {
        key.0
    }
}

impl fmt::Display for DerivedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The inputs that all derived keys of an engine share. Without a namespace and without key hashing, a clone costs
/// nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct KeyDerivation {
    namespace: Option<Arc<str>>,
    at_rest: AtRest,
}

/// Names the version of the derivation, which may never change: with another one, providers would run every effect
/// again.
const PREFIX: &str = "oncekey1-";
const PURPOSE: &[u8] = b"oncekey: derived key 1";

impl KeyDerivation {
    pub(crate) fn new(namespace: Option<Arc<str>>, at_rest: AtRest) -> Self {
        Self { namespace, at_rest }
    }

    pub(crate) fn at_rest(&self) -> &AtRest {
        &self.at_rest
    }

    pub(crate) fn derive(&self, key: &Key, name: &str) -> DerivedKey {
        let namespace = self.namespace.as_deref().unwrap_or_default();
        let mut parts = Vec::with_capacity(PURPOSE.len() + namespace.len() + key.as_stored().len() + name.len() + 40);
        let (scope, idempotency_key) =
            if planted!(StepsShareAName) { ("", "") } else { (key.scope(), key.idempotency_key()) };
        // Each part is preceded by its length, so that nothing can move from one part into the next.
        for part in [PURPOSE, namespace.as_bytes(), scope.as_bytes(), idempotency_key.as_bytes(), name.as_bytes()] {
            parts.extend_from_slice(&(part.len() as u64).to_be_bytes());
            parts.extend_from_slice(part);
        }
        let digest = self.at_rest.derived_key(&parts).unwrap_or_else(|| Sha256::digest(&parts).into());
        let mut derived = PREFIX.to_owned();
        BASE64_URL_SAFE_NO_PAD.encode_string(digest, &mut derived);
        DerivedKey(derived)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::at_rest::KeyHashing;

    fn derivation(namespace: &str, secret: Option<u8>) -> KeyDerivation {
        let at_rest = AtRest::default();
        let at_rest = match secret {
            Some(byte) => at_rest.key_hashing(KeyHashing::hmac([byte; 32]).unwrap()),
            None => at_rest,
        };
        KeyDerivation::new((!namespace.is_empty()).then(|| namespace.into()), at_rest)
    }

    fn derive(namespace: &str, secret: Option<u8>, scope: &str, key: &str, name: &str) -> String {
        derivation(namespace, secret).derive(&Key::new(scope, key).unwrap(), name).to_string()
    }

    /// The derivation is a promise. The expected values come from another implementation (Python's `hashlib` and
    /// `hmac`).
    #[test]
    fn e26_the_derivation_never_changes() {
        assert_eq!(derive("", None, "mail", "17", "send"), "oncekey1-lDy1M4Di2fOVM-J1gO_Dqv1BrZpebgEnT--rl3IfkC4");
        assert_eq!(
            derive("shop-staging", None, "checkout", "r-1", "charge"),
            "oncekey1-bhjKk8RstgANjB_O0ojgPRLkVq9JU9NzYb7zocKoH5A"
        );
        assert_eq!(derive("", None, "mail", "17", ""), "oncekey1-XXGVKHQmaYfcAqKiCEvfMUQy04DMCQC3rM1gqKLOmBA");
        assert_eq!(
            derive("shop-staging", Some(7), "checkout", "r-1", "charge"),
            "oncekey1-UkfrRkNQ-m4cDnyf74VHcewKt_GPm6ZHr_Px1oeBtOc"
        );
        assert_eq!(
            derive("größe", None, "a/b", "c:d", "charge:über"),
            "oncekey1-oSMSV765-IlT44tJJRa4IDftftdt-mLFLbHiDrvl1gg"
        );
    }

    #[test]
    fn e26_every_part_makes_another_key() {
        let keys = [
            derive("", None, "a", "b", "c"),
            derive("a", None, "a", "b", "c"),
            derive("", None, "ab", "c", "c"),
            derive("", None, "a", "bc", "c"),
            derive("", None, "a", "b", "cc"),
            derive("", None, "a", "b:c", ""),
            derive("", None, "a:b", "c", ""),
            derive("a", None, "b", "c", ""),
            derive("", Some(1), "a", "b", "c"),
            derive("", Some(2), "a", "b", "c"),
        ];
        assert_eq!(keys.iter().collect::<HashSet<_>>().len(), keys.len());
        let is_url_safe = |key: &String| key.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
        assert!(keys.iter().all(|key| key.len() == 52 && is_url_safe(key)));
    }

    #[test]
    fn e26_longer_parts_than_a_provider_takes_give_a_key_of_the_same_length() {
        assert_eq!(derive(&"n".repeat(300), None, &"s".repeat(200), &"k".repeat(255), &"x".repeat(1_000)).len(), 52);
    }
}
