//! The engine's random numbers: owner tokens, and jitter for its pauses.

#[cfg(not(feature = "simulation"))]
pub(crate) use rand::random as bits;

/// Returns a random number from `low` up to `high`.
pub(crate) fn between(low: f64, high: f64) -> f64 {
    low + (high - low) * bits::<f64>()
}

#[cfg(feature = "simulation")]
pub(crate) use crate::simulation::bits;
