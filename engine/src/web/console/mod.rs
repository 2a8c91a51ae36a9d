//! The operator's console: pages that show stuck keys and settle them.

mod access;
mod census;
mod gate;
mod hub;
mod key;
mod outcome;
mod overview;
mod pages;
mod settle;
mod step;
mod stuck;
mod words;

pub use access::ConsoleAccess;
pub(crate) use hub::Hub as ConsoleHub;

use std::rc::Rc;

use actix_web::body::BoxBody;
use actix_web::dev::{ServiceFactory, ServiceRequest, ServiceResponse};
use actix_web::http::StatusCode;
use actix_web::middleware::from_fn;
use actix_web::{HttpRequest, HttpResponse, Scope, web};

use crate::Engine;

/// Large enough for a form with several hundred keys, or for an outcome that an operator enters.
const FORM_LIMIT: usize = 1 << 20;

/// Creates the operator's console, a scope that you mount where you like.
///
/// The console shows the number of keys in each state, plots of the last hour, the store's settings, and each stuck
/// key. Operators can settle stuck keys there, one or many at a time. The guide to
/// [stuck keys](crate::guide::stuck_keys) shows how.
///
/// `access` identifies the operator of each request and decides what they may do. Authenticate in it, or in middleware
/// around the console that puts the operator into the request's extensions. A request without any right gets 403,
/// whatever it asks for, always with the same page. `access` runs for every request, so it must not block.
///
/// Actions are POST requests from the console's own pages. `Sec-Fetch-Site` (`same-origin`) or `Origin` (the request's
/// host) must confirm this, and neither may contradict it. A reverse proxy in front of the console must therefore pass
/// on the `Host` header and keep the path. The pages load nothing from other hosts, run no inline script, and send a
/// Content-Security-Policy that enforces this. They work without JavaScript, which only refreshes the overview.
///
/// Each key that an operator settles emits [`EventKind::Resolved`](crate::EventKind::Resolved) with the operator's
/// name, and each step emits [`EventKind::StepResolved`](crate::EventKind::StepResolved). Only operators with
/// [`ConsoleAccess::with_outcomes`] see outcomes.
///
/// The first console of an engine starts a thread that records the plots, in about 30 KB. They cover only this process.
///
/// If your [`Idempotency`](super::Idempotency) guard requires a key, exclude the console's path, because forms send no
/// key.
///
/// ```
/// use actix_web::{App, HttpRequest, web};
/// use oncekey::Engine;
/// use oncekey::web::{ConsoleAccess, console};
/// # use oncekey_backends::MemoryBackend;
///
/// // Your own sign-in: here, a header that only your proxy sets.
/// fn access(request: &HttpRequest) -> ConsoleAccess {
///     match request.headers().get("X-Operator").and_then(|name| name.to_str().ok()) {
///         Some(name) => ConsoleAccess::settle(name),
///         None => ConsoleAccess::none(),
///     }
/// }
///
/// let engine = Engine::builder(MemoryBackend::new()).start()?;
/// let app = App::new().service(web::scope("/admin").service(console(engine, access)));
/// # Ok::<(), oncekey::StartError>(())
/// ```
///
/// A console without the closure does not compile:
///
/// ```compile_fail
/// # use oncekey::{Engine, web::console};
/// # use oncekey_backends::MemoryBackend;
/// let engine = Engine::builder(MemoryBackend::new()).start().unwrap();
/// let open_to_all = console(engine);
/// ```
pub fn console<A>(
    engine: Engine,
    access: A,
) -> Scope<
    impl ServiceFactory<
        ServiceRequest,
        Config = (),
        Response = ServiceResponse<BoxBody>,
        Error = actix_web::Error,
        InitError = (),
    >,
>
where
    A: Fn(&HttpRequest) -> ConsoleAccess + 'static,
{
    // Start counting now, not when the first page is opened.
    engine.console();
    let access = Rc::new(access);
    web::scope("")
        .app_data(web::Data::new(engine))
        .app_data(web::FormConfig::default().limit(FORM_LIMIT))
        .service(web::resource(["", "/"]).route(web::get().to(overview::page)))
        .service(web::resource("/activity").route(web::get().to(overview::activity)))
        .service(web::resource("/stuck").route(web::get().to(stuck::page)))
        .service(web::resource("/key").route(web::get().to(key::page)))
        .service(web::resource("/step").route(web::get().to(step::page)))
        .service(web::resource("/confirm").route(web::post().to(settle::confirm)))
        .service(web::resource("/settle").route(web::post().to(settle::settle)))
        .service(web::resource("/settle-step").route(web::post().to(step::settle)))
        .service(file("/console.css", "text/css; charset=utf-8", include_str!("console.css")))
        .service(file("/console.js", "text/javascript; charset=utf-8", include_str!("console.js")))
        .service(file("/icon.svg", "image/svg+xml", include_str!("icon.svg")))
        .default_service(web::to(|| async {
            pages::plain(StatusCode::NOT_FOUND, "No such page", "The console has no page at this address.")
        }))
        .wrap(from_fn(move |request, next| {
            let access = Rc::clone(&access);
            async move { gate::pass(&*access, request, next).await }
        }))
}

fn file(path: &str, content_type: &'static str, text: &'static str) -> actix_web::Resource {
    web::resource(path)
        .route(web::get().to(move || async move { HttpResponse::Ok().content_type(content_type).body(text) }))
}
