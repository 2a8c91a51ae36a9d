//! Runs a command beside a real server of its own, with `{url}` in its words replaced by the server's URL.
//!
//! Usage: `with_server postgres|pgbouncer|mariadb|redis|redis-sentinel|redis-cluster COMMAND…`. Ends with the
//! command's exit code; the server ends with it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a process of the tests: what fails fails the test")]

use std::process::{Command, ExitCode};

use tests::server::{MariaDb, PgBouncer, Postgres, Redis, RedisCluster, RedisSentinel};

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    match words.next().as_deref() {
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
            panic!("there are postgres, pgbouncer, mariadb, redis, redis-sentinel and redis-cluster, and no {other:?}")
        }
    }
}

fn run(words: impl Iterator<Item = String>, url: &str) -> ExitCode {
    let words: Vec<String> = words.map(|word| word.replace("{url}", url)).collect();
    let status = Command::new(&words[0]).args(&words[1..]).status().unwrap();
    ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}
