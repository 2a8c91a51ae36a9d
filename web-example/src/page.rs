//! The start page.

use actix_web::HttpResponse;

/// Returns a page for trying out a checkout: plain HTML that loads nothing else.
pub(crate) async fn page() -> HttpResponse {
    HttpResponse::Ok().content_type("text/html; charset=utf-8").body(include_str!("page.html"))
}
