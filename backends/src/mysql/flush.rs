//! Waiting until what the server shows is on its disk.
//!
//! InnoDB shows a commit to others before its redo log is flushed. A server that keeps a binary log flushes that before it
//! shows anything; on one without, who tells of another's commit must wait for the log first, or a crash takes back what
//! was told.

use diesel::QueryResult;
use diesel_async::{AsyncMysqlConnection, RunQueryDsl};

use super::migration::number;
use crate::sql::{Bind, Fragment};

/// Makes the table `{flushes}`.
pub(crate) const TABLE: &str = include_str!("../../migrations/mysql/2_flushes.sql");

/// How many rows it may have.
const SLOTS: u32 = 1024;

/// Whether the server shows commits before they are on the disk.
pub(crate) async fn shows_too_early(connection: &mut AsyncMysqlConnection) -> QueryResult<bool> {
    let text = "SELECT CASE @@GLOBAL.log_bin WHEN 1 THEN 1 ELSE 0 END";
    Ok(number(connection, text).await? != Some(1))
}

/// Waits until all that the connection has read is on the disk, by a table of that name.
///
/// A commit of one's own returns when the log is flushed up to itself, and with it all that was shown before.
pub(crate) async fn await_flush(connection: &mut AsyncMysqlConnection, table: &str) -> QueryResult<()> {
    Fragment::<(), Bind<'_>>::new(&flushing(table), &[]).execute(connection).await.map(drop)
}

/// The statement whose commit waits. The row is nobody else's, unless two connections' numbers meet.
pub(super) fn flushing(table: &str) -> String {
    format!(
        "INSERT INTO {table} (slot, flushes) VALUES (CONNECTION_ID() % {SLOTS}, 1) \
         ON DUPLICATE KEY UPDATE flushes = flushes + 1"
    )
}
