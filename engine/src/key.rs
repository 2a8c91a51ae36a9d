//! The [`Key`] that names an operation: a scope and the caller's idempotency key, never one without the other.

use std::fmt::{self, Display, Write as _};
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;
#[cfg(not(feature = "simulation"))]
use std::sync::LazyLock;

/// The longest scope and the longest idempotency key, in bytes. Stripe's limit for `Idempotency-Key` is the same.
pub const MAX_PART_LEN: usize = 255;

/// The name of one operation: a **scope** (a tenant, a job queue, …) and the caller's **idempotency key**.
///
/// Two keys are equal only if both parts are. The stored form, `4:mail:order-17`, starts with the scope's length, so no
/// scope and key can be mistaken for another pair: tenant `a` with key `b:c` differs from tenant `a:b` with key `c`.
///
/// Cloning is cheap, because clones share the text.
///
/// ```
/// use oncekey::Key;
///
/// let key = Key::new("mail", 17)?;
/// assert_eq!((key.scope(), key.idempotency_key()), ("mail", "17"));
/// assert_eq!(key.as_stored(), "4:mail:17");
/// assert_ne!(Key::new("a", "b:c")?, Key::new("a:b", "c")?);
/// # Ok::<(), oncekey::KeyError>(())
/// ```
#[derive(Clone)]
pub struct Key {
    stored: Arc<str>,
    /// The hash of `stored`, computed once: the supervisor and the memory backend look the same key up several times.
    hash: u64,
}

/// Why a scope or an idempotency key was refused.
///
/// ```
/// use oncekey::{Key, KeyError, KeyPart};
///
/// assert_eq!(Key::new("mail", "").unwrap_err(), KeyError::Empty(KeyPart::IdempotencyKey));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The part is empty.
    #[error("the {0} is empty")]
    Empty(KeyPart),
    /// The part is longer than [`MAX_PART_LEN`] bytes.
    #[error("the {0} has {1} bytes; the limit is {MAX_PART_LEN}")]
    TooLong(KeyPart, usize),
    /// The part contains a control character, a line or paragraph separator, or a directional mark. With these, a
    /// caller could forge a log line or make it read as another.
    #[error("the {0} contains a control character")]
    ControlCharacter(KeyPart),
    /// The text is not in the form that [`Key::as_stored`] returns.
    #[error("this is not the stored form of a key, which is LENGTH:SCOPE:KEY")]
    NotStoredForm,
}

/// The half of a [`Key`] that an error concerns.
///
/// ```
/// assert_eq!(oncekey::KeyPart::Scope.to_string(), "scope");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyPart {
    /// The scope.
    Scope,
    /// The caller's idempotency key.
    IdempotencyKey,
}

impl Display for KeyPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scope => "scope",
            Self::IdempotencyKey => "idempotency key",
        })
    }
}

/// The seed is chosen once per process, so every table that looks a key up shares its hash, and no caller can choose
/// keys that collide.
#[cfg(not(feature = "simulation"))]
static HASHER: LazyLock<foldhash::quality::RandomState> = LazyLock::new(foldhash::quality::RandomState::default);
/// The seed is the same in every run, so that a simulation meets its keys in the same order again.
#[cfg(feature = "simulation")]
static HASHER: foldhash::quality::FixedState = foldhash::quality::FixedState::with_seed(0);

impl Key {
    /// Creates the key of an operation from its scope and its idempotency key.
    ///
    /// # Errors
    /// [`KeyError`] if a part is empty, longer than [`MAX_PART_LEN`] bytes, or contains a control character.
    pub fn new(scope: impl AsRef<str>, idempotency_key: impl Display) -> Result<Self, KeyError> {
        let scope = scope.as_ref();
        check(KeyPart::Scope, scope)?;
        let mut stored = String::with_capacity(64);
        // Writing to a String fails only if the key's `Display` does. The part written so far is then checked below.
        let scope = if planted!(ScopeLeftOut) { "any" } else { scope };
        let _ = write!(stored, "{}:{scope}:", scope.len());
        let key_start = stored.len();
        let _ = write!(stored, "{idempotency_key}");
        check(KeyPart::IdempotencyKey, &stored[key_start..])?;
        Ok(Self::assemble(&stored))
    }

    /// Parses the text that [`as_stored`](Self::as_stored) returned, for backends and operators. Pass a caller's text
    /// to [`new`](Self::new) instead: here the caller could choose its own scope.
    ///
    /// # Errors
    /// [`KeyError::NotStoredForm`] for any other text, and the errors of [`Key::new`] for its parts.
    ///
    /// ```
    /// # use oncekey::Key;
    /// let key = Key::new("mail", "a:b")?;
    /// assert_eq!(Key::from_stored(key.as_stored())?, key);
    /// assert!(Key::from_stored("04:mail:a:b").is_err());
    /// # Ok::<(), oncekey::KeyError>(())
    /// ```
    pub fn from_stored(stored: &str) -> Result<Self, KeyError> {
        if let Some(digest) = stored.strip_prefix(HASHED) {
            return if is_digest(digest) { Ok(Self::assemble(stored)) } else { Err(KeyError::NotStoredForm) };
        }
        let (length, rest) = stored.split_once(':').ok_or(KeyError::NotStoredForm)?;
        let scope_len: usize = length.parse().map_err(|_| KeyError::NotStoredForm)?;
        // "+4" or "04" would be a second text, and so a second record, for the same key.
        if length.starts_with(['+', '0']) || rest.as_bytes().get(scope_len) != Some(&b':') {
            return Err(KeyError::NotStoredForm);
        }
        check(KeyPart::Scope, &rest[..scope_len])?;
        check(KeyPart::IdempotencyKey, &rest[scope_len + 1..])?;
        Ok(Self::assemble(stored))
    }

    /// Creates the name under which a store keeps a key that it must not see.
    pub(crate) fn hashed(secret_id: &str, digest: &str) -> Self {
        Self::assemble(&format!("{HASHED}{secret_id}-{digest}"))
    }

    /// Returns whether this is a digest of a key, which the store keeps under
    /// [`KeyHashing`](crate::at_rest::KeyHashing). Its scope is empty, and its idempotency key is the secret's name
    /// followed by the digest.
    ///
    /// ```
    /// # use oncekey::Key;
    /// assert!(!Key::new("mail", 17)?.is_hashed());
    /// # Ok::<(), oncekey::KeyError>(())
    /// ```
    pub fn is_hashed(&self) -> bool {
        self.stored.starts_with(HASHED)
    }

    fn assemble(stored: &str) -> Self {
        Self { stored: Arc::from(stored), hash: HASHER.hash_one(stored) }
    }

    /// Returns the scope.
    pub fn scope(&self) -> &str {
        self.parts().0
    }

    /// Returns the caller's idempotency key.
    pub fn idempotency_key(&self) -> &str {
        self.parts().1
    }

    /// Finds the parts in the stored form on each call, because a key is moved far more often than it is read.
    fn parts(&self) -> (&str, &str) {
        let (length, rest) = self.stored.split_once(':').unwrap_or_default();
        let scope_len = length.parse().unwrap_or(0);
        (&rest[..scope_len], &rest[scope_len + 1..])
    }

    /// Returns the text under which a store keeps the record: the scope's length, the scope and the idempotency key.
    pub fn as_stored(&self) -> &str {
        &self.stored
    }

    /// Returns a hash of the whole key, with a seed chosen once per process. Use it for a backend's own tables, not for
    /// storage.
    ///
    /// ```
    /// # use oncekey::Key;
    /// assert_eq!(Key::new("mail", 1)?.table_hash(), Key::new("mail", 1)?.table_hash());
    /// # Ok::<(), oncekey::KeyError>(())
    /// ```
    pub fn table_hash(&self) -> u64 {
        self.hash
    }
}

/// The prefix of a digest's stored form: an empty scope, which no caller can name.
const HASHED: &str = "0::";

/// A digest is eight hex digits that name the secret, a hyphen, and 64 hex digits.
fn is_digest(text: &str) -> bool {
    let is_hex = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    text.split_once('-').is_some_and(|(id, digest)| (id.len(), digest.len()) == (8, 64) && is_hex(id) && is_hex(digest))
}

/// Line and paragraph separators, and characters that change the writing direction. Unicode does not class them as
/// control characters, but they can mislead a person who reads a log.
fn is_deceptive(character: char) -> bool {
    matches!(
        character,
        '\u{61C}' | '\u{200E}' | '\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}' | '\u{FEFF}'
    )
}

fn check(part: KeyPart, text: &str) -> Result<(), KeyError> {
    if text.is_empty() {
        Err(KeyError::Empty(part))
    } else if text.len() > MAX_PART_LEN {
        Err(KeyError::TooLong(part, text.len()))
    } else if text.chars().any(|character| character.is_control() || is_deceptive(character)) {
        Err(KeyError::ControlCharacter(part))
    } else {
        Ok(())
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.stored == other.stored
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// Orders keys by the bytes of the stored form, the order in which a store lists its records.
impl Ord for Key {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.stored.as_bytes().cmp(other.stored.as_bytes())
    }
}

impl Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_hashed() {
            return f.write_str(self.idempotency_key());
        }
        write!(f, "{}/{}", self.scope(), self.idempotency_key())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({self})")
    }
}

/// A hasher for tables whose keys are [`Key`]s: it passes on the hash that the key has already computed.
///
/// ```
/// use std::collections::HashMap;
/// use oncekey::{Key, KeyHasher};
///
/// let mut sent: HashMap<Key, u32, KeyHasher> = HashMap::default();
/// sent.insert(Key::new("mail", 17)?, 1);
/// # Ok::<(), oncekey::KeyError>(())
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct KeyHasher(u64);

impl BuildHasher for KeyHasher {
    type Hasher = Self;

    fn build_hasher(&self) -> Self {
        Self(0)
    }
}

impl Hasher for KeyHasher {
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    /// Correct but slow for keys of other types, for which this hasher is not meant.
    fn write(&mut self, bytes: &[u8]) {
        self.0 = HASHER.hash_one((self.0, bytes));
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parts_at_their_limits() {
        let longest = "k".repeat(MAX_PART_LEN);
        assert!(Key::new(&longest, &longest).is_ok());
        let over = "k".repeat(MAX_PART_LEN + 1);
        assert_eq!(Key::new("s", &over).unwrap_err(), KeyError::TooLong(KeyPart::IdempotencyKey, 256));
        assert_eq!(Key::new(&over, "k").unwrap_err(), KeyError::TooLong(KeyPart::Scope, 256));
        assert_eq!(Key::new("", "k").unwrap_err(), KeyError::Empty(KeyPart::Scope));
        for forged in ["a\nb", "a\0b", "a\u{1b}[31mb", "a\u{85}b", "a\u{2028}b", "a\u{202e}b", "a\u{feff}b"] {
            assert_eq!(Key::new("s", forged).unwrap_err(), KeyError::ControlCharacter(KeyPart::IdempotencyKey));
            assert_eq!(Key::new(forged, "k").unwrap_err(), KeyError::ControlCharacter(KeyPart::Scope));
        }
    }

    #[test]
    fn h12_no_caller_names_a_digest() {
        let digest = format!("0::{}-{}", "0a".repeat(4), "1b".repeat(32));
        let hashed = Key::from_stored(&digest).unwrap();
        assert!(hashed.is_hashed());
        assert_eq!((hashed.scope(), hashed.idempotency_key()), ("", &digest[3..]));
        // The texts that come nearest to a digest are not digests.
        for scope in ["0", "0:", ":", "0::"] {
            assert!(!Key::new(scope, &digest[3..]).unwrap().is_hashed());
        }
        for other in ["0::", "0::k", "0:", &digest[..digest.len() - 1], &digest.to_uppercase(), &format!("{digest}0")] {
            assert_eq!(Key::from_stored(other).unwrap_err(), KeyError::NotStoredForm, "{other}");
        }
    }

    proptest! {
        #[test]
        fn stored_form_is_unambiguous(a in "[a-c:0-9é]{1,6}", b in "[a-c:0-9é]{1,6}", c in "[a-c:0-9é]{1,6}", d in "[a-c:0-9é]{1,6}") {
            let (one, other) = (Key::new(&a, &b).unwrap(), Key::new(&c, &d).unwrap());
            prop_assert_eq!(one.as_stored() == other.as_stored(), (&a, &b) == (&c, &d));
            let read = Key::from_stored(one.as_stored()).unwrap();
            prop_assert_eq!((read.scope(), read.idempotency_key()), (a.as_str(), b.as_str()));
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,40}") {
            if let Ok(key) = Key::from_stored(&text) {
                prop_assert_eq!(key.as_stored(), text);
            }
        }
    }
}
