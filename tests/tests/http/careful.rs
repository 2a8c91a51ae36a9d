//! Cases that the guard cannot know for certain: it never lets an effect happen twice on a guess.

use std::sync::atomic::Ordering;
use std::time::Duration;

use actix_web::dev::{PeerAddr, Service as _, ServiceRequest};
use actix_web::error::{
    ContentTypeError, ErrorGatewayTimeout, ErrorRequestTimeout, ParseError, PayloadError, ReadlinesError,
};
use actix_web::http::header;
use actix_web::middleware::{Compress, DefaultHeaders};
use actix_web::{App, Handler, HttpResponse, guard, test, web};
use futures_util::StreamExt as _;
use futures_util::future::LocalBoxFuture;
use oncekey::web::{FingerprintStrategy, Idempotency, KeyStrategy, RouteRules, Scope, Transaction, TransactionError};
use oncekey::{Claim, Engine};
use serde::Deserialize;
use tests::http::{Leave, Protocol, Request, read_answer};
use tests::rows::{Rows, RowsBackend};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::running::{Running, Runs, charge, engine, new_key, on_both_protocols, required, runs, twice};

on_both_protocols! {
    h10_the_error_handler_does_not_decide_about_a_panic
    h10_a_handler_without_a_transaction_is_held_where_another_took_one
    h10_a_request_that_no_handler_saw_says_nothing_about_transactions
    h22_an_error_that_handlers_return_too_frees_no_key_after_an_effect
    h22_the_same_errors_free_the_key_where_an_extractor_returns_them
    h10_an_inner_time_limit_does_not_free_the_key_of_a_handler_that_ran
    h21_the_second_of_two_scopes_with_one_prefix_is_guarded
    h05_no_bad_request_passes_the_guard_because_its_path_is_unknown
    h06_what_a_client_makes_of_a_custom_key_or_scope_is_its_own_fault
    h26_a_secret_that_is_compressed_is_not_stored
}

/// A handler that performs its effect, and then returns an error that extractors return too.
fn charges_and_fails<E>(error: fn() -> E) -> impl Handler<(Runs,), Output = Result<HttpResponse, actix_web::Error>>
where
    E: Into<actix_web::Error> + 'static,
{
    move |runs: Runs| async move {
        charge(&runs).await;
        Err(error().into())
    }
}

async fn pay(runs: Runs) -> HttpResponse {
    charge(&runs).await;
    HttpResponse::Created().body("paid")
}

#[derive(Debug, Deserialize)]
struct Payment {
    #[expect(dead_code, reason = "only whether it can be read counts")]
    amount: u64,
}

async fn h10_the_error_handler_does_not_decide_about_a_panic(protocol: Protocol) {
    let guard = required().error_handler(|_| HttpResponse::ServiceUnavailable().body("try again"));
    let runs = runs();
    let counted = runs.clone();
    let running = Running::start(move || {
        App::new().app_data(runs.clone()).wrap(guard.clone()).route(
            "/pay",
            web::post().to(async |runs: Runs| -> HttpResponse {
                charge(&runs).await;
                panic!("this panic is part of a test")
            }),
        )
    })
    .await;
    let (first, again) = twice(&running, Request::post("/pay", "").key(&new_key()).by(protocol)).await;
    assert_eq!((first.status, again.status), (503, 503), "the caller gets what the error handler says");
    assert_eq!(counted.load(Ordering::Relaxed), 1, "the second charge of one payment");
    running.stop().await;
}

async fn in_transaction(transaction: Transaction) -> Result<HttpResponse, TransactionError<std::io::Error>> {
    transaction.run(move |_: &mut Rows, _| Ok(HttpResponse::Created().finish())).await
}

async fn without_transaction(runs: Runs, how: web::Bytes) -> HttpResponse {
    charge(&runs).await;
    match &how[..] {
        b"panics" => panic!("this panic is part of a test"),
        b"times out" => std::future::pending().await,
        _ => HttpResponse::BadGateway().finish(),
    }
}

async fn h10_a_handler_without_a_transaction_is_held_where_another_took_one(protocol: Protocol) {
    for how in ["panics", "fails", "times out"] {
        let engine = Engine::builder(RowsBackend::new()).start().unwrap();
        let guard = Idempotency::new(engine, Scope::shared()).required();
        let runs = runs();
        let counted = runs.clone();
        let running = Running::start(move || {
            App::new().app_data(runs.clone()).wrap_fn(time_limit).wrap(guard.clone()).service(
                web::resource("/pay")
                    .route(web::post().guard(guard::Header("x-mode", "transaction")).to(in_transaction))
                    .route(web::post().to(without_transaction)),
            )
        })
        .await;
        for _ in 0..2 {
            let learned = Request::post("/pay", "").header("x-mode", "transaction").key(&new_key());
            assert_eq!(learned.by(protocol).send(running.address).await.status, 201);
        }
        // There is more than one, because later claims are made as anywhere else.
        for n in 1..=3 {
            let (first, again) = twice(&running, Request::post("/pay", how).key(&new_key()).by(protocol)).await;
            assert!(first.status >= 500, "{how}: {first:?}");
            assert_eq!(again.problem(), "indeterminate", "{how}");
            assert_eq!(counted.load(Ordering::Relaxed), n, "{how}: charged twice");
        }
        running.stop().await;
    }
}

async fn h10_a_request_that_no_handler_saw_says_nothing_about_transactions(protocol: Protocol) {
    let guard = Idempotency::new(Engine::builder(RowsBackend::new()).start().unwrap(), Scope::shared()).required();
    let running = Running::start(move || {
        App::new().wrap(guard.clone()).route(
            "/pay",
            web::post().to(async |claim: Claim, _: web::Json<Payment>, transaction: Transaction| {
                // If the transaction had to claim the key anew, a claim that was extracted before it is an old one.
                let is_expected = claim.fencing_token() == transaction.claim().fencing_token();
                HttpResponse::Created().body(is_expected.to_string())
            }),
        )
    })
    .await;
    let pay = |body: &str| Request::post("/pay", body).header("Content-Type", "application/json").key(&new_key());
    for (body, status, is_expected) in [
        (r#"{"amount": 1}"#, 201, "false"),
        (r#"{"amount": 1}"#, 201, "true"),
        (r#"{"amount": "#, 400, ""),
        (r#"{"amount": 1}"#, 201, "true"),
    ] {
        let answer = pay(body).by(protocol).send(running.address).await;
        assert_eq!(answer.status, status, "{body}");
        assert!(status == 400 || answer.text() == is_expected, "{body}: {answer:?}");
    }
    running.stop().await;
}

async fn h22_an_error_that_handlers_return_too_frees_no_key_after_an_effect(protocol: Protocol) {
    let guard = required()
        .route("/streams", |rules| rules.fingerprint(FingerprintStrategy::headers_only([header::CONTENT_LENGTH])));
    let runs = runs();
    let counted = runs.clone();
    let running = Running::start(move || {
        type Answered = Result<HttpResponse, actix_web::Error>;
        App::new()
            .app_data(runs.clone())
            .wrap(guard.clone())
            // The error that a client's `response.body().await` returns.
            .route("/payload", web::post().to(charges_and_fails(|| PayloadError::Incomplete(None))))
            .route(
                "/payload-at-once",
                web::post().to(async |runs: Runs, _: web::Bytes| -> Answered {
                    runs.fetch_add(1, Ordering::Relaxed);
                    Err(PayloadError::Incomplete(None).into())
                }),
            )
            .route(
                "/query",
                web::post().to(async |runs: Runs| -> Answered {
                    charge(&runs).await;
                    web::Query::<Payment>::from_query("amount=none")?;
                    Ok(HttpResponse::Created().finish())
                }),
            )
            .route("/content-type", web::post().to(charges_and_fails(|| ContentTypeError::ParseError)))
            .route("/parse", web::post().to(charges_and_fails(|| ParseError::Incomplete)))
            .route("/readlines", web::post().to(charges_and_fails(|| ReadlinesError::EncodingError)))
            .route(
                "/streams",
                web::post().to(async |runs: Runs, mut body: web::Payload| -> Answered {
                    runs.fetch_add(1, Ordering::Relaxed);
                    while let Some(chunk) = body.next().await {
                        chunk?;
                    }
                    Ok(HttpResponse::Created().finish())
                }),
            )
    })
    .await;
    for path in ["/payload", "/payload-at-once", "/query", "/content-type", "/parse", "/readlines"] {
        let before = counted.load(Ordering::Relaxed);
        let (first, again) = twice(&running, Request::post(path, "a body").key(&new_key()).by(protocol)).await;
        assert!((400..600).contains(&first.status), "{path}: {first:?}");
        assert_eq!(counted.load(Ordering::Relaxed), before + 1, "{path}: it ran twice");
        assert_eq!(again.problem(), "indeterminate", "{path}");
    }

    // The client disconnects in the middle of its upload, and then retries.
    let (before, key) = (counted.load(Ordering::Relaxed), new_key());
    let upload = Request::post("/streams", "0123456789").key(&key).by(protocol);
    let leaving = upload.clone().cut().begin(running.address, Leave::Close).await.unwrap();
    while counted.load(Ordering::Relaxed) == before {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    leaving.leave().await;
    let again = loop {
        let answer = upload.send(running.address).await;
        if answer.problem_name().as_deref() != Some("in-progress") {
            break answer;
        }
    };
    assert_eq!(again.problem_name().as_deref(), Some("indeterminate"), "{again:?}");
    assert_eq!(counted.load(Ordering::Relaxed), before + 1, "it ran twice");
    running.stop().await;
}

async fn h22_the_same_errors_free_the_key_where_an_extractor_returns_them(protocol: Protocol) {
    let guard = required();
    let runs = runs();
    let counted = runs.clone();
    let running = Running::start(move || {
        App::new()
            .app_data(runs.clone())
            .app_data(web::PayloadConfig::new(4))
            .wrap(guard.clone())
            .route("/bytes", web::post().to(async |runs: Runs, _: web::Bytes| pay(runs).await))
            .route("/query", web::post().to(async |runs: Runs, _: web::Query<Payment>| pay(runs).await))
            .route("/request-data", web::post().to(async |runs: Runs, _: web::ReqData<u8>| pay(runs).await))
    })
    .await;
    for path in ["/bytes", "/query?amount=none", "/request-data"] {
        let (first, again) = twice(&running, Request::post(path, "too long").key(&new_key()).by(protocol)).await;
        assert!(first.status >= 400 && first.problem_name().is_none(), "{path}: {first:?}");
        assert!(!again.is_replay() && again.status == first.status, "{path}: {again:?}");
    }
    assert_eq!(counted.load(Ordering::Relaxed), 0);
    running.stop().await;

    // A request that did not arrive over a socket has no peer.
    let no_peer = App::new().wrap(required()).route("/peer", web::post().to(async |_: PeerAddr| "paid"));
    let app = test::init_service(no_peer).await;
    for _ in 0..2 {
        let request = test::TestRequest::post().uri("/peer").insert_header(("Idempotency-Key", "no-peer"));
        assert_eq!(test::call_service(&app, request.to_request()).await.status(), 500, "the key is new");
    }
}

type Called = LocalBoxFuture<'static, Result<actix_web::dev::ServiceResponse, actix_web::Error>>;

/// Middleware that abandons its handler, and answers with an error: 408 if the request asks for it, or 504.
fn time_limit(
    request: ServiceRequest,
    service: &impl actix_web::dev::Service<
        ServiceRequest,
        Response = actix_web::dev::ServiceResponse,
        Error = actix_web::Error,
        Future = Called,
    >,
) -> Called {
    let says_408 = request.headers().contains_key("x-408");
    let called = service.call(request);
    Box::pin(async move {
        match tokio::time::timeout(Duration::from_millis(200), called).await {
            Ok(answered) => answered,
            Err(_) if says_408 => Err(ErrorRequestTimeout("too slow")),
            Err(_) => Err(ErrorGatewayTimeout("too slow")),
        }
    })
}

async fn h10_an_inner_time_limit_does_not_free_the_key_of_a_handler_that_ran(protocol: Protocol) {
    let guard = required();
    let runs = runs();
    let counted = runs.clone();
    let running = Running::start(move || {
        App::new()
            .app_data(runs.clone())
            .wrap_fn(time_limit)
            .wrap(guard.clone())
            .route(
                "/untouched",
                web::post().to(async |runs: Runs| -> HttpResponse {
                    charge(&runs).await;
                    std::future::pending().await
                }),
            )
            .route(
                "/touched",
                web::post().to(async |runs: Runs, _: Claim| -> HttpResponse {
                    charge(&runs).await;
                    std::future::pending().await
                }),
            )
    })
    .await;
    for (path, request, status) in [
        ("/untouched", Request::post("/untouched", "x"), 504),
        ("/touched", Request::post("/touched", "x"), 504),
        ("/touched", Request::post("/touched", "x").header("x-408", "yes"), 408),
    ] {
        let before = counted.load(Ordering::Relaxed);
        let (first, again) = twice(&running, request.key(&new_key()).by(protocol)).await;
        assert_eq!(first.status, status, "{path}");
        assert_eq!(counted.load(Ordering::Relaxed), before + 1, "{path} {status}: charged twice");
        assert_eq!(again.problem(), "indeterminate", "{path} {status}");
    }
    running.stop().await;
}

async fn h21_the_second_of_two_scopes_with_one_prefix_is_guarded(protocol: Protocol) {
    for is_required_everywhere in [true, false] {
        let guard = if is_required_everywhere {
            required()
        } else {
            Idempotency::new(engine(), Scope::shared())
                .route("/api/pay", RouteRules::required)
                .route("/api/orders/{id}", RouteRules::required)
        };
        let runs = runs();
        let counted = runs.clone();
        let running = Running::start(move || {
            let version = |version: &'static str| web::scope("/api").guard(guard::Header("x-version", version));
            App::new()
                .app_data(runs.clone())
                .wrap(guard.clone())
                .service(version("1").route("/other", web::post().to(pay)))
                .service(
                    version("2").route("/pay", web::post().to(pay)).route("/orders/{n}", web::post().to(pay)).route(
                        "/missing",
                        web::post().to(async |runs: Runs| {
                            charge(&runs).await;
                            HttpResponse::NotFound().body("no such card")
                        }),
                    ),
                )
        })
        .await;
        let of_second = |path: &str| Request::post(path, "").header("x-version", "2");
        for path in ["/api/pay", "/api/p%61y", "/api/orders/17"] {
            let answer = of_second(path).by(protocol).send(running.address).await;
            assert_eq!((answer.status, counted.load(Ordering::Relaxed)), (400, 0), "{path}: {answer:?}");
        }
        for bad in ["", "not a key"] {
            let answer = of_second("/api/pay").key(bad).by(protocol).send(running.address).await;
            assert_eq!((answer.status, counted.load(Ordering::Relaxed)), (400, 0), "{bad}: {answer:?}");
        }
        // The handler's own 404 is its answer, and the router's 404 is not.
        let (first, again) = twice(&running, of_second("/api/missing").key(&new_key()).by(protocol)).await;
        assert_eq!((first.status, again.status, again.is_replay()), (404, 404, true), "{again:?}");
        assert_eq!(counted.load(Ordering::Relaxed), 1);
        let (first, again) = twice(&running, of_second("/api/nowhere").key(&new_key()).by(protocol)).await;
        assert_eq!((first.status, again.status, again.is_replay()), (404, 404, false), "{again:?}");
        // If it is certain that there is no route, the router answers.
        assert_eq!(Request::post("/nowhere", "").by(protocol).send(running.address).await.status, 404);
        assert_eq!(of_second("/api/nowhere").by(protocol).send(running.address).await.status, 404);
        running.stop().await;
    }
}

async fn h05_no_bad_request_passes_the_guard_because_its_path_is_unknown(protocol: Protocol) {
    let guard = Idempotency::new(
        engine(),
        Scope::from_request(|request| match request.headers().get("x-scope") {
            Some(_) => Ok("someone".to_owned()),
            None => Err(actix_web::error::ErrorUnauthorized("who are you?")),
        }),
    );
    let guard = guard.required();
    let runs = runs();
    let counted = runs.clone();
    let running = Running::start(move || {
        App::new()
            .app_data(runs.clone())
            .wrap_fn(|mut request, service| {
                // This middleware routes the request elsewhere, which the guard outside it cannot know.
                request.match_info_mut().get_mut().update(&"/pay".parse().unwrap());
                service.call(request)
            })
            .wrap(guard.clone())
            .route("/pay", web::post().to(pay))
    })
    .await;
    let bad_key = Request::post("/nowhere", "").key("not a key").header("x-scope", "yes");
    assert_eq!(bad_key.by(protocol).send(running.address).await.problem(), "key-invalid");
    let nobody = Request::post("/nowhere", "").key(&new_key());
    assert_eq!(nobody.by(protocol).send(running.address).await.status, 401);
    assert_eq!(counted.load(Ordering::Relaxed), 0);
    running.stop().await;
}

async fn h06_what_a_client_makes_of_a_custom_key_or_scope_is_its_own_fault(protocol: Protocol) {
    let guard = Idempotency::new(
        engine(),
        Scope::from_request(|request| {
            let scope = request.headers().get("x-scope").and_then(|scope| scope.to_str().ok());
            Ok(scope.unwrap_or_default().to_owned())
        }),
    );
    let guard = guard
        .required()
        .key(KeyStrategy::custom(|_, body| std::str::from_utf8(body).ok().map(str::to_owned)))
        .fingerprint(FingerprintStrategy::BodyOnly);
    let runs = runs();
    let counted = runs.clone();
    let running =
        Running::start(move || App::new().app_data(runs.clone()).wrap(guard.clone()).route("/", web::post().to(pay)))
            .await;
    let long = "k".repeat(256);
    for (key, scope, problem) in [
        ("", "me", "key-invalid"),
        (long.as_str(), "me", "key-invalid"),
        ("a\u{7}b", "me", "key-invalid"),
        ("key", "", "scope-invalid"),
        ("key", long.as_str(), "scope-invalid"),
    ] {
        let answer = Request::post("/", key).header("x-scope", scope).by(protocol).send(running.address).await;
        assert_eq!((answer.status, answer.problem().as_str()), (400, problem), "{key:?} {scope:?}");
    }
    assert_eq!(counted.load(Ordering::Relaxed), 0);
    assert_eq!(Request::post("/", "key").header("x-scope", "me").by(protocol).send(running.address).await.status, 201);
    running.stop().await;
}

#[actix_rt::test]
async fn h24_a_closure_that_panics_gets_an_answer() {
    let custom = |request: &ServiceRequest| {
        assert!(!request.headers().contains_key("x-panics"), "this panic is part of a test");
    };
    let by_scope = Idempotency::new(
        engine(),
        Scope::from_request(move |request| {
            custom(request);
            Ok("all".to_owned())
        }),
    );
    let by_key = required().key(KeyStrategy::custom(move |request, _| {
        custom(request);
        Some(new_key())
    }));
    let by_fingerprint = required().fingerprint(FingerprintStrategy::custom(move |request, body| {
        custom(request);
        oncekey::Fingerprint::of(body)
    }));
    let by_error_handler = required().error_handler(|_| panic!("this panic is part of a test"));
    let by_replay = required().on_replay(|_, _| panic!("this panic is part of a test"));
    let by_disposition = required().disposition(|_, _| panic!("this panic is part of a test"));
    let runs = runs();
    let counted = runs.clone();
    let running = Running::start(move || {
        let guarded = |path: &str, guard: &Idempotency| {
            web::resource(path)
                .wrap(guard.clone())
                .route(web::post().to(pay))
                .wrap(DefaultHeaders::new().add(("x-outer", "yes")))
        };
        App::new()
            .app_data(runs.clone())
            .service(guarded("/scope", &by_scope))
            .service(guarded("/key", &by_key))
            .service(guarded("/fingerprint", &by_fingerprint))
            .service(guarded("/error-handler", &by_error_handler))
            .service(guarded("/replay", &by_replay))
            .service(guarded("/disposition", &by_disposition))
    })
    .await;
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let before = counted.load(Ordering::Relaxed);
        for path in ["/scope", "/key", "/fingerprint"] {
            let request = Request::post(path, "").key(&new_key()).header("x-panics", "yes").by(protocol);
            let answer = request.send(running.address).await;
            assert_eq!((answer.status, answer.problem().as_str()), (500, "internal"), "{path}");
            assert_eq!(answer.header("x-outer"), Some("yes"), "{path}");
        }
        let no_key = Request::post("/error-handler", "").by(protocol).send(running.address).await;
        assert_eq!((no_key.status, no_key.problem().as_str()), (400, "key-missing"));
        assert_eq!(counted.load(Ordering::Relaxed), before, "nothing ran");

        let (first, again) = twice(&running, Request::post("/replay", "").key(&new_key()).by(protocol)).await;
        assert_eq!((first.status, again.status, again.is_replay()), (201, 201, true));
        assert_eq!(again.text(), "paid");
        let (first, again) = twice(&running, Request::post("/disposition", "").key(&new_key()).by(protocol)).await;
        assert_eq!((first.status, again.problem().as_str()), (201, "indeterminate"));
        assert_eq!(counted.load(Ordering::Relaxed), before + 2);
    }
    running.stop().await;
}

async fn h26_a_secret_that_is_compressed_is_not_stored(protocol: Protocol) {
    let guard = required().sanitize(|response| response.set_body("redacted"));
    let running = Running::start(move || {
        App::new()
            .wrap(Compress::default())
            .wrap(guard.clone())
            .route("/secret", web::post().to(async || HttpResponse::Created().body("secret ".repeat(100))))
    })
    .await;
    let with = |encoding: &str| Request::post("/secret", "").header("Accept-Encoding", encoding).key(&new_key());
    let (first, again) = twice(&running, with("gzip").by(protocol)).await;
    assert_eq!((first.status, first.header("content-encoding")), (201, Some("gzip")));
    assert_eq!(again.problem(), "outcome-not-kept");
    let (first, again) = twice(&running, with("identity").by(protocol)).await;
    assert_eq!(first.text(), "secret ".repeat(100));
    assert_eq!((again.text().as_str(), again.is_replay()), ("redacted", true));
    running.stop().await;
}

#[actix_rt::test]
async fn h25_the_retry_of_an_upload_may_take_longer_than_one_limit() {
    let guard = required()
        .fingerprint(FingerprintStrategy::headers_only([header::CONTENT_LENGTH]))
        .request_timeout(Duration::from_millis(400));
    let running = Running::start(move || {
        App::new().wrap(guard.clone()).route("/upload", web::post().to(async |body: web::Bytes| body))
    })
    .await;
    let key = new_key();
    let first = Request::post("/upload", "0123456789").key(&key).send(running.address).await;
    assert_eq!((first.status, first.text().as_str()), (200, "0123456789"));

    let mut slow = TcpStream::connect(running.address).await.unwrap();
    let head = format!("POST /upload HTTP/1.1\r\nHost: shop\r\nContent-Length: 10\r\nIdempotency-Key: {key}\r\n\r\n");
    slow.write_all(head.as_bytes()).await.unwrap();
    for piece in ["01", "23", "45", "67"] {
        slow.write_all(piece.as_bytes()).await.unwrap();
        let early = tokio::time::timeout(Duration::from_millis(150), slow.readable()).await;
        assert!(early.is_err(), "the server answered before it had the whole upload");
    }
    slow.write_all(b"89").await.unwrap();
    let again = read_answer(&mut slow).await.unwrap();
    assert!(again.is_replay() && again.body == first.body, "{again:?}");
    running.stop().await;
}
