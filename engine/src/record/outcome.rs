//! Stored outcomes: versioned, checksummed bytes. A corrupt or foreign record is therefore an error, never an answer.

use std::cell::RefCell;
use std::fmt;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{FencingToken, StepName, exact};
use crate::Key;

/// The first byte of every outcome. A reader refuses any other value.
const VERSION: u8 = 1;
/// An outcome of at most this many bytes is copied to a block of its exact length.
const SMALL: usize = 4_096;
/// The length of version, kind and checksum.
const HEADER_LEN: usize = 6;

/// An outcome as a store keeps it: opaque bytes with a version, a kind and a checksum.
///
/// The checksum (CRC-32) also covers the key, so an outcome copied to another key's record is refused. It guards
/// against damage, not against an attacker who can write to the store.
///
/// ```
/// use oncekey::Key;
/// use oncekey::record::{Payload, PayloadKind, SealedOutcome};
///
/// let key = Key::new("mail", 17)?;
/// let sealed = SealedOutcome::seal(&key, PayloadKind::Json, |bytes| bytes.extend_from_slice(b"\"sent\""));
/// assert_eq!(sealed.open(&key)?, Payload::Value { kind: PayloadKind::Json, bytes: "\"sent\"".into() });
/// assert!(sealed.open(&Key::new("mail", 18)?).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct SealedOutcome(Bytes);

/// What the bytes of an outcome contain.
///
/// ```
/// use oncekey::record::PayloadKind;
///
/// assert_ne!(PayloadKind::Json, PayloadKind::Http);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayloadKind {
    /// The JSON of a typed outcome, as [`Engine::run`](crate::Engine::run) stores it.
    Json,
    /// An HTTP response, as the middleware stores it.
    Http,
}

/// What [`SealedOutcome::open`] returns.
///
/// ```
/// use oncekey::Key;
/// use oncekey::record::{Payload, SealedOutcome};
///
/// let key = Key::new("mail", 17)?;
/// assert_eq!(SealedOutcome::tombstone(&key).open(&key)?, Payload::Tombstone);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// An outcome that can be replayed.
    Value {
        /// What the bytes contain.
        kind: PayloadKind,
        /// The outcome itself. It shares its memory with the stored bytes.
        bytes: Bytes,
    },
    /// "Done, but too large to keep": the operation never runs again, and there is nothing to replay.
    Tombstone,
}

/// The stored bytes are not an outcome of this key: they are damaged, or something else wrote them.
///
/// ```
/// use oncekey::Key;
/// use oncekey::record::{CorruptOutcome, SealedOutcome};
///
/// let read = SealedOutcome::from_stored("hello".into());
/// assert!(matches!(read.open(&Key::new("mail", 17)?), Err(CorruptOutcome::TooShort(5))));
/// # Ok::<(), oncekey::KeyError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CorruptOutcome {
    /// The bytes are shorter than a header.
    #[error("an outcome has at least {HEADER_LEN} bytes; this one has {0}")]
    TooShort(usize),
    /// The outcome has another version, or the bytes are no outcome at all.
    #[error("outcomes of version {0} are not known here (this library writes version {VERSION})")]
    UnknownVersion(u8),
    /// The outcome has a kind that this version does not know.
    #[error("an outcome of kind {0} is not known here")]
    UnknownKind(u8),
    /// The bytes changed after they were written, or belong to another key.
    #[error("the outcome's checksum does not match its bytes and its key")]
    Checksum,
    /// A typed outcome was found where an HTTP response was expected, or the reverse.
    #[error("the key's outcome was stored by another kind of caller")]
    OtherKind,
    /// The checksum is right, but the content does not match its kind.
    #[error("the outcome's content can't be read as what is expected of it")]
    Content,
    /// The outcome is encrypted, and there was no secret to decrypt it, or decryption failed.
    #[error("the outcome is encrypted, and was not decrypted")]
    Encrypted,
    /// The outcome is plain, and only encrypted outcomes are accepted.
    #[error("the outcome is not encrypted, and plain ones are not accepted here")]
    NotEncrypted,
    /// The outcome was encrypted with a secret that this engine does not have.
    #[error("the outcome is encrypted by secret {0}, which is not known here")]
    UnknownSecret(u32),
    /// The outcome was changed after it was encrypted, belongs to another key, or its secret's number names another
    /// secret here.
    #[error("the encrypted outcome is not authentic for its key")]
    NotAuthentic,
}

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What an outcome is sealed for: a key, or a step of one life of a key. An outcome found anywhere else is corrupt.
///
/// ```
/// use oncekey::{FencingToken, Key};
/// use oncekey::record::{Binding, SealedOutcome, StepName};
///
/// let (key, name) = (Key::new("checkout", 17)?, StepName::new("charge")?);
/// let charge = Binding::step(&key, FencingToken::new(1), &name);
/// let outcome = SealedOutcome::of_value(charge, &"paid")?;
/// assert_eq!(outcome.value::<String>(charge)?.as_deref(), Some("paid"));
/// assert!(outcome.value::<String>(&key).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding<'a> {
    key: &'a Key,
    step: Option<(FencingToken, &'a StepName)>,
}

impl<'a> Binding<'a> {
    /// Binds to the step `name` of the life of `key` that began with the fencing token `life`.
    pub fn step(key: &'a Key, life: FencingToken, name: &'a StepName) -> Self {
        Self { key, step: Some((life, name)) }
    }

    /// Passes the bytes to `take` in parts. No key and no name contains the byte that separates them.
    pub(crate) fn feed(self, mut take: impl FnMut(&[u8])) {
        if !(planted!(StepsShareAName) && self.step.is_some()) {
            take(self.key.as_stored().as_bytes());
        }
        if let Some((life, name)) = self.step {
            take(&[1]);
            take(&life.get().to_be_bytes());
            take(name.as_str().as_bytes());
        }
    }
}

impl<'a> From<&'a Key> for Binding<'a> {
    fn from(key: &'a Key) -> Self {
        Self { key, step: None }
    }
}

impl SealedOutcome {
    /// The first byte of an encrypted outcome, where a plain one has its version.
    pub(crate) const ENCRYPTED: u8 = 2;

    /// Returns a placeholder for an outcome that cannot be shown. Opening it is an error.
    pub(crate) fn unreadable() -> Self {
        Self(Bytes::from_static(&[Self::ENCRYPTED]))
    }

    /// Seals the bytes that `write` appends.
    pub fn seal<'a>(bound_to: impl Into<Binding<'a>>, kind: PayloadKind, write: impl FnOnce(&mut Vec<u8>)) -> Self {
        let tag = match kind {
            PayloadKind::Json => 1,
            PayloadKind::Http => 2,
        };
        Self::assemble(bound_to.into(), tag, write)
    }

    /// Seals a typed outcome, as [`Engine::run`](crate::Engine::run) does. Reconcilers and operators use it once they
    /// have found out what an operation did.
    ///
    /// # Errors
    /// JSON cannot hold the value: it would be read back as another value (NaN and infinities, `Some` of a value
    /// written as `null`), or it is a map whose keys are not strings.
    ///
    /// ```
    /// # use oncekey::{Key, record::SealedOutcome};
    /// let key = Key::new("mail", 17)?;
    /// let sealed = SealedOutcome::of_value(&key, &vec![1, 2])?;
    /// assert_eq!(sealed.value::<Vec<u32>>(&key)?, Some(vec![1, 2]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn of_value<'a, T: Serialize + ?Sized>(
        bound_to: impl Into<Binding<'a>>,
        value: &T,
    ) -> Result<Self, serde_json::Error> {
        if !planted!(AnyValueStored) {
            exact::check(value)?;
        }
        let mut written = Ok(());
        let sealed = Self::seal(bound_to, PayloadKind::Json, |bytes| written = serde_json::to_writer(bytes, value));
        written.map(|()| sealed)
    }

    /// Reads a typed outcome, or returns `None` for a tombstone.
    ///
    /// # Errors
    /// [`CorruptOutcome`] if the bytes are not a typed outcome of this key or step, or not of type `T`.
    pub fn value<'a, T: DeserializeOwned>(
        &self,
        bound_to: impl Into<Binding<'a>>,
    ) -> Result<Option<T>, CorruptOutcome> {
        match self.open(bound_to)? {
            Payload::Tombstone => Ok(None),
            Payload::Value { kind: PayloadKind::Json, bytes } => {
                serde_json::from_slice(&bytes).map(Some).map_err(|_| CorruptOutcome::Content)
            }
            Payload::Value { .. } => Err(CorruptOutcome::OtherKind),
        }
    }

    /// Reads the value that [`of_value`](Self::of_value) has just sealed, without checking it again.
    pub(crate) fn read_back<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(self.0.get(HEADER_LEN..).unwrap_or_default())
    }

    /// Returns an outcome that says only that the operation is done.
    pub fn tombstone<'a>(bound_to: impl Into<Binding<'a>>) -> Self {
        Self::assemble(bound_to.into(), 0, |_| ())
    }

    /// Checks the bytes and returns kind and payload.
    pub(crate) fn parts(&self, bound_to: Binding<'_>) -> Result<(u8, Bytes), CorruptOutcome> {
        let bytes = &self.0;
        if bytes.first() == Some(&Self::ENCRYPTED) {
            return Err(CorruptOutcome::Encrypted);
        }
        if bytes.len() < HEADER_LEN {
            return Err(CorruptOutcome::TooShort(bytes.len()));
        }
        let (version, tag) = (bytes[0], bytes[1]);
        if version != VERSION {
            return Err(CorruptOutcome::UnknownVersion(version));
        }
        if !planted!(ChecksumIgnored)
            && bytes[2..HEADER_LEN] != checksum(bound_to, tag, &bytes[HEADER_LEN..]).to_le_bytes()
        {
            return Err(CorruptOutcome::Checksum);
        }
        Ok((tag, bytes.slice(HEADER_LEN..)))
    }

    /// Seals the outcome of `from` for `to`. The two are names of one record.
    pub(crate) fn move_to(&self, from: Binding<'_>, to: Binding<'_>) -> Result<Self, CorruptOutcome> {
        if from == to {
            return Ok(self.clone());
        }
        let (tag, payload) = self.parts(from)?;
        Ok(Self::assemble(to, tag, |bytes| bytes.extend_from_slice(&payload)))
    }

    pub(crate) fn assemble(bound_to: Binding<'_>, tag: u8, write: impl FnOnce(&mut Vec<u8>)) -> Self {
        // Most outcomes are small. They are written to this buffer and copied once, so that what a store keeps for a
        // day has its exact length and no larger block is split for it. A large outcome takes the buffer instead.
        let mut bytes = SCRATCH.take();
        bytes.extend_from_slice(&[VERSION, tag, 0, 0, 0, 0]);
        write(&mut bytes);
        let checksum = checksum(bound_to, tag, &bytes[HEADER_LEN..]);
        bytes[2..HEADER_LEN].copy_from_slice(&checksum.to_le_bytes());
        if bytes.len() > SMALL {
            return Self(Bytes::from(bytes.into_boxed_slice()));
        }
        let sealed = Self(Bytes::copy_from_slice(&bytes));
        bytes.clear();
        SCRATCH.set(bytes);
        sealed
    }

    /// Wraps bytes read from a store. Nothing is checked before [`open`](Self::open).
    pub fn from_stored(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// Returns the bytes, as a store keeps them.
    pub fn as_stored(&self) -> &Bytes {
        &self.0
    }

    /// Checks the bytes and returns the outcome.
    ///
    /// # Errors
    /// [`CorruptOutcome`] if the bytes were not sealed for this key or step by a version that this library knows.
    pub fn open<'a>(&self, bound_to: impl Into<Binding<'a>>) -> Result<Payload, CorruptOutcome> {
        let (tag, bytes) = self.parts(bound_to.into())?;
        let kind = match tag {
            0 => return Ok(Payload::Tombstone),
            1 => PayloadKind::Json,
            2 => PayloadKind::Http,
            other => return Err(CorruptOutcome::UnknownKind(other)),
        };
        Ok(Payload::Value { kind, bytes })
    }
}

fn checksum(bound_to: Binding<'_>, tag: u8, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    bound_to.feed(|part| hasher.update(part));
    hasher.update(&[0, tag]);
    hasher.update(payload);
    hasher.finalize()
}

/// Shows only the length, because outcomes may hold personal data.
impl fmt::Debug for SealedOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealedOutcome({} bytes)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e13_every_flipped_bit_is_an_error() {
        let key = Key::new("s", "k").unwrap();
        let sealed = SealedOutcome::seal(&key, PayloadKind::Http, |bytes| bytes.extend_from_slice(b"paid"));
        for bit in 0..sealed.0.len() * 8 {
            let mut bytes = sealed.0.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(SealedOutcome::from_stored(bytes.into()).open(&key).is_err(), "bit {bit}");
        }
    }

    /// A parser that is off by the last bit would replay a different number from the stored one.
    #[test]
    fn e04_a_replayed_number_is_the_one_that_was_stored() {
        let key = Key::new("s", "k").unwrap();
        for number in [7.300_000_000_000_199e22, 0.1 + 0.2, f64::MIN_POSITIVE, f64::MAX, 5e-324, -1.0 / 3.0] {
            let sealed = SealedOutcome::of_value(&key, &number).unwrap();
            assert_eq!(sealed.value::<f64>(&key).map(|read| read.map(f64::to_bits)), Ok(Some(number.to_bits())));
        }
    }

    /// A small outcome returns the buffer for the next one; a large outcome keeps it.
    #[test]
    fn outcomes_of_all_sizes_are_read_back() {
        let key = Key::new("s", "k").unwrap();
        for len in [0, 1, SMALL - HEADER_LEN - 1, SMALL - HEADER_LEN, SMALL - HEADER_LEN + 1, 3 * SMALL, 5] {
            let payload = vec![7; len];
            let sealed = SealedOutcome::seal(&key, PayloadKind::Http, |bytes| bytes.extend_from_slice(&payload));
            assert_eq!(sealed.as_stored().len(), HEADER_LEN + len);
            let Ok(Payload::Value { kind: PayloadKind::Http, bytes }) = sealed.open(&key) else { panic!("{len}") };
            assert_eq!(bytes, payload);
            let keeps_scratch = SCRATCH.with_borrow(|scratch| scratch.capacity() >= HEADER_LEN + len);
            assert_eq!(keeps_scratch, HEADER_LEN + len <= SMALL, "{len}");
        }
    }

    #[test]
    fn an_outcome_moves_to_another_name_and_is_not_shown() {
        let (key, other) = (Key::new("s", "k").unwrap(), Key::new("s", "l").unwrap());
        let sealed = SealedOutcome::of_value(&key, &17).unwrap();
        assert_eq!(sealed.move_to((&key).into(), (&key).into()), Ok(sealed.clone()));
        let moved = sealed.move_to((&key).into(), (&other).into()).unwrap();
        assert_eq!((moved.value(&other), moved.value::<u32>(&key)), (Ok(Some(17)), Err(CorruptOutcome::Checksum)));
        assert_eq!(format!("{sealed:?}"), "SealedOutcome(8 bytes)");
    }

    #[test]
    fn e13_every_prefix_is_an_error() {
        let key = Key::new("s", "k").unwrap();
        let sealed = SealedOutcome::seal(&key, PayloadKind::Json, |bytes| bytes.extend_from_slice(b"17"));
        for len in 0..sealed.0.len() {
            assert!(SealedOutcome::from_stored(sealed.0.slice(..len)).open(&key).is_err(), "{len} bytes");
        }
    }
}
