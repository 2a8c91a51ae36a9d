//! A server for large uploads, in a separate process so that its memory can be measured.
//!
//! It prints `ready ADDRESS`. `POST /upload` is guarded by `Content-Digest`. Its handler counts and hashes the body as
//! it arrives, compares the digest, prints `read LENGTH`, and answers when a line `go` arrives. `GET /runs` returns how
//! many times the handler ran.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a process of the tests: what fails fails the test")]
#![expect(clippy::print_stdout, reason = "its output is its interface")]

use std::sync::atomic::{AtomicUsize, Ordering};

use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use futures_util::StreamExt as _;
use oncekey::Engine;
use oncekey::web::{FingerprintStrategy, Idempotency, Scope};
use oncekey_backends::MemoryBackend;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

struct State {
    runs: AtomicUsize,
    may_answer: Semaphore,
}

async fn upload(
    state: web::Data<State>,
    request: HttpRequest,
    mut body: web::Payload,
) -> Result<HttpResponse, actix_web::Error> {
    state.runs.fetch_add(1, Ordering::Relaxed);
    let (mut length, mut digest) = (0, Sha256::new());
    while let Some(chunk) = body.next().await {
        let chunk = chunk?;
        length += chunk.len();
        digest.update(&chunk);
    }
    let found = format!("sha-256=:{}:", BASE64_STANDARD.encode(digest.finalize()));
    if request.headers().get("content-digest").unwrap() != found.as_str() {
        return Ok(HttpResponse::UnprocessableEntity().body(found));
    }
    println!("read {length}");
    state.may_answer.acquire().await.unwrap().forget();
    Ok(HttpResponse::Created().body(length.to_string()))
}

#[actix_web::main]
async fn main() -> std::io::Result<()> {
    let engine = Engine::builder(MemoryBackend::new()).start().unwrap();
    let guard = Idempotency::new(engine, Scope::shared()).required().fingerprint(FingerprintStrategy::ContentDigest);
    let state = web::Data::new(State { runs: AtomicUsize::new(0), may_answer: Semaphore::new(0) });
    let shared = state.clone();
    let server = HttpServer::new(move || {
        App::new().app_data(shared.clone()).wrap(guard.clone()).route("/upload", web::post().to(upload)).route(
            "/runs",
            web::get().to(async |state: web::Data<State>| state.runs.load(Ordering::Relaxed).to_string()),
        )
    })
    .workers(1)
    .bind_auto_h2c(("127.0.0.1", 0))?;
    println!("ready {}", server.addrs()[0]);
    std::thread::spawn(move || std::io::stdin().lines().for_each(|_| state.may_answer.add_permits(1)));
    server.run().await
}
