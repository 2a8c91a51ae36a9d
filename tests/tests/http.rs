//! The HTTP lines of the contract, over real sockets against the middleware on each embedded store.
//!
//! The acceptance script checks most of them from outside, against the shop; here are the finer points, and what needs
//! a store that fails.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use actix_web::body::{BodyStream, SizedStream};
use actix_web::dev::ServerHandle;
use actix_web::http::{StatusCode, header};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, ResponseError as _, web};
use bytes::Bytes;
use futures_util::stream;
use oncekey::backend::{Backend, StateView};
use oncekey::conformance::{Fault, Faulty, Steps};
use oncekey::web::{
    FingerprintStrategy, Idempotency, KeyStrategy, RecordedResponse, ResponseFate, Transaction, TransactionError,
    WithFate as _,
};
use oncekey::{Claim, Engine, Fingerprint, Key, OnInProgress, OnStoreFailure};
use oncekey_backends::{MemoryBackend, SqliteBackend};
use tests::http::{Answer, Request};
use tokio::sync::Notify;

/// What the handlers count, and wait for.
#[derive(Default)]
struct Shop {
    runs: AtomicUsize,
    go: Notify,
    began: Notify,
}

impl Shop {
    fn runs(&self) -> usize {
        self.runs.load(Ordering::Relaxed)
    }
}

type State = web::Data<Shop>;

/// Counts, and answers with what was asked and the number of the run.
async fn order(shop: State, body: Bytes) -> HttpResponse {
    let run = shop.runs.fetch_add(1, Ordering::Relaxed) + 1;
    HttpResponse::Created()
        .insert_header((header::LOCATION, format!("/orders/{run}")))
        .append_header((header::LINK, "</a>; rel=next"))
        .append_header((header::LINK, "</b>; rel=prev"))
        .insert_header((header::SET_COOKIE, "session=secret"))
        .insert_header(("X-Request-Id", run.to_string()))
        .insert_header(("X-Kept", "yes"))
        .content_type("text/plain; charset=utf-8")
        .body(format!("order {run}: {}", String::from_utf8_lossy(&body)))
}

/// Answers with the status in the path.
async fn status(shop: State, path: web::Path<u16>) -> HttpResponse {
    shop.runs.fetch_add(1, Ordering::Relaxed);
    HttpResponse::build(StatusCode::from_u16(*path).unwrap()).body("as you wish")
}

/// Says that it began, and waits.
async fn slow(shop: State) -> HttpResponse {
    shop.runs.fetch_add(1, Ordering::Relaxed);
    shop.began.notify_one();
    shop.go.notified().await;
    HttpResponse::Ok().body("slow")
}

async fn panics(shop: State) -> HttpResponse {
    shop.runs.fetch_add(1, Ordering::Relaxed);
    panic!("this panic is part of a test")
}

async fn large(shop: State, path: web::Path<String>) -> HttpResponse {
    shop.runs.fetch_add(1, Ordering::Relaxed);
    let piece = || stream::iter((0..4).map(|_| Ok::<_, std::io::Error>(Bytes::from(vec![b'x'; 1_000]))));
    match path.as_str() {
        "sized" => HttpResponse::Ok().body("x".repeat(4_000)),
        "sized-stream" => HttpResponse::Ok().body(SizedStream::new(4_000, piece())),
        "small-sized-stream" => {
            HttpResponse::Ok().body(SizedStream::new(5, stream::iter([Ok::<_, std::io::Error>(Bytes::from("small"))])))
        }
        "stream" => HttpResponse::Ok().body(BodyStream::new(piece())),
        "broken" => HttpResponse::Ok().body(SizedStream::new(5, stream::iter([Err(std::io::Error::other("broken"))]))),
        _ => HttpResponse::NotFound().finish(),
    }
}

async fn unsure(shop: State) -> HttpResponse {
    shop.runs.fetch_add(1, Ordering::Relaxed);
    HttpResponse::GatewayTimeout().body("who knows").with_fate(ResponseFate::Indeterminate)
}

async fn keep_500(shop: State) -> HttpResponse {
    shop.runs.fetch_add(1, Ordering::Relaxed);
    HttpResponse::InternalServerError().body("for good").with_fate(ResponseFate::Keep)
}

async fn claim(claim: Option<Claim>) -> HttpResponse {
    HttpResponse::Ok().body(claim.map_or("none".to_owned(), |claim| format!("{} {}", claim.key(), claim.attempt())))
}

async fn transact(
    shop: State,
    path: web::Path<String>,
    transaction: Transaction,
) -> Result<HttpResponse, TransactionError<diesel::result::Error>> {
    use diesel::prelude::*;
    shop.runs.fetch_add(1, Ordering::Relaxed);
    let how = path.into_inner();
    transaction
        .run(move |tx: &mut SqliteConnection, _| {
            diesel::sql_query("CREATE TABLE IF NOT EXISTS rows (n INTEGER)").execute(tx)?;
            diesel::sql_query("INSERT INTO rows VALUES (1)").execute(tx)?;
            match how.as_str() {
                "fails" => Err(diesel::result::Error::RollbackTransaction),
                "panics" => panic!("this panic is part of a test"),
                _ => {
                    let rows = diesel::sql_query("SELECT n FROM rows").execute(tx)?;
                    Ok(RecordedResponse::new(StatusCode::CREATED, format!("committed {rows}")))
                }
            }
        })
        .await
}

/// A server on a free port, with its engine.
struct Server {
    address: SocketAddr,
    shop: State,
    engine: Engine,
    handle: ServerHandle,
}

impl Server {
    async fn start(engine: Engine, rules: impl Fn(Idempotency) -> Idempotency + Clone + Send + 'static) -> Self {
        let shop = State::new(Shop::default());
        let (data, guarded) = (shop.clone(), engine.clone());
        let server = HttpServer::new(move || {
            let guard = Idempotency::new(guarded.clone()).required().scope_by_header("X-Api-Key", "public");
            App::new()
                .app_data(data.clone())
                .wrap(rules(guard))
                .route("/orders", web::post().to(order))
                .route("/orders", web::put().to(order))
                .route("/orders", web::get().to(order))
                .route("/other", web::post().to(order))
                .route("/status/{code}", web::post().to(status))
                .route("/slow", web::post().to(slow))
                .route("/panics", web::post().to(panics))
                .route("/large/{how}", web::post().to(large))
                .route("/unsure", web::post().to(unsure))
                .route("/keep-500", web::post().to(keep_500))
                .route("/claim", web::post().to(claim))
                .route("/transact/{how}", web::post().to(transact))
        })
        .workers(2)
        .disable_signals()
        .bind(("127.0.0.1", 0))
        .unwrap();
        let address = server.addrs()[0];
        let server = server.run();
        let handle = server.handle();
        actix_rt::spawn(server);
        Self { address, shop, engine, handle }
    }

    async fn on(backend: impl Backend) -> Self {
        Self::start(Engine::builder(backend).start().unwrap(), |guard| guard).await
    }

    async fn send(&self, request: &Request) -> Answer {
        request.send(self.address).await
    }

    /// Sends it twice, and gives both answers.
    async fn twice(&self, request: &Request) -> (Answer, Answer) {
        (self.send(request).await, self.send(request).await)
    }

    async fn stop(self) {
        self.handle.stop(false).await;
    }
}

fn new_key() -> String {
    use std::sync::atomic::AtomicU64;
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("key-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

fn sqlite() -> SqliteBackend {
    SqliteBackend::open(tempfile::tempdir().unwrap().keep().join("keys.db")).unwrap()
}

fn new_order() -> Request {
    Request::post("/orders", "a book").key(&new_key())
}

/// A test of each function on either store.
macro_rules! on_both_stores {
    ($($test:ident)*) => {
        mod on_memory {
            use super::*;
            $(#[test] fn $test() { on_a_server(MemoryBackend::new, async |server| super::$test(server).await); })*
        }
        mod on_sqlite {
            use super::*;
            $(#[test] fn $test() { on_a_server(sqlite, async |server| super::$test(server).await); })*
        }
    };
}

fn on_a_server<B: Backend>(backend: fn() -> B, test: impl AsyncFnOnce(&Server)) {
    actix_rt::System::new().block_on(async {
        let server = Server::on(backend()).await;
        test(&server).await;
        server.stop().await;
    });
}

on_both_stores! {
    h01_the_first_use_runs_and_is_no_replay
    h02_a_retry_replays_status_body_and_repeated_headers
    h03_of_concurrent_duplicates_one_runs
    h04_a_different_request_under_the_key_is_422
    h05_a_missing_key_is_400_where_one_is_required
    h06_a_bad_key_is_400_and_runs_nothing
    h07_a_quoted_and_a_bare_key_are_one
    h08_a_server_error_is_released
    h09_a_client_error_is_kept
    h10_a_panic_is_500_and_released
    h11_a_client_that_leaves_does_not_stop_the_work
    h12_scopes_never_share_a_record
    h13_a_body_over_the_limit_is_413
    h15_a_replay_carries_what_the_allow_list_says
    h18_methods_that_are_not_guarded_are_untouched
    h20_the_handlers_word_decides
    h02_a_handler_can_ask_for_its_claim
}

async fn h01_the_first_use_runs_and_is_no_replay(server: &Server) {
    let answer = server.send(&new_order()).await;
    assert_eq!((answer.status, answer.text().as_str()), (201, "order 1: a book"));
    assert_eq!(answer.header("idempotent-replayed"), None);
    assert_eq!(answer.header("set-cookie"), Some("session=secret"), "the first caller gets all that was said");
}

async fn h02_a_retry_replays_status_body_and_repeated_headers(server: &Server) {
    let (first, again) = server.twice(&new_order()).await;
    assert!(again.is_replay());
    assert_eq!((again.status, &again.body), (first.status, &first.body));
    for name in ["location", "content-type", "link"] {
        assert_eq!(again.all(name), first.all(name), "{name}");
    }
    assert_eq!(again.all("link").len(), 2);
    assert_eq!(server.shop.runs(), 1);
}

async fn h03_of_concurrent_duplicates_one_runs(server: &Server) {
    for round in 1..=20 {
        let request = new_order();
        let answers = futures_util::future::join_all((0..16).map(|_| request.send(server.address))).await;
        assert_eq!(server.shop.runs(), round);
        for answer in answers {
            match answer.status {
                201 => {}
                409 => {
                    assert_eq!(answer.problem(), "in-progress");
                    assert_eq!(answer.header("retry-after"), Some("1"));
                }
                _ => panic!("{answer:?}"),
            }
        }
    }
}

async fn h04_a_different_request_under_the_key_is_422(server: &Server) {
    let key = new_key();
    let with = |request: Request| request.key(&key);
    assert_eq!(server.send(&with(Request::post("/orders", "a book"))).await.status, 201);
    for other in [
        Request::post("/orders", "a pen"),
        Request::post("/other", "a book"),
        Request::post("/orders?gift=1", "a book"),
        Request::post("/orders", ""),
    ] {
        let answer = server.send(&with(other)).await;
        assert_eq!((answer.status, answer.problem().as_str()), (422, "mismatch"));
    }
    assert_eq!(server.shop.runs(), 1);
}

async fn h05_a_missing_key_is_400_where_one_is_required(server: &Server) {
    let answer = server.send(&Request::post("/orders", "a book")).await;
    assert_eq!((answer.status, answer.problem().as_str()), (400, "key-missing"));
    assert_eq!(server.shop.runs(), 0);
}

async fn h06_a_bad_key_is_400_and_runs_nothing(server: &Server) {
    let long = "k".repeat(256);
    for bad in ["", "\"\"", &long, "a b", "a\tb", "k\u{e9}y", "\"abc", "ab\"c", "\"a\\\"", "\"a b\""] {
        let answer = server.send(&Request::post("/orders", "a book").key(bad)).await;
        assert_eq!((answer.status, answer.problem().as_str()), (400, "key-invalid"), "{bad:?}");
    }
    let twice = Request::post("/orders", "a book").key(&new_key()).key(&new_key());
    assert_eq!(server.send(&twice).await.problem(), "key-invalid");
    assert_eq!(server.shop.runs(), 0);
}

async fn h07_a_quoted_and_a_bare_key_are_one(server: &Server) {
    let key = new_key();
    let first = server.send(&Request::post("/orders", "a book").key(&key)).await;
    let again = server.send(&Request::post("/orders", "a book").key(&format!("\"{key}\""))).await;
    assert!(again.is_replay() && again.body == first.body);
}

async fn h08_a_server_error_is_released(server: &Server) {
    for code in [500, 502, 503] {
        let request = Request::post(&format!("/status/{code}"), "").key(&new_key());
        let before = server.shop.runs();
        let (first, again) = server.twice(&request).await;
        assert_eq!((first.status, again.status), (code, code));
        assert!(!again.is_replay() && again.text() == "as you wish");
        assert_eq!(server.shop.runs(), before + 2);
    }
}

async fn h09_a_client_error_is_kept(server: &Server) {
    for code in [400, 402, 404, 409, 422, 429] {
        let before = server.shop.runs();
        let (first, again) = server.twice(&Request::post(&format!("/status/{code}"), "").key(&new_key())).await;
        assert_eq!((first.status, again.status), (code, code));
        assert!(!first.is_replay() && again.is_replay() && again.text() == "as you wish");
        assert_eq!(server.shop.runs(), before + 1);
    }
}

async fn h10_a_panic_is_500_and_released(server: &Server) {
    let (first, again) = server.twice(&Request::post("/panics", "").key(&new_key())).await;
    for answer in [first, again] {
        assert_eq!((answer.status, answer.problem().as_str()), (500, "handler-panicked"));
    }
    assert_eq!(server.shop.runs(), 2);
    assert_eq!(server.send(&new_order()).await.status, 201, "the worker lives on");
}

async fn h11_a_client_that_leaves_does_not_stop_the_work(server: &Server) {
    for reset in [false, true] {
        let request = Request::post("/slow", "").key(&new_key());
        let before = server.shop.runs();
        let connection = request.send_only(server.address).await;
        server.shop.began.notified().await;
        if reset {
            connection.set_zero_linger().unwrap();
        }
        drop(connection);
        // The server has noticed once the next request on the same worker has been served; both workers serve some.
        for _ in 0..10 {
            server.send(&new_order()).await;
        }
        let ran = server.shop.runs();
        assert_eq!(ran, before + 11);
        server.shop.go.notify_one();
        let again = loop {
            let answer = server.send(&request).await;
            if answer.status != 409 {
                break answer;
            }
        };
        assert!(again.is_replay() && again.text() == "slow", "reset: {reset}: {again:?}");
        assert_eq!(server.shop.runs(), ran);
    }
}

async fn h12_scopes_never_share_a_record(server: &Server) {
    let key = new_key();
    let of = |tenant: &str| Request::post("/orders", "a book").key(&key).header("X-Api-Key", tenant);
    let (alice, bob) = (server.send(&of("alice")).await, server.send(&of("bob")).await);
    assert!(!bob.is_replay() && alice.body != bob.body);
    let nobody = server.send(&Request::post("/orders", "a book").key(&key)).await;
    assert!(!nobody.is_replay());
    assert_eq!(server.send(&of("alice")).await.body, alice.body);
    // A scope that tries to pose as another, with the key's help.
    let posing = Request::post("/orders", "a book").key(&format!("alice:{key}"));
    assert!(!server.send(&posing).await.is_replay());
    let records = server.engine.list(None, 100).await.unwrap();
    assert!(records.iter().all(|record| !record.key.as_stored().contains("bob")), "no credential is stored");
}

async fn h13_a_body_over_the_limit_is_413(server: &Server) {
    let request = Request::post("/orders", vec![b'x'; (1 << 20) + 1]).key(&new_key());
    let answer = server.send(&request).await;
    assert_eq!((answer.status, answer.problem().as_str()), (413, "request-too-large"));
    assert_eq!(server.shop.runs(), 0);
    let largest = Request::post("/orders", vec![b'x'; 1 << 18]).key(&new_key());
    assert_eq!(server.send(&largest).await.status, 201);
}

async fn h15_a_replay_carries_what_the_allow_list_says(server: &Server) {
    let (first, again) = server.twice(&new_order()).await;
    assert_eq!(first.header("x-request-id"), Some("1"));
    for name in ["set-cookie", "x-request-id", "x-kept"] {
        assert_eq!(again.header(name), None, "{name}");
    }
    for name in ["date", "content-length"] {
        assert_eq!(again.all(name).len(), 1, "{name}");
    }
}

async fn h18_methods_that_are_not_guarded_are_untouched(server: &Server) {
    let key = new_key();
    for method in ["GET", "PUT"] {
        for _ in 0..2 {
            let answer = server.send(&Request::new(method, "/orders", "").key(&key)).await;
            assert!(answer.status == 201 && !answer.is_replay(), "{method}");
        }
        let bad = server.send(&Request::new(method, "/orders", "").key("not a key")).await;
        assert_eq!(bad.status, 201, "{method}");
    }
}

async fn h20_the_handlers_word_decides(server: &Server) {
    let (first, again) = server.twice(&Request::post("/keep-500", "").key(&new_key())).await;
    assert!(first.status == 500 && again.status == 500 && again.is_replay() && again.text() == "for good");
    let key = new_key();
    let (first, again) = server.twice(&Request::post("/unsure", "").key(&key)).await;
    assert_eq!((first.status, first.text().as_str()), (504, "who knows"));
    assert_eq!((again.status, again.problem().as_str()), (409, "indeterminate"));
    let record = server.engine.lookup(&Key::new("public", &key).unwrap()).await.unwrap().unwrap();
    assert_eq!(record.state, StateView::Indeterminate);
}

async fn h02_a_handler_can_ask_for_its_claim(server: &Server) {
    let key = new_key();
    let answer = server.send(&Request::post("/claim", "").key(&key)).await;
    assert_eq!(answer.text(), format!("public/{key} 1"));
}

async fn configured(rules: impl Fn(Idempotency) -> Idempotency + Clone + Send + 'static) -> Server {
    Server::start(Engine::builder(MemoryBackend::new()).start().unwrap(), rules).await
}

#[actix_rt::test]
async fn h03_with_waiting_on_duplicates_get_the_replay() {
    let server = configured(|guard| guard.on_in_progress(OnInProgress::Wait(Duration::from_secs(30)))).await;
    let request = Request::post("/slow", "").key(&new_key());
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

#[actix_rt::test]
async fn h05_an_optional_key_guards_only_where_it_is_given() {
    let server = configured(|guard| guard.route("/orders", |rules| rules.optional())).await;
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

#[actix_rt::test]
async fn h05_a_key_can_be_made_of_the_body() {
    let server = configured(|guard| guard.key(KeyStrategy::HeaderOrBodyHash)).await;
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
    let server = configured(of_delivery).await;
    assert!(!server.send(&Request::post("/orders", "d-1#sent at 9:00")).await.is_replay());
    assert!(server.send(&Request::post("/orders", "d-1#sent at 9:05")).await.is_replay());
    assert_eq!(server.send(&Request::post("/orders", "no delivery")).await.problem(), "key-missing");
    server.stop().await;
}

#[actix_rt::test]
async fn h12_a_scope_that_finds_no_caller_rejects() {
    let server = configured(|guard| {
        guard.scope(|request| match request.headers().get("X-User") {
            Some(user) => Ok(user.to_str().unwrap_or("?").to_owned()),
            None => Err(actix_web::error::ErrorUnauthorized("who are you?")),
        })
    })
    .await;
    let answer = server.send(&new_order()).await;
    assert_eq!((answer.status, answer.text().as_str()), (401, "who are you?"));
    assert_eq!(server.shop.runs(), 0);
    assert_eq!(server.send(&new_order().header("X-User", "ada")).await.status, 201);
    server.stop().await;
}

#[actix_rt::test]
async fn h13_h14_limits_are_settings() {
    let server = configured(|guard| guard.request_limit(10).response_limit(3_999)).await;
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
    let (first, again) = server.twice(&Request::post("/large/broken", "").key(&new_key())).await;
    assert_eq!((first.status, again.problem().as_str()), (500, "outcome-not-kept"), "what was done is done");
    server.stop().await;
}

#[actix_rt::test]
async fn h15_the_allow_list_can_be_added_to_but_not_for_cookies() {
    let server = configured(|guard| {
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

#[actix_rt::test]
async fn h16_a_store_that_is_away_is_503_and_nothing_runs() {
    let faulty = Faulty::new(MemoryBackend::new());
    let engine = Engine::builder(faulty.clone()).store_deadline(Duration::from_millis(200)).start().unwrap();
    let server =
        Server::start(engine, |guard| guard.route("/other", |rules| rules.on_store_failure(OnStoreFailure::Run))).await;
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

#[actix_rt::test]
async fn h16_an_outcome_that_can_not_be_stored_is_told() {
    let faulty = Faulty::new(MemoryBackend::new());
    let engine = Engine::builder(faulty.clone()).settling_limit(Duration::from_millis(200)).start().unwrap();
    let server = Server::start(engine, |guard| guard).await;
    faulty.strike(Steps::Complete, Fault::Down);
    let answer = server.send(&new_order()).await;
    assert_eq!((answer.status, answer.problem().as_str()), (500, "outcome-not-stored"));
    assert!(server.shop.runs() == 1 && faulty.struck() > 2);
    server.stop().await;
}

#[actix_rt::test]
async fn h17_past_its_retention_a_key_is_new() {
    let server = configured(|guard| guard.retention(Duration::from_millis(300))).await;
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

#[actix_rt::test]
async fn h19_the_users_error_handler_answers_instead() {
    let server = configured(|guard| {
        guard.error_handler(|refusal| HttpResponse::build(refusal.status_code()).body(format!("mine: {refusal}")))
    })
    .await;
    let answer = server.send(&Request::post("/orders", "")).await;
    assert_eq!(answer.status, 400);
    assert_eq!(answer.text(), "mine: this request needs an idempotency key, in its idempotency-key header");
    let panicked = server.send(&Request::post("/panics", "").key(&new_key())).await;
    assert_eq!((panicked.status, panicked.text().as_str()), (500, "mine: the operation panicked"));
    server.stop().await;
}

#[actix_rt::test]
async fn h20_the_users_policy_decides_by_status() {
    let server = configured(|guard| {
        guard.fate(|status, _| match status.as_u16() {
            402 => ResponseFate::Release,
            504 => ResponseFate::Indeterminate,
            _ => ResponseFate::Keep,
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

#[actix_rt::test]
async fn h02_a_transaction_stores_its_response_or_nothing() {
    let server = Server::on(sqlite()).await;
    let key = new_key();
    let fails = Request::post("/transact/fails", "").key(&key);
    let (first, again) = server.twice(&fails).await;
    assert_eq!((first.status, again.status, again.is_replay()), (500, 500, false), "released: it may run again");
    let panics = server.send(&Request::post("/transact/panics", "").key(&new_key())).await;
    assert_eq!(panics.problem(), "handler-panicked");
    let (first, again) = server.twice(&Request::post("/transact/works", "").key(&new_key())).await;
    assert_eq!((first.status, first.text().as_str()), (201, "committed 1"), "the others' rows were rolled back");
    assert!(again.is_replay() && again.body == first.body);
    server.stop().await;

    let server = Server::on(MemoryBackend::new()).await;
    let answer = server.send(&Request::post("/transact/works", "").key(&new_key())).await;
    assert_eq!((answer.status, answer.problem().as_str()), (500, "internal"), "the memory has no transactions");
    server.stop().await;
}

/// On a plain tokio runtime, without an actix `System`, the workers are no arbiters; the middleware works there too.
#[test]
fn h01_on_a_plain_tokio_runtime() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let engine = Engine::builder(MemoryBackend::new()).start().unwrap();
    let used = Arc::new(engine);
    runtime.block_on(async {
        let engine = Engine::clone(&used);
        let server = HttpServer::new(move || {
            App::new()
                .wrap(Idempotency::new(engine.clone()).required())
                .route("/", web::post().to(|_: HttpRequest| async { "done" }))
        })
        .workers(2)
        .disable_signals()
        .bind(("127.0.0.1", 0))
        .unwrap();
        let address = server.addrs()[0];
        let server = server.run();
        let handle = server.handle();
        let serving = tokio::spawn(server);
        let request = Request::post("/", "").key(&new_key());
        assert!(!request.send(address).await.is_replay());
        assert!(request.send(address).await.is_replay());
        handle.stop(false).await;
        serving.await.unwrap().unwrap();
    });
}
