//! An operation with several effects on a plain thread. Its first try fails after the charge; the second one continues.
//!
//! ```text
//! cargo run -p oncekey --example steps_thread
//! ```

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::sync::atomic::{AtomicUsize, Ordering};

use oncekey::{Claim, Engine, Key, OnAbandoned, StepError};
use oncekey_backends::MemoryBackend;

static CHARGES: AtomicUsize = AtomicUsize::new(0);
static MAIL_TRIES: AtomicUsize = AtomicUsize::new(0);

fn checkout(claim: &Claim) -> Result<String, StepError<&'static str>> {
    let receipt = claim.step_blocking("charge", |step| {
        CHARGES.fetch_add(1, Ordering::Relaxed);
        Ok(format!("charged as {}", step.key()))
    })?;
    claim.step_blocking("mail", |step| match MAIL_TRIES.fetch_add(1, Ordering::Relaxed) {
        // Nothing happened: the key is released with its steps, for the next try.
        0 => Err("the mail server is away"),
        _ => Ok(format!("{receipt}; mailed at attempt {}", step.attempt())),
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    let engine = Engine::builder(MemoryBackend::new()).on_abandoned(OnAbandoned::Resume).start()?;
    let key = Key::new("checkout", "r-1")?;
    let first = engine.run_blocking(key.clone(), &1999, checkout);
    println!("first: {}", first.map_or_else(|error| error.to_string(), |outcome| outcome.into_inner()));
    println!("second: {}", engine.run_blocking(key, &1999, checkout)?.into_inner());
    println!("{} charge", CHARGES.load(Ordering::Relaxed));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e26_a_thread_continues_after_an_error() {
        main().unwrap();
        assert_eq!((CHARGES.load(Ordering::Relaxed), MAIL_TRIES.load(Ordering::Relaxed)), (1, 2));
    }
}
