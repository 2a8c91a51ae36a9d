//! The shop's mails: one for each order, whichever process is killed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test, what fails fails the test")]

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tests::http::Request;
use tests::process::{PATIENCE, Process};
use tests::server::{MariaDb, Postgres, Redis};
use tests::shop::{Shop, command};

const ORDERS: usize = 240;
const AT_ONCE: usize = 30;

fn order(key: &str) -> Request {
    let body = r#"{"item": "book", "quantity": 1}"#;
    Request::post("/orders", body).header("Content-Type", "application/json").key(key)
}

async fn rows(shop: &Shop, target: &str) -> Vec<serde_json::Value> {
    let found = Request::new("GET", target, "").send(shop.address).await;
    serde_json::from_slice(&found.body).unwrap_or_else(|_| panic!("{found:?}"))
}

fn start_worker(folder: &Path, flags: &[&str]) -> Process {
    let mut worker = Process::start(command(folder, flags).arg("--worker"));
    worker.expect("The worker is ready");
    worker
}

/// Orders while the shop, and the worker if there is one, are killed with SIGKILL in turn. Each order is retried until
/// it gets an answer.
async fn each_order_is_mailed_once(store: &str, stream: Option<&Redis>) {
    let folder = tempfile::tempdir().unwrap();
    let url = stream.map(Redis::url);
    let mut flags = vec!["--store", store, "--lease=1s"];
    flags.extend(url.iter().flat_map(|url| ["--mail-stream", url.as_str()]));
    let mut shop = Shop::open(folder.path(), &flags);
    let mut worker = url.as_ref().map(|_| start_worker(folder.path(), &flags));
    let mut open: Vec<usize> = (0..ORDERS).collect();
    let mut kills = 0;
    while !open.is_empty() {
        let address = shop.address;
        let mut ordering: FuturesUnordered<_> = open
            .iter()
            .take(AT_ONCE)
            .map(|&number| async move { (number, order(&format!("order-{number}")).try_send(address).await) })
            .collect();
        let kill_at = (open.len() > AT_ONCE).then_some(AT_ONCE / 3);
        let (mut ordered, mut is_killed, kills_before) = (0, false, kills);
        while let Some((number, answer)) = ordering.next().await {
            if answer.is_ok_and(|answer| answer.status == 201) {
                open.retain(|other| *other != number);
                ordered += 1;
            }
            if Some(ordered) == kill_at && kills == kills_before {
                match &mut worker {
                    Some(worker) if kills % 2 == 1 => {
                        worker.kill();
                        *worker = start_worker(folder.path(), &flags);
                    }
                    _ => {
                        shop.process.kill();
                        is_killed = true;
                    }
                }
                kills += 1;
            }
        }
        if is_killed {
            shop = Shop::open(folder.path(), &flags);
        }
    }
    assert!(kills >= 5, "only {kills} kills: the fault hardly fired");
    let orders = rows(&shop, "/orders").await;
    assert_eq!(orders.len(), ORDERS);
    let began = Instant::now();
    let mut mails = rows(&shop, "/mails").await;
    while mails.len() < ORDERS {
        assert!(began.elapsed() < 2 * PATIENCE, "{} mails of {ORDERS}", mails.len());
        tokio::time::sleep(Duration::from_millis(50)).await;
        mails = rows(&shop, "/mails").await;
    }
    // Messages that are still in the outbox or in the stream find their key.
    if let Some(stream) = stream {
        while stream.cli(&["XPENDING", "mails", "mailers"]).lines().next() != Some("0") {
            assert!(began.elapsed() < 2 * PATIENCE, "mails are stuck in the stream");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(stream.cli(&["EXISTS", "mails.dead"]), "0");
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut sent: HashMap<i64, usize> = HashMap::new();
    for mail in rows(&shop, "/mails").await {
        *sent.entry(mail["order_id"].as_i64().unwrap()).or_default() += 1;
    }
    assert!(orders.iter().all(|order| sent.get(&order["id"].as_i64().unwrap()) == Some(&1)), "{sent:?}");
    let one = orders[0]["id"].as_i64().unwrap();
    assert_eq!(rows(&shop, &format!("/mails?order={one}")).await.len(), 1);
    if let Some(mut worker) = worker {
        worker.terminate();
        assert_eq!(worker.exit_code(), Some(0));
    }
}

#[actix_rt::test]
async fn j03_each_order_in_sqlite_is_mailed_once_over_kill_9_of_the_shop() {
    each_order_is_mailed_once("sqlite:keys.db", None).await;
}

#[actix_rt::test]
async fn j03_each_order_in_sqlite_is_mailed_once_over_kill_9_of_shop_and_worker() {
    each_order_is_mailed_once("sqlite:keys.db", Some(&Redis::start())).await;
}

#[actix_rt::test]
async fn j03_each_order_in_postgres_is_mailed_once_over_kill_9_of_shop_and_worker() {
    each_order_is_mailed_once(&Postgres::start().url(), Some(&Redis::start())).await;
}

#[actix_rt::test]
async fn j03_each_order_in_mysql_is_mailed_once_over_kill_9_of_shop_and_worker() {
    each_order_is_mailed_once(&MariaDb::start().url(), Some(&Redis::start())).await;
}

#[test]
fn a_worker_without_an_outbox_is_one_clear_line_and_exit_code_2() {
    let folder = tempfile::tempdir().unwrap();
    for (flags, word) in [
        (&["--store=memory:", "--mail-stream=redis://127.0.0.1:1/"], "SQL"),
        (&["--store=sqlite:keys.db", "--mail-stream=http://u:secret@host/"], "--mail-stream"),
    ] {
        let ended = command(folder.path(), flags).arg("--worker").output().unwrap();
        let told = String::from_utf8(ended.stderr).unwrap();
        assert_eq!((ended.status.code(), told.lines().count()), (Some(2), 1), "{told}");
        assert!(told.contains(word) && !told.contains("secret"), "{told}");
    }
}
