//! The store under test, its server, and what can be done to it.

use std::path::Path;

use parking_lot::Mutex;

use super::proxy::Proxy;
use crate::server::{MariaDb, Postgres, Redis};

/// Which store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A file: there is no server, and no connection.
    Sqlite,
    /// PostgreSQL.
    Postgres,
    /// MariaDB.
    MariaDb,
    /// One Redis server that writes each change to the disk. The shop's own rows are in an SQLite file.
    Redis,
}

impl Kind {
    /// The store that a URL's scheme names; the harness starts the server itself.
    pub fn named(name: &str) -> Option<Self> {
        match name.split(':').next().unwrap_or_default() {
            "sqlite" => Some(Self::Sqlite),
            "postgres" | "postgresql" => Some(Self::Postgres),
            "mysql" | "mariadb" => Some(Self::MariaDb),
            "redis" => Some(Self::Redis),
            _ => None,
        }
    }

    /// Whether an order's row and its outcome commit together, so that there is never a question about it.
    pub fn has_transactions(self) -> bool {
        self != Self::Redis
    }

    /// Whether there is a server that can fail, and a connection to it.
    pub fn has_server(self) -> bool {
        self != Self::Sqlite
    }
}

/// A server of the harness.
pub trait Server: Send {
    /// SIGKILL.
    fn kill(&mut self);
    /// Starts it again after [`kill`](Self::kill).
    fn restart(&mut self);
    /// SIGSTOP for all its processes.
    fn pause(&mut self);
    /// SIGCONT.
    fn resume(&mut self);
}

macro_rules! server {
    ($server:ty, $pause:ident, $resume:ident) => {
        impl Server for $server {
            fn kill(&mut self) {
                Self::kill(self);
            }

            fn restart(&mut self) {
                Self::restart(self);
            }

            fn pause(&mut self) {
                Self::$pause(self);
            }

            fn resume(&mut self) {
                Self::$resume(self);
            }
        }
    };
}

server!(Postgres, pause_all, resume_all);
server!(MariaDb, pause, resume);
server!(Redis, pause, resume);

/// The store of a run.
pub struct Store {
    kind: Kind,
    url: String,
    /// Only one fault at a time has the server.
    pub(super) server: Option<Mutex<Box<dyn Server>>>,
    pub(super) proxy: Option<Proxy>,
}

impl Store {
    /// Starts the server, and the proxy before it.
    ///
    /// # Panics
    /// If it is not installed, or does not start.
    pub fn start(kind: Kind, folder: &Path) -> Self {
        let behind = |server: Box<dyn Server>, url: String, port: u16| {
            let proxy = Proxy::before(port);
            let url = url.replace(&format!(":{port}/"), &format!(":{}/", proxy.port()));
            Self { kind, url, server: Some(Mutex::new(server)), proxy: Some(proxy) }
        };
        match kind {
            Kind::Sqlite => {
                Self { kind, url: format!("sqlite:{}", folder.join("keys.db").display()), server: None, proxy: None }
            }
            Kind::Postgres => {
                let server = Postgres::start();
                let (url, port) = (server.url(), server.port());
                behind(Box::new(server), url, port)
            }
            Kind::Redis => {
                let server = Redis::start();
                let (url, port) = (server.url(), server.port());
                behind(Box::new(server), url, port)
            }
            Kind::MariaDb => {
                let server = MariaDb::start();
                let (url, port) = (server.url(), server.port());
                behind(Box::new(server), url, port)
            }
        }
    }

    /// Where the shops find it: by the proxy, where there is one.
    pub fn url(&self) -> String {
        self.url.clone()
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("kind", &self.kind).field("url", &self.url).finish_non_exhaustive()
    }
}
