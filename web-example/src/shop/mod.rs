//! The shop: orders, payments, and the database that shows what really happened.

mod checkouts;
mod database;
mod echo;
mod mails;
mod orders;
mod payments;

pub(crate) use database::DatabaseError;
pub(crate) use mails::{relay as relay_mails, work as work_on_mails};

use actix_web::web;

use crate::options::Options;
use crate::server::resource;
use crate::store::Store;
use database::Database;
use mails::Outbox;

/// What the shop's handlers share.
#[derive(Debug)]
pub(crate) struct Shop {
    database: Database,
    /// Whether an order's row can commit with its completion, and a reservation's row with its step.
    orders_in_the_store: bool,
    /// Where the mails of such orders are posted.
    outbox: Option<Outbox>,
    /// Whether a checkout's handler performs its effects without steps.
    bare_checkouts: bool,
}

impl Shop {
    pub(crate) async fn open(store: &Store, options: &Options) -> Result<Self, DatabaseError> {
        let database = Database::open(&store.home).await?;
        let outbox = if store.is_shared { Some(Outbox::open(&store.home).await?) } else { None };
        let (orders_in_the_store, bare_checkouts) = (store.is_shared, options.bare_checkouts);
        Ok(Self { database, orders_in_the_store, outbox, bare_checkouts })
    }
}

pub(crate) fn routes(config: &mut web::ServiceConfig) {
    config
        .service(
            resource("/orders", "GET, POST").route(web::post().to(orders::create)).route(web::get().to(orders::list)),
        )
        .service(resource("/orders/{id}", "GET").route(web::get().to(orders::get)))
        .service(resource("/mails", "GET").route(web::get().to(mails::list)))
        .service(
            resource("/payments", "GET, POST")
                .route(web::post().to(payments::pay))
                .route(web::get().to(payments::list)),
        )
        .service(
            resource("/checkouts", "GET, POST")
                .route(web::post().to(checkouts::create))
                .route(web::get().to(checkouts::list)),
        )
        .service(resource("/echo", "POST").route(web::post().to(echo::echo)));
}
