use super::*;

const NOW: StoreTime = StoreTime::from_millis(1_000);

fn record(state: State) -> Record {
    let (attempt, owner) = (Attempt::new(2), Owner::from_bytes([9; Owner::LEN]));
    let token = FencingToken::new(7);
    Record { fingerprint: Fingerprint::of(b"asked"), attempt, token, barrier: None, owner, steps: None, state }
}

pub(super) fn claim(lease_until: u64, on_abandoned: OnAbandoned) -> State {
    State::InProgress { lease_until: StoreTime::from_millis(lease_until), on_abandoned }
}

#[test]
fn numbers_and_names_are_what_they_stand_for() {
    assert_eq!(NOW.as_millis(), 1_000);
    assert_eq!(StoreTime::from_millis(1_250).left(NOW), Duration::from_millis(250));
    assert_eq!(StoreTime::from_millis(750).left(NOW), Duration::ZERO);
    assert_eq!((Attempt::new(7).get(), Attempt::new(7).to_string()), (7, "7".to_owned()));
    assert_eq!(format!("{:?}", Owner::from_bytes([10; Owner::LEN])), format!("Owner({})", "0a".repeat(16)));
    let states = [claim(0, OnAbandoned::Hold), State::Indeterminate];
    assert_eq!(states.map(|state| state.name()), ["in progress", "indeterminate"]);
}

#[test]
fn e10_a_record_goes_when_its_time_is_over() {
    let key = crate::Key::new("s", "k").unwrap();
    let outcome = SealedOutcome::tombstone(&key);
    let completed = |at| State::Completed { outcome: outcome.clone(), expires_at: StoreTime::from_millis(at) };
    assert_eq!(completed(0).name(), "completed");
    assert_eq!(record(completed(1_000)).at(NOW), None);
    assert_eq!(record(completed(1_001)).at(NOW), Some(record(completed(1_001))));
    // The record is kept for exactly one day.
    let day = 24 * 60 * 60 * 1_000;
    let lapsed = record(claim(1_000, OnAbandoned::Rerun));
    assert_eq!(lapsed.purge_at(), Some(StoreTime::from_millis(1_000 + day)));
    assert_eq!(lapsed.clone().at(StoreTime::from_millis(999 + day)), Some(lapsed.clone()));
    assert_eq!(lapsed.at(StoreTime::from_millis(1_000 + day)), None);
    for kept in [claim(1_000, OnAbandoned::Hold), State::Indeterminate] {
        assert_eq!(record(kept).purge_at(), None);
    }
}

#[test]
fn e06_a_lapsed_claim_to_be_held_is_indeterminate() {
    assert_eq!(record(claim(1_000, OnAbandoned::Hold)).at(NOW), Some(record(State::Indeterminate)));
    for stays in [claim(1_001, OnAbandoned::Hold), claim(1_000, OnAbandoned::Rerun)] {
        assert_eq!(record(stays.clone()).at(NOW), Some(record(stays)));
    }
}
