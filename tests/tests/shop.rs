//! The shop as its users run it: started with bad settings, shut down in order, killed, and run twice on one store.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test, what fails fails the test")]

#[path = "shop/command_line.rs"]
mod command_line;

use std::time::Duration;

use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tests::http::{Answer, Request};
use tests::process::{Process, until};
use tests::server::{MariaDb, Postgres, Redis, RedisCluster, RedisSentinel};
use tests::shop::{Shop, command};
use tokio::time::sleep;

/// Between two rounds of retries.
const PAUSE: Duration = Duration::from_millis(20);

fn order(item: &str, key: &str) -> Request {
    let body = format!(r#"{{"item": "{item}", "quantity": 1}}"#);
    Request::post("/orders", body).header("Content-Type", "application/json").key(key)
}

fn payment(card: &str, reference: &str, key: &str) -> Request {
    let body = format!(r#"{{"amount": 1999, "currency": "usd", "card": "{card}", "reference": "{reference}"}}"#);
    Request::post("/payments", body).header("Content-Type", "application/json").key(key)
}

async fn count(shop: &Shop, target: &str) -> usize {
    let found = Request::new("GET", target, "").send(shop.address).await;
    serde_json::from_slice::<Vec<serde_json::Value>>(&found.body).unwrap().len()
}

/// Waits until the shop has claimed this many keys.
async fn until_claimed(shop: &Shop, keys: usize) {
    let claimed = format!("oncekey_events_total{{event=\"miss\"}} {keys}");
    let metrics = async || Request::new("GET", "/metrics", "").send(shop.address).await.text();
    until(&claimed, async || metrics().await.contains(&claimed)).await;
}

/// Starts the shop with bad settings, and returns its error output and its exit code.
fn start_badly(folder: &std::path::Path, flags: &[&str]) -> (String, Option<i32>) {
    // The log is on, as users have it, because its output counts as well.
    let ended = command(folder, flags).env("RUST_LOG", "info").output().unwrap();
    (String::from_utf8(ended.stderr).unwrap(), ended.status.code())
}

#[test]
fn e13_a_bad_store_is_one_clear_line_and_exit_code_2() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("folder")).unwrap();
    std::fs::write(folder.path().join("text.db"), "no database ".repeat(1_000)).unwrap();
    for (url, word) in [
        ("nonsense", "scheme"),
        ("sqlite:", "path"),
        ("sqlite:folder", "folder"),
        ("sqlite:missing/keys.db", "missing"),
        ("sqlite:keys.db?mode=ro", "?"),
        ("sqlite:text.db", "text.db"),
        ("postgres://user:secret@127.0.0.1:1/db", "PostgreSQL"),
        ("postgres://user:secret@[/db", "PostgreSQL"),
        ("mysql://user:secret@127.0.0.1:1/db", "MySQL"),
        ("redis://:secret@127.0.0.1:1/0", "Redis"),
        ("redis://:secret@[/0", "Redis"),
        ("redis+cluster://:secret@127.0.0.1:1", "Redis"),
        ("redis+sentinel://:secret@127.0.0.1:1/main", "Redis"),
        ("sqlite:/proc/keys.db", "/proc/keys.db"),
    ] {
        let (told, code) = start_badly(folder.path(), &["--store", url]);
        assert_eq!((code, told.lines().count()), (Some(2), 1), "{url}: {told}");
        assert!(told.contains(word) && !told.contains("secret"), "{url}: {told}");
        let mut parts: Vec<_> = told.trim().split(": ").collect();
        parts.sort_unstable();
        assert!(parts.windows(2).all(|two| two[0] != two[1]), "it repeats itself: {told}");
    }
    let (told, code) = start_badly(folder.path(), &["--store=memory:", "--lease=0s"]);
    assert!(code == Some(2) && told.contains("lease"), "{told}");
}

/// The error comes at once, while a pool would retry for ten seconds.
#[test]
fn e13_a_shop_database_that_can_not_be_opened_is_one_clear_line() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("folder")).unwrap();
    std::fs::write(folder.path().join("text.db"), "no database ".repeat(1_000)).unwrap();
    for file in ["folder", "missing/shop.db", "/proc/shop.db", "text.db", "shop.db?mode=ro"] {
        let began = std::time::Instant::now();
        let mut command = command(folder.path(), &["--store=memory:", "--shop-db", file]);
        let ended = command.env("RUST_LOG", "info").output().unwrap();
        let told = String::from_utf8(ended.stderr).unwrap();
        assert_eq!((ended.status.code(), told.lines().count()), (Some(2), 1), "{file}: {told}");
        assert!(told.contains(file) && !told.contains("retry"), "{file}: {told}");
        assert!(began.elapsed() < std::time::Duration::from_secs(5), "{file}: {:?}", began.elapsed());
    }
    assert!(!folder.path().join("shop.db?mode=ro").exists());
}

#[actix_rt::test]
async fn h22_h24_the_shop_answers_with_problems_and_headers() {
    let folder = tempfile::tempdir().unwrap();
    let shop = Shop::open(folder.path(), &["--store=memory:"]);
    let json = |path: &str, body: &str| Request::post(path, body).header("Content-Type", "application/json").key("k");
    for (request, status, allow) in [
        (Request::new("GET", "/healthz", ""), 200, None),
        (Request::new("GET", "/readyz", ""), 200, None),
        (Request::new("DELETE", "/orders", ""), 405, Some("GET, POST")),
        (Request::post("/orders/1", "").key("k"), 405, Some("GET")),
        (Request::post("/orders/1", ""), 405, Some("GET")),
        (Request::post("/healthz", ""), 405, Some("GET")),
        (Request::new("GET", "/echo", ""), 405, Some("POST")),
        (Request::post("/echo", "{}").header("Content-Type", "text/plain"), 415, None),
        (json("/payments", "{"), 400, None),
        (Request::new("GET", "/orders/none", ""), 400, None),
        (Request::new("GET", "/mails?order=none", ""), 400, None),
        (Request::new("GET", "/nowhere", ""), 404, None),
        (Request::post("/nowhere", ""), 404, None),
    ] {
        let answer = request.send(shop.address).await;
        assert_eq!((answer.status, answer.header("allow")), (status, allow), "{request:?}: {answer:?}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{request:?}");
        if status >= 400 {
            assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{request:?}: {answer:?}");
            let problem: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
            assert_eq!(problem["status"], status, "{request:?}");
        }
    }
    let health: serde_json::Value =
        serde_json::from_slice(&Request::new("GET", "/healthz", "").send(shop.address).await.body).unwrap();
    assert_eq!(health["contract"], 3);
    // None of these used up the key.
    assert_eq!(payment("tok_visa", "r", "k").send(shop.address).await.status, 201);
}

#[actix_rt::test]
async fn h08_h10_cards_that_fail_charge_once() {
    let folder = tempfile::tempdir().unwrap();
    let shops = [(); 2].map(|()| Shop::open(folder.path(), &["--store=sqlite:keys.db"]));
    for (card, first, second, charges) in [
        ("tok_panic", 500, 409, 0),
        ("tok_crash", 500, 409, 1),
        ("tok_timeout", 504, 409, 1),
        ("tok_unsure", 504, 409, 1),
        ("tok_limited", 429, 201, 1),
        ("tok_gateway_down", 503, 503, 0),
    ] {
        let request = payment(card, card, card);
        let (one, other) = (request.send(shops[0].address).await, request.send(shops[1].address).await);
        assert_eq!((one.status, other.status), (first, second), "{card}");
        if second == 409 {
            assert_eq!(other.problem(), "indeterminate", "{card}");
        }
        assert_eq!(count(&shops[0], &format!("/payments?reference={card}")).await, charges, "{card}");
    }
}

#[actix_rt::test]
async fn e16_the_shop_is_not_ready_before_it_drains() {
    let folder = tempfile::tempdir().unwrap();
    let mut shop = Shop::open(folder.path(), &[]);
    let address = shop.address;
    let ready = Request::new("GET", "/readyz", "");
    assert_eq!(ready.send(address).await.status, 200);
    let paying = actix_rt::spawn(async move { payment("tok_slow", "r", "k").send(address).await });
    until_claimed(&shop, 1).await;
    shop.process.terminate();
    // The shop still answers while the payment is in flight.
    until("the drain", async || ready.send(address).await.status != 200).await;
    let answer = ready.send(address).await;
    assert_eq!((answer.status, answer.header("content-type")), (503, Some("application/problem+json")));
    assert_eq!(paying.await.unwrap().status, 201);
    assert_eq!(actix_web::rt::task::spawn_blocking(move || shop.process.exit_code()).await.unwrap(), Some(0));
}

#[actix_rt::test]
async fn a_log_that_is_no_terminal_has_no_color_codes() {
    let folder = tempfile::tempdir().unwrap();
    let log = std::fs::File::create(folder.path().join("log")).unwrap();
    let mut command = command(folder.path(), &["--store=memory:"]);
    let mut shop = Process::start(command.env("RUST_LOG", "debug").stderr(log));
    let url = shop.expect("The shop is open: http://");
    let address = url.trim_end_matches('/').parse().unwrap();
    assert_eq!(payment("tok_panic", "r", "k").send(address).await.status, 500);
    let told = std::fs::read(folder.path().join("log")).unwrap();
    assert!(!told.is_empty() && !told.contains(&0x1b), "{}", String::from_utf8_lossy(&told));
}

#[test]
fn e13_a_newer_schema_is_refused_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    drop(Shop::open(folder.path(), &["--store=sqlite:keys.db"]));
    let file = folder.path().join("keys.db");
    let mut connection = SqliteConnection::establish(file.to_str().unwrap()).unwrap();
    connection.batch_execute("PRAGMA busy_timeout = 10000").unwrap();
    connection.batch_execute("INSERT INTO oncekey_migrations VALUES ('99991231000000')").unwrap();
    let (told, code) = start_badly(folder.path(), &["--store=sqlite:keys.db"]);
    assert!(code == Some(2) && told.contains("99991231000000"), "{told}");
}

#[actix_rt::test]
async fn e16_a_polite_end_lets_a_slow_payment_finish() {
    let folder = tempfile::tempdir().unwrap();
    let mut shop = Shop::open(folder.path(), &[]);
    let (address, request) = (shop.address, payment("tok_slow", "r", "k"));
    let paying = {
        let request = request.clone();
        actix_rt::spawn(async move { request.send(address).await })
    };
    until_claimed(&shop, 1).await;
    // A request whose client disconnects before the end.
    drop(payment("tok_slow", "left", "k-left").send_only(address).await);
    until_claimed(&shop, 2).await;
    shop.process.terminate();
    let paid = paying.await.unwrap();
    assert_eq!(paid.status, 201);
    assert_eq!(actix_web::rt::task::spawn_blocking(move || shop.process.exit_code()).await.unwrap(), Some(0));

    let shop = Shop::open(folder.path(), &[]);
    for (reference, key) in [("r", "k"), ("left", "k-left")] {
        let again = payment("tok_slow", reference, key).send(shop.address).await;
        assert!(again.is_replay() && again.status == 201, "{reference}: {again:?}");
        assert_eq!(count(&shop, &format!("/payments?reference={reference}")).await, 1);
    }
}

/// Sends 16 concurrent requests to two shops on one store, 40 times over.
async fn two_shops_order_once(store: &str) {
    let folder = tempfile::tempdir().unwrap();
    let shops = [(); 2].map(|()| Shop::open(folder.path(), &["--store", store, "--wait=20s"]));
    for round in 0..40 {
        let request = order("book", &format!("k{round}"));
        let sent = (0..16).map(|n| request.send(shops[n % 2].address));
        let answers: Vec<Answer> = futures_util::future::join_all(sent).await;
        assert!(answers.iter().all(|answer| answer.status == 201 && answer.body == answers[0].body), "{answers:?}");
        assert_eq!(answers.iter().filter(|answer| !answer.is_replay()).count(), 1);
    }
    assert_eq!(count(&shops[0], "/orders?item=book").await, 40);
}

#[actix_rt::test]
async fn e01_two_shops_on_one_file_order_once() {
    two_shops_order_once("sqlite:keys.db").await;
}

#[actix_rt::test]
async fn e01_two_shops_on_one_postgres_order_once() {
    two_shops_order_once(&Postgres::start().url()).await;
}

#[actix_rt::test]
async fn e01_two_shops_on_one_mysql_order_once() {
    two_shops_order_once(&MariaDb::start().url()).await;
}

#[actix_rt::test]
async fn e01_two_shops_on_one_redis_order_once() {
    two_shops_order_once(&Redis::start().url()).await;
}

#[actix_rt::test]
async fn e01_two_shops_on_redis_sentinel_order_once() {
    two_shops_order_once(&RedisSentinel::start().url()).await;
}

#[actix_rt::test]
async fn e01_two_shops_on_a_redis_cluster_order_once() {
    two_shops_order_once(&RedisCluster::start().url()).await;
}

/// Orders while the shop is killed with SIGKILL again and again, and retries each order until it gets an answer.
/// Returns the number of rows. `same_key` says whether a retry has the key of its order.
async fn order_under_kill_9(store: &str, orders: usize, same_key: bool) -> usize {
    const AT_ONCE: usize = 60;
    let folder = tempfile::tempdir().unwrap();
    let flags = ["--store", store, "--lease=1s"];
    let mut shop = Shop::open(folder.path(), &flags);
    let (mut kills, mut tries) = (0, 0);
    let mut open: Vec<usize> = (0..orders).collect();
    while !open.is_empty() {
        let address = shop.address;
        let mut ordering: FuturesUnordered<_> = open
            .iter()
            .take(AT_ONCE)
            .map(|&number| {
                tries += 1;
                let key = if same_key { format!("order-{number}") } else { format!("try-{tries}") };
                async move { (number, order("book", &key).try_send(address).await) }
            })
            .collect();
        // The shop is killed once half of the orders have answers, while the rest are in flight. There is no kill in
        // the last round.
        let kill_at = (open.len() > AT_ONCE).then_some(AT_ONCE / 2);
        let (mut ordered, mut is_killed) = (0, false);
        while let Some((number, answer)) = ordering.next().await {
            match answer {
                Ok(answer) if answer.status == 201 => {
                    open.retain(|other| *other != number);
                    ordered += 1;
                }
                // The killed process claimed the key, and its lease has not lapsed yet. Or the store was slower than
                // the deadline, which a short lease makes short; then nothing ran.
                Ok(answer) => assert!(matches!(answer.status, 409 | 503), "{answer:?}"),
                Err(_) => {}
            }
            if Some(ordered) == kill_at && !is_killed {
                shop.process.kill();
                (kills, is_killed) = (kills + 1, true);
            }
        }
        if is_killed {
            shop = Shop::open(folder.path(), &flags);
        }
        // Without a pause, retries of keys that a lease still blocks would keep the shop busy.
        sleep(PAUSE).await;
    }
    assert!(kills >= 5, "only {kills} kills: the fault hardly fired");
    count(&shop, "/orders?item=book").await
}

#[actix_rt::test]
async fn e05_orders_survive_kill_9_of_the_shop_exactly_once() {
    assert_eq!(order_under_kill_9("sqlite:keys.db", 500, true).await, 500);
}

#[actix_rt::test]
async fn e05_orders_in_postgres_survive_kill_9_of_the_shop_exactly_once() {
    assert_eq!(order_under_kill_9(&Postgres::start().url(), 2_000, true).await, 2_000);
}

#[actix_rt::test]
async fn e05_orders_in_mysql_survive_kill_9_of_the_shop_exactly_once() {
    assert_eq!(order_under_kill_9(&MariaDb::start().url(), 2_000, true).await, 2_000);
}

/// Orders while the store's server is killed with SIGKILL and restarted, and retries each order until it gets an
/// answer. Returns the number of rows.
async fn order_under_server_kills(store: &str, orders: usize, mut kill_and_restart: impl FnMut()) -> usize {
    const AT_ONCE: usize = 100;
    let folder = tempfile::tempdir().unwrap();
    let shop = Shop::open(folder.path(), &["--store", store, "--lease=2s"]);
    let (mut rounds, mut kills, mut failed) = (0, 0, 0);
    let mut open: Vec<usize> = (0..orders).collect();
    while !open.is_empty() {
        let mut ordering: FuturesUnordered<_> = open
            .iter()
            .take(AT_ONCE)
            .map(|&number| {
                let address = shop.address;
                async move { (number, order("book", &format!("order-{number}")).send(address).await) }
            })
            .collect();
        // In every other round the server is killed once a few orders have answers, while the rest are in flight.
        let kill_at = (rounds % 2 == 0 && open.len() > AT_ONCE).then_some(AT_ONCE / 8);
        rounds += 1;
        let mut ordered = 0;
        while let Some((number, answer)) = ordering.next().await {
            match answer.status {
                201 => {
                    open.retain(|other| *other != number);
                    ordered += 1;
                    if Some(ordered) == kill_at {
                        kill_and_restart();
                        kills += 1;
                    }
                }
                // The order waits for its claim's lease to lapse, or its store was unavailable.
                409 | 500 | 503 => failed += 1,
                _ => panic!("{answer:?}"),
            }
        }
        sleep(PAUSE).await;
    }
    assert!(kills >= 5 && failed > 0, "{kills} kills and {failed} failures: the fault hardly fired");
    count(&shop, "/orders?item=book").await
}

#[actix_rt::test]
async fn e11_orders_survive_kill_9_of_postgres_exactly_once() {
    let mut server = Postgres::start();
    let url = server.url();
    let kill_and_restart = || {
        server.kill();
        server.restart();
    };
    assert_eq!(order_under_server_kills(&url, 2_000, kill_and_restart).await, 2_000);
}

#[actix_rt::test]
async fn e11_orders_survive_kill_9_of_mysql_exactly_once() {
    let mut server = MariaDb::start();
    let url = server.url();
    let kill_and_restart = || {
        server.kill();
        server.restart();
    };
    assert_eq!(order_under_server_kills(&url, 2_000, kill_and_restart).await, 2_000);
}

/// A warning names each setting with which answered outcomes can be lost.
#[test]
fn weak_settings_are_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    let postgres = Postgres::start_with(&["synchronous_commit=off"]);
    let mysql = MariaDb::start_with(&["--innodb-flush-log-at-trx-commit=2", "--log-bin", "--sync-binlog=0"]);
    let forgetful = Redis::start_with(&["--appendonly", "no"]);
    let lazy = Redis::start_with(&["--appendfsync", "everysec"]);
    for (url, setting) in [
        (postgres.url(), "synchronous_commit"),
        (mysql.url(), "innodb_flush_log_at_trx_commit"),
        (mysql.url(), "sync_binlog"),
        (forgetful.url(), "appendonly"),
        (lazy.url(), "appendfsync"),
    ] {
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let mut command = command(folder.path(), &["--store", &url]);
        let mut shop = Process::start(command.env("RUST_LOG", "warn").stderr(log));
        shop.expect("The shop is open");
        let told = std::fs::read_to_string(folder.path().join("log")).unwrap();
        assert!(told.contains(setting), "{url}: {told}");
    }
    // There is no warning about a setting that is declared as known.
    let log = std::fs::File::create(folder.path().join("log")).unwrap();
    let url = format!("{}?accept=weak-persistence", lazy.url());
    let mut command = command(folder.path(), &["--store", &url]);
    Process::start(command.env("RUST_LOG", "warn").stderr(log)).expect("The shop is open");
    assert_eq!(std::fs::read_to_string(folder.path().join("log")).unwrap(), "");
}

/// The control: with a new key for each attempt there is no guard, and the same kills order twice.
#[actix_rt::test]
async fn e05_control_without_a_key_kill_9_orders_twice() {
    let rows = order_under_kill_9("sqlite:keys.db", 500, false).await;
    assert!(rows > 500, "{rows} rows for 500 orders: the kills prove nothing");
}

/// Returns a form of the console, as one of its pages sends it.
fn form(target: &str, body: &str) -> Request {
    Request::post(target, body)
        .header("Content-Type", "application/x-www-form-urlencoded")
        .header("Origin", "http://shop")
        .header("Sec-Fetch-Site", "same-origin")
}

#[actix_rt::test]
async fn h10_an_operator_settles_a_payment_on_the_console() {
    let folder = tempfile::tempdir().unwrap();
    let shop = Shop::open(folder.path(), &["--store=sqlite:keys.db"]);
    let page = Request::new("GET", "/", "").send(shop.address).await;
    assert!(page.text().contains("href=\"/admin/\""), "the page leads to the console");
    let request = payment("tok_unsure", "r", "pay-1");
    assert_eq!(request.send(shop.address).await.status, 504);
    assert_eq!(request.send(shop.address).await.status, 409);
    for target in ["/admin", "/admin/"] {
        let overview = Request::new("GET", target, "").send(shop.address).await;
        assert_eq!(overview.status, 200, "{overview:?}");
        assert!(overview.header("content-security-policy").is_some());
    }
    let list = Request::new("GET", "/admin/stuck", "").send(shop.address).await;
    assert!(list.text().contains("pay-1"), "{}", list.text());
    let confirm = form("/admin/confirm", "act=complete&key=6:public:pay-1").send(shop.address).await;
    let text = confirm.text();
    let item = text.split("name=\"item\" value=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
    let outcome = format!("act=complete&item={item}&kind=http&status=201&content_type=text/plain&body=charged by hand");
    let settled = form("/admin/settle", &outcome).send(shop.address).await;
    assert!(settled.text().contains("1 of 1 settled"), "{}", settled.text());
    let retry = request.send(shop.address).await;
    assert_eq!((retry.status, retry.text().as_str(), retry.is_replay()), (201, "charged by hand", true));
    assert_eq!(count(&shop, "/payments?reference=r").await, 1);
}

#[actix_rt::test]
async fn the_console_is_for_who_has_the_token_or_sits_at_the_machine() {
    use base64::Engine as _;

    let folder = tempfile::tempdir().unwrap();
    let basic = |text: &str| format!("Basic {}", base64::prelude::BASE64_STANDARD.encode(text));
    let shop = Shop::open(folder.path(), &["--store=memory:", "--admin-token=s3cret"]);
    let status = async |headers: &[(&str, &str)]| {
        let request = Request::new("GET", "/admin/", "");
        let request = headers.iter().fold(request, |request, (name, value)| request.header(name, value));
        request.send(shop.address).await.status
    };
    for (authorization, wanted) in [
        ("Bearer s3cret".to_owned(), 200),
        (basic("ada:s3cret"), 200),
        ("Bearer other".to_owned(), 403),
        ("Bearer".to_owned(), 403),
        (basic("s3cret:ada"), 403),
        (basic("ada:"), 403),
    ] {
        assert_eq!(status(&[("Authorization", &authorization)]).await, wanted, "{authorization}");
    }
    assert_eq!(status(&[]).await, 403);
    // A browser asks its user for the credentials.
    let asked = Request::new("GET", "/admin/", "").header("Accept", "text/html,*/*").send(shop.address).await;
    assert_eq!(asked.status, 401);
    assert!(asked.header("www-authenticate").unwrap().starts_with("Basic "));
    assert!(asked.header("content-security-policy").is_some());

    let shop = Shop::open(folder.path(), &["--store=memory:"]);
    let status = async |headers: &[(&str, &str)]| {
        let request = Request::new("GET", "/admin/stuck", "");
        let request = headers.iter().fold(request, |request, (name, value)| request.header(name, value));
        request.send(shop.address).await.status
    };
    assert_eq!(status(&[]).await, 200);
    // Requests that a proxy on this machine forwards come from elsewhere.
    for header in [("X-Forwarded-For", "203.0.113.7"), ("Forwarded", "for=203.0.113.7"), ("Via", "1.1 proxy")] {
        assert_eq!(status(&[header]).await, 403, "{header:?}");
    }
    // A page of another site resolves its own name to this machine.
    let by_name = async |host: &str| {
        let request = format!("GET /admin/stuck HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let mut stream = tokio::net::TcpStream::connect(shop.address).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes()).await.unwrap();
        tests::http::read_answer(&mut stream).await.unwrap().status
    };
    for (host, wanted) in [("localhost:8080", 200), ("127.0.0.1", 200), ("[::1]:8080", 200), ("evil.example:8080", 403)]
    {
        assert_eq!(by_name(host).await, wanted, "{host}");
    }
}
