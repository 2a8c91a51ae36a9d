//! Waits until everything that the server shows is on its disk.
//!
//! InnoDB shows a commit to others before it flushes its redo log. A server with a binary log flushes that log before
//! it shows anything. On a server without one, the backend must wait for the redo log before it replays another
//! session's commit. Otherwise a crash could lose what was already returned.

use diesel::QueryResult;
use diesel_async::{AsyncMysqlConnection, RunQueryDsl};

use super::migration::number;
use crate::sql::{Bind, Fragment};

/// Creates the table `{flushes}`.
pub(crate) const TABLE: &str = include_str!("../../migrations/mysql/2_flushes.sql");

/// The most rows that the table may have.
const SLOTS: u32 = 1024;

/// Returns whether the server shows commits before they are on the disk.
pub(crate) async fn shows_too_early(connection: &mut AsyncMysqlConnection) -> QueryResult<bool> {
    let text = "SELECT CASE @@GLOBAL.log_bin WHEN 1 THEN 1 ELSE 0 END";
    Ok(number(connection, text).await? != Some(1))
}

/// Waits until everything that the connection has read is on the disk, by a commit to the table of that name.
///
/// The connection's own commit returns when the log is flushed up to it, which includes everything that was shown
/// before.
pub(crate) async fn await_flush(connection: &mut AsyncMysqlConnection, table: &str) -> QueryResult<()> {
    Fragment::<(), Bind<'_>>::new(&flushing(table), &[]).execute(connection).await.map(drop)
}

/// Returns the statement whose commit waits. Two connections share a row only if their numbers collide.
pub(super) fn flushing(table: &str) -> String {
    format!(
        "INSERT INTO {table} (slot, flushes) VALUES (CONNECTION_ID() % {SLOTS}, 1) \
         ON DUPLICATE KEY UPDATE flushes = flushes + 1"
    )
}
