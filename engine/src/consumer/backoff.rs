//! Growing delays with jitter, so that what failed together does not retry together.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};

use crate::call::NEVER;

/// Limits a delay, which may be [`Duration::MAX`] for "never", to one that can be added to a time.
pub(super) fn bounded(delay: Duration) -> Duration {
    delay.min(NEVER)
}

/// Returns delays from `first` to `longest`, each twice the one before. Each is drawn between its value and twice that,
/// and none exceeds `longest`.
pub(super) fn delays(first: Duration, longest: Duration) -> ExponentialBackoff {
    // The crate's jitter adds up to the same amount again.
    let before_jitter = bounded(longest) / 2;
    ExponentialBuilder::new()
        .with_min_delay(first.min(before_jitter))
        .with_max_delay(before_jitter)
        .with_factor(2.0)
        .without_max_times()
        .with_jitter()
        .build()
}

/// Returns the delay after a failure that `failures` earlier ones precede.
pub(super) fn delay(first: Duration, longest: Duration, failures: u32) -> Duration {
    // After 64 doublings, every delay is the longest.
    let failures = failures.min(64) as usize;
    delays(first, longest).nth(failures).unwrap_or(bounded(longest))
}

/// Draws a delay between half of `delay` and `delay`.
pub(super) fn spread(delay: Duration) -> Duration {
    delays(delay, delay).next().unwrap_or(bounded(delay))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn delays_double_up_to_the_longest_and_differ() {
        let (first, longest) = (Duration::from_secs(1), Duration::from_secs(6));
        for (failures, least) in [(0, 1), (1, 2), (2, 3), (3, 3), (60, 3), (u32::MAX, 3)] {
            let least = Duration::from_secs(least);
            let drawn: HashSet<Duration> = (0..50).map(|_| delay(first, longest, failures)).collect();
            assert!(drawn.iter().all(|delay| (least..=2 * least).contains(delay)), "{failures}: {drawn:?}");
            assert!(drawn.len() > 1, "no jitter");
        }
        assert_eq!(delay(Duration::ZERO, longest, 7), Duration::ZERO);
        assert!(delay(longest, first, 0) <= first);
        for failures in [0, 1, u32::MAX] {
            assert!((NEVER / 2..=NEVER).contains(&delay(Duration::MAX, Duration::MAX, failures)));
        }
        assert!((NEVER / 2..=NEVER).contains(&spread(Duration::MAX)));
    }
}
