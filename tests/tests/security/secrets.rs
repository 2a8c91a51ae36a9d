//! What a reader of the store sees, and how secrets are changed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use diesel::prelude::*;
use diesel_async::{AsyncMysqlConnection, AsyncPgConnection};
use oncekey::at_rest::{Encryption, KeyHashing};
use oncekey::backend::{Backend, Resolution, Resolved, StateView};
use oncekey::record::SealedOutcome;
use oncekey::{
    Claim, CorruptOutcome, Engine, EngineBuilder, Error, Key, OnAbandoned, OnFailure, Outcome, RunError, StartError,
    Step, StepOptions,
};
use oncekey_backends::SqliteBackend;

use super::stores::{
    MARIADB, POSTGRES, Thief, bytes_of, encryption, fresh_mariadb, fresh_postgres, fresh_sqlite, fresh_table, hashing,
    holds, on_every_store,
};

const KEY: &str = "ada@example.org";
const OUTCOME: &str = "her card ends in 4242";

fn key() -> Key {
    Key::new("tenant-17", KEY).unwrap()
}

fn start<B: Backend>(backend: B, set_up: impl FnOnce(EngineBuilder<B>) -> EngineBuilder<B>) -> Engine {
    set_up(Engine::builder(backend)).start().unwrap()
}

async fn run(engine: &Engine, key: Key) -> Result<Outcome<String>, RunError<String>> {
    engine.run(key, &"what was asked", |_| async { Ok(OUTCOME.to_owned()) }).await
}

fn corrupt(given: Result<Outcome<String>, RunError<String>>) -> CorruptOutcome {
    match given {
        Err(RunError::Engine(Error::Corrupt(corrupt))) => corrupt,
        other => panic!("not refused as corrupt: {other:?}"),
    }
}

on_every_store! {
    hashed_and_encrypted_it_replays
    resolved_by_its_digest_it_replays_for_its_caller
    e26_steps_continue_and_show_no_name
}

/// Steps are found by their names, including old names, although the store has only digests of them.
async fn e26_steps_continue_and_show_no_name(backend: impl Backend) {
    let set_up = |builder: EngineBuilder<_>| builder.key_hashing(hashing()).encryption(encryption());
    let engine = start(backend, set_up).with_on_abandoned(OnAbandoned::Resume);
    let charges = Arc::new(AtomicUsize::new(0));
    for is_first in [true, false] {
        let charges = Arc::clone(&charges);
        let operation = async move |claim: Claim| {
            let options =
                if is_first { StepOptions::new("charge") } else { StepOptions::new("pay").formerly("charge") };
            let charge = async |step: Step| {
                charges.fetch_add(1, Ordering::Relaxed);
                Ok::<_, String>(format!("{OUTCOME}, {}", step.key()))
            };
            let charged = claim.step_with(options, charge).await.map_err(|error| error.to_string())?;
            if is_first { Err("not now".to_owned()) } else { Ok(charged) }
        };
        let ran = engine.run(key(), &"what was asked", operation).await;
        match ran {
            Err(RunError::Operation(error)) if is_first => assert_eq!(error, "not now"),
            Ok(Outcome::Ran(charged)) if !is_first => assert!(charged.starts_with(OUTCOME)),
            other => panic!("{other:?}"),
        }
        let steps = engine.lookup(&key()).await.unwrap().unwrap().steps.unwrap();
        assert!(steps.list.len() == 1 && !steps.list[0].name.as_str().contains("charge"), "{steps:?}");
    }
    assert_eq!(charges.load(Ordering::Relaxed), 1);
}

async fn hashed_and_encrypted_it_replays(backend: impl Backend) {
    let engine = start(backend, |builder| builder.key_hashing(hashing()).encryption(encryption()));
    assert_eq!(run(&engine, key()).await, Ok(Outcome::Ran(OUTCOME.into())));
    assert_eq!(run(&engine, key()).await, Ok(Outcome::Replayed(OUTCOME.into())));
    let asked_otherwise = engine.run(key(), &"something else", |_| async { Ok::<_, String>(OUTCOME.to_owned()) }).await;
    assert!(matches!(asked_otherwise, Err(RunError::Engine(Error::Mismatch))));

    let view = engine.lookup(&key()).await.unwrap().unwrap();
    let StateView::Completed { outcome, .. } = &view.state else { panic!("{view:?}") };
    assert_eq!((&view.key, outcome.value(&key())), (&key(), Ok(Some(OUTCOME.to_owned()))));
    // A list of the store shows digests, which the caller can still use as keys.
    let listed = engine.list(None, 10).await.unwrap().remove(0);
    assert!(listed.key.is_hashed() && listed.key.idempotency_key().starts_with(hashing().id()));
    let StateView::Completed { outcome, .. } = &listed.state else { panic!("{listed:?}") };
    assert_eq!(outcome.value(&listed.key), Ok(Some(OUTCOME.to_owned())));
    let looked_up = engine.lookup(&listed.key).await.unwrap().unwrap();
    let StateView::Completed { outcome: found, .. } = &looked_up.state else { panic!("{looked_up:?}") };
    assert_eq!((&looked_up.key, looked_up.attempt, found), (&listed.key, listed.attempt, outcome));
}

async fn resolved_by_its_digest_it_replays_for_its_caller(backend: impl Backend) {
    let engine = start(backend, |builder| builder.key_hashing(hashing()).encryption(encryption()));
    let careful = engine.with_on_failure(OnFailure::Hold);
    let failed = careful.run(key(), &"what was asked", |_| async { Err::<String, _>("unsure".to_owned()) }).await;
    assert!(matches!(failed, Err(RunError::Operation(_))));
    let listed = engine.list(None, 10).await.unwrap().remove(0);
    assert_eq!(listed.state, StateView::Indeterminate);
    let outcome = SealedOutcome::of_value(&listed.key, OUTCOME).unwrap();
    let with = Resolution::Complete { outcome, retention: std::time::Duration::from_secs(60) };
    assert_eq!(engine.resolve(&listed.key, Some(listed.attempt), with).await, Ok(Resolved::Resolved));
    assert_eq!(run(&engine, key()).await, Ok(Outcome::Replayed(OUTCOME.into())));
}

/// The text is not in a row, not in an index, and not in the log. The control shows that the search would find it.
#[actix_rt::test]
async fn the_store_never_sees_what_it_must_not() {
    let plain = fresh_sqlite().await;
    run(&start(plain.clone(), |builder| builder), key()).await.unwrap();
    let bytes = bytes_of(&plain);
    assert!([KEY, "tenant-17", OUTCOME].iter().all(|part| holds(&bytes, part)));
    let digest = start(plain.clone(), |builder| builder).lookup(&key()).await.unwrap().unwrap().fingerprint;
    assert!(bytes.windows(32).any(|window| window == digest.as_bytes()));

    let secret = fresh_sqlite().await;
    let engine = start(secret.clone(), |builder| builder.key_hashing(hashing()).encryption(encryption()));
    run(&engine, key()).await.unwrap();
    let order = |tx: &mut SqliteConnection, _: &oncekey::Claim| {
        diesel::sql_query("SELECT 1").execute(tx)?;
        Ok::<_, diesel::result::Error>(OUTCOME.to_owned())
    };
    let key = Key::new("tenant-17", "ada@example.org again").unwrap();
    assert_eq!(engine.run_in_transaction(key, &1, order).await.unwrap(), Outcome::Ran(OUTCOME.into()));
    let bytes = bytes_of(&secret);
    for part in [KEY, "tenant-17", OUTCOME, "4242"] {
        assert!(!holds(&bytes, part), "the store has {part:?}");
    }
    // The digest of the request is not there either, because it could be guessed.
    assert!(!bytes.windows(32).any(|window| window == digest.as_bytes()));
}

/// The same on the servers, in their transactions.
#[actix_rt::test]
async fn outcomes_of_transactions_on_servers_are_encrypted_too() {
    let protected = |builder: EngineBuilder<_>| builder.key_hashing(hashing()).encryption(encryption());
    let table = fresh_table();
    let engine = start(super::stores::postgres(&table).await, protected);
    let order = async |_: &mut AsyncPgConnection, _: &oncekey::Claim| Ok::<_, String>(OUTCOME.to_owned());
    assert_eq!(engine.run_in_async_transaction(key(), &1, order).await, Ok(Outcome::Ran(OUTCOME.into())));
    assert_eq!(engine.run_in_async_transaction(key(), &1, order).await, Ok(Outcome::Replayed(OUTCOME.into())));
    let stored = POSTGRES.sql(&format!("SELECT key || encode(outcome, 'escape') FROM {table}"));
    assert!(stored.starts_with("0::") && !stored.contains("4242") && !stored.contains("ada"), "{stored}");

    let protected = |builder: EngineBuilder<_>| builder.key_hashing(hashing()).encryption(encryption());
    let table = fresh_table();
    let engine = start(super::stores::mariadb(&table).await, protected);
    let order = async |_: &mut AsyncMysqlConnection, _: &oncekey::Claim| Ok::<_, String>(OUTCOME.to_owned());
    assert_eq!(engine.run_in_async_transaction(key(), &1, order).await, Ok(Outcome::Ran(OUTCOME.into())));
    assert_eq!(engine.run_in_async_transaction(key(), &1, order).await, Ok(Outcome::Replayed(OUTCOME.into())));
    let found = |part: &str| MARIADB.sql(&format!("SELECT sum(instr(outcome, '{part}') > 0) FROM shop.{table}"));
    assert_eq!((found("4242").as_str(), found("ada").as_str()), ("0", "0"));
    assert_eq!(MARIADB.sql(&format!("SELECT left(record_key, 3) FROM shop.{table}")), "0::");
    // This shows that both servers were really used.
    drop((fresh_postgres().await, fresh_mariadb().await));
}

#[actix_rt::test]
async fn secrets_of_the_encryption_are_changed_without_losing_an_outcome() {
    let backend = fresh_sqlite().await;
    let with = |encryption: Encryption| start(backend.clone(), |builder| builder.encryption(encryption));
    let numbered = |n: u32| Key::new("s", n).unwrap();
    run(&with(Encryption::new(1, &[1; 32])), numbered(1)).await.unwrap();

    // Every process knows the new secret before any process writes with it.
    let knows = with(Encryption::new(1, &[1; 32]).previous(2, &[2; 32]));
    let writes = with(Encryption::new(2, &[2; 32]).previous(1, &[1; 32]));
    run(&writes, numbered(2)).await.unwrap();
    for engine in [&knows, &writes] {
        for n in [1, 2] {
            assert_eq!(run(engine, numbered(n)).await, Ok(Outcome::Replayed(OUTCOME.into())));
        }
    }
    // The old secret is forgotten. Outcomes that it encrypted are errors, and nothing runs.
    let forgot = with(Encryption::new(2, &[2; 32]));
    assert_eq!(corrupt(run(&forgot, numbered(1)).await), CorruptOutcome::UnknownSecret(1));
    assert_eq!(run(&forgot, numbered(2)).await, Ok(Outcome::Replayed(OUTCOME.into())));
    // Another secret under a known number.
    let wrong = with(Encryption::new(2, &[3; 32]));
    assert_eq!(corrupt(run(&wrong, numbered(2)).await), CorruptOutcome::NotAuthentic);
    // No secret at all.
    let plain = start(backend.clone(), |builder| builder);
    assert_eq!(corrupt(run(&plain, numbered(2)).await), CorruptOutcome::Encrypted);
}

#[actix_rt::test]
async fn outcomes_from_before_the_encryption_are_taken_only_where_that_is_said() {
    let backend = fresh_sqlite().await;
    run(&start(backend.clone(), |builder| builder), key()).await.unwrap();
    let strict = start(backend.clone(), |builder| builder.encryption(encryption()));
    assert_eq!(corrupt(run(&strict, key()).await), CorruptOutcome::NotEncrypted);
    let lenient = start(backend, |builder| builder.encryption(encryption().accept_plain()));
    assert_eq!(run(&lenient, key()).await, Ok(Outcome::Replayed(OUTCOME.into())));
}

/// Another hashing secret is another key space, as the documentation says. The records of both can be told apart.
#[actix_rt::test]
async fn another_secret_of_the_hashing_is_another_key_space() {
    let backend = fresh_sqlite().await;
    let secrets = [[7; 32], [8; 32]].map(|secret| KeyHashing::hmac(secret).unwrap());
    for hashing in &secrets {
        let engine = start(backend.clone(), |builder| builder.key_hashing(hashing.clone()));
        assert!(!run(&engine, key()).await.unwrap().is_replay());
    }
    let stored = Thief::of(&backend).steal();
    let ids: Vec<_> = stored.iter().map(|(key, _)| key[3..11].to_owned()).collect();
    assert_eq!(ids, secrets.map(|hashing| hashing.id().to_owned()));
}

#[test]
fn a_number_names_one_secret() {
    let backend = || SqliteBackend::open(tempfile::tempdir().unwrap().keep().join("keys.db")).unwrap();
    for twice in [encryption().previous(1, &[2; 32]), encryption().previous(2, &[2; 32]).previous(2, &[2; 32])] {
        let started = Engine::builder(backend()).encryption(twice).start();
        assert_eq!(started.unwrap_err(), StartError::AmbiguousSecret);
    }
}

#[test]
fn no_secret_is_in_a_debug() {
    let secret = *b"0123456789abcdef0123456789abcdef";
    let hashing = KeyHashing::hmac(secret).unwrap();
    let encryption = Encryption::new(3, &secret).previous(2, &[b'9'; 32]);
    let builder = Engine::builder(oncekey_backends::MemoryBackend::new());
    let builder = builder.key_hashing(hashing.clone()).encryption(encryption.clone());
    let shown = format!("{hashing:?} {encryption:?} {builder:?} {:?}", builder_started());
    for secret in ["0123456789abcdef", "9999", "48, 49, 50", "57, 57"] {
        assert!(!shown.contains(secret), "{shown}");
    }
}

fn builder_started() -> Engine {
    let secret = *b"0123456789abcdef0123456789abcdef";
    let builder = Engine::builder(oncekey_backends::MemoryBackend::new());
    builder.key_hashing(KeyHashing::hmac(secret).unwrap()).encryption(Encryption::new(3, &secret)).start().unwrap()
}
