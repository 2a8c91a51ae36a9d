//! A connection of a pool that goes back only where it is known to be clean.

use std::ops::DerefMut;

/// Runs `work` with a connection of a pool. It goes back if `work` succeeds; otherwise `take` takes it out of its pool for
/// good, and it is closed: what failed on it, or was dropped midway, may have left a transaction open there.
pub(crate) async fn lend_clean<P, C, K, T, E>(
    pooled: P,
    take: fn(P) -> K,
    work: impl AsyncFnOnce(&mut C) -> Result<T, E>,
) -> Result<T, E>
where
    P: DerefMut<Target = C>,
{
    let mut loan = Loan { pooled: Some(pooled), take };
    // It is there until it is given back below.
    let Some(connection) = loan.pooled.as_deref_mut() else { unreachable!("a connection that was just lent") };
    let done = work(connection).await?;
    drop(loan.pooled.take());
    Ok(done)
}

struct Loan<P, K> {
    pooled: Option<P>,
    take: fn(P) -> K,
}

impl<P, K> Drop for Loan<P, K> {
    fn drop(&mut self) {
        if let Some(pooled) = self.pooled.take() {
            drop((self.take)(pooled));
        }
    }
}
