//! Checks PostgreSQL's settings.

use diesel::QueryResult;
use diesel::sql_types::{Bool, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl as _};

use crate::Finding;
use crate::sql::{Bind, Fragment, Place};

const LOST: &str =
    "after a crash PostgreSQL may have lost what it confirmed: operations whose outcome was answered run again";

async fn text(connection: &mut AsyncPgConnection, expression: &str) -> QueryResult<String> {
    let text = format!("SELECT coalesce(({expression})::text, '')");
    Fragment::<Text, Bind<'_>>::new(&text, &[]).get_result(connection).await
}

/// Returns the settings that differ from what the store needs. `owns` says whether the backend opens and sets up the
/// connections itself.
pub(super) async fn examine(
    connection: &mut AsyncPgConnection,
    place: &Place,
    owns: bool,
) -> QueryResult<Vec<Finding>> {
    let mut findings = Vec::new();
    for setting in ["fsync", "full_page_writes"] {
        if text(connection, &format!("current_setting('{setting}')")).await? == "off" {
            findings.push(Finding::new(setting, "off", "on", LOST));
        }
    }
    // The default counts too: the application's own connections use it and may complete claims.
    let weakest = "SELECT CASE WHEN 'off' IN (setting, reset_val) THEN 'off' END FROM pg_settings \
                   WHERE name = 'synchronous_commit'";
    if text(connection, weakest).await? == "off" {
        let why = "the connections that this store opens switch it on; on a pool of your own, operations whose outcome was \
                   answered may run again after a crash";
        findings.push(Finding::new("synchronous_commit", "off", "on", why));
    }
    for table in [place.qualified(), place.steps()] {
        let binds = [Bind::Text(&table)];
        let unlogged = "SELECT relpersistence = 'u' FROM pg_class WHERE oid = to_regclass(?)";
        if Fragment::<Bool, _>::new(unlogged, &binds).get_result::<bool>(connection).await? {
            findings.push(Finding::new(format!("the table {table}"), "unlogged", "logged", LOST));
        }
    }
    if text(connection, "pg_is_in_recovery()").await? == "true" {
        let why = "this server is a standby: every claim is refused until it is promoted, or the address leads to the primary";
        findings.push(Finding::new("pg_is_in_recovery", "true", "false", why));
    }
    if text(connection, "current_setting('default_transaction_read_only')").await? == "on" {
        let why = "sessions begin with it, by their role, their database or the server, and every claim is refused";
        findings.push(Finding::new("default_transaction_read_only", "on", "off", why));
    }
    if !owns {
        if text(connection, "current_setting('lock_timeout')").await? == "0" {
            let why = "a row that another session has locked keeps the other rows of its batch waiting for as long";
            findings.push(Finding::new("lock_timeout", "0", "1s or 2s", why));
        }
        if text(connection, "current_setting('plan_cache_mode')").await? == "auto" {
            let why = "a plan that was made while the table was empty is kept for a while, and reads the whole table";
            findings.push(Finding::new("plan_cache_mode", "auto", "force_custom_plan", why));
        }
    }
    Ok(findings)
}
