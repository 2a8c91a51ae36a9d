//! The name of the Redis key that holds a record's steps.
//!
//! It starts with the name of the record's own key, so access rights by key prefix cover both. A zero byte follows,
//! which no record's name contains, so a scan can tell them apart. A script touches both keys, so in a cluster both
//! must be in one slot, whatever braces the caller's key or the store's prefix contains. Redis hashes the part between
//! the first `{` and the next `}`, or the whole name if there is no such pair or nothing between the braces. So:
//!
//! | the record's name | the name of its steps | what is hashed |
//! |---|---|---|
//! | has a tag: `a{b}c` | `a{b}c␀steps` | the same tag |
//! | has no `{` | `abc␀steps{….}` | four digits that hash to the slot |
//! | its `{` is not closed: `a{b` | `a{b␀steps….}` | from the `{` on, with four digits that make up for the rest |
//! | its `{` is closed at once: `a{}{b}` | `a{}{b}␀steps….` | the whole name, with four such digits |
//!
//! The digits come from a table. CRC-16 is linear, so one table serves all prefixes.

use std::sync::LazyLock;

use crc16::{State, XMODEM};

/// A byte that no record's name contains.
const MARK: u8 = 0;
const SUFFIX: &[u8] = b"\0steps";
const SLOTS: usize = 16_384;

/// Returns the name of the key for the steps of the record whose key is `parent`.
pub(super) fn steps_of(parent: &[u8]) -> Vec<u8> {
    let mut name = Vec::with_capacity(parent.len() + SUFFIX.len() + 6);
    name.extend_from_slice(parent);
    name.extend_from_slice(SUFFIX);
    let open = parent.iter().position(|byte| *byte == b'{');
    let (hashed_from, is_closed) = match open {
        Some(open) => match parent[open + 1..].iter().position(|byte| *byte == b'}') {
            Some(0) => (0, true),
            Some(_) => return name,
            None => (open + 1, false),
        },
        None => {
            name.push(b'{');
            (name.len(), false)
        }
    };
    let digits = digits_after(&name[hashed_from..], slot(parent));
    name.extend_from_slice(&digits);
    if !is_closed {
        name.push(b'}');
    }
    name
}

/// Returns whether a key holds steps. `name` is the key's name without the store's prefix.
pub(super) fn is_steps(name: &[u8]) -> bool {
    name.contains(&MARK)
}

type Digits = [u8; 4];

/// The digits for every remainder.
static TABLE: LazyLock<Box<[Digits]>> = LazyLock::new(|| {
    let digits = || b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz".iter().copied();
    let mut table = vec![None; SLOTS];
    let mut left = SLOTS;
    let all = digits().flat_map(|a| digits().flat_map(move |b| digits().map(move |c| (a, b, c))));
    for found in all.flat_map(|(a, b, c)| digits().map(move |d| [a, b, c, d])) {
        let entry = &mut table[remainder(&found)];
        if entry.is_none() {
            *entry = Some(found);
            left -= 1;
            if left == 0 {
                break;
            }
        }
    }
    // Every remainder has digits: a test checks it.
    table.into_iter().map(Option::unwrap_or_default).collect()
});

/// Returns the digits that make a text that starts with `lead` hash to `slot`.
fn digits_after(lead: &[u8], slot: usize) -> Digits {
    let zeros = [lead, &[0; size_of::<Digits>()]].concat();
    TABLE[remainder(&zeros) ^ slot]
}

fn remainder(text: &[u8]) -> usize {
    usize::from(State::<XMODEM>::calculate(text)) % SLOTS
}

/// Returns the slot of a key, by the rule of Redis Cluster.
fn slot(name: &[u8]) -> usize {
    let tag = name.iter().position(|byte| *byte == b'{').and_then(|open| {
        let rest = &name[open + 1..];
        let len = rest.iter().position(|byte| *byte == b'}')?;
        (len > 0).then_some(&rest[..len])
    });
    remainder(tag.unwrap_or(name))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Values from Redis's own specification.
    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!(State::<XMODEM>::calculate(b"123456789"), 0x31C3);
        assert_eq!(slot(b"{user1000}.following"), slot(b"{user1000}.followers"));
        assert_eq!(slot(b"foo{}{bar}"), remainder(b"foo{}{bar}"));
        assert_eq!(slot(b"foo{{bar}}zap"), remainder(b"{bar"));
        assert_eq!(slot(b"foo{bar}{zap}"), remainder(b"bar"));
        assert_eq!(slot(b"foo{bar"), remainder(b"foo{bar"));
    }

    #[test]
    fn every_remainder_has_digits() {
        assert!(TABLE.iter().enumerate().all(|(remaining, digits)| remainder(digits) == remaining));
        assert_eq!(TABLE.iter().collect::<HashSet<_>>().len(), SLOTS);
    }

    /// Covers every text of up to six braces and letters, with prefixes with and without braces.
    #[test]
    fn e26_steps_are_in_the_slot_of_their_parent() {
        let prefixes = ["", "oncekey:", "{shop}:", "a{b", "a}b", "{}", "x{}y{z}:", "{{", "}{"];
        let mut names = HashSet::new();
        for prefix in prefixes {
            for number in 0..4_usize.pow(6) {
                let mut number = number;
                let mut text = Vec::with_capacity(6);
                while number > 0 {
                    text.push(b"a{}b"[number % 4]);
                    number /= 4;
                }
                let parent = [prefix.as_bytes(), b"1:s:", &text].concat();
                let steps = steps_of(&parent);
                assert_eq!(slot(&steps), slot(&parent), "{}", String::from_utf8_lossy(&parent));
                assert!(steps.starts_with(&parent) && is_steps(&steps) && !is_steps(&parent));
                names.insert(steps);
                names.insert(parent);
            }
        }
        // No two records share a key for their steps, and no such key is a record's key.
        assert_eq!(names.len(), prefixes.len() * 4_usize.pow(6) * 2);
    }

    /// Names without a tag cover every slot.
    #[test]
    fn e26_steps_of_names_of_every_slot() {
        let mut slots = HashSet::new();
        for number in 0..200_000 {
            let parent = format!("oncekey:4:mail:{number}");
            let steps = steps_of(parent.as_bytes());
            assert_eq!(slot(&steps), slot(parent.as_bytes()));
            slots.insert(slot(&steps));
        }
        assert_eq!(slots.len(), SLOTS);
    }
}
