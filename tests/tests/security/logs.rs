//! What logs and errors show of a hostile key.

use std::sync::{Arc, Mutex};

use oncekey::at_rest::KeyHashing;
use oncekey::{Engine, Event, Key};
use oncekey_backends::MemoryBackend;
use tests::http::Request;
use tests::process::Process;
use tests::shop::command;
use tracing_subscriber::fmt::MakeWriter;

use super::hostile;

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Whatever the key, an event is one line, and the line begins like the log's other lines. Observers and errors show it
/// the same way.
#[actix_rt::test]
async fn a_key_forges_no_line_of_a_log() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(log.clone())
        .with_ansi(false)
        .without_time()
        .with_max_level(tracing_subscriber::filter::LevelFilter::DEBUG)
        .finish();
    let _guard = tracing_subscriber::util::SubscriberInitExt::set_default(subscriber);
    let observed: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = Arc::clone(&observed);
    let engine = Engine::builder(MemoryBackend::new())
        .observer(move |event: &Event<'_>| seen.lock().unwrap().push(format!("{event:?} {}", event.key)))
        .start()
        .unwrap();
    let keys = hostile::ascii();
    for key in &keys {
        let key = Key::new("s", key).unwrap();
        engine.run(key.clone(), &1, |_| async { Ok::<_, String>(1) }).await.unwrap();
        let mismatch = engine.run(key, &2, |_| async { Ok::<_, String>(1) }).await.unwrap_err();
        assert!(!mismatch.to_string().contains('\n'));
    }
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(text.lines().count() >= 3 * keys.len(), "the log was not written: {text}");
    for line in text.lines() {
        assert!(line.starts_with("DEBUG "), "not a line of the log: {line}");
        assert!(!line.chars().any(char::is_control), "{line:?}");
    }
    for shown in observed.lock().unwrap().iter() {
        assert!(!shown.chars().any(char::is_control), "{shown:?}");
    }
    // A key that could forge a line is refused, and the error does not show it.
    for key in ["k\nDEBUG oncekey: forged", "k\u{1b}[2J", "k\u{2028}forged", "k\u{202e}desrever"] {
        let refused = Key::new("s", key).unwrap_err().to_string();
        assert!(!refused.contains("forged") && !refused.chars().any(char::is_control), "{refused}");
    }
}

/// The same from outside, with everything logged. Every line is the log's own, and no answer shows a bad key.
#[actix_rt::test]
async fn h06_a_request_forges_no_line_of_the_shops_log() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let mut command = command(folder.path(), &["--store=memory:"]);
    command.env("RUST_LOG", "trace").env("NO_COLOR", "1").stderr(std::fs::File::create(&path).unwrap());
    let mut process = Process::start(&mut command);
    let address = process.expect("The shop is open: http://").trim_end_matches('/').parse().unwrap();
    let mut asked = 0;
    let bad = ["k\u{1b}[31mred", "k\u{85}2026-01-01 forged", "k\tforged", "k é", "k\u{2028}2026 forged", "\"forged"];
    for key in hostile::ascii().iter().map(String::as_str).chain(bad) {
        let body = r#"{"amount": 1, "currency": "usd", "card": "tok_visa", "reference": "r"}"#;
        let request = Request::post("/payments", body).header("Content-Type", "application/json").key(key);
        let answer = request.header("X-Api-Key", key).send(address).await;
        asked += 1;
        if answer.status == 400 {
            // If the key has a control character, the server does not accept the request at all.
            assert!(answer.body.is_empty() || answer.problem() == "key-invalid", "{answer:?}");
            assert!(!answer.text().contains("forged"), "{answer:?}");
        } else {
            assert_eq!(answer.status, 201, "{key}: {answer:?}");
        }
    }
    drop(process);
    let text = std::fs::read(&path).unwrap();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().filter(|line| line.contains("oncekey")).collect();
    assert!(lines.len() > asked, "the log was not written");
    let year = |line: &str| {
        line.len() > 5 && line.as_bytes()[..4].iter().all(u8::is_ascii_digit) && line.as_bytes()[4] == b'-'
    };
    for line in lines {
        assert!(year(line.trim_start()), "not a line of the log: {line:?}");
        assert!(!line.contains('\u{1b}') && !line.contains('\u{2028}'), "{line:?}");
    }
    assert!(!text.contains("forged"), "a refused key is in the log");
}

/// With hashing, the store's view of a record shows only the digest.
#[test]
fn a_digest_shows_nothing_of_its_key() {
    let engine = KeyHashing::hmac([7; 32]).unwrap();
    let digest = format!("0::{}-{}", engine.id(), "0".repeat(64));
    let key = Key::from_stored(&digest).unwrap();
    assert_eq!((key.to_string(), format!("{key:?}")), (digest[3..].to_owned(), format!("Key({})", &digest[3..])));
}
