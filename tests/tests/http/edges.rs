//! Requests that end early, answers that nobody waits for, and layers between the guard and its handler.

use std::sync::atomic::Ordering;

use actix_web::dev::{Service as _, ServiceResponse};
use actix_web::http::StatusCode;
use actix_web::middleware::{ErrorHandlerResponse, ErrorHandlers};
use actix_web::{App, FromRequest as _, HttpRequest, HttpResponse, web};
use oncekey::Engine;
use oncekey::conformance::{Fault, Faulty, Steps};
use oncekey::web::{FingerprintStrategy, Idempotency, RouteRules, Scope, Transaction};
use serde::Deserialize;
use tests::http::{Leave, Protocol, Request, read_answer};
use tests::rows::{Rows, RowsBackend};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::running::{Running, Runs, engine, new_key, on_both_protocols, required, runs};

on_both_protocols! {
    h03_no_handler_runs_without_the_claim_that_its_transaction_needs
    h05_h06_h12_h25_a_large_body_that_is_not_read_still_gets_its_answer
    h10_a_transaction_that_is_taken_late_frees_no_key
    h10_a_panic_of_inner_middleware_charges_once
    h21_a_path_is_encoded_in_many_ways
    h22_a_body_that_ends_early_uses_up_no_key
    h22_an_extractors_error_in_another_dress_uses_up_no_key
}

async fn pay(runs: Runs) -> HttpResponse {
    runs.fetch_add(1, Ordering::Relaxed);
    HttpResponse::Created().body("paid")
}

/// The first transaction of a route claims its key anew. The store fails between the two claims, and each of these
/// handlers would continue without a transaction.
async fn h03_no_handler_runs_without_the_claim_that_its_transaction_needs(protocol: Protocol) {
    for path in ["/argument", "/option", "/result", "/extracted"] {
        for steps in [Steps::Acquire, Steps::Release] {
            let store = Faulty::new(RowsBackend::new());
            let engine =
                Engine::builder(store.clone()).settling_limit(std::time::Duration::from_millis(100)).start().unwrap();
            let guard = Idempotency::new(engine, Scope::shared()).required();
            let runs = runs();
            let (counted, struck) = (runs.clone(), store.clone());
            let running = Running::start(move || {
                let struck = struck.clone();
                App::new()
                    .app_data(runs.clone())
                    // The guard has already claimed the key.
                    .wrap_fn(move |request, service| {
                        if request.headers().contains_key("x-strike") {
                            struck.strike(steps, Fault::Down);
                        }
                        service.call(request)
                    })
                    .wrap(guard.clone())
                    .route("/argument", web::post().to(async |runs: Runs, _: Transaction| pay(runs).await))
                    .route("/option", web::post().to(async |runs: Runs, _: Option<Transaction>| pay(runs).await))
                    .route(
                        "/result",
                        web::post().to(async |runs: Runs, _: Result<Transaction, actix_web::Error>| pay(runs).await),
                    )
                    .route(
                        "/extracted",
                        web::post().to(async |runs: Runs, request: HttpRequest| {
                            let _ = Transaction::extract(&request).await;
                            pay(runs).await
                        }),
                    )
            })
            .await;
            let request = Request::post(path, "").key(&new_key()).by(protocol);
            let first = request.clone().header("x-strike", "yes").send(running.address).await;
            assert!(matches!(first.status, 409 | 503), "{path} {steps:?}: {first:?}");
            assert_eq!(counted.load(Ordering::Relaxed), 0, "{path} {steps:?}: it ran without a claim");
            store.heal();
            let again = loop {
                let answer = request.send(running.address).await;
                // The release is still on its way.
                if answer.problem_name().as_deref() != Some("in-progress") {
                    break answer;
                }
            };
            assert_eq!((again.status, again.is_replay()), (201, false), "{path} {steps:?}: {again:?}");
            assert_eq!(counted.load(Ordering::Relaxed), 1, "{path} {steps:?}");
            running.stop().await;
        }
    }
}

/// The handler may already have had an effect, so its key must not be released, not even for a moment.
async fn h10_a_transaction_that_is_taken_late_frees_no_key(protocol: Protocol) {
    let store = Faulty::new(RowsBackend::new());
    let guard = Idempotency::new(Engine::builder(store.clone()).start().unwrap(), Scope::shared()).required();
    let runs = runs();
    let (counted, struck) = (runs.clone(), store.clone());
    let running = Running::start(move || {
        let struck = struck.clone();
        let late = move |runs: Runs, request: HttpRequest| {
            let struck = struck.clone();
            async move {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                if runs.fetch_add(1, Ordering::Relaxed) == 0 {
                    struck.strike(Steps::Acquire, Fault::Down);
                }
                let transaction = Transaction::extract(&request).await?;
                let committed =
                    transaction.run(|_: &mut Rows, _| Ok::<_, std::io::Error>(HttpResponse::Created().finish()));
                Ok::<_, actix_web::Error>(committed.await?)
            }
        };
        App::new().app_data(runs.clone()).wrap(guard.clone()).route("/late", web::post().to(late))
    })
    .await;
    let request = Request::post("/late", "").key(&new_key()).by(protocol);
    let first = request.send(running.address).await;
    store.heal();
    let again = request.send(running.address).await;
    assert_eq!(counted.load(Ordering::Relaxed), 1, "it ran twice: {first:?}, {again:?}");
    assert_eq!((first.status, again.status, again.is_replay()), (201, 201, true), "{first:?}, {again:?}");
    running.stop().await;
}

async fn h05_h06_h12_h25_a_large_body_that_is_not_read_still_gets_its_answer(protocol: Protocol) {
    let guard = Idempotency::new(engine(), Scope::header("X-Api-Key"))
        .required()
        .route("/upload", |rules| rules.fingerprint(FingerprintStrategy::ContentDigest));
    let runs = runs();
    let counted = runs.clone();
    let running = Running::start(move || {
        App::new()
            .app_data(runs.clone())
            .wrap(guard.clone())
            .route("/pay", web::post().to(pay))
            .route("/upload", web::post().to(pay))
    })
    .await;
    let large = |path: &str| Request::post(path, vec![b'x'; 16 << 20]).by(protocol);
    for (request, status, problem) in [
        (large("/pay").header("X-Api-Key", "ada"), 400, "key-missing"),
        (large("/pay").header("X-Api-Key", "ada").key("no key"), 400, "key-invalid"),
        (large("/pay").key(&new_key()), 400, "scope-missing"),
        (large("/pay").header("X-Api-Key", "ada").key(&new_key()), 413, "request-too-large"),
        (large("/upload").header("X-Api-Key", "ada").key(&new_key()), 400, "content-digest-missing"),
    ] {
        let answer = request.send(running.address).await;
        assert_eq!((answer.status, answer.problem().as_str()), (status, problem));
    }
    assert_eq!(counted.load(Ordering::Relaxed), 0);
    running.stop().await;
}

async fn h10_a_panic_of_inner_middleware_charges_once(protocol: Protocol) {
    let guard = required();
    let runs = runs();
    let counted = runs.clone();
    let running = Running::start(move || {
        App::new()
            .app_data(runs.clone())
            .wrap_fn(|request, service| {
                assert!(!request.headers().contains_key("x-before"), "this panic is part of a test");
                let is_after = request.headers().contains_key("x-after");
                let called = service.call(request);
                async move {
                    let answered = called.await;
                    assert!(!is_after, "this panic is part of a test");
                    answered
                }
            })
            .wrap(guard.clone())
            .route("/pay", web::post().to(pay))
    })
    .await;
    for (when, charges) in [("x-before", 0), ("x-after", 1)] {
        let request = Request::post("/pay", "").key(&new_key()).by(protocol);
        let first = request.clone().header(when, "yes").send(running.address).await;
        assert_eq!(first.problem(), "handler-panicked", "{when}");
        // The guard cannot distinguish the two.
        assert_eq!(request.send(running.address).await.problem(), "indeterminate", "{when}");
        assert_eq!(counted.load(Ordering::Relaxed), charges, "{when}");
    }
    running.stop().await;
}

async fn h21_a_path_is_encoded_in_many_ways(protocol: Protocol) {
    let guard = Idempotency::new(engine(), Scope::shared())
        .route("/caf\u{e9}/{id}", RouteRules::required)
        .route("/a b", RouteRules::required)
        .route("/trailing/", RouteRules::required);
    let runs = runs();
    let running = Running::start(move || {
        App::new()
            .app_data(runs.clone())
            .wrap(guard.clone())
            .route("/caf\u{e9}/{id}", web::post().to(pay))
            .route("/a b", web::post().to(pay))
            .route("/trailing/", web::post().to(pay))
            .route("/open/{id}", web::post().to(pay))
    })
    .await;
    for (path, status) in [
        ("/caf%C3%A9/1", 400),
        ("/caf%c3%a9/1", 400),
        ("/c%61f%C3%A9/a%2Fb", 400),
        ("/caf%C3%A9/%F0%9F%92%B3", 400),
        ("/caf%C3%A9/%00", 400),
        // A `NormalizePath` inside the guard would find a route for it.
        ("/caf%C3%A9/1/", 400),
        ("/caf%C3%A9/a/b", 404),
        ("/caf%E9/1", 404),
        ("/a%20b", 400),
        ("/trailing/", 400),
        ("/trailing", 400),
        ("/open/a%2Fb", 201),
        ("/open/../caf%C3%A9/1", 404),
    ] {
        let answer = Request::post(path, "").by(protocol).send(running.address).await;
        assert_eq!(answer.status, status, "{path}: {answer:?}");
    }
    running.stop().await;
}

async fn h22_a_body_that_ends_early_uses_up_no_key(protocol: Protocol) {
    let guard = required();
    let runs = runs();
    let counted = runs.clone();
    let running = Running::start(move || {
        App::new()
            .app_data(runs.clone())
            .wrap(guard.clone())
            .route("/pay", web::post().to(async |runs: Runs, _: web::Bytes| pay(runs).await))
    })
    .await;
    for &how in Leave::all(protocol) {
        let before = counted.load(Ordering::Relaxed);
        let key = new_key();
        let half = Request::post("/pay", "0123456789").key(&key).by(protocol).cut();
        half.begin(running.address, how).await.unwrap().leave().await;
        let other = Request::post("/pay", "corrected").key(&key).by(protocol).send(running.address).await;
        assert_eq!((other.status, other.is_replay()), (201, false), "{how:?}: {other:?}");
        assert_eq!(counted.load(Ordering::Relaxed), before + 1, "{how:?}");
    }
    running.stop().await;
}

#[derive(Deserialize)]
struct Payment {
    #[expect(dead_code, reason = "only whether it can be read counts")]
    amount: u64,
}

async fn h22_an_extractors_error_in_another_dress_uses_up_no_key(protocol: Protocol) {
    let guard = required();
    let runs = runs();
    let counted = runs.clone();
    let running = Running::start(move || {
        App::new()
            .app_data(runs.clone())
            // This handler replaces body and status, as in the documentation of actix-web.
            .wrap(ErrorHandlers::new().handler(StatusCode::BAD_REQUEST, |response: ServiceResponse<_>| {
                let (request, mut response) = response.into_parts();
                *response.status_mut() = StatusCode::UNPROCESSABLE_ENTITY;
                let response = response.set_body("dressed up").map_into_boxed_body();
                let response = ServiceResponse::new(request, response).map_into_right_body();
                Ok(ErrorHandlerResponse::Response(response))
            }))
            .wrap(guard.clone())
            .route("/json", web::post().to(async |runs: Runs, _: web::Json<Payment>| pay(runs).await))
    })
    .await;
    let key = new_key();
    let json = |body: &str| Request::post("/json", body).header("Content-Type", "application/json").key(&key);
    let typo = json(r#"{"amount": "#).by(protocol).send(running.address).await;
    assert_eq!((typo.status, typo.text().as_str()), (422, "dressed up"));
    let corrected = json(r#"{"amount": 1}"#).by(protocol).send(running.address).await;
    assert_eq!((corrected.status, counted.load(Ordering::Relaxed)), (201, 1), "{corrected:?}");
    running.stop().await;
}

/// HTTP/2 has no such exchange.
#[actix_rt::test]
async fn h01_h02_a_client_that_waits_for_100_is_told_to_go_on() {
    let guard = required();
    let runs = runs();
    let counted = runs.clone();
    let running = Running::start(move || {
        App::new().app_data(runs.clone()).wrap(guard.clone()).route("/pay", web::post().to(pay))
    })
    .await;
    let key = new_key();
    for is_retry in [false, true] {
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        let head = format!(
            "POST /pay HTTP/1.1\r\nHost: shop\r\nContent-Length: 4\r\nExpect: 100-continue\r\nIdempotency-Key: {key}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut go_on = [0; 25];
        stream.read_exact(&mut go_on).await.unwrap();
        assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
        stream.write_all(b"book").await.unwrap();
        let answer = read_answer(&mut stream).await.unwrap();
        assert_eq!((answer.status, answer.is_replay()), (201, is_retry));
    }
    assert_eq!(counted.load(Ordering::Relaxed), 1);
    running.stop().await;
}
