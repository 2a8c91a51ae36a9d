//! Seeded randomness, so that a run of an engine on a virtual clock can be repeated exactly.
//!
//! The engine reads the time only from tokio. On a runtime whose clock is paused (`tokio::time::pause`), it runs in
//! virtual time. This feature seeds the engine's random values, which are owner tokens and the jitter of its pauses. It
//! also makes keys hash alike in every run, so that no order depends on the hash. **For tests only**, where nobody
//! chooses keys that collide.

use std::cell::RefCell;

use rand::distr::{Distribution, StandardUniform};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

thread_local! {
    static SEEDED: RefCell<Option<SmallRng>> = const { RefCell::new(None) };
}

/// Makes the engine's random values on this thread come from `seed` from now on.
///
/// **For tests only**: where an attacker can write to the store, owner tokens must not be guessable.
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
