//! The encoding of a record's value in Redis.
//!
//! ```text
//! 0   version
//! 1   owner
//! 17  fingerprint
//! 49  attempt, big-endian                 the claim: written when the key is claimed
//! 57  fencing token, big-endian
//! 65  CRC-32 of the key and all before
//! 69  state: r, h, m, c, i or w; R, H, M, C, I or F for a record that has steps
//! 70  CRC-32 of the key, owner, state and outcome
//! 74  the outcome of a completed record   the state: scripts put another in its place
//!     of any other state: nothing, or a mark
//! ```
//!
//! Redis can't compute a CRC, so each part has its own checksum: a script can join a claim, which the server has, to a
//! state, which the client sends. The value contains no time. The key's time to live is the record's time, and only the
//! server sets it: see [`window`].
//!
//! A mark begins with its sign: `!` if a caller waits for the claim's end, `#` if a [`Barrier`] stands, `$` for both. A
//! barrier follows its sign:
//!
//! ```text
//! 0   owner of the claim that was withdrawn last
//! 16  CRC-32 of the key and that owner
//! 20  how often a claim was withdrawn since the key was claimed: four digits,
//!     and four that add up to 9999 with them
//! ```
//!
//! Version 1 has no fencing token: the state begins at 61. A script of the claim's owner keeps the version; every claim
//! writes version 2.
//!
//! A capital letter says that the record has steps, in a separate key: see [`field`](super::field). Its checksum is
//! that of the small letter with every bit inverted. So a script can add steps to any state that the client sends, and
//! a damaged letter never passes for the other case. A version of this library without steps does not know the capital
//! letters and reports such a record as corrupt.

use std::time::Duration;

use bytes::Bytes;
use oncekey::backend::StoreError;
use oncekey::record::{ABANDONED_CLAIM_KEPT, Owner, SealedOutcome};
use oncekey::{Attempt, FencingToken, Fingerprint, Key, OnAbandoned};

const VERSION: u8 = 2;
/// A version without a fencing token.
const VERSION_1: u8 = 1;
/// The offset of the state, which is also the length of a claim.
const STATE_AT: usize = 69;
const STATE_AT_IN_VERSION_1: usize = 61;
/// The length of the state's letter and checksum.
const STATE_LEN: usize = 5;
/// The length of a value without an outcome or a mark.
const HEAD_LEN: usize = STATE_AT + STATE_LEN;

const WATCHED: u8 = b'!';
const BARRED: u8 = b'#';
const BARRED_AND_WATCHED: u8 = b'$';
/// The length of a barrier without its sign.
const BARRIER_LEN: usize = Owner::LEN + 4 + 8;

/// The longest time to live. Redis adds it to its clock, and the sum must not overflow.
pub(super) const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// Returns how much longer than its lease a claim's key lives. `PTTL` minus this is the remaining lease by the server's
/// clock, and a lapsed claim can still be found. A claim with `Hold` must not vanish: it waits until somebody resolves
/// it.
pub(super) const fn window(on_abandoned: OnAbandoned) -> Duration {
    match on_abandoned {
        OnAbandoned::Rerun | OnAbandoned::Resume => ABANDONED_CLAIM_KEPT,
        OnAbandoned::Hold => LONGEST,
    }
}

/// Converts a duration for `PX`: whole milliseconds, rounded up, at least one.
pub(super) fn millis(duration: Duration) -> u64 {
    let millis = duration.min(LONGEST).as_nanos().div_ceil(1_000_000);
    u64::try_from(millis).unwrap_or(u64::MAX).max(1)
}

/// Returns the time to live of a claim with a lease.
pub(super) fn claim_millis(lease: Duration, on_abandoned: OnAbandoned) -> u64 {
    millis(lease) + millis(window(on_abandoned))
}

/// Returns the state's letter, which is all that a count needs; `None` if the value is too short or of an unknown
/// version.
pub(super) fn letter(head: &[u8]) -> Option<u8> {
    head.get(state_at(*head.first()?)?).copied()
}

/// The number of bytes that [`letter`] needs.
pub(super) const LETTER_LEN: usize = STATE_AT + 1;

fn state_at(version: u8) -> Option<usize> {
    match version {
        VERSION => Some(STATE_AT),
        VERSION_1 => Some(STATE_AT_IN_VERSION_1),
        _ => None,
    }
}

/// The value of a record's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Value {
    pub(super) claim: Claim,
    /// Whether there are steps, in a separate key.
    pub(super) has_steps: bool,
    /// Always `None` for a completed record: its time to live does the barrier's work.
    pub(super) barrier: Option<Barrier>,
    pub(super) state: Stored,
}

/// A value, and the bytes from which it was read.
#[derive(Debug)]
pub(super) struct Met {
    pub(super) value: Value,
    pub(super) bytes: Vec<u8>,
}

impl Met {
    pub(super) fn read(key: &Key, bytes: Vec<u8>) -> Result<Self, StoreError> {
        Ok(Self { value: Value::decode(key, bytes.clone())?, bytes })
    }
}

/// The claim: the owner, the fingerprint, the attempt and the fencing token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) owner: Owner,
    pub(super) fingerprint: Fingerprint,
    pub(super) attempt: Attempt,
    pub(super) token: FencingToken,
}

/// Keeps the key while a command of a withdrawn claim may still arrive: see [`script`](super::script).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Barrier {
    /// The owner of the claim that was withdrawn last.
    pub(super) withdrawn: Owner,
    /// Changes the value with each withdrawal, so that no takeover that read an earlier value can land.
    pub(super) count: u16,
}

/// The state of a record as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stored {
    InProgress(OnAbandoned),
    Completed(SealedOutcome),
    Indeterminate,
    /// The key is free for the same request, which finds the record's steps. There is always at least one.
    Released,
    /// The key is free. The tombstone keeps the fencing token and any barrier.
    Withdrawn,
}

impl Stored {
    fn letter(&self) -> u8 {
        match self {
            Self::InProgress(OnAbandoned::Rerun) => b'r',
            Self::InProgress(OnAbandoned::Hold) => b'h',
            Self::InProgress(OnAbandoned::Resume) => b'm',
            Self::Completed(_) => b'c',
            Self::Indeterminate => b'i',
            Self::Released => b'f',
            Self::Withdrawn => b'w',
        }
    }

    fn outcome(&self) -> &[u8] {
        match self {
            Self::Completed(outcome) => outcome.as_stored(),
            _ => &[],
        }
    }

    /// Encodes the second part of a value, for a claim of `owner`.
    pub(super) fn encode(&self, key: &Key, owner: Owner) -> Vec<u8> {
        let outcome = self.outcome();
        let mut bytes = Vec::with_capacity(STATE_LEN + outcome.len());
        self.append(key, owner, false, &mut bytes);
        bytes
    }

    fn append(&self, key: &Key, owner: Owner, has_steps: bool, bytes: &mut Vec<u8>) {
        let (letter, outcome) = (self.letter(), self.outcome());
        let state_at = bytes.len();
        bytes.push(letter);
        bytes.extend_from_slice(&state_checksum(key, owner, letter, outcome));
        if has_steps {
            turn_over(&mut bytes[state_at..]);
        }
        bytes.extend_from_slice(outcome);
    }
}

/// Switches a state between "with steps" and "without steps": inverts the letter's case and the checksum.
fn turn_over(state: &mut [u8]) {
    let Some((letter, checksum)) = state.split_first_mut() else { return };
    *letter ^= b'a' ^ b'A';
    checksum.iter_mut().for_each(|byte| *byte = !*byte);
}

/// Returns the value with its state changed to "with steps". Leaves anything else unchanged.
pub(super) fn with_steps(mut bytes: Vec<u8>) -> Vec<u8> {
    let state_at = bytes.first().copied().and_then(state_at);
    let state = state_at.and_then(|at| bytes.get_mut(at..at + STATE_LEN));
    if let Some(state) = state
        && state[0].is_ascii_lowercase()
    {
        turn_over(state);
    }
    bytes
}

/// Returns whether a caller waits for the end of the claim in a value.
pub(super) fn is_watched(bytes: &[u8]) -> bool {
    let state_at = bytes.first().copied().and_then(state_at).unwrap_or(bytes.len());
    let is_claim = bytes.get(state_at).is_some_and(|letter| matches!(letter.to_ascii_lowercase(), b'r' | b'h' | b'm'));
    is_claim && matches!(bytes.get(state_at + STATE_LEN), Some(&(WATCHED | BARRED_AND_WATCHED)))
}

/// Returns the value of a claim with the mark of a waiting caller.
pub(super) fn watched(mut bytes: Vec<u8>) -> Vec<u8> {
    match bytes.get_mut(HEAD_LEN) {
        None => bytes.push(WATCHED),
        Some(sign) => *sign = BARRED_AND_WATCHED,
    }
    bytes
}

/// Returns the first bytes of the value of a claim of `owner`.
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
        bytes.extend_from_slice(&self.token.get().to_be_bytes());
        let checksum = claim_checksum(key, bytes);
        bytes.extend_from_slice(&checksum);
    }

    /// Parses the first part of a value.
    pub(super) fn decode(key: &Key, bytes: &[u8]) -> Result<Self, StoreError> {
        let corrupt = |what: &str| StoreError::corrupt(format!("the value of a key in Redis {what}"));
        let Some(&version) = bytes.first() else { return Err(corrupt("is empty")) };
        let Some(state_at) = state_at(version) else {
            let known = format!("has version {version}; this library knows versions up to {VERSION}");
            return Err(corrupt(&known));
        };
        let Some((body, checksum)) = bytes.get(..state_at).and_then(|claim| claim.split_last_chunk::<4>()) else {
            return Err(corrupt(&format!("has only {} bytes", bytes.len())));
        };
        if *checksum != claim_checksum(key, body) {
            return Err(corrupt("does not match its checksum and its key"));
        }
        let fields = body[1..].split_first_chunk().and_then(|(owner, rest)| {
            let (fingerprint, rest) = rest.split_first_chunk()?;
            let (attempt, token) = rest.split_first_chunk()?;
            let token = if version == VERSION_1 { 0 } else { u64::from_be_bytes(*token.first_chunk()?) };
            Some((*owner, *fingerprint, *attempt, token))
        });
        let Some((owner, fingerprint, attempt, token)) = fields else { return Err(corrupt("is too short")) };
        Ok(Self {
            owner: Owner::from_bytes(owner),
            fingerprint: Fingerprint::from_bytes(fingerprint),
            attempt: Attempt::new(u64::from_be_bytes(attempt)),
            token: FencingToken::new(token),
        })
    }
}

impl Barrier {
    /// Returns a claim's first barrier.
    pub(super) fn of(withdrawn: Owner) -> Self {
        Self { withdrawn, count: 0 }
    }

    /// Returns the bytes between the sign and the count. A script can't compute these by itself.
    pub(super) fn names(key: &Key, withdrawn: Owner) -> [u8; 20] {
        let mut bytes = [0; 20];
        bytes[..Owner::LEN].copy_from_slice(withdrawn.as_bytes());
        bytes[Owner::LEN..].copy_from_slice(&barrier_checksum(key, withdrawn));
        bytes
    }

    fn append(&self, key: &Key, bytes: &mut Vec<u8>) {
        bytes.push(BARRED);
        bytes.extend_from_slice(&Self::names(key, self.withdrawn));
        let count = self.count % 10_000;
        bytes.extend_from_slice(format!("{count:04}{:04}", 9_999 - count).as_bytes());
    }

    fn decode(key: &Key, bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; BARRIER_LEN] = bytes.try_into().ok()?;
        let (owner, rest) = bytes.split_first_chunk()?;
        let (checksum, digits) = rest.split_first_chunk::<4>()?;
        let withdrawn = Owner::from_bytes(*owner);
        let number = |digits: &[u8]| {
            digits
                .iter()
                .try_fold(0, |number: u16, digit| digit.is_ascii_digit().then(|| number * 10 + u16::from(digit - b'0')))
        };
        let (count, rest) = (number(&digits[..4])?, number(&digits[4..])?);
        let is_whole = *checksum == barrier_checksum(key, withdrawn) && count + rest == 9_999;
        is_whole.then_some(Self { withdrawn, count })
    }
}

impl Value {
    pub(super) fn encode(&self, key: &Key) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD_LEN + 1 + BARRIER_LEN + self.state.outcome().len());
        self.claim.append(key, &mut bytes);
        self.state.append(key, self.claim.owner, self.has_steps, &mut bytes);
        if let Some(barrier) = self.barrier {
            barrier.append(key, &mut bytes);
        }
        bytes
    }

    /// Parses the value of a key. An outcome shares the bytes.
    pub(super) fn decode(key: &Key, bytes: Vec<u8>) -> Result<Self, StoreError> {
        let claim = Claim::decode(key, &bytes)?;
        let corrupt = || StoreError::corrupt("the state of a key in Redis does not match its checksum and its claim");
        let state_at = bytes.first().copied().and_then(state_at).ok_or_else(corrupt)?;
        if bytes.len() < state_at + STATE_LEN {
            return Err(corrupt());
        }
        let bytes = Bytes::from(bytes);
        let (letter, rest) = (bytes[state_at].to_ascii_lowercase(), bytes.slice(state_at + STATE_LEN..));
        let has_steps = letter != bytes[state_at];
        let (outcome, mark) = if letter == b'c' { (rest, Bytes::new()) } else { (Bytes::new(), rest) };
        let mut checksum = state_checksum(key, claim.owner, letter, &outcome);
        if has_steps {
            checksum = checksum.map(|byte| !byte);
        }
        if bytes[state_at + 1..state_at + STATE_LEN] != checksum {
            return Err(corrupt());
        }
        let state = match letter {
            b'c' => Stored::Completed(SealedOutcome::from_stored(outcome)),
            b'r' => Stored::InProgress(OnAbandoned::Rerun),
            b'h' => Stored::InProgress(OnAbandoned::Hold),
            b'm' => Stored::InProgress(OnAbandoned::Resume),
            b'i' => Stored::Indeterminate,
            b'f' if has_steps => Stored::Released,
            b'w' if !has_steps => Stored::Withdrawn,
            _ => return Err(corrupt()),
        };
        let is_claim = matches!(state, Stored::InProgress(_));
        let barrier = match mark.split_first() {
            None => None,
            Some((&WATCHED, [])) if is_claim => None,
            Some((&BARRED, barrier)) => Some(Barrier::decode(key, barrier).ok_or_else(corrupt)?),
            Some((&BARRED_AND_WATCHED, barrier)) if is_claim => {
                Some(Barrier::decode(key, barrier).ok_or_else(corrupt)?)
            }
            Some(_) => return Err(corrupt()),
        };
        Ok(Self { claim, has_steps, barrier, state })
    }
}

/// For the fuzz targets: parses bytes as they are, and again with the correct version and checksums, which random bytes
/// never have. Whatever parses as the newest version must encode to the same bytes.
#[cfg(fuzzing)]
pub(crate) fn read_for_fuzzing(key: &Key, mut bytes: Vec<u8>) {
    let _ = Value::decode(key, bytes.clone());
    let Some(owner) = bytes.get(1..17).and_then(|owner| owner.first_chunk()) else { return };
    let owner = Owner::from_bytes(*owner);
    bytes[0] = if bytes[0] == VERSION_1 { VERSION_1 } else { VERSION };
    let Some(state_at) = state_at(bytes[0]) else { return };
    if let Some((body, checksum)) = bytes.get_mut(..state_at).and_then(|claim| claim.split_last_chunk_mut::<4>()) {
        *checksum = claim_checksum(key, body);
    }
    let mut written = bytes.clone();
    if let Some((head, rest)) = bytes.split_at_mut_checked(state_at + STATE_LEN) {
        let letter = head[state_at].to_ascii_lowercase();
        if letter != b'c'
            && let Some((sign, barrier)) = rest.split_first_mut()
            && let Some((withdrawn, more)) = barrier.split_first_chunk_mut()
            && let Some((checksum, _)) = more.split_first_chunk_mut::<4>()
        {
            *checksum = barrier_checksum(key, Owner::from_bytes(*withdrawn));
            // The mark of a waiting caller is not parsed, so it is not encoded either.
            written = [head.as_ref(), &[if *sign == BARRED_AND_WATCHED { BARRED } else { *sign }], barrier].concat();
        } else if letter != b'c' && *rest == [WATCHED] {
            written.truncate(state_at + STATE_LEN);
        }
        let outcome = if letter == b'c' { &*rest } else { &[] };
        let mut checksum = state_checksum(key, owner, letter, outcome);
        if letter != head[state_at] {
            checksum = checksum.map(|byte| !byte);
        }
        head[state_at + 1..].copy_from_slice(&checksum);
        written[state_at + 1..state_at + STATE_LEN].copy_from_slice(&checksum);
    }
    if let Ok(value) = Value::decode(key, bytes.clone())
        && bytes[0] == VERSION
    {
        assert_eq!(value.encode(key), written);
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

fn barrier_checksum(key: &Key, withdrawn: Owner) -> [u8; 4] {
    state_checksum(key, withdrawn, BARRED, &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(key: &Key) -> Vec<Value> {
        let claim = Claim {
            owner: Owner::random(),
            fingerprint: Fingerprint::of(b"asked"),
            attempt: Attempt::new(2),
            token: FencingToken::new(1_700_000_000_000_017),
        };
        let states = [
            Stored::InProgress(OnAbandoned::Rerun),
            Stored::InProgress(OnAbandoned::Hold),
            Stored::InProgress(OnAbandoned::Resume),
            Stored::Completed(SealedOutcome::of_value(key, &17).unwrap()),
            Stored::Completed(SealedOutcome::from_stored(Bytes::new())),
            Stored::Indeterminate,
            Stored::Withdrawn,
        ];
        let barrier = Barrier { withdrawn: Owner::random(), count: 1_208 };
        let value = |barrier, has_steps, state: &Stored| Value { claim, has_steps, barrier, state: state.clone() };
        let barred = [0, 1, 2, 5, 6].map(|state: usize| value(Some(barrier), false, &states[state]));
        let alone = states.iter().map(|state| value(None, false, state));
        let with_steps = states[..6].iter().chain([&Stored::Released]);
        let families = with_steps.flat_map(|state| {
            let may_be_barred = !matches!(state, Stored::Completed(_));
            [Some(None), may_be_barred.then_some(Some(barrier))]
                .into_iter()
                .flatten()
                .map(move |barrier| value(barrier, true, state))
        });
        alone.chain(barred).chain(families).collect()
    }

    /// Adds the mark that a script writes when a caller waits.
    fn watched(value: &Value, mut bytes: Vec<u8>) -> Option<Vec<u8>> {
        let Stored::InProgress(_) = value.state else { return None };
        match value.barrier {
            None => bytes.push(WATCHED),
            Some(_) => {
                let sign = bytes.len() - BARRIER_LEN - 1;
                bytes[sign] = BARRED_AND_WATCHED;
            }
        }
        Some(bytes)
    }

    /// A letter changed to the other case is a valid state in neither form.
    #[test]
    fn e13_a_record_without_steps_is_none_with_steps() {
        let key = Key::new("s", "k").unwrap();
        for value in values(&key) {
            let bytes = value.encode(&key);
            let mut other = bytes.clone();
            other[STATE_AT] ^= 0x20;
            assert!(Value::decode(&key, other).is_err(), "{value:?}");
            if !matches!(value.state, Stored::Withdrawn | Stored::Released) {
                let turned = Value { has_steps: true, ..value.clone() };
                assert_eq!(Value::decode(&key, with_steps(bytes.clone())), Ok(turned.clone()));
                assert_eq!(with_steps(bytes.clone()), turned.encode(&key));
            }
            assert!(!is_watched(&bytes));
            if let Some(marked) = watched(&value, bytes.clone()) {
                assert!(is_watched(&marked));
                assert_eq!(super::watched(bytes), marked);
            }
        }
    }

    /// Encodes a value as version 1 did.
    fn in_version_1(key: &Key, value: &Value) -> Vec<u8> {
        let mut bytes = vec![VERSION_1];
        bytes.extend_from_slice(value.claim.owner.as_bytes());
        bytes.extend_from_slice(value.claim.fingerprint.as_bytes());
        bytes.extend_from_slice(&value.claim.attempt.get().to_be_bytes());
        let checksum = claim_checksum(key, &bytes);
        bytes.extend_from_slice(&checksum);
        bytes.extend_from_slice(&value.encode(key)[STATE_AT..]);
        bytes
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let key = Key::new("s", "k").unwrap();
        for value in values(&key) {
            assert_eq!(Value::decode(&key, value.encode(&key)), Ok(value.clone()));
            // A script joins the claim that it finds to the state that it receives.
            let state = value.state.encode(&key, value.claim.owner);
            let joined = [&value.encode(&key)[..STATE_AT], &state].concat();
            let joined = if value.has_steps { with_steps(joined) } else { joined };
            assert!(value.encode(&key).starts_with(&joined));
            assert_eq!(letter(&value.encode(&key)[..LETTER_LEN]), Some(joined[STATE_AT]));
        }
    }

    #[test]
    fn version_1_is_read_with_the_lowest_token() {
        let key = Key::new("s", "k").unwrap();
        for value in values(&key) {
            let bytes = in_version_1(&key, &value);
            let claim = Claim { token: FencingToken::ZERO, ..value.claim };
            let read = Value { claim, ..value.clone() };
            assert_eq!(Value::decode(&key, bytes.clone()), Ok(read.clone()));
            assert_eq!(letter(&bytes[..bytes.len().min(LETTER_LEN)]), Some(value.encode(&key)[STATE_AT]));
            if let Some(bytes) = watched(&value, bytes) {
                assert_eq!(Value::decode(&key, bytes), Ok(read));
            }
        }
    }

    #[test]
    fn e13_every_flipped_bit_and_every_prefix_is_an_error() {
        let key = Key::new("s", "k").unwrap();
        for value in values(&key) {
            let old = in_version_1(&key, &value);
            let mut encodings = vec![(value.clone(), value.encode(&key), HEAD_LEN)];
            let read = Value { claim: Claim { token: FencingToken::ZERO, ..value.claim }, ..value.clone() };
            encodings.push((read, old, STATE_AT_IN_VERSION_1 + STATE_LEN));
            for (value, bytes, head) in encodings.clone() {
                encodings.extend(watched(&value, bytes).map(|bytes| (value, bytes, head)));
            }
            for (value, bytes, head) in encodings {
                assert_eq!(Value::decode(&key, bytes.clone()), Ok(value.clone()));
                for bit in 0..bytes.len() * 8 {
                    let mut flipped = bytes.clone();
                    flipped[bit / 8] ^= 1 << (bit % 8);
                    assert!(Value::decode(&key, flipped).is_err(), "bit {bit} of {value:?}");
                }
                for len in 0..bytes.len() {
                    // A value without its mark is complete.
                    let whole_again = len == head && !matches!(value.state, Stored::Completed(_));
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
        // A barrier of another key.
        let (held, foreign) = (values(&key)[1].encode(&key), values(&other)[7].encode(&other));
        assert!(Value::decode(&key, [&held[..], &foreign[HEAD_LEN..]].concat()).is_err());
    }

    #[test]
    fn no_time_to_live_overflows() {
        assert_eq!(millis(Duration::ZERO), 1);
        assert_eq!(millis(Duration::from_nanos(1_000_001)), 2);
        assert!(claim_millis(Duration::MAX, OnAbandoned::Hold) < i64::MAX as u64 / 2);
    }

    /// `PTTL` is read with these numbers. A release with other numbers misreads what this one wrote.
    #[test]
    fn a_claim_lives_for_its_lease_and_a_window() {
        let lease = Duration::from_secs(30);
        assert_eq!(claim_millis(lease, OnAbandoned::Rerun), 30_000 + 24 * 60 * 60 * 1_000);
        assert_eq!(claim_millis(lease, OnAbandoned::Hold), 30_000 + 100 * 365 * 24 * 60 * 60 * 1_000);
    }
}
