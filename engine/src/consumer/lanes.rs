//! Order by key: a message waits for the previous message with the same key.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hash};

use tokio::sync::oneshot;

/// The last unsettled message of each key.
pub(super) struct Lanes<M> {
    lane_of: Box<dyn Fn(&M) -> u64 + Send + Sync>,
    last: HashMap<u64, Last>,
    next_place: u64,
}

struct Last {
    place: u64,
    done: oneshot::Receiver<()>,
}

/// A message's place in its lane. Dropping it lets the next message begin.
pub(super) struct Place {
    lane: u64,
    place: u64,
    before: Option<oneshot::Receiver<()>>,
    _done: oneshot::Sender<()>,
}

impl<M> Lanes<M> {
    pub(super) fn new<K: Hash>(key_of: impl Fn(&M) -> K + Send + Sync + 'static) -> Self {
        let seed = foldhash::quality::RandomState::default();
        Self { lane_of: Box::new(move |message| seed.hash_one(key_of(message))), last: HashMap::new(), next_place: 0 }
    }

    pub(super) fn enter(&mut self, message: &M) -> Place {
        let lane = (self.lane_of)(message);
        let (sender, done) = oneshot::channel();
        let place = self.next_place;
        self.next_place += 1;
        let before = self.last.insert(lane, Last { place, done }).map(|last| last.done);
        Place { lane, place, before, _done: sender }
    }

    /// Removes the lane if this place is its last.
    pub(super) fn leave(&mut self, place: &Place) {
        if self.last.get(&place.lane).is_some_and(|last| last.place == place.place) {
            self.last.remove(&place.lane);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.last.len()
    }
}

impl Place {
    pub(super) async fn turn(&mut self) {
        if let Some(before) = self.before.take() {
            // Nothing is ever sent: the await ends when the sender is dropped with its place.
            let _ = before.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn each_waits_for_the_one_before_it_and_lanes_go_away() {
        let mut lanes = Lanes::new(|message: &(char, u32)| message.0);
        let (first, mut second, mut other) = (lanes.enter(&('a', 1)), lanes.enter(&('a', 2)), lanes.enter(&('b', 1)));
        assert!(other.turn().now_or_never().is_some());
        assert!(second.turn().now_or_never().is_none() && lanes.len() == 2);
        let mut second = {
            lanes.leave(&first);
            lanes.enter(&('a', 3))
        };
        drop(first);
        lanes.leave(&other);
        assert_eq!(lanes.len(), 1);
        assert!(second.turn().now_or_never().is_none(), "the second place was never left");
        lanes.leave(&second);
        assert_eq!(lanes.len(), 0);
    }
}
