//! Connections from a pool that are closed after anything went wrong on them.

use std::time::Duration;

use diesel::QueryResult;
use diesel::result::Error;
use diesel_async::SimpleAsyncConnection;
use diesel_async::pooled_connection::deadpool::HookError;
use oncekey::backend::StoreError;
use tokio::time::timeout;

use super::dialect::{Dialect, Failure};
#[cfg(feature = "postgres")]
use super::pool::Taken;
use super::pool::{PoolConnection, Pooled};

/// A connection that was lent within this time counts as alive, so busy connections are not tested.
const SURELY_ALIVE: Duration = Duration::from_millis(500);

/// How long an idle connection may take to answer its test. Without this limit, a connection whose packets vanish (a
/// firewall forgot it) would cost a call its whole deadline, and the next such connection would cost the next call's.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);

/// Tests a connection that was idle for a while, before it is lent. After a server restart, or past the server's limit
/// for idle connections, a claim sent on such a connection would end as unknown. The pool replaces a connection that
/// fails this test.
pub(crate) async fn try_if_idle<C>(connection: &mut C, idle: Duration) -> Result<(), HookError>
where
    C: SimpleAsyncConnection + Send,
{
    if idle < SURELY_ALIVE {
        return Ok(());
    }
    match timeout(ANSWERS_WITHIN, connection.batch_execute("SELECT 1")).await {
        Ok(answer) => answer.map_err(|error| HookError::message(error.to_string())),
        Err(_) => Err(HookError::message("the connection lay in its pool and does not answer")),
    }
}

/// A connection in use. Unless it is [given back](Self::give_back), it is closed: a dropped future or an error may
/// leave a statement or a transaction on it, and its locks would persist in the pool.
pub(crate) struct Lent<C: PoolConnection> {
    pooled: Option<Pooled<C>>,
}

impl<C: PoolConnection> Lent<C> {
    pub(crate) async fn from<D: Dialect<Connection = C>>(dialect: &D) -> Result<Self, StoreError> {
        let pooled = dialect.connections().pool.lend().await;
        let pooled = pooled.map_err(|error| StoreError::unavailable(format!("{}: {error}", D::NAME)))?;
        // A refused connection is closed.
        let mut lent = Self { pooled: Some(pooled) };
        if let Some(pooled) = &mut lent.pooled {
            dialect.check(pooled).await?;
        }
        Ok(lent)
    }

    /// Lends a connection and runs a statement on it. The statement must be safe to repeat: if it fails in one of the
    /// `passing` ways, it runs again on another connection. After a server restart every connection in the pool may be
    /// stale; the next one is new.
    pub(crate) async fn after<T, D: Dialect<Connection = C>>(
        dialect: &D,
        passing: &[Failure],
        told: fn(&Error) -> StoreError,
        statement: impl AsyncFn(&mut C) -> QueryResult<T>,
    ) -> Result<(Self, T), StoreError> {
        let mut failures = 0;
        loop {
            let mut lent = Self::from(dialect).await?;
            match statement(lent.connection()?).await {
                Ok(given) => return Ok((lent, given)),
                Err(error) if failures <= dialect.connections().size() && passing.contains(&D::failure(&error)) => {
                    failures += 1;
                }
                Err(error) => return Err(told(&error)),
            }
        }
    }

    pub(crate) fn give_back(mut self) {
        drop(self.pooled.take());
    }

    /// Takes the connection out of the pool permanently.
    #[cfg(feature = "postgres")]
    pub(crate) fn keep(mut self) -> Option<Taken<C>> {
        self.pooled.take().map(Pooled::take)
    }

    /// # Errors
    /// Never fails: the connection exists until it is given back or kept, and both take `self`.
    pub(crate) fn connection(&mut self) -> Result<&mut C, StoreError> {
        self.pooled.as_deref_mut().ok_or_else(|| StoreError::unavailable("the connection was given back"))
    }
}

impl<C: PoolConnection> Drop for Lent<C> {
    fn drop(&mut self) {
        if let Some(pooled) = self.pooled.take() {
            drop(pooled.take());
        }
    }
}

/// Runs `work` with a connection of a pool. The connection returns to the pool if `work` succeeds, and is closed
/// otherwise.
pub(crate) async fn lend_clean<C: PoolConnection, T, E>(
    pooled: Pooled<C>,
    work: impl AsyncFnOnce(&mut C) -> Result<T, E>,
) -> Result<T, E> {
    let mut lent = Lent { pooled: Some(pooled) };
    // The connection exists until it is given back below.
    let Some(connection) = lent.pooled.as_deref_mut() else { unreachable!("a connection that was just lent") };
    let done = work(connection).await?;
    lent.give_back();
    Ok(done)
}
