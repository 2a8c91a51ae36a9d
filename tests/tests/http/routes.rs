//! Which requests the rules apply to, whose keys they use, and requests that no handler saw.

use std::sync::atomic::{AtomicUsize, Ordering};

use actix_web::dev::{Service as _, ServiceRequest};
use actix_web::http::header::{self, HeaderName, HeaderValue};
use actix_web::middleware::{Compress, DefaultHeaders, NormalizePath};
use actix_web::{App, HttpMessage as _, HttpResponse, guard, web};
use futures_util::StreamExt as _;
use oncekey::web::{Idempotency, RouteRules, Scope};
use serde::Deserialize;
use tests::http::{Answer, PROTOCOLS, Protocol, Request};

use super::running::{Running, Runs, engine, new_key};

fn required(scope: Scope) -> Idempotency {
    Idempotency::new(engine(), scope).required()
}

async fn pay(runs: Runs, body: web::Bytes) -> HttpResponse {
    let run = runs.fetch_add(1, Ordering::Relaxed) + 1;
    HttpResponse::Created().body(format!("{run}: {}", String::from_utf8_lossy(&body)))
}

#[derive(Deserialize)]
struct Payment {
    amount: u64,
}

async fn pay_json(runs: Runs, payment: web::Json<Payment>) -> HttpResponse {
    runs.fetch_add(1, Ordering::Relaxed);
    HttpResponse::Created().json(payment.amount)
}

async fn send(running: &Running, request: Request, protocol: Protocol) -> Answer {
    request.by(protocol).send(running.address).await
}

/// Returns the status for a request without a key: 400 if its route requires one, otherwise the handler's status.
async fn without_key(running: &Running, path: &str, protocol: Protocol) -> u16 {
    send(running, Request::post(path, "x"), protocol).await.status
}

#[actix_rt::test]
async fn h05_h21_rules_are_for_what_the_router_matches() {
    let everything = Idempotency::new(engine(), Scope::shared())
        .route("/pay", RouteRules::required)
        .route("/orders/{id}", RouteRules::required)
        .route("/files/{tail}*", RouteRules::required)
        .route("/vip/gold", RouteRules::required)
        .route("/shop/{shop}/carts/{cart}", RouteRules::required)
        .route("/second", RouteRules::required);
    let inside = required(Scope::shared()).route("/open", RouteRules::optional);
    let nested = Idempotency::new(engine(), Scope::shared()).route("/pay", RouteRules::required);
    let on_resource = Idempotency::new(engine(), Scope::shared()).route("/alone", RouteRules::required);
    let runs = Runs::new(AtomicUsize::new(0));
    let running = Running::start(move || {
        App::new()
            .app_data(runs.clone())
            .service(
                web::scope("/in/{tenant}")
                    .wrap(inside.clone())
                    .route("/open", web::post().to(pay))
                    .service(web::scope("/deep").route("/open", web::post().to(pay))),
            )
            .service(web::scope("/nested").wrap(nested.clone()).route("/pay", web::post().to(pay)))
            .service(
                web::scope("/resource")
                    .service(web::resource("/alone").wrap(on_resource.clone()).route(web::post().to(pay))),
            )
            .service(
                web::scope("")
                    .wrap(everything.clone())
                    .route("/pay", web::post().to(pay))
                    .route("/other/pay", web::post().to(pay))
                    .route("/orders/latest", web::post().to(pay))
                    .route("/orders/{order}", web::post().to(pay))
                    .route("/files/{tail}*", web::post().to(pay))
                    .route("/vip/{level}", web::post().to(pay))
                    .service(web::resource(["/first", "/second"]).route(web::post().to(pay)))
                    .service(web::scope("/shop/{id}").route("/carts/{id2}", web::post().to(pay))),
            )
    })
    .await;
    for protocol in PROTOCOLS {
        for (path, status) in [
            ("/pay", 400),
            ("/%70ay", 400),
            ("/p%61y?x=1", 400),
            ("/other/pay", 201),
            ("/orders/17", 400),
            ("/orders/%31%37", 400),
            ("/orders/latest", 201),
            ("/files/a/b/c", 400),
            ("/fil%65s/a", 400),
            ("/vip/gold", 400),
            ("/vip/silver", 201),
            ("/first", 201),
            ("/second", 400),
            ("/shop/1/carts/2", 400),
            ("/shop/1/c%61rts/2", 400),
            ("/in/acme/open", 201),
            ("/in/acme/%6fpen", 201),
            ("/in/acme/deep/open", 400),
            ("/nested/pay", 400),
            ("/nested/%70ay", 400),
            ("/resource/alone", 400),
            ("/nowhere", 404),
            ("/in/acme/nowhere", 404),
            ("/in/acme/deep/nowhere", 404),
            ("/nested/nowhere", 404),
        ] {
            assert_eq!(without_key(&running, path, protocol).await, status, "{path} by {protocol:?}");
        }
        // A path is the same path in any encoding.
        let key = new_key();
        let first = send(&running, Request::post("/pay", "x").key(&key), protocol).await;
        let again = send(&running, Request::post("/%70ay", "x").key(&key), protocol).await;
        assert!(first.status == 201 && again.is_replay(), "{again:?}");
        // The router answers for unknown paths, but no request with a bad key passes the guard.
        for (key, status) in [("a-key", 404), ("", 400), ("not a key", 400)] {
            let answer = send(&running, Request::post("/nowhere", "x").key(key), protocol).await;
            assert_eq!(answer.status, status, "{key}");
        }
    }
    running.stop().await;
}

#[actix_rt::test]
async fn h21_a_path_that_is_normalized_inside_the_guard_is_guarded() {
    let guard = required(Scope::shared());
    let runs = Runs::new(AtomicUsize::new(0));
    let running = Running::start(move || {
        App::new()
            .app_data(runs.clone())
            .wrap(NormalizePath::trim())
            .wrap(guard.clone())
            .route("/pay", web::post().to(pay))
    })
    .await;
    for path in ["/pay", "/pay/", "//pay", "/%70ay/"] {
        assert_eq!(without_key(&running, path, Protocol::Http1).await, 400, "{path}");
    }
    running.stop().await;
}

#[actix_rt::test]
async fn h05_a_default_service_can_be_guarded_as_a_handler() {
    for is_guarded in [false, true] {
        let guard = required(Scope::shared());
        let guard = if is_guarded { guard.guard_default_service() } else { guard };
        let runs = Runs::new(AtomicUsize::new(0));
        let running =
            Running::start(move || App::new().app_data(runs.clone()).wrap(guard.clone()).default_service(web::to(pay)))
                .await;
        assert_eq!(without_key(&running, "/any", Protocol::Http1).await, if is_guarded { 400 } else { 201 });
        let request = Request::post("/any", "x").key(&new_key());
        assert_eq!(request.send(running.address).await.status, 201);
        assert!(request.send(running.address).await.is_replay(), "with a key it is guarded in any case");
        running.stop().await;
    }
}

#[actix_rt::test]
async fn h06_the_header_is_a_rule_of_a_route() {
    let guard = required(Scope::shared())
        .header(HeaderName::from_static("x-request-key"))
        .route("/delivery", |rules| rules.header(HeaderName::from_static("x-delivery-id")));
    let runs = Runs::new(AtomicUsize::new(0));
    let running = Running::start(move || {
        App::new()
            .app_data(runs.clone())
            .wrap(guard.clone())
            .route("/pay", web::post().to(pay))
            .route("/delivery", web::post().to(pay))
    })
    .await;
    for (path, name, status) in [
        ("/pay", "X-Request-Key", 201),
        ("/pay", "Idempotency-Key", 400),
        ("/delivery", "X-Delivery-Id", 201),
        ("/delivery", "X-Request-Key", 400),
    ] {
        let answer = Request::post(path, "x").header(name, &new_key()).send(running.address).await;
        assert_eq!(answer.status, status, "{path} {name}");
    }
    running.stop().await;
}

struct Subject(String);

#[actix_rt::test]
async fn h12_a_scope_is_a_header_a_closure_or_shared() {
    let by_header = required(Scope::header("X-Api-Key"));
    let or_public = required(Scope::header_or("X-Api-Key", "public"));
    let by_request = required(Scope::from_request(|request: &ServiceRequest| {
        let extensions = request.extensions();
        let subject = extensions.get::<Subject>().ok_or_else(|| {
            actix_web::error::InternalError::from_response(
                "nobody",
                HttpResponse::Unauthorized().insert_header(("X-Mine", "yes")).body("who are you?"),
            )
        })?;
        Ok(subject.0.clone())
    }));
    let shared = required(Scope::shared());
    let runs = Runs::new(AtomicUsize::new(0));
    let running = Running::start(move || {
        App::new()
            .app_data(runs.clone())
            .service(web::resource("/header").wrap(by_header.clone()).route(web::post().to(pay)))
            .service(web::resource("/public").wrap(or_public.clone()).route(web::post().to(pay)))
            .service(web::resource("/shared").wrap(shared.clone()).route(web::post().to(pay)))
            .service(web::resource("/request").wrap(by_request.clone()).route(web::post().to(pay)).wrap_fn(
                |request, service| {
                    // This is an authentication layer: a subject's token changes, but the subject does not.
                    let token = request.headers().get(header::AUTHORIZATION).cloned();
                    if let Some(subject) = token.as_ref().and_then(|token| token.to_str().ok()?.split('.').next()) {
                        request.extensions_mut().insert(Subject(subject.to_owned()));
                    }
                    service.call(request)
                },
            ))
    })
    .await;
    for protocol in PROTOCOLS {
        let key = new_key();
        let of = |path: &str, callers: &[&str]| {
            callers
                .iter()
                .fold(Request::post(path, "x").key(&key), |request, caller| request.header("X-Api-Key", caller))
        };
        for path in ["/header", "/public"] {
            let alice = send(&running, of(path, &["alice"]), protocol).await;
            let bob = send(&running, of(path, &["bob"]), protocol).await;
            assert!(alice.status == 201 && bob.status == 201 && alice.body != bob.body, "{path}: {alice:?} {bob:?}");
            assert_eq!(send(&running, of(path, &["alice"]), protocol).await.body, alice.body);
            for two in [&["alice", "bob"], &["alice", "alice"]] {
                assert_eq!(send(&running, of(path, two), protocol).await.problem(), "scope-invalid");
            }
            assert_eq!(send(&running, of(path, &[""]), protocol).await.problem(), "scope-invalid");
        }
        assert_eq!(send(&running, of("/header", &[]), protocol).await.problem(), "scope-missing");
        let public = send(&running, of("/public", &[]), protocol).await;
        assert!(public.status == 201 && !public.is_replay());

        let (one, other) = (
            send(&running, of("/shared", &["alice"]), protocol).await,
            send(&running, of("/shared", &["bob"]), protocol).await,
        );
        assert!(!one.is_replay() && other.is_replay());

        let with_token = |token: &str| Request::post("/request", "x").key(&key).header("Authorization", token);
        let first = send(&running, with_token("alice.1"), protocol).await;
        let refreshed = send(&running, with_token("alice.2"), protocol).await;
        assert!(first.status == 201 && refreshed.is_replay(), "{refreshed:?}");
        assert!(!send(&running, with_token("bob.1"), protocol).await.is_replay());
        let nobody = send(&running, Request::post("/request", "x").key(&key), protocol).await;
        assert_eq!(
            (nobody.status, nobody.text().as_str(), nobody.header("x-mine")),
            (401, "who are you?", Some("yes"))
        );
    }
    running.stop().await;
}

#[actix_rt::test]
async fn h22_what_no_handler_saw_uses_up_no_key() {
    let guard = required(Scope::shared());
    let runs = Runs::new(AtomicUsize::new(0));
    let counted = runs.clone();
    let running = Running::start(move || {
        App::new()
            .app_data(runs.clone())
            .wrap(guard.clone())
            .service(
                web::scope("/mine")
                    .app_data(web::JsonConfig::default().error_handler(|error, _| {
                        let answer = HttpResponse::UnprocessableEntity().body("mine");
                        actix_web::error::InternalError::from_response(error, answer).into()
                    }))
                    .route("/json", web::post().to(pay_json)),
            )
            .route("/json", web::post().to(pay_json))
            .route(
                "/form",
                web::post()
                    .to(async |runs: Runs, _: web::Form<Vec<(String, String)>>| pay(runs, web::Bytes::new()).await),
            )
            .route(
                "/path/{n}",
                web::post().to(async |runs: Runs, _: web::Path<u32>| pay(runs, web::Bytes::new()).await),
            )
            .route(
                "/query",
                web::post().to(async |runs: Runs, _: web::Query<Payment>| pay(runs, web::Bytes::new()).await),
            )
            .route("/string", web::post().to(async |runs: Runs, _: String| pay(runs, web::Bytes::new()).await))
            .service(web::resource("/get-only").route(web::get().to(HttpResponse::Ok)))
            .route("/get-by-route", web::get().to(HttpResponse::Ok))
            .service(web::resource("/guarded").guard(guard::Header("x-version", "2")).route(web::post().to(pay)))
            // The response fails to serialize, but the handler ran.
            .route(
                "/serializes-badly",
                web::post().to(async |runs: Runs| {
                    runs.fetch_add(1, Ordering::Relaxed);
                    web::Json(std::collections::HashMap::from([((1, 2), 3)]))
                }),
            )
    })
    .await;
    let json = |path: &str, body: &str, key: &str| {
        Request::post(path, body).header("Content-Type", "application/json").key(key)
    };
    for protocol in PROTOCOLS {
        for (path, status) in [("/json", 400), ("/mine/json", 422)] {
            let (key, runs) = (new_key(), counted.load(Ordering::Relaxed));
            let typo = send(&running, json(path, r#"{"amount": 1999 "card": 1}"#, &key), protocol).await;
            assert_eq!((typo.status, typo.is_replay()), (status, false));
            let corrected = send(&running, json(path, r#"{"amount": 1999}"#, &key), protocol).await;
            assert!(corrected.status == 201 && !corrected.is_replay(), "{corrected:?}");
            assert!(send(&running, json(path, r#"{"amount": 1999}"#, &key), protocol).await.is_replay());
            assert_eq!(counted.load(Ordering::Relaxed), runs + 1);
        }
        // A corrected media type is another request, and no handler saw the wrong one.
        let key = new_key();
        let wrong = Request::post("/json", r#"{"amount": 1}"#).header("Content-Type", "text/plain").key(&key);
        assert_eq!(send(&running, wrong, protocol).await.status, 400, "as actix-web refuses a content type");
        assert_eq!(send(&running, json("/json", r#"{"amount": 1}"#, &key), protocol).await.status, 201);

        for (path, body, media_type) in [
            ("/form", "a=%", "text/plain"),
            ("/path/none", "", ""),
            ("/query?amount=none", "", ""),
            ("/string", "\u{fffd}", "text/plain; charset=none"),
            ("/nowhere", "", ""),
            ("/get-only", "", ""),
            ("/get-by-route", "", ""),
            ("/guarded", "", ""),
        ] {
            let (key, runs) = (new_key(), counted.load(Ordering::Relaxed));
            let request = Request::post(path, body).header("Content-Type", media_type).key(&key);
            let first = send(&running, request.clone(), protocol).await;
            assert!((400..500).contains(&first.status), "{path}: {first:?}");
            assert!(!send(&running, request, protocol).await.is_replay(), "{path}");
            // The key is new, and accepts another request.
            let other = send(&running, json("/json", r#"{"amount": 5}"#, &key), protocol).await;
            assert!(other.status == 201 && !other.is_replay(), "{path}: {other:?}");
            assert_eq!(counted.load(Ordering::Relaxed), runs + 1, "{path}");
        }

        let (key, runs) = (new_key(), counted.load(Ordering::Relaxed));
        let request = Request::post("/serializes-badly", "").key(&key);
        assert_eq!(send(&running, request.clone(), protocol).await.status, 500);
        assert_eq!(send(&running, request, protocol).await.problem(), "indeterminate");
        assert_eq!(counted.load(Ordering::Relaxed), runs + 1);
    }
    running.stop().await;
}

#[actix_rt::test]
async fn h24_every_answer_passes_the_outer_middleware() {
    let guard = required(Scope::header("X-Api-Key"));
    let runs = Runs::new(AtomicUsize::new(0));
    let running = Running::start(move || {
        App::new().app_data(runs.clone()).service(
            web::scope("")
                .wrap_fn(|request, service| {
                    let refused = request.path() == "/refused";
                    let called = (!refused).then(|| service.call(request));
                    async move {
                        match called {
                            Some(called) => called.await,
                            None => Err(actix_web::error::ErrorForbidden("not you")),
                        }
                    }
                })
                .wrap(guard.clone())
                // As CORS does, this adds a header that depends on the request's own.
                .wrap_fn(|request, service| {
                    let called = service.call(request);
                    async move {
                        let mut response = called.await?;
                        let origin = response.request().headers().get(header::ORIGIN).cloned();
                        let origin = origin.unwrap_or(HeaderValue::from_static("none"));
                        let path = HeaderValue::try_from(response.request().path()).unwrap();
                        response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
                        response.headers_mut().insert(HeaderName::from_static("x-path"), path);
                        Ok(response)
                    }
                })
                .wrap(DefaultHeaders::new().add(("X-Content-Type-Options", "nosniff")))
                .route("/pay", web::post().to(pay))
                .route("/refused", web::post().to(pay))
                .route("/panics", web::post().to(async || -> HttpResponse { panic!("this panic is part of a test") })),
        )
    })
    .await;
    for protocol in PROTOCOLS {
        let key = new_key();
        for (path, request, status) in [
            ("/pay", Request::post("/pay", "x").key(&key), 201),
            ("/pay", Request::post("/pay", "x").key(&key), 201),
            ("/pay", Request::post("/pay", "y").key(&key), 422),
            ("/pay", Request::post("/pay", "x"), 400),
            ("/pay", Request::post("/pay", "x").key("\""), 400),
            ("/panics", Request::post("/panics", "x").key(&new_key()), 500),
            ("/refused", Request::post("/refused", "x").key(&new_key()), 403),
        ] {
            let request = request.header("Origin", "https://shop.example").header("X-Api-Key", "alice");
            let answer = send(&running, request, protocol).await;
            assert_eq!(answer.status, status, "{path}");
            assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{path} {status}");
            assert_eq!(answer.header("access-control-allow-origin"), Some("https://shop.example"), "{path} {status}");
            assert_eq!(answer.header("x-path"), Some(path), "{status}");
        }
    }
    running.stop().await;
}

#[actix_rt::test]
async fn h26_what_is_stored_is_sanitized_and_refreshed_on_replay() {
    let guard = required(Scope::shared())
        .keep_header(HeaderName::from_static("x-secret"))
        .sanitize(|response| {
            assert!(!response.body().starts_with(b"1: panic"), "this panic is part of a test");
            response.set_body("redacted");
            response.remove_header(&HeaderName::from_static("x-secret"));
        })
        .on_replay(|request, mut replay| {
            let path = HeaderValue::try_from(request.path()).unwrap();
            replay.headers_mut().insert(HeaderName::from_static("x-fresh"), path);
            replay
        });
    let runs = Runs::new(AtomicUsize::new(0));
    let running = Running::start(move || {
        App::new().app_data(runs.clone()).wrap(guard.clone()).route(
            "/pay",
            web::post().to(async |body: web::Bytes| {
                HttpResponse::Created()
                    .insert_header(("X-Secret", "s3cret"))
                    .body(format!("1: {}", String::from_utf8_lossy(&body)))
            }),
        )
    })
    .await;
    for protocol in PROTOCOLS {
        let request = Request::post("/pay", "card").key(&new_key());
        let first = send(&running, request.clone(), protocol).await;
        assert_eq!(
            (first.text().as_str(), first.header("x-secret"), first.header("x-fresh")),
            ("1: card", Some("s3cret"), None)
        );
        let again = send(&running, request, protocol).await;
        assert_eq!(
            (again.text().as_str(), again.header("x-secret"), again.header("x-fresh")),
            ("redacted", None, Some("/pay"))
        );

        let request = Request::post("/pay", "panic").key(&new_key());
        assert_eq!(send(&running, request.clone(), protocol).await.text(), "1: panic");
        assert_eq!(
            send(&running, request, protocol).await.problem(),
            "outcome-not-kept",
            "what was to go is not stored"
        );
    }
    running.stop().await;
}

#[actix_rt::test]
async fn h14_a_compressed_response_is_kept_and_a_stream_is_not() {
    let guard = required(Scope::shared()).response_limit(10_000).route("/tight", |rules| rules.response_limit(20));
    let gate = web::Data::new(Gate::default());
    let ours = gate.clone();
    let running = Running::start(move || {
        App::new()
            .app_data(gate.clone())
            .wrap(Compress::default())
            .wrap(guard.clone())
            .route("/small", web::post().to(async || "small"))
            .route("/large", web::post().to(async || "large ".repeat(1_000)))
            .route("/tight", web::post().to(async || "large ".repeat(1_000)))
            .route("/stream", web::post().to(stream))
    })
    .await;
    for protocol in PROTOCOLS {
        for encoding in ["gzip", "identity"] {
            for (path, is_kept) in [("/small", true), ("/large", true), ("/tight", false)] {
                let request = Request::post(path, "").header("Accept-Encoding", encoding).key(&new_key());
                let first = send(&running, request.clone(), protocol).await;
                let again = send(&running, request, protocol).await;
                assert_eq!(first.status, 200, "{path} {encoding}");
                if encoding == "gzip" {
                    assert_eq!(first.header("content-encoding"), Some("gzip"), "{path}");
                    assert_eq!(first.body[..2], [0x1f, 0x8b], "{path}: all of it, from the start");
                }
                if is_kept {
                    assert!(again.is_replay() && again.body == first.body, "{path} {encoding}: {again:?}");
                    assert_eq!(again.header("content-encoding"), first.header("content-encoding"));
                } else {
                    assert_eq!(again.problem(), "outcome-not-kept", "{path} {encoding}");
                }
            }
            // A stream reaches its caller before it ends.
            let request = Request::post("/stream", "").header("Accept-Encoding", encoding).key(&new_key());
            let first = {
                let (request, address) = (request.clone().by(protocol), running.address);
                actix_rt::spawn(async move { request.send(address).await })
            };
            ours.began.notified().await;
            let again = loop {
                let answer = send(&running, request.clone(), protocol).await;
                if answer.problem() != "in-progress" {
                    break answer;
                }
            };
            assert_eq!(again.problem(), "outcome-not-kept", "{encoding}: while the first caller still reads");
            ours.go.notify_one();
            let first = first.await.unwrap();
            assert_eq!(first.status, 200);
            if encoding == "identity" {
                assert_eq!(first.text(), "first, last");
            }
        }
    }
    running.stop().await;
}

#[derive(Default)]
struct Gate {
    began: tokio::sync::Notify,
    go: tokio::sync::Notify,
}

async fn stream(gate: web::Data<Gate>) -> HttpResponse {
    gate.began.notify_one();
    let last = async move {
        gate.go.notified().await;
        Ok::<_, std::io::Error>(web::Bytes::from_static(b"last"))
    };
    let first = futures_util::stream::iter([Ok(web::Bytes::from_static(b"first, "))]);
    HttpResponse::Ok().streaming(first.chain(futures_util::stream::once(last)))
}
