//! The HTTP server: its routes, its guard, its start and its shutdown.

use std::time::Duration;

use actix_web::dev::ServerHandle;
use actix_web::error::{InternalError, JsonPayloadError};
use actix_web::http::{StatusCode, header};
use actix_web::{App, HttpResponse, HttpServer, Resource, middleware, web};
use metrics_exporter_prometheus::{BuildError, PrometheusHandle};
use oncekey::consumer::redis_streams::redis::{self, RedisError};
use oncekey::web::{Idempotency, RouteRules, Scope};
use oncekey::{Engine, Key, OnAbandoned};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use crate::admin;
use crate::options::Options;
use crate::page;
use crate::shop::{self, Shop};
use crate::store::{Store, StoreError};

/// Why the shop does not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the shop's database can't be used: {0}")]
    Shop(#[from] shop::DatabaseError),
    #[error("can't listen on {bind}: {error}")]
    Bind { bind: std::net::SocketAddr, error: std::io::Error },
    // The URL may hold a password.
    #[error("--mail-stream takes a URL such as redis://127.0.0.1/; this is none: {0}")]
    MailStream(RedisError),
    #[error("--worker needs the shop's own store, and that in SQL: sqlite:PATH, postgres://… or mysql://…")]
    NoOutbox,
    #[error("the metrics can't be set up: {0}")]
    Metrics(#[from] BuildError),
    #[error("the server ended with an error: {0}")]
    Server(std::io::Error),
}

/// How long requests in flight may take after the process receives a signal to end.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(20);

pub(crate) async fn serve(
    options: &Options,
    store: Store,
    shop: Shop,
    metrics: PrometheusHandle,
) -> Result<(), StartError> {
    actix_web::rt::spawn(keep_up(metrics.clone()));
    let (engine, metrics) = (store.engine.clone(), web::Data::new(metrics));
    let (shop, data) = (web::Data::new(shop), web::Data::new(store.clone()));
    actix_web::rt::spawn(shop::relay_mails(shop.clone(), engine.clone(), mail_stream(options)?));
    // All workers share one guard. An order in the store's transaction commits nothing before its outcome, so it runs
    // again after a crash. The guard would learn that from the first order that it sees, but a crash before that would
    // leave a key indeterminate.
    let (abandoned, is_shared) = (options.on_abandoned, store.is_shared);
    let orders = move |rules: RouteRules| match abandoned {
        None if is_shared => rules.required().on_abandoned(OnAbandoned::Rerun),
        _ => rules.required(),
    };
    // A checkout's effects are steps, so the next attempt continues after a crash. Without steps it can only run again.
    let on_crash = if options.bare_checkouts { OnAbandoned::Rerun } else { OnAbandoned::Resume };
    let (operated, admin_token) = (engine.clone(), options.admin_token.clone());
    // Other POST routes need no key: they are 404 or 405, a form of the console, or `/echo`, whose key is optional.
    let guard = Idempotency::new(engine, Scope::header_or("X-Api-Key", "public"))
        .route("/orders", orders)
        .route("/checkouts", move |rules: RouteRules| rules.required().on_abandoned(on_crash))
        .route("/payments", RouteRules::required);
    let server = HttpServer::new(move || {
        App::new()
            .app_data(data.clone())
            .app_data(shop.clone())
            .app_data(metrics.clone())
            .app_data(web::JsonConfig::default().error_handler(|error, _| {
                let status = match &error {
                    JsonPayloadError::ContentType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
                    JsonPayloadError::Overflow { .. } | JsonPayloadError::OverflowKnownLength { .. } => {
                        StatusCode::PAYLOAD_TOO_LARGE
                    }
                    _ => StatusCode::BAD_REQUEST,
                };
                let told = problem(status, "The body is not the JSON that this route takes", &error);
                InternalError::from_response(error, told).into()
            }))
            .app_data(web::PathConfig::default().error_handler(|error, _| {
                let told = problem(StatusCode::BAD_REQUEST, "The path is not one that this route takes", &error);
                InternalError::from_response(error, told).into()
            }))
            .app_data(web::QueryConfig::default().error_handler(|error, _| {
                let told = problem(StatusCode::BAD_REQUEST, "The query is not one that this route takes", &error);
                InternalError::from_response(error, told).into()
            }))
            // The middleware added last is the outermost, so each answer of the guard gets the headers.
            .wrap(guard.clone())
            .wrap(middleware::NormalizePath::trim())
            .wrap(middleware::DefaultHeaders::new().add((header::X_CONTENT_TYPE_OPTIONS, "nosniff")))
            .service(resource("/", "GET").route(web::get().to(page::page)))
            .service(resource("/healthz", "GET").route(web::get().to(healthz)))
            .service(resource("/readyz", "GET").route(web::get().to(readyz)))
            .service(resource("/metrics", "GET").route(web::get().to(prometheus)))
            .configure(shop::routes)
            .service(admin::console(operated.clone(), admin_token.as_deref()))
            .default_service(web::to(|| async {
                problem(StatusCode::NOT_FOUND, "There is nothing here", &"look at / for what there is")
            }))
    });
    let server = match options.workers {
        Some(workers) => server.workers(usize::from(workers)),
        None => server,
    };
    // The shop handles the signals itself, so that the engine drains while its workers still run.
    let server = server
        .disable_signals()
        .shutdown_timeout(SHUTDOWN_LIMIT.as_secs())
        .bind(options.bind)
        .map_err(|error| StartError::Bind { bind: options.bind, error })?;
    let address = server.addrs().first().copied().unwrap_or(options.bind);
    greet(address, &store.name);
    let server = server.run();
    actix_web::rt::spawn(end_on_signal(store.engine, server.handle()));
    server.await.map_err(StartError::Server)
}

/// Returns a resource that answers 405 to every method without a route.
pub(crate) fn resource(path: &str, allow: &'static str) -> Resource {
    web::resource(path).default_service(web::to(move || async move {
        let mut told = problem(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed", &format!("this takes {allow}"));
        told.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static(allow));
        told
    }))
}

#[expect(clippy::print_stdout, reason = "whoever starts it reads this")]
fn greet(address: std::net::SocketAddr, store: &str) {
    println!("The shop is open: http://{address}/");
    println!("Its idempotency records are kept in: {store}");
    println!(
        "Pay, and pay again:\n  curl -i http://{address}/payments -H 'Idempotency-Key: pay-1' \
         -H 'Content-Type: application/json' \
         -d '{{\"amount\": 1999, \"currency\": \"usd\", \"card\": \"tok_visa\", \"reference\": \"r-1\"}}'"
    );
    println!("Find and settle stuck keys: http://{address}/admin/");
}

fn mail_stream(options: &Options) -> Result<Option<redis::Client>, StartError> {
    options.mail_stream.as_deref().map(redis::Client::open).transpose().map_err(StartError::MailStream)
}

/// Sends mails until the process receives a signal to end. Each message that it has taken is finished or given back.
pub(crate) async fn work(options: &Options, store: Store, shop: Shop) -> Result<(), StartError> {
    let (true, Some(stream)) = (store.is_shared, mail_stream(options)?) else { return Err(StartError::NoOutbox) };
    let told = async {
        match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
            (Ok(mut terminate), Ok(mut interrupt)) => {
                tokio::select! { _ = terminate.recv() => (), _ = interrupt.recv() => () }
            }
            _ => std::future::pending().await,
        }
    };
    shop::work_on_mails(&shop, store.engine.clone(), stream, greet_worker, told).await;
    store.engine.shutdown(SHUTDOWN_LIMIT).await;
    Ok(())
}

#[expect(clippy::print_stdout, reason = "whoever starts it reads this")]
fn greet_worker() {
    println!("The worker is ready");
}

/// Handles signals. The first one drains: the engine accepts no new claims, and those in flight finish. The second one
/// ends the process at once.
async fn end_on_signal(engine: Engine, server: ServerHandle) {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return warn!("signals can't be handled: the process ends without draining");
    };
    let mut told = async || tokio::select! { _ = terminate.recv() => (), _ = interrupt.recv() => () };
    told().await;
    info!("ending: requests in flight may finish; once more ends at once");
    tokio::select! {
        shutdown = engine.shutdown(SHUTDOWN_LIMIT) => {
            if shutdown.unfinished > 0 {
                warn!(keys = shutdown.unfinished, "keys in flight are left to their lease");
            }
            server.stop(true).await;
        }
        () = told() => server.stop(false).await,
    }
}

/// Empties histograms that nobody scrapes. The recorder does so only on request.
async fn keep_up(metrics: PrometheusHandle) {
    let mut every = tokio::time::interval(Duration::from_secs(5));
    loop {
        every.tick().await;
        metrics.run_upkeep();
    }
}

/// Answers that the process is alive, and whether the store answers.
async fn healthz(store: web::Data<Store>) -> HttpResponse {
    let answers = async {
        let probe = Key::new("healthz", "probe").ok()?;
        store.engine.lookup(&probe).await.ok()
    };
    let answers = tokio::time::timeout(Duration::from_secs(1), answers).await.ok().flatten().is_some();
    HttpResponse::Ok().json(json!({"status": "up", "store": if answers { "up" } else { "down" }, "contract": 3}))
}

/// Returns whether the shop accepts new requests. Once the engine drains it does not, so that a load balancer sends
/// them elsewhere.
async fn readyz(store: web::Data<Store>) -> HttpResponse {
    if store.engine.is_accepting() {
        return HttpResponse::Ok().json(json!({"status": "ready"}));
    }
    problem(StatusCode::SERVICE_UNAVAILABLE, "Not ready", &"the shop is ending: send requests elsewhere")
}

async fn prometheus(metrics: web::Data<PrometheusHandle>) -> HttpResponse {
    HttpResponse::Ok().content_type("text/plain; version=0.0.4; charset=utf-8").body(metrics.render())
}

/// Returns one of the shop's own problems, in the form of RFC 9457.
pub(crate) fn problem(status: StatusCode, title: &str, detail: &dyn std::fmt::Display) -> HttpResponse {
    HttpResponse::build(status).content_type("application/problem+json").body(
        json!({"type": "about:blank", "title": title, "status": status.as_u16(), "detail": detail.to_string()})
            .to_string(),
    )
}
