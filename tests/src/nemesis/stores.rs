//! The store under test, its server, and what can be done to it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection as _;
use diesel::{Connection as _, SqliteConnection};
use parking_lot::RwLock;

use super::proxy::Proxy;
use crate::process::PATIENCE;
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
pub trait Server: Send + Sync {
    /// SIGKILL.
    fn kill(&mut self);
    /// Starts it again after [`kill`](Self::kill).
    fn restart(&mut self);
    /// SIGSTOP for all its processes.
    fn pause(&mut self);
    /// SIGCONT.
    fn resume(&mut self);
    /// Stops every write for a while and lets reads pass; false if the server could not be asked to.
    fn stall_writes(&self, time: Duration) -> bool;
    /// Lets commits wait for a standby that is not there; false if the server could not be asked to, or has no standbys.
    fn stall_commits(&self, _: Duration) -> bool {
        false
    }
}

macro_rules! server {
    ($server:ty, $pause:ident, $resume:ident, {$($stalls:item)*}) => {
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

            $($stalls)*
        }
    };
}

server!(Postgres, pause_all, resume_all, {
    fn stall_writes(&self, time: Duration) -> bool {
        let lock = "BEGIN; SET LOCAL lock_timeout = '2s'; LOCK TABLE oncekey_records IN EXCLUSIVE MODE";
        self.try_sql(&format!("{lock}; SELECT pg_sleep({}); COMMIT", time.as_secs_f64()))
    }

    fn stall_commits(&self, time: Duration) -> bool {
        let set = |standbys: &str| {
            // A commit that waits already goes on waiting until the setting is gone.
            let set = format!("ALTER SYSTEM SET synchronous_standby_names = '{standbys}'");
            self.try_sql(&set) && self.try_sql("SELECT pg_reload_conf()")
        };
        let stalled = set("absent");
        std::thread::sleep(time);
        // The setting outlives a kill of the server: it must go, whatever happens meanwhile.
        let deadline = Instant::now() + PATIENCE;
        while !set("") {
            assert!(Instant::now() < deadline, "the standby's setting could not be taken back");
            std::thread::sleep(Duration::from_millis(50));
        }
        stalled
    }
});
server!(MariaDb, pause, resume, {
    fn stall_writes(&self, time: Duration) -> bool {
        let lock = "SET lock_wait_timeout = 2; LOCK TABLES oncekey_records READ";
        self.try_sql(&format!("{lock}; SELECT SLEEP({}); UNLOCK TABLES", time.as_secs_f64()))
    }
});
server!(Redis, pause, resume, {
    fn stall_writes(&self, time: Duration) -> bool {
        self.try_cli(&["CLIENT", "PAUSE", &time.as_millis().to_string(), "WRITE"]) && {
            std::thread::sleep(time);
            true
        }
    }
});

/// The store of a run.
pub struct Store {
    kind: Kind,
    url: String,
    /// Only one fault at a time has the server. What cuts and swallows connections is the proxy, which meets stalls.
    pub(super) server: Option<RwLock<Box<dyn Server>>>,
    /// The file of a store that is one.
    file: Option<PathBuf>,
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
            Self { kind, url, server: Some(RwLock::new(server)), file: None, proxy: Some(proxy) }
        };
        match kind {
            Kind::Sqlite => {
                let file = folder.join("keys.db");
                let url = format!("sqlite:{}", file.display());
                Self { kind, url, server: None, file: Some(file), proxy: None }
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

    /// Which store it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Stops every write for a while and lets reads pass; tells whether it did.
    pub(super) fn stall_writes(&self, time: Duration) -> bool {
        match (&self.server, &self.file) {
            (Some(server), _) => server.read().stall_writes(time),
            (None, Some(file)) => hold_write_lock(file, time).is_ok(),
            (None, None) => false,
        }
    }

    /// Lets commits wait for a standby that is not there; tells whether it did.
    pub(super) fn stall_commits(&self, time: Duration) -> bool {
        self.server.as_ref().is_some_and(|server| server.read().stall_commits(time))
    }

    /// Where the shops find it: by the proxy, where there is one.
    pub fn url(&self) -> String {
        self.url.clone()
    }
}

/// Keeps an SQLite file's writers waiting, as an application's long transaction does.
fn hold_write_lock(file: &Path, time: Duration) -> Result<(), Box<dyn std::error::Error>> {
    let mut connection = SqliteConnection::establish(&file.display().to_string())?;
    connection.batch_execute("PRAGMA busy_timeout = 2000; BEGIN IMMEDIATE")?;
    std::thread::sleep(time);
    Ok(connection.batch_execute("ROLLBACK")?)
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("kind", &self.kind).field("url", &self.url).finish_non_exhaustive()
    }
}
