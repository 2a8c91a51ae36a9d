//! Orders: with an SQL store, the row, the message for its mail and the completion of its key commit together.

use actix_web::http::StatusCode;
use actix_web::http::header;
use actix_web::{FromRequest as _, HttpRequest, HttpResponse, web};
use diesel::sqlite::SqliteConnection;
use diesel::{ExpressionMethods as _, QueryDsl as _, QueryResult, Queryable, Selectable, SelectableHelper as _};
use diesel_async::{AsyncMysqlConnection, AsyncPgConnection};
use oncekey::Claim;
use oncekey::web::{Transaction, TransactionError};
use serde::{Deserialize, Serialize};

use super::Shop;
use super::database::{Database, DatabaseError, last_insert_id, now, on_database, orders};
use super::mails::{message_for, post, post_mysql, post_pg};
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

type Row = (
    diesel::dsl::Eq<orders::item, String>,
    diesel::dsl::Eq<orders::quantity, i64>,
    diesel::dsl::Eq<orders::created_at, String>,
);

fn row(order: &NewOrder) -> Row {
    (orders::item.eq(order.item.clone()), orders::quantity.eq(order.quantity), orders::created_at.eq(now()))
}

fn insert(connection: &mut SqliteConnection, order: &NewOrder) -> QueryResult<Order> {
    use diesel::RunQueryDsl as _;

    diesel::insert_into(orders::table).values(row(order)).returning(Order::as_returning()).get_result(connection)
}

async fn insert_pg(connection: &mut AsyncPgConnection, order: &NewOrder) -> QueryResult<Order> {
    use diesel_async::RunQueryDsl as _;

    let inserted = diesel::insert_into(orders::table).values(row(order)).returning(Order::as_returning());
    inserted.get_result(connection).await
}

/// Inserts and then reads the order, because MySQL has no RETURNING.
async fn insert_mysql(connection: &mut AsyncMysqlConnection, order: &NewOrder) -> QueryResult<Order> {
    use diesel_async::RunQueryDsl as _;

    diesel::insert_into(orders::table).values(row(order)).execute(connection).await?;
    orders::table.filter(orders::id.eq(last_insert_id())).select(Order::as_select()).first(connection).await
}

/// Inserts the order by itself, for records that are in another database.
async fn insert_alone(database: &Database, order: NewOrder) -> Result<Order, DatabaseError> {
    match database {
        Database::Sqlite(file) => file.run(move |connection| insert(connection, &order)).await,
        Database::Postgres(pool) => Ok(insert_pg(&mut *pool.get().await?, &order).await?),
        Database::Mysql(pool) => Ok(insert_mysql(&mut *pool.get().await?, &order).await?),
    }
}

/// Returns 201 with the order's location.
fn created(order: &Order) -> HttpResponse {
    HttpResponse::Created().insert_header((header::LOCATION, format!("/orders/{}", order.id))).json(order)
}

#[derive(Debug, thiserror::Error)]
enum OrderError {
    #[error("the order's row was not written: {0}")]
    Sql(#[from] diesel::result::Error),
    #[error("the message for the order's mail can't be written: {0}")]
    Json(#[from] serde_json::Error),
}

pub(super) async fn create(
    shop: web::Data<Shop>,
    order: web::Json<NewOrder>,
    request: HttpRequest,
) -> Result<HttpResponse, actix_web::Error> {
    let order = order.into_inner();
    if order.item.is_empty() || order.quantity < 1 {
        return Ok(problem(StatusCode::BAD_REQUEST, "Not an order", &"it needs an item and a quantity of at least 1"));
    }
    if shop.orders_in_the_store {
        // The transaction is taken here and not by an extractor. A handler that takes a transaction reruns after a
        // crash, which is right only where the order commits with its outcome.
        let transaction = Transaction::extract(&request).await?;
        // Each database runs the operation on its own connection, in the transaction that stores the response.
        let committed = match &shop.database {
            Database::Sqlite(_) => {
                let operation = move |tx: &mut SqliteConnection, _: &Claim| {
                    let order = insert(tx, &order)?;
                    post(tx, &message_for(order.id)?)?;
                    Ok(created(&order))
                };
                transaction.run(operation).await
            }
            Database::Postgres(_) => {
                let operation = async move |tx: &mut AsyncPgConnection, _: &Claim| {
                    let order = insert_pg(tx, &order).await?;
                    post_pg(tx, &message_for(order.id)?).await?;
                    Ok(created(&order))
                };
                transaction.run_async(operation).await
            }
            Database::Mysql(_) => {
                let operation = async move |tx: &mut AsyncMysqlConnection, _: &Claim| {
                    let order = insert_mysql(tx, &order).await?;
                    post_mysql(tx, &message_for(order.id)?).await?;
                    Ok(created(&order))
                };
                transaction.run_async(operation).await
            }
        };
        return committed.map_err(|error: TransactionError<OrderError>| {
            tracing::error!(%error, "an order was not taken");
            error.into()
        });
    }
    Ok(created(&insert_alone(&shop.database, order).await?))
}

#[derive(Debug, Deserialize)]
pub(super) struct Wanted {
    item: Option<String>,
}

pub(super) async fn list(shop: web::Data<Shop>, wanted: web::Query<Wanted>) -> Result<HttpResponse, actix_web::Error> {
    let found: Vec<Order> = match wanted.into_inner().item {
        Some(item) => on_database!(
            &shop.database,
            load(orders::table.filter(orders::item.eq(item)).order(orders::id).select(Order::as_select()))
        )?,
        None => on_database!(&shop.database, load(orders::table.order(orders::id).select(Order::as_select())))?,
    };
    Ok(HttpResponse::Ok().json(found))
}

pub(super) async fn get(shop: web::Data<Shop>, id: web::Path<i64>) -> Result<HttpResponse, actix_web::Error> {
    let id = id.into_inner();
    let found: Vec<Order> = on_database!(&shop.database, load(orders::table.find(id).select(Order::as_select())))?;
    Ok(match found.into_iter().next() {
        Some(order) => HttpResponse::Ok().json(order),
        None => problem(StatusCode::NOT_FOUND, "No such order", &format!("there is no order {id}")),
    })
}
