//! A file that another process has locked.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use oncekey::backend::{Backend as _, Lookup, Reply, Request, StoreError};
use oncekey::record::Owner;
use tokio::time::timeout;

use super::*;

fn impatient(busy_timeout: Duration, queue_depth: usize) -> (TempDir, SqliteBackend) {
    let folder = tempfile::tempdir().unwrap();
    let builder = SqliteBackend::builder(folder.path().join("keys.db"));
    let backend = builder.busy_timeout(busy_timeout).queue_depth(queue_depth).open().unwrap();
    (folder, backend)
}

#[actix_rt::test]
async fn e11_a_locked_file_is_unavailable_and_the_backend_recovers() {
    let (_folder, backend) = impatient(Duration::from_millis(100), 64);
    let mut other = beside(&backend);
    other.batch_execute("BEGIN IMMEDIATE").unwrap();
    let answer = backend.acquire(claim(&key(1), Owner::random())).await;
    assert!(matches!(answer, Err(StoreError::Unavailable(_))), "{answer:?}");
    // Readers do not wait for writers.
    assert_eq!(backend.lookup(Lookup { key: key(1) }).await, Ok(None));
    other.batch_execute("ROLLBACK").unwrap();
    assert!(is_claimed(&backend, claim(&key(1), Owner::random())).await);
}

#[actix_rt::test]
async fn e11_a_step_that_waits_past_the_deadline_is_answered_and_never_taken() {
    let (_folder, backend) = impatient(Duration::from_secs(10), 64);
    let mut other = beside(&backend);
    other.batch_execute("BEGIN IMMEDIATE").unwrap();
    let (answered, answers) = mpsc::channel();
    let batch = (0..20).map(|n| {
        let answered = answered.clone();
        let reply = Reply::new(move |answer| answered.send(answer).unwrap());
        Request::Acquire(claim(&key(n), Owner::random()), reply)
    });
    let started = Instant::now();
    assert!(timeout(Duration::from_millis(100), backend.execute(batch.collect())).await.is_err());
    assert!(started.elapsed() < Duration::from_secs(1));
    let answers: Vec<_> = answers.try_iter().collect();
    assert_eq!(answers.len(), 20);
    assert!(answers.iter().all(|answer| matches!(answer, Err(StoreError::Unavailable(_)))), "{answers:?}");
    other.batch_execute("ROLLBACK").unwrap();
    // It is the writer's next step, after those that nobody waits for.
    assert!(is_claimed(&backend, claim(&key("next"), Owner::random())).await);
    for n in 0..20 {
        assert_eq!(backend.lookup(Lookup { key: key(n) }).await, Ok(None));
    }
}

#[actix_rt::test]
async fn e15_a_full_queue_is_overloaded_at_once() {
    let (_folder, backend) = impatient(Duration::from_secs(10), 4);
    let mut other = beside(&backend);
    other.batch_execute("BEGIN IMMEDIATE").unwrap();
    let waiting: Vec<_> = (0..40)
        .map(|n| {
            let backend = backend.clone();
            actix_rt::spawn(async move { backend.acquire(claim(&key(n), Owner::random())).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let refused = waiting.iter().filter(|step| step.is_finished()).count();
    assert!((30..40).contains(&refused), "{refused}");
    other.batch_execute("ROLLBACK").unwrap();
    let (mut overloaded, mut claimed) = (0, 0);
    for step in waiting {
        match step.await.unwrap() {
            Err(StoreError::Overloaded(_)) => overloaded += 1,
            Ok(_) => claimed += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((overloaded, claimed), (refused, 40 - refused));
}

#[actix_rt::test]
async fn a_full_file_is_full_and_what_is_kept_stays() {
    let (_folder, backend) = fresh();
    let owner = Owner::random();
    assert!(is_claimed(&backend, claim(&key("kept"), owner)).await);
    // The bound is the writer's own setting: set by an operation that it runs.
    transactions::on_writer(&backend, "PRAGMA max_page_count = 1").await;
    let large = Complete { outcome: outcome(&key("kept"), &"x".repeat(1 << 20)), ..completion(&key("kept"), owner) };
    let answer = backend.complete(large).await;
    assert!(matches!(answer, Err(StoreError::Full(_))), "{answer:?}");
    assert_eq!(backend.complete(completion(&key("kept"), owner)).await, Ok(oncekey::backend::Completed::Stored));
}

#[actix_rt::test]
async fn a_connection_that_refuses_to_write_is_read_only_and_is_replaced() {
    let (_folder, backend) = fresh();
    transactions::rolled_back_on_writer(&backend, "PRAGMA query_only = ON").await;
    let answer = backend.acquire(claim(&key(1), Owner::random())).await;
    assert!(matches!(answer, Err(StoreError::ReadOnly(_))), "{answer:?}");
    assert!(is_claimed(&backend, claim(&key(1), Owner::random())).await);
}
