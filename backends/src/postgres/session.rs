//! What an operation may leave on its connection, and how the connection is restored.

use diesel::QueryResult;
use diesel::sql_types::Bool;
use diesel_async::{AsyncPgConnection, RunQueryDsl as _, SimpleAsyncConnection as _};

use super::connect::{NOTICE_THE_END, SET_UP, SET_UP_FOR_STEPS};
use crate::sql::{Bind, Fragment};

/// On the application's own pool: the state that would disturb a later user of the connection. (Settings that the
/// application has invented, such as `app.tenant`, can't be listed.)
const LEFT_THERE: &str = "concat_ws('|', session_user, (SELECT string_agg(coalesce(current_setting(name, true), ''), '|') \
    FROM unnest(ARRAY['search_path', 'role', 'TimeZone', 'DateStyle', 'IntervalStyle', 'client_encoding', 'bytea_output', \
    'standard_conforming_strings', 'statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout', \
    'transaction_timeout', 'default_transaction_isolation', 'default_transaction_read_only', \
    'default_transaction_deferrable', 'synchronous_commit', 'session_replication_role', 'row_security', 'plan_cache_mode', \
    'work_mem', 'default_tablespace']) AS name), \
    CASE WHEN pg_my_temp_schema() <> 0 THEN (SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema()) END, \
    (SELECT count(*) FROM pg_prepared_statements WHERE from_sql), (SELECT count(*) FROM pg_cursors WHERE is_holdable), \
    (SELECT count(*) FROM pg_listening_channels()))";

/// Returns the statement that follows an operation's BEGIN on the application's own connection.
pub(super) fn remember() -> String {
    format!("; SELECT set_config('oncekey.was', {LEFT_THERE}, false)")
}

/// Returns whether the application's connection is in the state from before the operation. A setting made in a
/// rolled-back transaction is undone with it, and so is the remembered state.
pub(super) async fn is_as_remembered(connection: &mut AsyncPgConnection) -> QueryResult<bool> {
    Fragment::<Bool, Bind<'_>>::new(&as_remembered(), &[]).get_result(connection).await
}

/// Returns the query for that. It also releases the advisory locks.
pub(super) fn as_remembered() -> String {
    format!(
        "SELECT coalesce(current_setting('oncekey.was', true), '') IN ('', {LEFT_THERE}) \
         FROM (SELECT pg_advisory_unlock_all()) AS unlocked"
    )
}

/// The settings that Diesel makes on a connection that it takes over.
const DIESELS: &str = "SET TIME ZONE 'UTC'; SET CLIENT_ENCODING TO 'UTF8'";

/// Restores one of the backend's own connections to its initial state: like `DISCARD ALL`, but it keeps the statements
/// that Diesel has prepared. There is no way to recognize the statements that the operation prepared with `PREPARE` and
/// keep the others: such a connection fails here and is closed.
pub(super) async fn make_new(connection: &mut AsyncPgConnection) -> QueryResult<()> {
    let text = format!(
        "SET SESSION AUTHORIZATION DEFAULT; RESET ROLE; RESET ALL; CLOSE ALL; UNLISTEN *; DISCARD TEMP; DISCARD SEQUENCES; \
         SELECT pg_advisory_unlock_all(); \
         SELECT 1 / (SELECT CASE WHEN count(*) = 0 THEN 1 ELSE 0 END FROM pg_prepared_statements WHERE from_sql); \
         {DIESELS}; {SET_UP}; {SET_UP_FOR_STEPS}"
    );
    connection.batch_execute(&text).await?;
    // As at opening, not every server has these settings.
    connection.batch_execute(NOTICE_THE_END).await.or(Ok(()))
}
