//! Stored outcomes and the typed messages in them: whatever the bytes, they are read or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use oncekey::Key;
use oncekey::record::{Payload, PayloadKind, SealedOutcome};

fuzz_target!(|input: &[u8]| {
    let (key, other) = (Key::new("s", "k").unwrap(), Key::new("s", "l").unwrap());
    // As a store gives it, damaged or foreign.
    let read = SealedOutcome::from_stored(input.to_vec().into());
    if let Ok(payload) = read.open(&key) {
        assert!(read.open(&other).is_err(), "one key's outcome is read as another's");
        let again = match payload {
            Payload::Tombstone => SealedOutcome::tombstone(&key),
            Payload::Value { kind, bytes } => SealedOutcome::seal(&key, kind, |out| out.extend_from_slice(&bytes)),
        };
        // A tombstone holds nothing that would have to come back.
        assert!(again == read || matches!(again.open(&key), Ok(Payload::Tombstone)));
    }
    // Behind a right checksum, as another version or a faulty writer left it.
    for kind in [PayloadKind::Json, PayloadKind::Http] {
        let sealed = SealedOutcome::seal(&key, kind, |out| out.extend_from_slice(input));
        assert!(matches!(sealed.open(&key), Ok(Payload::Value { bytes, .. }) if bytes == input));
        assert!(sealed.open(&other).is_err());
        let value = sealed.value::<serde_json::Value>(&key);
        if let Ok(Some(value)) = value {
            let again = SealedOutcome::of_value(&key, &value).unwrap();
            assert_eq!(again.value::<serde_json::Value>(&key), Ok(Some(value)));
        }
        let _ = sealed.value::<Vec<(u32, String)>>(&key);
    }
});
