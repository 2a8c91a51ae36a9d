//! What `open` checks, and the ways to a server.

use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use oncekey::backend::{Acquired, Backend as _, Complete, Completed, Lookup, StoreError};
use oncekey::record::SealedOutcome;
use oncekey::{Engine, Key, OnAbandoned, Outcome};
use oncekey_backends::redis::{RedisBackend, RedisOpenError};
use tests::process::PATIENCE;
use tests::server::{Redis, RedisCluster};

use super::withdrawals::Place;
use super::{SERVER, acquire, fresh_prefix, open};

#[actix_rt::test]
async fn a_server_that_evicts_is_refused_by_name() {
    let server = Redis::start_with(&["--maxmemory-policy", "allkeys-lru"]);
    let refused = RedisBackend::open(&server.url()).await.unwrap_err();
    assert!(matches!(&refused, RedisOpenError::Eviction { found, .. } if found == "allkeys-lru"), "{refused}");
    assert!(refused.to_string().contains("accept_eviction"), "{refused}");
    for policy in ["allkeys-lfu", "allkeys-random", "volatile-lru", "volatile-lfu", "volatile-random", "volatile-ttl"] {
        server.cli(&["config", "set", "maxmemory-policy", policy]);
        let refused = RedisBackend::open(&server.url()).await;
        assert!(matches!(&refused, Err(RedisOpenError::Eviction { found, .. }) if found == policy), "{refused:?}");
    }
    RedisBackend::builder(server.url()).accept_eviction().open().await.unwrap();
    RedisBackend::open(&format!("{}?accept=eviction,weak-persistence", server.url())).await.unwrap();
}

/// One evicting primary is refused, and so is one evicting replica, which may replace its primary. This holds even if
/// another node does not show its settings.
#[actix_rt::test]
async fn e27_one_evicting_node_of_a_cluster_is_enough_to_be_refused() {
    let cluster = RedisCluster::start();
    // A node names a replica to clients once the replica has received a write.
    let backend = RedisBackend::open(&cluster.url()).await.unwrap();
    for number in 0..100 {
        backend.acquire(acquire(&format!("{number}"), OnAbandoned::Rerun)).await.unwrap();
    }
    let names_all = |node: &Redis| {
        let slots = node.cli(&["cluster", "slots"]);
        cluster.nodes.iter().all(|other| slots.lines().any(|line| line == other.port().to_string()))
    };
    let deadline = Instant::now() + PATIENCE;
    while !cluster.nodes.iter().all(names_all) {
        assert!(Instant::now() < deadline, "the nodes don't name each other");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let replicas: Vec<bool> = (0..6).map(|node| cluster.is_replica(node)).collect();
    assert_eq!(replicas.iter().filter(|is_replica| **is_replica).count(), 3);
    let closed = |node: usize, config: &str| cluster.nodes[node].cli(&["acl", "setuser", "default", config]);
    for (node, evicting) in cluster.nodes.iter().enumerate() {
        evicting.cli(&["config", "set", "maxmemory-policy", "volatile-ttl"]);
        let refused = RedisBackend::open(&cluster.url()).await;
        // Any other node may be asked before this one.
        let others: Vec<usize> = (0..6).filter(|other| *other != node).collect();
        others.iter().for_each(|other| assert_eq!(closed(*other, "-config"), "OK"));
        let accepting = RedisBackend::builder(cluster.url()).accept_unread_settings().open().await;
        others.iter().for_each(|other| assert_eq!(closed(*other, "+config"), "OK"));
        evicting.cli(&["config", "set", "maxmemory-policy", "noeviction"]);
        let port = evicting.port().to_string();
        for refused in [refused, accepting] {
            let is_named = matches!(&refused, Err(RedisOpenError::Eviction { server, .. }) if server.contains(&port));
            assert!(is_named, "node {node}, a replica: {}: {refused:?}", replicas[node]);
        }
    }
}

/// A new connection may lead to another server than at the start, or to one with other settings.
async fn a_server_that_evicts_later_is_refused(place: Place) {
    let backend = RedisBackend::open(&place.url).await.unwrap();
    let accepting = RedisBackend::builder(&place.url).accept_eviction().open().await.unwrap();
    let policy = |policy: &str| {
        assert_eq!(place.server.cli(&["config", "set", "maxmemory-policy", policy]), "OK");
        place.server.cli(&["client", "kill", "type", "normal"]);
    };
    let ask = async |backend: &RedisBackend, name: &str| backend.acquire(acquire(name, OnAbandoned::Hold)).await;
    assert!(matches!(ask(&backend, "before").await, Ok(Acquired::Claimed { .. })));
    policy("allkeys-lru");
    // The connection of another arbiter is new, and so is the one after the old connection broke.
    for backend in [&backend, &backend.session()] {
        let refused = ask(backend, "k").await.unwrap_err();
        assert!(refused.to_string().contains("allkeys-lru"), "{refused}");
    }
    let claimed = ask(&accepting, "accepted").await;
    assert!(matches!(claimed, Ok(Acquired::Claimed { .. })), "{claimed:?}");
    policy("noeviction");
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = ask(&backend, "k").await {
        assert!(Instant::now() < deadline, "it does not go on: {error}");
    }
}

#[actix_rt::test]
async fn e27_a_server_that_evicts_later_is_refused() {
    a_server_that_evicts_later_is_refused(Place::single()).await;
}

#[actix_rt::test]
async fn e27_a_master_that_evicts_later_is_refused() {
    a_server_that_evicts_later_is_refused(Place::sentinel()).await;
}

/// A user who may use keys and scripts, but may not read settings.
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

/// A claim needs no script, but its end does. A user who may claim and not complete is refused before anything runs.
#[actix_rt::test]
async fn s13_a_user_who_may_not_end_a_claim_is_refused_at_open() {
    let server = Redis::start_with(&["--requirepass", "root"]);
    let user = |rules: &[&str]| {
        let set = ["-a", "root", "acl", "setuser", "shop", "reset", "on", ">shop", "&*", "+@all"];
        assert_eq!(server.cli(&[&set, rules].concat()), "OK");
        format!("redis://shop:shop@127.0.0.1:{}/0", server.port())
    };
    for rules in [
        &["~*", "-eval"][..],
        &["~*", "-evalsha"],
        &["~*", "-@scripting"],
        &["~*", "-getrange"],
        &["~*", "-pttl"],
        &["~*", "-pexpire"],
        &["~other:*"],
        &["%R~*"],
    ] {
        let refused = RedisBackend::open(&user(rules)).await;
        assert!(matches!(&refused, Err(RedisOpenError::Forbidden { .. })), "{rules:?}: {refused:?}");
        let told = refused.unwrap_err().to_string();
        assert!(told.contains("EVAL") && !told.contains("shop:shop"), "{told}");
    }
    // The guard does not need these rights.
    for rules in [
        &["~*", "-info"][..],
        &["~*", "-script"],
        &["~*", "-wait"],
        &["~*", "-publish", "-subscribe"],
        &["~*", "-scan", "-dbsize", "-keys"],
        &["~*", "-role", "-replicaof", "-client"],
        &["~oncekey:*"],
    ] {
        let backend = RedisBackend::open(&user(rules)).await;
        let engine = Engine::builder(backend.unwrap_or_else(|error| panic!("{rules:?}: {error}"))).start().unwrap();
        let key = Key::new("s", rules.concat().replace(['*', '~'], "")).unwrap();
        let run = async || engine.run(key.clone(), b"", |_| async { Ok::<u32, ()>(1) }).await;
        assert_eq!(run().await.unwrap(), Outcome::Ran(1), "{rules:?}");
        assert_eq!(run().await.unwrap(), Outcome::Replayed(1), "{rules:?}");
    }
    for command in ["EVAL", "EVALSHA", "GETRANGE"] {
        let server = Redis::start_with(&["--rename-command", command, "hidden"]);
        let refused = RedisBackend::open(&server.url()).await;
        assert!(matches!(refused, Err(RedisOpenError::Forbidden { .. })), "{command}: {refused:?}");
    }
    let server = Redis::start_with(&["--rename-command", "CONFIG", "hidden"]);
    let refused = RedisBackend::open(&server.url()).await;
    assert!(matches!(refused, Err(RedisOpenError::UnreadSettings { .. })), "{refused:?}");
    RedisBackend::builder(server.url()).accept_unread_settings().open().await.unwrap();
}

/// A replica refuses every claim until it is promoted. A replica that accepted writes would guard nothing.
#[actix_rt::test]
async fn s13_a_replica_takes_no_claim() {
    let (primary, replica) = (Redis::start(), Redis::start());
    let follow = |of: &[&str]| assert_eq!(replica.cli(&[&["replicaof"], of].concat()), "OK");
    let port = primary.port().to_string();
    follow(&["127.0.0.1", &port]);
    let backend = RedisBackend::open(&replica.url()).await.unwrap();
    let refused = backend.acquire(acquire("k", OnAbandoned::Hold)).await;
    assert!(matches!(refused, Err(StoreError::ReadOnly(_) | StoreError::Unavailable(_))), "{refused:?}");
    replica.cli(&["config", "set", "replica-read-only", "no"]);
    let refused = RedisBackend::open(&replica.url()).await;
    assert!(matches!(refused, Err(RedisOpenError::WritableReplica { .. })), "{refused:?}");
    replica.cli(&["config", "set", "replica-read-only", "yes"]);
    follow(&["no", "one"]);
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = backend.acquire(acquire("k", OnAbandoned::Hold)).await {
        assert!(Instant::now() < deadline, "it does not go on: {error}");
    }
}

/// A primary that has lost its replicas refuses to write. No claim begins, and the end of a claim is stored as soon as
/// the server accepts it.
#[actix_rt::test]
async fn s10_a_primary_without_its_replicas_takes_no_claim() {
    let server = Redis::start();
    let backend = RedisBackend::open(&server.url()).await.unwrap();
    let claim = acquire("before", OnAbandoned::Hold);
    assert!(matches!(backend.acquire(claim.clone()).await, Ok(Acquired::Claimed { .. })));
    server.cli(&["config", "set", "min-replicas-to-write", "1"]);
    RedisBackend::open(&server.url()).await.unwrap();
    let refused = backend.acquire(acquire("during", OnAbandoned::Hold)).await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    let (key, owner, outcome) = (claim.key.clone(), claim.owner, SealedOutcome::tombstone(&claim.key));
    let complete = Complete { key, owner, outcome, retention: Duration::from_secs(60) };
    let refused = backend.complete(complete.clone()).await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    server.cli(&["config", "set", "min-replicas-to-write", "0"]);
    assert_eq!(backend.complete(complete).await, Ok(Completed::Stored));
    assert!(matches!(backend.acquire(acquire("during", OnAbandoned::Hold)).await, Ok(Acquired::Claimed { .. })));
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

/// The connection is encrypted and verified with the named certificate. A server with an untrusted certificate is
/// refused.
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

/// A host that drops every SYN, like one behind a firewall: its backlog is full, and it accepts no connection.
struct DropsSyns {
    port: u16,
    _listener: TcpListener,
    _queued: Vec<TcpStream>,
}

impl DropsSyns {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut queued = Vec::new();
        while let Ok(connection) = TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
            queued.push(connection);
        }
        Self { port: address.port(), _listener: listener, _queued: queued }
    }
}

/// One host of the URL drops SYNs. It costs a part of the connect timeout, and none of the slots.
#[actix_rt::test]
async fn s09_a_host_that_drops_syns_keeps_nobody_from_the_others() {
    let (cluster, silent) = (RedisCluster::start(), DropsSyns::new());
    for before in [true, false] {
        let known = cluster.url();
        let (scheme, hosts) = known.split_once("://").unwrap();
        let silent = format!("127.0.0.1:{}", silent.port);
        let url = if before { format!("{scheme}://{silent},{hosts}") } else { format!("{scheme}://{hosts},{silent}") };
        let connect = Duration::from_secs(4);
        let builder = RedisBackend::builder(url).prefix(fresh_prefix()).connect_timeout(connect);
        let since = Instant::now();
        let backend = builder.open().await.unwrap();
        assert!(since.elapsed() < PATIENCE, "it was opened after {:?}", since.elapsed());
        // The keys cover every slot, so that each primary is used.
        for number in 0..100 {
            let claimed = backend.acquire(acquire(&format!("{number}"), OnAbandoned::Rerun)).await;
            assert!(matches!(claimed, Ok(Acquired::Claimed { .. })), "{claimed:?}");
        }
        println!("with a host that drops SYNs: {:?}", since.elapsed());
    }
}
