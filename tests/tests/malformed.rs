//! Malformed requests over real sockets against the running shop. Each one is answered with 4xx or closed, and nothing
//! happens.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test, what fails fails the test")]
#![expect(clippy::print_stdout, reason = "what was measured is told")]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tests::http::Request;
use tests::malformed::{self, Malformed};
use tests::shop::Shop;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;

/// A server that takes this long for one request has failed.
const PATIENCE: Duration = Duration::from_secs(30);
const AT_ONCE: u64 = 48;

/// Returns a number from the environment. `ONCEKEY_MALFORMED` is the number of requests (20,000 by default), and
/// `ONCEKEY_SEED` the seed (1 by default).
fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name} is no number: {value}")))
}

/// Sends a request, closes the sending side, and returns everything that came back.
async fn exchange(server: SocketAddr, number: u64, request: &Malformed) -> Vec<u8> {
    let socket = TcpSocket::new_v4().unwrap();
    // The requests come from many addresses of this machine, because one address has too few ports for a million
    // connections.
    let [.., a, b] = (number as u32).to_be_bytes();
    socket.bind(SocketAddr::from((Ipv4Addr::new(127, 1, a, b.max(1)), 0))).unwrap();
    let mut stream = socket.connect(server).await.unwrap_or_else(|error| panic!("the server is gone: {error}"));
    // A server that has read enough closes the connection early, and then not everything can be sent.
    let _ = stream.write_all(&request.bytes).await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    let mut part = vec![0; 16 << 10];
    while let Ok(read @ 1..) = stream.read(&mut part).await {
        answer.extend_from_slice(&part[..read]);
    }
    answer
}

/// Returns the status of every answer among the bytes.
fn statuses(bytes: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(bytes);
    text.match_indices("HTTP/1.1 ")
        .map(|(at, _)| text.get(at + 9..at + 12).and_then(|code| code.parse().ok()).unwrap_or(0))
        .collect()
}

/// Returns the resident memory, in bytes.
fn resident(shop: &Shop) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{}/statm", shop.process.id())).unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4_096
}

async fn count(shop: &Shop, target: &str) -> usize {
    let found = Request::new("GET", target, "").send(shop.address).await;
    serde_json::from_slice::<Vec<serde_json::Value>>(&found.body).unwrap().len()
}

#[test]
fn h06_malformed_requests_are_refused_and_nothing_happens() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(send_all());
}

async fn send_all() {
    let (total, seed) = (from_environment("ONCEKEY_MALFORMED", 20_000), from_environment("ONCEKEY_SEED", 1));
    let folder = tempfile::tempdir().unwrap();
    let shop = Shop::open(folder.path(), &["--store=sqlite:keys.db", "--workers=2"]);
    let server = shop.address;
    let next = Arc::new(AtomicU64::new(0));
    let senders: Vec<_> = (0..AT_ONCE)
        .map(|_| {
            let next = Arc::clone(&next);
            tokio::spawn(async move {
                let mut seen: BTreeMap<(&str, &str), u64> = BTreeMap::new();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= total {
                        return seen;
                    }
                    let request = malformed::nth(seed, number);
                    let told = || format!("seed {seed}, number {number}, {}", request.kind);
                    let exchanged = tokio::time::timeout(PATIENCE, exchange(server, number, &request)).await;
                    let answer = exchanged.unwrap_or_else(|_| panic!("{}: neither answered nor closed", told()));
                    let statuses = statuses(&answer);
                    assert!(
                        statuses.iter().all(|status| (400..500).contains(status)),
                        "{}: {statuses:?}\n{}\n{}",
                        told(),
                        String::from_utf8_lossy(&request.bytes[..request.bytes.len().min(2_000)]),
                        String::from_utf8_lossy(&answer),
                    );
                    let fate = if statuses.is_empty() { "closed" } else { "4xx" };
                    *seen.entry((request.kind, fate)).or_default() += 1;
                }
            })
        })
        .collect();
    // Compares the memory after the one-time allocations with the memory at the end.
    let (mut first, mut largest) = (None, 0);
    let deadline = Instant::now() + PATIENCE + Duration::from_millis(total * 20);
    while !senders.iter().all(tokio::task::JoinHandle::is_finished) {
        assert!(Instant::now() < deadline, "the server is too slow by far");
        tokio::time::sleep(Duration::from_millis(50)).await;
        if next.load(Ordering::Relaxed) > total / 4 {
            let now = resident(&shop);
            first.get_or_insert(now);
            largest = largest.max(now);
        }
    }
    let mut seen: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for sender in senders {
        for (fate, count) in sender.await.unwrap() {
            *seen.entry(fate).or_default() += count;
        }
    }
    let first = first.unwrap_or_else(|| resident(&shop));
    let mib = |bytes: u64| bytes >> 20;
    println!(
        "{total} malformed requests, seed {seed}; resident memory {} MiB, at most {} MiB",
        mib(first),
        mib(largest)
    );
    for ((kind, fate), count) in &seen {
        println!("{kind:>20} {fate:>7} {count:>8}");
    }
    assert_eq!(seen.values().sum::<u64>(), total);
    for kind in malformed::kinds() {
        let refused = seen.get(&(kind, "4xx")).copied().unwrap_or_default();
        assert!(
            refused > 0 || kind == "truncated",
            "{kind}: none was answered, so that they were not what they claim to be"
        );
    }

    // Nothing happened, the server is healthy, and valid requests are accepted.
    assert_eq!((count(&shop, "/orders").await, count(&shop, "/payments").await), (0, 0));
    let health = Request::new("GET", "/healthz", "").send(server).await;
    assert!(health.status == 200 && health.text().contains(r#""store":"up""#), "{health:?}");
    let order =
        Request::post("/orders", r#"{"item": "book", "quantity": 1}"#).header("Content-Type", "application/json");
    assert_eq!(order.clone().key("sound").send(server).await.status, 201);
    assert!(order.key("sound").send(server).await.is_replay());
    assert_eq!(count(&shop, "/orders").await, 1);
    // The control: the same requests are accepted unbroken, so the server refused them because they were broken.
    let before = count(&shop, "/orders").await + count(&shop, "/payments").await;
    for number in 0..200 {
        let request = Malformed { kind: "unbroken", bytes: malformed::unbroken(seed, number) };
        assert_eq!(statuses(&exchange(server, number, &request).await), [201], "number {number}");
    }
    assert_eq!(count(&shop, "/orders").await + count(&shop, "/payments").await, before + 200);
    assert!(largest < first + (96 << 20), "memory grew from {} to {} MiB", mib(first), mib(largest));
}
