//! kill -9 under load, of the server and of the shop. Every payment is retried until it is settled, and the shop's own
//! ledger shows how often a card was charged. `ONCEKEY_KILLS` sets the number of kills.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::future::{join, join_all};
use futures_util::stream::FuturesUnordered;
use oncekey::OnAbandoned;
use oncekey::backend::{Backend as _, StoreError};
use oncekey_backends::redis::RedisBackend;
use tests::http::{Answer, Request};
use tests::process::PATIENCE;
use tests::server::Redis;
use tests::shop::Shop;

use super::acquire;

const AT_ONCE: usize = 40;

fn kills() -> usize {
    std::env::var("ONCEKEY_KILLS").ok().map_or(25, |kills| kills.parse().unwrap())
}

fn payment(number: usize, key: &str) -> Request {
    payment_by("tok_visa", number, key)
}

fn payment_by(card: &str, number: usize, key: &str) -> Request {
    let body = format!(r#"{{"amount": 1999, "currency": "usd", "card": "{card}", "reference": "r-{number}"}}"#);
    Request::post("/payments", body).header("Content-Type", "application/json").key(key)
}

/// Returns how often each payment was charged.
async fn ledger(shop: &Shop) -> HashMap<String, usize> {
    let found = Request::new("GET", "/payments", "").send(shop.address).await;
    let mut charges = HashMap::new();
    for charge in serde_json::from_slice::<Vec<serde_json::Value>>(&found.body).unwrap() {
        *charges.entry(charge["reference"].as_str().unwrap().to_owned()).or_insert(0) += 1;
    }
    charges
}

/// Pays until the answer is 201, across all failures of the server.
async fn pay(shop: &Shop, number: usize) -> Answer {
    let (request, deadline) = (payment(number, &format!("k-{number}")), Instant::now() + 2 * PATIENCE);
    loop {
        let answer = request.send(shop.address).await;
        match answer.status {
            201 => return answer,
            // The store is unavailable, or a claim whose answer was lost is being withdrawn.
            503 => {}
            409 if answer.problem() == "in-progress" => {}
            _ => panic!("payment {number}: {answer:?}"),
        }
        assert!(Instant::now() < deadline, "payment {number} is stuck: {answer:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The result of a run of kills.
struct Kills {
    payments: usize,
    doubles: usize,
    /// Payments whose retry did not get the first answer again.
    lost: usize,
    missing: usize,
}

/// Pays while the server is killed again and again, and repeats every payment after its server was restarted.
async fn pay_under_kills_of_the_server(settings: &[&str], kills: usize) -> Kills {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Redis::start_with(settings);
    let url = format!("{}?accept=weak-persistence", server.url());
    let shop = Shop::open(folder.path(), &["--store", &url]);
    let (mut payments, mut lost) = (0, 0);
    for _ in 0..kills {
        let numbers = payments..payments + AT_ONCE;
        payments += AT_ONCE;
        let pay = async |number| (number, pay(&shop, number).await);
        let mut paying: FuturesUnordered<_> = numbers.clone().map(&pay).collect();
        let mut answered = HashMap::new();
        let mut is_killed = false;
        while let Some((number, answer)) = paying.next().await {
            answered.insert(number, answer);
            if !is_killed && answered.len() >= AT_ONCE / 8 {
                is_killed = true;
                server.kill();
                server.restart();
            }
        }
        assert!(is_killed);
        let mut again: FuturesUnordered<_> = numbers.map(&pay).collect();
        while let Some((number, answer)) = again.next().await {
            lost += usize::from(!answer.is_replay() || answer.body != answered[&number].body);
        }
    }
    let charges = ledger(&shop).await;
    Kills {
        payments,
        doubles: charges.values().filter(|count| **count > 1).count(),
        lost,
        missing: payments - charges.len(),
    }
}

/// With every change on disk before its answer, nothing that was confirmed is forgotten.
#[actix_rt::test]
async fn e11_payments_survive_kill_9_of_the_server() {
    let Kills { payments, doubles, lost, missing } = pay_under_kills_of_the_server(&[], kills()).await;
    println!("{} kills of the server: {payments} payments, {doubles} charged twice, {lost} outcomes lost", kills());
    assert_eq!((doubles, lost, missing), (0, 0, 0), "of {payments} payments");
}

/// The server's memory is full under load, for longer than a lease, and under the policy with which a lost outcome
/// leads to another charge. Nothing new is charged in the meantime, and the outcomes in flight are stored.
#[actix_rt::test]
async fn s10_payments_survive_a_server_without_memory() {
    const PAYMENTS: usize = 120;
    let folder = tempfile::tempdir().unwrap();
    let server = Redis::start();
    let shop = Shop::open(folder.path(), &["--store", &server.url(), "--lease=1s", "--on-abandoned=rerun"]);
    let backend = RedisBackend::open(&server.url()).await.unwrap();
    // Each third payment takes two seconds.
    let card = |number: usize| if number.is_multiple_of(3) { "tok_slow" } else { "tok_visa" };
    let refused = Cell::new(0);
    let pay = async |number: usize| {
        let (request, deadline) = (payment_by(card(number), number, &format!("k-{number}")), Instant::now() + PATIENCE);
        loop {
            let answer = request.send(shop.address).await;
            match answer.status {
                201 => return (number, answer),
                503 => refused.set(refused.get() + 1),
                409 if answer.problem() == "in-progress" => {}
                _ => panic!("payment {number}: {answer:?}"),
            }
            assert!(Instant::now() < deadline, "payment {number} is stuck: {answer:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let filling = async {
        // By now slow payments are in flight, and others wait to be sent.
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(server.cli(&["config", "set", "maxmemory", "1"]), "OK");
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        let full = backend.acquire(acquire("while full", OnAbandoned::Rerun)).await;
        assert!(matches!(full, Err(StoreError::Full(_))), "{full:?}");
        assert_eq!(server.cli(&["config", "set", "maxmemory", "0"]), "OK");
    };
    let paying = async {
        // Half of the payments are sent at once, and the others while the server is full.
        let late = |number: usize| Duration::from_millis(if number < PAYMENTS / 2 { 0 } else { 500 });
        let sent = (0..PAYMENTS).map(async |number| {
            tokio::time::sleep(late(number)).await;
            pay(number).await
        });
        join_all(sent).await
    };
    let (answers, ()) = join(paying, filling).await;
    let again: HashMap<usize, Answer> = join_all((0..PAYMENTS).map(pay)).await.into_iter().collect();
    let lost = answers.iter().filter(|(number, first)| !again[number].is_replay() || again[number].body != first.body);
    let (lost, charges) = (lost.count(), ledger(&shop).await);
    let doubles = charges.values().filter(|count| **count > 1).count();
    println!(
        "a server without memory: {PAYMENTS} payments, {} refusals, {doubles} charged twice, {lost} outcomes lost",
        refused.get()
    );
    assert_eq!((doubles, lost, PAYMENTS - charges.len()), (0, 0, 0));
    assert!(refused.get() > PAYMENTS / 2, "only {} were refused: this shows nothing", refused.get());
}

/// The control: a server without persistence forgets at each kill, and cards are charged twice.
#[actix_rt::test]
async fn e11_control_a_server_without_persistence_charges_twice() {
    let Kills { payments, doubles, lost, .. } = pay_under_kills_of_the_server(&["--appendonly", "no"], 5).await;
    println!(
        "control, 5 kills without persistence: {payments} payments, {doubles} charged twice, {lost} outcomes lost"
    );
    assert!(doubles > 0 && lost > 0, "the kills prove nothing");
}

/// Pays while the shop is killed again and again. A payment whose shop died in the middle of it is indeterminate: it is
/// charged once or not at all, and never again. `same_key` says whether a retry has the key of its payment.
async fn pay_under_kills_of_the_shop(kills: usize, same_key: bool) -> (Kills, usize) {
    let folder = tempfile::tempdir().unwrap();
    let server = Redis::start();
    let flags = ["--store", &server.url(), "--lease=1s"];
    let mut shop = Shop::open(folder.path(), &flags);
    let (mut open, mut payments, mut tries, mut killed) = (Vec::new(), 0, 0, 0);
    let (mut answers, mut indeterminate) = (HashMap::new(), HashSet::new());
    let deadline = Instant::now() + Duration::from_secs(60 + 5 * kills as u64);
    while killed < kills || !open.is_empty() {
        assert!(Instant::now() < deadline, "{} payments are stuck", open.len());
        let is_last = killed >= kills;
        while !is_last && open.len() < 2 * AT_ONCE {
            open.push(payments);
            payments += 1;
        }
        // The oldest payments may wait for a lease, so the newest are sent as well.
        let sent: HashSet<usize> = open.iter().take(AT_ONCE).chain(open.iter().rev().take(AT_ONCE)).copied().collect();
        let address = shop.address;
        let mut paying: FuturesUnordered<_> = sent
            .into_iter()
            .map(|number| {
                tries += 1;
                let key = if same_key { format!("k-{number}") } else { format!("try-{tries}") };
                async move { (number, payment(number, &key).try_send(address).await) }
            })
            .collect();
        let (mut settled, mut is_killed) = (0, false);
        while let Some((number, answer)) = paying.next().await {
            match answer {
                Ok(answer) if answer.status == 201 => {
                    open.retain(|other| *other != number);
                    answers.insert(number, answer);
                    settled += 1;
                }
                Ok(answer) if answer.status == 409 && answer.problem() == "indeterminate" => {
                    open.retain(|other| *other != number);
                    indeterminate.insert(number);
                }
                // The killed process claimed the key, and its lease has not lapsed yet.
                Ok(answer) => {
                    assert_eq!((answer.status, answer.problem().as_str()), (409, "in-progress"), "{answer:?}")
                }
                Err(_) => {}
            }
            if !is_last && !is_killed && settled >= AT_ONCE / 8 {
                shop.process.kill();
                (killed, is_killed) = (killed + 1, true);
            }
        }
        if is_killed {
            shop = Shop::open(folder.path(), &flags);
        }
    }
    let charges = ledger(&shop).await;
    let mut lost = 0;
    for (number, first) in answers.iter().filter(|_| same_key) {
        let again = payment(*number, &format!("k-{number}")).send(shop.address).await;
        lost += usize::from(!again.is_replay() || again.body != first.body);
    }
    let missing = answers.keys().filter(|number| !charges.contains_key(&format!("r-{number}"))).count();
    let doubles = charges.values().filter(|count| **count > 1).count();
    (Kills { payments, doubles, lost, missing }, indeterminate.len())
}

#[actix_rt::test]
async fn e05_payments_survive_kill_9_of_the_shop_at_most_once() {
    let (Kills { payments, doubles, lost, missing }, indeterminate) = pay_under_kills_of_the_shop(kills(), true).await;
    println!(
        "{} kills of the shop: {payments} payments, {doubles} charged twice, {lost} outcomes lost, {indeterminate} indeterminate",
        kills()
    );
    assert_eq!((doubles, lost, missing), (0, 0, 0), "of {payments} payments");
}

/// The control: with a new key for each attempt there is no guard, and the same kills charge twice.
#[actix_rt::test]
async fn e05_control_without_a_key_kill_9_charges_twice() {
    let (Kills { payments, doubles, .. }, _) = pay_under_kills_of_the_shop(25, false).await;
    println!("control, 25 kills of the shop without keys: {payments} payments, {doubles} charged twice");
    assert!(doubles > 0, "the kills prove nothing");
}
