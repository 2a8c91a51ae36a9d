//! Keys: from a header, from a scope and a text, and back from a store. None that is taken may be read as another.
#![no_main]

use libfuzzer_sys::fuzz_target;
use oncekey::{Key, MAX_PART_LEN};

fuzz_target!(|input: &[u8]| {
    if let Ok(key) = oncekey::web::key_of_header(input) {
        assert!(!key.is_empty() && key.len() <= MAX_PART_LEN && key.bytes().all(|byte| byte.is_ascii_graphic()));
        // What was bare is the same in quotes.
        let quoted = format!("\"{}\"", key.replace('\\', "\\\\").replace('"', "\\\""));
        assert_eq!(oncekey::web::key_of_header(quoted.as_bytes()), Ok(key.clone()));
        assert!(Key::new("scope", key).is_ok());
    }
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(key) = Key::from_stored(text) {
        assert_eq!(key.as_stored(), text);
        assert_eq!(Key::new(key.scope(), key.idempotency_key()).as_ref(), Ok(&key));
    }
    let (scope, rest) = text.split_at(text.char_indices().map(|(at, _)| at).nth(text.chars().count() / 2).unwrap_or(0));
    if let Ok(key) = Key::new(scope, rest) {
        assert_eq!((key.scope(), key.idempotency_key()), (scope, rest));
        assert_eq!(Key::from_stored(key.as_stored()).as_ref(), Ok(&key));
        assert!(!key.to_string().chars().any(char::is_control), "a log line could be forged");
    }
});
