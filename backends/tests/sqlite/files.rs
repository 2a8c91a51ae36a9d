//! Opening: what is kept, what is refused, and how it is said.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::thread;
use std::time::{Instant, SystemTime};

use oncekey::backend::{
    Acquired, Backend as _, Completed, List, Lookup, Remove, Removed, StateView, StepBegun, StoreError,
};
use oncekey::record::Owner;
use oncekey_backends::SqliteOpenError;

use super::*;

#[test]
fn records_are_there_after_the_file_is_opened_again() {
    let folder = tempfile::tempdir().unwrap();
    let (path, owner) = (folder.path().join("keys.db"), Owner::random());
    for round in 0..3 {
        let path = path.clone();
        actix_rt::System::new().block_on(async move {
            let backend = SqliteBackend::open(&path).unwrap();
            if round == 0 {
                assert!(is_claimed(&backend, claim(&key("done"), owner)).await);
                assert!(is_claimed(&backend, claim(&key("claimed"), owner)).await);
                backend.complete(completion(&key("done"), owner)).await.unwrap();
            }
            let replayed = Acquired::Completed { outcome: outcome(&key("done"), "17") };
            assert_eq!(backend.acquire(claim(&key("done"), Owner::random())).await, Ok(replayed));
            let claimed = backend.lookup(Lookup { key: key("claimed") }).await.unwrap().unwrap();
            assert!(matches!(claimed.state, StateView::InProgress { .. }), "round {round}: {claimed:?}");
        });
    }
}

#[test]
fn the_log_is_write_ahead_and_paths_that_look_like_urls_are_paths() {
    let folder = tempfile::tempdir().unwrap();
    let odd = folder.path().join("file:keys?mode=memory.db");
    let backend = SqliteBackend::open(&odd).unwrap();
    assert!(odd.exists());
    let mode: String =
        diesel::dsl::sql::<diesel::sql_types::Text>("PRAGMA journal_mode").get_result(&mut beside(&backend)).unwrap();
    assert_eq!(mode, "wal");
}

#[test]
fn a_newer_schema_is_refused_with_both_versions() {
    let (folder, backend) = fresh();
    let sql = "INSERT INTO oncekey_migrations VALUES ('29991231000000')";
    beside(&backend).batch_execute(sql).unwrap();
    drop(backend);
    // Another path to the same file is the same file: nothing of the first opening is left once it is dropped.
    let error = SqliteBackend::open(folder.path().join("keys.db")).unwrap_err();
    assert!(matches!(error, SqliteOpenError::NewerSchema { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("29991231000000") && text.contains("20261128000000"), "{text}");
}

/// A file of the version before fencing tokens, with a record in each state: all of it is kept.
#[actix_rt::test]
async fn e25_a_file_of_the_version_before_is_brought_up_to_date_with_its_records() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.db");
    let mut old = connect(&path);
    let version = "CREATE TABLE oncekey_migrations (version TEXT PRIMARY KEY NOT NULL) STRICT, WITHOUT ROWID;
                   INSERT INTO oncekey_migrations VALUES ('20261124000000');";
    old.batch_execute(include_str!("../../migrations/sqlite/20261124000000_records/up.sql")).unwrap();
    old.batch_execute(version).unwrap();
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let (owner, far) = (Owner::random(), 4_102_444_800_000_i64);
    let just_now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() - 1;
    let (by, asked) = (hex(owner.as_bytes()), hex(Fingerprint::of(b"asked").as_bytes()));
    let done = hex(outcome(&key("done"), "17").as_stored());
    for (name, rest) in [
        ("claimed", format!("1, {far}, 2, NULL, NULL")),
        ("lapsed", format!("1, {just_now}, 1, NULL, {far}")),
        ("done", format!("2, NULL, NULL, x'{done}', {far}")),
        ("held", "3, NULL, NULL, NULL, NULL".to_owned()),
    ] {
        let sql = format!(
            "INSERT INTO oncekey_records (key, fingerprint, attempt, owner, state, lease_until, on_abandoned, outcome,
             purge_at) VALUES ('{}', x'{asked}', 1, x'{by}', {rest})",
            key(name).as_stored()
        );
        old.batch_execute(&sql).unwrap();
    }
    drop(old);

    let backend = SqliteBackend::open(&path).unwrap();
    let listed = backend.list(List { after: None, limit: 10 }).await.unwrap();
    assert_eq!(listed.len(), 4);
    assert!(listed.iter().all(|view| view.token == oncekey::FencingToken::ZERO));
    let replayed = Acquired::Completed { outcome: outcome(&key("done"), "17") };
    assert_eq!(backend.acquire(claim(&key("done"), Owner::random())).await, Ok(replayed));
    assert_eq!(backend.complete(completion(&key("claimed"), owner)).await, Ok(Completed::Stored));
    let held = backend.acquire(claim(&key("held"), Owner::random())).await;
    assert!(matches!(held, Ok(Acquired::Indeterminate { .. })), "{held:?}");
    let taken_over = backend.acquire(claim(&key("lapsed"), Owner::random())).await;
    let Ok(Acquired::Claimed { token, took_over: true, .. }) = taken_over else { panic!("{taken_over:?}") };
    assert!(token > oncekey::FencingToken::ZERO);
}

/// A file of the version before steps, with a record in each state: all of it is kept, and a claim that was made before has
/// steps from now on.
#[actix_rt::test]
async fn e26_a_file_of_the_version_before_steps_is_brought_up_to_date_with_its_live_records() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.db");
    let mut old = connect(&path);
    for version in [
        include_str!("../../migrations/sqlite/20261124000000_records/up.sql"),
        include_str!("../../migrations/sqlite/20261127000000_fencing/up.sql"),
        "CREATE TABLE oncekey_migrations (version TEXT PRIMARY KEY NOT NULL) STRICT, WITHOUT ROWID;
         INSERT INTO oncekey_migrations VALUES ('20261124000000'), ('20261127000000');",
    ] {
        old.batch_execute(version).unwrap();
    }
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let (owner, far, token) = (Owner::random(), 4_102_444_800_000_i64, 1_700_000_000_000_000_i64);
    let just_now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() - 1;
    let (by, asked) = (hex(owner.as_bytes()), hex(Fingerprint::of(b"asked").as_bytes()));
    let done = hex(outcome(&key("done"), "17").as_stored());
    for (name, rest) in [
        ("claimed", format!("1, {far}, 2, NULL, NULL, NULL, NULL")),
        ("lapsed", format!("1, {just_now}, 1, NULL, {far}, NULL, NULL")),
        ("done", format!("2, NULL, NULL, x'{done}', {far}, NULL, NULL")),
        ("held", "3, NULL, NULL, NULL, NULL, NULL, NULL".to_owned()),
        ("vacant", format!("4, NULL, NULL, NULL, {far}, x'{by}', {far}")),
    ] {
        let sql = format!(
            "INSERT INTO oncekey_records (key, fingerprint, attempt, fencing_token, owner, state, lease_until, on_abandoned,
             outcome, purge_at, barrier_owner, barrier_until)
             VALUES ('{}', x'{asked}', 1, {token}, x'{by}', {rest})",
            key(name).as_stored()
        );
        old.batch_execute(&sql).unwrap();
    }
    drop(old);

    let backend = SqliteBackend::open(&path).unwrap();
    let listed = backend.list(List { after: None, limit: 10 }).await.unwrap();
    assert_eq!(listed.len(), 4);
    assert!(listed.iter().all(|view| view.steps.is_none() && view.token.get() == token as u64));
    let replayed = Acquired::Completed { outcome: outcome(&key("done"), "17") };
    assert_eq!(backend.acquire(claim(&key("done"), Owner::random())).await, Ok(replayed));
    let held = backend.acquire(claim(&key("held"), Owner::random())).await;
    assert!(matches!(held, Ok(Acquired::Indeterminate { .. })), "{held:?}");
    let withdrawn = backend.acquire(claim(&key("vacant"), owner)).await;
    assert_eq!(withdrawn, Ok(Acquired::Withdrawn { owner }));
    let taken_over = backend.acquire(claim(&key("lapsed"), Owner::random())).await;
    assert!(matches!(taken_over, Ok(Acquired::Claimed { took_over: true, steps: None, .. })), "{taken_over:?}");
    // The claim that lived over the migration goes on with steps.
    let begun = backend.begin_step(operation_steps::begin(&key("claimed"), owner, "charge", 1)).await;
    let Ok(StepBegun::Begun { life, .. }) = begun else { panic!("{begun:?}") };
    assert_eq!(life.get(), token as u64);
    let found = backend.lookup(Lookup { key: key("claimed") }).await.unwrap().unwrap();
    assert_eq!(found.steps.unwrap().list.len(), 1);
    assert_eq!(backend.complete(completion(&key("claimed"), owner)).await, Ok(Completed::Stored));
}

#[test]
fn the_users_own_migrations_and_tables_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shop.db");
    let mut shop = connect(&path);
    let sql = "CREATE TABLE __diesel_schema_migrations (version TEXT PRIMARY KEY NOT NULL, run_on TEXT);
               INSERT INTO __diesel_schema_migrations VALUES ('29991231000000', 'now'); PRAGMA user_version = 17;";
    shop.batch_execute(sql).unwrap();
    SqliteBackend::open(&path).unwrap();
    let count = "SELECT count(*) FROM __diesel_schema_migrations";
    let count: i64 = diesel::dsl::sql::<diesel::sql_types::BigInt>(count).get_result(&mut shop).unwrap();
    assert_eq!(count, 1);
}

/// The file with its log, as somebody moves it who knows SQLite.
fn move_file(from: &Path, to: &Path) {
    for suffix in ["", "-wal", "-shm"] {
        let with = |path: &Path| format!("{}{suffix}", path.display());
        if Path::new(&with(from)).exists() {
            fs::rename(with(from), with(to)).unwrap();
        }
    }
}

/// Longer than a look at the path is taken for granted.
async fn until_looked() {
    actix_rt::time::sleep(Duration::from_millis(1_100)).await;
}

fn is_replaced<T: std::fmt::Debug>(answer: Result<T, StoreError>, reason: &str) -> bool {
    matches!(&answer, Err(StoreError::Replaced(found)) if found.contains(reason))
}

/// Another file stands where a process has opened one: it refuses every step, until its own file is back.
#[actix_rt::test]
async fn e27_a_file_that_was_replaced_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (path, aside) = (folder.path().join("keys.db"), folder.path().join("aside.db"));
    let old = SqliteBackend::open(&path).unwrap();
    let owner = Owner::random();
    assert!(is_claimed(&old, claim(&key("k"), owner)).await);
    assert!(old.doctor().is_empty());

    move_file(&path, &aside);
    until_looked().await;
    assert!(is_replaced(old.acquire(claim(&key("l"), Owner::random())).await, "not at"));
    assert!(is_replaced(old.lookup(Lookup { key: key("k") }).await, "not at"));
    // The next opening finds no file, and makes one: both would claim the same key.
    let new = SqliteBackend::open(&path).unwrap();
    assert!(is_claimed(&new, claim(&key("k"), Owner::random())).await);
    until_looked().await;
    let refused = old.acquire(claim(&key("m"), Owner::random())).await;
    assert!(is_replaced(refused.clone(), "another file stands at"), "{refused:?}");
    assert!(!refused.unwrap_err().is_unknown());
    assert!(is_replaced(old.complete(completion(&key("k"), owner)).await, "another file"));
    assert!(is_replaced(old.lookup(Lookup { key: key("k") }).await, "another file"));
    assert_eq!(old.doctor().len(), 1);
    assert!(is_claimed(&new, claim(&key("n"), Owner::random())).await);

    // Back in its place, it goes on.
    move_file(&path, &folder.path().join("new.db"));
    move_file(&aside, &path);
    until_looked().await;
    assert_eq!(old.complete(completion(&key("k"), owner)).await, Ok(Completed::Stored));
    assert!(is_replaced(new.acquire(claim(&key("o"), Owner::random())).await, "another file"));
}

/// The same by a link that leads elsewhere, and by a folder that was moved.
#[actix_rt::test]
async fn e27_a_link_that_leads_elsewhere_is_found_out() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("one")).unwrap();
    fs::create_dir(at("two")).unwrap();
    std::os::unix::fs::symlink(at("one"), at("current")).unwrap();
    let one = SqliteBackend::open(at("current").join("keys.db")).unwrap();
    assert!(is_claimed(&one, claim(&key("k"), Owner::random())).await);
    fs::remove_file(at("current")).unwrap();
    std::os::unix::fs::symlink(at("two"), at("current")).unwrap();
    let two = SqliteBackend::open(at("current").join("keys.db")).unwrap();
    assert!(is_claimed(&two, claim(&key("k"), Owner::random())).await);
    until_looked().await;
    assert!(is_replaced(one.acquire(claim(&key("l"), Owner::random())).await, "another file"));
    fs::rename(at("two"), at("three")).unwrap();
    until_looked().await;
    assert!(is_replaced(two.acquire(claim(&key("l"), Owner::random())).await, "not at"));
}

/// The tables are made by the application's own tools, from the DDL that the library gives.
#[actix_rt::test]
async fn e27_tables_that_are_not_to_be_made_are_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shop.db");
    let open = || SqliteBackend::builder(&path).migrate(false).open();
    let refused = open().unwrap_err();
    assert!(matches!(refused, SqliteOpenError::NotMigrated { .. }), "{refused}");
    connect(&path).batch_execute(&oncekey_backends::schema("sqlite").unwrap()).unwrap();
    let backend = open().unwrap();
    assert!(is_claimed(&backend, claim(&key("k"), Owner::random())).await);
    drop(backend);
    // It is what the migrations make.
    let other = folder.path().join("other.db");
    drop(SqliteBackend::open(&other).unwrap());
    let text = |path: &Path| {
        let made = "SELECT group_concat(sql, ';') FROM (SELECT sql FROM sqlite_master \
                    WHERE name NOT LIKE '%outbox%' AND name NOT LIKE 'sqlite%' ORDER BY name)";
        diesel::dsl::sql::<diesel::sql_types::Text>(made).get_result::<String>(&mut connect(path)).unwrap()
    };
    assert_eq!(text(&path), text(&other));
    connect(&path).batch_execute("DELETE FROM oncekey_migrations WHERE version > '20261125'").unwrap();
    assert!(matches!(open().unwrap_err(), SqliteOpenError::NotMigrated { .. }));
}

#[test]
fn what_is_no_database_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("letter.txt");
    fs::write(&path, "Dear Ada, ".repeat(1_000)).unwrap();
    let error = SqliteBackend::open(&path).unwrap_err();
    assert!(matches!(error, SqliteOpenError::NotADatabase { .. }), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "Dear Ada, ".repeat(1_000));

    let error = SqliteBackend::open(folder.path()).unwrap_err();
    assert!(matches!(error, SqliteOpenError::Unopenable { .. }), "{error}");
    let error = SqliteBackend::open(folder.path().join("none").join("keys.db")).unwrap_err();
    assert!(matches!(error, SqliteOpenError::Path { .. }), "{error}");
    assert!(matches!(SqliteBackend::open(":memory:").unwrap_err(), SqliteOpenError::InMemory));
}

#[test]
fn a_read_only_file_is_refused() {
    let (folder, backend) = fresh();
    drop(backend);
    // SQLite removes the log when the last connection is closed: then all is in the file.
    let (started, log) = (Instant::now(), folder.path().join("keys.db-wal"));
    while log.exists() {
        assert!(started.elapsed() < Duration::from_secs(5));
        thread::sleep(Duration::from_millis(1));
    }
    // A copy, since SQLite may still use a descriptor that it has of the file itself.
    let path = folder.path().join("copy.db");
    fs::copy(folder.path().join("keys.db"), &path).unwrap();
    let set = |flag: &str| Command::new("chattr").arg(flag).arg(&path).status().is_ok_and(|status| status.success());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
    // Root writes to it all the same, unless the file is immutable.
    let is_immutable = set("+i");
    if is_immutable || fs::OpenOptions::new().append(true).open(&path).is_err() {
        let error = SqliteBackend::open(&path).unwrap_err();
        assert!(matches!(error, SqliteOpenError::ReadOnly { .. }), "{error}");
    }
    if is_immutable {
        assert!(set("-i"));
    }
}

#[actix_rt::test]
async fn e13_a_corrupt_row_is_an_error_of_its_own_key_alone() {
    let (_folder, backend) = fresh();
    let damages = [
        "state = 9",
        "owner = x'00'",
        "fingerprint = x''",
        "attempt = 0",
        "lease_until = NULL",
        "on_abandoned = 7",
        "lease_until = -1",
        "state = 2",
        "state = 4",
        "fencing_token = -1",
        "barrier_owner = x'00', barrier_until = 1",
        "barrier_owner = owner",
    ];
    for (n, damage) in damages.iter().enumerate() {
        assert!(is_claimed(&backend, claim(&key(n), Owner::random())).await);
        let stored = key(n).as_stored().to_owned();
        let sql = format!("UPDATE oncekey_records SET {damage} WHERE key = '{stored}'");
        beside(&backend).batch_execute(&sql).unwrap();
    }
    let steps: Vec<_> = (0..damages.len() + 8)
        .map(|n| {
            let backend = backend.clone();
            actix_rt::spawn(async move { backend.acquire(claim(&key(n), Owner::random())).await })
        })
        .collect();
    for (n, step) in steps.into_iter().enumerate() {
        let answer = step.await.unwrap();
        match damages.get(n) {
            Some(damage) => assert!(matches!(answer, Err(StoreError::Corrupt(_))), "{damage}: {answer:?}"),
            None => assert!(matches!(answer, Ok(Acquired::Claimed { .. })), "{answer:?}"),
        }
    }
    assert!(matches!(backend.lookup(Lookup { key: key(0) }).await, Err(StoreError::Corrupt(_))));
    assert!(matches!(backend.list(List { after: None, limit: 10 }).await, Err(StoreError::Corrupt(_))));
    // An operator gets rid of each.
    for n in 0..damages.len() {
        assert_eq!(backend.remove(Remove { key: key(n) }).await, Ok(Removed::Removed));
        assert!(is_claimed(&backend, claim(&key(n), Owner::random())).await);
    }
}
