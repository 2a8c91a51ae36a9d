//! What the user's own rules change, how a failing store is answered, and other runtimes.

use std::sync::Arc;
use std::time::Duration;

use actix_web::http::header;
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, ResponseError as _, web};
use oncekey::backend::Removed;
use oncekey::conformance::{Fault, Faulty, Steps};
use oncekey::web::{FingerprintStrategy, Idempotency, KeyStrategy, ResponseDisposition, Scope};
use oncekey::{Engine, Fingerprint, Key, OnInProgress, OnStoreFailure};
use oncekey_backends::MemoryBackend;
use tests::http::{PROTOCOLS, Protocol, Request};

use super::running::{new_key, on_both_protocols};
use super::server::{Server, new_order, sqlite};

async fn configured(protocol: Protocol, rules: impl Fn(Idempotency) -> Idempotency + Clone + Send + 'static) -> Server {
    Server::start(Engine::builder(MemoryBackend::new()).start().unwrap(), rules).await.by(protocol)
}

on_both_protocols! {
    h03_with_waiting_on_duplicates_get_the_replay
    h05_an_optional_key_guards_only_where_it_is_given
    h05_a_key_can_be_made_of_the_body
    h13_h14_limits_are_settings
    h15_the_allow_list_can_be_added_to_but_not_for_cookies
    h16_a_store_that_is_away_is_503_and_nothing_runs
    h16_an_outcome_that_can_not_be_stored_is_told
    h17_past_its_retention_a_key_is_new
    h19_the_users_error_handler_answers_instead
    h20_the_users_policy_decides_by_status
    h02_a_claim_lost_in_a_transaction_is_no_outcome
    h02_a_transaction_stores_its_response_or_nothing
}

async fn h03_with_waiting_on_duplicates_get_the_replay(protocol: Protocol) {
    let server = configured(protocol, |guard| guard.on_in_progress(OnInProgress::Wait(Duration::from_secs(30)))).await;
    let request = Request::post("/slow", "").key(&new_key()).by(protocol);
    let address = server.address;
    let first = {
        let request = request.clone();
        actix_rt::spawn(async move { request.send(address).await })
    };
    server.shop.began.notified().await;
    let waiting: Vec<_> = (0..24)
        .map(|_| {
            let request = request.clone();
            actix_rt::spawn(async move { request.send(address).await })
        })
        .collect();
    server.shop.go.notify_one();
    assert!(!first.await.unwrap().is_replay());
    for waiter in waiting {
        let answer = waiter.await.unwrap();
        assert!(answer.is_replay() && answer.text() == "slow", "{answer:?}");
    }
    assert_eq!(server.shop.runs(), 1);
    server.stop().await;
}

async fn h05_an_optional_key_guards_only_where_it_is_given(protocol: Protocol) {
    let server = configured(protocol, |guard| guard.route("/orders", |rules| rules.optional())).await;
    for _ in 0..2 {
        let answer = server.send(&Request::post("/orders", "a book")).await;
        assert!(answer.status == 201 && !answer.is_replay());
    }
    let (_, again) = server.twice(&new_order()).await;
    assert!(again.is_replay());
    assert_eq!(server.shop.runs(), 3);
    assert_eq!(server.send(&Request::post("/other", "a book")).await.problem(), "key-missing");
    server.stop().await;
}

async fn h05_a_key_can_be_made_of_the_body(protocol: Protocol) {
    let server = configured(protocol, |guard| guard.key(KeyStrategy::HeaderOrBodyHash)).await;
    let (_, again) = server.twice(&Request::post("/orders", "a book")).await;
    assert!(again.is_replay());
    let other = server.send(&Request::post("/other", "a book")).await;
    assert!(!other.is_replay(), "another path is another request");
    let (_, by_header) = server.twice(&new_order()).await;
    assert!(by_header.is_replay());
    assert_eq!(server.shop.runs(), 3);
    server.stop().await;

    let of_delivery = |guard: Idempotency| {
        guard
            .key(KeyStrategy::custom(|_, body| {
                std::str::from_utf8(body).ok()?.split_once('#').map(|(id, _)| id.into())
            }))
            .fingerprint(FingerprintStrategy::custom(|request, _| Fingerprint::of(request.path().as_bytes())))
    };
    let server = configured(protocol, of_delivery).await;
    assert!(!server.send(&Request::post("/orders", "d-1#sent at 9:00")).await.is_replay());
    assert!(server.send(&Request::post("/orders", "d-1#sent at 9:05")).await.is_replay());
    assert_eq!(server.send(&Request::post("/orders", "no delivery")).await.problem(), "key-missing");
    server.stop().await;
}

async fn h13_h14_limits_are_settings(protocol: Protocol) {
    let server = configured(protocol, |guard| guard.request_limit(10).response_limit(3_999)).await;
    assert_eq!(server.send(&Request::post("/orders", "0123456789a").key(&new_key())).await.status, 413);
    // The same without an announced length.
    let in_chunks = |chunks: &[&str]| Request::post_in_chunks("/orders", chunks).key(&new_key());
    assert_eq!(server.send(&in_chunks(&["01234", "56789", "a"])).await.problem(), "request-too-large");
    assert_eq!(server.shop.runs(), 0);
    let largest = server.send(&in_chunks(&["01234", "56789"])).await;
    assert_eq!((largest.status, largest.text().as_str()), (201, "order 1: 0123456789"));
    for how in ["sized", "sized-stream", "stream"] {
        let before = server.shop.runs();
        let (first, again) = server.twice(&Request::post(&format!("/large/{how}"), "").key(&new_key())).await;
        assert_eq!((first.status, first.body.len()), (200, 4_000), "{how}: the first caller gets it whole");
        assert_eq!((again.status, again.problem().as_str()), (409, "outcome-not-kept"), "{how}");
        assert_eq!(server.shop.runs(), before + 1, "{how}");
    }
    let (first, again) = server.twice(&Request::post("/large/small-sized-stream", "").key(&new_key())).await;
    assert_eq!((first.text().as_str(), again.text().as_str(), again.is_replay()), ("small", "small", true));
    let (first, again) = server.twice(&Request::post("/large/at-the-limit", "").key(&new_key())).await;
    assert_eq!((first.body.len(), again.body.len(), again.is_replay()), (3_999, 3_999, true));
    for how in ["broken", "short", "long"] {
        let (first, again) = server.twice(&Request::post(&format!("/large/{how}"), "").key(&new_key())).await;
        assert_eq!((first.status, again.problem().as_str()), (500, "outcome-not-kept"), "{how}: what is done is done");
    }
    server.stop().await;
}

async fn h15_the_allow_list_can_be_added_to_but_not_for_cookies(protocol: Protocol) {
    let server = configured(protocol, |guard| {
        guard
            .keep_header(header::HeaderName::from_static("x-kept"))
            .keep_header(header::SET_COOKIE)
            .keep_header(header::DATE)
    })
    .await;
    let (_, again) = server.twice(&new_order()).await;
    assert_eq!(again.header("x-kept"), Some("yes"));
    assert_eq!(again.header("set-cookie"), None);
    assert_eq!(again.all("date").len(), 1);
    server.stop().await;
}

async fn h16_a_store_that_is_away_is_503_and_nothing_runs(protocol: Protocol) {
    let faulty = Faulty::new(MemoryBackend::new());
    let engine = Engine::builder(faulty.clone()).store_deadline(Duration::from_millis(200)).start().unwrap();
    let server =
        Server::start(engine, |guard| guard.route("/other", |rules| rules.on_store_failure(OnStoreFailure::Run)))
            .await
            .by(protocol);
    for fault in [Fault::Down, Fault::BlackHole] {
        faulty.strike(Steps::All, fault);
        let request = new_order();
        let before = server.shop.runs();
        let answer = server.send(&request).await;
        assert_eq!((answer.status, answer.problem().as_str()), (503, "store-unavailable"), "{fault:?}");
        assert!(answer.header("retry-after").is_some());
        assert_eq!(server.shop.runs(), before);
        let unguarded = server.send(&Request::post("/other", "a book").key(&new_key())).await;
        assert_eq!(unguarded.status, 201, "where the policy says so, it runs without a guard");
        faulty.heal();
        let healed = loop {
            let answer = server.send(&request).await;
            if answer.status != 503 {
                break answer;
            }
        };
        assert_eq!(healed.status, 201);
    }
    server.stop().await;
}

async fn h16_an_outcome_that_can_not_be_stored_is_told(protocol: Protocol) {
    let faulty = Faulty::new(MemoryBackend::new());
    let engine = Engine::builder(faulty.clone()).settling_limit(Duration::from_millis(200)).start().unwrap();
    let server = Server::start(engine, |guard| guard).await.by(protocol);
    faulty.strike(Steps::Complete, Fault::Down);
    let answer = server.send(&new_order()).await;
    assert_eq!((answer.status, answer.problem().as_str()), (500, "outcome-not-stored"));
    assert!(server.shop.runs() == 1 && faulty.struck() > 2);
    server.stop().await;
}

async fn h17_past_its_retention_a_key_is_new(protocol: Protocol) {
    let server = configured(protocol, |guard| guard.retention(Duration::from_millis(300))).await;
    let request = new_order();
    let (_, again) = server.twice(&request).await;
    assert!(again.is_replay());
    let expired = loop {
        let answer = server.send(&request).await;
        if !answer.is_replay() {
            break answer;
        }
    };
    assert_eq!((expired.status, expired.text().as_str()), (201, "order 2: a book"));
    server.stop().await;
}

async fn h19_the_users_error_handler_answers_instead(protocol: Protocol) {
    let server = configured(protocol, |guard| {
        guard.error_handler(|error| HttpResponse::build(error.status_code()).body(format!("mine: {error}")))
    })
    .await;
    let answer = server.send(&Request::post("/orders", "")).await;
    assert_eq!(answer.status, 400);
    assert_eq!(answer.text(), "mine: this request needs an idempotency key, in its idempotency-key header");
    let panicked = server.send(&Request::post("/panics", "").key(&new_key())).await;
    assert_eq!((panicked.status, panicked.text().as_str()), (500, "mine: the operation panicked"));
    server.stop().await;
}

async fn h20_the_users_policy_decides_by_status(protocol: Protocol) {
    let server = configured(protocol, |guard| {
        guard.disposition(|status, _| match status.as_u16() {
            402 => ResponseDisposition::Release,
            504 => ResponseDisposition::Indeterminate,
            _ => ResponseDisposition::Keep,
        })
    })
    .await;
    let (_, again) = server.twice(&Request::post("/status/402", "").key(&new_key())).await;
    assert!(again.status == 402 && !again.is_replay());
    let (_, again) = server.twice(&Request::post("/status/503", "").key(&new_key())).await;
    assert!(again.status == 503 && again.is_replay());
    let (_, again) = server.twice(&Request::post("/status/504", "").key(&new_key())).await;
    assert_eq!(again.problem(), "indeterminate");
    server.stop().await;
}

/// A handler that finds in its transaction that its claim is lost wrote nothing. Its answer is not stored as the key's
/// outcome, even if the key is free again by then.
async fn h02_a_claim_lost_in_a_transaction_is_no_outcome(protocol: Protocol) {
    let server = Server::on(sqlite()).await.by(protocol);
    let key = new_key();
    let request = Request::post("/transact/waits", "").key(&key).by(protocol);
    let first = {
        let (request, address) = (request.clone(), server.address);
        actix_rt::spawn(async move { request.send(address).await })
    };
    server.shop.began.notified().await;
    // This is as if another holder had taken the claim over and released it.
    assert_eq!(server.engine.remove(&Key::new("public", &key).unwrap()).await, Ok(Removed::Removed));
    server.shop.go.notify_one();
    let lost = first.await.unwrap();
    assert_eq!((lost.status, lost.problem().as_str(), lost.is_replay()), (409, "claim-lost", false));
    server.shop.go.notify_one();
    let (again, replay) = server.twice(&request).await;
    assert!(again.status == 201 && !again.is_replay(), "{again:?}");
    assert!(replay.is_replay() && replay.body == again.body, "{replay:?}");
    server.stop().await;
}

async fn h02_a_transaction_stores_its_response_or_nothing(protocol: Protocol) {
    let server = Server::on(sqlite()).await.by(protocol);
    let key = new_key();
    let fails = Request::post("/transact/fails", "").key(&key);
    let (first, again) = server.twice(&fails).await;
    assert_eq!((first.status, again.status, again.is_replay()), (500, 500, false), "rolled back: it runs again");
    let panics = server.send(&Request::post("/transact/panics", "").key(&new_key())).await;
    assert_eq!(panics.problem(), "handler-panicked");
    let (first, again) = server.twice(&Request::post("/transact/works", "").key(&new_key())).await;
    assert_eq!((first.status, first.text().as_str()), (201, "committed 1"), "the others' rows were rolled back");
    assert!(again.is_replay() && again.body == first.body);
    server.stop().await;

    let server = Server::on(MemoryBackend::new()).await.by(protocol);
    let answer = server.send(&Request::post("/transact/works", "").key(&new_key())).await;
    assert_eq!((answer.status, answer.problem().as_str()), (500, "internal"), "the memory has no transactions");
    server.stop().await;
}

/// On a plain tokio runtime without an actix `System`, the workers are not arbiters. The middleware works there too.
#[test]
fn h01_on_a_plain_tokio_runtime() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let engine = Engine::builder(MemoryBackend::new()).start().unwrap();
    let used = Arc::new(engine);
    runtime.block_on(async {
        let engine = Engine::clone(&used);
        let server = HttpServer::new(move || {
            App::new()
                .wrap(Idempotency::new(engine.clone(), Scope::shared()).required())
                .route("/", web::post().to(|_: HttpRequest| async { "done" }))
        })
        .workers(2)
        .disable_signals()
        .bind_auto_h2c(("127.0.0.1", 0))
        .unwrap();
        let address = server.addrs()[0];
        let server = server.run();
        let handle = server.handle();
        let serving = tokio::spawn(server);
        for protocol in PROTOCOLS {
            let request = Request::post("/", "").key(&new_key()).by(protocol);
            assert!(!request.send(address).await.is_replay());
            assert!(request.send(address).await.is_replay());
        }
        handle.stop(false).await;
        serving.await.unwrap().unwrap();
    });
}
