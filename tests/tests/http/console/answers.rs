//! What every answer carries, what pages consist of, and where the console can be mounted.

use tests::http::PROTOCOLS;

use super::*;

async fn all_answers(site: &Site) -> Vec<(String, Answer)> {
    let stuck = site.get_stuck("s", "stuck").await;
    let id = encoded(stuck.as_stored());
    let mut answers = Vec::new();
    for target in [
        "",
        "/",
        "/stuck",
        "/stuck?after=nonsense",
        "/stuck?scope=a&scope=b",
        "/activity",
        "/key",
        "/key?scope=s&key=missing",
        "/key?scope=&key=k",
        "/step",
        "/step?id=x&name=y",
        "/console.css",
        "/console.js",
        "/icon.svg",
        "/nowhere",
        "/nowhere/deep",
        "/confirm",
        &format!("/key?id={id}"),
    ] {
        answers.push((target.to_owned(), site.page(&format!("/admin{target}")).await));
    }
    let many = "1:s:k".repeat(300_000);
    for (target, fields) in [
        ("/confirm", &[("act", "release"), ("key", stuck.as_stored())][..]),
        ("/confirm", &[("act", "complete"), ("key", stuck.as_stored())]),
        ("/confirm", &[("act", "complete")]),
        ("/confirm", &[("act", "nonsense"), ("key", stuck.as_stored())]),
        ("/confirm", &[("act", "release"), ("key", "nonsense")]),
        ("/settle", &[]),
        ("/settle", &[("act", "release"), ("item", "nonsense")]),
        ("/settle", &[("act", "complete"), ("item", "1:1:s:stuck"), ("json", "{")]),
        ("/settle", &[("act", "release"), ("item", "1:1:s:stuck")]),
        ("/settle-step", &[("act", "release")]),
        ("/settle", &[("act", &many)]),
        ("/stuck", &[]),
        ("/nowhere", &[]),
    ] {
        answers
            .push((format!("POST {target} {}", fields.len()), site.submit(&format!("/admin{target}"), fields).await));
    }
    let json = Request::post("/admin/settle", "{}").header("Content-Type", "application/json");
    let json = json.header("Origin", "http://shop").header("X-Operator", "settle:ada");
    answers.push(("json".to_owned(), site.send(json).await));
    for protocol in PROTOCOLS {
        answers.push((format!("{protocol:?}"), site.send(get("/admin").by(protocol)).await));
        answers.push((
            format!("{protocol:?}"),
            site.send(get("/admin").header("X-Operator", "view:a").by(protocol)).await,
        ));
    }
    answers
}

#[actix_rt::test]
async fn every_answer_carries_the_policy() {
    let site = Site::open().await;
    let mut statuses = Vec::new();
    for (target, answer) in all_answers(&site).await {
        let policy = answer.header("content-security-policy").unwrap_or_else(|| panic!("{target}: {answer:?}"));
        for part in ["default-src 'none'", "frame-ancestors 'none'", "form-action 'self'", "base-uri 'none'"] {
            assert!(policy.split("; ").any(|found| found == part), "{target}: {part} is not in {policy}");
        }
        assert!(!policy.contains("unsafe") && !policy.contains('*') && !policy.contains("data:"), "{policy}");
        // Under `no-referrer`, a browser would send the console's own forms with `Origin: null`.
        for (name, value) in
            [("x-content-type-options", "nosniff"), ("referrer-policy", "same-origin"), ("cache-control", "no-store")]
        {
            assert_eq!(answer.header(name), Some(value), "{target}");
        }
        statuses.push(answer.status);
    }
    statuses.sort_unstable();
    statuses.dedup();
    // The checks covered all kinds of answers.
    assert_eq!(statuses, [200, 400, 403, 404, 405, 409, 413, 415, 422]);
    site.close().await;
}

#[actix_rt::test]
async fn pages_have_no_inline_code_and_load_nothing_from_elsewhere() {
    let site = Site::open().await;
    for (target, answer) in all_answers(&site).await {
        let text = answer.text();
        if !answer.header("content-type").is_some_and(|found| found.starts_with("text/html")) {
            continue;
        }
        assert!(text.starts_with("<!DOCTYPE html>"), "{target}");
        for inline in [" style=", "<style", "onclick=", "onload=", "javascript:", "<base", "<iframe", "http:", "https:"]
        {
            assert!(!text.contains(inline), "{target}: {inline} in {text}");
        }
        assert!(text.split("<script").skip(1).all(|script| script.starts_with(" src=\"")), "{target}: {text}");
        assert!(links(&answer).iter().all(|link| !link.starts_with("//") && !link.contains("://")), "{target}");
    }
    for file in ["console.css", "console.js", "icon.svg"] {
        let text = site.page(&format!("/admin/{file}")).await.text();
        let outside = text.replace("http://www.w3.org/2000/svg", "");
        assert!(!outside.contains("://") && !outside.contains("@import") && !outside.contains("innerHTML"), "{file}");
    }
    site.close().await;
}

const MARKUP: [&str; 6] = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>",
    "' onmouseover='alert(1)",
    "</textarea><svg onload=alert(1)>",
    "{{7*7}}${7*7}",
    "&lt;b&gt;",
];

/// Checks that a page shows this text only as text.
fn assert_is_text(page: &Answer, raw: &str, of: &str) {
    let text = page.text();
    assert!(!text.contains(raw) || !raw.contains(['<', '"', '\'', '&']), "{of} shows {raw} as it is: {text}");
}

#[actix_rt::test]
async fn what_a_caller_wrote_stays_text() {
    let site = Site::open().await;
    for raw in MARKUP {
        let stuck = site.get_stuck(raw, raw).await;
        let (id, part) = (encoded(stuck.as_stored()), encoded(raw));
        let operator = format!("settle:{raw}");
        for target in [
            "/admin/stuck".to_owned(),
            format!("/admin/stuck?scope={part}"),
            format!("/admin/key?id={id}"),
            format!("/admin/key?scope={part}&key={part}"),
            format!("/admin/key?scope={part}&key=missing"),
            format!("/admin/key?id={part}"),
            format!("/admin/stuck?after={part}"),
            format!("/admin/step?id={id}&name={part}"),
            "/admin".to_owned(),
        ] {
            let page = site.send(get(&target).header("X-Operator", &operator)).await;
            assert_is_text(&page, raw, &target);
        }
        // A link in the list leads to the key.
        let list = site.page("/admin/stuck").await;
        let link = links(&list).into_iter().find(|link| link.starts_with("key?id=") && link.ends_with(&part)).unwrap();
        let page = site.page(&format!("/admin/{link}")).await;
        assert_eq!(page.status, 200, "{link}");
        assert!(unescaped(&page.text()).contains(raw), "{link}");

        let confirm = site.submit("/admin/confirm", &[("act", "complete"), ("key", stuck.as_stored())]).await;
        assert_is_text(&confirm, raw, "confirm");
        let item = &fields(&confirm, "item")[0];
        let bad =
            [("act", "complete"), ("item", item), ("kind", "http"), ("status", raw), ("json", raw), ("headers", raw)];
        let refused = site.submit("/admin/settle", &bad).await;
        assert_eq!(refused.status, 422);
        assert_is_text(&refused, raw, "refused");
        let json = serde_json::to_string(raw).unwrap();
        let good = [("act", "complete"), ("item", item.as_str()), ("kind", "json"), ("json", &json)];
        let settled = site.submit("/admin/settle", &good).await;
        assert_eq!((settled.status, site.settled.lock().len()), (200, 1), "{}", settled.text());
        assert_is_text(&settled, raw, "settled");
        site.settled.lock().clear();
        let read = site.send(get(&format!("/admin/key?id={id}")).header("X-Operator", "read:ada")).await;
        assert_is_text(&read, raw, "the outcome");
    }
    site.close().await;
}

#[actix_rt::test]
async fn the_console_stands_anywhere() {
    let engine = Engine::builder(MemoryBackend::new()).start().unwrap();
    let running = Running::start(move || {
        let console = || console(engine.clone(), |_: &HttpRequest| ConsoleAccess::settle("ada"));
        App::new()
            .service(web::scope("/admin").service(console()))
            .service(web::scope("/ops/{team}").service(web::scope("/keys").service(console())))
            .service(web::scope("/trimmed").wrap(actix_web::middleware::NormalizePath::trim()).service(console()))
            .service(console())
    })
    .await;
    for (base, roots) in [
        ("/admin", &["/admin", "/admin/"][..]),
        ("/ops/payments/keys", &["/ops/payments/keys", "/ops/payments/keys/"]),
        ("/trimmed", &["/trimmed", "/trimmed/"]),
        ("", &["/"]),
    ] {
        for root in roots {
            let page = get(root).send(running.address).await;
            assert_eq!(page.status, 200, "{root}");
            let found = links(&page);
            assert!(found.len() > 5, "{found:?}");
            for link in found.into_iter().filter(|link| !link.starts_with('#')) {
                assert!(link.starts_with(&format!("{base}/")), "{root}: {link}");
                let answer = get(&link).send(running.address).await;
                assert_eq!(answer.status, 200, "{root}: {link}");
            }
        }
        // The other pages are siblings.
        let page = get(&format!("{base}/stuck")).send(running.address).await;
        for link in links(&page).into_iter().filter(|link| !link.starts_with('#')) {
            assert!(!link.starts_with('/'), "{link}");
            let answer = get(&format!("{base}/{}", link.trim_start_matches("./"))).send(running.address).await;
            assert_eq!(answer.status, 200, "{base}: {link}");
        }
    }
    // Two slashes would name another host.
    let page = get("//evil.example/").send(running.address).await;
    assert!(links(&page).iter().all(|link| !link.starts_with("//")), "{:?}", links(&page));
    running.stop().await;
}
