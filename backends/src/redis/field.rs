//! The encoding of a record's steps: a hash in its own Redis key, in the record's [slot](super::slot).
//!
//! Each step is a field with the step's name. The field named by a zero byte, which no step's name contains, holds the
//! data that all steps share: the family. All numbers are big-endian.
//!
//! ```text
//! the family:                                      a step:
//! 0   version                                      0   version
//! 1   the parent's life: a fencing token           1   progress: b, c or f
//! 9   retention, in milliseconds                   2   attempt
//! 17  how many steps may be unsettled              10  run: the fencing token
//! 19  how often something was written              18  run: the number
//! 23  checksum                                     22  began first, in milliseconds since 1970
//!                                                  30  may be run again until then; all bits set for never
//!                                                  38  its place in the order in which the steps began first
//!                                                  40  0, or 1 and the fingerprint
//!                                                  41  (73) checksum
//!                                                  57  (89) the outcome of a completed step
//! ```
//!
//! The checksum is the beginning of a SHA-1 in hexadecimal digits, which scripts can compute. It covers the record's
//! key, the life, the step's name and all other fields. So data of another key, life or name counts as corrupt.
//!
//! The record's own value says whether it has steps, so data of an earlier life is never read: the first step of a life
//! deletes it. The hash lives as long as its record, plus one second.

use oncekey::backend::StoreError;
use oncekey::record::{Progress, SealedOutcome, StepName, StepRecord, StepRun, StoreTime};
use oncekey::{Attempt, FencingToken, Fingerprint};
use sha1_smol::Sha1;

/// The field of the family.
pub(super) const FAMILY: &[u8] = &[0];
const VERSION: u8 = 1;
const CHECKSUM_LEN: usize = 16;
const FAMILY_LEN: usize = 23;
const FINGERPRINT_AT: usize = 40;
const BEGUN: u8 = b'b';
const COMPLETED: u8 = b'c';
const FAILED: u8 = b'f';

/// The data that all steps of a record share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Family {
    pub(super) life: FencingToken,
    /// In milliseconds, as stored.
    pub(super) retention: u64,
    /// How many steps are or may become unsettled. The record does not expire while there are any.
    pub(super) open: u16,
    /// Rises with each write, so that a write lands only on the data on which it was decided.
    pub(super) changes: u32,
}

impl Family {
    pub(super) fn encode(&self, parent: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FAMILY_LEN + CHECKSUM_LEN);
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.life.get().to_be_bytes());
        bytes.extend_from_slice(&self.retention.to_be_bytes());
        bytes.extend_from_slice(&self.open.to_be_bytes());
        bytes.extend_from_slice(&self.changes.to_be_bytes());
        let checksum = checksum(parent, self.life, b"", &[&bytes]);
        bytes.extend_from_slice(checksum.as_bytes());
        bytes
    }

    pub(super) fn decode(parent: &[u8], bytes: &[u8]) -> Result<Self, StoreError> {
        let mut rest = Fields(bytes);
        let read = (|| {
            let [VERSION] = rest.take()? else { return None };
            Some(Self {
                life: FencingToken::new(u64::from_be_bytes(rest.take()?)),
                retention: u64::from_be_bytes(rest.take()?),
                open: u16::from_be_bytes(rest.take()?),
                changes: u32::from_be_bytes(rest.take()?),
            })
        })();
        let is_whole = |family: &Self| rest.0 == checksum(parent, family.life, b"", &[&bytes[..FAMILY_LEN]]).as_bytes();
        read.filter(is_whole).ok_or_else(corrupt)
    }
}

/// A step, and its position among its siblings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) place: u16,
    pub(super) step: StepRecord,
}

impl Kept {
    pub(super) fn encode(&self, parent: &[u8], life: FencingToken) -> Vec<u8> {
        let Self { place, step } = self;
        let (letter, outcome) = match &step.progress {
            Progress::Begun => (BEGUN, &[][..]),
            Progress::Completed(outcome) => (COMPLETED, &outcome.as_stored()[..]),
            Progress::Failed => (FAILED, &[][..]),
        };
        let mut bytes = Vec::with_capacity(FINGERPRINT_AT + 33 + CHECKSUM_LEN + outcome.len());
        bytes.extend_from_slice(&[VERSION, letter]);
        bytes.extend_from_slice(&step.attempt.get().to_be_bytes());
        bytes.extend_from_slice(&step.run.token.get().to_be_bytes());
        bytes.extend_from_slice(&step.run.number.to_be_bytes());
        bytes.extend_from_slice(&step.began_at.as_millis().to_be_bytes());
        bytes.extend_from_slice(&until(step.reruns_until));
        bytes.extend_from_slice(&place.to_be_bytes());
        bytes.extend_from_slice(&asked(step.fingerprint));
        let checksum = checksum(parent, life, step.name.as_str().as_bytes(), &[&bytes, outcome]);
        bytes.extend_from_slice(checksum.as_bytes());
        bytes.extend_from_slice(outcome);
        bytes
    }

    pub(super) fn decode(parent: &[u8], life: FencingToken, name: &[u8], bytes: &[u8]) -> Result<Self, StoreError> {
        Self::read(parent, life, name, bytes).ok_or_else(corrupt)
    }

    fn read(parent: &[u8], life: FencingToken, name: &[u8], bytes: &[u8]) -> Option<Self> {
        let mut rest = Fields(bytes);
        let [VERSION, letter] = rest.take()? else { return None };
        let attempt = Attempt::new(u64::from_be_bytes(rest.take()?));
        let token = FencingToken::new(u64::from_be_bytes(rest.take()?));
        let run = StepRun { token, number: u32::from_be_bytes(rest.take()?) };
        let began_at = StoreTime::from_millis(u64::from_be_bytes(rest.take()?));
        let reruns_until = match rest.take()? {
            NEVER => None,
            millis => Some(StoreTime::from_millis(u64::from_be_bytes(millis))),
        };
        let place = u16::from_be_bytes(rest.take()?);
        let fingerprint = match rest.take()? {
            [0] => None,
            [1] => Some(Fingerprint::from_bytes(rest.take()?)),
            [_] => return None,
        };
        let head = &bytes[..bytes.len() - rest.0.len()];
        let found: [u8; CHECKSUM_LEN] = rest.take()?;
        let outcome = rest.0;
        if found != *checksum(parent, life, name, &[head, outcome]).as_bytes() {
            return None;
        }
        let progress = match letter {
            BEGUN if outcome.is_empty() => Progress::Begun,
            COMPLETED => Progress::Completed(SealedOutcome::from_stored(outcome.to_vec().into())),
            FAILED if outcome.is_empty() => Progress::Failed,
            _ => return None,
        };
        let name = StepName::from_stored(std::str::from_utf8(name).ok()?).ok()?;
        Some(Self { place, step: StepRecord { name, fingerprint, attempt, run, began_at, reruns_until, progress } })
    }

    /// Returns whether the step is unsettled or may become so when time passes.
    pub(super) fn is_open(&self) -> bool {
        self.step.progress == Progress::Begun && self.step.reruns_until.is_none_or(|until| until < StoreTime::END)
    }
}

/// Stands for "never".
const NEVER: [u8; 8] = [u8::MAX; 8];

/// Encodes the time until which a step may run again.
pub(super) fn until(time: Option<StoreTime>) -> [u8; 8] {
    time.map_or(NEVER, |time| time.as_millis().to_be_bytes())
}

/// Encodes a step's fingerprint.
pub(super) fn asked(fingerprint: Option<Fingerprint>) -> Vec<u8> {
    match fingerprint {
        None => vec![0],
        Some(fingerprint) => [&[1], fingerprint.as_bytes().as_slice()].concat(),
    }
}

/// Computes a checksum. `parent` is the name of the record's key in Redis.
fn checksum(parent: &[u8], life: FencingToken, name: &[u8], parts: &[&[u8]]) -> String {
    let mut hasher = Sha1::new();
    for part in [parent, &[0], &life.get().to_be_bytes(), name, &[0]] {
        hasher.update(part);
    }
    parts.iter().for_each(|part| hasher.update(part));
    let mut digest = hasher.digest().to_string();
    digest.truncate(CHECKSUM_LEN);
    digest
}

pub(super) fn corrupt() -> StoreError {
    StoreError::corrupt(
        "the steps of a key in Redis are missing, or do not match their checksums, their key and its life",
    )
}

/// The bytes that are still to be parsed.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const LEN: usize>(&mut self) -> Option<[u8; LEN]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &[u8] = b"oncekey:1:s:k";
    const LIFE: FencingToken = FencingToken::new(1_700_000_000_000_017);

    fn steps() -> Vec<Kept> {
        let progress = [
            Progress::Begun,
            Progress::Failed,
            Progress::Completed(SealedOutcome::from_stored(b"an outcome".as_slice().into())),
            Progress::Completed(SealedOutcome::from_stored(b"".as_slice().into())),
        ];
        let fingerprints = [None, Some(Fingerprint::of(b"asked"))];
        let times = [None, Some(StoreTime::from_millis(17)), Some(StoreTime::END)];
        let mut steps = Vec::new();
        for progress in progress {
            for (fingerprint, reruns_until) in fingerprints.iter().flat_map(|one| times.map(|time| (*one, time))) {
                let step = StepRecord {
                    name: StepName::new("charge").unwrap(),
                    fingerprint,
                    attempt: Attempt::new(2),
                    run: StepRun { token: LIFE, number: 3 },
                    began_at: StoreTime::from_millis(1_700_000_000_000),
                    reruns_until,
                    progress: progress.clone(),
                };
                steps.push(Kept { place: 258, step });
            }
        }
        steps
    }

    #[test]
    fn e13_every_flipped_bit_and_every_prefix_of_a_step_is_an_error() {
        for kept in steps() {
            let bytes = kept.encode(PARENT, LIFE);
            let read = |bytes: &[u8]| Kept::decode(PARENT, LIFE, b"charge", bytes);
            assert_eq!(read(&bytes), Ok(kept.clone()));
            for bit in 0..bytes.len() * 8 {
                let mut flipped = bytes.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert!(read(&flipped).is_err(), "bit {bit} of {kept:?}");
            }
            assert!((0..bytes.len()).all(|len| read(&bytes[..len]).is_err()), "{kept:?}");
        }
    }

    #[test]
    fn e13_a_step_of_another_key_life_or_name_is_an_error() {
        let bytes = steps()[0].encode(PARENT, LIFE);
        assert!(Kept::decode(b"oncekey:1:s:l", LIFE, b"charge", &bytes).is_err());
        assert!(Kept::decode(PARENT, FencingToken::new(17), b"charge", &bytes).is_err());
        assert!(Kept::decode(PARENT, LIFE, b"refund", &bytes).is_err());
    }

    #[test]
    fn e13_every_flipped_bit_of_a_family_is_an_error() {
        let family = Family { life: LIFE, retention: 86_400_000, open: 1, changes: 17 };
        let bytes = family.encode(PARENT);
        assert_eq!(Family::decode(PARENT, &bytes), Ok(family));
        assert!(Family::decode(b"oncekey:1:s:l", &bytes).is_err());
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Family::decode(PARENT, &flipped).is_err(), "bit {bit}");
        }
        assert!((0..bytes.len()).all(|len| Family::decode(PARENT, &bytes[..len]).is_err()));
    }

    #[test]
    fn e26_a_step_is_open_while_time_can_make_it_unsettled() {
        for kept in steps() {
            let until = kept.step.reruns_until;
            let is_open = kept.step.progress == Progress::Begun && until != Some(StoreTime::END);
            assert_eq!(kept.is_open(), is_open, "{kept:?}");
        }
    }
}
