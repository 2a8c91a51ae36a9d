//! One tenant's attempts on another tenant's records.

use oncekey::at_rest::{AtRest, KeyHashing};
use oncekey::backend::{Backend, Filter, StoreError};
use oncekey::{Engine, Error, Key, KeyError, KeyPart, Outcome, RunError};
use tests::http::Request;
use tests::shop::Shop;

use super::stores::{both, on_every_store};

/// Returns pairs of scope and key, many of which join to the same text in one way or another.
fn lookalikes() -> Vec<(String, String)> {
    let parts = [
        "a",
        "a:b",
        "b",
        ":",
        "::",
        "1:a",
        "1:a:b",
        "3:a:b",
        "0",
        "0:",
        "a/b",
        "/",
        "a\\",
        "%",
        "a ",
        " a",
        "A",
        "á",
        "a\u{301}",
        "\u{e1}",
        "ａ",
        "a\u{ad}",
        "a\u{200b}",
        "ß",
        "ss",
        "ﬀ",
        "ff",
        "İ",
        "i",
        "ı",
        "x-api-key-0",
        "public",
    ];
    let mut pairs: Vec<_> =
        parts.iter().flat_map(|scope| parts.map(|key| ((*scope).to_owned(), key.to_owned()))).collect();
    // A key equals another tenant's stored form, plain or hashed.
    for key in [Key::new("a", "b").unwrap(), Key::new("a:b", ":").unwrap()] {
        pairs.push(("evil".to_owned(), key.as_stored().to_owned()));
        pairs.push((key.as_stored().to_owned(), "k".to_owned()));
    }
    pairs.sort();
    pairs.dedup();
    pairs
}

on_every_store! {
    h12_no_scope_and_key_reach_another_record
    h12_hashed_and_encrypted_no_scope_and_key_reach_another_record
    h12_a_scope_is_erased_and_no_other
}

async fn h12_a_scope_is_erased_and_no_other(backend: impl Backend) {
    let engine = Engine::builder(backend.clone()).start().unwrap();
    let mut pairs = lookalikes();
    for (scope, key) in &pairs {
        let key = Key::new(scope, key).unwrap();
        engine.run(key, &(), |_| async { Ok::<_, String>(1) }).await.unwrap();
    }
    for erased in ["a:b", "1:a", "%", "missing"] {
        let count = pairs.iter().filter(|(scope, _)| scope == erased).count();
        assert_eq!(engine.erase_scope(erased).await, Ok(count as u64), "{erased}");
        pairs.retain(|(scope, _)| scope != erased);
        let mut left = Vec::new();
        let mut after = None;
        loop {
            let page = engine.find(Filter::default(), after, 100).await.unwrap();
            left.extend(
                page.records.iter().map(|view| (view.key.scope().to_owned(), view.key.idempotency_key().to_owned())),
            );
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        left.sort();
        assert_eq!(left, pairs, "{erased}");
    }
    // A hashed key does not show its scope. Nothing would be found, so the engine returns an error.
    let hashed = Engine::builder(backend).key_hashing(KeyHashing::hmac([7; 32]).unwrap()).start().unwrap();
    assert!(matches!(hashed.erase_scope("a").await, Err(Error::Store(StoreError::Unsupported(_)))));
}

async fn h12_no_scope_and_key_reach_another_record(backend: impl Backend) {
    every_pair_has_its_own(backend, AtRest::default()).await;
}

async fn h12_hashed_and_encrypted_no_scope_and_key_reach_another_record(backend: impl Backend) {
    every_pair_has_its_own(backend, both()).await;
}

async fn every_pair_has_its_own(backend: impl Backend, at_rest: AtRest) {
    let engine = Engine::builder(at_rest.protect(backend)).start().unwrap();
    let pairs = lookalikes();
    for is_replay in [false, true] {
        // The calls run concurrently, so that they also meet in batches.
        let ran = futures_util::future::join_all(pairs.iter().map(|pair| {
            let (engine, pair) = (engine.clone(), pair.clone());
            async move {
                let key = Key::new(&pair.0, &pair.1).unwrap();
                engine.run(key, &"the same for all", |_| async move { Ok::<_, String>(pair) }).await
            }
        }))
        .await;
        for (pair, ran) in pairs.iter().zip(ran) {
            let expected = if is_replay { Outcome::Replayed(pair.clone()) } else { Outcome::Ran(pair.clone()) };
            assert_eq!(ran.unwrap(), expected);
        }
    }
    assert_eq!(engine.stats().await.unwrap().completed, pairs.len() as u64);
}

#[test]
fn h12_a_scope_is_never_empty_and_a_key_never_without_one() {
    assert_eq!(Key::new("", "k").unwrap_err(), KeyError::Empty(KeyPart::Scope));
    for text in
        ["0::k", ":k", "k", "", "1:a", "9:a:k", "1:a:", "18446744073709551616:a:k", "-1:a:k", "01:a:k", "1 :a:k"]
    {
        assert!(Key::from_stored(text).is_err(), "{text}");
    }
    // The length counts bytes, and may not split a character.
    assert!(Key::from_stored("1:é:k").is_err());
}

/// The same from outside: whatever a tenant sends as the API key or the idempotency key, the tenant gets only its own
/// responses.
#[actix_rt::test]
async fn h12_no_api_key_reaches_anothers_response() {
    let folder = tempfile::tempdir().unwrap();
    let shop = Shop::open(folder.path(), &["--store=sqlite:keys.db"]);
    let order = |n: usize, key: &str, tenants: &[&str]| {
        let request = Request::post("/orders", format!(r#"{{"item": "item-{n}", "quantity": 1}}"#));
        let request = request.header("Content-Type", "application/json").key(key);
        tenants.iter().fold(request, |request, tenant| request.header("X-Api-Key", tenant))
    };
    let long = "t".repeat(4_000);
    let tenants: [&[&str]; 14] = [
        &[],
        &["public"],
        &["Public"],
        &["a"],
        &["a", "b"],
        &["a,b"],
        &["a, b"],
        &["b", "a"],
        &["x-api-key-0"],
        &["6:public:k"],
        &["ab"],
        &["\u{fc}"],
        &["a", ""],
        &[&long],
    ];
    let mut bodies = std::collections::HashSet::new();
    for (n, tenants) in tenants.iter().enumerate() {
        let answer = order(n, "k", tenants).send(shop.address).await;
        // A request with two callers belongs to no tenant.
        if tenants.len() > 1 {
            assert_eq!(answer.status, 400, "{tenants:?}: {answer:?}");
            continue;
        }
        assert!(answer.status == 201 && !answer.is_replay(), "{tenants:?}: {answer:?}");
        assert!(bodies.insert(answer.body), "{tenants:?}");
        let again = order(n, "k", tenants).send(shop.address).await;
        assert!(again.is_replay() && bodies.contains(&again.body), "{tenants:?}: {again:?}");
    }
    // An empty API key belongs to no tenant.
    let empty = order(99, "k", &[""]).send(shop.address).await;
    assert_eq!(empty.status, 400, "{empty:?}");
    // Another tenant's stored form is used as a key.
    for (n, key) in ["6:public:k", "0::00000000-0000", "public/k"].iter().enumerate() {
        let answer = order(200 + n, key, &[]).send(shop.address).await;
        assert!(answer.status == 201 && !answer.is_replay(), "{key}: {answer:?}");
    }
}

/// Requests are compared only within the tenant's own record, so a mismatch reveals nothing about another tenant's
/// request.
#[actix_rt::test]
async fn h12_a_mismatch_tells_nothing_of_another_tenant() {
    let engine = Engine::builder(oncekey_backends::MemoryBackend::new()).start().unwrap();
    let run = async |scope: &str, asked: &str| {
        engine.run(Key::new(scope, "k").unwrap(), &asked, |_| async { Ok::<u32, String>(1) }).await
    };
    run("a", "one").await.unwrap();
    assert_eq!(run("b", "other").await, Ok(Outcome::Ran(1)));
    assert_eq!(run("a", "other").await, Err(RunError::Engine(Error::Mismatch)));
}
