//! The files beside the database, which hold what was committed last and the locks; and a database with a second name.

use std::fs;

use oncekey::backend::{Acquired, Completed, Lookup, StoreError};
use oncekey::record::Owner;
use oncekey_backends::SqliteOpenError;

use super::*;

/// Longer than a look at the files is taken for granted.
async fn until_looked() {
    tokio::time::sleep(Duration::from_millis(1_100)).await;
}

/// The log or the shared memory was deleted, or another stands there: another process would not find what was committed, or
/// would not respect this one's locks.
#[actix_rt::test]
async fn s11_a_file_whose_log_or_shared_memory_is_gone_is_refused() {
    let cases = [("-wal", false), ("-shm", false), ("-wal", true), ("-shm", true)];
    let opened = cases.map(|(suffix, is_replaced)| {
        let (folder, backend) = fresh();
        let beside = format!("{}{suffix}", backend.path().display());
        (folder, backend, beside, is_replaced)
    });
    for (_, backend, beside, is_replaced) in &opened {
        assert!(is_claimed(backend, claim(&key("k"), Owner::random())).await);
        fs::remove_file(beside).unwrap();
        if *is_replaced {
            fs::write(beside, "").unwrap();
        }
    }
    until_looked().await;
    for (_, backend, beside, _) in &opened {
        let refused = [
            backend.acquire(claim(&key("l"), Owner::random())).await.map(drop),
            backend.lookup(Lookup { key: key("k") }).await.map(drop),
        ];
        for refused in refused {
            let is_told = matches!(&refused, Err(StoreError::Replaced(why)) if why.contains(beside));
            assert!(is_told, "{beside}: {refused:?}");
        }
        assert_eq!(backend.doctor().len(), 1, "{:?}", backend.doctor());
        // In this process it is not opened anew either, while it is open.
        let refused = SqliteBackend::open(backend.path()).unwrap_err();
        assert!(matches!(refused, SqliteOpenError::Replaced { .. }), "{refused}");
    }
}

/// By two names one file has two logs, and a key is claimed by each.
#[actix_rt::test]
async fn s11_a_file_with_a_second_name_is_refused_at_open() {
    let (folder, backend) = fresh();
    assert!(is_claimed(&backend, claim(&key("k"), Owner::random())).await);
    let second = folder.path().join("second.db");
    fs::hard_link(backend.path(), &second).unwrap();
    let refused = SqliteBackend::open(&second).unwrap_err();
    assert!(matches!(&refused, SqliteOpenError::Linked { names: 2, .. }), "{refused}");
    // Who has it open goes on: nobody else gets in by the other name.
    assert!(is_claimed(&backend, claim(&key("l"), Owner::random())).await);
    fs::remove_file(&second).unwrap();
    let again = SqliteBackend::open(backend.path()).unwrap();
    assert!(matches!(again.acquire(claim(&key("k"), Owner::random())).await, Ok(Acquired::InProgress { .. })));
}

/// Connections come and go, and the files beside the database stay the same.
#[actix_rt::test]
async fn s11_the_files_beside_a_database_outlive_its_connections() {
    let (_folder, backend) = fresh();
    let owner = Owner::random();
    assert!(is_claimed(&backend, claim(&key("k"), owner)).await);
    // The writer's connection is given up.
    transactions::rolled_back_on_writer(&backend, "PRAGMA query_only = ON").await;
    assert!(backend.acquire(claim(&key("l"), Owner::random())).await.is_err());
    drop(beside(&backend));
    until_looked().await;
    assert_eq!(backend.complete(completion(&key("k"), owner)).await, Ok(Completed::Stored));
    assert!(backend.doctor().is_empty());
}
