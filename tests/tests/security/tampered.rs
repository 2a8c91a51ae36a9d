//! Records that were changed by an attacker with write access to the store. They are errors: nothing is sent and
//! nothing runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use actix_web::{App, HttpResponse, HttpServer, web};
use oncekey::record::{PayloadKind, SealedOutcome};
use oncekey::web::{Idempotency, Scope};
use oncekey::{CorruptOutcome, Engine, Error, Key, RunError};
use oncekey_backends::SqliteBackend;
use tests::http::Request;
use tokio::io::AsyncReadExt as _;

use super::stores::{Thief, encryption, fresh_sqlite, hashing};

struct Server {
    address: std::net::SocketAddr,
    runs: Arc<AtomicUsize>,
    backend: SqliteBackend,
    handle: actix_web::dev::ServerHandle,
}

async fn serve(
    set_up: impl FnOnce(oncekey::EngineBuilder<SqliteBackend>) -> oncekey::EngineBuilder<SqliteBackend>,
) -> Server {
    let backend = fresh_sqlite().await;
    let engine = set_up(Engine::builder(backend.clone())).start().unwrap();
    let runs = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&runs);
    let server = HttpServer::new(move || {
        let runs = Arc::clone(&counter);
        let pay = move || {
            let run = runs.fetch_add(1, Ordering::Relaxed);
            async move { HttpResponse::Created().insert_header(("Location", "/charges/1")).body(format!("charge {run}")) }
        };
        App::new().wrap(Idempotency::new(engine.clone(), Scope::shared()).required()).route("/pay", web::post().to(pay))
    });
    let server = server.workers(1).disable_signals().bind(("127.0.0.1", 0)).unwrap();
    let address = server.addrs()[0];
    let server = server.run();
    let handle = server.handle();
    actix_rt::spawn(server);
    Server { address, runs, backend, handle }
}

/// Returns all bytes that the server sends.
async fn raw(server: &Server, request: &Request) -> String {
    let mut stream = request.clone().header("Connection", "close").send_only(server.address).await;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Returns a response in the middleware's stored form, with unchecked parts.
fn forged(status: u16, headers: &[(&[u8], &[u8])], body: &[u8]) -> Vec<u8> {
    let mut bytes = status.to_be_bytes().to_vec();
    bytes.extend((headers.len() as u32).to_be_bytes());
    for part in headers.iter().flat_map(|(name, value)| [name, value]) {
        bytes.extend((part.len() as u32).to_be_bytes());
        bytes.extend_from_slice(part);
    }
    bytes.extend_from_slice(body);
    bytes
}

/// The checksum does not stop an attacker with write access to the store, who computes a new one, as this test does.
/// Even then, the attacker cannot write a header that HTTP does not allow.
#[actix_rt::test]
async fn h15_headers_are_not_injected_by_a_tampered_record() {
    let server = serve(|builder| builder).await;
    let key = Key::new("default", "k");
    let request = Request::post("/pay", "").key("k");
    assert!(raw(&server, &request).await.starts_with("HTTP/1.1 201"));
    let mut thief = Thief::of(&server.backend);
    let stored_key = thief.steal()[0].0.clone();
    let key =
        key.ok().filter(|key| key.as_stored() == stored_key).unwrap_or_else(|| Key::from_stored(&stored_key).unwrap());
    let injections: [(&[u8], &[u8]); 9] = [
        (b"location", b"/a\r\nX-Injected: 1"),
        (b"location", b"/a\nX-Injected: 1"),
        (b"location", b"/a\rX-Injected: 1"),
        (b"location", b"/a\0X-Injected: 1"),
        (b"location", b"\r\n\r\n<h1>X-Injected: 1</h1>"),
        (b"x-a: 1\r\nX-Injected", b"1"),
        (b"x a X-Injected", b"1"),
        (b"", b"X-Injected: 1"),
        (b"x-\xffX-Injected", b"1"),
    ];
    for header in injections {
        let outcome = SealedOutcome::seal(&key, PayloadKind::Http, |bytes| bytes.extend(forged(201, &[header], b"")));
        thief.plant(&stored_key, outcome.as_stored());
        let answer = raw(&server, &request).await;
        assert!(answer.starts_with("HTTP/1.1 500") && answer.contains("record-unreadable"), "{header:?}: {answer}");
        assert!(!answer.contains("X-Injected") && !answer.contains("<h1>"), "{header:?}: {answer}");
    }
    // Well-formed headers that a replay never carries are left out. A status that no answer has is an error.
    let smuggled: [(&[u8], &[u8]); 4] = [
        (b"set-cookie", b"session=1"),
        (b"transfer-encoding", b"chunked"),
        (b"content-length", b"3"),
        (b"connection", b"upgrade"),
    ];
    let outcome = SealedOutcome::seal(&key, PayloadKind::Http, |bytes| bytes.extend(forged(201, &smuggled, b"paid")));
    thief.plant(&stored_key, outcome.as_stored());
    let answer = raw(&server, &request).await.to_ascii_lowercase();
    assert!(answer.starts_with("http/1.1 201") && answer.ends_with("\r\n\r\npaid"), "{answer}");
    for word in ["set-cookie", "transfer-encoding", "content-length: 3", "upgrade"] {
        assert!(!answer.contains(word), "{answer}");
    }
    for status in [0, 99, 100, 101, 199, 1_000, u16::MAX] {
        let outcome = SealedOutcome::seal(&key, PayloadKind::Http, |bytes| bytes.extend(forged(status, &[], b"")));
        thief.plant(&stored_key, outcome.as_stored());
        assert!(raw(&server, &request).await.starts_with("HTTP/1.1 500"), "{status}");
    }
    assert_eq!(server.runs.load(Ordering::Relaxed), 1);
    server.handle.stop(false).await;
}

/// With encryption, not even a well-formed forgery is sent.
#[actix_rt::test]
async fn e13_what_is_not_authentic_is_never_sent() {
    let server = serve(|builder| builder.encryption(encryption())).await;
    let request = |key: &str| Request::post("/pay", "").key(key);
    for key in ["a", "b"] {
        assert!(raw(&server, &request(key)).await.starts_with("HTTP/1.1 201"));
    }
    let mut thief = Thief::of(&server.backend);
    let stolen = thief.steal();
    let [(key_a, of_a), (_, of_b)] = &stolen[..] else { panic!("{stolen:?}") };
    let plain = SealedOutcome::seal(&Key::from_stored(key_a).unwrap(), PayloadKind::Http, |bytes| {
        bytes.extend(forged(201, &[], b"all is paid"));
    });
    let mut flipped = of_a.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let mut of_another_secret = of_a.clone();
    of_another_secret[1] ^= 1;
    for planted in
        [plain.as_stored(), &of_b[..], &flipped, &of_another_secret, &of_a[..of_a.len() - 1], &of_a[..3], b""]
    {
        thief.plant(key_a, planted);
        let answer = raw(&server, &request("a")).await;
        assert!(answer.starts_with("HTTP/1.1 500") && answer.contains("record-unreadable"), "{answer}");
        assert!(!answer.contains("paid"), "{answer}");
    }
    thief.plant(key_a, of_a);
    assert!(raw(&server, &request("a")).await.to_ascii_lowercase().contains("idempotent-replayed: true"));
    assert_eq!(server.runs.load(Ordering::Relaxed), 2);
    server.handle.stop(false).await;
}

/// Every byte of an encrypted outcome is flipped in the store in turn.
#[actix_rt::test]
async fn e13_every_flipped_byte_in_the_store_is_an_error() {
    let backend = fresh_sqlite().await;
    let engine = Engine::builder(backend.clone()).key_hashing(hashing()).encryption(encryption()).start().unwrap();
    let key = Key::new("s", "k").unwrap();
    let run = async || engine.run(key.clone(), &1, |_| async { Ok::<_, String>(17_u32) }).await;
    run().await.unwrap();
    let mut thief = Thief::of(&backend);
    let (stored_key, intact) = thief.steal().remove(0);
    for at in 0..intact.len() {
        let mut flipped = intact.clone();
        flipped[at] ^= 0x10;
        thief.plant(&stored_key, &flipped);
        let given = run().await;
        let Err(RunError::Engine(Error::Corrupt(corrupt))) = given else { panic!("byte {at}: {given:?}") };
        match at {
            0 => assert_eq!(corrupt, CorruptOutcome::NotEncrypted),
            1..5 => assert!(matches!(corrupt, CorruptOutcome::UnknownSecret(_)), "byte {at}: {corrupt:?}"),
            _ => assert_eq!(corrupt, CorruptOutcome::NotAuthentic, "byte {at}"),
        }
        // The damage hides nothing else: a lookup shows the record, and that its outcome cannot be read.
        let view = engine.lookup(&key).await.unwrap().unwrap();
        let oncekey::backend::StateView::Completed { outcome, .. } = view.state else { panic!("byte {at}") };
        assert_eq!(outcome.open(&key), Err(CorruptOutcome::Encrypted));
        assert_eq!(engine.list(None, 10).await.unwrap().len(), 1);
    }
    thief.plant(&stored_key, &intact);
    assert!(run().await.unwrap().is_replay());
}
