//! Connections that the caller supplies.

use std::sync::Arc;
use std::time::Instant;

use oncekey::backend::{Acquired, Backend as _};
use oncekey::{Engine, Key, OnAbandoned, Outcome};
use oncekey_backends::redis::{RedisBackend, RedisOpenError};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use redis::aio::ConnectionManager;
use redis::{Client, ClientTlsConfig, TlsCertificates};
use tests::process::PATIENCE;
use tests::server::{Redis, free_port};
use tokio::sync::Notify;

use super::{SERVER, acquire, capabilities, fresh_prefix};

fn client() -> Client {
    Client::open(SERVER.url()).unwrap()
}

oncekey::conformance_tests!(client, capabilities(), {
    let prefix = fresh_prefix();
    move || {
        let prefix = prefix.clone();
        async move { RedisBackend::from_client(client()).prefix(prefix).open().await.unwrap() }
    }
});

oncekey::conformance_tests!(manager, capabilities(), {
    let prefix = fresh_prefix();
    move || {
        let prefix = prefix.clone();
        async move {
            let manager = ConnectionManager::new(client()).await.unwrap();
            RedisBackend::from_connection_manager(manager).prefix(prefix).open().await.unwrap()
        }
    }
});

/// A client and a manager use their configured database, and one engine waits for the other's operation.
#[actix_rt::test]
async fn e27_a_callers_connections_keep_their_database() {
    let server = Redis::start();
    let url = server.url().replace("/0", "/3");
    let client = Client::open(url).unwrap();
    let manager = ConnectionManager::new(client.clone()).await.unwrap();
    let by_client = RedisBackend::from_client(client).open().await.unwrap();
    let by_manager = RedisBackend::from_connection_manager(manager).open().await.unwrap();
    let engines = [by_client, by_manager].map(|backend| Engine::builder(backend).start().unwrap());
    for (round, (holder, other)) in [(&engines[0], &engines[1]), (&engines[1], &engines[0])].into_iter().enumerate() {
        let key = Key::new("s", round).unwrap();
        let (began, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (begins, goes_on) = (Arc::clone(&began), Arc::clone(&go_on));
        let running = holder.run_local(key.clone(), b"", async move |_| {
            begins.notify_one();
            goes_on.notified().await;
            Ok::<u32, ()>(17)
        });
        let waiting = async {
            began.notified().await;
            let waits = other.with_wait(PATIENCE);
            let waited = waits.run(key.clone(), b"", |_| async { Ok::<u32, ()>(18) });
            let letting_go = async {
                let is_claimed = async || !server.cli(&["-n", "3", "keys", "oncekey:*"]).is_empty();
                tests::process::until("the claim in database 3", is_claimed).await;
                go_on.notify_one();
            };
            futures_util::future::join(waited, letting_go).await.0
        };
        let (ran, waited) = futures_util::future::join(running, waiting).await;
        assert_eq!((ran.unwrap(), waited.unwrap()), (Outcome::Ran(17), Outcome::Replayed(17)));
    }
    assert_eq!(server.cli(&["-n", "0", "dbsize"]), "0");
}

/// A manager reconnects by itself. The store continues after a restart, but not on a server that evicts.
#[actix_rt::test]
async fn e27_what_a_manager_leads_to_is_looked_at_again() {
    let mut server = Redis::start();
    let manager = ConnectionManager::new(Client::open(server.url()).unwrap()).await.unwrap();
    let backend = RedisBackend::from_connection_manager(manager.clone()).open().await.unwrap();
    server.kill();
    server.restart();
    let deadline = Instant::now() + PATIENCE;
    let mut tries = 0;
    while !matches!(
        backend.acquire(acquire(&format!("restart-{tries}"), OnAbandoned::Rerun)).await,
        Ok(Acquired::Claimed { .. })
    ) {
        assert!(Instant::now() < deadline, "it does not go on after the restart");
        tries += 1;
    }
    // The connection stays open, so only a check notices the change.
    assert_eq!(server.cli(&["config", "set", "maxmemory-policy", "allkeys-lru"]), "OK");
    let deadline = Instant::now() + PATIENCE;
    let mut number = 0;
    let refused = loop {
        number += 1;
        match backend.acquire(acquire(&format!("evicting-{number}"), OnAbandoned::Rerun)).await {
            Ok(_) => assert!(Instant::now() < deadline, "the policy was not noticed"),
            Err(refused) => break refused.to_string(),
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    assert!(refused.contains("allkeys-lru"), "{refused}");
    let opened = RedisBackend::from_connection_manager(manager).open().await;
    assert!(matches!(opened, Err(RedisOpenError::Eviction { .. })), "{opened:?}");
}

/// The server asks for client certificates. The backend uses the caller's TLS settings, and those of the caller's
/// client.
#[actix_rt::test]
async fn e27_a_callers_tls_settings_are_used() {
    let folder = tempfile::tempdir().unwrap();
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_key = KeyPair::generate().unwrap();
    let root = authority.self_signed(&authority_key).unwrap().pem();
    let issuer = Issuer::new(authority, authority_key);
    let pair = |name: &str| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        // A certificate with its authority's name would count as self-signed.
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(&key, &issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    };
    let (certificate, key) = pair("localhost");
    let files = [("ca.crt", &root), ("server.crt", &certificate), ("server.key", &key)].map(|(name, text)| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    });
    let port = free_port().to_string();
    let server = Redis::start_with(&[
        "--tls-port",
        &port,
        "--tls-ca-cert-file",
        &files[0],
        "--tls-cert-file",
        &files[1],
        "--tls-key-file",
        &files[2],
    ]);
    let (certificate, key) = pair("shop");
    let client_tls = Some(ClientTlsConfig { client_cert: certificate.into(), client_key: key.into() });
    let known = TlsCertificates { client_tls, root_cert: Some(root.clone().into()) };
    let anonymous = TlsCertificates { client_tls: None, root_cert: Some(root.into()) };

    let url = format!("rediss://localhost:{port}/0");
    let claims = async |backend: RedisBackend, name: &str| {
        let claimed = backend.acquire(acquire(name, OnAbandoned::Rerun)).await;
        assert!(matches!(claimed, Ok(Acquired::Claimed { .. })), "{claimed:?}");
    };
    claims(RedisBackend::builder(&url).tls(known.clone()).open().await.unwrap(), "settings").await;
    for refused in [
        RedisBackend::builder(&url).tls(anonymous).open().await,
        RedisBackend::builder(format!("{url}?sslrootcert={}", files[0])).open().await,
    ] {
        assert!(matches!(refused, Err(RedisOpenError::Unreachable(_))), "{refused:?}");
    }
    // TLS settings for a server that does not use TLS would protect nothing.
    let plain = RedisBackend::builder(server.url()).tls(known.clone()).open().await;
    assert!(matches!(plain, Err(RedisOpenError::Url(_))), "{plain:?}");

    let client = Client::build_with_tls(url.as_str(), known).unwrap();
    claims(RedisBackend::from_client(client.clone()).open().await.unwrap(), "client").await;
    let manager = ConnectionManager::new(client).await.unwrap();
    claims(RedisBackend::from_connection_manager(manager).open().await.unwrap(), "manager").await;
    assert_eq!(server.cli(&["dbsize"]), "3");
}
