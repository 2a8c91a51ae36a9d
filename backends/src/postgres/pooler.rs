//! Detects a pooler that shares the server's connections by transaction.
//!
//! Behind such a pooler, a session's settings, prepared statements and locks do not last, and LISTEN receives nothing.
//! Without a pooler, two simultaneous connections have two server processes, and each connection keeps its own. A
//! pooler returns a process to its pool with each commit, and lends the process that was returned last, or first. So
//! after two simultaneous transactions, the next transaction on one of the connections gets the other's process.

use diesel::result::Error;
use diesel::sql_types::Integer;
use diesel_async::{AnsiTransactionManager, AsyncPgConnection, RunQueryDsl as _, TransactionManager as _};
use tokio::time::{Duration, timeout};

use super::PostgresOpenError;
use crate::sql::{Bind, Fragment};

/// Two rounds detect a pooler that lends the process returned last, and one that lends the process returned first.
/// Other clients' transactions may interfere.
const ROUNDS: usize = 12;

/// The time limit for the whole check. A session pooler with only one process never lends a second.
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

/// Returns whether the two connections share a process, or one of them changes it.
async fn share(one: &mut AsyncPgConnection, other: &mut AsyncPgConnection) -> Result<bool, Error> {
    let known = (process(one).await?, process(other).await?);
    // A pooler with a single process could not have two transactions open.
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

/// Checks that the two connections have separate processes and keep them.
///
/// # Errors
/// Returns [`PostgresOpenError::Pooler`] if they share a process, or one of them changes it. They may then have an open
/// transaction.
pub(super) async fn refuse_pooler(
    one: &mut AsyncPgConnection,
    other: &mut AsyncPgConnection,
) -> Result<(), PostgresOpenError> {
    match timeout(LIMIT, share(one, other)).await {
        Ok(Ok(false)) => Ok(()),
        Ok(Ok(true)) => Err(PostgresOpenError::Pooler),
        // A pooler that shares connections by statement accepts no transaction.
        Ok(Err(error)) if error.to_string().contains("statement pooling mode") => Err(PostgresOpenError::Pooler),
        Err(_) => Err(PostgresOpenError::Unreachable(format!("two connections are not served within {LIMIT:?}"))),
        Ok(Err(error)) => Err(PostgresOpenError::failed(error.to_string())),
    }
}
