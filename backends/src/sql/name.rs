//! The names of tables and schemas that an application may choose.

use std::fmt;

use oncekey::Fingerprint;

/// The name of a table or schema is not a plain name.
///
/// ```
/// # #[cfg(feature = "postgres")] {
/// use oncekey_backends::postgres::PostgresBackend;
///
/// let refused = PostgresBackend::builder("postgres://localhost/shop").table("records; drop table orders");
/// assert!(refused.is_err());
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a name has 1 to {MAX_LEN} letters of a-z, digits and underscores, and begins with no digit; {0:?} is none")]
pub struct InvalidName(String);

/// A PostgreSQL identifier has at most 63 bytes, and this library appends to the name for its indexes.
const MAX_LEN: usize = 40;

/// A name that needs quotes only so that it is not read as a keyword.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name(String);

impl Name {
    /// Creates a name that is a constant of this library.
    pub(crate) fn fixed(name: &'static str) -> Self {
        Self(name.to_owned())
    }

    pub(crate) fn new(name: &str) -> Result<Self, InvalidName> {
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        let is_fine = !name.is_empty()
            && name.len() <= MAX_LEN
            && name.bytes().all(is_plain)
            && !name.starts_with(|first: char| first.is_ascii_digit());
        if is_fine { Ok(Self(name.to_owned())) } else { Err(InvalidName(name.to_owned())) }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Returns a number for a lock's name, the same in every process and version.
pub(crate) fn lock_number(text: &str) -> u64 {
    let digest = Fingerprint::of(text.as_bytes());
    digest.as_bytes().iter().take(8).fold(0, |number, byte| (number << 8) | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_are_taken() {
        for name in ["oncekey_records", "a", "_x9"] {
            assert!(Name::new(name).is_ok(), "{name}");
        }
        for name in ["", "9a", "a b", "a\"b", "a`b", "A", "é", &"a".repeat(41)] {
            assert!(Name::new(name).is_err(), "{name}");
        }
    }
}
