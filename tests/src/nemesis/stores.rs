//! The store under test, its server, and the faults that it offers.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection as _;
use diesel::{Connection as _, SqliteConnection};
use parking_lot::RwLock;

use super::proxy::Proxy;
use crate::process::PATIENCE;
use crate::server::{MariaDb, Postgres, Redis};

/// The kind of store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A file. There is no server and no connection.
    Sqlite,
    /// PostgreSQL.
    Postgres,
    /// MariaDB.
    MariaDb,
    /// One Redis server that writes each change to the disk. The shop's own rows are in an SQLite file.
    Redis,
}

impl Kind {
    /// Returns the store that a URL's scheme names. The harness starts the server itself.
    pub fn named(name: &str) -> Option<Self> {
        match name.split(':').next().unwrap_or_default() {
            "sqlite" => Some(Self::Sqlite),
            "postgres" | "postgresql" => Some(Self::Postgres),
            "mysql" | "mariadb" => Some(Self::MariaDb),
            "redis" => Some(Self::Redis),
            _ => None,
        }
    }

    /// Returns whether an order's row and its outcome commit together, so that its result is never in doubt.
    pub fn has_transactions(self) -> bool {
        self != Self::Redis
    }

    /// Returns whether there is a server that can fail, and a connection to it.
    pub fn has_server(self) -> bool {
        self != Self::Sqlite
    }
}

/// A server of the harness.
pub trait Server: Send + Sync {
    /// Kills it with SIGKILL.
    fn kill(&mut self);
    /// Starts it again after [`kill`](Self::kill).
    fn restart(&mut self);
    /// Pauses all its processes with SIGSTOP.
    fn pause(&self);
    /// Resumes them with SIGCONT.
    fn resume(&self);
    /// Stops every write for a while and lets reads pass. Returns false if the server refused, or if no write was
    /// affected.
    fn stall_writes(&self, time: Duration) -> bool;
    /// Makes commits wait for a standby that is not there. Returns false if the server refused or has no standbys, or
    /// if no commit was affected.
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

            fn pause(&self) {
                Self::$pause(self);
            }

            fn resume(&self) {
                Self::$resume(self);
            }

            $($stalls)*
        }
    };
}

server!(Postgres, pause_all, resume_all, {
    fn stall_writes(&self, time: Duration) -> bool {
        let lock = "BEGIN; SET LOCAL lock_timeout = '2s'; LOCK TABLE oncekey_records IN EXCLUSIVE MODE";
        // This statement fails if no write waits.
        let met = "SELECT 1 / count(*) FROM pg_locks WHERE NOT granted";
        self.try_sql(&format!("{lock}; SELECT pg_sleep({}); {met}; COMMIT", time.as_secs_f64()))
    }

    fn stall_commits(&self, time: Duration) -> bool {
        let set = |standbys: &str| {
            // A commit that already waits continues to wait until the setting is gone.
            let set = format!("ALTER SYSTEM SET synchronous_standby_names = '{standbys}'");
            self.try_each_sql(&[&set, "SELECT pg_reload_conf()"])
        };
        let stalled = set("absent");
        std::thread::sleep(time);
        // This statement fails if no commit waits.
        let met = self.try_sql("SELECT 1 / count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'");
        // The setting outlives a kill of the server, so it must be removed whatever happens in the meantime.
        let deadline = Instant::now() + PATIENCE;
        while !set("") {
            assert!(Instant::now() < deadline, "the standby's setting could not be taken back");
            std::thread::sleep(Duration::from_millis(50));
        }
        stalled && met
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
    urls: [String; 2],
    /// A kill takes the server exclusively; a pause and a stall share it. The proxy cuts and swallows connections,
    /// which affects all of them.
    server: Option<RwLock<Box<dyn Server>>>,
    /// The file, if the store is a file.
    file: Option<PathBuf>,
    /// The network of each shop.
    proxies: Option<[Proxy; 2]>,
}

impl Store {
    /// Starts the server, and a proxy in front of it for each shop.
    ///
    /// # Panics
    /// If the server is not installed, or does not start.
    pub fn start(kind: Kind, folder: &Path) -> Self {
        let behind = |server: Box<dyn Server>, url: String, port: u16| {
            let proxies = [(); 2].map(|()| Proxy::before(port));
            let through = |proxy: &Proxy| url.replace(&format!(":{port}/"), &format!(":{}/", proxy.port()));
            let urls = proxies.each_ref().map(through);
            Self { kind, urls, server: Some(RwLock::new(server)), file: None, proxies: Some(proxies) }
        };
        match kind {
            Kind::Sqlite => {
                let file = folder.join("keys.db");
                let url = format!("sqlite:{}", file.display());
                Self { kind, urls: [url.clone(), url], server: None, file: Some(file), proxies: None }
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

    /// Returns the kind of store.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Kills the server with SIGKILL, and starts it again.
    pub(super) fn kill_server(&self) {
        if let Some(server) = &self.server {
            let mut server = server.write();
            server.kill();
            server.restart();
        }
    }

    /// Pauses the server with SIGSTOP for a while. Returns whether there is a server.
    pub(super) fn pause_server(&self, time: Duration) -> bool {
        let Some(server) = &self.server else { return false };
        let server = server.read();
        server.pause();
        std::thread::sleep(time);
        server.resume();
        true
    }

    /// Returns whether a fault struck and affected a shop, which sent something during the fault. Requests to a file
    /// are not visible.
    pub(super) fn strikes(&self, fault: impl FnOnce() -> bool) -> bool {
        let sent = || self.proxies.as_ref().map(|proxies| proxies.iter().map(Proxy::sent).sum::<u64>());
        let before = sent();
        fault() && (before.is_none() || sent() > before)
    }

    /// Stops every write for a while and lets reads pass. Returns whether it did.
    pub(super) fn stall_writes(&self, time: Duration) -> bool {
        match (&self.server, &self.file) {
            (Some(server), _) => server.read().stall_writes(time),
            (None, Some(file)) => hold_write_lock(file, time).is_ok(),
            (None, None) => false,
        }
    }

    /// Makes commits wait for a standby that is not there. Returns whether it did.
    pub(super) fn stall_commits(&self, time: Duration) -> bool {
        self.server.as_ref().is_some_and(|server| server.read().stall_commits(time))
    }

    /// Returns the store's URL for each shop. It leads through a proxy if there is one.
    pub fn urls(&self) -> &[String; 2] {
        &self.urls
    }

    /// Returns the networks of the shops, if there are any.
    pub(super) fn networks(&self) -> &[Proxy] {
        self.proxies.as_ref().map_or(&[], |proxies| &proxies[..])
    }
}

/// Makes an SQLite file's writers wait, like an application's long transaction.
fn hold_write_lock(file: &Path, time: Duration) -> Result<(), Box<dyn std::error::Error>> {
    let mut connection = SqliteConnection::establish(&file.display().to_string())?;
    connection.batch_execute("PRAGMA busy_timeout = 2000; BEGIN IMMEDIATE")?;
    std::thread::sleep(time);
    Ok(connection.batch_execute("ROLLBACK")?)
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("kind", &self.kind).field("urls", &self.urls).finish_non_exhaustive()
    }
}
