//! Tests that look inside.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use diesel::connection::{InstrumentationEvent, SimpleConnection as _};
use diesel::prelude::*;
use diesel::sql_types::Text;
use oncekey::backend::{Acquire, Backend as _, Watch};
use oncekey::record::transition::{self, Write};
use oncekey::record::{Owner, Record, State, StoreTime};
use oncekey::{Fingerprint, Key, OnAbandoned};

use super::steps::Outcomes;
use super::{SqliteBackend, error, migration, records};

mod equivalence;
mod steps;

fn claim(name: impl std::fmt::Display) -> Acquire {
    Acquire {
        key: Key::new("test", name).unwrap(),
        fingerprint: Fingerprint::of(b"asked"),
        owner: Owner::random(),
        lease: Duration::from_secs(30),
        on_abandoned: OnAbandoned::Hold,
        past_withdrawal: None,
    }
}

#[actix_rt::test]
async fn many_steps_are_committed_together() {
    let folder = tempfile::tempdir().unwrap();
    let backend = SqliteBackend::open(folder.path().join("keys.db")).unwrap();
    let steps: Vec<_> = (0..200)
        .map(|n| {
            let backend = backend.clone();
            actix_rt::spawn(async move { backend.acquire(claim(n)).await.unwrap() })
        })
        .collect();
    for step in steps {
        step.await.unwrap();
    }
    let commits = backend.store().commits.load(Ordering::Relaxed);
    assert!(commits <= 20, "{commits} commits");
}

#[actix_rt::test]
async fn a_dropped_watch_is_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let backend = SqliteBackend::open(folder.path().join("keys.db")).unwrap();
    backend.acquire(claim(1)).await.unwrap();
    let watch = |limit| Watch { key: claim(1).key, limit };
    let two = (Duration::from_millis(50), Duration::from_millis(20));
    let long = backend.watch(watch(two.0));
    let mut long = Box::pin(tokio::time::timeout(two.0, long));
    assert!(tokio::time::timeout(two.1, &mut long).await.is_err());
    assert!(tokio::time::timeout(two.1, backend.watch(watch(two.1))).await.is_err());
    assert_eq!(backend.store().waiters.keys().len(), 1);
    drop(long);
    assert_eq!(backend.store().waiters.keys().len(), 0);
}

#[test]
fn one_path_has_one_writer_and_it_ends_with_its_last_handle() {
    let folder = tempfile::tempdir().unwrap();
    let one = SqliteBackend::open(folder.path().join("keys.db")).unwrap();
    let other = SqliteBackend::open(folder.path().join(".").join("keys.db")).unwrap();
    assert!(std::ptr::eq(one.store(), other.store()));
    let commits = Arc::downgrade(&one.store().commits);
    drop((one, other));
    let started = std::time::Instant::now();
    // The writer's thread holds the last one.
    while commits.strong_count() > 0 {
        assert!(started.elapsed() < Duration::from_secs(5));
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn the_statements_go_by_their_indexes() {
    let mut connection = SqliteConnection::establish(":memory:").unwrap();
    migration::bring_up_to_date(&mut connection, true).unwrap();
    let said = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&said);
    connection.set_instrumentation(move |event: InstrumentationEvent<'_>| {
        if let InstrumentationEvent::StartQuery { query, .. } = event {
            heard.lock().unwrap().push(query.to_string());
        }
    });
    let (now, key) = (StoreTime::from_millis(1), Key::new("test", 1).unwrap());
    records::purge(&mut connection, 10, now).unwrap();
    records::list(&mut connection, "a", 10, now).unwrap();
    records::find(&mut connection, &key, Outcomes::All).unwrap();
    records::remove(&mut connection, &key).unwrap();
    let mut queries = std::mem::take(&mut *said.lock().unwrap());
    // A list is of one point in time.
    queries.retain(|query| !query.starts_with("BEGIN") && !query.starts_with("COMMIT"));
    let plans = ["purge_at", "sqlite_autoindex_oncekey_records_1", "sqlite_autoindex", "sqlite_autoindex"];
    assert_eq!(queries.len(), plans.len(), "{queries:?}");
    for (query, index) in queries.iter().zip(plans) {
        let plan = plan(&mut connection, query);
        assert!(plan.contains("SEARCH") && plan.contains(index), "{query}: {plan}");
        assert!(!plan.contains("SCAN") && !plan.contains("TEMP B-TREE"), "{query}: {plan}");
    }
}

#[test]
fn the_statements_of_a_step_are_prepared_once() {
    let mut connection = SqliteConnection::establish(":memory:").unwrap();
    migration::bring_up_to_date(&mut connection, true).unwrap();
    let said = Arc::new(Mutex::new((0, 0)));
    let heard = Arc::clone(&said);
    connection.set_instrumentation(move |event: InstrumentationEvent<'_>| match event {
        InstrumentationEvent::StartQuery { .. } => heard.lock().unwrap().0 += 1,
        InstrumentationEvent::CacheQuery { .. } => heard.lock().unwrap().1 += 1,
        _ => {}
    });
    let now = StoreTime::from_millis(1);
    for n in 0..3 {
        let message = claim(n);
        let Write::Put(record) = transition::acquire(None, now, &message).write else { panic!() };
        records::insert(&mut connection, &message.key, &record).unwrap();
        let found = records::find(&mut connection, &message.key, Outcomes::All).unwrap().unwrap();
        assert_eq!(found.record, record);
        let held = Record { state: State::Indeterminate, ..record.clone() };
        records::replace(&mut connection, &found, &held).unwrap();
        let found = records::find(&mut connection, &message.key, Outcomes::All).unwrap().unwrap();
        assert_eq!(found.record, held);
        records::replace(&mut connection, &found, &record).unwrap();
        records::delete(&mut connection, found.id).unwrap();
        records::remove(&mut connection, &message.key).unwrap();
        records::purge(&mut connection, 10, now).unwrap();
    }
    // Insert, find, update, delete, remove, purge.
    assert_eq!(*said.lock().unwrap(), (3 * 8, 6));
}

#[derive(diesel::QueryableByName)]
struct PlanStep {
    #[diesel(sql_type = Text)]
    detail: String,
}

fn plan(connection: &mut SqliteConnection, query: &str) -> String {
    let steps: Vec<PlanStep> = diesel::sql_query(format!("EXPLAIN QUERY PLAN {query}")).load(connection).unwrap();
    steps.into_iter().map(|step| step.detail).collect::<Vec<_>>().join("; ")
}

#[test]
fn the_messages_of_sqlite_are_known() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let path = path.to_str().unwrap();
    let mut one = SqliteConnection::establish(path).unwrap();
    one.batch_execute("CREATE TABLE t (x INTEGER UNIQUE NOT NULL)").unwrap();
    let kind = |connection: &mut SqliteConnection, sql: &str| error::kind(&connection.batch_execute(sql).unwrap_err());
    let mut read_only = SqliteConnection::establish(&format!("file:{path}?mode=ro")).unwrap();
    assert_eq!(kind(&mut read_only, "INSERT INTO t VALUES (1)"), error::Kind::ReadOnly);
    assert_eq!(kind(&mut one, "INSERT INTO t VALUES (NULL)"), error::Kind::Constraint);
    let mut other = SqliteConnection::establish(path).unwrap();
    other.batch_execute("BEGIN IMMEDIATE").unwrap();
    assert_eq!(kind(&mut one, "BEGIN IMMEDIATE"), error::Kind::Busy);
    other.batch_execute("ROLLBACK").unwrap();
    let full = "PRAGMA max_page_count = 1; CREATE TABLE u (x)";
    assert_eq!(kind(&mut one, full), error::Kind::Full);
}
