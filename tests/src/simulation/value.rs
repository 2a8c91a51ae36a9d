//! What simulated operations give.

use serde::{Deserialize, Serialize};

/// The number of an effect, and a mark that no stored value has: JSON can't tell `Some(())` from `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Value {
    /// Which effect gave it.
    pub number: u64,
    /// Set in values that would be read back as another.
    pub mark: Option<()>,
}

impl Value {
    /// What an effect gives.
    pub fn of(number: u64) -> Self {
        Self { number, mark: None }
    }

    /// The same, as a value that can't be stored.
    pub fn unstorable(number: u64) -> Self {
        Self { number, mark: Some(()) }
    }
}
