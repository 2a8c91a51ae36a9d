//! Rows of a database: whatever their columns hold, they are a record or an error, and never panic in a step.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use oncekey::backend::{Acquire, Complete, RecordView, Release, Remove, Renew, Withdraw};
use oncekey::record::{Owner, SealedOutcome, StoreTime, transition};
use oncekey::{Fingerprint, Key, OnAbandoned};

type Columns = (Vec<u8>, i64, Vec<u8>, i16, Option<i64>, Option<i16>, Option<Vec<u8>>, Option<i64>);
type Withdrawals = (i64, Option<Vec<u8>>, Option<i64>);

fuzz_target!(|input: (Columns, Withdrawals, u64)| {
    let (columns, (token, mut withdrawn, until), now) = input;
    let (mut fingerprint, attempt, mut owner, state, lease_until, on_abandoned, outcome, purge_at) = columns;
    // Random lengths would hardly ever be right.
    if fingerprint.len() > 8 {
        fingerprint.resize(Fingerprint::LEN, 7);
    }
    if owner.len() > 4 {
        owner.resize(Owner::LEN, 7);
    }
    if let Some(withdrawn) = withdrawn.as_mut().filter(|withdrawn| withdrawn.len() > 4) {
        withdrawn.resize(Owner::LEN, 7);
    }
    let row = (
        fingerprint,
        attempt,
        owner,
        state,
        lease_until,
        on_abandoned,
        outcome,
        purge_at,
        token,
        withdrawn,
        until,
    );
    let Ok(record) = oncekey_backends::fuzzing::record_of_row(row) else { return };
    let (key, now) = (Key::new("s", "k").unwrap(), StoreTime::from_millis(now));
    let (by, lease) = (record.owner, Duration::from_secs(30));
    let message = Acquire {
        key: key.clone(),
        fingerprint: record.fingerprint,
        owner: Owner::from_bytes([1; Owner::LEN]),
        lease,
        on_abandoned: OnAbandoned::Hold,
        past_withdrawal: None,
    };
    transition::acquire(Some(&record), now, &message);
    transition::renew(Some(&record), now, &Renew { key: key.clone(), owner: by, lease });
    transition::release(Some(&record), now, &Release { key: key.clone(), owner: by });
    transition::withdraw(Some(&record), now, &Withdraw { key: key.clone(), owner: by });
    transition::remove(Some(&record), now, &Remove { key: key.clone() });
    let outcome = SealedOutcome::tombstone(&key);
    transition::complete(Some(&record), now, &Complete { key: key.clone(), owner: by, outcome, retention: lease });
    let _ = RecordView::of(key, record, now);
});
