//! Releasing and completing, one key and many.

use super::*;

/// Confirms and settles these keys, and returns the last page.
async fn settle(site: &Site, keys: &[&Key], fields_of_act: &[(&str, &str)]) -> Answer {
    let act = fields_of_act[0];
    let asked: Vec<_> = [act].into_iter().chain(keys.iter().map(|key| ("key", key.as_stored()))).collect();
    let confirm = site.submit("/admin/confirm", &asked).await;
    assert_eq!(confirm.status, 200, "{}", confirm.text());
    // Nothing is settled before it is confirmed.
    assert!(site.settled.lock().is_empty());
    let items = fields(&confirm, "item");
    assert_eq!(items.len(), keys.len(), "{}", confirm.text());
    let items = items.iter().map(|item| ("item", item.as_str()));
    let answer = site.submit("/admin/settle", &fields_of_act.iter().copied().chain(items).collect::<Vec<_>>()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer
}

#[actix_rt::test]
async fn a_released_key_runs() {
    let site = Site::open().await;
    let key = site.get_stuck("s", "k").await;
    assert!(site.retry(&key).await.is_err());
    let answer = settle(&site, &[&key], &[("act", "release")]).await;
    assert!(answer.text().contains("1 of 1 settled"));
    assert_eq!(site.retry(&key).await, Ok((1, false)));
    assert_eq!(*site.settled.lock(), [(EventKind::Resolved, "s/k".to_owned(), Some("ada".to_owned()))]);
    site.close().await;
}

#[actix_rt::test]
async fn a_completed_key_replays_the_typed_outcome() {
    let site = Site::open().await;
    let key = site.get_stuck("s", "k").await;
    settle(&site, &[&key], &[("act", "complete"), ("kind", "json"), ("json", " 17\r\n")]).await;
    assert_eq!(site.retry(&key).await, Ok((17, true)));
    site.close().await;
}

#[actix_rt::test]
async fn a_completed_request_replays_the_response() {
    let site = Site::open().await;
    let request = Request::post("/unsure", "{}").key("pay-1");
    assert_eq!(site.send(request.clone()).await.status, 504);
    assert_eq!(site.send(request.clone()).await.problem(), "indeterminate");
    let key = Key::new("public", "pay-1").unwrap();
    let outcome = [
        ("act", "complete"),
        ("kind", "http"),
        ("status", "201"),
        ("content_type", "application/json"),
        ("headers", "Location: /payments/17\r\nX-Settled: by hand"),
        ("body", "{\r\n\"id\": 17}"),
    ];
    settle(&site, &[&key], &outcome).await;
    let retry = site.send(request).await;
    assert_eq!((retry.status, retry.text().as_str(), retry.is_replay()), (201, "{\n\"id\": 17}", true));
    assert_eq!(retry.header("location"), Some("/payments/17"));
    assert_eq!(retry.header("content-type"), Some("application/json"));
    assert_eq!(site.runs.load(std::sync::atomic::Ordering::Relaxed), 1);
    site.close().await;
}

#[actix_rt::test]
async fn twenty_keys_are_settled_at_once() {
    let site = Site::open().await;
    let mut keys = Vec::new();
    for number in 0..21 {
        keys.push(site.get_stuck("s", &format!("k-{number:02}")).await);
    }
    // All but one.
    let (left, chosen) = keys.split_first().unwrap();
    let answer = settle(&site, &chosen.iter().collect::<Vec<_>>(), &[("act", "complete"), ("json", "5")]).await;
    assert!(answer.text().contains("20 of 20 settled"));
    for key in chosen {
        assert_eq!(site.retry(key).await, Ok((5, true)));
    }
    assert!(site.retry(left).await.is_err());
    let mut told = site.settled.lock().clone();
    told.sort_by(|one, other| one.1.cmp(&other.1));
    let wanted = chosen.iter().map(|key| (EventKind::Resolved, key.to_string(), Some("ada".to_owned())));
    assert_eq!(told, wanted.collect::<Vec<_>>());
    site.close().await;
}

#[actix_rt::test]
async fn a_whole_page_is_settled_without_a_selection() {
    let site = Site::open().await;
    let mut keys = Vec::new();
    for number in 0..3 {
        keys.push(site.get_stuck("s", &format!("k-{number}")).await);
    }
    let list = site.page("/admin/stuck").await;
    let shown = fields(&list, "shown");
    assert_eq!(shown, keys.iter().map(|key| key.as_stored().to_owned()).collect::<Vec<_>>());
    let shown = shown.iter().map(|key| ("shown", key.as_str()));
    let confirm =
        site.submit("/admin/confirm", &[("act", "release-all")].into_iter().chain(shown).collect::<Vec<_>>()).await;
    assert_eq!(fields(&confirm, "item").len(), 3);
    assert_eq!(fields(&confirm, "act"), ["release"]);
    site.close().await;
}

#[actix_rt::test]
async fn a_key_that_has_changed_is_left_as_it_is() {
    let site = Site::open().await;
    let [released, again, completed] = [
        site.get_stuck("s", "released").await,
        site.get_stuck("s", "stuck-again").await,
        site.get_stuck("s", "completed").await,
    ];
    let keys = [&released, &again, &completed].map(|key| ("key", key.as_stored()));
    let confirm =
        site.submit("/admin/confirm", &[("act", "release")].into_iter().chain(keys).collect::<Vec<_>>()).await;
    let items = fields(&confirm, "item");
    assert_eq!(items.len(), 3);
    for key in [&released, &again, &completed] {
        site.engine.resolve(key, None, oncekey::backend::Resolution::Release).await.unwrap();
    }
    // This is another claim of the same key with the same attempt number, about which nobody has decided.
    site.get_stuck("s", "stuck-again").await;
    assert_eq!(site.retry(&completed).await, Ok((1, false)));
    site.settled.lock().clear();
    let items = items.iter().map(|item| ("item", item.as_str()));
    let settled =
        site.submit("/admin/settle", &[("act", "release")].into_iter().chain(items).collect::<Vec<_>>()).await;
    assert!(settled.text().contains("0 of 3 settled"), "{}", settled.text());
    assert!(site.settled.lock().is_empty());
    assert!(site.retry(&again).await.is_err());
    assert_eq!(site.retry(&completed).await, Ok((1, true)));
    site.close().await;
}

#[actix_rt::test]
async fn the_confirmation_reads_the_keys_again() {
    let site = Site::open().await;
    let (stuck, done) = (site.get_stuck("s", "stuck").await, site.get_stuck("s", "done").await);
    site.engine.resolve(&done, None, oncekey::backend::Resolution::Release).await.unwrap();
    assert_eq!(site.retry(&done).await, Ok((1, false)));
    let asked = [("act", "release"), ("key", stuck.as_stored()), ("key", done.as_stored()), ("key", "1:s:never-used")];
    let confirm = site.submit("/admin/confirm", &asked).await;
    assert_eq!(fields(&confirm, "item").len(), 1);
    let text = confirm.text();
    assert!(text.contains("Release 1 key?") && text.contains("completed") && text.contains("no record"), "{text}");
    // A key that is listed twice counts once.
    let confirm = site.submit("/admin/confirm", &[asked[0], asked[1], asked[1]]).await;
    assert_eq!(fields(&confirm, "item").len(), 1);
    site.close().await;
}

#[actix_rt::test]
async fn a_bad_outcome_settles_nothing_and_is_given_back() {
    let site = Site::open().await;
    let key = site.get_stuck("s", "k").await;
    let confirm = site.submit("/admin/confirm", &[("act", "complete"), ("key", key.as_stored())]).await;
    let item = &fields(&confirm, "item")[0];
    for outcome in [
        &[("kind", "json"), ("json", "")][..],
        &[("kind", "json"), ("json", "{\"charge\": }")],
        &[("kind", "http"), ("status", "abc")],
        &[("kind", "http"), ("status", "200"), ("headers", "no header")],
        &[("kind", "http"), ("status", "200"), ("headers", "Set-Cookie: a=b")],
    ] {
        let fields: Vec<_> = [("act", "complete"), ("item", item)].into_iter().chain(outcome.iter().copied()).collect();
        let answer = site.submit("/admin/settle", &fields).await;
        assert_eq!(answer.status, 422, "{outcome:?}");
        let (_, entered) = outcome.last().unwrap();
        assert!(unescaped(&answer.text()).contains(entered), "{outcome:?}");
        assert_eq!(super::fields(&answer, "item"), [item.as_str()], "the form can be sent again");
    }
    assert!(site.retry(&key).await.is_err() && site.settled.lock().is_empty());
    site.close().await;
}
