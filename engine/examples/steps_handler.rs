//! An HTTP handler with several effects. Its first request panics between the charge and the mail; the client's retry
//! continues with the mail.
//!
//! ```text
//! cargo run -p oncekey --example steps_handler --features web
//! ```

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::sync::atomic::{AtomicUsize, Ordering};

use actix_web::{App, HttpResponse, test, web};
use oncekey::web::{Idempotency, RouteRules, Scope};
use oncekey::{Claim, Engine, OnAbandoned, StepError};
use oncekey_backends::MemoryBackend;

static CHARGES: AtomicUsize = AtomicUsize::new(0);
static TRIES: AtomicUsize = AtomicUsize::new(0);

async fn check_out(claim: Claim) -> Result<HttpResponse, StepError<std::io::Error>> {
    let receipt: String = claim
        .step("charge", async |step| {
            CHARGES.fetch_add(1, Ordering::Relaxed);
            Ok(format!("charged as {}", step.key()))
        })
        .await?;
    if TRIES.fetch_add(1, Ordering::Relaxed) == 0 {
        std::panic::resume_unwind(Box::new("a crash between the charge and the mail"));
    }
    claim.step("mail", async |_| Ok(())).await?;
    Ok(HttpResponse::Created().body(receipt))
}

/// Maps a step without an outcome to a response. `503` releases the key, `500` leaves it to `OnAbandoned`.
async fn handler(claim: Claim) -> HttpResponse {
    match check_out(claim).await {
        Ok(response) => response,
        Err(error) if error.has_run() => HttpResponse::InternalServerError().body(error.to_string()),
        Err(error) => HttpResponse::ServiceUnavailable().body(error.to_string()),
    }
}

#[actix_web::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let engine = Engine::builder(MemoryBackend::new()).start()?;
    let resumes = |rules: RouteRules| rules.on_abandoned(OnAbandoned::Resume);
    let guard = Idempotency::new(engine, Scope::shared()).required().route("/checkouts", resumes);
    let app = App::new().wrap(guard).route("/checkouts", web::post().to(handler));
    let app = test::init_service(app).await;
    for _ in 0..3 {
        let request = test::TestRequest::post().uri("/checkouts").insert_header(("Idempotency-Key", "r-1"));
        let response = test::call_service(&app, request.to_request()).await;
        let replayed = response.headers().contains_key("Idempotent-Replayed");
        println!("{}{}", response.status(), if replayed { ", replayed" } else { "" });
    }
    println!("{} charge", CHARGES.load(Ordering::Relaxed));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[actix_web::test]
    async fn e26_a_handler_continues_after_a_panic() {
        std::thread::spawn(|| main().unwrap()).join().unwrap();
        assert_eq!((CHARGES.load(Ordering::Relaxed), TRIES.load(Ordering::Relaxed)), (1, 2));
    }
}
