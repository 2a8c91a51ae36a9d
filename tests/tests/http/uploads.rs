//! Requests that are not compared byte by byte, and bodies that the guard does not read.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use actix_web::http::header;
use actix_web::{App, HttpResponse, web};
use futures_util::StreamExt as _;
use oncekey::Engine;
use oncekey::web::{FingerprintStrategy, Idempotency, Scope};
use oncekey_backends::MemoryBackend;
use tests::http::{PROTOCOLS, Request};

use super::running::{Running, Runs, new_key};

const DIGEST: &str = "sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:";

async fn count(runs: Runs, body: web::Bytes) -> HttpResponse {
    runs.fetch_add(1, Ordering::Relaxed);
    HttpResponse::Created().body(body)
}

/// Reads the body as it arrives, and answers with its length.
async fn upload(runs: Runs, mut body: web::Payload) -> Result<HttpResponse, actix_web::Error> {
    runs.fetch_add(1, Ordering::Relaxed);
    let mut len = 0_u64;
    while let Some(chunk) = body.next().await {
        len += chunk?.len() as u64;
    }
    Ok(HttpResponse::Created().body(len.to_string()))
}

async fn start(runs: Runs) -> Running {
    let engine = Engine::builder(MemoryBackend::new()).start().unwrap();
    let guard = Idempotency::new(engine, Scope::shared())
        .required()
        .request_timeout(Duration::from_millis(300))
        .route("/json", |rules| rules.fingerprint(FingerprintStrategy::canonical_json(["/sent_at"])))
        .route("/upload", |rules| {
            rules.fingerprint(FingerprintStrategy::ContentDigest).request_timeout(Duration::from_secs(120))
        })
        .route("/form", |rules| rules.fingerprint(FingerprintStrategy::headers_only([header::CONTENT_LENGTH])));
    Running::start(move || {
        App::new()
            .app_data(runs.clone())
            .wrap(guard.clone())
            .route("/bytes", web::post().to(count))
            .route("/json", web::post().to(count))
            .route("/upload", web::post().to(upload))
            .route("/form", web::post().to(upload))
    })
    .await
}

#[actix_rt::test]
async fn h23_the_same_json_written_differently_is_a_retry() {
    let running = start(Runs::new(AtomicUsize::new(0))).await;
    for protocol in PROTOCOLS {
        let key = new_key();
        let send = async |path: &str, media_type: &str, body: &str| {
            Request::post(path, body)
                .header("Content-Type", media_type)
                .key(&key)
                .by(protocol)
                .send(running.address)
                .await
        };
        let json = "application/json";
        let first = send("/json", json, r#"{"amount": 100, "to": "ada", "sent_at": "9:00"}"#).await;
        assert_eq!(first.status, 201);
        for same in [r#"{"to":"ada","sent_at":"9:05","amount":1e2}"#, "{\n\"to\" : \"\\u0061da\", \"amount\": 100.0\n}"]
        {
            let again = send("/json", json, same).await;
            assert!(again.is_replay() && again.body == first.body, "{same}: {again:?}");
        }
        for other in
            [r#"{"amount": 101, "to": "ada"}"#, r#"{"amount": "100", "to": "ada"}"#, r#"{"amount": 100}"#, "no json"]
        {
            assert_eq!(send("/json", json, other).await.problem(), "mismatch", "{other}");
        }
        assert_eq!(send("/json", "text/json", r#"{"amount": 100, "to": "ada"}"#).await.problem(), "mismatch");

        // The default compares byte by byte. It includes the media type without its boundary.
        let key = new_key();
        let send = async |media_type: &str, body: &str| {
            let request = Request::post("/bytes", body).header("Content-Type", media_type).key(&key).by(protocol);
            request.send(running.address).await
        };
        assert_eq!(send("multipart/form-data; boundary=a", "{}").await.status, 201);
        assert!(send("multipart/form-data; boundary=b", "{}").await.is_replay());
        assert_eq!(send("multipart/mixed; boundary=a", "{}").await.problem(), "mismatch");
        assert_eq!(send("multipart/form-data; boundary=a", "{ }").await.problem(), "mismatch");
    }
    running.stop().await;
}

#[actix_rt::test]
async fn h25_a_digest_or_headers_identify_a_body_that_is_not_read() {
    let runs = Runs::new(AtomicUsize::new(0));
    let running = start(runs.clone()).await;
    for protocol in PROTOCOLS {
        let key = new_key();
        let with = |digest: &str, body: &str| {
            Request::post("/upload", body).header("Content-Digest", digest).key(&key).by(protocol)
        };
        let before = runs.load(Ordering::Relaxed);
        let first = with(DIGEST, "a body").send(running.address).await;
        assert_eq!((first.status, first.text().as_str()), (201, "6"));
        assert!(with(DIGEST, "a body").send(running.address).await.is_replay());
        let other = "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:";
        assert_eq!(with(other, "").send(running.address).await.problem(), "mismatch");
        assert_eq!(with("sha-256=:AAAA:", "").send(running.address).await.problem(), "content-digest-invalid");
        let none = Request::post("/upload", "a body").key(&key).by(protocol);
        assert_eq!(none.send(running.address).await.problem(), "content-digest-missing");

        let key = new_key();
        let form = |boundary: &str, body: &str| {
            let media_type = format!("multipart/form-data; boundary={boundary}");
            Request::post("/form", body).header("Content-Type", &media_type).key(&key).by(protocol)
        };
        assert_eq!(form("aa", "--aa--").send(running.address).await.status, 201);
        assert!(form("bb", "--bb--").send(running.address).await.is_replay());
        assert_eq!(form("ccc", "--ccc--").send(running.address).await.problem(), "mismatch", "another length");
        assert_eq!(runs.load(Ordering::Relaxed), before + 2);
    }
    running.stop().await;
}

#[actix_rt::test]
async fn h13_a_body_that_does_not_arrive_is_408() {
    let runs = Runs::new(AtomicUsize::new(0));
    let running = start(runs.clone()).await;
    // Over HTTP/2 the server resets the stream after its answer, and this client's library then drops the answer.
    let half = Request::post("/bytes", "0123456789").key(&new_key()).cut();
    let answer = half.send(running.address).await;
    assert_eq!((answer.status, answer.problem().as_str()), (408, "request-timeout"));
    assert_eq!(runs.load(Ordering::Relaxed), 0);
    running.stop().await;
}
