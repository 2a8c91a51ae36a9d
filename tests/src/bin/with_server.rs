//! Runs a command beside a real server, with `{url}` in its arguments replaced by the server's URL.
//!
//! Usage: `with_server STORE COMMAND…`, where the store is `postgres`, `pgbouncer`, `mariadb`, `redis`,
//! `redis-sentinel` or `redis-cluster`. `postgresN` is PostgreSQL N, and `valkey…` is Valkey in place of `redis…`. The
//! process ends with the command's exit code, and the server ends with it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a process of the tests: what fails fails the test")]

use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use tests::server::{MariaDb, PgBouncer, Postgres, Redis, RedisCluster, RedisSentinel};

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let store = words.next();
    if let Some((name, value, store)) = store.as_deref().and_then(version_of) {
        let error = Command::new(std::env::current_exe().unwrap()).env(name, value).arg(store).args(words).exec();
        panic!("it could not be run again: {error}");
    }
    match store.as_deref() {
        Some("postgres") => {
            let server = Postgres::start();
            run(words, &server.url())
        }
        Some("pgbouncer") => {
            let server = Postgres::start();
            run(words, &PgBouncer::before(&server, "session").url())
        }
        Some("mariadb") => {
            let server = MariaDb::start();
            run(words, &server.url())
        }
        Some("redis") => {
            let server = Redis::start();
            run(words, &server.url())
        }
        Some("redis-sentinel") => {
            let servers = RedisSentinel::start();
            run(words, &servers.url())
        }
        Some("redis-cluster") => {
            let cluster = RedisCluster::start();
            run(words, &cluster.url())
        }
        other => {
            panic!(
                "there are postgres, postgresN, pgbouncer, mariadb, redis, redis-sentinel, redis-cluster and valkey…, \
                 and no {other:?}"
            )
        }
    }
}

/// Returns the variable that chooses a store's version, its value, and the store's name without the version.
fn version_of(store: &str) -> Option<(&'static str, String, String)> {
    if let Some(topology) = store.strip_prefix("valkey") {
        return Some(("ONCEKEY_REDIS", "valkey".to_owned(), format!("redis{topology}")));
    }
    let version = store.strip_prefix("postgres").filter(|version| !version.is_empty())?;
    Some(("ONCEKEY_POSTGRES", version.to_owned(), "postgres".to_owned()))
}

fn run(words: impl Iterator<Item = String>, url: &str) -> ExitCode {
    let words: Vec<String> = words.map(|word| word.replace("{url}", url)).collect();
    let status = Command::new(&words[0]).args(&words[1..]).status().unwrap();
    ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}
