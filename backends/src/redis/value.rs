//! The value of a record's Redis key.
//!
//! ```text
//! 0   version
//! 1   owner
//! 17  fingerprint
//! 49  attempt, big-endian                 the claim: written when the key is claimed
//! 57  CRC-32 of the key and all before
//! 61  state: r, h, c, i or w
//! 62  CRC-32 of the key, owner, state and all that follows
//! 66  the outcome of a completed record   the state: scripts put another in its place
//! ```
//!
//! The two parts have a checksum each, so that a script can join a claim, which the server has, to a state, which the
//! client sends: Redis can't compute a CRC. No time is in it. A record's time is its key's time to live, which is the
//! server's alone: see [`window`].

use std::time::Duration;

use bytes::Bytes;
use oncekey::backend::StoreError;
use oncekey::record::{ABANDONED_CLAIM_KEPT, Owner, SealedOutcome};
use oncekey::{Attempt, Fingerprint, Key, OnAbandoned};

const VERSION: u8 = 1;
/// Where the state begins; also the length of a claim.
pub(super) const STATE_AT: usize = 61;
/// The length of a value without an outcome.
pub(super) const HEAD_LEN: usize = 66;
/// Behind a claim that is held: somebody waits for its end, which is to be announced.
const WATCHED: u8 = b'!';

/// No time to live is longer: Redis adds it to its clock, and must not overflow.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// How much longer than its lease a claim's key lives: `PTTL` less this is the lease left, by the server's clock, and a
/// lapsed claim is still there to be seen. One that is to be held must not vanish: it waits for somebody's word.
pub(super) const fn window(on_abandoned: OnAbandoned) -> Duration {
    match on_abandoned {
        OnAbandoned::Rerun => ABANDONED_CLAIM_KEPT,
        OnAbandoned::Hold => LONGEST,
    }
}

/// A duration as `PX` takes it: whole milliseconds, rounded up, at least one.
pub(super) fn millis(duration: Duration) -> u64 {
    let millis = duration.min(LONGEST).as_nanos().div_ceil(1_000_000);
    u64::try_from(millis).unwrap_or(u64::MAX).max(1)
}

/// The time to live of a claim with a lease.
pub(super) fn claim_millis(lease: Duration, on_abandoned: OnAbandoned) -> u64 {
    millis(lease) + millis(window(on_abandoned))
}

/// What a key holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Value {
    pub(super) claim: Claim,
    pub(super) state: Stored,
}

/// Who claimed the key for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) owner: Owner,
    pub(super) fingerprint: Fingerprint,
    pub(super) attempt: Attempt,
}

/// The state of a record as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stored {
    InProgress(OnAbandoned),
    Completed(SealedOutcome),
    Indeterminate,
    /// No record: its owner took a claim back that had not arrived yet. Until this expires, it can't arrive late.
    Withdrawn,
}

impl Stored {
    fn letter(&self) -> u8 {
        match self {
            Self::InProgress(OnAbandoned::Rerun) => b'r',
            Self::InProgress(OnAbandoned::Hold) => b'h',
            Self::Completed(_) => b'c',
            Self::Indeterminate => b'i',
            Self::Withdrawn => b'w',
        }
    }

    fn outcome(&self) -> &[u8] {
        match self {
            Self::Completed(outcome) => outcome.as_stored(),
            _ => &[],
        }
    }

    /// The second part of a value, for a claim of `owner`.
    pub(super) fn encode(&self, key: &Key, owner: Owner) -> Vec<u8> {
        let outcome = self.outcome();
        let mut bytes = Vec::with_capacity(HEAD_LEN - STATE_AT + outcome.len());
        self.append(key, owner, &mut bytes);
        bytes
    }

    fn append(&self, key: &Key, owner: Owner, bytes: &mut Vec<u8>) {
        let (letter, outcome) = (self.letter(), self.outcome());
        bytes.push(letter);
        bytes.extend_from_slice(&state_checksum(key, owner, letter, outcome));
        bytes.extend_from_slice(outcome);
    }
}

/// How the value of a claim of `owner` begins.
pub(super) fn owned_by(owner: Owner) -> [u8; 17] {
    let mut bytes = [VERSION; 17];
    bytes[1..].copy_from_slice(owner.as_bytes());
    bytes
}

impl Claim {
    fn append(&self, key: &Key, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&owned_by(self.owner));
        bytes.extend_from_slice(self.fingerprint.as_bytes());
        bytes.extend_from_slice(&self.attempt.get().to_be_bytes());
        let checksum = claim_checksum(key, bytes);
        bytes.extend_from_slice(&checksum);
    }

    /// Reads the first part of a value.
    pub(super) fn decode(key: &Key, bytes: &[u8]) -> Result<Self, StoreError> {
        let corrupt = |what: &str| StoreError::corrupt(format!("the value of a key in Redis {what}"));
        let Some(&version) = bytes.first() else { return Err(corrupt("is empty")) };
        if version != VERSION {
            return Err(corrupt(&format!("has version {version}; this library knows version {VERSION}")));
        }
        let Some((body, checksum)) = bytes.get(..STATE_AT).and_then(|claim| claim.split_last_chunk::<4>()) else {
            return Err(corrupt(&format!("has only {} bytes", bytes.len())));
        };
        if *checksum != claim_checksum(key, body) {
            return Err(corrupt("does not match its checksum and its key"));
        }
        let fields = body[1..].split_first_chunk().and_then(|(owner, rest)| {
            let (fingerprint, attempt) = rest.split_first_chunk()?;
            Some((*owner, *fingerprint, *attempt.first_chunk()?))
        });
        let Some((owner, fingerprint, attempt)) = fields else { return Err(corrupt("is too short")) };
        Ok(Self {
            owner: Owner::from_bytes(owner),
            fingerprint: Fingerprint::from_bytes(fingerprint),
            attempt: Attempt::new(u64::from_be_bytes(attempt)),
        })
    }
}

impl Value {
    pub(super) fn encode(&self, key: &Key) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD_LEN + self.state.outcome().len());
        self.claim.append(key, &mut bytes);
        self.state.append(key, self.claim.owner, &mut bytes);
        bytes
    }

    /// Reads what a key holds. An outcome shares the bytes.
    pub(super) fn decode(key: &Key, bytes: Vec<u8>) -> Result<Self, StoreError> {
        let claim = Claim::decode(key, &bytes)?;
        let corrupt = || StoreError::corrupt("the state of a key in Redis does not match its checksum and its claim");
        if bytes.len() < HEAD_LEN {
            return Err(corrupt());
        }
        let bytes = Bytes::from(bytes);
        let (letter, mut rest) = (bytes[STATE_AT], bytes.slice(HEAD_LEN..));
        if matches!(letter, b'r' | b'h') && *rest == [WATCHED] {
            rest = Bytes::new();
        }
        if bytes[STATE_AT + 1..HEAD_LEN] != state_checksum(key, claim.owner, letter, &rest) {
            return Err(corrupt());
        }
        let state = match letter {
            b'c' => return Ok(Self { claim, state: Stored::Completed(SealedOutcome::from_stored(rest)) }),
            b'r' => Stored::InProgress(OnAbandoned::Rerun),
            b'h' => Stored::InProgress(OnAbandoned::Hold),
            b'i' => Stored::Indeterminate,
            b'w' => Stored::Withdrawn,
            _ => return Err(corrupt()),
        };
        if rest.is_empty() { Ok(Self { claim, state }) } else { Err(corrupt()) }
    }
}

/// For the fuzz targets: reads bytes as they are, and again with the version and the checksums that they ought to have,
/// which random bytes never do. What can be read must be written as the same bytes.
#[cfg(fuzzing)]
pub(crate) fn read_for_fuzzing(key: &Key, mut bytes: Vec<u8>) {
    let _ = Value::decode(key, bytes.clone());
    let Some(owner) = bytes.get(1..17).and_then(|owner| owner.first_chunk()) else { return };
    let owner = Owner::from_bytes(*owner);
    bytes[0] = VERSION;
    if let Some((body, checksum)) = bytes.get_mut(..STATE_AT).and_then(|claim| claim.split_last_chunk_mut::<4>()) {
        *checksum = claim_checksum(key, body);
    }
    let mut written = bytes.len();
    if let Some((head, outcome)) = bytes.split_at_mut_checked(HEAD_LEN) {
        let is_watched = matches!(head[STATE_AT], b'r' | b'h') && *outcome == [WATCHED];
        let outcome = if is_watched { &[] } else { &*outcome };
        written = HEAD_LEN + outcome.len();
        let checksum = state_checksum(key, owner, head[STATE_AT], outcome);
        head[STATE_AT + 1..].copy_from_slice(&checksum);
    }
    if let Ok(value) = Value::decode(key, bytes.clone()) {
        assert_eq!(value.encode(key), bytes[..written]);
    }
}

fn claim_checksum(key: &Key, body: &[u8]) -> [u8; 4] {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key.as_stored().as_bytes());
    hasher.update(&[0]);
    hasher.update(body);
    hasher.finalize().to_be_bytes()
}

fn state_checksum(key: &Key, owner: Owner, letter: u8, outcome: &[u8]) -> [u8; 4] {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key.as_stored().as_bytes());
    hasher.update(&[0, letter]);
    hasher.update(owner.as_bytes());
    hasher.update(outcome);
    hasher.finalize().to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(key: &Key) -> Vec<Value> {
        let claim = Claim { owner: Owner::random(), fingerprint: Fingerprint::of(b"asked"), attempt: Attempt::new(2) };
        [
            Stored::InProgress(OnAbandoned::Rerun),
            Stored::InProgress(OnAbandoned::Hold),
            Stored::Completed(SealedOutcome::of_value(key, &17).unwrap()),
            Stored::Completed(SealedOutcome::from_stored(Bytes::new())),
            Stored::Indeterminate,
            Stored::Withdrawn,
        ]
        .map(|state| Value { claim, state })
        .to_vec()
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let key = Key::new("s", "k").unwrap();
        for value in values(&key) {
            assert_eq!(Value::decode(&key, value.encode(&key)), Ok(value.clone()));
            // A script joins the claim that it finds to the state that it is sent.
            let joined = [&value.encode(&key)[..STATE_AT], &value.state.encode(&key, value.claim.owner)].concat();
            assert_eq!(joined, value.encode(&key));
        }
    }

    #[test]
    fn e13_every_flipped_bit_and_every_prefix_is_an_error() {
        let key = Key::new("s", "k").unwrap();
        for value in values(&key) {
            let mut encodings = vec![value.encode(&key)];
            if let Stored::InProgress(_) = value.state {
                encodings.push([&value.encode(&key)[..], &[WATCHED]].concat());
                assert_eq!(Value::decode(&key, encodings[1].clone()), Ok(value.clone()));
            }
            for bytes in encodings {
                for bit in 0..bytes.len() * 8 {
                    let mut flipped = bytes.clone();
                    flipped[bit / 8] ^= 1 << (bit % 8);
                    assert!(Value::decode(&key, flipped).is_err(), "bit {bit} of {value:?}");
                }
                for len in 0..bytes.len() {
                    let whole_again = len == HEAD_LEN && matches!(value.state, Stored::InProgress(_));
                    assert!(whole_again || Value::decode(&key, bytes[..len].to_vec()).is_err(), "{len} of {value:?}");
                }
            }
        }
    }

    #[test]
    fn e13_another_keys_value_and_another_claims_state_are_errors() {
        let (key, other) = (Key::new("s", "k").unwrap(), Key::new("s", "l").unwrap());
        let bytes = values(&key)[2].encode(&key);
        assert!(Value::decode(&other, bytes.clone()).is_err());
        let grafted = [&bytes[..STATE_AT], &values(&key)[2].state.encode(&key, Owner::random())].concat();
        assert!(Value::decode(&key, grafted).is_err());
    }

    #[test]
    fn no_time_to_live_overflows() {
        assert_eq!(millis(Duration::ZERO), 1);
        assert_eq!(millis(Duration::from_nanos(1_000_001)), 2);
        assert!(claim_millis(Duration::MAX, OnAbandoned::Hold) < i64::MAX as u64 / 2);
    }

    /// The figures that `PTTL` is read by: another release that takes others misreads what this one wrote.
    #[test]
    fn a_claim_lives_for_its_lease_and_a_window() {
        let lease = Duration::from_secs(30);
        assert_eq!(claim_millis(lease, OnAbandoned::Rerun), 30_000 + 24 * 60 * 60 * 1_000);
        assert_eq!(claim_millis(lease, OnAbandoned::Hold), 30_000 + 100 * 365 * 24 * 60 * 60 * 1_000);
    }
}
