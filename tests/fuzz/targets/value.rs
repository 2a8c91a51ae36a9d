//! Values of Redis keys: whatever the bytes, they are read or refused, and what is read is written as the same bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use oncekey::Key;

fuzz_target!(|input: &[u8]| {
    oncekey_backends::fuzzing::redis_value(&Key::new("s", "k").unwrap(), input.to_vec());
});
