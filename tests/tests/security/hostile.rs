//! Keys that are meant to break the code that handles them.

use oncekey::at_rest::AtRest;
use oncekey::backend::{Backend, List, Lookup, Remove, Removed};
use oncekey::{Engine, Key, KeyError, MAX_PART_LEN, Outcome};
use tests::http::Request;
use tests::server::{MariaDb, Postgres};
use tests::shop::Shop;

use super::stores::{both, on_every_store};

/// Returns keys of visible ASCII, as HTTP accepts it.
pub(super) fn ascii() -> Vec<String> {
    let mut keys: Vec<String> = [
        // SQL, in the quoting of each dialect.
        "';DROP/**/TABLE/**/oncekey_records;--",
        "'OR'1'='1",
        "1'/**/OR/**/1=1#",
        "$$;DROP/**/TABLE/**/orders;$$",
        "')--",
        "''",
        "`;DELETE/**/FROM/**/orders;`",
        "'||pg_sleep(10)||'",
        "'+SLEEP(10)+'",
        "\\'",
        "\\\\'",
        "E'\\x27'",
        "0x27",
        "x'00'",
        "?",
        "$1",
        ":key",
        "@@version",
        "{table}",
        "{name}",
        "NULL",
        "null",
        "true",
        "0",
        "-0",
        "00",
        "1e0",
        "NaN",
        "Infinity",
        // LIKE and GLOB.
        "%",
        "_",
        "%%",
        "a%",
        "a_",
        "ab",
        "a*",
        "[a-z]",
        "*",
        "?*",
        "\\%",
        "\\_",
        // Backslashes, format strings, shells, templates, paths, logs, redis.
        "\\",
        "\\\\",
        "\\n",
        "\\0",
        "\\u0000",
        "%s%s%s%n",
        "%x",
        "{}",
        "{0}",
        "{{}}",
        "${jndi:ldap://127.0.0.1/a}",
        "$(id)",
        "`id`",
        ";id",
        "|id",
        "&&id",
        "../../etc/passwd",
        "..%2f..%2f",
        "%00",
        "%0d%0aX-Injected:1",
        "<script>alert(1)</script>",
        "*3\\r\\n$3\\r\\nSET\\r\\n",
        "a{b}c",
        "{a}b",
        "__proto__",
        "constructor",
        "COPY",
        "\\copy",
        "\\!id",
        "#",
        "--",
        "/*",
        "*/",
        // Keys that differ by case or by little.
        "key",
        "KEY",
        "Key",
        "key.",
        "key,",
        "ke y",
        "key/",
        "key//",
    ]
    .into_iter()
    .filter(|key| key.bytes().all(|byte| byte.is_ascii_graphic()))
    .map(str::to_owned)
    .collect();
    for part in ["'", "\\", "%", "a", "%s"] {
        let longest = part.repeat(MAX_PART_LEN);
        keys.push(longest[..MAX_PART_LEN].to_owned());
        keys.push(longest[..MAX_PART_LEN - 1].to_owned());
    }
    keys.sort();
    keys.dedup();
    keys
}

/// Returns keys that the engine accepts beyond that.
fn beyond_ascii() -> Vec<String> {
    let mut keys: Vec<String> = [
        " ",
        "  ",
        "a ",
        " a",
        "a",
        "a\u{a0}",
        "' OR '1' = '1",
        "'; DROP TABLE orders; --",
        "é",
        "e\u{301}",
        "ＫＥＹ",
        "ключ",
        "鍵",
        "🔑",
        "\u{10ffff}",
        "\u{fffd}",
        "\u{d7ff}",
        "\u{e000}",
        "ʼ",
        "＇",
        "’; DROP TABLE orders;--",
        "ſ",
        "s",
        "S",
        "K",
        "K",
        "\u{200d}",
        "\u{ad}",
        "𝕜𝕖𝕪",
        "\u{1f1e6}\u{1f1e7}",
        "Å",
        "Å",
        "A\u{30a}",
    ]
    .map(str::to_owned)
    .to_vec();
    // 255 bytes: characters of four bytes each, and a rest.
    keys.push(format!("{}abc", "🔑".repeat(63)));
    keys
}

on_every_store! {
    every_hostile_key_has_a_record_of_its_own
    hashed_every_hostile_key_has_a_record_of_its_own
}

async fn every_hostile_key_has_a_record_of_its_own(backend: impl Backend) {
    keep_apart(AtRest::default().protect(backend.clone())).await;
    // A list returns them unchanged, in the order of their bytes.
    let mut listed: Vec<_> = Vec::new();
    while let Some(last) = {
        let page = backend.list(List { after: listed.last().cloned(), limit: 7 }).await.unwrap();
        listed.extend(page.iter().map(|view| view.key.clone()));
        page.last().map(|view| view.key.clone())
    } {
        assert_eq!(listed.last(), Some(&last));
    }
    let mut all = keys();
    all.sort();
    assert_eq!(listed, all);
    // Removing one key removes only that one.
    for (removed, key) in all.iter().enumerate() {
        assert_eq!(backend.remove(Remove { key: key.clone() }).await, Ok(Removed::Removed), "{key}");
        if let Some(next) = all.get(removed + 1) {
            assert!(backend.lookup(Lookup { key: next.clone() }).await.unwrap().is_some(), "{key} took {next} along");
        }
    }
}

async fn hashed_every_hostile_key_has_a_record_of_its_own(backend: impl Backend) {
    keep_apart(both().protect(backend)).await;
}

/// Returns each text as a key, and each as a scope.
fn keys() -> Vec<Key> {
    let texts: std::collections::BTreeSet<String> = ascii().into_iter().chain(beyond_ascii()).collect();
    let pairs = texts.iter().flat_map(|text| [Key::new("s", text), Key::new(text, "k")]);
    pairs.collect::<Result<std::collections::BTreeSet<_>, _>>().unwrap().into_iter().collect()
}

async fn keep_apart(backend: impl Backend) {
    let engine = Engine::builder(backend).start().unwrap();
    let keys = keys();
    for is_replay in [false, true] {
        let ran = futures_util::future::join_all(keys.iter().enumerate().map(|(number, key)| {
            let (engine, key) = (engine.clone(), key.clone());
            async move { engine.run(key, &1, move |_| async move { Ok::<_, String>(number) }).await }
        }))
        .await;
        for ((number, key), ran) in keys.iter().enumerate().zip(ran) {
            let expected = if is_replay { Outcome::Replayed(number) } else { Outcome::Ran(number) };
            assert_eq!(ran.unwrap(), expected, "{key:?}");
        }
    }
    assert_eq!(engine.stats().await.unwrap().completed, keys.len() as u64);
}

#[test]
fn h06_what_no_store_or_log_can_hold_is_refused() {
    for part in [
        "\0",
        "a\0b",
        "\u{1}",
        "\x7f",
        "a\tb",
        "a\r\nb",
        "\u{9f}",
        "\u{2028}",
        "\u{2029}",
        "\u{202e}txt.exe",
        "\u{2066}",
    ] {
        assert!(matches!(Key::new("s", part), Err(KeyError::ControlCharacter(_))), "{part:?}");
        assert!(matches!(Key::new(part, "k"), Err(KeyError::ControlCharacter(_))), "{part:?}");
        let stored = format!("{}:{part}:k", part.len());
        assert!(Key::from_stored(&stored).is_err(), "{part:?}");
    }
    assert!(matches!(Key::new("s", "k".repeat(MAX_PART_LEN + 1)), Err(KeyError::TooLong(_, 256))));
    assert!(matches!(Key::new("s", format!("{}abcd", "🔑".repeat(63))), Err(KeyError::TooLong(_, 256))));
}

/// Over HTTP, against the shop: each hostile key orders once, with or without quotes, and its content is never
/// executed.
async fn order_under_hostile_keys(store: &str) {
    let folder = tempfile::tempdir().unwrap();
    let shop = Shop::open(folder.path(), &["--store", store]);
    let keys = ascii();
    for (n, key) in keys.iter().enumerate() {
        let body = format!(r#"{{"item": "item-{n}", "quantity": 1}}"#);
        let request = Request::post("/orders", body).header("Content-Type", "application/json");
        let quoted = format!("\"{}\"", key.replace('\\', "\\\\").replace('"', "\\\""));
        // A bare key has no quote at its start or inside. Such a key is only sent quoted.
        let bare = if key.contains('"') { &quoted } else { key };
        let (first, again) =
            (request.clone().key(bare).send(shop.address).await, request.key(&quoted).send(shop.address).await);
        assert!(first.status == 201 && !first.is_replay(), "{key}: {first:?}");
        assert!(again.is_replay() && again.body == first.body, "{key}: {again:?}");
    }
    let found = Request::new("GET", "/orders", "").send(shop.address).await;
    let orders: Vec<serde_json::Value> = serde_json::from_slice(&found.body).unwrap();
    assert_eq!(orders.len(), keys.len());
}

#[actix_rt::test]
async fn h06_hostile_keys_order_once_on_sqlite() {
    order_under_hostile_keys("sqlite:keys.db").await;
}

#[actix_rt::test]
async fn h06_hostile_keys_order_once_on_postgres() {
    order_under_hostile_keys(&Postgres::start().url()).await;
}

#[actix_rt::test]
async fn h06_hostile_keys_order_once_on_mariadb() {
    order_under_hostile_keys(&MariaDb::start().url()).await;
}
