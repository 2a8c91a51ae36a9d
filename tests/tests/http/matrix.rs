//! What each answer means for its key: every status, from each source of an answer, with and without a transaction,
//! over either version of HTTP.

use std::future::{Ready, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use actix_web::dev::{Payload, Service as _};
use actix_web::error::InternalError;
use actix_web::http::StatusCode;
use actix_web::{App, FromRequest, HttpRequest, HttpResponse, ResponseError, web};
use oncekey::web::{Idempotency, ResponseDisposition, Scope, Transaction, TransactionError, WithDisposition as _};
use oncekey::{Engine, OnAbandoned};
use tests::http::{Protocol, Request};
use tests::rows::{Rows, RowsBackend};

use super::running::{Running, new_key};

/// The answer to the second of two equal requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Second {
    Replay,
    RunsAgain,
    Indeterminate,
}

/// The source of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    Handler,
    /// A handler that returns an error of its own.
    HandlerError,
    Extractor,
    InnerMiddleware,
    /// The application's default service, for a path that the router does not know.
    NoRoute,
}

const PLACES: [From; 5] = [From::Handler, From::HandlerError, From::Extractor, From::InnerMiddleware, From::NoRoute];
const STATUSES: [u16; 22] =
    [200, 201, 204, 302, 400, 401, 403, 404, 405, 408, 409, 413, 415, 422, 425, 429, 500, 501, 502, 503, 504, 599];

/// The table of the guide.
fn expected(place: From, in_transaction: bool, status: u16, on_abandoned: Option<OnAbandoned>) -> Second {
    match (place, status) {
        (From::Extractor | From::InnerMiddleware, _) => Second::RunsAgain,
        (From::NoRoute, 404 | 405) | (_, 408 | 425 | 429 | 503) => Second::RunsAgain,
        (_, 500..) if in_transaction && place != From::NoRoute => Second::RunsAgain,
        (_, 500..) if on_abandoned == Some(OnAbandoned::Rerun) => Second::RunsAgain,
        (_, 500..) => Second::Indeterminate,
        _ => Second::Replay,
    }
}

#[derive(Default)]
struct Effects {
    /// Counts the charges of handlers without a transaction. Such a handler answers "not now" only before it charges.
    charges: AtomicUsize,
    calls: AtomicUsize,
}

fn is_not_now(status: u16) -> bool {
    matches!(status, 408 | 425 | 429 | 503)
}

#[derive(Debug, thiserror::Error)]
#[error("the status {0}")]
struct Failed(u16);

impl ResponseError for Failed {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.0).unwrap()
    }
}

/// An extractor that never reads its request.
struct Unreadable;

#[derive(Debug, thiserror::Error)]
#[error("unreadable: {0}")]
struct NotRead(u16);

impl ResponseError for NotRead {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.0).unwrap()
    }
}

impl FromRequest for Unreadable {
    type Error = NotRead;
    type Future = Ready<Result<Self, NotRead>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(Err(NotRead(request.match_info().query("status").parse().unwrap())))
    }
}

async fn plain(effects: web::Data<Effects>, status: web::Path<u16>) -> HttpResponse {
    charge(&effects, *status);
    HttpResponse::build(StatusCode::from_u16(*status).unwrap()).finish()
}

async fn plain_error(effects: web::Data<Effects>, status: web::Path<u16>) -> Result<HttpResponse, Failed> {
    charge(&effects, *status);
    Err(Failed(*status))
}

async fn no_route(effects: web::Data<Effects>, request: HttpRequest) -> HttpResponse {
    let status: u16 = request.path().rsplit('/').next().unwrap().parse().unwrap();
    if matches!(status, 404 | 405) {
        // The answer says that there is nothing, and the handler did nothing.
        effects.calls.fetch_add(1, Ordering::Relaxed);
    } else {
        charge(&effects, status);
    }
    HttpResponse::build(StatusCode::from_u16(status).unwrap()).finish()
}

fn charge(effects: &Effects, status: u16) {
    effects.calls.fetch_add(1, Ordering::Relaxed);
    if !is_not_now(status) {
        effects.charges.fetch_add(1, Ordering::Relaxed);
    }
}

async fn never(effects: web::Data<Effects>, _: Unreadable) -> HttpResponse {
    charge(&effects, 200);
    HttpResponse::Ok().finish()
}

async fn never_in_transaction(effects: web::Data<Effects>, _: Transaction, _: Unreadable) -> HttpResponse {
    never(effects, Unreadable).await
}

/// Commits for an answer, and rolls back for a failure.
async fn transacts(
    effects: web::Data<Effects>,
    status: web::Path<u16>,
    transaction: Transaction,
) -> Result<HttpResponse, actix_web::Error> {
    effects.calls.fetch_add(1, Ordering::Relaxed);
    let status = *status;
    let committed = transaction.run(move |rows: &mut Rows, _| {
        rows.0.push(status.to_string());
        if is_not_now(status) || status >= 500 {
            return Err(Failed(status));
        }
        Ok(HttpResponse::build(StatusCode::from_u16(status).unwrap()).finish())
    });
    committed.await.map_err(|error| match error {
        TransactionError::Operation(failed) => failed.into(),
        other => other.into(),
    })
}

async fn transacts_error(
    effects: web::Data<Effects>,
    status: web::Path<u16>,
    transaction: Transaction,
) -> Result<HttpResponse, actix_web::Error> {
    effects.calls.fetch_add(1, Ordering::Relaxed);
    let status = *status;
    let rolled_back = transaction.run(move |rows: &mut Rows, _| {
        rows.0.push(status.to_string());
        Err::<HttpResponse, _>(Failed(status))
    });
    match rolled_back.await {
        Err(TransactionError::Operation(failed)) => Err(failed.into()),
        other => panic!("{other:?}"),
    }
}

async fn start(engine: Engine, effects: Arc<Effects>) -> Running {
    let guard = Idempotency::new(engine, Scope::shared()).required().extractor_error::<NotRead>();
    let effects = web::Data::from(effects);
    Running::start(move || {
        let refusing = || {
            web::scope("").wrap_fn(|request, service| {
                let path = request.path().to_owned();
                let called = (!path.contains("/inner/")).then(|| service.call(request));
                async move {
                    match called {
                        Some(called) => called.await,
                        None => {
                            let status: u16 = path.rsplit('/').next().unwrap().parse().unwrap();
                            Err(InternalError::new("refused", StatusCode::from_u16(status).unwrap()).into())
                        }
                    }
                }
            })
        };
        App::new().app_data(effects.clone()).wrap(guard.clone()).default_service(web::to(no_route)).service(
            refusing()
                .route("/plain/handler/{status}", web::post().to(plain))
                .route("/plain/error/{status}", web::post().to(plain_error))
                .route("/plain/extractor/{status}", web::post().to(never))
                .route("/plain/inner/{status}", web::post().to(plain))
                .route("/transaction/handler/{status}", web::post().to(transacts))
                .route("/transaction/error/{status}", web::post().to(transacts_error))
                .route("/transaction/extractor/{status}", web::post().to(never_in_transaction))
                .route("/transaction/inner/{status}", web::post().to(transacts)),
        )
    })
    .await
}

async fn the_matrix(protocol: Protocol, on_abandoned: Option<OnAbandoned>) {
    let store = RowsBackend::new();
    let engine = Engine::builder(store.clone()).start().unwrap();
    let engine = match on_abandoned {
        Some(on_abandoned) => engine.with_on_abandoned(on_abandoned),
        None => engine,
    };
    let effects = Arc::new(Effects::default());
    let running = start(engine, Arc::clone(&effects)).await;
    let mut wrong = Vec::new();
    for place in PLACES {
        for in_transaction in [false, true] {
            for status in STATUSES {
                // Skips statuses that an error cannot have, and those that HTTP/2 frames in its own way.
                if !matches!(place, From::Handler | From::NoRoute) && status < 400 {
                    continue;
                }
                let mode = if in_transaction { "transaction" } else { "plain" };
                let name = match place {
                    From::Handler => "handler",
                    From::HandlerError => "error",
                    From::Extractor => "extractor",
                    From::InnerMiddleware => "inner",
                    From::NoRoute => "nowhere",
                };
                let request = Request::post(&format!("/{mode}/{name}/{status}"), "{}").key(&new_key()).by(protocol);
                let (charges, calls, rows) = (
                    effects.charges.load(Ordering::Relaxed),
                    effects.calls.load(Ordering::Relaxed),
                    store.committed().len(),
                );
                let first = request.send(running.address).await;
                let again = request.send(running.address).await;
                let second = match (again.is_replay(), again.status) {
                    (true, _) => Second::Replay,
                    (false, 409) if again.problem_name().as_deref() == Some("indeterminate") => Second::Indeterminate,
                    _ => Second::RunsAgain,
                };
                let expects = expected(place, in_transaction, status, on_abandoned);
                // Only an explicitly chosen rerun may charge twice.
                let charged = effects.charges.load(Ordering::Relaxed) - charges;
                let chose_rerun = on_abandoned == Some(OnAbandoned::Rerun);
                let may_charge = if expects == Second::RunsAgain && chose_rerun { 2 } else { 1 };
                let called = effects.calls.load(Ordering::Relaxed) - calls;
                let calls_expected = match (place, expects) {
                    (From::Extractor | From::InnerMiddleware, _) => 0,
                    (_, Second::RunsAgain) => 2,
                    _ => 1,
                };
                let is_right = first.status == status
                    && !first.is_replay()
                    && second == expects
                    && (second == Second::Indeterminate || again.status == status)
                    && charged <= may_charge
                    && store.committed().len() - rows <= 1
                    && called == calls_expected;
                if !is_right {
                    wrong.push(format!(
                        "{place:?} {mode} {status}: first {}, second {} {second:?}, expected {expects:?}; {called} calls, \
                         {charged} charges, {} rows",
                        first.status,
                        again.status,
                        store.committed().len() - rows,
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    running.stop().await;
}

#[actix_rt::test]
async fn h08_h09_h10_h22_each_answer_means_what_the_guide_says() {
    the_matrix(Protocol::Http1, None).await;
}

#[actix_rt::test]
async fn h08_h09_h10_h22_each_answer_means_the_same_by_http2() {
    the_matrix(Protocol::Http2, None).await;
}

#[actix_rt::test]
async fn h10_a_failure_runs_again_where_that_was_chosen() {
    the_matrix(Protocol::Http1, Some(OnAbandoned::Rerun)).await;
}

#[actix_rt::test]
async fn h10_a_rollback_frees_its_key_where_holding_was_chosen() {
    the_matrix(Protocol::Http1, Some(OnAbandoned::Hold)).await;
}

async fn panics(effects: web::Data<Effects>) -> HttpResponse {
    charge(&effects, 200);
    panic!("this panic is part of a test")
}

async fn panics_in_transaction(
    effects: web::Data<Effects>,
    transaction: Transaction,
) -> Result<HttpResponse, actix_web::Error> {
    charge(&effects, 200);
    let rolled_back = transaction.run(|rows: &mut Rows, _| -> Result<HttpResponse, Failed> {
        rows.0.push("never".into());
        panic!("this panic is part of a test")
    });
    Ok(rolled_back.await?)
}

/// A committed response is the outcome, whatever its status: only a rollback changes that.
async fn commits_a_503(transaction: Transaction) -> Result<HttpResponse, TransactionError<Failed>> {
    transaction
        .run(|rows: &mut Rows, _| {
            rows.0.push("503".into());
            Ok(HttpResponse::ServiceUnavailable().body("committed"))
        })
        .await
}

async fn panics_after_commit(transaction: Transaction) -> HttpResponse {
    let committed = transaction.run(|rows: &mut Rows, _| {
        rows.0.push("after".into());
        Ok::<_, Failed>(web::Json(17))
    });
    assert_eq!(committed.await.unwrap().status(), 200);
    panic!("this panic is part of a test")
}

async fn explicit(path: web::Path<String>) -> HttpResponse {
    match path.as_str() {
        "released-502" => HttpResponse::BadGateway().finish().with_disposition(ResponseDisposition::Release),
        "kept-500" => HttpResponse::InternalServerError().body("for good").with_disposition(ResponseDisposition::Keep),
        "kept-503" => HttpResponse::ServiceUnavailable().body("for good").with_disposition(ResponseDisposition::Keep),
        "unsure-200" => HttpResponse::Ok().finish().with_disposition(ResponseDisposition::Indeterminate),
        _ => HttpResponse::Ok().finish().with_disposition(ResponseDisposition::Abandoned),
    }
}

#[actix_rt::test]
async fn h10_h20_panics_commits_and_explicit_dispositions() {
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let store = RowsBackend::new();
        let engine = Engine::builder(store.clone()).start().unwrap();
        let effects = web::Data::new(Effects::default());
        let data = effects.clone();
        let guard = Idempotency::new(engine, Scope::shared()).required();
        let running = Running::start(move || {
            App::new()
                .app_data(data.clone())
                .wrap(guard.clone())
                .route("/panics", web::post().to(panics))
                .route("/panics-in-transaction", web::post().to(panics_in_transaction))
                .route("/commits-a-503", web::post().to(commits_a_503))
                .route("/panics-after-commit", web::post().to(panics_after_commit))
                .route("/explicit/{how}", web::post().to(explicit))
        })
        .await;
        let twice = async |path: &str| {
            let request = Request::post(path, "").key(&new_key()).by(protocol);
            (request.send(running.address).await, request.send(running.address).await)
        };

        let (first, again) = twice("/panics").await;
        assert_eq!((first.status, first.problem().as_str()), (500, "handler-panicked"));
        assert_eq!((again.status, again.problem().as_str()), (409, "indeterminate"));
        assert_eq!(effects.charges.load(Ordering::Relaxed), 1, "no second charge");
        let (first, again) = twice("/panics-in-transaction").await;
        assert_eq!((first.status, again.status, again.is_replay()), (500, 500, false), "rolled back: it runs again");
        assert_eq!(effects.charges.load(Ordering::Relaxed), 3);
        assert_eq!(store.committed(), [""; 0]);
        let (first, again) = twice("/commits-a-503").await;
        assert_eq!((first.status, again.status, again.is_replay()), (503, 503, true));
        let (first, again) = twice("/panics-after-commit").await;
        assert_eq!(
            (first.status, again.status, again.text().as_str()),
            (500, 200, "17"),
            "what was committed is replayed"
        );
        assert_eq!(store.committed(), ["503", "after"]);

        for (how, status, second) in [
            ("released-502", 502, Second::RunsAgain),
            ("kept-500", 500, Second::Replay),
            ("kept-503", 503, Second::Replay),
            ("unsure-200", 200, Second::Indeterminate),
            ("abandoned-200", 200, Second::Indeterminate),
        ] {
            let (first, again) = twice(&format!("/explicit/{how}")).await;
            assert_eq!(first.status, status, "{how}");
            match second {
                Second::Replay => assert!(again.is_replay() && again.status == status, "{how}: {again:?}"),
                Second::RunsAgain => assert!(!again.is_replay() && again.status == status, "{how}: {again:?}"),
                Second::Indeterminate => assert_eq!(again.problem(), "indeterminate", "{how}"),
            }
        }
        running.stop().await;
    }
}
