//! An echo: one route for load tests, guarded when the request has a key and unguarded otherwise.

use actix_web::{HttpResponse, web};

pub(super) async fn echo(body: web::Json<serde_json::Value>) -> HttpResponse {
    HttpResponse::Ok().json(body.into_inner())
}
