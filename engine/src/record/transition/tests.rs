//! Whatever messages come in whatever order, the promises hold.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::record::{PayloadKind, SealedOutcome};
use crate::{Fingerprint, Key};

#[derive(Debug, Clone, Copy)]
enum Message {
    Acquire { owner: u8, fingerprint: u8, hold: bool },
    Renew { owner: u8 },
    Complete { owner: u8, outcome: u8 },
    Release { owner: u8 },
    Hold { owner: u8 },
    Resolve { release: bool, attempt: Option<u64> },
    Wait { millis: u64 },
}

fn message() -> impl Strategy<Value = Message> {
    let owner = 0..3_u8;
    prop_oneof![
        (owner.clone(), 0..2_u8, any::<bool>()).prop_map(|(owner, fingerprint, hold)| Message::Acquire {
            owner,
            fingerprint,
            hold
        }),
        owner.clone().prop_map(|owner| Message::Renew { owner }),
        (owner.clone(), 0..4_u8).prop_map(|(owner, outcome)| Message::Complete { owner, outcome }),
        owner.clone().prop_map(|owner| Message::Release { owner }),
        owner.prop_map(|owner| Message::Hold { owner }),
        (any::<bool>(), proptest::option::of(1..4_u64))
            .prop_map(|(release, attempt)| Message::Resolve { release, attempt }),
        prop_oneof![Just(10), Just(LEASE), Just(RETENTION)].prop_map(|millis| Message::Wait { millis }),
    ]
}

const LEASE: u64 = 100;
const RETENTION: u64 = 1_000;

struct Machine {
    key: Key,
    now: StoreTime,
    record: Option<Record>,
}

impl Machine {
    fn apply<Answer>(&mut self, step: Step<Answer>) -> Answer {
        match step.write {
            Write::Nothing => {}
            Write::Put(record) => self.record = Some(record),
            Write::Delete => self.record = None,
        }
        step.answer
    }

    fn now_record(&self) -> Option<Record> {
        self.record.clone().and_then(|record| record.at(self.now))
    }

    /// Takes the message, and tells whether its sender was granted or confirmed the claim.
    fn take(&mut self, message: Message) -> Option<u8> {
        let (key, now) = (self.key.clone(), self.now);
        let found = self.record.clone();
        let found = found.as_ref();
        let by = |owner: u8| Owner::from_bytes([owner; Owner::LEN]);
        match message {
            Message::Acquire { owner, fingerprint, hold } => {
                let on_abandoned = if hold { OnAbandoned::Hold } else { OnAbandoned::Rerun };
                let fingerprint = Fingerprint::of(&[fingerprint]);
                let lease = Duration::from_millis(LEASE);
                let message = Acquire { key, fingerprint, owner: by(owner), lease, on_abandoned };
                let answer = self.apply(acquire(found, now, &message));
                matches!(answer, Acquired::Claimed { .. }).then_some(owner)
            }
            Message::Renew { owner } => {
                let message = Renew { key, owner: by(owner), lease: Duration::from_millis(LEASE) };
                (self.apply(renew(found, now, &message)) == Renewed::Renewed).then_some(owner)
            }
            Message::Complete { owner, outcome } => {
                let outcome = SealedOutcome::seal(&key, PayloadKind::Json, |bytes| bytes.push(outcome));
                let retention = Duration::from_millis(RETENTION);
                let message = Complete { key, owner: by(owner), outcome, retention };
                (self.apply(complete(found, now, &message)) == Completed::Stored).then_some(owner)
            }
            Message::Release { owner } => {
                let message = Release { key, owner: by(owner) };
                (self.apply(release(found, now, &message)) == Released::Released).then_some(owner)
            }
            Message::Hold { owner } => {
                let message = Hold { key, owner: by(owner) };
                (self.apply(hold(found, now, &message)) == Held::Held).then_some(owner)
            }
            Message::Resolve { release, attempt } => {
                let outcome = SealedOutcome::tombstone(&key);
                let retention = Duration::from_millis(RETENTION);
                let with = if release { Resolution::Release } else { Resolution::Complete { outcome, retention } };
                self.apply(resolve(
                    found,
                    now,
                    &Resolve { key, attempt: attempt.map(Attempt::new), owner: None, with },
                ));
                None
            }
            Message::Wait { millis } => {
                self.now = self.now.after(Duration::from_millis(millis));
                None
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn e06_the_promises_hold_for_every_order_of_messages(messages in proptest::collection::vec(message(), 1..40)) {
        let mut machine =
            Machine { key: Key::new("s", "k").unwrap(), now: StoreTime::from_millis(0), record: None };
        for message in messages {
            let before = machine.now_record();
            let acted = machine.take(message);
            let after = machine.now_record();
            match (&before, &after) {
                (Some(before), Some(after)) => {
                    // No outcome changes once it is stored.
                    if matches!(before.state, State::Completed { .. }) {
                        prop_assert_eq!(before, after, "{:?}", message);
                    }
                    prop_assert_eq!(before.fingerprint, after.fingerprint, "{:?}", message);
                    prop_assert!(after.attempt >= before.attempt, "{:?}", message);
                    // A new owner only by a takeover, which raises the attempt, and only after a lapse.
                    if before.owner != after.owner {
                        let may_be_taken_over =
                            matches!(before.state, State::InProgress { lease_until, on_abandoned: OnAbandoned::Rerun }
                                if lease_until <= machine.now);
                        prop_assert!(may_be_taken_over, "{message:?} took {before:?} over");
                        prop_assert_eq!(after.attempt, before.attempt.next());
                    }
                }
                // A record goes only by its owner's release, a resolution, or time.
                (Some(before), None) => prop_assert!(
                    match message {
                        Message::Release { owner } => {
                            before.owner == Owner::from_bytes([owner; Owner::LEN])
                                && !matches!(before.state, State::Completed { .. })
                        }
                        Message::Resolve { .. } => before.state == State::Indeterminate,
                        Message::Wait { .. } => before.state != State::Indeterminate,
                        _ => false,
                    },
                    "{message:?} removed {before:?}"
                ),
                (None, _) => {}
            }
            // Whoever is told yes is the owner of what stands there, or of what it has just released.
            if let (Some(owner), Some(after)) = (acted, &after) {
                prop_assert_eq!(after.owner, Owner::from_bytes([owner; Owner::LEN]), "{:?}", message);
            }
        }
    }
}
