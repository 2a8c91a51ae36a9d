//! Finding records by their state, page by page.

use super::{LONG, SHORT, Store, claim, fresh_key, outcome, until};
use crate::OnAbandoned;
use crate::backend::{Backend, Complete, Filter, Find, Hold, RecordView, StateName};
use crate::record::Owner;

/// Reads all pages, of two records each.
async fn all(backend: &impl Backend, filter: Filter) -> Vec<RecordView> {
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = backend.find(Find { filter: filter.clone(), after, limit: 2 }).await.unwrap();
        assert!(page.records.len() <= 2, "a page of 2 has {}", page.records.len());
        assert!(page.records.iter().all(|view| filter.takes(view)), "a record is not of the state that was asked for");
        found.extend(page.records);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert!(found.windows(2).all(|pair| pair[0].key < pair[1].key), "the pages are not in the order of their keys");
    found
}

/// E14: records are found by their state, including those that time alone made indeterminate, with their holder and
/// their times.
pub async fn e14_find_pages_by_state(store: &Store) {
    let backend = store.connect().await;
    let (mut claimed, mut held, mut lapsed, mut completed) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..3 {
        claimed.push(claim(&backend, &fresh_key(), LONG, OnAbandoned::Hold).await);
        lapsed.push(claim(&backend, &fresh_key(), SHORT, OnAbandoned::Hold).await);
        let key = fresh_key();
        let owner = claim(&backend, &key, LONG, OnAbandoned::Hold).await;
        backend.hold(Hold { key, owner }).await.unwrap();
        held.push(owner);
        let key = fresh_key();
        let owner = claim(&backend, &key, LONG, OnAbandoned::Hold).await;
        let outcome = outcome(&key, "17");
        backend.complete(Complete { key, owner, outcome, retention: LONG }).await.unwrap();
        completed.push(owner);
    }
    let of_state = |state| Filter { state: Some(state), ..Filter::default() };
    // Other checks have their own records in this store.
    let mine = async |state, owners: &[Owner]| {
        let found = all(&backend, of_state(state)).await;
        found.into_iter().filter(|view| owners.contains(&view.owner)).collect::<Vec<_>>()
    };
    until("the lapse of three claims", async || mine(StateName::Indeterminate, &lapsed).await.len() == 3).await;
    for (state, owners) in [
        (StateName::InProgress, &claimed),
        (StateName::Indeterminate, &lapsed),
        (StateName::Indeterminate, &held),
        (StateName::Completed, &completed),
    ] {
        let found = mine(state, owners).await;
        assert_eq!(found.len(), 3, "{state:?}");
        for view in found {
            let claimed_at = view.claimed_at().unwrap();
            let age = view.read_at.left(claimed_at);
            assert!(claimed_at <= view.read_at && age < LONG, "the claim is {age:?} old");
            let lapsed_at = view.lapsed_at.filter(|at| *at > claimed_at && *at <= view.read_at);
            assert_eq!(lapsed_at.is_some(), owners == &lapsed, "{state:?} has lapsed at {:?}", view.lapsed_at);
        }
    }
    for state in [StateName::InProgress, StateName::Completed, StateName::Released] {
        assert_eq!(mine(state, &held).await.len() + mine(state, &lapsed).await.len(), 0, "{state:?}");
    }
    let old = Filter { older_than: Some(LONG * 60), ..of_state(StateName::InProgress) };
    let found = all(&backend, old).await;
    assert!(!found.iter().any(|view| claimed.contains(&view.owner)), "a claim of this moment is an hour old");
}
