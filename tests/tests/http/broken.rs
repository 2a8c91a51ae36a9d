//! User code that fails while the guard calls it, and answers that are not final. Each caller gets a response that
//! outer middleware sees, and no effect happens twice.

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use actix_web::body::{BodySize, MessageBody, SizedStream};
use actix_web::dev::Service as _;
use actix_web::error::InternalError;
use actix_web::http::{StatusCode, header};
use actix_web::middleware::{Compress, DefaultHeaders};
use actix_web::{App, HttpResponse, ResponseError, web};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use oncekey::Engine;
use oncekey::web::{
    Idempotency, RecordedResponse, ResponseDisposition, Scope, Transaction, TransactionError, WithDisposition as _,
};
use tests::http::{Protocol, Request};
use tests::rows::{Rows, RowsBackend};

use super::running::{Running, Runs, charge, engine, new_key, on_both_protocols, required, runs, twice};

on_both_protocols! {
    h14_h24_a_response_whose_body_fails_under_the_guard_is_answered_and_does_not_run_again
    h20_a_refusal_of_inner_middleware_can_state_its_disposition
    h22_a_405_of_a_handler_that_had_its_effect_is_kept
    h24_an_error_whose_response_panics_is_answered
    h24_a_panic_that_panics_again_when_it_is_dropped_is_answered
    h02_an_answer_that_is_not_final_is_not_stored
}

/// A body that panics at its first chunk.
struct PanicsAtOnce;

impl MessageBody for PanicsAtOnce {
    type Error = std::io::Error;

    fn size(&self) -> BodySize {
        BodySize::Sized(10)
    }

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        panic!("this panic is part of a test")
    }
}

async fn fails_in_its_body(runs: Runs, how: web::Path<String>) -> HttpResponse {
    charge(&runs).await;
    let begins = stream::once(async { Ok::<_, std::io::Error>(Bytes::from_static(b"12345")) });
    let breaks = stream::once(async { Err::<Bytes, _>(std::io::Error::other("broken")) });
    let panics =
        stream::poll_fn(|_| -> Poll<Option<Result<Bytes, std::io::Error>>> { panic!("this panic is part of a test") });
    let mut created = HttpResponse::Created();
    match how.as_str() {
        "at-once" => created.body(PanicsAtOnce),
        "too-short" => created.body(SizedStream::new(10, begins)),
        "breaks" => created.body(SizedStream::new(10, begins.chain(breaks))),
        "panics" => created.body(SizedStream::new(10, begins.chain(panics))),
        // The guard reads these two if they are compressed inside it.
        "stream-breaks" => created.content_type("text/plain").streaming(begins.chain(breaks)),
        _ => created.content_type("text/plain").streaming(begins.chain(panics)),
    }
}

async fn h14_h24_a_response_whose_body_fails_under_the_guard_is_answered_and_does_not_run_again(protocol: Protocol) {
    let guard = required();
    let runs = runs();
    let counted = runs.clone();
    let running = Running::start(move || {
        App::new()
            .app_data(runs.clone())
            .wrap(guard.clone())
            .wrap(DefaultHeaders::new().add(("x-outer", "yes")))
            .service(web::scope("/gzip").wrap(Compress::default()).route("/{how}", web::post().to(fails_in_its_body)))
            .route("/{how}", web::post().to(fails_in_its_body))
    })
    .await;
    for path in
        ["/at-once", "/too-short", "/breaks", "/panics", "/gzip/at-once", "/gzip/stream-breaks", "/gzip/stream-panics"]
    {
        let before = counted.load(Ordering::Relaxed);
        let request = Request::post(path, "").header("Accept-Encoding", "gzip").key(&new_key()).by(protocol);
        let first = request.send(running.address).await;
        assert_eq!((first.status, first.header("x-outer")), (500, Some("yes")), "{path}: {first:?}");
        let again = request.send(running.address).await;
        assert_eq!((again.status, again.problem().as_str()), (409, "outcome-not-kept"), "{path}");
        assert_eq!(counted.load(Ordering::Relaxed), before + 1, "{path}: it ran twice");
    }
    running.stop().await;
}

async fn h20_a_refusal_of_inner_middleware_can_state_its_disposition(protocol: Protocol) {
    let guard = required();
    let runs = runs();
    let counted = runs.clone();
    let running = Running::start(move || {
        App::new()
            .app_data(runs.clone())
            .wrap_fn(|request, service| {
                let refused = match request.path() {
                    "/keep" => Some((StatusCode::BAD_GATEWAY, ResponseDisposition::Keep)),
                    "/hold" => Some((StatusCode::FORBIDDEN, ResponseDisposition::Indeterminate)),
                    _ => None,
                };
                let called = refused.is_none().then(|| service.call(request));
                async move {
                    match (called, refused) {
                        (Some(called), _) => called.await,
                        (None, refused) => {
                            let (status, disposition) = refused.unwrap();
                            let response = HttpResponse::build(status).body("refused").with_disposition(disposition);
                            Err(InternalError::from_response("refused", response).into())
                        }
                    }
                }
            })
            .wrap(guard.clone())
            .default_service(web::to(async |runs: Runs| {
                charge(&runs).await;
                HttpResponse::Created().finish()
            }))
    })
    .await;
    let kept = Request::post("/keep", "").key(&new_key()).by(protocol);
    let (first, again) = twice(&running, kept).await;
    assert_eq!((first.status, first.text().as_str()), (502, "refused"));
    assert!(again.is_replay() && again.status == 502 && again.text() == "refused", "{again:?}");
    let held = Request::post("/hold", "").key(&new_key()).by(protocol);
    let (first, again) = twice(&running, held).await;
    assert_eq!((first.status, again.problem().as_str()), (403, "indeterminate"));
    assert_eq!(counted.load(Ordering::Relaxed), 0);
    running.stop().await;
}

async fn h22_a_405_of_a_handler_that_had_its_effect_is_kept(protocol: Protocol) {
    let guard = required();
    let runs = runs();
    let counted = runs.clone();
    let running = Running::start(move || {
        App::new().app_data(runs.clone()).wrap(guard.clone()).service(web::resource("/pay").route(web::post().to(
            async |runs: Runs| {
                charge(&runs).await;
                HttpResponse::MethodNotAllowed().insert_header((header::ALLOW, "GET")).finish()
            },
        )))
    })
    .await;
    let request = Request::post("/pay", "").key(&new_key()).by(protocol);
    let (first, again) = twice(&running, request).await;
    assert_eq!((first.status, again.status, again.is_replay()), (405, 405, true), "{again:?}");
    assert_eq!(counted.load(Ordering::Relaxed), 1, "charged twice");
    // The router's own 405 frees its key.
    let key = new_key();
    let wrong = Request::new("PATCH", "/pay", "").key(&key).by(protocol).send(running.address).await;
    assert_eq!((wrong.status, wrong.header("allow")), (405, Some("POST")));
    let corrected = Request::post("/pay", "").key(&key).by(protocol).send(running.address).await;
    assert_eq!((corrected.status, corrected.is_replay()), (405, false), "{corrected:?}");
    assert_eq!(counted.load(Ordering::Relaxed), 2);
    running.stop().await;
}

/// An error that cannot be formatted.
#[derive(Debug)]
struct Unspeakable;

impl fmt::Display for Unspeakable {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("this panic is part of a test")
    }
}

impl ResponseError for Unspeakable {}

async fn h24_an_error_whose_response_panics_is_answered(protocol: Protocol) {
    let by_scope = Idempotency::new(engine(), Scope::from_request(|_| Err(Unspeakable.into()))).required();
    let by_middleware = required();
    let runs = runs();
    let counted = runs.clone();
    let running = Running::start(move || {
        let pay = || {
            web::post().to(async |runs: Runs| {
                charge(&runs).await;
                HttpResponse::Created().finish()
            })
        };
        App::new()
            .app_data(runs.clone())
            .wrap(DefaultHeaders::new().add(("x-outer", "yes")))
            .service(web::resource("/scope").wrap(by_scope.clone()).route(pay()))
            .service(
                web::resource("/middleware")
                    .wrap_fn(|request, service| {
                        let when = request.headers().get("x-fails").map(|when| when.as_bytes().to_owned());
                        let called = (when.as_deref() != Some(b"before")).then(|| service.call(request));
                        async move {
                            match called {
                                None => Err(Unspeakable.into()),
                                Some(called) => {
                                    let answered = called.await;
                                    if when.is_some() { Err(Unspeakable.into()) } else { answered }
                                }
                            }
                        }
                    })
                    .wrap(by_middleware.clone())
                    .route(pay()),
            )
    })
    .await;
    let answer = Request::post("/scope", "").key(&new_key()).by(protocol).send(running.address).await;
    assert_eq!((answer.status, answer.problem().as_str()), (500, "internal"));
    assert_eq!(answer.header("x-outer"), Some("yes"));
    assert_eq!(counted.load(Ordering::Relaxed), 0);
    for (when, charges, second) in [("before", 0, 201), ("after", 1, 409)] {
        let before = counted.load(Ordering::Relaxed);
        let request = Request::post("/middleware", "").key(&new_key()).by(protocol);
        let first = request.clone().header("x-fails", when).send(running.address).await;
        assert_eq!((first.status, first.header("x-outer")), (500, Some("yes")), "{when}: {first:?}");
        assert_eq!(counted.load(Ordering::Relaxed), before + charges, "{when}");
        let again = request.send(running.address).await;
        assert_eq!(again.status, second, "{when}: {again:?}");
        assert_eq!(counted.load(Ordering::Relaxed), before + 1, "{when}");
    }
    running.stop().await;
}

/// A panic's payload is a user's value too.
struct PanicsWhenDropped;

impl Drop for PanicsWhenDropped {
    fn drop(&mut self) {
        panic!("this panic is part of a test");
    }
}

async fn h24_a_panic_that_panics_again_when_it_is_dropped_is_answered(protocol: Protocol) {
    let by_scope = Idempotency::new(engine(), Scope::from_request(|_| std::panic::panic_any(PanicsWhenDropped)));
    let by_scope = by_scope.required();
    let by_handler = required();
    let runs = runs();
    let counted = runs.clone();
    let running = Running::start(move || {
        let pay = || {
            web::post().to(async |runs: Runs| -> HttpResponse {
                charge(&runs).await;
                std::panic::panic_any(PanicsWhenDropped)
            })
        };
        App::new()
            .app_data(runs.clone())
            .service(web::resource("/scope").wrap(by_scope.clone()).route(pay()))
            .service(web::resource("/handler").wrap(by_handler.clone()).route(pay()))
    })
    .await;
    let answer = Request::post("/scope", "").key(&new_key()).by(protocol).send(running.address).await;
    assert_eq!((answer.status, answer.problem().as_str()), (500, "internal"));
    assert_eq!(counted.load(Ordering::Relaxed), 0);
    let request = Request::post("/handler", "").key(&new_key()).by(protocol);
    assert_eq!(request.send(running.address).await.problem(), "handler-panicked");
    assert_eq!(request.send(running.address).await.problem(), "indeterminate");
    assert_eq!(counted.load(Ordering::Relaxed), 1);
    running.stop().await;
}

/// A status below 200 only announces an answer. A replay of one would leave its client waiting.
async fn h02_an_answer_that_is_not_final_is_not_stored(protocol: Protocol) {
    let store = RowsBackend::new();
    let guard = Idempotency::new(Engine::builder(store.clone()).start().unwrap(), Scope::shared()).required().sanitize(
        |response| {
            if response.body().starts_with(b"sanitized") {
                response.set_status(StatusCode::CONTINUE);
            }
        },
    );
    let runs = runs();
    let counted = runs.clone();
    let running = Running::start(move || {
        App::new()
            .app_data(runs.clone())
            .wrap(guard.clone())
            .route(
                "/sanitized",
                web::post().to(async |runs: Runs| {
                    charge(&runs).await;
                    HttpResponse::Created().body("sanitized")
                }),
            )
            .route(
                "/transaction",
                web::post().to(
                    async |transaction: Transaction| -> Result<HttpResponse, TransactionError<std::io::Error>> {
                        transaction
                            .run(|rows: &mut Rows, _| {
                                rows.0.push("early".into());
                                Ok(RecordedResponse::new(StatusCode::PROCESSING, ""))
                            })
                            .await
                    },
                ),
            )
    })
    .await;
    let request = Request::post("/sanitized", "").key(&new_key()).by(protocol);
    let (first, again) = twice(&running, request).await;
    assert_eq!((first.status, first.text().as_str()), (201, "sanitized"));
    assert_eq!(again.problem(), "outcome-not-kept");
    assert_eq!(counted.load(Ordering::Relaxed), 1);
    // A response that cannot be an outcome is rolled back.
    let request = Request::post("/transaction", "").key(&new_key()).by(protocol);
    for _ in 0..2 {
        assert_eq!(request.send(running.address).await.problem(), "internal");
    }
    assert_eq!(store.committed(), [""; 0]);
    running.stop().await;
}
