//! Payments: an external effect. The charge is written to the ledger in a separate commit, before the response.

use std::time::Duration;

use actix_web::cookie::Cookie;
use actix_web::http::{StatusCode, header};
use actix_web::{HttpResponse, web};
use diesel::{ExpressionMethods as _, QueryDsl as _, Queryable, Selectable, SelectableHelper as _};
use oncekey::web::{ResponseDisposition, WithDisposition as _};
use oncekey::{Claim, DerivedKey};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Shop;
use super::database::{Database, DatabaseError, charges, inserts_first, last_insert_id, limited, now, on_database};
use crate::server::problem;

/// The length limit in characters, which MySQL accepts as a primary key.
pub(super) const MAX_REFERENCE: usize = 255;

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Payment {
    pub(super) amount: i64,
    pub(super) currency: String,
    pub(super) card: String,
    pub(super) reference: String,
}

#[derive(Debug, Serialize, Queryable, Selectable)]
#[diesel(table_name = charges)]
pub(super) struct Charge {
    id: i64,
    reference: String,
    amount: i64,
    currency: String,
    card: String,
    created_at: String,
    /// The derived key that the provider received. A charge from before this column existed has none.
    #[diesel(column_name = provider_key)]
    key: Option<String>,
}

/// How the provider answers a card.
enum Provider {
    Charges,
    ChargesSlowly,
    ChargesAtLength,
    ChargesAndFallsSilent,
    ChargesAndTimesOut,
    ChargesAndCrashes,
    ChargesTheSecondTime,
    Declines,
    IsDown,
    Crashes,
}

fn provider_for(card: &str) -> Option<Provider> {
    Some(match card {
        "tok_visa" => Provider::Charges,
        "tok_slow" => Provider::ChargesSlowly,
        "tok_huge" => Provider::ChargesAtLength,
        "tok_unsure" => Provider::ChargesAndFallsSilent,
        "tok_timeout" => Provider::ChargesAndTimesOut,
        "tok_crash" => Provider::ChargesAndCrashes,
        "tok_limited" => Provider::ChargesTheSecondTime,
        "tok_declined" => Provider::Declines,
        "tok_gateway_down" => Provider::IsDown,
        "tok_panic" => Provider::Crashes,
        _ => return None,
    })
}

pub(super) async fn insert(shop: &Shop, payment: Payment, key: &DerivedKey) -> Result<Charge, DatabaseError> {
    let row = (
        charges::reference.eq(payment.reference),
        charges::amount.eq(payment.amount),
        charges::currency.eq(payment.currency),
        charges::card.eq(payment.card),
        charges::created_at.eq(now()),
        charges::provider_key.eq(key.to_string()),
    );
    let inserted = diesel::insert_into(charges::table).values(row);
    match &shop.database {
        Database::Sqlite(file) => {
            let inserted = inserted.returning(Charge::as_returning());
            file.run(move |connection| diesel::RunQueryDsl::get_result(inserted, connection)).await
        }
        Database::Postgres(pool) => {
            let inserted = inserted.returning(Charge::as_returning());
            Ok(diesel_async::RunQueryDsl::get_result(inserted, &mut *pool.get().await?).await?)
        }
        Database::Mysql(pool) => {
            let mut connection = pool.get().await?;
            diesel_async::RunQueryDsl::execute(inserted, &mut *connection).await?;
            let found = charges::table.filter(charges::id.eq(last_insert_id())).select(Charge::as_select());
            Ok(diesel_async::RunQueryDsl::first(found, &mut *connection).await?)
        }
    }
}

/// Writes the charge. If the ledger fails, its commit may still have happened. The key is then held, because a release
/// would let a retry charge again.
async fn charge(shop: &Shop, payment: Payment, key: &DerivedKey) -> Result<Charge, HttpResponse> {
    insert(shop, payment, key).await.map_err(|error| {
        tracing::error!(%error, "the ledger failed");
        let unsure = problem(StatusCode::INTERNAL_SERVER_ERROR, "The ledger failed", &"the card may have been charged");
        unsure.with_disposition(ResponseDisposition::Indeterminate)
    })
}

pub(super) async fn pay(
    shop: web::Data<Shop>,
    payment: web::Json<Payment>,
    claim: Claim,
) -> Result<HttpResponse, actix_web::Error> {
    let payment = payment.into_inner();
    let is_reference = (1..=MAX_REFERENCE).contains(&payment.reference.chars().count());
    if payment.amount < 1 || payment.currency.len() != 3 || !is_reference {
        let detail =
            "it needs an amount of at least 1, a currency of three letters, and a reference of 1 to 255 characters";
        return Ok(problem(StatusCode::BAD_REQUEST, "Not a payment", &detail));
    }
    let Some(provider) = provider_for(&payment.card) else {
        return Ok(problem(StatusCode::BAD_REQUEST, "Unknown card", &"see the start page for the cards of this shop"));
    };
    // The provider charges once for this key, however often it receives the request.
    let key = claim.derive_key("charge");
    Ok(answer(&shop, provider, payment, &key).await.unwrap_or_else(|unsure| unsure))
}

async fn answer(
    shop: &Shop,
    provider: Provider,
    payment: Payment,
    key: &DerivedKey,
) -> Result<HttpResponse, HttpResponse> {
    match provider {
        Provider::Declines => Ok(HttpResponse::PaymentRequired().json(json!({"error": "card declined"}))),
        Provider::IsDown => Ok(HttpResponse::ServiceUnavailable().json(json!({"error": "the card gateway is down"}))),
        Provider::Crashes => crash("tok_panic"),
        Provider::ChargesAndCrashes => {
            charge(shop, payment, key).await?;
            crash("tok_crash")
        }
        Provider::ChargesAndTimesOut => {
            charge(shop, payment, key).await?;
            // A timeout says nothing about the charge, so the guard treats it as a crash.
            Ok(HttpResponse::GatewayTimeout().json(json!({"error": "the card gateway did not answer in time"})))
        }
        Provider::ChargesTheSecondTime => {
            match inserts_first!(&shop.database, limited, limited::reference.eq(payment.reference.clone())) {
                Ok(true) => Ok(HttpResponse::TooManyRequests()
                    .insert_header((header::RETRY_AFTER, "1"))
                    .json(json!({"error": "too many payments: try again"}))),
                Ok(false) => Ok(HttpResponse::Created().json(charge(shop, payment, key).await?)),
                Err(error) => {
                    tracing::error!(%error, "the shop's database failed");
                    let detail = "nothing was charged: retry";
                    Err(problem(StatusCode::SERVICE_UNAVAILABLE, "The shop's database failed", &detail))
                }
            }
        }
        Provider::Charges => {
            // The cookie is only for this client. A replay never carries it.
            let cookie = Cookie::build("last_payment", payment.reference.clone()).http_only(true).finish();
            Ok(HttpResponse::Created().cookie(cookie).json(charge(shop, payment, key).await?))
        }
        Provider::ChargesSlowly => {
            tokio::time::sleep(Duration::from_secs(2)).await;
            Ok(HttpResponse::Created().json(charge(shop, payment, key).await?))
        }
        Provider::ChargesAtLength => {
            let charge = charge(shop, payment, key).await?;
            // The response exceeds the guard's limit.
            Ok(HttpResponse::Created().json(json!({"charge": charge, "receipt": "=".repeat(2 << 20)})))
        }
        Provider::ChargesAndFallsSilent => {
            charge(shop, payment, key).await?;
            let lost = HttpResponse::GatewayTimeout().json(json!({"error": "the card gateway did not answer"}));
            Ok(lost.with_disposition(ResponseDisposition::Indeterminate))
        }
    }
}

#[expect(clippy::panic, reason = "a card to show what a handler's panic does")]
fn crash(card: &str) -> ! {
    panic!("{card} was used")
}

#[derive(Debug, Deserialize)]
pub(super) struct Wanted {
    reference: Option<String>,
}

/// Returns the ledger: one line per charge that happened.
pub(super) async fn list(shop: web::Data<Shop>, wanted: web::Query<Wanted>) -> Result<HttpResponse, actix_web::Error> {
    let found: Vec<Charge> = match wanted.into_inner().reference {
        Some(reference) => on_database!(
            &shop.database,
            load(
                charges::table.filter(charges::reference.eq(reference)).order(charges::id).select(Charge::as_select())
            )
        )?,
        None => on_database!(&shop.database, load(charges::table.order(charges::id).select(Charge::as_select())))?,
    };
    Ok(HttpResponse::Ok().json(found))
}
