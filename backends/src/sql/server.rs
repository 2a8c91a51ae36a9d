//! What each dialect defines to open its store, and how connections are opened.

use std::future::ready;
use std::net::IpAddr;
use std::time::Duration;

use diesel::QueryResult;
use diesel::result::{ConnectionError, ConnectionResult};
use futures_util::future::FutureExt as _;
use tokio::time::timeout;

use super::dialect::Dialect;
use super::name::Name;
use super::place::Place;
use super::pool::{Connections, DieselPool, PoolConnection, Tried};
use crate::Finding;

/// How long a server may take to answer a new connection.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The tables that the application requests.
#[derive(Debug)]
pub(crate) struct Wanted {
    /// The schema, on databases that have schemas. `None`: the schema in which the connection finds the table.
    #[cfg_attr(not(feature = "postgres"), expect(dead_code, reason = "MySQL's schemas are databases"))]
    pub(crate) schema: Option<Name>,
    pub(crate) table: Name,
    /// Whether the backend may create and update the tables.
    pub(crate) migrate: bool,
}

/// One kind of server, and how its store is opened.
pub(crate) trait Server: Dialect {
    /// The connection settings, parsed from a URL.
    type Config: Clone + Send + Sync + 'static;

    /// What the backend asks the server once, when the store is opened.
    type Found: Send + Sync + 'static;

    /// The state of each arbiter's handle besides its connections.
    type PerArbiter: Clone + Default + Send + Sync + 'static;

    type Error: Send;

    fn read_url(url: &str) -> Result<Self::Config, Self::Error>;

    fn connect_timeout(_: &Self::Config) -> Duration {
        CONNECT_TIMEOUT
    }

    /// Opens a connection and sets it up. A connection for steps waits only briefly for another session's lock: a
    /// locked row must not delay the other rows of a batch past the store deadline.
    fn connect(
        config: Self::Config,
        is_for_steps: bool,
    ) -> impl Future<Output = ConnectionResult<Self::Connection>> + Send;

    /// Creates the error for a server that can't be reached or refuses something.
    fn unreachable(reason: String) -> Self::Error;

    /// Whether to open two connections at once, to detect a pooler between the backend and the server.
    const TRIES_TWO: bool = false;

    /// Returns an error if two simultaneous connections share something that each must have for itself.
    fn try_two(
        _: &mut Self::Connection,
        _: &mut Self::Connection,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send {
        ready(Ok(()))
    }

    /// Finds the tables, updates them, and asks the server everything else that the backend needs. `owns` says whether
    /// the backend opened and set up the connection itself.
    fn prepare(
        connection: &mut Self::Connection,
        wanted: Wanted,
        owns: bool,
    ) -> impl Future<Output = Result<Self::Found, Self::Error>> + Send;

    /// Returns the server settings that differ from what this store needs.
    fn examine(
        connection: &mut Self::Connection,
        found: &Self::Found,
        owns: bool,
    ) -> impl Future<Output = QueryResult<Vec<Finding>>> + Send;

    fn place(found: &Self::Found) -> &Place;

    /// Creates the dialect's statements for the tables that were found, on these connections.
    fn new(found: &Self::Found, connections: Connections<Self::Connection>) -> Self;
}

/// Opens the backend's own connections.
pub(crate) struct Connector<D: Server> {
    config: D::Config,
    is_for_steps: bool,
}

impl<D: Server> Clone for Connector<D> {
    fn clone(&self) -> Self {
        Self { config: self.config.clone(), is_for_steps: self.is_for_steps }
    }
}

impl<D: Server> Connector<D> {
    pub(crate) fn new(url: &str) -> Result<Self, D::Error> {
        Ok(Self { config: D::read_url(url)?, is_for_steps: false })
    }

    /// Returns the same connector, for connections on which steps are executed.
    pub(crate) fn for_steps(&self) -> Self {
        Self { is_for_steps: true, ..self.clone() }
    }

    /// Connects and sets the connection up, within the timeout. The drivers' own timeouts cover at most the socket: a
    /// server that accepts the connection and then stays silent would block the caller forever.
    pub(crate) async fn connect(self) -> ConnectionResult<D::Connection> {
        let limit = D::connect_timeout(&self.config);
        let silent = |_| ConnectionError::BadConnection(format!("{} did not answer within {limit:?}", D::NAME));
        timeout(limit, D::connect(self.config, self.is_for_steps)).await.map_err(silent)?
    }

    pub(crate) fn pool(&self, size: usize, tried: Tried) -> <D::Connection as PoolConnection>::Deadpool {
        let connector = self.clone();
        D::Connection::pool(move || connector.clone().connect().boxed(), size, tried)
    }

    /// Returns the connections of one arbiter.
    pub(crate) fn connections(&self, size: usize) -> Connections<D::Connection> {
        let pool = DieselPool::of(self.for_steps().pool(size, Tried::IfIdle));
        Connections { pool, size, are_own: true }
    }
}

/// Returns whether a host name or address is this machine's.
pub(crate) fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}
