//! Who may view, who may settle, and from where.

use super::*;

fn targets(stuck: &Key) -> Vec<Request> {
    let id = encoded(stuck.as_stored());
    let mut targets: Vec<_> = [
        "",
        "/",
        "/stuck",
        "/stuck?after=nonsense",
        "/activity",
        "/console.css",
        "/console.js",
        "/nowhere",
        "/key",
        "/key?scope=s&key=missing",
        "/key?scope=s&key=stuck",
    ]
    .map(|target| get(&format!("/admin{target}")))
    .into();
    targets.push(get(&format!("/admin/key?id={id}")));
    targets.push(get(&format!("/admin/step?id={id}&name=charge")));
    targets.push(Request::new("DELETE", "/admin/key", ""));
    for target in ["/admin/confirm", "/admin/settle", "/admin/settle-step", "/admin/stuck"] {
        targets.push(form(target, &[("act", "release"), ("key", stuck.as_stored())]).header("Origin", "http://shop"));
    }
    targets
}

#[actix_rt::test]
async fn nobody_without_the_right_learns_anything() {
    let site = Site::open().await;
    let stuck = site.get_stuck("s", "stuck").await;
    let mut answers = Vec::new();
    for request in targets(&stuck) {
        for operator in [None, Some("nonsense"), Some("admin:ada")] {
            let request = match operator {
                Some(operator) => request.clone().header("X-Operator", operator),
                None => request.clone(),
            };
            let answer = site.send(request.clone()).await;
            assert_eq!(answer.status, 403, "{request:?}");
            assert!(answer.header("content-security-policy").is_some(), "{request:?}");
            answers.push(answer.text());
        }
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "the answers differ: {answers:?}");
    assert!(site.retry(&stuck).await.is_err() && site.settled.lock().is_empty());
    site.close().await;
}

#[actix_rt::test]
async fn who_may_look_may_not_settle() {
    let site = Site::open().await;
    let stuck = site.get_stuck("s", "stuck").await;
    let view = |request: Request| request.header("X-Operator", "view:eve").header("Origin", "http://shop");
    let page = site.send(view(get("/admin/stuck"))).await;
    assert_eq!(page.status, 200);
    assert!(page.text().contains(">stuck</a>") && !page.text().contains("<button name"), "{}", page.text());
    for target in ["/admin/confirm", "/admin/settle", "/admin/settle-step"] {
        let token = site.engine.lookup(&stuck).await.unwrap().unwrap().token;
        let item = format!("{token}:{}", stuck.as_stored());
        let fields = [("act", "release"), ("key", stuck.as_stored()), ("item", &item)];
        assert_eq!(site.send(view(form(target, &fields))).await.status, 403, "{target}");
    }
    assert!(site.retry(&stuck).await.is_err() && site.settled.lock().is_empty());
    site.close().await;
}

#[actix_rt::test]
async fn a_form_of_another_origin_is_refused() {
    let site = Site::open().await;
    let stuck = site.get_stuck("s", "stuck").await;
    let token = site.engine.lookup(&stuck).await.unwrap().unwrap().token;
    let item = format!("{token}:{}", stuck.as_stored());
    let settle = || form("/admin/settle", &[("act", "release"), ("item", &item)]).header("X-Operator", "settle:ada");
    let refused: [&[(&str, &str)]; 8] = [
        &[],
        &[("Origin", "null")],
        &[("Origin", "https://evil.example")],
        &[("Origin", "http://shop:81")],
        &[("Origin", "http://shop.evil.example")],
        &[("Origin", "http://shop"), ("Sec-Fetch-Site", "cross-site")],
        &[("Origin", "http://evil.example"), ("Sec-Fetch-Site", "same-origin")],
        &[("Sec-Fetch-Site", "same-site"), ("Referer", "http://shop/admin/stuck")],
    ];
    for headers in refused {
        let request = headers.iter().fold(settle(), |request, (name, value)| request.header(name, value));
        let answer = site.send(request).await;
        assert_eq!(answer.status, 403, "{headers:?}");
        assert!(site.retry(&stuck).await.is_err(), "{headers:?} settled the key");
    }
    assert!(site.settled.lock().is_empty());
    // Each of the two headers is enough.
    for header in [("Origin", "http://shop"), ("Sec-Fetch-Site", "same-origin")] {
        let answer = site.send(settle().header(header.0, header.1)).await;
        assert_eq!(answer.status, 200, "{header:?}");
    }
    assert_eq!(site.settled.lock().len(), 1);
    site.close().await;
}

#[actix_rt::test]
async fn an_outcome_is_shown_to_who_may_read_it_alone() {
    let site = Site::open().await;
    let key = Key::new("s", "k").unwrap();
    let told = "a customer's secret";
    site.engine.run(key.clone(), &(), move |_| async move { Ok::<_, io::Error>(told.to_owned()) }).await.unwrap();
    for (operator, is_shown) in [("view:ada", false), ("settle:ada", false), ("read:ada", true)] {
        for target in
            ["/admin/key?scope=s&key=k", "/admin/key?id=1%3As%3Ak", "/admin/", "/admin/stuck", "/admin/activity"]
        {
            let answer = site.send(get(target).header("X-Operator", operator)).await;
            assert_eq!(answer.status, 200, "{target}");
            let shows = unescaped(&answer.text()).contains(told);
            assert_eq!(shows, is_shown && target.contains("key?"), "{operator} {target}");
        }
    }
    site.close().await;
}
