//! How the records are reached.

use std::fmt;

use diesel_async::AsyncPgConnection;
use diesel_async::pooled_connection::deadpool::Pool;

use super::{PostgresBackend, PostgresOpenError};
use crate::sql::{InvalidName, Name};

/// Options for [`PostgresBackend::builder`]. Each has a default that is right for most.
///
/// ```no_run
/// # async fn open() -> Result<(), Box<dyn std::error::Error>> {
/// use oncekey_backends::postgres::PostgresBackend;
///
/// let backend = PostgresBackend::builder("postgres://shop@db.example/shop?sslmode=verify-full")
///     .schema("oncekey")?
///     .table("records")?
///     .pool_size(10)
///     .open()
///     .await?;
/// # Ok(()) }
/// ```
#[must_use]
pub struct PostgresBuilder {
    pub(super) source: Source,
    pub(super) schema: Option<Name>,
    pub(super) table: Name,
    pub(super) pool_size: usize,
    pub(super) migrate: bool,
}

/// Where connections come from.
pub(super) enum Source {
    Url(String),
    Pool(Pool<AsyncPgConnection>),
}

impl PostgresBuilder {
    pub(super) fn new(source: Source) -> Self {
        let table = Name::fixed("oncekey_records");
        Self { source, schema: None, table, pool_size: 8, migrate: true }
    }

    /// The schema of the table, made if there is none. Default: the first in the connection's `search_path`.
    ///
    /// # Errors
    /// [`InvalidName`] for all but a plain name.
    pub fn schema(mut self, schema: &str) -> Result<Self, InvalidName> {
        self.schema = Some(Name::new(schema)?);
        Ok(self)
    }

    /// The table's name. Its migrations are recorded beside it, in `NAME_migrations`, and its steps are in `NAME_steps`.
    /// Default: `oncekey_records`.
    ///
    /// # Errors
    /// [`InvalidName`] for all but a plain name.
    pub fn table(mut self, table: &str) -> Result<Self, InvalidName> {
        self.table = Name::new(table)?;
        Ok(self)
    }

    /// How many connections **each arbiter** (each worker of a server) opens at most; a pool of your own has its own
    /// size. Default: 8, of which 4 are for claims and settlements, and the others for operations in transactions. At
    /// least 5.
    pub fn pool_size(mut self, connections: usize) -> Self {
        self.pool_size = connections.max(5);
        self
    }

    /// Whether [`open`](Self::open) makes and updates the table; without, it must be there. Default: true.
    pub fn migrate(mut self, migrate: bool) -> Self {
        self.migrate = migrate;
        self
    }

    /// Connects, brings the table up to date where that is needed, and checks the server's settings: a setting that
    /// can lose what was answered is warned of by its name.
    ///
    /// # Cancel safety
    /// A migration that is interrupted is rolled back.
    ///
    /// # Errors
    /// [`PostgresOpenError`] says what is in the way.
    pub async fn open(self) -> Result<PostgresBackend, PostgresOpenError> {
        PostgresBackend::open_with(self).await
    }
}

/// The URL may hold a password: it is not shown.
impl fmt::Debug for PostgresBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresBuilder")
            .field("schema", &self.schema)
            .field("table", &self.table)
            .field("pool_size", &self.pool_size)
            .finish_non_exhaustive()
    }
}
