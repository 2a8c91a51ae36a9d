//! Where the engine leaves something to chance: owners, and pauses that are not to fall together.

#[cfg(not(feature = "simulation"))]
pub(crate) use rand::random as bits;

/// A number from `low` up to `high`.
pub(crate) fn between(low: f64, high: f64) -> f64 {
    low + (high - low) * bits::<f64>()
}

#[cfg(feature = "simulation")]
pub(crate) use crate::simulation::bits;
