//! The operator's console, as a browser and an attacker use it.

mod access;
mod answers;
mod settling;
mod steps;
mod views;

use std::io;
use std::sync::Arc;

use actix_web::{App, HttpRequest, HttpResponse, web};
use oncekey::web::{ConsoleAccess, Idempotency, ResponseDisposition, Scope, WithDisposition as _, console};
use oncekey::{Engine, Event, EventKind, Key, OnFailure};
use oncekey_backends::MemoryBackend;
use parking_lot::Mutex;
use tests::http::{Answer, Request};

use super::running::{Running, Runs, charge, runs};

/// The settled keys that the engine reported to its observer: the event, the key and the operator.
type Settled = Arc<Mutex<Vec<(EventKind, String, Option<String>)>>>;

/// An engine with its console at `/admin`, and a guarded route beside it.
struct Site {
    running: Running,
    engine: Engine,
    settled: Settled,
    runs: Runs,
}

/// Reads the operator's rights and name from a header, which a sign-in would set.
fn access(request: &HttpRequest) -> ConsoleAccess {
    let operator = request.headers().get("X-Operator").and_then(|operator| operator.to_str().ok());
    match operator.and_then(|operator| operator.split_once(':')) {
        Some(("view", name)) => ConsoleAccess::view(name),
        Some(("settle", name)) => ConsoleAccess::settle(name),
        Some(("read", name)) => ConsoleAccess::view(name).with_outcomes(),
        _ => ConsoleAccess::none(),
    }
}

/// Charges, and does not know whether the charge succeeded.
async fn unsure(runs: Runs) -> HttpResponse {
    charge(&runs).await;
    HttpResponse::GatewayTimeout().body("silence").with_disposition(ResponseDisposition::Indeterminate)
}

impl Site {
    async fn open() -> Self {
        Self::on(Engine::builder(MemoryBackend::new())).await
    }

    async fn on(builder: oncekey::EngineBuilder<impl oncekey::backend::Backend>) -> Self {
        let settled = Settled::default();
        let told = Arc::clone(&settled);
        let observer = move |event: &Event<'_>| {
            if matches!(event.kind, EventKind::Resolved | EventKind::StepResolved) {
                let operator = event.operator.map(str::to_owned);
                told.lock().push((event.kind, event.key.to_string(), operator));
            }
        };
        let engine = builder.on_failure(OnFailure::Hold).observer(observer).start().unwrap();
        let (shown, runs) = (engine.clone(), runs());
        let counted = runs.clone();
        let running = Running::start(move || {
            let guard = Idempotency::new(shown.clone(), Scope::header_or("X-Api-Key", "public"));
            App::new()
                .app_data(counted.clone())
                .wrap(guard)
                .route("/unsure", web::post().to(unsure))
                .service(web::scope("/admin").service(console(shown.clone(), access)))
        })
        .await;
        Self { running, engine, settled, runs }
    }

    async fn send(&self, request: Request) -> Answer {
        request.send(self.running.address).await
    }

    /// Fetches a page as an operator who may settle keys.
    async fn page(&self, target: &str) -> Answer {
        self.send(get(target).header("X-Operator", "settle:ada")).await
    }

    /// Submits a form as a page of the console does.
    async fn submit(&self, target: &str, fields: &[(&str, &str)]) -> Answer {
        let form = form(target, fields).header("Origin", "http://shop").header("Sec-Fetch-Site", "same-origin");
        self.send(form.header("X-Operator", "settle:ada")).await
    }

    /// Runs an operation that does not know whether it had its effect.
    async fn get_stuck(&self, scope: &str, key: &str) -> Key {
        let key = Key::new(scope, key).unwrap();
        let ran = self.engine.run(key.clone(), &(), |_| async { Err::<u32, _>(io::Error::other("silence")) }).await;
        assert!(ran.is_err());
        key
    }

    /// Runs the operation as a retry would.
    async fn retry(&self, key: &Key) -> Result<(u32, bool), String> {
        let ran = self.engine.run(key.clone(), &(), |_| async { Ok::<_, io::Error>(1) }).await;
        ran.map(|outcome| (outcome.is_replay(), outcome.into_inner()))
            .map(|(is_replay, value)| (value, is_replay))
            .map_err(|error| error.to_string())
    }

    async fn close(self) {
        self.running.stop().await;
    }
}

fn get(target: &str) -> Request {
    Request::new("GET", target, "")
}

fn form(target: &str, fields: &[(&str, &str)]) -> Request {
    let body: Vec<_> = fields.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
    Request::post(target, body.join("&")).header("Content-Type", "application/x-www-form-urlencoded")
}

/// Percent-encodes a text as a browser does.
fn encoded(text: &str) -> String {
    let sign = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(sign).collect()
}

/// Returns the values of a form's fields with this name, as a browser reads them.
fn fields(page: &Answer, name: &str) -> Vec<String> {
    let text = page.text();
    let mark = format!("name=\"{name}\" value=\"");
    text.split(&mark).skip(1).map(|rest| unescaped(rest.split('"').next().unwrap())).collect()
}

fn unescaped(text: &str) -> String {
    let signs = [("&#60;", "<"), ("&#62;", ">"), ("&#34;", "\""), ("&#39;", "'"), ("&amp;", "&"), ("&#38;", "&")];
    signs.iter().fold(text.to_owned(), |text, (written, sign)| text.replace(written, sign))
}

/// Returns the addresses that the page links to.
fn links(page: &Answer) -> Vec<String> {
    let text = page.text();
    let parts = ["href=\"", "src=\"", "action=\"", "data-activity=\""];
    let found = parts.iter().flat_map(|part| text.split(part).skip(1)).map(|rest| rest.split('"').next().unwrap());
    found.map(unescaped).collect()
}
