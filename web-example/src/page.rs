//! The start page.

use actix_web::HttpResponse;

/// A checkout to try it out: plain HTML, nothing to load.
pub(crate) async fn page() -> HttpResponse {
    HttpResponse::Ok().content_type("text/html; charset=utf-8").body(include_str!("page.html"))
}
