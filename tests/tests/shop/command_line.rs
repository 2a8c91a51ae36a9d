//! Stuck keys, found and settled from the command line, on every store that processes share.

use serde_json::{Value, json};
use tests::command_line::{Called, call};

use super::*;

fn json_of(called: &Called) -> Value {
    assert_eq!(called.errors, "", "{called:?}");
    serde_json::from_str(&called.told).unwrap_or_else(|_| panic!("this is not JSON: {called:?}"))
}

fn lines_of(called: &Called) -> Vec<Value> {
    assert_eq!((called.code, called.errors.as_str()), (0, ""), "{called:?}");
    called.told.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// One payment is stuck because its process was killed, and another because its gateway did not answer. An operator
/// settles both.
async fn settle_on(url: &str) {
    let folder = tempfile::tempdir().unwrap();
    // The store deadline is two thirds of the lease: long enough for a busy machine.
    let flags = ["--store", url, "--lease=3s"];
    let mut shop = Shop::open(folder.path(), &flags);
    let (slow, unsure, paid) = (
        payment("tok_slow", "slow", "slow"),
        payment("tok_unsure", "unsure", "unsure"),
        payment("tok_visa", "paid", "paid"),
    );
    assert_eq!(paid.send(shop.address).await.status, 201);
    assert_eq!(unsure.send(shop.address).await.status, 504);
    let _connection = slow.send_only(shop.address).await;
    until_claimed(&shop, 3).await;
    shop.process.kill();

    let list = |flags: &[&str]| call(url, &[&["list", "--json"], flags].concat());
    let mut stuck = Vec::new();
    until("two indeterminate keys", async || {
        stuck = lines_of(&list(&["--state", "indeterminate"]));
        stuck.len() == 2
    })
    .await;
    let keys: Vec<_> = stuck.iter().map(|record| record["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["slow", "unsure"]);
    assert!(stuck[0]["lapsed_ms_ago"].is_u64() && stuck[0]["claimed_ms_ago"].is_u64(), "{stuck:?}");
    assert_eq!(lines_of(&list(&["--state", "indeterminate", "--older-than", "1h"])), [] as [Value; 0]);
    assert_eq!(lines_of(&list(&["--scope", "other"])), [] as [Value; 0]);
    assert_eq!(lines_of(&list(&["--scope", "public", "--limit", "2"])).len(), 2);
    let table = call(url, &["list", "--state", "indeterminate"]);
    assert!(table.told.contains("SCOPE") && table.told.contains("lease lapsed"), "{table:?}");
    let stats = json_of(&call(url, &["stats", "--json"]));
    assert_eq!(stats["completed"], 1, "{stats}");
    let shown = json_of(&call(url, &["show", "public", "slow", "--json"]));
    assert_eq!((&shown["state"], &shown["attempt"]), (&json!("indeterminate"), &json!(1)));

    // The operator has not confirmed.
    let asked = call(url, &["resolve", "public", "slow", "--release"]);
    assert_eq!((asked.code, asked.told.as_str()), (2, ""), "{asked:?}");
    assert!(asked.errors.contains("--yes"), "{asked:?}");
    assert_eq!(lines_of(&list(&["--state", "indeterminate"])).len(), 2);

    let outcome = ["resolve", "public", "unsure", "--http-status", "201", "--http-body", "by hand", "--yes"];
    let completed = call(url, &outcome);
    assert_eq!((completed.code, completed.told.trim()), (0, "resolved"), "{completed:?}");
    let again = call(url, &outcome);
    assert_eq!((again.code, again.told.trim()), (1, "not indeterminate"), "{again:?}");
    let released = call(url, &["resolve", "public", "slow", "--release", "--yes", "--json"]);
    assert_eq!((released.code, json_of(&released)), (0, json!({"result": "resolved"})));
    let missing = call(url, &["resolve", "public", "never-used", "--release", "--yes"]);
    assert_eq!((missing.code, missing.told.trim()), (1, "no record"), "{missing:?}");

    let shop = Shop::open(folder.path(), &flags);
    let retry = unsure.send(shop.address).await;
    assert_eq!((retry.status, retry.text().as_str(), retry.is_replay()), (201, "by hand", true));
    let retry = slow.send(shop.address).await;
    assert_eq!((retry.status, retry.is_replay()), (201, false));

    let removed = call(url, &["remove", "public", "paid", "--yes"]);
    assert_eq!((removed.code, removed.told.trim()), (0, "removed"), "{removed:?}");
    assert_eq!(call(url, &["remove", "public", "paid", "--yes"]).code, 1);
    assert_eq!(call(url, &["erase-scope", "public"]).code, 2);
    let erased = call(url, &["erase-scope", "public", "--yes", "--json"]);
    assert_eq!((erased.code, json_of(&erased)), (0, json!({"removed": 2})));
    assert_eq!(lines_of(&list(&[])), [] as [Value; 0]);
    assert_eq!(call(url, &["show", "public", "slow"]).code, 1);
    assert_eq!(call(url, &["purge"]).code, 0);
    let doctor = call(url, &["doctor", "--json"]);
    let findings = json_of(&doctor).as_array().unwrap().len();
    assert_eq!(doctor.code, i32::from(findings > 0), "{doctor:?}");
}

#[actix_rt::test]
async fn h10_the_command_line_settles_keys_in_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("keys.db").display());
    // A misspelt path does not create an empty store.
    let missing = call(&url, &["stats"]);
    assert!(missing.code == 2 && missing.errors.contains("keys.db"), "{missing:?}");
    assert_eq!(call(&url, &["migrate"]).code, 2);
    assert_eq!(call(&url, &["migrate", "--yes"]).code, 0);
    let schema = call(&url, &["schema"]);
    assert!(schema.code == 0 && schema.told.contains("CREATE TABLE oncekey_records"), "{schema:?}");
    settle_on(&url).await;
}

#[actix_rt::test]
async fn h10_the_command_line_settles_keys_in_postgres() {
    let server = Postgres::start();
    settle_on(&server.url()).await;
}

#[actix_rt::test]
async fn h10_the_command_line_settles_keys_in_mariadb() {
    let server = MariaDb::start();
    settle_on(&server.url()).await;
}

#[actix_rt::test]
async fn h10_the_command_line_settles_keys_in_redis() {
    let server = Redis::start();
    settle_on(&server.url()).await;
}

#[test]
fn the_command_line_says_what_is_wrong_without_a_password() {
    for (url, word) in [
        ("nonsense", "scheme"),
        ("memory:", "scheme"),
        ("postgres://user:secret@127.0.0.1:1/db", "PostgreSQL"),
        ("mysql://user:secret@127.0.0.1:1/db", "MySQL"),
        ("redis://:secret@127.0.0.1:1/0", "Redis"),
    ] {
        let called = call(url, &["stats"]);
        assert_eq!((called.code, called.told.as_str()), (2, ""), "{called:?}");
        assert!(called.errors.contains(word) && !called.errors.contains("secret"), "{called:?}");
        assert_eq!(called.errors.lines().count(), 1, "{called:?}");
    }
    let help = call("redis://:secret@127.0.0.1:1/0", &["--help"]);
    assert!(help.code == 0 && help.told.contains("Examples:") && !help.told.contains("secret"), "{help:?}");
}
