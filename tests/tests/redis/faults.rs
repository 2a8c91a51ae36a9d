//! The server is paused, silent behind a proxy, out of memory, restarted and emptied, and its connections are cut.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use oncekey::backend::{
    Acquire, Acquired, Backend as _, Complete, Completed, Held, Hold, Lookup, Release, Released, Remove, Removed,
    Renew, Renewed, Resolution, Resolve, Resolved, StateView, StoreError, Withdraw, Withdrawn,
};
use oncekey::record::SealedOutcome;
use oncekey::{Engine, Error, Fingerprint, Key, OnAbandoned, OnStoreFailure, Outcome, RunError};
use oncekey_backends::redis::RedisBackend;
use tests::process::PATIENCE;
use tests::proxy::Proxy;
use tests::server::{Redis, RedisCluster};

use super::withdrawals::Place;
use super::{CLUSTER, acquire, fresh_prefix, open};

const LIMIT: Duration = Duration::from_millis(400);

/// Opens a backend with short timeouts.
async fn hurried(url: &str) -> RedisBackend {
    RedisBackend::builder(url).connect_timeout(LIMIT).response_timeout(LIMIT).open().await.unwrap()
}

fn key(text: impl std::fmt::Display) -> Key {
    Key::new("s", text).unwrap()
}

type Ran = Result<Outcome<u32>, RunError<()>>;

/// Runs an operation that counts its executions.
async fn run(engine: &Engine, key: Key, executions: &Arc<AtomicUsize>) -> Ran {
    let executions = Arc::clone(executions);
    engine
        .run(key, b"asked", move |_| async move {
            executions.fetch_add(1, Ordering::SeqCst);
            Ok(17)
        })
        .await
}

fn is_store_failure(ran: &Ran) -> bool {
    matches!(ran, Err(RunError::Engine(Error::Store(_))))
}

/// Retries until every key has run. Nothing intervenes, and no key is stuck or indeterminate.
async fn until_all_run(engine: &Engine, keys: &[Key], executions: &Arc<AtomicUsize>) {
    let deadline = Instant::now() + PATIENCE;
    for key in keys {
        loop {
            match run(engine, key.clone(), executions).await {
                Ok(_) => break,
                // A claim whose answer was lost is being withdrawn.
                Err(RunError::Engine(Error::Store(_) | Error::InProgress { .. })) => {}
                Err(other) => panic!("{key} is stuck: {other:?}"),
            }
            assert!(Instant::now() < deadline, "{key} is stuck");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    assert_eq!(executions.load(Ordering::SeqCst), keys.len(), "executions of {} keys", keys.len());
}

/// SIGSTOP: calls meet their deadline, nothing runs, and when the server continues, no key is left claimed.
#[actix_rt::test]
async fn e11_a_paused_server_leaves_no_key_stuck() {
    let server = Redis::start();
    let engine = Engine::builder(hurried(&server.url()).await).start().unwrap();
    let executions = Arc::new(AtomicUsize::new(0));
    run(&engine, key("before"), &executions).await.unwrap();
    server.pause();
    let keys: Vec<Key> = (0..50).map(key).collect();
    let asked = Instant::now();
    let ran = join_all(keys.iter().map(|key| run(&engine, key.clone(), &executions))).await;
    assert!(ran.iter().all(is_store_failure), "{ran:?}");
    assert!(asked.elapsed() < Duration::from_secs(5), "they were told after {:?}", asked.elapsed());
    assert_eq!(executions.load(Ordering::SeqCst), 1, "something ran unguarded");
    server.resume();
    until_all_run(&engine, &[vec![key("before")], keys].concat(), &executions).await;
}

/// A peer swallows everything. Its connection is dropped, and the next one works. Otherwise every call would time out,
/// because the old connection stays silent forever.
#[actix_rt::test]
async fn e11_a_black_hole_is_left_behind() {
    let server = Redis::start();
    let proxy = Proxy::before(server.port());
    let backend = hurried(&format!("redis://127.0.0.1:{}/0", proxy.port())).await;
    let engine = Engine::builder(backend).start().unwrap();
    let executions = Arc::new(AtomicUsize::new(0));
    run(&engine, key("before"), &executions).await.unwrap();
    proxy.swallow();
    let keys: Vec<Key> = (0..20).map(key).collect();
    let asked = Instant::now();
    let ran = join_all(keys.iter().map(|key| run(&engine, key.clone(), &executions))).await;
    assert!(ran.iter().all(is_store_failure), "{ran:?}");
    assert!(asked.elapsed() < Duration::from_secs(5), "they were told after {:?}", asked.elapsed());
    assert!(is_store_failure(&run(&engine, key("while"), &executions).await));
    assert!(proxy.swallowed() >= 2, "the old connection and the new one fell silent");
    assert_eq!(executions.load(Ordering::SeqCst), 1, "something ran unguarded");
    proxy.heal();
    until_all_run(&engine, &[vec![key("before"), key("while")], keys].concat(), &executions).await;
}

/// The engine's deadline may be shorter than the backend's own. A dropped call also drops its silent connection.
#[actix_rt::test]
async fn e11_a_dropped_call_leaves_a_silent_connection_behind() {
    let server = Redis::start();
    let proxy = Proxy::before(server.port());
    let url = format!("redis://127.0.0.1:{}/0", proxy.port());
    let backend = RedisBackend::builder(url).response_timeout(PATIENCE).open().await.unwrap();
    let engine = Engine::builder(backend).store_deadline(LIMIT).start().unwrap();
    let executions = Arc::new(AtomicUsize::new(0));
    run(&engine, key("before"), &executions).await.unwrap();
    proxy.swallow();
    assert!(is_store_failure(&run(&engine, key(1), &executions).await));
    proxy.heal();
    until_all_run(&engine, &[key("before"), key(1)], &executions).await;
}

/// Answers are cut off on their way. The same owner repeats the step and learns its result, and no caller notices. The
/// connections of the operation's begin and end are cut in turn.
#[actix_rt::test]
async fn e12_answers_that_are_cut_off_are_found_again() {
    let server = Redis::start();
    let proxy = Proxy::before(server.port());
    let engine = Engine::builder(open(&format!("redis://127.0.0.1:{}/0", proxy.port()), "cut:").await).start().unwrap();
    let executions = Arc::new(AtomicUsize::new(0));
    run(&engine, key("before"), &executions).await.unwrap();
    for number in 0..20 {
        let executions = Arc::clone(&executions);
        if number % 2 == 0 {
            proxy.cut_answers(1);
        }
        let cutter = proxy.clone();
        let ran: Ran = engine
            .run_local(key(number), b"asked", move |_| {
                executions.fetch_add(1, Ordering::SeqCst);
                if number % 2 == 1 {
                    cutter.cut_answers(1);
                }
                async { Ok(17) }
            })
            .await;
        assert_eq!(ran.unwrap(), Outcome::Ran(17), "{number}");
        assert_eq!(proxy.cuts_left(), 0, "{number}: nothing was cut");
        assert_eq!(run(&engine, key(number), &Arc::default()).await.unwrap(), Outcome::Replayed(17));
    }
    assert_eq!(executions.load(Ordering::SeqCst), 21);
}

/// A step was sent, and cannot be sent again. The server is unavailable by now, but it may have executed the step.
#[actix_rt::test]
async fn e19_a_step_whose_answer_was_lost_stays_unknown_when_the_server_is_away() {
    let server = Redis::start();
    let beside = open(&server.url(), "lost:").await;
    let proxy = Proxy::before(server.port());
    for step in ["acquire", "renew", "complete", "release", "withdraw", "hold", "resolve", "remove"] {
        let claim = acquire(step, OnAbandoned::Hold);
        let (key, owner, lease) = (claim.key.clone(), claim.owner, Duration::from_secs(60));
        if step != "acquire" {
            beside.acquire(claim.clone()).await.unwrap();
        }
        if step == "resolve" {
            beside.hold(Hold { key: key.clone(), owner }).await.unwrap();
        }
        let backend = open(&format!("redis://127.0.0.1:{}/0", proxy.port()), "lost:").await;
        proxy.refuse();
        proxy.cut_answers(1);
        let error = match step {
            "acquire" => backend.acquire(claim.clone()).await.map(drop),
            "renew" => backend.renew(Renew { key: key.clone(), owner, lease }).await.map(drop),
            "complete" => {
                let outcome = SealedOutcome::tombstone(&key);
                backend.complete(Complete { key: key.clone(), owner, outcome, retention: lease }).await.map(drop)
            }
            "release" => backend.release(Release { key: key.clone(), owner }).await.map(drop),
            "withdraw" => backend.withdraw(Withdraw { key: key.clone(), owner }).await.map(drop),
            "hold" => backend.hold(Hold { key: key.clone(), owner }).await.map(drop),
            "resolve" => {
                let with = Resolution::Release;
                backend.resolve(Resolve { key: key.clone(), attempt: None, owner: None, with }).await.map(drop)
            }
            _ => backend.remove(Remove { key: key.clone() }).await.map(drop),
        };
        let error = error.unwrap_err();
        assert_eq!(proxy.cuts_left(), 0);
        // These two read first, and the answer to that read was lost.
        let only_looked = matches!(step, "resolve" | "remove");
        assert_eq!(error.is_unknown(), !only_looked, "{step}: {error:?}");
        proxy.heal();
        if step == "acquire" {
            // It was executed, and is withdrawn.
            assert!(beside.lookup(Lookup { key: key.clone() }).await.unwrap().is_some());
            assert_eq!(beside.withdraw(Withdraw { key: key.clone(), owner }).await, Ok(Withdrawn));
            assert_eq!(beside.lookup(Lookup { key }).await, Ok(None));
        }
    }
}

/// If no byte left, nothing was executed, and the answer says so.
#[actix_rt::test]
async fn e19_a_step_that_was_never_sent_is_refused() {
    let server = Redis::start();
    let proxy = Proxy::before(server.port());
    let backend = hurried(&format!("redis://127.0.0.1:{}/0", proxy.port())).await;
    proxy.refuse();
    // Another arbiter's handle has no connection yet.
    let unsent = backend.session().acquire(acquire("k", OnAbandoned::Hold)).await;
    assert!(matches!(unsent, Err(StoreError::Unavailable(_))), "{unsent:?}");
    // A server that stops answering may have executed the step.
    proxy.heal();
    proxy.swallow();
    let silent = backend.acquire(acquire("k", OnAbandoned::Hold)).await;
    assert!(silent.as_ref().is_err_and(StoreError::is_unknown), "{silent:?}");
}

/// A server out of memory accepts no claim, and evicts nothing for one. It accepts the end of a claim: outcomes are
/// stored while it is full, and replayed.
#[actix_rt::test]
async fn e12_out_of_memory_is_full_and_a_completion_is_taken() {
    let server = Redis::start();
    let engine = Engine::builder(open(&server.url(), "full:").await).lease(Duration::from_secs(1)).start().unwrap();
    let executions = Arc::new(AtomicUsize::new(0));
    let (full, is_full) = tokio::sync::oneshot::channel();
    let (finish, finishing) = tokio::sync::oneshot::channel();
    let running = {
        let (engine, server) = (engine.clone(), server.port());
        actix_rt::spawn(async move {
            let work = move |_| async move {
                set_memory(server, "1").await;
                full.send(()).unwrap();
                finishing.await.unwrap();
                Ok::<u32, ()>(17)
            };
            engine.run(key("held"), b"asked", work).await
        })
    };
    is_full.await.unwrap();
    let refused = run(&engine, key("refused"), &executions).await;
    assert!(matches!(refused, Err(RunError::Engine(Error::Store(StoreError::Full(_))))), "{refused:?}");
    assert_eq!(executions.load(Ordering::SeqCst), 0, "it ran unguarded");
    // This is longer than the lease, so the claim is renewed.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let held = engine.lookup(&key("held")).await.unwrap().unwrap();
    assert!(matches!(held.state, StateView::InProgress { lease_left } if !lease_left.is_zero()), "{held:?}");
    finish.send(()).unwrap();
    let ended = tokio::time::timeout(PATIENCE, running).await.expect("the completion waits for memory");
    assert_eq!(ended.unwrap().unwrap(), Outcome::Ran(17));
    // The server is still full. A call that would rather run than fail still replays, and runs nothing.
    let careless = engine.with_on_store_failure(OnStoreFailure::Run);
    assert_eq!(run(&careless, key("held"), &executions).await.unwrap(), Outcome::Replayed(17));
    assert_eq!(executions.load(Ordering::SeqCst), 0, "it ran again");
    set_memory(server.port(), "0").await;
    until_all_run(&engine, &[key("refused")], &executions).await;
}

/// Checks every step that ends a claim on a server without memory, and what an acquire returns there.
async fn a_full_server_takes_every_end(place: &Place) {
    let backend = RedisBackend::builder(&place.url).open().await.unwrap();
    let lease = Duration::from_secs(60);
    let claim = async |name: &str, policy: OnAbandoned, lease: Duration| {
        let message = Acquire { lease, ..acquire(name, policy) };
        let claimed = backend.acquire(message.clone()).await;
        assert!(matches!(claimed, Ok(Acquired::Claimed { .. })), "{name}: {claimed:?}");
        message
    };
    let complete = |message: &Acquire| {
        let Acquire { key, owner, .. } = message.clone();
        let outcome = SealedOutcome::of_value(&key, &17).unwrap();
        backend.complete(Complete { key, owner, outcome, retention: lease })
    };
    let mut claims = Vec::new();
    for name in
        ["complete", "renew", "hold", "renew held", "release", "withdraw", "beside", "resolve", "free", "remove"]
    {
        claims.push(claim(name, OnAbandoned::Hold, lease).await);
    }
    let claims: [Acquire; 10] = claims.try_into().unwrap();
    let [to_complete, to_renew, to_hold, renewed_when_held, to_release, to_withdraw, beside, resolved, freed, removed] =
        &claims;
    for held in [renewed_when_held, resolved, freed] {
        let Acquire { key, owner, .. } = held.clone();
        assert_eq!(backend.hold(Hold { key, owner }).await, Ok(Held::Held));
    }
    let vacant = claim("vacant", OnAbandoned::Hold, lease).await;
    backend.release(Release { key: vacant.key.clone(), owner: vacant.owner }).await.unwrap();
    claim("lapsed", OnAbandoned::Rerun, Duration::from_millis(1)).await;
    claim("abandoned", OnAbandoned::Hold, Duration::from_millis(1)).await;
    tokio::time::sleep(Duration::from_millis(5)).await;

    // The server forgets its scripts, so each one is sent whole. A full server must accept that as well.
    place.server.cli(&["script", "flush"]);
    set_memory(place.server.port(), "1").await;
    assert_eq!(complete(to_complete).await, Ok(Completed::Stored));
    for message in [to_renew, renewed_when_held] {
        let Acquire { key, owner, .. } = message.clone();
        assert_eq!(backend.renew(Renew { key, owner, lease }).await, Ok(Renewed::Renewed));
    }
    assert_eq!(backend.hold(Hold { key: to_hold.key.clone(), owner: to_hold.owner }).await, Ok(Held::Held));
    let release = Release { key: to_release.key.clone(), owner: to_release.owner };
    assert_eq!(backend.release(release).await, Ok(Released::Released));
    let absent = acquire("absent", OnAbandoned::Hold);
    for (message, owner) in [(to_withdraw, to_withdraw.owner), (beside, absent.owner), (&absent, absent.owner)] {
        assert_eq!(backend.withdraw(Withdraw { key: message.key.clone(), owner }).await, Ok(Withdrawn));
    }
    for (message, with) in [
        (
            resolved,
            Resolution::Complete { outcome: SealedOutcome::of_value(&resolved.key, &17).unwrap(), retention: lease },
        ),
        (freed, Resolution::Release),
    ] {
        let resolve = Resolve { key: message.key.clone(), attempt: None, owner: None, with };
        assert_eq!(backend.resolve(resolve).await, Ok(Resolved::Resolved));
    }
    assert_eq!(backend.remove(Remove { key: removed.key.clone() }).await, Ok(Removed::Removed));

    // Existing records are reported, and only what needs memory is refused.
    let ask = |name: &str| backend.acquire(acquire(name, OnAbandoned::Hold));
    for name in ["complete", "resolve"] {
        let answer = ask(name).await;
        assert!(matches!(answer, Ok(Acquired::Completed { .. })), "{name}: {answer:?}");
    }
    for name in ["renew", "renew held", "beside"] {
        let answer = ask(name).await;
        assert!(matches!(answer, Ok(Acquired::InProgress { .. })), "{name}: {answer:?}");
    }
    for name in ["hold", "abandoned"] {
        let answer = ask(name).await;
        assert!(matches!(answer, Ok(Acquired::Indeterminate { .. })), "{name}: {answer:?}");
    }
    let otherwise = Acquire { fingerprint: Fingerprint::of(b"otherwise"), ..acquire("complete", OnAbandoned::Hold) };
    assert_eq!(backend.acquire(otherwise).await, Ok(Acquired::Mismatch));
    for name in ["release", "withdraw", "absent", "free", "remove", "vacant", "lapsed", "fresh"] {
        let answer = ask(name).await;
        assert!(matches!(answer, Err(StoreError::Full(_))), "{name}: {answer:?}");
    }
    set_memory(place.server.port(), "0").await;
    for name in ["release", "withdraw", "absent", "free", "remove", "vacant", "lapsed", "fresh"] {
        let answer = ask(name).await;
        assert!(matches!(answer, Ok(Acquired::Claimed { .. })), "{name}: {answer:?}");
    }
}

#[actix_rt::test]
async fn e12_a_full_server_takes_every_end_of_a_claim() {
    a_full_server_takes_every_end(&Place::single()).await;
}

#[actix_rt::test]
async fn e12_a_full_master_takes_every_end_of_a_claim() {
    a_full_server_takes_every_end(&Place::sentinel()).await;
}

#[actix_rt::test]
async fn e12_a_full_node_of_a_cluster_takes_every_end_of_a_claim() {
    a_full_server_takes_every_end(&Place::cluster()).await;
}

/// A server that cannot save refuses writes. It is the same server on every connection, so none is dropped for that.
#[actix_rt::test]
async fn e11_a_server_that_can_not_save_keeps_its_connections() {
    let server = Redis::start_with(&["--save", "3600 1"]);
    let backend = open(&server.url(), "saved:").await;
    backend.acquire(acquire("before", OnAbandoned::Hold)).await.unwrap();
    // A snapshot cannot replace a folder.
    std::fs::create_dir(server.folder().join("dump.rdb")).unwrap();
    server.cli(&["bgsave"]);
    let deadline = Instant::now() + PATIENCE;
    while !server.cli(&["info", "persistence"]).contains("rdb_last_bgsave_status:err") {
        assert!(Instant::now() < deadline, "the snapshot did not fail");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Each command of the server's client is a connection too.
    let connections = || -> usize {
        let stats = server.cli(&["info", "stats"]);
        let line = stats.lines().find_map(|line| line.strip_prefix("total_connections_received:"));
        line.unwrap().parse().unwrap()
    };
    let before = connections();
    for number in 0..5 {
        let refused = backend.acquire(acquire(&format!("{number}"), OnAbandoned::Hold)).await;
        assert!(matches!(refused, Err(StoreError::ReadOnly(_))), "{refused:?}");
    }
    assert_eq!(connections(), before + 1);
}

/// Waiting callers poll while the listener connects to a host that does not answer.
#[actix_rt::test]
async fn e08_a_silent_host_holds_up_no_waiter() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let node = RedisCluster::node_behind(|port| port);
    let url = format!("redis+cluster://127.0.0.1:{},127.0.0.1:{}", silent.local_addr().unwrap().port(), node.port());
    let began = Instant::now();
    let (holder, backend) = (open(&url, "silent:").await, open(&url, "silent:").await);
    assert!(began.elapsed() < Duration::from_secs(4), "the silent host held the opening up: {:?}", began.elapsed());
    let engine = Engine::builder(backend).start().unwrap().with_wait(PATIENCE);
    let claims: Vec<_> = (0..5).map(|number| acquire(&format!("{number}"), OnAbandoned::Hold)).collect();
    for claim in &claims {
        holder.acquire(claim.clone()).await.unwrap();
    }
    let waiters: Vec<_> = claims
        .iter()
        .map(|claim| {
            let (engine, key) = (engine.clone(), claim.key.clone());
            actix_rt::spawn(
                async move { engine.run(key, Fingerprint::of(b"asked"), |_| async { Ok::<u32, ()>(0) }).await },
            )
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let completed = Instant::now();
    for claim in claims {
        let outcome = SealedOutcome::of_value(&claim.key, &17).unwrap();
        let complete = Complete { key: claim.key, owner: claim.owner, outcome, retention: Duration::from_secs(60) };
        assert_eq!(holder.complete(complete).await, Ok(Completed::Stored));
    }
    for waiter in waiters {
        assert_eq!(waiter.await.unwrap().unwrap(), Outcome::Replayed(17));
    }
    assert!(completed.elapsed() < Duration::from_secs(1), "after {:?}", completed.elapsed());
}

async fn set_memory(port: u16, limit: &str) {
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}/")).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(limit).exec_async(&mut connection).await.unwrap();
}

/// The server is killed and restarted with its data: a claim and its outcome are there, and scripts are sent again.
#[actix_rt::test]
async fn e11_after_the_servers_restart_it_goes_on() {
    let mut server = Redis::start();
    let engine = Engine::builder(hurried(&server.url()).await).start().unwrap();
    let executions = Arc::new(AtomicUsize::new(0));
    run(&engine, key("before"), &executions).await.unwrap();
    server.kill();
    assert!(is_store_failure(&run(&engine, key("while"), &executions).await));
    server.restart();
    assert_eq!(run(&engine, key("before"), &executions).await.unwrap(), Outcome::Replayed(17));
    assert_eq!(run(&engine, key("after"), &executions).await.unwrap(), Outcome::Ran(17));
    assert_eq!(executions.load(Ordering::SeqCst), 2);
}

/// The server is restarted without its data. Its records are gone, the holder of a claim learns that it is lost, and
/// everything else continues.
#[actix_rt::test]
async fn e11_an_emptied_server_is_told_of_and_goes_on() {
    let mut server = Redis::start();
    let backend = hurried(&server.url()).await;
    let engine = Engine::builder(backend.clone()).start().unwrap();
    let executions = Arc::new(AtomicUsize::new(0));
    run(&engine, key("before"), &executions).await.unwrap();
    let claim = acquire("held", OnAbandoned::Hold);
    backend.acquire(claim.clone()).await.unwrap();
    server.kill();
    server.restart_empty();
    let outcome = SealedOutcome::tombstone(&claim.key);
    let complete = Complete { key: claim.key, owner: claim.owner, outcome, retention: Duration::from_secs(60) };
    assert_eq!(backend.complete(complete).await, Ok(Completed::Lost));
    // As the documentation says, what Redis forgets runs again.
    assert_eq!(run(&engine, key("before"), &executions).await.unwrap(), Outcome::Ran(17));
    assert_eq!(run(&engine, key("after"), &executions).await.unwrap(), Outcome::Ran(17));
}

/// Cuts connections under load, again and again, on one server and on a cluster. Every key runs once.
async fn cut_under_load(url: &str, servers: &[&Redis]) {
    let engine = Engine::builder(open(url, &fresh_prefix()).await).start().unwrap();
    let executions = Arc::new(AtomicUsize::new(0));
    let keys: Vec<Key> = (0..1_500).map(key).collect();
    let mut cuts = 0;
    for keys in keys.chunks(50) {
        let running = join_all(keys.iter().map(|key| run(&engine, key.clone(), &executions)));
        let cutting = async {
            for server in servers {
                tokio::task::yield_now().await;
                cuts += server.cli(&["client", "kill", "type", "normal"]).parse::<usize>().unwrap();
            }
        };
        futures_util::future::join(running, cutting).await;
    }
    assert!(cuts >= 20, "only {cuts} connections were cut");
    until_all_run(&engine, &keys, &executions).await;
}

#[actix_rt::test]
async fn e12_cut_connections_run_nothing_twice() {
    let server = Redis::start();
    cut_under_load(&server.url(), &[&server]).await;
}

/// A step that the cluster's node may have executed is sent again by the same owner, which is harmless.
#[actix_rt::test]
async fn e12_a_clusters_cut_connections_run_nothing_twice() {
    let nodes: Vec<&Redis> = CLUSTER.nodes.iter().collect();
    cut_under_load(&CLUSTER.url(), &nodes).await;
}

/// Sends each step twice, by its owner.
#[actix_rt::test]
async fn e06_a_step_that_is_sent_twice_is_harmless() {
    for url in [super::SERVER.url(), CLUSTER.url()] {
        let backend = open(&url, &fresh_prefix()).await;
        let claim = acquire("k", OnAbandoned::Hold);
        for _ in 0..2 {
            let claimed = backend.acquire(claim.clone()).await;
            assert!(matches!(claimed, Ok(Acquired::Claimed { took_over: false, .. })), "{claimed:?}");
        }
        let release = Release { key: claim.key.clone(), owner: claim.owner };
        assert_eq!(backend.release(release.clone()).await, Ok(Released::Released));
        assert_eq!(backend.release(release).await, Ok(Released::Lost));
        assert_eq!(backend.lookup(Lookup { key: claim.key }).await, Ok(None));
    }
}

/// The listener's connection is cut while a caller waits. The caller still gets the outcome.
#[actix_rt::test]
async fn e08_a_waiter_whose_listener_is_cut_gets_the_outcome() {
    let server = Redis::start();
    let holder = open(&server.url(), "waited:").await;
    let engine = Engine::builder(open(&server.url(), "waited:").await).start().unwrap().with_wait(PATIENCE);
    for round in 0..3 {
        let claim = acquire(&format!("{round}"), OnAbandoned::Hold);
        holder.acquire(claim.clone()).await.unwrap();
        let waiter = {
            let (engine, key) = (engine.clone(), claim.key.clone());
            actix_rt::spawn(async move {
                engine.run(key, oncekey::Fingerprint::of(b"asked"), |_| async { Ok::<u32, ()>(0) }).await
            })
        };
        let deadline = Instant::now() + PATIENCE;
        while server.cli(&["client", "kill", "type", "pubsub"]) != "1" {
            assert!(Instant::now() < deadline, "nobody listened");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let outcome = SealedOutcome::of_value(&claim.key, &17).unwrap();
        let complete = Complete { key: claim.key, owner: claim.owner, outcome, retention: Duration::from_secs(60) };
        let completed = Instant::now();
        assert_eq!(holder.complete(complete).await, Ok(Completed::Stored));
        assert_eq!(waiter.await.unwrap().unwrap(), Outcome::Replayed(17));
        assert!(completed.elapsed() < Duration::from_secs(3), "after {:?}", completed.elapsed());
    }
}
