//! A queue of items that become due at a given time.

use std::collections::BTreeMap;

/// Items ordered by their due time. Items that are due at the same time keep the order of their insertion.
#[derive(Debug)]
pub(super) struct Later<Instant, T> {
    waiting: BTreeMap<(Instant, u64), T>,
    next: u64,
}

impl<Instant: Ord + Copy, T> Later<Instant, T> {
    pub(super) fn insert(&mut self, due: Instant, what: T) {
        self.waiting.insert((due, self.next), what);
        self.next += 1;
    }

    /// Returns when the first item is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.waiting.first_key_value().map(|((due, _), _)| *due)
    }

    /// Removes the first item, if it is due by `now`.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<T> {
        self.next_due().filter(|due| *due <= now)?;
        self.waiting.pop_first().map(|(_, what)| what)
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Removes all items, due or not.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = T> + use<Instant, T> {
        std::mem::take(&mut self.waiting).into_values()
    }
}

impl<Instant, T> Default for Later<Instant, T> {
    fn default() -> Self {
        Self { waiting: BTreeMap::new(), next: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_is_due_comes_first_and_nothing_before_its_time() {
        let mut later = Later::default();
        for (due, name) in [(5, "b"), (9, "d"), (5, "c"), (1, "a")] {
            later.insert(due, name);
        }
        let due: Vec<_> = std::iter::from_fn(|| later.pop_due(5)).collect();
        assert_eq!((due, later.next_due(), later.len()), (vec!["a", "b", "c"], Some(9), 1));
        assert_eq!((later.drain().collect::<Vec<_>>(), later.next_due()), (vec!["d"], None));
    }
}
