//! A test's own application on a free port, over both versions of HTTP.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use actix_web::body::MessageBody;
use actix_web::dev::{ServerHandle, ServiceFactory};
use actix_web::{App, HttpServer, web};
use oncekey::Engine;
use oncekey::web::{Idempotency, Scope};
use oncekey_backends::MemoryBackend;
use tests::http::{Answer, Request};

pub(super) struct Running {
    pub(super) address: SocketAddr,
    handle: ServerHandle,
}

impl Running {
    /// Serves the application that `make` returns, on two workers.
    pub(super) async fn start<T, B>(make: impl Fn() -> App<T> + Clone + Send + 'static) -> Self
    where
        T: ServiceFactory<
                actix_web::dev::ServiceRequest,
                Config = (),
                Response = actix_web::dev::ServiceResponse<B>,
                Error = actix_web::Error,
                InitError = (),
            > + 'static,
        B: MessageBody + 'static,
    {
        let server = HttpServer::new(make).workers(2).disable_signals().bind_auto_h2c(("127.0.0.1", 0)).unwrap();
        let address = server.addrs()[0];
        let server = server.run();
        let handle = server.handle();
        actix_rt::spawn(server);
        Self { address, handle }
    }

    pub(super) async fn stop(self) {
        self.handle.stop(false).await;
    }
}

/// How often a handler ran.
pub(super) type Runs = web::Data<AtomicUsize>;

pub(super) fn runs() -> Runs {
    Runs::new(AtomicUsize::new(0))
}

/// Performs an effect while the handler waits for its provider.
pub(super) async fn charge(runs: &Runs) {
    tokio::time::sleep(Duration::from_millis(1)).await;
    runs.fetch_add(1, Ordering::Relaxed);
}

/// Sends a request twice.
pub(super) async fn twice(running: &Running, request: Request) -> (Answer, Answer) {
    (request.send(running.address).await, request.send(running.address).await)
}

pub(super) fn engine() -> Engine {
    Engine::builder(MemoryBackend::new()).start().unwrap()
}

/// Returns a guard that requires a key, with one scope for all.
pub(super) fn required() -> Idempotency {
    Idempotency::new(engine(), Scope::shared()).required()
}

pub(super) fn new_key() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("key-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Generates a test of each function, over each version of HTTP.
macro_rules! on_both_protocols {
    ($($test:ident)*) => {
        mod by_http1 {
            $(#[actix_rt::test] async fn $test() { super::$test(tests::http::Protocol::Http1).await; })*
        }
        mod by_http2 {
            $(#[actix_rt::test] async fn $test() { super::$test(tests::http::Protocol::Http2).await; })*
        }
    };
}
pub(super) use on_both_protocols;
