//! Opens connections: parses the URL, sets up TLS, and configures each connection.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Instant;

use diesel::result::{ConnectionError, ConnectionResult};
use diesel::sql_types::{BigInt, Text, Unsigned};
use diesel_async::{AsyncMysqlConnection, RunQueryDsl as _, SimpleAsyncConnection as _};
use mysql_async::{Opts, OptsBuilder, SslOpts};
use oncekey::backend::StoreError;
use parking_lot::Mutex;
use tracing::warn;

use super::MysqlOpenError;
use super::table::Mysql;
use crate::Finding;
use crate::query::Query;
use crate::sql::{Bind, Fragment, Pooled, is_loopback, of_read};

/// How long a step waits for another session's lock on a row. It must not delay the other rows of its batch past the
/// store deadline.
pub(super) const LOCK_WAIT_SECONDS: u32 = 1;

/// The settings of a session that decide whether records stay correct.
pub(super) struct Settings {
    autocommit: String,
    isolation: String,
    /// `None` on a server without this setting.
    snapshot_isolation: Option<String>,
    completion_type: String,
    sql_mode: String,
    is_read_only: bool,
    select_limit: u64,
}

impl Settings {
    pub(super) async fn of(connection: &mut AsyncMysqlConnection) -> diesel::QueryResult<Self> {
        // Queried alone, because a low limit would truncate the other query's result.
        let select_limit = Fragment::<Unsigned<BigInt>, Bind<'_>>::new("SELECT @@sql_select_limit", &[]);
        let select_limit: u64 = select_limit.get_result(connection).await?;
        // Some settings have two names: MariaDB before 11.1 knows only the names with `tx`, and MySQL 8 only the
        // others.
        let text = "SHOW VARIABLES WHERE Variable_name IN ('autocommit', 'completion_type', 'sql_mode', 'tx_isolation', \
                    'transaction_isolation', 'tx_read_only', 'transaction_read_only', 'innodb_snapshot_isolation')";
        let rows: Vec<(String, String)> = Fragment::<(Text, Text), Bind<'_>>::new(text, &[]).load(connection).await?;
        let value = |names: &[&str]| {
            let found = rows.iter().find(|(name, _)| names.contains(&name.as_str()));
            found.map(|(_, value)| value.to_ascii_uppercase())
        };
        Ok(Self {
            autocommit: value(&["autocommit"]).unwrap_or_default(),
            isolation: value(&["transaction_isolation", "tx_isolation"]).unwrap_or_default(),
            snapshot_isolation: value(&["innodb_snapshot_isolation"]),
            completion_type: value(&["completion_type"]).unwrap_or_default(),
            sql_mode: value(&["sql_mode"]).unwrap_or_default(),
            is_read_only: value(&["transaction_read_only", "tx_read_only"]).as_deref() == Some("ON"),
            select_limit,
        })
    }

    /// Returns findings about settings that the backend changes and restores for each operation. The application's own
    /// transactions still have them.
    pub(super) fn findings(&self) -> Vec<Finding> {
        let why = "a transaction of your own in which a claim is completed can't lock its record once a heartbeat has changed it";
        let mut findings = Vec::new();
        if self.isolation == "SERIALIZABLE" {
            let wanted = "REPEATABLE-READ or READ-COMMITTED";
            findings.push(Finding::new("transaction_isolation", "SERIALIZABLE", wanted, why));
        }
        if self.snapshot_isolation.as_deref() == Some("ON") {
            findings.push(Finding::new("innodb_snapshot_isolation", "ON", "OFF", why));
        }
        findings
    }

    /// Returns findings that also apply to the backend's own connections.
    pub(super) fn findings_everywhere(&self) -> Vec<Finding> {
        let why = "sessions begin with it, and every claim is refused";
        let finding = Finding::new("transaction_read_only", "ON", "OFF", why);
        self.is_read_only.then_some(finding).into_iter().collect()
    }

    /// Returns the statements before an operation's BEGIN, and those that restore the settings after it, on the
    /// application's pool. With either setting, an operation could not lock a record that its own heartbeats have
    /// changed.
    pub(super) fn for_operations(&self) -> (&'static str, &'static str) {
        const REPEATABLE: &str = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; ";
        const OFF: &str = "SET @oncekey_snapshot = @@innodb_snapshot_isolation, innodb_snapshot_isolation = OFF; ";
        const BOTH: &str = "SET @oncekey_snapshot = @@innodb_snapshot_isolation, innodb_snapshot_isolation = OFF; \
                            SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; ";
        const BACK: &str = ", innodb_snapshot_isolation = @oncekey_snapshot";
        match (self.isolation == "SERIALIZABLE", self.snapshot_isolation.as_deref() == Some("ON")) {
            (false, false) => ("", ""),
            (true, false) => (REPEATABLE, ""),
            (false, true) => (OFF, BACK),
            (true, true) => (BOTH, BACK),
        }
    }

    /// Refuses settings of the application's pool that would make operations run twice.
    pub(super) fn check(&self) -> Result<(), MysqlOpenError> {
        let refused = |setting: &'static str, found: &str, wanted: &'static str| {
            Err(MysqlOpenError::Setting { setting, found: found.to_owned(), wanted })
        };
        // Checked first: a low limit truncates the list of the other settings.
        if self.select_limit < SELECT_LIMIT {
            return refused("sql_select_limit", &self.select_limit.to_string(), "its default, which is no limit");
        }
        if self.autocommit != "ON" {
            return refused("autocommit", &self.autocommit, "ON");
        }
        // If COMMIT opens the next transaction, no statement commits by itself.
        if !matches!(self.completion_type.as_str(), "NO_CHAIN" | "0") {
            return refused("completion_type", &self.completion_type, "NO_CHAIN");
        }
        if self.isolation == "READ-UNCOMMITTED" {
            return refused("transaction_isolation", &self.isolation, "REPEATABLE-READ or READ-COMMITTED");
        }
        // In this mode, BEGIN opens a block instead of a transaction.
        if self.sql_mode.split(',').any(|mode| mode == "ORACLE") {
            return refused("sql_mode", "ORACLE", "without ORACLE");
        }
        Ok(())
    }
}

/// The connections of the application's pool that have been checked. Each is checked once, because a server's defaults
/// may change after the store was opened, and a pool may set its connections differently.
#[derive(Default)]
pub(super) struct Checked {
    made: Mutex<HashSet<Instant>>,
}

impl Checked {
    /// The most connections that are remembered.
    const MOST: usize = 10_000;

    /// Checks a connection at its first use.
    ///
    /// # Errors
    /// Returns the setting that would make operations run twice. The caller must close the connection.
    pub(super) async fn check(&self, pooled: &mut Pooled<AsyncMysqlConnection>) -> Result<(), StoreError> {
        let made = pooled.made();
        if made.is_some_and(|made| self.made.lock().contains(&made)) {
            return Ok(());
        }
        let found = Settings::of(pooled).await.map_err(|error| of_read::<Mysql>(&error))?;
        found.check().map_err(StoreError::unavailable)?;
        if let Some(made) = made {
            let mut all = self.made.lock();
            if all.len() >= Self::MOST {
                all.clear();
            }
            all.insert(made);
        }
        Ok(())
    }
}

/// The number of rows that a statement must be able to return, which is more than any of this backend's statements
/// returns.
const SELECT_LIMIT: u64 = u32::MAX as u64;

/// Sets a connection up, whatever the server's defaults are.
///
/// Without autocommit, or after a COMMIT that opens the next transaction (`completion_type`), nothing is committed.
/// READ UNCOMMITTED would replay an outcome that is rolled back later. With SERIALIZABLE or InnoDB's snapshot
/// isolation, an operation and its own claim's heartbeats obstruct each other. A row limit would hide records from a
/// batch. In the SQL mode ORACLE, `BEGIN` opens no transaction.
async fn set_up(connection: &mut AsyncMysqlConnection, is_for_steps: bool) -> diesel::QueryResult<()> {
    // The COMMIT ends a transaction that was opened when the connection started. Diesel sets PIPES_AS_CONCAT in any
    // case.
    let always = "SET completion_type = 0; commit; SET autocommit = 1, sql_select_limit = 18446744073709551615, \
                  sql_mode = REPLACE(@@sql_mode, 'ORACLE', 'PIPES_AS_CONCAT')";
    connection.batch_execute(always).await?;
    let found = Settings::of(connection).await?;
    let mut texts = Vec::new();
    if !matches!(found.isolation.as_str(), "REPEATABLE-READ" | "READ-COMMITTED") {
        texts.push("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ".to_owned());
    }
    if found.snapshot_isolation.is_some() {
        texts.push("SET SESSION innodb_snapshot_isolation = OFF".to_owned());
    }
    if is_for_steps {
        // Operations get the server's own limit back.
        texts.push("SET @oncekey_lock_wait = @@innodb_lock_wait_timeout".to_owned());
        texts.push(format!("SET innodb_lock_wait_timeout = {LOCK_WAIT_SECONDS}"));
    }
    if texts.is_empty() { Ok(()) } else { connection.batch_execute(&texts.join("; ")).await }
}

/// Parses a URL, with the parameters of `mysql_async` and `ssl_ca=PATH`. If the URL does not mention TLS, a server on
/// this machine is used without TLS, and any other server only with TLS and a verified certificate.
pub(super) fn read_url(url: &str) -> Result<Opts, MysqlOpenError> {
    let mut query = Query::of(url);
    let roots = match query.take("ssl_ca") {
        Some(None) => return Err(MysqlOpenError::Url("a percent sign in ssl_ca stands for no text")),
        roots => roots.flatten().map(PathBuf::from),
    };
    let options = Opts::from_url(&query.rest()).map_err(|_| {
        MysqlOpenError::Url("it has the form mysql://USER:PASSWORD@HOST:PORT/DATABASE?require_ssl=true")
    })?;
    if options.db_name().is_none() {
        return Err(MysqlOpenError::Url("it names no database"));
    }
    let is_local = options.socket().is_some() || is_loopback(options.ip_or_hostname());
    let asked = options.ssl_opts().cloned();
    let tls = match asked {
        Some(asked) => {
            if !is_local && (asked.skip_domain_validation() || asked.accept_invalid_certs()) {
                warn!("TLS without verification: whoever answers is taken for the MySQL server");
            }
            Some(asked)
        }
        None if is_local => None,
        None if query.value("require_ssl").as_deref() == Some("false") => {
            warn!("require_ssl=false: the connection to the MySQL server is not encrypted");
            None
        }
        None => Some(SslOpts::default()),
    };
    let tls = match roots {
        Some(roots) => {
            std::fs::metadata(&roots)
                .map_err(|error| MysqlOpenError::Certificates(format!("{}: {error}", roots.display())))?;
            let tls = tls.unwrap_or_default().with_root_certs(vec![roots.into()]);
            Some(tls.with_disable_built_in_roots(true))
        }
        None => tls,
    };
    let options = OptsBuilder::from_opts(options)
        .ssl_opts(tls)
        .stmt_cache_size(0) // Diesel keeps the statements.
        // An UPDATE counts the rows that it finds: one that changes nothing has still succeeded.
        .client_found_rows(true)
        // If the URL leads to this machine, the driver must not look for another server's socket.
        .prefer_socket(false);
    Ok(options.into())
}

/// Connects and sets the connection up.
pub(super) async fn connect(options: Opts, is_for_steps: bool) -> ConnectionResult<AsyncMysqlConnection> {
    let connection = mysql_async::Conn::new(options).await;
    let connection = connection.map_err(|error| ConnectionError::BadConnection(error.to_string()))?;
    let mut connection = AsyncMysqlConnection::try_from(connection).await?;
    let set_up = set_up(&mut connection, is_for_steps).await;
    set_up.map_err(ConnectionError::CouldntSetupConfiguration)?;
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_elsewhere_is_verified_unless_told_otherwise() {
        let tls = |url: &str| read_url(url).unwrap().ssl_opts().cloned();
        assert!(tls("mysql://u@127.0.0.1/d").is_none());
        assert!(tls("mysql://u@db.example/d?require_ssl=false").is_none());
        let verified = tls("mysql://u@db.example/d").unwrap();
        assert!(!verified.skip_domain_validation() && !verified.accept_invalid_certs());
        assert!(matches!(read_url("mysql://u:secret@h/"), Err(MysqlOpenError::Url(_))));
        // The text of a password, a user or a database is no parameter.
        for url in ["mysql://u:require_ssl=false@h/d", "mysql://require_ssl=false@h/d", "mysql://u@h/require_ssl=false"]
        {
            assert!(tls(url).is_some(), "{url}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a b.pem");
        std::fs::write(&path, "").unwrap();
        let encoded = path.to_str().unwrap().replace(' ', "%20");
        assert!(read_url(&format!("mysql://u@h/d?ssl_ca={encoded}")).is_ok());
    }
}
