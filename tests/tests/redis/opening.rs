//! Honesty at start, and the ways to a server.

use std::process::Command;

use oncekey::backend::{Acquired, Backend as _, Lookup};
use oncekey::{Engine, Key, OnAbandoned, Outcome};
use oncekey_backends::redis::{RedisBackend, RedisOpenError};
use tests::server::Redis;

use super::{CLUSTER, SERVER, acquire, fresh_prefix, open};

#[actix_rt::test]
async fn a_server_that_evicts_is_refused_by_name() {
    let server = Redis::start_with(&["--maxmemory-policy", "allkeys-lru"]);
    let refused = RedisBackend::open(&server.url()).await.unwrap_err();
    assert!(matches!(&refused, RedisOpenError::Eviction { found, .. } if found == "allkeys-lru"), "{refused}");
    assert!(refused.to_string().contains("accept_eviction"), "{refused}");
    RedisBackend::builder(server.url()).accept_eviction().open().await.unwrap();
    RedisBackend::open(&format!("{}?accept=eviction,weak-persistence", server.url())).await.unwrap();
}

#[actix_rt::test]
async fn one_evicting_node_of_a_cluster_is_enough_to_be_refused() {
    let node = (0..6).find(|&node| !CLUSTER.is_replica(node)).unwrap();
    CLUSTER.nodes[node].cli(&["config", "set", "maxmemory-policy", "volatile-ttl"]);
    let refused = RedisBackend::open(&CLUSTER.url()).await;
    CLUSTER.nodes[node].cli(&["config", "set", "maxmemory-policy", "noeviction"]);
    let port = CLUSTER.nodes[node].port().to_string();
    assert!(matches!(&refused, Err(RedisOpenError::Eviction { server, .. }) if server.contains(&port)), "{refused:?}");
}

/// A user who may use keys and scripts, and not look at settings.
#[actix_rt::test]
async fn settings_that_are_not_shown_are_asked_for() {
    let server = Redis::start_with(&["--requirepass", "root"]);
    let set = ["-a", "root", "acl", "setuser", "shop", "on", ">shop-secret", "~*", "&*", "+@all", "-config"];
    assert_eq!(server.cli(&set), "OK");
    let url = format!("redis://shop:shop-secret@127.0.0.1:{}/0", server.port());
    let refused = RedisBackend::open(&url).await.unwrap_err();
    assert!(matches!(refused, RedisOpenError::UnreadSettings { .. }), "{refused}");
    let told = refused.to_string();
    assert!(told.contains("accept_unread_settings") && told.contains("NOPERM") && !told.contains("secret"), "{told}");
    let backend = RedisBackend::open(&format!("{url}?accept=unread-settings")).await.unwrap();
    let claimed = backend.acquire(acquire("k", OnAbandoned::Hold)).await;
    assert!(matches!(claimed, Ok(Acquired::Claimed { .. })), "{claimed:?}");
    assert!(!format!("{backend:?}").contains("secret"));
}

#[actix_rt::test]
async fn a_wrong_password_and_a_missing_server_are_told_without_the_password() {
    let server = Redis::start_with(&["--requirepass", "root"]);
    for url in [
        format!("redis://:very-secret@127.0.0.1:{}/0", server.port()),
        "redis://:very-secret@127.0.0.1:1/0".to_owned(),
        "redis+cluster://:very-secret@127.0.0.1:1".to_owned(),
        "redis+sentinel://:very-secret@127.0.0.1:1/main".to_owned(),
    ] {
        let refused = RedisBackend::open(&url).await.unwrap_err();
        assert!(matches!(refused, RedisOpenError::Unreachable(_)), "{refused}");
        assert!(!refused.to_string().contains("secret") && !refused.to_string().contains('\n'), "{refused}");
    }
}

#[actix_rt::test]
async fn databases_prefixes_and_sockets_are_ways_to_records_of_their_own() {
    let (one, other) = (fresh_prefix(), fresh_prefix());
    let by_socket = open(&SERVER.socket_url(), &one).await;
    let claim = acquire("k", OnAbandoned::Hold);
    assert!(matches!(by_socket.acquire(claim.clone()).await, Ok(Acquired::Claimed { .. })));
    let look = async |url: &str, prefix: &str| {
        open(url, prefix).await.lookup(Lookup { key: claim.key.clone() }).await.unwrap().is_some()
    };
    assert!(look(&SERVER.url(), &one).await);
    assert!(!look(&SERVER.url(), &other).await);
    assert!(!look(&SERVER.url().replace("/0", "/3"), &one).await);
}

/// Encrypted, and verified by the certificate that is named; a server whose certificate nobody vouches for is refused.
#[actix_rt::test]
async fn tls_is_verified() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    let (certificate, key) = (file("cert.pem"), file("key.pem"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args([
            "-subj",
            "/CN=oncekey",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-addext",
            "basicConstraints=CA:FALSE",
        ])
        .args(["-keyout", &key, "-out", &certificate])
        .output()
        .expect("`apt-get install openssl`");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let port = tests::server::free_port().to_string();
    let server = Redis::start_with(&[
        "--tls-port",
        &port,
        "--tls-cert-file",
        &certificate,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &certificate,
        "--tls-auth-clients",
        "no",
    ]);
    let url = format!("rediss://127.0.0.1:{port}/0");
    let refused = RedisBackend::open(&url).await.unwrap_err();
    assert!(matches!(refused, RedisOpenError::Unreachable(_)), "{refused}");
    let backend = RedisBackend::open(&format!("{url}?sslrootcert={certificate}")).await.unwrap();
    let engine = Engine::builder(backend).start().unwrap();
    let ran = engine.run(Key::new("s", "k").unwrap(), b"", |_| async { Ok::<u32, ()>(1) }).await;
    assert_eq!(ran.unwrap(), Outcome::Ran(1));
    drop(server);
}
