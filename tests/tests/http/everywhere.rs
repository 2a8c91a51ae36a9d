//! What the middleware answers with its default rules, on each embedded store.

use oncekey::Key;
use oncekey::backend::{Backend, StateView};
use oncekey_backends::MemoryBackend;
use tests::http::{Leave, Protocol, Request};

use super::running::new_key;
use super::server::{Server, new_order, sqlite};

/// Generates a test of each function on either store, over either version of HTTP.
macro_rules! on_both_stores {
    ($($test:ident)*) => {
        mod on_memory {
            use super::*;
            $(#[test] fn $test() { on_a_server(MemoryBackend::new, Protocol::Http1, async |server| super::$test(server).await); })*
        }
        mod on_memory_by_http2 {
            use super::*;
            $(#[test] fn $test() { on_a_server(MemoryBackend::new, Protocol::Http2, async |server| super::$test(server).await); })*
        }
        mod on_sqlite {
            use super::*;
            $(#[test] fn $test() { on_a_server(sqlite, Protocol::Http1, async |server| super::$test(server).await); })*
        }
    };
}

fn on_a_server<B: Backend>(backend: fn() -> B, protocol: Protocol, test: impl AsyncFnOnce(&Server)) {
    actix_rt::System::new().block_on(async {
        let server = Server::on(backend()).await.by(protocol);
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
    h08_not_now_is_released
    h09_a_client_error_is_kept
    h10_a_failure_is_as_a_crash
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
        let answers = futures_util::future::join_all((0..16).map(|_| server.send(&request))).await;
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

async fn h08_not_now_is_released(server: &Server) {
    for code in [408, 425, 429, 503] {
        let request = Request::post(&format!("/status/{code}"), "").key(&new_key());
        let before = server.shop.runs();
        let (first, again) = server.twice(&request).await;
        assert_eq!((first.status, again.status), (code, code));
        assert!(!again.is_replay() && again.text() == "as you wish");
        assert_eq!(server.shop.runs(), before + 2);
    }
}

async fn h09_a_client_error_is_kept(server: &Server) {
    for code in [400, 402, 404, 409, 422] {
        let before = server.shop.runs();
        let (first, again) = server.twice(&Request::post(&format!("/status/{code}"), "").key(&new_key())).await;
        assert_eq!((first.status, again.status), (code, code));
        assert!(!first.is_replay() && again.is_replay() && again.text() == "as you wish");
        assert_eq!(server.shop.runs(), before + 1);
    }
}

async fn h10_a_failure_is_as_a_crash(server: &Server) {
    for (path, status) in [("/panics", 500), ("/status/500", 500), ("/status/502", 502), ("/status/504", 504)] {
        let before = server.shop.runs();
        let (first, again) = server.twice(&Request::post(path, "").key(&new_key())).await;
        assert_eq!(first.status, status, "{path}");
        assert_eq!((again.status, again.problem().as_str()), (409, "indeterminate"), "{path}");
        assert_eq!(server.shop.runs(), before + 1, "{path}: it may have had its effect");
    }
    assert_eq!(server.send(&new_order()).await.status, 201, "the worker lives on");
}

async fn h11_a_client_that_leaves_does_not_stop_the_work(server: &Server) {
    for &how in Leave::all(server.protocol()) {
        let request = Request::post("/slow", "").key(&new_key());
        let before = server.shop.runs();
        let begun = request.clone().by(server.protocol()).begin(server.address, how).await.unwrap();
        server.shop.began.notified().await;
        begun.leave().await;
        // Once the next request on the same worker has been served, the server has noticed. Both workers serve some of
        // these.
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
        assert!(again.is_replay() && again.text() == "slow", "{how:?}: {again:?}");
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
    // This scope tries to pose as another one with the help of the key.
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
