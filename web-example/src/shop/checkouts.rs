//! Checkouts: three effects, each a step of its own. A retry continues where the last try ended.

use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, web};
use diesel::{ExpressionMethods as _, QueryDsl as _, Queryable, Selectable, SelectableHelper as _};
use oncekey::{Claim, Step, StepError};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Shop;
use super::database::{Database, DatabaseError, checkout_steps, crashed, now, on_database};
use super::payments::{self, MAX_REFERENCE, Payment};
use crate::server::problem;

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Checkout {
    item: String,
    amount: i64,
    card: String,
    reference: String,
}

/// One line per step that was executed.
#[derive(Debug, Serialize, Queryable, Selectable)]
#[diesel(table_name = checkout_steps)]
struct Executed {
    step: String,
    /// The step's derived key, as its provider got it.
    #[diesel(column_name = provider_key)]
    key: String,
    #[diesel(column_name = created_at)]
    at: String,
}

/// What the card's owner is told. It is a final answer, so the step keeps it.
#[derive(Debug, Serialize, Deserialize)]
enum Charged {
    Charge(String),
    Declined,
}

/// Why a step has no outcome: nothing happened by it.
#[derive(Debug, thiserror::Error)]
enum StepFailed {
    #[error("the shop's database failed: {0}")]
    Database(#[from] DatabaseError),
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
    Ok(check_out(&shop, &checkout, &claim).await.unwrap_or_else(|error| refused(&error)))
}

/// All that has an effect stands in a step. A crash between two steps loses nothing: the next try replays those that are
/// done.
async fn check_out(shop: &Shop, checkout: &Checkout, claim: &Claim) -> Result<HttpResponse, StepError<StepFailed>> {
    let reserved: String =
        claim.step("reserve", async |step| Ok(execute(shop, checkout, &step, &checkout.item).await?)).await?;
    let charged = claim.step("charge", async |step| charge(shop, checkout, step).await).await?;
    let Charged::Charge(charge) = charged else {
        return Ok(HttpResponse::PaymentRequired().json(json!({"error": "card declined"})));
    };
    if checkout.card == "tok_crash_once" && is_first_crash(shop, checkout.reference.clone()).await {
        crash();
    }
    let mailed: String =
        claim.step("mail", async |step| Ok(execute(shop, checkout, &step, &checkout.reference).await?)).await?;
    let told = json!({"reference": checkout.reference, "reserved": reserved, "charge": charge, "mail": mailed});
    Ok(HttpResponse::Created().json(told))
}

/// Performs a step's effect: here, a line that shows that it happened.
async fn execute(shop: &Shop, checkout: &Checkout, step: &Step, what: &str) -> Result<String, DatabaseError> {
    let row = (
        checkout_steps::reference.eq(checkout.reference.clone()),
        checkout_steps::step.eq(step.name().to_owned()),
        checkout_steps::provider_key.eq(step.key().to_string()),
        checkout_steps::created_at.eq(now()),
    );
    let inserted = diesel::insert_into(checkout_steps::table).values(row);
    match &shop.database {
        Database::Sqlite(file) => {
            file.run(move |connection| diesel::RunQueryDsl::execute(inserted, connection)).await?;
        }
        Database::Postgres(pool) => {
            diesel_async::RunQueryDsl::execute(inserted, &mut *pool.get().await?).await?;
        }
        Database::Mysql(pool) => {
            diesel_async::RunQueryDsl::execute(inserted, &mut *pool.get().await?).await?;
        }
    }
    Ok(format!("{}: {what}", step.name()))
}

async fn charge(shop: &Shop, checkout: &Checkout, step: Step) -> Result<Charged, StepFailed> {
    match checkout.card.as_str() {
        "tok_declined" => return Ok(Charged::Declined),
        "tok_gateway_down" => return Err(StepFailed::GatewayDown),
        "tok_slow" => tokio::time::sleep(Duration::from_secs(2)).await,
        _ => {}
    }
    let Checkout { amount, card, reference, .. } = checkout.clone();
    let payment = Payment { amount, currency: "usd".to_owned(), card, reference };
    payments::insert(shop, payment, step.key()).await?;
    Ok(Charged::Charge(execute(shop, checkout, &step, &checkout.card).await?))
}

/// Whether this is the first checkout with the reference that crashes. The database remembers it, so two shops agree.
async fn is_first_crash(shop: &Shop, reference: String) -> bool {
    let row = crashed::reference.eq(reference);
    let inserted: Result<usize, DatabaseError> = async {
        Ok(match &shop.database {
            Database::Sqlite(file) => {
                let inserted = diesel::insert_or_ignore_into(crashed::table).values(row);
                file.run(move |connection| diesel::RunQueryDsl::execute(inserted, connection)).await?
            }
            Database::Postgres(pool) => {
                let inserted = diesel::insert_into(crashed::table).values(row).on_conflict_do_nothing();
                diesel_async::RunQueryDsl::execute(inserted, &mut *pool.get().await?).await?
            }
            Database::Mysql(pool) => {
                let inserted = diesel::insert_or_ignore_into(crashed::table).values(row);
                diesel_async::RunQueryDsl::execute(inserted, &mut *pool.get().await?).await?
            }
        })
    }
    .await;
    inserted.is_ok_and(|inserted| inserted == 1)
}

#[expect(clippy::panic, reason = "a card to show what a crash between two steps does")]
fn crash() -> ! {
    panic!("tok_crash_once was used")
}

fn refused(error: &StepError<StepFailed>) -> HttpResponse {
    tracing::warn!(%error, "a checkout was not completed");
    match error {
        // Nothing happened by this step, and a retry continues with it.
        StepError::Operation(StepFailed::GatewayDown) => {
            problem(StatusCode::SERVICE_UNAVAILABLE, "The card gateway is down", &"retry with the same key")
        }
        StepError::Store(_) | StepError::Stopped => {
            problem(StatusCode::SERVICE_UNAVAILABLE, "The step did not run", &"retry with the same key")
        }
        // Whether the row was committed is not known, or another holder has the key: the guard treats it as a crash.
        _ => problem(StatusCode::INTERNAL_SERVER_ERROR, "The checkout stopped", &"retry with the same key"),
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Wanted {
    reference: Option<String>,
}

/// The steps that were executed, in their order.
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
