//! Stores that several processes share. Each is started from the installed binaries, and has a URL and an engine.

use std::any::Any;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use oncekey::Engine;
use oncekey::backend::Backend;
use oncekey_backends::SqliteBackend;
use oncekey_backends::mysql::MysqlBackend;
use oncekey_backends::postgres::PostgresBackend;
use oncekey_backends::redis::RedisBackend;

use crate::server::{MariaDb, Postgres, RedisCluster};

/// The kind of store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreKind {
    /// A file.
    Sqlite,
    /// PostgreSQL.
    Postgres,
    /// MariaDB.
    MariaDb,
    /// Three primaries with a replica each, which write each change to the disk.
    RedisCluster,
}

impl StoreKind {
    /// Returns the store with this name.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "sqlite" => Some(Self::Sqlite),
            "postgres" => Some(Self::Postgres),
            "mariadb" => Some(Self::MariaDb),
            "redis-cluster" => Some(Self::RedisCluster),
            _ => None,
        }
    }
}

/// A store with its server. The server ends when this value is dropped.
pub struct SharedStore {
    url: String,
    _server: Box<dyn Any + Send + Sync>,
}

impl SharedStore {
    /// Starts the store. If it is a file, the file is in `folder`.
    ///
    /// # Panics
    /// If its server is not installed, or does not start.
    pub fn start(kind: StoreKind, folder: &Path) -> Self {
        match kind {
            StoreKind::Sqlite => {
                Self { url: format!("sqlite:{}", folder.join("keys.db").display()), _server: Box::new(()) }
            }
            StoreKind::Postgres => {
                let server = Postgres::start();
                Self { url: server.url(), _server: Box::new(server) }
            }
            StoreKind::MariaDb => {
                let server = MariaDb::start();
                Self { url: server.url(), _server: Box::new(server) }
            }
            StoreKind::RedisCluster => {
                let servers = RedisCluster::start();
                Self { url: servers.url(), _server: Box::new(servers) }
            }
        }
    }

    /// Returns its URL in the shop's format.
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl fmt::Debug for SharedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedStore").field("url", &self.url).finish_non_exhaustive()
    }
}

/// Starts an engine on the store at a URL. A path names an SQLite file.
///
/// # Panics
/// If the store cannot be opened.
pub async fn engine_on(url: &str, lease: Duration) -> Engine {
    match url.split_once(':') {
        Some(("postgres", _)) => start(PostgresBackend::open(url).await.unwrap(), lease),
        Some(("mysql", _)) => start(MysqlBackend::open(url).await.unwrap(), lease),
        Some(("redis+cluster", _)) => start(RedisBackend::open(url).await.unwrap(), lease),
        Some(("sqlite", path)) => start(SqliteBackend::open(path).unwrap(), lease),
        _ => start(SqliteBackend::open(url).unwrap(), lease),
    }
}

fn start(backend: impl Backend, lease: Duration) -> Engine {
    Engine::builder(backend).lease(lease).start().unwrap()
}
