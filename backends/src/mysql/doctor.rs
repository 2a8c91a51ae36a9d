//! Checks the settings of MySQL or MariaDB.

use diesel::QueryResult;
use diesel::sql_types::{BigInt, Text};
use diesel_async::{AsyncMysqlConnection, RunQueryDsl as _};

use super::connect::Settings;
use super::migration::number;
use crate::Finding;
use crate::sql::{Bind, Fragment, Place};

const LOST: &str =
    "after a crash the server may have lost what it confirmed: operations whose outcome was answered run again";

/// Returns the settings that differ from what the store needs. `owns` says whether the backend opens and sets up the
/// connections itself, and `locks` whether the server supports named locks.
pub(super) async fn examine(
    connection: &mut AsyncMysqlConnection,
    place: &Place,
    locks: bool,
    owns: bool,
) -> QueryResult<Vec<Finding>> {
    let mut findings = Vec::new();
    let durable = [
        ("innodb_flush_log_at_trx_commit", "SELECT @@GLOBAL.innodb_flush_log_at_trx_commit"),
        ("innodb_doublewrite", "SELECT CASE @@GLOBAL.innodb_doublewrite WHEN 'OFF' THEN 0 WHEN '0' THEN 0 ELSE 1 END"),
        ("sync_binlog", "SELECT CASE WHEN @@GLOBAL.log_bin = 1 THEN @@GLOBAL.sync_binlog ELSE 1 END"),
    ];
    for (setting, text) in durable {
        let found = number(connection, text).await?.unwrap_or(1);
        if found != 1 {
            findings.push(Finding::new(setting, found.to_string(), "1", LOST));
        }
    }
    if number(connection, "SELECT @@GLOBAL.read_only <> 0").await? == Some(1) {
        let why = "this server is a replica: a user without the right to write there gets every claim refused";
        findings.push(Finding::new("read_only", "on", "off", why));
    }
    let packet = number(connection, "SELECT @@max_allowed_packet").await?.unwrap_or(i64::MAX);
    if packet < 16 << 20 {
        let why = "a larger outcome is not kept: its replays say only that the operation is done";
        findings.push(Finding::new("max_allowed_packet", packet.to_string(), "16777216 or more", why));
    }
    if !locks {
        let why = "the server refuses locks by name, as a Galera cluster does: processes that start at once may migrate at once";
        findings.push(Finding::new("GET_LOCK", "refused", "granted", why));
    }
    for table in [place.qualified(), place.steps()] {
        let engine = format!("SHOW CREATE TABLE {table}");
        let made: (String, String) =
            Fragment::<(Text, Text), Bind<'_>>::new(&engine, &[]).get_result(connection).await?;
        if !made.1.to_ascii_lowercase().contains("engine=innodb") {
            let why = "its rows neither commit nor roll back with those of an operation";
            findings.push(Finding::new(format!("the engine of {table}"), "another", "InnoDB", why));
        }
    }
    let settings = Settings::of(connection).await?;
    findings.extend(settings.findings_everywhere());
    if !owns {
        findings.extend(settings.findings());
        let waits = "SELECT CAST(@@innodb_lock_wait_timeout AS SIGNED)";
        let waits: i64 = Fragment::<BigInt, Bind<'_>>::new(waits, &[]).get_result(connection).await?;
        if waits > 2 {
            let why = "a row that another session has locked keeps the other rows of its batch waiting for as long";
            findings.push(Finding::new("innodb_lock_wait_timeout", waits.to_string(), "1 or 2", why));
        }
    }
    Ok(findings)
}
