//! The shop: orders, payments, and the database that shows what really happened.

mod database;
mod echo;
mod orders;
mod payments;

pub(crate) use database::DatabaseError;

use actix_web::web;

use crate::store::Store;
use database::Database;

/// What the shop's handlers share.
#[derive(Debug)]
pub(crate) struct Shop {
    database: Database,
    /// Whether an order's row can commit with its completion.
    orders_in_the_store: bool,
}

impl Shop {
    pub(crate) async fn open(store: &Store) -> Result<Self, DatabaseError> {
        Ok(Self { database: Database::open(&store.home).await?, orders_in_the_store: store.is_shared })
    }
}

pub(crate) fn routes(config: &mut web::ServiceConfig) {
    config
        .route("/orders", web::post().to(orders::create))
        .route("/orders", web::get().to(orders::list))
        .route("/orders/{id}", web::get().to(orders::get))
        .route("/payments", web::post().to(payments::pay))
        .route("/payments", web::get().to(payments::list))
        .route("/echo", web::post().to(echo::echo));
}
