//! The state behind each store's public handle, and how it is opened.

use std::sync::Arc;
use std::time::Duration;

use oncekey::backend::StoreError;
use tokio::time::timeout;

#[cfg(feature = "blocking")]
use super::blocking::Transactions;
use super::core::Core;
use super::error::of_read;
use super::lent::lend_clean;
use super::name::Name;
use super::place::Place;
use super::pool::{Connections, DieselPool, PoolConnection, Tried};
use super::server::{Connector, Server, Wanted};
use crate::{Finding, doctor};

/// How long the application's pool may take to lend a second connection.
const ANOTHER_WITHIN: Duration = Duration::from_secs(1);

/// Where the connections come from.
pub(crate) enum Source<C: PoolConnection> {
    Url(String),
    Pool(DieselPool<C>),
}

/// How the backend reaches the records.
pub(crate) struct Options<D: Server> {
    source: Source<D::Connection>,
    pub(crate) wanted: Wanted,
    pub(crate) pool_size: usize,
    #[cfg(feature = "blocking")]
    pub(crate) blocking: Option<Transactions<D>>,
}

impl<D: Server> Options<D> {
    pub(crate) fn new(source: Source<D::Connection>) -> Self {
        Self {
            source,
            wanted: Wanted { schema: None, table: Name::fixed("oncekey_records"), migrate: true },
            pool_size: 8,
            #[cfg(feature = "blocking")]
            blocking: None,
        }
    }

    pub(crate) async fn open(self) -> Result<SqlBackend<D>, D::Error> {
        let Self { source, wanted, pool_size: size, .. } = self;
        let (connector, connections, found) = match source {
            Source::Url(url) => {
                let connector = Connector::<D>::new(&url)?;
                let mut connection = connect(&connector).await?;
                if D::TRIES_TWO {
                    let mut another = connect(&connector).await?;
                    D::try_two(&mut connection, &mut another).await?;
                }
                let found = prepare::<D>(&mut connection, wanted, true).await?;
                let connections = connector.connections(size);
                (Some(connector), connections, found)
            }
            Source::Pool(pool) => {
                let connection = pool.lend().await.map_err(D::unreachable)?;
                let found = lend_clean(connection, async |connection: &mut D::Connection| {
                    // If the pool has only one connection, or has lent its others, this check is skipped.
                    if D::TRIES_TWO
                        && let Ok(Ok(another)) = timeout(ANOTHER_WITHIN, pool.lend()).await
                    {
                        let try_two = async |another: &mut D::Connection| D::try_two(connection, another).await;
                        lend_clean(another, try_two).await?;
                    }
                    prepare::<D>(connection, wanted, false).await
                });
                let found = found.await?;
                (None, Connections { pool, size, are_own: false }, found)
            }
        };
        let shared = Shared {
            #[cfg(feature = "blocking")]
            blocking: self.blocking,
            connector,
            pool_size: size,
            found,
        };
        let core = shared.core(connections);
        #[cfg(feature = "blocking")]
        if let Some(blocking) = &shared.blocking {
            let checked = blocking.check(&core).await;
            checked.map_err(|error| D::unreachable(format!("by the blocking pool: {error}")))?;
        }
        Ok(SqlBackend { core, per_arbiter: D::PerArbiter::default(), shared: Arc::new(shared) })
    }
}

async fn connect<D: Server>(connector: &Connector<D>) -> Result<D::Connection, D::Error> {
    connector.clone().connect().await.map_err(|error| D::unreachable(error.to_string()))
}

async fn prepare<D: Server>(connection: &mut D::Connection, wanted: Wanted, owns: bool) -> Result<D::Found, D::Error> {
    let found = D::prepare(connection, wanted, owns).await?;
    let findings = D::examine(connection, &found, owns).await;
    doctor::log(&findings.map_err(|error| D::unreachable(error.to_string()))?);
    Ok(found)
}

/// The handle of one arbiter.
pub(crate) struct SqlBackend<D: Server> {
    pub(crate) core: Core<D>,
    pub(crate) per_arbiter: D::PerArbiter,
    shared: Arc<Shared<D>>,
}

/// The parts from which every arbiter's session is created.
struct Shared<D: Server> {
    /// `None` if the backend uses the application's pool.
    connector: Option<Connector<D>>,
    #[cfg(feature = "blocking")]
    blocking: Option<Transactions<D>>,
    pool_size: usize,
    found: D::Found,
}

impl<D: Server> Shared<D> {
    fn core(&self, connections: Connections<D::Connection>) -> Core<D> {
        let core = Core::new(D::new(&self.found, connections));
        #[cfg(feature = "blocking")]
        let core = core.with_blocking(self.blocking.clone());
        core
    }
}

impl<D: Server> Clone for SqlBackend<D> {
    fn clone(&self) -> Self {
        let (core, per_arbiter, shared) = (self.core.clone(), self.per_arbiter.clone(), Arc::clone(&self.shared));
        Self { core, per_arbiter, shared }
    }
}

impl<D: Server> SqlBackend<D> {
    /// Creates a handle for another arbiter. With the backend's own connections, it gets new ones, because a connection
    /// lives on the runtime that opened it.
    pub(crate) fn session(&self) -> Self {
        let core = match &self.shared.connector {
            Some(connector) => self.shared.core(connector.connections(self.shared.pool_size)),
            None => self.core.clone(),
        };
        Self { core, per_arbiter: D::PerArbiter::default(), shared: Arc::clone(&self.shared) }
    }

    pub(crate) fn place(&self) -> &Place {
        D::place(&self.shared.found)
    }

    /// Returns a pool for the application's own queries, which tests each connection before lending it.
    pub(crate) fn pool(&self) -> <D::Connection as PoolConnection>::Deadpool {
        match &self.shared.connector {
            Some(connector) => connector.pool(self.shared.pool_size, Tried::Always),
            None => self.core.dialect.connections().pool.deadpool(),
        }
    }

    pub(crate) async fn doctor(&self) -> Result<Vec<Finding>, StoreError> {
        let connection = self.core.dialect.connections().pool.lend().await.map_err(StoreError::unavailable)?;
        let (found, owns) = (&self.shared.found, self.shared.connector.is_some());
        let examine = async |connection: &mut D::Connection| D::examine(connection, found, owns).await;
        lend_clean(connection, examine).await.map_err(|error| of_read::<D>(&error))
    }
}

#[cfg(all(test, feature = "postgres", feature = "mysql"))]
mod tests {
    use crate::mysql::MysqlBackend;
    use crate::postgres::PostgresBackend;

    /// An application may open its store in a separate task.
    #[test]
    fn an_opening_may_be_sent_to_another_thread() {
        fn is_send(_: impl Send) {}

        is_send(PostgresBackend::open("postgres://shop@localhost/shop"));
        is_send(MysqlBackend::open("mysql://shop@localhost/shop"));
    }
}
