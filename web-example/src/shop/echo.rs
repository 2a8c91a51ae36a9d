//! An echo: one route that can be loaded guarded, with a key, and unguarded, without.

use actix_web::{HttpResponse, web};

pub(super) async fn echo(body: web::Json<serde_json::Value>) -> HttpResponse {
    HttpResponse::Ok().json(body.into_inner())
}
