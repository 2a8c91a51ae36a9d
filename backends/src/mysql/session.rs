//! What an operation may leave on its connection.

use diesel::QueryResult;
use diesel::sql_types::{Bool, Text};
use diesel_async::{AsyncMysqlConnection, RunQueryDsl as _};

use crate::sql::{Bind, Fragment};

/// The settings that would disturb a later user of the connection, under all their names, because servers know
/// different ones.
const SETTINGS: &str = "'autocommit', 'character_set_client', 'character_set_results', 'collation_connection', \
                        'completion_type', 'foreign_key_checks', 'group_concat_max_len', 'innodb_lock_wait_timeout', \
                        'lock_wait_timeout', 'max_execution_time', 'max_statement_time', 'sql_log_bin', 'sql_mode', \
                        'sql_safe_updates', 'sql_select_limit', 'time_zone', 'transaction_isolation', \
                        'transaction_read_only', 'tx_isolation', 'tx_read_only', 'unique_checks', 'wsrep_on'";

/// Returns an expression for the session's settings that this server knows.
pub(super) async fn left_there(connection: &mut AsyncMysqlConnection) -> QueryResult<String> {
    let text = format!("SHOW SESSION VARIABLES WHERE Variable_name IN ({SETTINGS})");
    let known: Vec<(String, String)> = Fragment::<(Text, Text), Bind<'_>>::new(&text, &[]).load(connection).await?;
    let settings: Vec<_> = known.into_iter().map(|(name, _)| format!("@@SESSION.{name}")).collect();
    Ok(format!("CONCAT_WS('|', DATABASE(), CURRENT_ROLE(), {})", settings.join(", ")))
}

/// Returns whether the connection is in the state from when `@oncekey_was` was set. The operation's named locks are
/// already released.
pub(super) async fn is_as_remembered(connection: &mut AsyncMysqlConnection, left_there: &str) -> QueryResult<bool> {
    Fragment::<Bool, Bind<'_>>::new(&as_remembered(left_there), &[]).get_result(connection).await
}

/// Returns the query for that.
pub(super) fn as_remembered(left_there: &str) -> String {
    format!("SELECT @oncekey_was <=> {left_there}")
}
