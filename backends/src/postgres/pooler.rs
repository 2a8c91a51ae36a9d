//! Finding out that a pooler shares the server's connections by transaction.
//!
//! What a session is set to does not hold there, nor what it has prepared or locked, and nothing is heard by LISTEN. Two
//! connections that are open at once have two servers' processes behind them, and each keeps its own: unless there is a
//! pooler between.

use diesel::sql_types::Integer;
use diesel_async::{AsyncPgConnection, RunQueryDsl as _};

use super::PostgresOpenError;
use super::table::Bind;
use crate::sql::Fragment;

/// A busy pooler may give two connections two processes by chance.
const ROUNDS: usize = 3;

async fn process(connection: &mut AsyncPgConnection) -> Result<i32, PostgresOpenError> {
    let asked = Fragment::<Integer, Bind<'_>>::new("SELECT pg_backend_pid()", &[]).get_result(connection).await;
    asked.map_err(|error| match error {
        // It was prepared in another process, or another client has prepared one of that name in this.
        diesel::result::Error::DatabaseError(_, information)
            if information.message().starts_with("prepared statement") =>
        {
            PostgresOpenError::Pooler
        }
        error => PostgresOpenError::Unreachable(error.to_string()),
    })
}

/// # Errors
/// [`PostgresOpenError::Pooler`] where the two connections share a process, or one of them changes it.
pub(super) async fn refuse_pooler(
    one: &mut AsyncPgConnection,
    other: &mut AsyncPgConnection,
) -> Result<(), PostgresOpenError> {
    let (first, second) = (process(one).await?, process(other).await?);
    for _ in 0..ROUNDS {
        if first == second || process(other).await? != second || process(one).await? != first {
            return Err(PostgresOpenError::Pooler);
        }
    }
    Ok(())
}
