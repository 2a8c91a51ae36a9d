//! Keys that are stuck at a step.

use std::time::Duration;

use oncekey::{OnAbandoned, OnFailure};

use super::*;

/// Reserves, then begins to charge and does not learn the result.
async fn get_stuck_at_a_step(site: &Site, key: &Key) {
    let engine = site.engine.with_on_abandoned(OnAbandoned::Resume).with_on_failure(OnFailure::Release);
    let ran = engine
        .run(key.clone(), &(), |claim| async move {
            let reserved = claim.step("reserve", async |_| Ok::<_, io::Error>("r-1".to_owned())).await;
            assert!(reserved.is_ok());
            let charging = claim.step("charge", async |_| std::future::pending::<Result<String, io::Error>>().await);
            // The step's future is dropped, so it is unknown whether the charge happened.
            let dropped = tokio::time::timeout(Duration::from_millis(20), charging).await;
            assert!(dropped.is_err());
            Err::<u32, _>(io::Error::other("no answer"))
        })
        .await;
    assert!(ran.is_err());
}

/// Runs the operation again, and returns what its steps returned.
async fn resume(site: &Site, key: &Key) -> Result<(String, String), String> {
    let engine = site.engine.with_on_abandoned(OnAbandoned::Resume).with_on_failure(OnFailure::Release);
    let ran = engine
        .run(key.clone(), &(), |claim| async move {
            let reserved = claim.step("reserve", async |_| Ok::<_, io::Error>("again".to_owned())).await;
            let charged = claim.step("charge", async |_| Ok::<_, io::Error>("charged now".to_owned())).await;
            Ok::<_, io::Error>((reserved.unwrap(), charged.unwrap()))
        })
        .await;
    ran.map(|outcome| outcome.into_inner()).map_err(|error| error.to_string())
}

#[actix_rt::test]
async fn the_list_names_the_stuck_step() {
    let site = Site::open().await;
    let key = Key::new("shop", "checkout-1").unwrap();
    get_stuck_at_a_step(&site, &key).await;
    let list = site.page("/admin/stuck").await.text();
    assert!(list.contains("1 of 2 done") && list.contains("stuck: charge"), "{list}");
    let page = site.page("/admin/key?scope=shop&key=checkout-1").await;
    assert!(links(&page).iter().any(|link| link.starts_with("step?id=") && link.ends_with("name=charge")));
    assert!(!links(&page).iter().any(|link| link.ends_with("name=reserve")));
    site.close().await;
}

#[actix_rt::test]
async fn a_key_with_a_stuck_step_is_released_by_its_step() {
    for (act, json, charged) in [("release", "", "charged now"), ("complete", "\"charge 7\"", "charge 7")] {
        let site = Site::open().await;
        let key = Key::new("shop", "checkout-1").unwrap();
        get_stuck_at_a_step(&site, &key).await;
        assert!(resume(&site, &key).await.is_err());

        // The key cannot be released as a whole.
        let confirm = site.submit("/admin/confirm", &[("act", "release"), ("key", key.as_stored())]).await;
        assert!(
            fields(&confirm, "item").is_empty() && confirm.text().contains("step charge is stuck"),
            "{}",
            confirm.text()
        );

        let form = site.page(&format!("/admin/step?id={}&name=charge", encoded(key.as_stored()))).await;
        let run = &fields(&form, "run")[0];
        let settle = [("id", key.as_stored()), ("name", "charge"), ("run", run), ("act", act), ("json", json)];
        if act == "complete" {
            let bad =
                site.submit("/admin/settle-step", &[settle[0], settle[1], settle[2], settle[3], ("json", "{")]).await;
            assert_eq!(bad.status, 422);
        }
        let other =
            site.submit("/admin/settle-step", &[settle[0], settle[1], ("run", "1.1"), settle[3], settle[4]]).await;
        assert_eq!(other.status, 409, "another run was settled");
        assert!(resume(&site, &key).await.is_err() && site.settled.lock().is_empty());

        let answer = site.submit("/admin/settle-step", &settle).await;
        assert!(answer.text().contains("1 of 1 settled"), "{}", answer.text());
        let told = (EventKind::StepResolved, "shop/checkout-1".to_owned(), Some("ada".to_owned()));
        assert_eq!(*site.settled.lock(), [told]);
        assert_eq!(resume(&site, &key).await, Ok(("r-1".to_owned(), charged.to_owned())));
        // There is nothing left to settle.
        assert_eq!(site.submit("/admin/settle-step", &settle).await.status, 409);
        site.close().await;
    }
}
