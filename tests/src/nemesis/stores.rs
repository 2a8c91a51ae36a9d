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
    fn pause(&self);
    /// SIGCONT.
    fn resume(&self);
    /// Stops every write for a while and lets reads pass; false if the server could not be asked to, or nobody met it.
    fn stall_writes(&self, time: Duration) -> bool;
    /// Lets commits wait for a standby that is not there; false if the server could not be asked to, has no standbys, or
    /// nobody met it.
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
        // Fails if nobody waits.
        let met = "SELECT 1 / count(*) FROM pg_locks WHERE NOT granted";
        self.try_sql(&format!("{lock}; SELECT pg_sleep({}); {met}; COMMIT", time.as_secs_f64()))
    }

    fn stall_commits(&self, time: Duration) -> bool {
        let set = |standbys: &str| {
            // A commit that waits already goes on waiting until the setting is gone.
            let set = format!("ALTER SYSTEM SET synchronous_standby_names = '{standbys}'");
            self.try_each_sql(&[&set, "SELECT pg_reload_conf()"])
        };
        let stalled = set("absent");
        std::thread::sleep(time);
        // Fails if nobody waits.
        let met = self.try_sql("SELECT 1 / count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'");
        // The setting outlives a kill of the server: it must go, whatever happens meanwhile.
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
    /// A kill has the server for itself; a pause and a stall share it. What cuts and swallows connections is the proxy, which
    /// meets them all.
    server: Option<RwLock<Box<dyn Server>>>,
    /// The file of a store that is one.
    file: Option<PathBuf>,
    /// The network of each shop.
    proxies: Option<[Proxy; 2]>,
}

impl Store {
    /// Starts the server, and a proxy before it for each shop.
    ///
    /// # Panics
    /// If it is not installed, or does not start.
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

    /// Which store it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// SIGKILL for the server, and starts it again.
    pub(super) fn kill_server(&self) {
        if let Some(server) = &self.server {
            let mut server = server.write();
            server.kill();
            server.restart();
        }
    }

    /// SIGSTOP for the server, for a while; tells whether there is one.
    pub(super) fn pause_server(&self, time: Duration) -> bool {
        let Some(server) = &self.server else { return false };
        let server = server.read();
        server.pause();
        std::thread::sleep(time);
        server.resume();
        true
    }

    /// Whether a fault struck, and a shop met it: it sent something while the fault was there. Who asks a file is not seen.
    pub(super) fn strikes(&self, fault: impl FnOnce() -> bool) -> bool {
        let sent = || self.proxies.as_ref().map(|proxies| proxies.iter().map(Proxy::sent).sum::<u64>());
        let before = sent();
        fault() && (before.is_none() || sent() > before)
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

    /// Where each of the shops finds it: by its proxy, where there is one.
    pub fn urls(&self) -> &[String; 2] {
        &self.urls
    }

    /// The networks of the shops, if they have one.
    pub(super) fn networks(&self) -> &[Proxy] {
        self.proxies.as_ref().map_or(&[], |proxies| &proxies[..])
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
        f.debug_struct("Store").field("kind", &self.kind).field("urls", &self.urls).finish_non_exhaustive()
    }
}
