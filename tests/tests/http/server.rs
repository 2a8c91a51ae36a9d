//! A guarded server on a free port, with access to its engine.

use std::net::SocketAddr;

use actix_web::dev::ServerHandle;
use actix_web::{App, HttpServer, web};
use oncekey::Engine;
use oncekey::backend::Backend;
use oncekey::web::{Idempotency, Scope};
use oncekey_backends::SqliteBackend;
use tests::http::{Answer, Protocol, Request};

use super::handlers::{Shop, State, claim, keep_500, large, order, panics, slow, status, transact, unsure};
use super::running::new_key;

/// A server on a free port, with its engine.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    pub(super) shop: State,
    pub(super) engine: Engine,
    /// The protocol of its client.
    protocol: Protocol,
    handle: ServerHandle,
}

impl Server {
    pub(super) async fn start(
        engine: Engine,
        rules: impl Fn(Idempotency) -> Idempotency + Clone + Send + 'static,
    ) -> Self {
        let shop = State::new(Shop::default());
        let (data, guarded) = (shop.clone(), engine.clone());
        let server = HttpServer::new(move || {
            let guard = Idempotency::new(guarded.clone(), Scope::header_or("X-Api-Key", "public")).required();
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
        .bind_auto_h2c(("127.0.0.1", 0))
        .unwrap();
        let address = server.addrs()[0];
        let server = server.run();
        let handle = server.handle();
        actix_rt::spawn(server);
        Self { address, shop, engine, protocol: Protocol::Http1, handle }
    }

    pub(super) async fn on(backend: impl Backend) -> Self {
        Self::start(Engine::builder(backend).start().unwrap(), |guard| guard).await
    }

    pub(super) fn by(self, protocol: Protocol) -> Self {
        Self { protocol, ..self }
    }

    pub(super) fn protocol(&self) -> Protocol {
        self.protocol
    }

    pub(super) async fn send(&self, request: &Request) -> Answer {
        request.clone().by(self.protocol).send(self.address).await
    }

    /// Sends a request twice, and returns both answers.
    pub(super) async fn twice(&self, request: &Request) -> (Answer, Answer) {
        (self.send(request).await, self.send(request).await)
    }

    pub(super) async fn stop(self) {
        self.handle.stop(false).await;
    }
}

pub(super) fn sqlite() -> SqliteBackend {
    SqliteBackend::open(tempfile::tempdir().unwrap().keep().join("keys.db")).unwrap()
}

pub(super) fn new_order() -> Request {
    Request::post("/orders", "a book").key(&new_key())
}
