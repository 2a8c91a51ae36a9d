//! The overview, the list of stuck keys, and the page of one key.

use std::time::Duration;

use oncekey::backend::{Acquire, Backend as _, Filter, StateName};
use oncekey::conformance::{Fault, Faulty, Steps};
use oncekey::record::Owner;
use oncekey::{Fingerprint, OnAbandoned};

use super::super::server::sqlite;
use super::*;

async fn figures(site: &Site) -> serde_json::Value {
    let answer = site.page("/admin/activity").await;
    assert_eq!(answer.status, 200);
    serde_json::from_slice(&answer.body).unwrap()
}

fn sum(figures: &serde_json::Value, id: &str) -> String {
    let plots = figures["plots"].as_array().unwrap();
    plots.iter().find(|plot| plot["id"] == id).unwrap()["sum"].as_str().unwrap().to_owned()
}

#[actix_rt::test]
async fn the_overview_counts_what_the_engine_did() {
    let site = Site::open().await;
    let key = Key::new("s", "k").unwrap();
    assert_eq!(site.retry(&key).await, Ok((1, false)));
    assert_eq!(site.retry(&key).await, Ok((1, true)));
    assert_eq!(site.retry(&key).await, Ok((1, true)));
    let other = site.engine.run(key.clone(), &"something else", |_| async { Ok::<_, io::Error>(1) }).await;
    assert!(other.is_err());
    site.get_stuck("s", "stuck").await;
    let found = figures(&site).await;
    assert_eq!(
        [sum(&found, "miss"), sum(&found, "hit"), sum(&found, "mismatch"), sum(&found, "lost")],
        ["2", "2", "1", "0"]
    );
    assert_eq!((found["completed"].as_str(), found["indeterminate"].as_str()), (Some("1"), Some("1")));
    assert_eq!((found["in_flight"].as_str(), found["is_stuck"].as_bool()), (Some("0"), Some(true)));
    assert_eq!(found["alarm"], "");
    let page = site.page("/admin").await.text();
    for name in ["First use", "Replay", "Conflict", "Mismatch", "Takeover", "Lost claim", "Store failure"] {
        assert!(page.contains(name), "{name}");
    }
    site.close().await;
}

/// The state that `kill -9` leaves: nothing has recorded that the key is indeterminate.
#[actix_rt::test]
async fn a_claim_whose_process_is_gone_counts_as_stuck() {
    let backend = MemoryBackend::new();
    let site = Site::on(Engine::builder(backend.clone())).await;
    let key = Key::new("s", "killed").unwrap();
    let claim = Acquire {
        key: key.clone(),
        fingerprint: Fingerprint::of(b""),
        owner: Owner::random(),
        lease: Duration::from_millis(1),
        on_abandoned: OnAbandoned::Hold,
        past_withdrawal: None,
    };
    backend.acquire(claim).await.unwrap();
    let stuck = Filter { state: Some(StateName::Indeterminate), ..Filter::default() };
    while site.engine.find(stuck.clone(), None, 10).await.unwrap().records.is_empty() {}
    let found = figures(&site).await;
    assert_eq!((found["in_flight"].as_str(), found["indeterminate"].as_str()), (Some("0"), Some("1")));
    let list = site.page("/admin/stuck").await.text();
    assert!(list.contains("killed") && list.contains("when its lease lapsed"), "{list}");
    site.close().await;
}

#[actix_rt::test]
async fn the_overview_says_that_the_store_is_away() {
    let store = Faulty::new(MemoryBackend::new());
    let site = Site::on(Engine::builder(store.clone())).await;
    store.strike(Steps::All, Fault::Down);
    let page = site.page("/admin").await;
    assert_eq!(page.status, 200);
    assert!(page.text().contains("The store could not be counted"), "{}", page.text());
    for target in ["/admin/stuck", "/admin/key?scope=s&key=k", "/admin/step?id=1%3As%3Ak&name=x"] {
        assert_eq!(site.page(target).await.status, 503, "{target}");
    }
    let settled = site.submit("/admin/settle", &[("act", "release"), ("item", "1:1:s:k")]).await;
    assert!(settled.text().contains("0 of 1 settled") && settled.text().contains("not known"), "{}", settled.text());
    store.heal();
    site.close().await;
}

/// Follows the links through the list.
async fn walk(site: &Site, first: &str) -> Vec<Vec<String>> {
    let (mut pages, mut next) = (Vec::new(), Some(first.to_owned()));
    while let Some(target) = next {
        let page = site.page(&format!("/admin/{target}")).await;
        assert_eq!(page.status, 200, "{}", page.text());
        pages.push(fields(&page, "shown"));
        next = links(&page).into_iter().find(|link| link.contains("after="));
        assert!(pages.len() < 1_000, "the pages do not end");
    }
    pages
}

#[actix_rt::test]
async fn the_list_has_pages() {
    for site in [Site::open().await, Site::on(Engine::builder(sqlite())).await] {
        let mut stuck = Vec::new();
        for number in 0..120 {
            let scope = if number % 3 == 0 { "a:b" } else { "<tenant>" };
            stuck.push(site.get_stuck(scope, &format!("stuck {number:03}&é")).await);
            let done = Key::new(scope, format!("done {number:03}")).unwrap();
            assert_eq!(site.retry(&done).await, Ok((1, false)));
        }
        stuck.sort_unstable();
        let stored = |keys: &[Key]| keys.iter().map(|key| key.as_stored().to_owned()).collect::<Vec<_>>();
        let pages = walk(&site, "stuck").await;
        assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [50, 50, 20]);
        assert_eq!(pages.concat(), stored(&stuck));
        // The keys of one scope.
        stuck.retain(|key| key.scope() == "a:b");
        let pages = walk(&site, "stuck?scope=a%3Ab").await;
        assert_eq!(pages.concat(), stored(&stuck));
        assert_eq!(walk(&site, "stuck?scope=a").await.concat(), Vec::<String>::new());
        site.close().await;
    }
}

#[actix_rt::test]
async fn one_key_is_found_by_scope_and_key() {
    let site = Site::open().await;
    let stuck = site.get_stuck("a", "b:c").await;
    let page = site.page("/admin/key?scope=a&key=b%3Ac").await;
    assert_eq!(page.status, 200);
    assert!(page.text().contains("aria-current=\"step\">indeterminate"), "{}", page.text());
    let found = site.engine.lookup(&stuck).await.unwrap().unwrap();
    assert!(page.text().contains(&found.token.to_string()));
    // The key of another scope that reads the same is not shown.
    assert_eq!(site.page("/admin/key?scope=a%3Ab&key=c").await.status, 404);
    assert_eq!(site.page("/admin/key?scope=a&key=missing").await.status, 404);
    assert_eq!(site.page(&format!("/admin/key?scope=a&key={}", "k".repeat(256))).await.status, 400);
    site.engine.resolve(&stuck, None, oncekey::backend::Resolution::Release).await.unwrap();
    assert_eq!(site.retry(&stuck).await, Ok((1, false)));
    let page = site.page("/admin/key?scope=a&key=b%3Ac").await.text();
    assert!(page.contains("aria-current=\"step\">completed") && !page.contains("action=\"confirm\""), "{page}");
    site.close().await;
}

#[actix_rt::test]
async fn a_key_that_is_stored_as_a_digest_is_settled() {
    use oncekey::at_rest::{Encryption, KeyHashing};

    let builder = Engine::builder(MemoryBackend::new())
        .key_hashing(KeyHashing::hmac([7; 32]).unwrap())
        .encryption(Encryption::new(1, &[9; 32]));
    let site = Site::on(builder).await;
    let key = site.get_stuck("s", "k").await;
    let shown = fields(&site.page("/admin/stuck").await, "shown");
    assert!(shown.len() == 1 && shown[0].starts_with("0::"), "{shown:?}");
    assert_eq!(site.page("/admin/key?scope=s&key=k").await.status, 200);
    let confirm = site.submit("/admin/confirm", &[("act", "complete"), ("key", &shown[0])]).await;
    let item = &fields(&confirm, "item")[0];
    let settled = site.submit("/admin/settle", &[("act", "complete"), ("item", item), ("json", "7")]).await;
    assert!(settled.text().contains("1 of 1 settled"), "{}", settled.text());
    assert_eq!(site.retry(&key).await, Ok((7, true)));
    site.close().await;
}
