//! Encryption of outcomes.

use std::fmt;

use bytes::Bytes;
use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};

use crate::CorruptOutcome;
use crate::record::{Binding, SealedOutcome};

/// The first byte of an encrypted outcome, where a plain one has its version.
const VERSION: u8 = SealedOutcome::ENCRYPTED;
const ID: std::ops::Range<usize> = 1..5;
const NONCE: std::ops::Range<usize> = 5..29;

/// Stores outcomes encrypted and authenticated, with XChaCha20-Poly1305 and a random nonce for each.
///
/// The stored form of the record's key is authenticated with the outcome. An outcome that was copied to another key's
/// record, or changed by a bit, is [`CorruptOutcome::NotAuthentic`]: nothing is replayed and nothing runs. A reader of
/// the store still sees an outcome's length and when it was written.
///
/// Each secret has a number, and every outcome carries the number of its secret. To change secrets, pass the new one to
/// [`new`](Self::new), and pass the old one to [`previous`](Self::previous) until the longest retention has passed.
/// Processes that do not know the new secret yet must first get it through `previous`.
///
/// The engine wipes its secrets from memory when it ends, and no `Debug` shows them. You wipe your own copies.
///
/// ```
/// # fn secret(_: &str) -> [u8; 32] { [7; 32] }
/// use oncekey::{Engine, at_rest::Encryption};
/// use oncekey_backends::MemoryBackend;
///
/// let encryption = Encryption::new(2, &secret("of this year")).previous(1, &secret("of last year"));
/// assert_eq!(format!("{encryption:?}"), "Encryption(2, previously 1)");
/// let engine = Engine::builder(MemoryBackend::new()).encryption(encryption).start()?;
/// # Ok::<(), oncekey::StartError>(())
/// ```
#[derive(Clone)]
#[must_use]
pub struct Encryption {
    /// The secret for new outcomes. There is always one.
    newest: (u32, XChaCha20Poly1305),
    previous: Vec<(u32, XChaCha20Poly1305)>,
    accepts_plain: bool,
}

impl Encryption {
    /// Encrypts with this secret: 32 random bytes, known by the number `id`.
    pub fn new(id: u32, secret: &[u8; 32]) -> Self {
        Self { newest: (id, XChaCha20Poly1305::new(secret.into())), previous: Vec::new(), accepts_plain: false }
    }

    /// Decrypts outcomes that were encrypted with another secret.
    pub fn previous(mut self, id: u32, secret: &[u8; 32]) -> Self {
        self.previous.push((id, XChaCha20Poly1305::new(secret.into())));
        self
    }

    /// Replays plain outcomes, which were written before encryption was turned on.
    ///
    /// Without this they are [`CorruptOutcome::NotEncrypted`], because anyone with write access to the store could put
    /// one there. Remove this call once the longest retention has passed.
    pub fn accept_plain(mut self) -> Self {
        self.accepts_plain = true;
        self
    }

    /// Returns whether one number names two secrets.
    pub(crate) fn has_ambiguous_id(&self) -> bool {
        let mut ids: Vec<u32> = self.ids().collect();
        ids.sort_unstable();
        ids.windows(2).any(|pair| pair[0] == pair[1])
    }

    fn ids(&self) -> impl Iterator<Item = u32> {
        std::iter::once(self.newest.0).chain(self.previous.iter().map(|(id, _)| *id))
    }

    fn find(&self, id: u32) -> Option<&XChaCha20Poly1305> {
        std::iter::once(&self.newest).chain(&self.previous).find(|(known, _)| *known == id).map(|(_, cipher)| cipher)
    }

    /// Writes the version, the secret's number and the nonce, then the kind and the payload, encrypted, and their
    /// authentication.
    pub(super) fn seal(
        &self,
        stored: Binding<'_>,
        (tag, payload): (u8, Bytes),
    ) -> Result<SealedOutcome, CorruptOutcome> {
        let (id, cipher) = &self.newest;
        // A random nonce of 192 bits needs no counter and does not repeat in practice.
        let nonce: [u8; 24] = rand::random();
        let mut head = vec![VERSION];
        head.extend_from_slice(&id.to_le_bytes());
        let plain = zeroize::Zeroizing::new([&[tag], &*payload].concat());
        let sealed = cipher
            .encrypt(&XNonce::from(nonce), Payload { msg: &plain, aad: &aad(&head, stored) })
            // This fails only for more than 256 GiB.
            .map_err(|_| CorruptOutcome::Content)?;
        Ok(SealedOutcome::from_stored([&*head, &nonce, &sealed].concat().into()))
    }

    /// Returns the kind and the payload, or `None` for a plain outcome where plain ones are accepted.
    pub(super) fn open(
        &self,
        stored: Binding<'_>,
        outcome: &SealedOutcome,
    ) -> Result<Option<(u8, Bytes)>, CorruptOutcome> {
        let bytes = outcome.as_stored();
        match bytes.first() {
            Some(&VERSION) if bytes.len() < NONCE.end => return Err(CorruptOutcome::TooShort(bytes.len())),
            Some(&VERSION) => {}
            _ if self.accepts_plain => return Ok(None),
            _ => return Err(CorruptOutcome::NotEncrypted),
        }
        let short = |_| CorruptOutcome::TooShort(bytes.len());
        let id = u32::from_le_bytes(bytes[ID].try_into().map_err(short)?);
        let nonce: [u8; 24] = bytes[NONCE].try_into().map_err(short)?;
        let cipher = self.find(id).ok_or(CorruptOutcome::UnknownSecret(id))?;
        let mut plain = cipher
            .decrypt(&XNonce::from(nonce), Payload { msg: &bytes[NONCE.end..], aad: &aad(&bytes[..ID.end], stored) })
            .map(Bytes::from)
            .map_err(|_| CorruptOutcome::NotAuthentic)?;
        // The decrypted text is empty: a holder of the secret encrypted nothing.
        let tag = *plain.first().ok_or(CorruptOutcome::Content)?;
        Ok(Some((tag, plain.split_off(1))))
    }
}

/// Returns the data that is authenticated beside the outcome: how it was encrypted, and what it is bound to.
fn aad(head: &[u8], stored: Binding<'_>) -> Vec<u8> {
    let mut bytes = head.to_vec();
    stored.feed(|part| bytes.extend_from_slice(part));
    bytes
}

impl fmt::Debug for Encryption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Encryption({}", self.newest.0)?;
        for (at, (id, _)) in self.previous.iter().enumerate() {
            write!(f, "{}{id}", if at == 0 { ", previously " } else { ", " })?;
        }
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Key;
    use proptest::prelude::*;

    fn key(name: &str) -> Key {
        Key::new("s", name).unwrap()
    }

    fn sealed(encryption: &Encryption) -> SealedOutcome {
        encryption.seal((&key("k")).into(), (2, Bytes::from_static(b"paid"))).unwrap()
    }

    #[test]
    fn what_is_sealed_is_opened_and_never_looks_the_same() {
        let encryption = Encryption::new(1, &[1; 32]);
        let (one, other) = (sealed(&encryption), sealed(&encryption));
        assert_ne!(one, other);
        assert!(!one.as_stored().windows(4).any(|window| window == b"paid"));
        assert_eq!(encryption.open((&key("k")).into(), &one), Ok(Some((2, Bytes::from_static(b"paid")))));
    }

    #[test]
    fn e13_every_flipped_bit_and_every_prefix_is_an_error() {
        let encryption = Encryption::new(1, &[1; 32]).previous(0, &[2; 32]).accept_plain();
        let sealed = sealed(&encryption);
        let bytes = sealed.as_stored();
        for bit in 8..bytes.len() * 8 {
            let mut bytes = bytes.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(
                encryption.open((&key("k")).into(), &SealedOutcome::from_stored(bytes.into())).is_err(),
                "bit {bit}"
            );
        }
        for len in 1..bytes.len() {
            let prefix = SealedOutcome::from_stored(bytes.slice(..len));
            assert!(encryption.open((&key("k")).into(), &prefix).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn e13_an_outcome_of_another_key_or_secret_is_an_error() {
        let encryption = Encryption::new(1, &[1; 32]);
        let sealed = sealed(&encryption);
        assert_eq!(encryption.open((&key("other")).into(), &sealed), Err(CorruptOutcome::NotAuthentic));
        assert_eq!(Encryption::new(1, &[2; 32]).open((&key("k")).into(), &sealed), Err(CorruptOutcome::NotAuthentic));
        assert_eq!(
            Encryption::new(2, &[1; 32]).open((&key("k")).into(), &sealed),
            Err(CorruptOutcome::UnknownSecret(1))
        );
    }

    #[test]
    fn a_plain_outcome_is_taken_only_where_that_is_said() {
        let encryption = Encryption::new(1, &[1; 32]);
        let plain = SealedOutcome::tombstone(&key("k"));
        assert_eq!(encryption.open((&key("k")).into(), &plain), Err(CorruptOutcome::NotEncrypted));
        assert_eq!(encryption.accept_plain().open((&key("k")).into(), &plain), Ok(None));
    }

    proptest! {
        #[test]
        fn e13_any_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let encryption = Encryption::new(0, &[1; 32]);
            for head in [vec![], vec![VERSION, 0, 0, 0, 0]] {
                let stored = SealedOutcome::from_stored([head, bytes.clone()].concat().into());
                prop_assert!(encryption.open((&key("k")).into(), &stored).is_err());
            }
        }
    }
}
