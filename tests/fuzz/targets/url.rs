//! Store URLs: read or refused, and no refusal shows what may be a password.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &str| {
    const PASSWORD: &str = "hunter2-correct-horse";
    for scheme in ["postgres", "mysql"] {
        // As it is, and with a password in its place. The host is this machine: no certificates are read for it.
        for url in [input.to_owned(), format!("{scheme}://user:{PASSWORD}@127.0.0.1/{input}")] {
            let read = match scheme {
                "postgres" => oncekey_backends::fuzzing::postgres_url(&url),
                _ => oncekey_backends::fuzzing::mysql_url(&url),
            };
            if let Err(told) = read {
                assert!(!told.contains(PASSWORD), "a password is shown: {told}");
            }
        }
    }
});
