//! A shop's handlers that count, wait, fail and stream.

use std::sync::atomic::{AtomicUsize, Ordering};

use actix_web::body::{BodyStream, SizedStream};
use actix_web::http::{StatusCode, header};
use actix_web::{HttpResponse, web};
use bytes::Bytes;
use futures_util::stream;
use oncekey::Claim;
use oncekey::web::{ResponseDisposition, Transaction, TransactionError, WithDisposition as _};
use tokio::sync::Notify;

/// What the handlers count and wait for.
#[derive(Default)]
pub(super) struct Shop {
    pub(super) runs: AtomicUsize,
    pub(super) go: Notify,
    pub(super) began: Notify,
}

impl Shop {
    pub(super) fn runs(&self) -> usize {
        self.runs.load(Ordering::Relaxed)
    }
}

pub(super) type State = web::Data<Shop>;

/// Counts, and answers with the request's body and the number of the run.
pub(super) async fn order(shop: State, body: Bytes) -> HttpResponse {
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
pub(super) async fn status(shop: State, path: web::Path<u16>) -> HttpResponse {
    shop.runs.fetch_add(1, Ordering::Relaxed);
    HttpResponse::build(StatusCode::from_u16(*path).unwrap()).body("as you wish")
}

/// Signals that it began, and waits.
pub(super) async fn slow(shop: State) -> HttpResponse {
    shop.runs.fetch_add(1, Ordering::Relaxed);
    shop.began.notify_one();
    shop.go.notified().await;
    HttpResponse::Ok().body("slow")
}

pub(super) async fn panics(shop: State) -> HttpResponse {
    shop.runs.fetch_add(1, Ordering::Relaxed);
    panic!("this panic is part of a test")
}

pub(super) async fn large(shop: State, path: web::Path<String>) -> HttpResponse {
    shop.runs.fetch_add(1, Ordering::Relaxed);
    let piece = || stream::iter((0..4).map(|_| Ok::<_, std::io::Error>(Bytes::from(vec![b'x'; 1_000]))));
    match path.as_str() {
        "sized" => HttpResponse::Ok().body("x".repeat(4_000)),
        "at-the-limit" => HttpResponse::Ok().body("x".repeat(3_999)),
        "sized-stream" => HttpResponse::Ok().body(SizedStream::new(4_000, piece())),
        "small-sized-stream" => {
            HttpResponse::Ok().body(SizedStream::new(5, stream::iter([Ok::<_, std::io::Error>(Bytes::from("small"))])))
        }
        "stream" => HttpResponse::Ok().body(BodyStream::new(piece())),
        // The body's length differs from the announced one, as with a file that changes while it is read.
        "short" | "long" => {
            let announced = if path.as_str() == "short" { 8 } else { 3 };
            let small = stream::iter([Ok::<_, std::io::Error>(Bytes::from("small"))]);
            HttpResponse::Ok().body(SizedStream::new(announced, small))
        }
        "broken" => HttpResponse::Ok().body(SizedStream::new(5, stream::iter([Err(std::io::Error::other("broken"))]))),
        _ => HttpResponse::NotFound().finish(),
    }
}

pub(super) async fn unsure(shop: State) -> HttpResponse {
    shop.runs.fetch_add(1, Ordering::Relaxed);
    HttpResponse::GatewayTimeout().body("who knows").with_disposition(ResponseDisposition::Indeterminate)
}

pub(super) async fn keep_500(shop: State) -> HttpResponse {
    shop.runs.fetch_add(1, Ordering::Relaxed);
    HttpResponse::InternalServerError().body("for good").with_disposition(ResponseDisposition::Keep)
}

pub(super) async fn claim(claim: Option<Claim>) -> HttpResponse {
    HttpResponse::Ok().body(claim.map_or("none".to_owned(), |claim| format!("{} {}", claim.key(), claim.attempt())))
}

pub(super) async fn transact(
    shop: State,
    path: web::Path<String>,
    transaction: Transaction,
) -> Result<HttpResponse, TransactionError<diesel::result::Error>> {
    use diesel::prelude::*;
    shop.runs.fetch_add(1, Ordering::Relaxed);
    let how = path.into_inner();
    if how == "waits" {
        shop.began.notify_one();
        shop.go.notified().await;
    }
    transaction
        .run(move |tx: &mut SqliteConnection, _| {
            diesel::sql_query("CREATE TABLE IF NOT EXISTS rows (n INTEGER)").execute(tx)?;
            diesel::sql_query("INSERT INTO rows VALUES (1)").execute(tx)?;
            match how.as_str() {
                "fails" => Err(diesel::result::Error::RollbackTransaction),
                "panics" => panic!("this panic is part of a test"),
                _ => {
                    let rows = diesel::sql_query("SELECT n FROM rows").execute(tx)?;
                    Ok(HttpResponse::Created().insert_header(("X-Kept", "no")).body(format!("committed {rows}")))
                }
            }
        })
        .await
}
