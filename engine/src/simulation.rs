//! An engine whose chance comes from a seed, so that a run on a virtual clock can be had again exactly.
//!
//! The engine reads the time from tokio alone: on a runtime whose clock is paused (`tokio::time::pause`) it lives in
//! virtual time. What is left to chance, its owners and the jitter of its pauses, is seeded here. Keys hash alike in
//! every run, so that no order depends on it: **for tests alone**, where nobody chooses keys that collide.

use std::cell::RefCell;

use rand::distr::{Distribution, StandardUniform};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

thread_local! {
    static SEEDED: RefCell<Option<SmallRng>> = const { RefCell::new(None) };
}

/// From now on, the engine's chance on this thread comes from `seed`.
///
/// **For tests alone**: owners must not be guessable where an attacker can write to the store.
///
/// ```
/// use oncekey::record::Owner;
/// use oncekey::simulation::seed;
///
/// seed(17);
/// let owner = Owner::random();
/// seed(17);
/// assert_eq!(Owner::random(), owner);
/// ```
pub fn seed(seed: u64) {
    SEEDED.set(Some(SmallRng::seed_from_u64(seed)));
}

pub(crate) fn bits<T>() -> T
where
    StandardUniform: Distribution<T>,
{
    SEEDED.with_borrow_mut(|seeded| match seeded {
        Some(seeded) => seeded.random(),
        None => rand::random(),
    })
}
