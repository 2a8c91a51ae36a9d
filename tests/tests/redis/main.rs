//! Redis on real servers: the conformance suite on each topology, and the tests that only Redis needs.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test, what fails fails the test")]
#![expect(clippy::print_stdout, reason = "what was measured is told")]

mod failover;
mod faults;
mod fencing;
mod handed;
mod kills;
mod opening;
mod steps;
mod steps_model;
mod values;
mod withdrawals;

use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use oncekey::backend::Acquire;
use oncekey::conformance::Capabilities;
use oncekey::record::Owner;
use oncekey::{Fingerprint, Key, OnAbandoned};
use oncekey_backends::redis::RedisBackend;
use tests::server::{Redis, RedisCluster, RedisKind, RedisSentinel};

static SERVER: LazyLock<Redis> = LazyLock::new(Redis::start);
static SENTINEL: LazyLock<RedisSentinel> = LazyLock::new(RedisSentinel::start);
static CLUSTER: LazyLock<RedisCluster> = LazyLock::new(RedisCluster::start);

fn capabilities() -> Capabilities {
    Capabilities::without_transactions().expiring_by_itself()
}

/// Returns a new prefix for each check.
fn fresh_prefix() -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    format!("records[{}]:", COUNT.fetch_add(1, Ordering::Relaxed))
}

async fn open(url: &str, prefix: &str) -> RedisBackend {
    RedisBackend::builder(url).prefix(prefix).open().await.unwrap()
}

macro_rules! conformance_on {
    ($module:ident, $url:expr) => {
        oncekey::conformance_tests!($module, capabilities(), {
            let prefix = fresh_prefix();
            move || {
                let prefix = prefix.clone();
                async move { open(&$url, &prefix).await }
            }
        });
    };
}

conformance_on!(single, SERVER.url());
conformance_on!(sentinel, SENTINEL.url());
conformance_on!(cluster, CLUSTER.url());

/// The suite runs on the server that `ONCEKEY_REDIS` asks for.
#[test]
fn chosen_kind() {
    let server = SERVER.cli(&["info", "server"]);
    assert_eq!(server.contains("server_name:valkey"), RedisKind::chosen() == RedisKind::Valkey, "{server}");
}

fn acquire(key: &str, on_abandoned: OnAbandoned) -> Acquire {
    Acquire {
        key: Key::new("s", key).unwrap(),
        fingerprint: Fingerprint::of(b"asked"),
        owner: Owner::random(),
        lease: Duration::from_secs(60),
        on_abandoned,
        past_withdrawal: None,
    }
}
