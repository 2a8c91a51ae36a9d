//! Many flows, some of them in flight at once.

use std::error::Error;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Runs `flow` repeatedly in `in_flight` tasks, and returns the flows per second.
///
/// # Errors
/// The first error of a flow.
pub async fn per_second(
    in_flight: usize,
    flows: usize,
    flow: impl AsyncFn(usize) -> Result<(), Box<dyn Error>>,
) -> Result<f64, Box<dyn Error>> {
    let (next, began) = (AtomicUsize::new(0), Instant::now());
    let worker = async || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= flows {
                return Ok::<(), Box<dyn Error>>(());
            }
            flow(number).await?;
        }
    };
    futures_util::future::try_join_all((0..in_flight).map(|_| worker())).await?;
    Ok(flows as f64 / began.elapsed().as_secs_f64())
}
