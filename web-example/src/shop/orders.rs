//! Orders: with an SQL store, the row and the completion of its key commit together.

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderValue};
use actix_web::{HttpResponse, web};
use diesel::prelude::*;
use oncekey::web::{RecordedResponse, Transaction, TransactionError};
use serde::{Deserialize, Serialize};

use super::Shop;
use super::database::{now, orders};
use crate::server::problem;

#[derive(Debug, Deserialize)]
pub(super) struct NewOrder {
    item: String,
    quantity: i64,
}

#[derive(Debug, Serialize, Queryable, Selectable)]
#[diesel(table_name = orders)]
pub(super) struct Order {
    id: i64,
    item: String,
    quantity: i64,
    created_at: String,
}

fn insert(connection: &mut SqliteConnection, order: NewOrder) -> QueryResult<Order> {
    diesel::insert_into(orders::table)
        .values((orders::item.eq(order.item), orders::quantity.eq(order.quantity), orders::created_at.eq(now())))
        .returning(Order::as_returning())
        .get_result(connection)
}

/// 201, with where the order is.
fn created(order: &Order) -> Result<RecordedResponse, serde_json::Error> {
    let location = HeaderValue::try_from(format!("/orders/{}", order.id));
    let response = RecordedResponse::json(StatusCode::CREATED, order)?;
    Ok(match location {
        Ok(location) => response.header(header::LOCATION, location),
        Err(_) => response,
    })
}

#[derive(Debug, thiserror::Error)]
enum OrderError {
    #[error("the order's row was not written: {0}")]
    Sql(#[from] diesel::result::Error),
    #[error("the order can't be shown: {0}")]
    Json(#[from] serde_json::Error),
}

pub(super) async fn create(
    shop: web::Data<Shop>,
    order: web::Json<NewOrder>,
    transaction: Transaction,
) -> Result<HttpResponse, actix_web::Error> {
    let order = order.into_inner();
    if order.item.is_empty() || order.quantity < 1 {
        return Ok(problem(StatusCode::BAD_REQUEST, "Not an order", &"it needs an item and a quantity of at least 1"));
    }
    if shop.orders_in_the_store {
        let committed = transaction
            .run(move |tx: &mut SqliteConnection, _claim| Ok::<_, OrderError>(created(&insert(tx, order)?)?))
            .await;
        return committed.map_err(|error: TransactionError<OrderError>| {
            tracing::error!(%error, "an order was not taken");
            error.into()
        });
    }
    let order = shop.database.run(move |connection| insert(connection, order)).await?;
    Ok(HttpResponse::Created().insert_header((header::LOCATION, format!("/orders/{}", order.id))).json(order))
}

#[derive(Debug, Deserialize)]
pub(super) struct Wanted {
    item: Option<String>,
}

pub(super) async fn list(shop: web::Data<Shop>, wanted: web::Query<Wanted>) -> Result<HttpResponse, actix_web::Error> {
    let found = shop
        .database
        .run(move |connection| {
            let all = orders::table.select(Order::as_select()).order(orders::id).into_boxed();
            let wanted = match wanted.into_inner().item {
                Some(item) => all.filter(orders::item.eq(item)),
                None => all,
            };
            wanted.load(connection)
        })
        .await?;
    Ok(HttpResponse::Ok().json(found))
}

pub(super) async fn get(shop: web::Data<Shop>, id: web::Path<i64>) -> Result<HttpResponse, actix_web::Error> {
    let id = id.into_inner();
    let found = shop
        .database
        .run(move |connection| orders::table.find(id).select(Order::as_select()).first(connection).optional())
        .await?;
    Ok(match found {
        Some(order) => HttpResponse::Ok().json(order),
        None => problem(StatusCode::NOT_FOUND, "No such order", &format!("there is no order {id}")),
    })
}
