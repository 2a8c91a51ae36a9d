//! A job with several effects. It crashes between the charge and the mail; its next delivery continues with the mail.
//!
//! ```text
//! cargo run -p oncekey --example steps_job
//! ```

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::sync::atomic::{AtomicUsize, Ordering};

use oncekey::{Claim, Engine, Key, OnAbandoned, Outcome, RunError, Step, StepError, StepOptions, StepPolicy};
use oncekey_backends::MemoryBackend;

static CHARGES: AtomicUsize = AtomicUsize::new(0);
static MAILS: AtomicUsize = AtomicUsize::new(0);
static TRIES: AtomicUsize = AtomicUsize::new(0);

/// The provider takes an idempotency key, so the same charge may be asked for twice.
async fn charge(amount: u64, step: Step) -> Result<String, std::io::Error> {
    CHARGES.fetch_add(1, Ordering::Relaxed);
    Ok(format!("charged {amount} as {}", step.key()))
}

async fn mail(receipt: &str) -> Result<String, std::io::Error> {
    MAILS.fetch_add(1, Ordering::Relaxed);
    Ok(format!("mailed: {receipt}"))
}

async fn checkout(claim: Claim) -> Result<String, StepError<std::io::Error>> {
    let policy = StepOptions::new("charge").fingerprint(&1999).policy(StepPolicy::Rerun);
    let receipt = claim.step_with(policy, async |step| charge(1999, step).await).await?;
    if TRIES.fetch_add(1, Ordering::Relaxed) == 0 {
        std::panic::resume_unwind(Box::new("a crash between the charge and the mail"));
    }
    claim.step("mail", async |_| mail(&receipt).await).await
}

#[actix_rt::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let engine = Engine::builder(MemoryBackend::new()).on_abandoned(OnAbandoned::Resume).start()?;
    let key = Key::new("checkout", "r-1")?;
    for _ in 0..3 {
        match engine.run(key.clone(), &1999, checkout).await {
            Ok(Outcome::Ran(told)) => println!("ran: {told}"),
            Ok(Outcome::Replayed(told)) => println!("replayed: {told}"),
            Err(RunError::Engine(error)) => println!("delivered again later: {error}"),
            Err(error) => return Err(error.into()),
        }
    }
    println!("{} charge, {} mail", CHARGES.load(Ordering::Relaxed), MAILS.load(Ordering::Relaxed));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e26_a_job_continues_after_a_crash() {
        main().unwrap();
        assert_eq!((CHARGES.load(Ordering::Relaxed), MAILS.load(Ordering::Relaxed)), (1, 1));
        assert_eq!(TRIES.load(Ordering::Relaxed), 2);
    }
}
