//! Checkouts: three effects, each in its own step. A retry continues where the last attempt ended.

use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, web};
use diesel::sqlite::SqliteConnection;
use diesel::{ExpressionMethods as _, QueryDsl as _, Queryable, Selectable, SelectableHelper as _};
use diesel_async::{AsyncMysqlConnection, AsyncPgConnection};
use oncekey::{Claim, DerivedKey, Step, StepError};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Shop;
use super::database::{Database, DatabaseError, checkout_steps, crashed, inserts_first, now, on_database};
use super::payments::{self, MAX_REFERENCE, Payment};
use crate::server::problem;

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Checkout {
    item: String,
    amount: i64,
    card: String,
    reference: String,
}

/// One line per executed step.
#[derive(Debug, Serialize, Queryable, Selectable)]
#[diesel(table_name = checkout_steps)]
struct Executed {
    step: String,
    /// The step's derived key, as its provider received it.
    #[diesel(column_name = provider_key)]
    key: String,
    #[diesel(column_name = created_at)]
    at: String,
}

/// The answer to the card's owner. It is final, so the step keeps it.
#[derive(Debug, Serialize, Deserialize)]
enum Charged {
    Charge(String),
    Declined,
}

/// Why a step has no outcome: it had no effect.
#[derive(Debug, thiserror::Error)]
enum StepFailed {
    #[error("the shop's database failed: {0}")]
    Database(#[from] DatabaseError),
    #[error("the reservation was not written: {0}")]
    Sql(#[from] diesel::result::Error),
    #[error("the card gateway is down")]
    GatewayDown,
}

const CARDS: [&str; 5] = ["tok_visa", "tok_slow", "tok_declined", "tok_gateway_down", "tok_crash_once"];

pub(super) async fn create(
    shop: web::Data<Shop>,
    checkout: web::Json<Checkout>,
    claim: Claim,
) -> Result<HttpResponse, actix_web::Error> {
    let checkout = checkout.into_inner();
    let is_reference = (1..=MAX_REFERENCE).contains(&checkout.reference.chars().count());
    if checkout.item.is_empty() || checkout.amount < 1 || !is_reference {
        let detail = "it needs an item, an amount of at least 1, and a reference of 1 to 255 characters";
        return Ok(problem(StatusCode::BAD_REQUEST, "Not a checkout", &detail));
    }
    if !CARDS.contains(&checkout.card.as_str()) {
        let detail = format!("a checkout takes {}", CARDS.join(", "));
        return Ok(problem(StatusCode::BAD_REQUEST, "Unknown card", &detail));
    }
    let checked_out = if shop.bare_checkouts {
        check_out_bare(&shop, &checkout, &claim).await.map_err(StepError::Operation)
    } else {
        check_out(&shop, &checkout, &claim).await
    };
    Ok(checked_out.unwrap_or_else(|error| refused(&error)))
}

/// Runs each effect in a step. A crash between two steps loses nothing: the next attempt replays the completed ones.
async fn check_out(shop: &Shop, checkout: &Checkout, claim: &Claim) -> Result<HttpResponse, StepError<StepFailed>> {
    let reserved = reserve(shop, checkout, claim).await?;
    let charged = claim.step("charge", async |step| charge(shop, checkout, step.key()).await).await?;
    let Charged::Charge(charge) = charged else {
        return Ok(declined());
    };
    if checkout.card == "tok_crash_once" && is_first_crash(shop, checkout.reference.clone()).await {
        crash();
    }
    let mailed = claim.step("mail", async |step| mail(shop, checkout, step.key()).await).await?;
    Ok(checked_out(checkout, &reserved, &charge, &mailed))
}

/// Runs the same effects without steps, for comparison. After a crash between two of them, nothing records the first
/// one, and the next attempt repeats them all.
async fn check_out_bare(shop: &Shop, checkout: &Checkout, claim: &Claim) -> Result<HttpResponse, StepFailed> {
    execute(shop, row(checkout, "reserve", &claim.derive_key("reserve"))).await?;
    let charged = charge(shop, checkout, &claim.derive_key("charge")).await?;
    let Charged::Charge(charge) = charged else { return Ok(declined()) };
    let mailed = mail(shop, checkout, &claim.derive_key("mail")).await?;
    Ok(checked_out(checkout, &told("reserve", &checkout.item), &charge, &mailed))
}

fn checked_out(checkout: &Checkout, reserved: &str, charge: &str, mailed: &str) -> HttpResponse {
    let told = json!({"reference": checkout.reference, "reserved": reserved, "charge": charge, "mail": mailed});
    HttpResponse::Created().json(told)
}

fn declined() -> HttpResponse {
    HttpResponse::PaymentRequired().json(json!({"error": "card declined"}))
}

type Row = (
    diesel::dsl::Eq<checkout_steps::reference, String>,
    diesel::dsl::Eq<checkout_steps::step, &'static str>,
    diesel::dsl::Eq<checkout_steps::provider_key, String>,
    diesel::dsl::Eq<checkout_steps::created_at, String>,
);

/// Returns the line that shows that an effect happened.
fn row(checkout: &Checkout, step: &'static str, key: &DerivedKey) -> Row {
    (
        checkout_steps::reference.eq(checkout.reference.clone()),
        checkout_steps::step.eq(step),
        checkout_steps::provider_key.eq(key.to_string()),
        checkout_steps::created_at.eq(now()),
    )
}

fn told(step: &str, what: &str) -> String {
    format!("{step}: {what}")
}

/// Makes the reservation, which is a row of the shop. If the store is also the shop's database, the row commits with
/// its step.
async fn reserve(shop: &Shop, checkout: &Checkout, claim: &Claim) -> Result<String, StepError<StepFailed>> {
    const NAME: &str = "reserve";
    let (reserved, of) = (told(NAME, &checkout.item), checkout.clone());
    match &shop.database {
        _ if !shop.orders_in_the_store => {
            let write = async |step: Step| execute(shop, row(&of, NAME, step.key())).await.map(|()| reserved);
            claim.step(NAME, write).await
        }
        Database::Sqlite(_) => {
            let write = move |tx: &mut SqliteConnection, step: &Step| {
                let row = diesel::insert_into(checkout_steps::table).values(row(&of, NAME, step.key()));
                diesel::RunQueryDsl::execute(row, tx)?;
                Ok(reserved)
            };
            claim.step_in_transaction(NAME, write).await
        }
        Database::Postgres(_) => {
            let write = async move |tx: &mut AsyncPgConnection, step: &Step| {
                let row = diesel::insert_into(checkout_steps::table).values(row(&of, NAME, step.key()));
                diesel_async::RunQueryDsl::execute(row, tx).await?;
                Ok(reserved.clone())
            };
            claim.step_in_async_transaction(NAME, write).await
        }
        Database::Mysql(_) => {
            let write = async move |tx: &mut AsyncMysqlConnection, step: &Step| {
                let row = diesel::insert_into(checkout_steps::table).values(row(&of, NAME, step.key()));
                diesel_async::RunQueryDsl::execute(row, tx).await?;
                Ok(reserved.clone())
            };
            claim.step_in_async_transaction(NAME, write).await
        }
    }
}

/// Performs an effect: here, the line that shows it.
async fn execute(shop: &Shop, row: Row) -> Result<(), StepFailed> {
    let inserted = diesel::insert_into(checkout_steps::table).values(row);
    on_database!(&shop.database, execute(inserted)).map_err(unless_unsure)?;
    Ok(())
}

/// Returns the step's error, unless a statement failed. A step's error states that nothing happened, but a failed
/// statement may have been executed, with only its answer lost.
fn unless_unsure(error: DatabaseError) -> StepFailed {
    match error {
        DatabaseError::Sql(error) => unsure(&error),
        error => error.into(),
    }
}

/// Leaves the step unsettled, so that a reconciler or an operator finds out what happened.
#[expect(clippy::panic, reason = "a step's operation that can't tell whether it had its effect reports nothing")]
fn unsure(error: &dyn std::error::Error) -> ! {
    panic!("the shop's database failed in the middle of an effect: {error}")
}

async fn charge(shop: &Shop, checkout: &Checkout, key: &DerivedKey) -> Result<Charged, StepFailed> {
    match checkout.card.as_str() {
        "tok_declined" => return Ok(Charged::Declined),
        "tok_gateway_down" => return Err(StepFailed::GatewayDown),
        "tok_slow" => tokio::time::sleep(Duration::from_secs(2)).await,
        _ => {}
    }
    let Checkout { amount, card, reference, .. } = checkout.clone();
    let payment = Payment { amount, currency: "usd".to_owned(), card, reference };
    payments::insert(shop, payment, key).await.map_err(unless_unsure)?;
    // The charge has happened, so no failure after this point may count as "not charged".
    execute(shop, row(checkout, "charge", key)).await.unwrap_or_else(|error| unsure(&error));
    Ok(Charged::Charge(told("charge", &checkout.card)))
}

async fn mail(shop: &Shop, checkout: &Checkout, key: &DerivedKey) -> Result<String, StepFailed> {
    execute(shop, row(checkout, "mail", key)).await?;
    Ok(told("mail", &checkout.reference))
}

/// Returns whether this is the first checkout with the reference that crashes.
async fn is_first_crash(shop: &Shop, reference: String) -> bool {
    inserts_first!(&shop.database, crashed, crashed::reference.eq(reference)).unwrap_or(false)
}

#[expect(clippy::panic, reason = "a card to show what a crash between two steps does")]
fn crash() -> ! {
    panic!("tok_crash_once was used")
}

fn refused(error: &StepError<StepFailed>) -> HttpResponse {
    tracing::warn!(%error, "a checkout was not completed");
    match error {
        // This step had no effect, and a retry continues with it.
        StepError::Operation(StepFailed::GatewayDown) => {
            problem(StatusCode::SERVICE_UNAVAILABLE, "The card gateway is down", &"retry with the same key")
        }
        StepError::Store(_) | StepError::Stopped => {
            problem(StatusCode::SERVICE_UNAVAILABLE, "The step did not run", &"retry with the same key")
        }
        // Either the row may have been committed, or another holder has the key. The guard treats both as a crash.
        _ => problem(StatusCode::INTERNAL_SERVER_ERROR, "The checkout stopped", &"retry with the same key"),
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Wanted {
    reference: Option<String>,
}

/// Returns the executed steps, in order.
pub(super) async fn list(shop: web::Data<Shop>, wanted: web::Query<Wanted>) -> Result<HttpResponse, actix_web::Error> {
    let found: Vec<Executed> = match wanted.into_inner().reference {
        Some(reference) => on_database!(
            &shop.database,
            load(
                checkout_steps::table
                    .filter(checkout_steps::reference.eq(reference))
                    .order(checkout_steps::id)
                    .select(Executed::as_select())
            )
        )?,
        None => on_database!(
            &shop.database,
            load(checkout_steps::table.order(checkout_steps::id).select(Executed::as_select()))
        )?,
    };
    Ok(HttpResponse::Ok().json(found))
}
