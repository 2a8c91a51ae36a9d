//! The public handle of the MySQL backend, its options, and how the store is opened.

use diesel::QueryResult;
use diesel::result::ConnectionResult;
use diesel_async::{AsyncMysqlConnection, SimpleAsyncConnection as _};
use mysql_async::Opts;

use super::MysqlOpenError;
use super::connect::{self, Checked, Settings};
use super::doctor::examine;
use super::flush::shows_too_early;
use super::migration::{self, Tables, number, returns};
use super::session::left_there;
use super::table::{FREE_LOCKS, Mysql};
use crate::Finding;
use crate::migration::bring_up_to_date;
use crate::sql::{Connections, Place, Server, Wanted, sql_backend};

sql_backend! {
    /// Stores records in MySQL (8.0 or later) or MariaDB (10.6 or later), through Diesel. It does not need
    /// libmysqlclient.
    ///
    /// The backend combines the requests that are waiting on an arbiter into a few statements. One statement claims all
    /// new keys, and one completes all claims of their owners. For the remaining requests, the backend reads the
    /// batch's rows, decides, and writes with one INSERT, one UPDATE and one DELETE, each of which applies only to rows
    /// that have not changed since. A claim's main cost is its commit, and one commit serves many requests. On a server
    /// with a binary log, a replay writes nothing. A server without one shows commits before they are on the disk, so
    /// the replays of a batch share one commit that waits for the disk. All times come from the server's clock.
    ///
    /// **Each arbiter has its own connections** (see [`MysqlBuilder::pool_size`]), because a connection lives on the
    /// runtime that opened it. An application that has a Diesel pool can [use that pool](Self::from_pool) instead.
    ///
    /// An operation that is [completed in a transaction](oncekey::Engine::run_in_async_transaction) gets the
    /// [`AsyncMysqlConnection`]: its rows and its outcome commit together, at the server's default isolation (or
    /// REPEATABLE READ, if the default is READ UNCOMMITTED or SERIALIZABLE). It may use savepoints (`transaction`
    /// inside), but must not end the transaction itself; on this server, data definition (`CREATE TABLE`) does that
    /// silently. If the server aborts the transaction in favor of another one (a deadlock, a lock wait timeout), the
    /// backend rolls it back and runs it again, up to five times.
    ///
    /// MySQL can't notify its clients of changes: a caller that waits for another process polls about every 30 ms.
    ///
    /// ```no_run
    /// # async fn open() -> Result<(), Box<dyn std::error::Error>> {
    /// use oncekey::Engine;
    /// use oncekey_backends::mysql::MysqlBackend;
    ///
    /// let backend = MysqlBackend::open("mysql://shop@localhost/shop").await?;
    /// let engine = Engine::builder(backend).start()?;
    /// # Ok(()) }
    /// ```
    pub struct MysqlBackend;

    /// Options for [`MysqlBackend::builder`]. The defaults suit most applications.
    ///
    /// ```no_run
    /// # async fn open() -> Result<(), Box<dyn std::error::Error>> {
    /// use oncekey_backends::mysql::MysqlBackend;
    ///
    /// let backend = MysqlBackend::builder("mysql://shop@db.example/shop")
    ///     .table("records")?
    ///     .pool_size(10)
    ///     .open()
    ///     .await?;
    /// # Ok(()) }
    /// ```
    pub struct MysqlBuilder;

    dialect: Mysql,
    error: MysqlOpenError,
    connection: AsyncMysqlConnection,
    path: "mysql",
    blocking: "diesel::MysqlConnection" in mysql::Mysql,
    /// Returns options for connecting to a URL, `mysql://USER:PASSWORD@HOST:PORT/DATABASE`. A server on another machine
    /// must use TLS, with a trusted certificate or one that `?ssl_ca=PATH` verifies. `?require_ssl=false` overrides
    /// this. The other parameters of `mysql_async` work too.
    url,
    /// Its connections must count found rows, as Diesel's own do, use autocommit, and run at READ COMMITTED or
    /// REPEATABLE READ; the guide to databases lists every setting. [`open`](MysqlBuilder::open) checks one connection;
    /// each other connection is checked at its first use. Set `innodb_lock_wait_timeout` to a second or two, because a
    /// row that another session has locked delays the other rows of its batch for that long.
    pool,
    /// Sets the table's name. Three more tables belong to it: `NAME_migrations` records its migrations, `NAME_steps`
    /// holds its steps, and `NAME_flushes` is for replays on a server without a binary log. Default: `oncekey_records`.
    table,
    /// # Cancel safety
    /// An interrupted migration continues when the store is next opened.
    open,
    {}
}

/// What the backend asks the server once.
pub(super) struct Found {
    place: Place,
    left_there: String,
    /// Whether the server supports named locks.
    frees_locks: bool,
    /// The largest packet, in bytes.
    packet: usize,
    /// The statements before and after an operation's transaction.
    around: (&'static str, &'static str),
    shows_too_early: bool,
    /// Whether an INSERT can return the inserted rows.
    returns: bool,
}

/// Removes repeated text: the driver wraps an I/O error in another error with the same text.
fn said_once(error: &str) -> &str {
    match error.split_once(": ") {
        Some((prefix, rest)) if rest.starts_with(prefix) => said_once(rest),
        _ => error,
    }
}

impl Server for Mysql {
    type Config = Opts;
    type Found = Found;
    type PerArbiter = ();
    type Error = MysqlOpenError;

    fn read_url(url: &str) -> Result<Opts, MysqlOpenError> {
        connect::read_url(url)
    }

    async fn connect(config: Opts, is_for_steps: bool) -> ConnectionResult<AsyncMysqlConnection> {
        connect::connect(config, is_for_steps).await
    }

    fn unreachable(reason: String) -> MysqlOpenError {
        MysqlOpenError::Unreachable(said_once(&reason).to_owned())
    }

    async fn prepare(
        connection: &mut AsyncMysqlConnection,
        wanted: Wanted,
        owns: bool,
    ) -> Result<Found, MysqlOpenError> {
        let unreachable = |error: diesel::result::Error| Self::unreachable(error.to_string());
        let settings = Settings::of(connection).await.map_err(unreachable)?;
        if !owns {
            settings.check()?;
        }
        let table = wanted.table.to_string();
        let place = migration::find(connection, wanted.table).await;
        let place = place.map_err(|reason| MysqlOpenError::Migration { table, reason })?;
        let migrated = bring_up_to_date(&mut Tables::new(connection, &place), wanted.migrate).await;
        migrated.map_err(|error| MysqlOpenError::not_migrated(place.table(), error))?;
        let shows_too_early = shows_too_early(connection).await.map_err(unreachable)?;
        let returns = returns(connection).await.map_err(unreachable)?;
        let left_there = left_there(connection).await.map_err(unreachable)?;
        // Clusters refuse named locks, and this statement too.
        let frees_locks = connection.batch_execute(FREE_LOCKS).await.is_ok();
        let packet = number(connection, "SELECT @@max_allowed_packet").await.map_err(unreachable)?;
        let packet = packet.and_then(|packet| usize::try_from(packet).ok()).unwrap_or(1 << 20);
        let around = settings.for_operations();
        Ok(Found { place, left_there, frees_locks, packet, around, shows_too_early, returns })
    }

    async fn examine(connection: &mut AsyncMysqlConnection, found: &Found, owns: bool) -> QueryResult<Vec<Finding>> {
        examine(connection, &found.place, found.frees_locks, owns).await
    }

    fn place(found: &Found) -> &Place {
        &found.place
    }

    fn new(found: &Found, connections: Connections<AsyncMysqlConnection>) -> Self {
        let Found { place, left_there, frees_locks, packet, around: (before, after), shows_too_early, returns } = found;
        Self {
            connections,
            table: place.qualified(),
            steps: place.steps(),
            flushes: place.beside("_flushes"),
            shows_too_early: *shows_too_early,
            left_there: left_there.clone(),
            frees_locks: *frees_locks,
            packet: *packet,
            before,
            after,
            returns: *returns,
            checked: Checked::default(),
        }
    }
}
