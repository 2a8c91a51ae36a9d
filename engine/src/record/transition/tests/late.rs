//! Messages that are delayed, late or duplicated; a clock that is set back; and purged records.

use super::*;

const KEPT: u64 = WITHDRAWAL_KEPT.as_millis() as u64;

/// One event. A number picks a claim or a message among the existing ones, modulo their count.
#[derive(Debug, Clone, Copy)]
enum Event {
    /// A new owner sends an acquire. `past` picks the barrier that it names among those that callers have seen.
    Send {
        hold: bool,
        past: Option<usize>,
    },
    /// A process withdraws a claim on which nothing has begun.
    SendWithdrawal {
        claim: usize,
    },
    /// The holder of a granted claim sends a step.
    SendStep {
        claim: usize,
        step: OwnersStep,
    },
    /// The store executes a message. With `again` the message stays on the wire and is executed once more later.
    Deliver {
        message: usize,
        again: bool,
    },
    Resolve {
        release: bool,
    },
    Remove,
    Purge,
    Wait {
        millis: u64,
    },
    /// The store's clock is set back while the record exists.
    SetBack {
        millis: u64,
    },
}

#[derive(Debug, Clone, Copy)]
enum OwnersStep {
    Renew,
    Complete,
    Release,
    Hold,
}

#[derive(Debug, Clone)]
enum Sent {
    Acquire(Acquire),
    Withdraw(Owner),
    Step(Owner, OwnersStep),
}

/// What a process knows about its claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claimed {
    Asked,
    /// The claim was granted and its operation began. The process never withdraws it.
    Began,
    /// The process no longer waits for the answer, and no operation begins under the claim.
    Withdrawing,
}

#[derive(Debug)]
struct World {
    key: Key,
    record: Option<Record>,
    /// The store's clock, and the time that has really passed.
    clock: u64,
    real: u64,
    wire: Vec<Sent>,
    claims: Vec<Claimed>,
    /// When the store last executed a withdrawal of the claim.
    withdrawn_at: Vec<Option<u64>>,
    /// The barriers that callers have seen.
    told: Vec<Owner>,
    /// The highest granted token, and its owner.
    highest: Option<(FencingToken, Owner)>,
}

fn number(owner: Owner) -> usize {
    usize::from(owner.as_bytes()[0])
}

impl World {
    fn new() -> Self {
        Self {
            key: Key::new("s", "k").unwrap(),
            record: None,
            clock: 10_000_000,
            real: 0,
            wire: Vec::new(),
            claims: Vec::new(),
            withdrawn_at: Vec::new(),
            told: Vec::new(),
            highest: None,
        }
    }

    fn now(&self) -> StoreTime {
        StoreTime::from_millis(self.clock)
    }

    fn take<Answer>(&mut self, step: Step<Answer>) -> Answer {
        match step.write {
            Write::Nothing => {}
            Write::Put(record) => self.record = Some(record),
            Write::Delete => self.record = None,
        }
        step.answer
    }

    fn happens(&mut self, event: Event) -> Result<(), TestCaseError> {
        let found = self.record.clone();
        let (key, found, now) = (self.key.clone(), found.as_ref(), self.now());
        match event {
            Event::Send { hold, past } => {
                if self.claims.len() == 200 {
                    return Ok(());
                }
                let owner = by(self.claims.len() as u8);
                let past_withdrawal = past.and_then(|past| pick(&self.told, past).copied());
                let on_abandoned = if hold { OnAbandoned::Hold } else { OnAbandoned::Rerun };
                let (fingerprint, lease) = (Fingerprint::of(b"asked"), Duration::from_millis(LEASE));
                self.claims.push(Claimed::Asked);
                self.withdrawn_at.push(None);
                self.wire.push(Sent::Acquire(Acquire {
                    key,
                    fingerprint,
                    owner,
                    lease,
                    on_abandoned,
                    past_withdrawal: past_withdrawal.map(Box::new),
                }));
            }
            Event::SendWithdrawal { claim } => {
                let Some(at) = index(self.claims.len(), claim) else { return Ok(()) };
                if self.claims[at] != Claimed::Began {
                    self.claims[at] = Claimed::Withdrawing;
                    self.wire.push(Sent::Withdraw(by(at as u8)));
                }
            }
            Event::SendStep { claim, step } => {
                let Some(at) = index(self.claims.len(), claim) else { return Ok(()) };
                if self.claims[at] == Claimed::Began {
                    self.wire.push(Sent::Step(by(at as u8), step));
                }
            }
            Event::Deliver { message, again } => {
                let Some(at) = index(self.wire.len(), message) else { return Ok(()) };
                let message = if again { self.wire[at].clone() } else { self.wire.remove(at) };
                return self.delivers(message);
            }
            Event::Resolve { release } => {
                let (outcome, retention) = (SealedOutcome::tombstone(&key), Duration::from_millis(RETENTION));
                let with = if release { Resolution::Release } else { Resolution::Complete { outcome, retention } };
                self.take(resolve(found, now, &Resolve { key, attempt: None, owner: None, with }));
            }
            Event::Remove => {
                self.take(remove(found, now, &Remove { key }));
            }
            Event::Purge => {
                if found.and_then(Record::purge_at).is_some_and(|at| at <= now) {
                    self.record = None;
                }
            }
            Event::Wait { millis } => (self.clock, self.real) = (self.clock + millis, self.real + millis),
            Event::SetBack { millis } => {
                if found.is_some() {
                    self.clock = self.clock.saturating_sub(millis);
                }
            }
        }
        Ok(())
    }

    fn delivers(&mut self, message: Sent) -> Result<(), TestCaseError> {
        let found = self.record.clone();
        let (key, found, now) = (self.key.clone(), found.as_ref(), self.now());
        match message {
            Sent::Acquire(message) => match self.take(acquire(found, now, &message)) {
                Acquired::Claimed { token, .. } => self.is_granted(message.owner, token)?,
                Acquired::Withdrawn { owner } => self.told.push(owner),
                _ => {}
            },
            Sent::Withdraw(owner) => {
                self.take(withdraw(found, now, &Withdraw { key, owner }));
                self.withdrawn_at[number(owner)] = Some(self.real);
            }
            Sent::Step(owner, OwnersStep::Renew) => {
                self.take(renew(found, now, &Renew { key, owner, lease: Duration::from_millis(LEASE) }));
            }
            Sent::Step(owner, OwnersStep::Complete) => {
                let (outcome, retention) = (SealedOutcome::tombstone(&key), Duration::from_millis(RETENTION));
                self.take(complete(found, now, &Complete { key, owner, outcome, retention }));
            }
            Sent::Step(owner, OwnersStep::Release) => {
                self.take(release(found, now, &Release { key, owner }));
            }
            Sent::Step(owner, OwnersStep::Hold) => {
                self.take(hold(found, now, &super::super::Hold { key, owner }));
            }
        }
        Ok(())
    }

    fn is_granted(&mut self, owner: Owner, token: FencingToken) -> Result<(), TestCaseError> {
        let at = number(owner);
        if let Some(withdrawn_at) = self.withdrawn_at[at] {
            let ago = self.real - withdrawn_at;
            prop_assert!(ago >= KEPT, "the claim of {owner:?} lands {ago} ms after its withdrawal");
        }
        if self.claims[at] == Claimed::Asked {
            self.claims[at] = Claimed::Began;
        }
        if let Some((highest, holder)) = self.highest {
            let rises = if holder == owner { token >= highest } else { token > highest };
            prop_assert!(rises, "{owner:?} is granted the token {token}, after {highest} for {holder:?}");
        }
        self.highest = Some((token, owner));
        Ok(())
    }
}

fn index(len: usize, number: usize) -> Option<usize> {
    number.checked_rem(len)
}

/// Picks the last of `from` more often than the others.
fn pick<T>(from: &[T], number: usize) -> Option<&T> {
    if number.is_multiple_of(2) { from.last() } else { index(from.len(), number / 2).map(|at| &from[at]) }
}

fn sends() -> impl Strategy<Value = Event> {
    (any::<bool>(), proptest::option::weighted(0.7, any::<usize>())).prop_map(|(hold, past)| Event::Send { hold, past })
}

fn withdrawals() -> impl Strategy<Value = Event> {
    any::<usize>().prop_map(|claim| Event::SendWithdrawal { claim })
}

fn deliveries() -> impl Strategy<Value = Event> {
    (any::<usize>(), proptest::bool::weighted(0.3)).prop_map(|(message, again)| Event::Deliver { message, again })
}

fn waits(longest: u64) -> impl Strategy<Value = Event> {
    let choices = vec![1, LEASE, RETENTION, KEPT / 2, KEPT].into_iter().filter(|millis| *millis <= longest);
    proptest::sample::select(choices.collect::<Vec<_>>()).prop_map(|millis| Event::Wait { millis })
}

fn events() -> impl Strategy<Value = Event> {
    let steps = proptest::sample::select(vec![
        OwnersStep::Renew,
        OwnersStep::Complete,
        OwnersStep::Complete,
        OwnersStep::Release,
        OwnersStep::Release,
        OwnersStep::Hold,
    ]);
    prop_oneof![
        4 => sends(),
        3 => withdrawals(),
        3 => (any::<usize>(), steps).prop_map(|(claim, step)| Event::SendStep { claim, step }),
        10 => deliveries(),
        1 => any::<bool>().prop_map(|release| Event::Resolve { release }),
        1 => Just(Event::Remove),
        1 => Just(Event::Purge),
        2 => waits(KEPT),
        1 => proptest::sample::select(vec![1, LEASE, RETENTION, 2 * KEPT]).prop_map(|millis| Event::SetBack { millis }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5_000))]

    /// A withdrawn claim never takes effect, whatever arrives before it, and tokens rise from claim to claim.
    #[test]
    fn e20_e25_late_messages_land_no_withdrawn_claim_and_take_no_token_back(
        events in proptest::collection::vec(events(), 1..60)
    ) {
        let mut world = World::new();
        for event in events {
            world.happens(event)?;
        }
    }

    /// Every answer to a claim is lost, and every claim is withdrawn, in whatever order the messages arrive. The key is
    /// never indeterminate afterwards, and the next caller gets it.
    #[test]
    fn e19_a_key_on_which_nothing_began_comes_free(
        events in proptest::collection::vec(
            prop_oneof![3 => sends(), 2 => withdrawals(), 6 => deliveries(), 1 => waits(RETENTION)],
            1..40,
        )
    ) {
        let mut world = World::new();
        for event in events {
            world.happens(event)?;
            // The answer was lost, so no operation begins.
            for claim in &mut world.claims {
                if *claim == Claimed::Began {
                    *claim = Claimed::Withdrawing;
                }
            }
        }
        for claim in 0..world.claims.len() {
            world.delivers(Sent::Withdraw(by(claim as u8)))?;
        }
        while !world.wire.is_empty() {
            world.happens(Event::Deliver { message: 0, again: false })?;
            world.happens(Event::Wait { millis: LEASE })?;
            let shown = world.record.clone().and_then(|record| record.at(world.now()));
            prop_assert_eq!(shown, None, "nothing ever began under the key");
        }
        let mut newcomer = Acquire {
            key: world.key.clone(),
            fingerprint: Fingerprint::of(b"something else"),
            owner: by(u8::MAX),
            lease: Duration::from_millis(LEASE),
            on_abandoned: OnAbandoned::Hold,
            past_withdrawal: None,
        };
        let mut answer = acquire(world.record.as_ref(), world.now(), &newcomer).answer;
        if let Acquired::Withdrawn { owner } = answer {
            newcomer.past_withdrawal = Some(Box::new(owner));
            answer = acquire(world.record.as_ref(), world.now(), &newcomer).answer;
        }
        let is_claimed = matches!(answer, Acquired::Claimed { attempt: Attempt::FIRST, .. });
        prop_assert!(is_claimed, "the next caller is told {:?}", answer);
    }
}
