//! Finding out that a pooler shares the server's connections by transaction.
//!
//! What a session is set to does not hold there, nor what it has prepared or locked, and nothing is heard by LISTEN. Two
//! connections that are open at once have two servers' processes behind them, and each keeps its own: unless there is a
//! pooler between. A pooler gives a process back with each commit, and lends the one that came back last, or first. So of two
//! transactions that were open at once the next one, on either connection, gets the other's process.

use diesel::result::Error;
use diesel::sql_types::Integer;
use diesel_async::{AnsiTransactionManager, AsyncPgConnection, RunQueryDsl as _, TransactionManager as _};
use tokio::time::{Duration, timeout};

use super::PostgresOpenError;
use crate::sql::{Bind, Fragment};

/// Two find a pooler that lends what came back last, and one that lends what came back first. Others' transactions may come
/// between.
const ROUNDS: usize = 12;

/// How long all of it may take. A pooler by session that has one process never lends a second.
const LIMIT: Duration = Duration::from_secs(20);

async fn process(connection: &mut AsyncPgConnection) -> Result<i32, Error> {
    Fragment::<Integer, Bind<'_>>::new("SELECT pg_backend_pid()", &[]).get_result(connection).await
}

/// Opens a transaction and returns its server process id.
async fn begin(connection: &mut AsyncPgConnection) -> Result<i32, Error> {
    AnsiTransactionManager::begin_transaction(connection).await?;
    process(connection).await
}

async fn commit(connection: &mut AsyncPgConnection) -> Result<(), Error> {
    AnsiTransactionManager::commit_transaction(connection).await
}

/// Whether the two connections share a process, or one of them changes it.
async fn share(one: &mut AsyncPgConnection, other: &mut AsyncPgConnection) -> Result<bool, Error> {
    let known = (process(one).await?, process(other).await?);
    // One that has a single process could not have two transactions open.
    if known.0 == known.1 {
        return Ok(true);
    }
    for round in 0..ROUNDS {
        let found = (begin(one).await?, begin(other).await?);
        commit(other).await?;
        commit(one).await?;
        let (next, was) = if round % 2 == 0 { (&mut *other, found.1) } else { (&mut *one, found.0) };
        let is = begin(next).await?;
        commit(next).await?;
        if found != known || is != was {
            return Ok(true);
        }
    }
    Ok(false)
}

/// # Errors
/// [`PostgresOpenError::Pooler`] where the two connections share a process, or one of them changes it. They may have a
/// transaction open then.
pub(super) async fn refuse_pooler(
    one: &mut AsyncPgConnection,
    other: &mut AsyncPgConnection,
) -> Result<(), PostgresOpenError> {
    match timeout(LIMIT, share(one, other)).await {
        Ok(Ok(false)) => Ok(()),
        Ok(Ok(true)) => Err(PostgresOpenError::Pooler),
        // Where it shares them by statement it takes no transaction.
        Ok(Err(error)) if error.to_string().contains("statement pooling mode") => Err(PostgresOpenError::Pooler),
        Err(_) => Err(PostgresOpenError::Unreachable(format!("two connections are not served within {LIMIT:?}"))),
        Ok(Err(error)) => Err(PostgresOpenError::failed(error.to_string())),
    }
}
