//! Responses as they are replayed: no bytes in a store make a header that HTTP does not allow, or that a replay must not
//! carry.
#![no_main]

use libfuzzer_sys::fuzz_target;
use oncekey::Key;
use oncekey::record::Payload;
use oncekey::web::RecordedResponse;

fuzz_target!(|input: &[u8]| {
    let Ok(response) = RecordedResponse::decode(input.to_vec().into()) else { return };
    assert!(response.status().as_u16() >= 200);
    let key = Key::new("s", "k").unwrap();
    let Ok(Payload::Value { bytes, .. }) = response.seal(&key).open(&key) else { panic!("it can't be stored again") };
    let again = RecordedResponse::decode(bytes).unwrap();
    assert_eq!(again, response);
    let replay = oncekey::web::replay_of(again);
    for (name, value) in replay.headers() {
        let refused = ["set-cookie", "date", "content-length", "connection", "transfer-encoding", "te", "trailer"];
        assert!(!refused.contains(&name.as_str()), "{name} is replayed");
        assert!(!value.as_bytes().iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)), "{name} splits the response");
    }
    assert_eq!(replay.headers().get("idempotent-replayed").map(|value| value.as_bytes()), Some(&b"true"[..]));
});
