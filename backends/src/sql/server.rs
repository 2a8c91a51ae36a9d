//! What a dialect says of opening its store, and how connections are opened by it.

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

/// The tables that the application wants.
#[derive(Debug)]
pub(crate) struct Wanted {
    /// Of the databases that have schemas. `None`: where the connection finds the table.
    #[cfg_attr(not(feature = "postgres"), expect(dead_code, reason = "MySQL's schemas are databases"))]
    pub(crate) schema: Option<Name>,
    pub(crate) table: Name,
    /// Whether the tables may be made and updated.
    pub(crate) migrate: bool,
}

/// A server of one kind, and how its store is opened.
pub(crate) trait Server: Dialect {
    /// How connections are opened, as a URL says it.
    type Config: Clone + Send + Sync + 'static;

    /// What is asked of the server once, at the opening.
    type Found: Send + Sync + 'static;

    /// What each arbiter's handle has for itself, beside its connections.
    type PerArbiter: Clone + Default + Send + Sync + 'static;

    type Error: Send;

    fn read_url(url: &str) -> Result<Self::Config, Self::Error>;

    fn connect_timeout(_: &Self::Config) -> Duration {
        CONNECT_TIMEOUT
    }

    /// Opens a connection and sets it up. One for steps waits for another session's lock for a short while only: a row that
    /// is locked must not keep the other rows of a batch waiting past the store deadline.
    fn connect(
        config: Self::Config,
        is_for_steps: bool,
    ) -> impl Future<Output = ConnectionResult<Self::Connection>> + Send;

    /// The server can't be reached, or refuses something.
    fn unreachable(reason: String) -> Self::Error;

    /// Whether a pooler that may stand between is to be found out by two connections at once.
    const TRIES_TWO: bool = false;

    /// Refuses two connections that are open at once and share what a connection is to have for itself.
    fn try_two(
        _: &mut Self::Connection,
        _: &mut Self::Connection,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send {
        ready(Ok(()))
    }

    /// Finds the tables, brings them up to date, and asks what else is to be known. `owns` is whether the connection is this
    /// backend's own, and set up by it.
    fn prepare(
        connection: &mut Self::Connection,
        wanted: Wanted,
        owns: bool,
    ) -> impl Future<Output = Result<Self::Found, Self::Error>> + Send;

    /// What the server is set to, where that is not what this store wants.
    fn examine(
        connection: &mut Self::Connection,
        found: &Self::Found,
        owns: bool,
    ) -> impl Future<Output = QueryResult<Vec<Finding>>> + Send;

    fn place(found: &Self::Found) -> &Place;

    /// The statements on the tables that were found, by these connections.
    fn new(found: &Self::Found, connections: Connections<Self::Connection>) -> Self;
}

/// How a backend's own connections are opened.
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

    /// The same for connections on which steps are taken.
    pub(crate) fn for_steps(&self) -> Self {
        Self { is_for_steps: true, ..self.clone() }
    }

    /// Connects and sets the connection up, within the time-out. The drivers' own cover at most the socket: a server that
    /// accepts and says nothing would hold the caller for ever.
    pub(crate) async fn connect(self) -> ConnectionResult<D::Connection> {
        let limit = D::connect_timeout(&self.config);
        let silent = |_| ConnectionError::BadConnection(format!("{} did not answer within {limit:?}", D::NAME));
        timeout(limit, D::connect(self.config, self.is_for_steps)).await.map_err(silent)?
    }

    pub(crate) fn pool(&self, size: usize, tried: Tried) -> <D::Connection as PoolConnection>::Deadpool {
        let connector = self.clone();
        D::Connection::pool(move || connector.clone().connect().boxed(), size, tried)
    }

    /// The connections of one arbiter.
    pub(crate) fn connections(&self, size: usize) -> Connections<D::Connection> {
        let pool = DieselPool::of(self.for_steps().pool(size, Tried::IfIdle));
        Connections { pool, size, are_own: true }
    }
}

/// Whether a host's name or address is this machine's.
pub(crate) fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}
