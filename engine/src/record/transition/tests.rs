//! The promises hold for any messages in any order.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::record::{PayloadKind, SealedOutcome, WITHDRAWAL_KEPT};
use crate::{Fingerprint, Key};

mod late;
mod steps;

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

fn by(owner: u8) -> Owner {
    Owner::from_bytes([owner; Owner::LEN])
}

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

    /// Executes the message, and returns its sender if the claim was granted or confirmed.
    fn take(&mut self, message: Message) -> Option<u8> {
        let (key, now) = (self.key.clone(), self.now);
        let found = self.record.clone();
        let found = found.as_ref();
        match message {
            Message::Acquire { owner, fingerprint, hold } => {
                let on_abandoned = if hold { OnAbandoned::Hold } else { OnAbandoned::Rerun };
                let fingerprint = Fingerprint::of(&[fingerprint]);
                let lease = Duration::from_millis(LEASE);
                let message =
                    Acquire { key, fingerprint, owner: by(owner), lease, on_abandoned, past_withdrawal: None };
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
                    // A stored outcome never changes.
                    if matches!(before.state, State::Completed { .. }) {
                        prop_assert_eq!(before, after, "{:?}", message);
                    }
                    prop_assert_eq!(before.fingerprint, after.fingerprint, "{:?}", message);
                    prop_assert!(after.attempt >= before.attempt, "{:?}", message);
                    // The owner changes only by a takeover, which raises the attempt and needs a lapsed lease.
                    if before.owner != after.owner {
                        let may_be_taken_over =
                            matches!(before.state, State::InProgress { lease_until, on_abandoned: OnAbandoned::Rerun }
                                if lease_until <= machine.now);
                        prop_assert!(may_be_taken_over, "{message:?} took {before:?} over");
                        prop_assert_eq!(after.attempt, before.attempt.next());
                    }
                }
                // A record disappears only by its owner's release, a resolution, or time.
                (Some(before), None) => prop_assert!(
                    match message {
                        Message::Release { owner } => {
                            before.owner == by(owner)
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
            // A sender with a positive answer owns the record that is there, or the one that it has just released.
            if let (Some(owner), Some(after)) = (acted, &after) {
                prop_assert_eq!(after.owner, Owner::from_bytes([owner; Owner::LEN]), "{:?}", message);
            }
        }
    }
}

/// Checks what a step by a record's owner (9) or by another owner (8) makes of a record found at 1 000 ms.
mod by_example {
    use super::*;
    use crate::StepPolicy;
    use crate::backend::{BeginStep, ResolveStep, StepResolution};
    use crate::record::StepName;
    use crate::record::tests::claim;

    const NOW: StoreTime = StoreTime::from_millis(1_000);
    const SECOND: Duration = Duration::from_secs(1);

    fn key() -> Key {
        Key::new("s", "k").unwrap()
    }

    fn outcome() -> SealedOutcome {
        SealedOutcome::tombstone(&key())
    }

    fn record(attempt: u64, owner: u8, state: State) -> Record {
        record_of(attempt, 7, owner, state)
    }

    fn record_of(attempt: u64, token: u64, owner: u8, state: State) -> Record {
        Record {
            fingerprint: Fingerprint::of(b"asked"),
            attempt: Attempt::new(attempt),
            token: FencingToken::new(token),
            barrier: None,
            owner: by(owner),
            steps: None,
            state,
        }
    }

    fn completed(expires_at: u64) -> State {
        State::Completed { outcome: outcome(), expires_at: StoreTime::from_millis(expires_at) }
    }

    fn asks(owner: u8, for_what: &[u8], on_abandoned: OnAbandoned) -> Acquire {
        let fingerprint = Fingerprint::of(for_what);
        Acquire { key: key(), fingerprint, owner: by(owner), lease: SECOND, on_abandoned, past_withdrawal: None }
    }

    #[test]
    fn acquire_is_answered_by_what_is_there() {
        use OnAbandoned::{Hold, Rerun};
        let asked = |found: State| acquire(Some(&record(2, 9, found)), NOW, &asks(8, b"asked", Rerun));
        let token = FencingToken::new(1_000_000);
        let first = put(
            record_of(1, 1_000_000, 8, claim(2_000, Rerun)),
            Acquired::Claimed { attempt: Attempt::FIRST, token, took_over: false, steps: None },
        );
        assert_eq!(acquire(None, NOW, &asks(8, b"asked", Rerun)), first);
        assert_eq!(asked(completed(1_000)), first);
        assert_eq!(asked(completed(1_001)), unchanged(Acquired::Completed { outcome: outcome() }));
        for word in [Hold, Rerun] {
            let lease_left = Duration::from_millis(1);
            assert_eq!(asked(claim(1_001, word)), unchanged(Acquired::InProgress { lease_left }));
            // A holder that lost the answer still has its claim, renewed from now on, even past its lease.
            let again = acquire(Some(&record(2, 9, claim(900, word))), NOW, &asks(9, b"asked", word));
            let token = FencingToken::new(7);
            let granted = Acquired::Claimed { attempt: Attempt::new(2), token, took_over: false, steps: None };
            assert_eq!(again, put(record(2, 9, claim(2_000, word)), granted));
        }
        let taken_over = Acquired::Claimed { attempt: Attempt::new(3), token, took_over: true, steps: None };
        assert_eq!(asked(claim(1_000, Rerun)), put(record_of(3, 1_000_000, 8, claim(2_000, Rerun)), taken_over));
        let indeterminate = Acquired::Indeterminate { attempt: Attempt::new(2), owner: by(9) };
        assert_eq!(asked(claim(1_000, Hold)), put(record(2, 9, State::Indeterminate), indeterminate.clone()));
        assert_eq!(asked(State::Indeterminate), unchanged(indeterminate));
        for used in [claim(1_001, Hold), claim(1_000, Rerun), completed(1_001), State::Indeterminate] {
            let other = acquire(Some(&record(2, 9, used)), NOW, &asks(8, b"something else", Hold));
            assert_eq!(other, unchanged(Acquired::Mismatch));
        }
    }

    #[test]
    fn the_owners_steps_are_taken_and_nobody_elses() {
        use OnAbandoned::{Hold, Rerun};
        for (found, word) in [(claim(900, Rerun), Rerun), (claim(900, Hold), Hold), (State::Indeterminate, Hold)] {
            let found = record(2, 9, found);
            for owner in [9, 8] {
                let is_owner = owner == 9;
                let step = renew(Some(&found), NOW, &Renew { key: key(), owner: by(owner), lease: SECOND });
                let renewed = put(record(2, 9, claim(2_000, word)), Renewed::Renewed);
                assert_eq!(step, if is_owner { renewed } else { unchanged(Renewed::Lost) });

                let message = Complete { key: key(), owner: by(owner), outcome: outcome(), retention: SECOND };
                let stored = put(record(2, 9, completed(2_000)), Completed::Stored);
                let step = complete(Some(&found), NOW, &message);
                assert_eq!(step, if is_owner { stored } else { unchanged(Completed::Lost) });

                let released = Step { write: Write::Delete, answer: Released::Released };
                let step = release(Some(&found), NOW, &Release { key: key(), owner: by(owner) });
                assert_eq!(step, if is_owner { released } else { unchanged(Released::Lost) });

                let held = match found.state {
                    State::Indeterminate => unchanged(Held::Held),
                    _ => put(record(2, 9, State::Indeterminate), Held::Held),
                };
                let step = hold(Some(&found), NOW, &super::super::Hold { key: key(), owner: by(owner) });
                assert_eq!(step, if is_owner { held } else { unchanged(Held::Lost) });
            }
        }
    }

    #[test]
    fn what_is_stored_stays_and_what_is_gone_is_lost() {
        let message = Complete { key: key(), owner: by(9), outcome: outcome(), retention: SECOND };
        let stored = record(2, 9, completed(1_001));
        assert_eq!(complete(Some(&stored), NOW, &message), unchanged(Completed::Stored));
        assert_eq!(complete(Some(&record(2, 9, completed(1_000))), NOW, &message), unchanged(Completed::Lost));
        assert_eq!(complete(None, NOW, &message), unchanged(Completed::Lost));
        let renewal = Renew { key: key(), owner: by(9), lease: SECOND };
        assert_eq!(renew(Some(&stored), NOW, &renewal), unchanged(Renewed::Lost));
        assert_eq!(release(Some(&stored), NOW, &Release { key: key(), owner: by(9) }), unchanged(Released::Lost));
        let held = hold(Some(&stored), NOW, &super::super::Hold { key: key(), owner: by(9) });
        assert_eq!(held, unchanged(Held::Lost));
    }

    #[test]
    fn a_word_settles_the_claim_that_it_is_about() {
        let said = |found: State, attempt: Option<u64>, owner: Option<u8>, with: Resolution| {
            let message = Resolve { key: key(), attempt: attempt.map(Attempt::new), owner: owner.map(by), with };
            resolve(Some(&record(2, 9, found)), NOW, &message)
        };
        let refused = unchanged(Resolved::NotIndeterminate);
        for settled in [State::Indeterminate, claim(1_000, OnAbandoned::Hold)] {
            for (attempt, owner) in [(None, None), (Some(2), None), (None, Some(9)), (Some(2), Some(9))] {
                let gone = Step { write: Write::Delete, answer: Resolved::Resolved };
                assert_eq!(said(settled.clone(), attempt, owner, Resolution::Release), gone);
                let with = Resolution::Complete { outcome: outcome(), retention: SECOND };
                let done = put(record(2, 9, completed(2_000)), Resolved::Resolved);
                assert_eq!(said(settled.clone(), attempt, owner, with), done);
            }
            for (attempt, owner) in [(Some(1), None), (None, Some(8)), (Some(2), Some(8)), (Some(1), Some(9))] {
                assert_eq!(said(settled.clone(), attempt, owner, Resolution::Release), refused);
            }
        }
        for other in [claim(1_001, OnAbandoned::Hold), claim(1_000, OnAbandoned::Rerun), completed(1_001)] {
            assert_eq!(said(other, None, None, Resolution::Release), refused);
        }
    }

    fn withdrawal(owner: u8) -> Withdraw {
        Withdraw { key: key(), owner: by(owner) }
    }

    fn written(step: Step<impl std::fmt::Debug>) -> Record {
        let Write::Put(record) = step.write else { panic!("{step:?} writes no record") };
        record
    }

    /// An unsettled step keeps its parent for any length of time. Settling the step must not make the parent expire at
    /// once: a retry would begin without the step, and charge again.
    #[test]
    fn e26_a_step_that_is_resolved_late_keeps_its_parent() {
        let hours = |hours: u64| Duration::from_secs(hours * 60 * 60);
        for with in [StepResolution::Release, StepResolution::Complete { outcome: outcome() }] {
            for on_abandoned in [OnAbandoned::Resume, OnAbandoned::Rerun] {
                let claim = asks(7, b"asked", on_abandoned);
                let claimed = written(acquire(None, NOW, &claim));
                let begin = BeginStep {
                    key: key(),
                    owner: by(7),
                    name: StepName::new("charge").unwrap(),
                    fingerprint: None,
                    number: 1,
                    policy: StepPolicy::Hold,
                    retention: hours(1),
                };
                let begun = written(begin_step(Some(&claimed), NOW, &begin));
                let late = NOW.after(hours(100));
                assert!(begun.clone().at(late).is_some_and(|record| record.state == State::Indeterminate));
                let (name, with) = (begin.name.clone(), with.clone());
                let resolve = ResolveStep { key: key(), name, run: None, life: None, with };
                let resolved = written(resolve_step(Some(&begun), late, &resolve));
                let again = acquire(Some(&resolved), late.after(hours(1)), &asks(8, b"asked", on_abandoned));
                assert!(matches!(again.answer, Acquired::Claimed { steps: Some(_), .. }), "{:?}", again.answer);
            }
        }
    }

    /// A caller that released a key stated that nothing happened. The steps are kept only for the next attempt.
    #[test]
    fn e26_who_released_a_key_does_not_complete_it() {
        let claimed = written(acquire(None, NOW, &asks(7, b"asked", OnAbandoned::Hold)));
        let expires_at = StoreTime::from_millis(900_000);
        let released = Record { state: State::Released { expires_at }, ..claimed };
        let message = Complete { key: key(), owner: by(7), outcome: outcome(), retention: Duration::from_secs(1) };
        assert_eq!(complete(Some(&released), NOW, &message), unchanged(Completed::Lost));
    }

    #[test]
    fn e20_a_withdrawal_leaves_a_barrier_that_the_next_claim_names() {
        use OnAbandoned::Hold;
        let barrier = Barrier { withdrawn: by(9), until: NOW.after(WITHDRAWAL_KEPT) };
        for found in [None, Some(record(2, 9, claim(2_000, Hold))), Some(record(2, 9, State::Indeterminate))] {
            let vacant = written(withdraw(found.as_ref(), NOW, &withdrawal(9)));
            assert_eq!(vacant.barrier.as_deref(), Some(&barrier), "{found:?}");
            assert_eq!(vacant.state, State::Vacant { until: barrier.until });
            let late = acquire(Some(&vacant), NOW, &asks(9, b"asked", Hold));
            assert_eq!(late, unchanged(Acquired::Withdrawn { owner: by(9) }));
            let next = Acquire { past_withdrawal: Some(Box::new(by(9))), ..asks(8, b"asked", Hold) };
            let step = acquire(Some(&vacant), NOW, &next);
            assert!(matches!(step.answer, Acquired::Claimed { attempt: Attempt::FIRST, took_over: false, .. }));
            // The barrier also stands after the claim, until its time is over.
            assert_eq!(written(step).barrier.as_deref(), Some(&barrier));
            let later = barrier.until;
            assert!(matches!(acquire(Some(&vacant), later, &asks(8, b"asked", Hold)).answer, Acquired::Claimed { .. }));
        }
    }

    #[test]
    fn e20_what_stands_there_for_another_stays_behind_the_barrier() {
        for found in [claim(2_000, OnAbandoned::Hold), claim(900, OnAbandoned::Rerun), State::Indeterminate] {
            let found = record(2, 8, found);
            let after = written(withdraw(Some(&found), NOW, &withdrawal(9)));
            assert_eq!(after.state, found.state);
            assert_eq!((after.owner, after.barrier.map(|barrier| barrier.withdrawn)), (by(8), Some(by(9))));
        }
        let lapsed = written(withdraw(Some(&record(2, 8, claim(900, OnAbandoned::Rerun))), NOW, &withdrawal(9)));
        let takeover = acquire(Some(&lapsed), NOW, &asks(9, b"asked", OnAbandoned::Rerun));
        assert_eq!(takeover, unchanged(Acquired::Withdrawn { owner: by(9) }));
        // An outcome outlives the barrier on its record.
        let done = written(withdraw(Some(&record(2, 8, completed(1_500))), NOW, &withdrawal(9)));
        assert_eq!(done.state, completed(NOW.after(WITHDRAWAL_KEPT).as_millis()));
    }

    /// Claim 8 was sent when the barrier named 9. Claim 8 is withdrawn, the withdrawal of 9 arrives again, and then
    /// claim 8 arrives.
    #[test]
    fn e20_a_withdrawal_that_arrives_twice_brings_no_name_back() {
        let first = written(withdraw(None, NOW, &withdrawal(9)));
        let repeated = written(withdraw(Some(&first), NOW, &withdrawal(9)));
        assert_eq!(repeated, first, "nothing was withdrawn in between");
        let late = Acquire { past_withdrawal: Some(Box::new(by(9))), ..asks(8, b"asked", OnAbandoned::Hold) };
        let second = written(withdraw(Some(&first), NOW, &withdrawal(8)));
        let again = written(withdraw(Some(&second), NOW, &withdrawal(9)));
        for record in [second, again] {
            let Acquired::Withdrawn { owner } = acquire(Some(&record), NOW, &late).answer else {
                panic!("the withdrawn claim lands on {record:?}")
            };
            assert_ne!(owner, by(9));
            let next = Acquire { past_withdrawal: Some(Box::new(owner)), ..asks(7, b"asked", OnAbandoned::Hold) };
            assert!(matches!(acquire(Some(&record), NOW, &next).answer, Acquired::Claimed { .. }));
        }
    }

    #[test]
    fn e25_a_record_stays_until_the_clock_has_passed_its_token() {
        let ahead = 5_000_000;
        let found = |state| record_of(1, ahead, 9, state);
        let vacant = || found(State::Vacant { until: StoreTime::from_millis(5_001) });
        let is_vacant = |write: Write| assert_eq!(write, Write::Put(vacant()));
        let running = found(claim(2_000, OnAbandoned::Rerun));
        is_vacant(release(Some(&running), NOW, &Release { key: key(), owner: by(9) }).write);
        is_vacant(remove(Some(&found(State::Indeterminate)), NOW, &Remove { key: key() }).write);
        let word = Resolve { key: key(), attempt: None, owner: None, with: Resolution::Release };
        is_vacant(resolve(Some(&found(State::Indeterminate)), NOW, &word).write);
        let message = Complete { key: key(), owner: by(9), outcome: outcome(), retention: SECOND };
        let done = written(complete(Some(&found(claim(2_000, OnAbandoned::Rerun))), NOW, &message));
        assert_eq!(done.state, completed(5_001));
        for found in [vacant(), done] {
            let late = StoreTime::from_millis(6_000);
            let Acquired::Claimed { token, .. } =
                acquire(Some(&found), late, &asks(8, b"asked", OnAbandoned::Hold)).answer
            else {
                panic!("{found:?} is in the way")
            };
            assert_eq!(token.get(), 6_000_000);
        }
    }
}
