//! Rows of a database: whatever their columns hold, they are a record or an error, and never panic in a step.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use oncekey::backend::{Acquire, Complete, RecordView, Renew};
use oncekey::record::{Owner, SealedOutcome, StoreTime, transition};
use oncekey::{Fingerprint, Key, OnAbandoned};

type Columns = (Vec<u8>, i64, Vec<u8>, i16, Option<i64>, Option<i16>, Option<Vec<u8>>, Option<i64>, u64);

fuzz_target!(|columns: Columns| {
    let (mut fingerprint, attempt, mut owner, state, lease_until, on_abandoned, outcome, purge_at, now) = columns;
    // Random lengths would hardly ever be right.
    if fingerprint.len() > 8 {
        fingerprint.resize(Fingerprint::LEN, 7);
    }
    if owner.len() > 4 {
        owner.resize(Owner::LEN, 7);
    }
    let row = (fingerprint, attempt, owner, state, lease_until, on_abandoned, outcome, purge_at);
    let Ok(record) = oncekey_backends::fuzzing::record_of_row(row) else { return };
    let (key, now) = (Key::new("s", "k").unwrap(), StoreTime::from_millis(now));
    let (by, lease) = (record.owner, Duration::from_secs(30));
    let message = Acquire {
        key: key.clone(),
        fingerprint: record.fingerprint,
        owner: Owner::from_bytes([1; Owner::LEN]),
        lease,
        on_abandoned: OnAbandoned::Hold,
    };
    transition::acquire(Some(&record), now, &message);
    transition::renew(Some(&record), now, &Renew { key: key.clone(), owner: by, lease });
    let outcome = SealedOutcome::tombstone(&key);
    transition::complete(Some(&record), now, &Complete { key: key.clone(), owner: by, outcome, retention: lease });
    let _ = RecordView::of(key, record, now);
});
