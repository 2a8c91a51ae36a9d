//! The results of simulated operations.

use serde::{Deserialize, Serialize};

/// The number of an effect, and a mark that no stored value has: JSON cannot distinguish `Some(())` from `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Value {
    /// The effect that returned it.
    pub number: u64,
    /// Set in values that would be read back as another value.
    pub mark: Option<()>,
}

impl Value {
    /// Returns the result of an effect.
    pub fn of(number: u64) -> Self {
        Self { number, mark: None }
    }

    /// Returns the same result as a value that cannot be stored.
    pub fn unstorable(number: u64) -> Self {
        Self { number, mark: Some(()) }
    }
}
