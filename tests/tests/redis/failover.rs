//! Servers that replace others: what continues by itself, and what is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use oncekey::backend::{Acquired, Backend as _};
use oncekey::{Engine, Error, Key, OnAbandoned, Outcome, RunError};
use oncekey_backends::redis::RedisBackend;
use tests::process::PATIENCE;
use tests::server::{RedisCluster, RedisSentinel};

use super::{acquire, open};

/// The result of a load of fresh keys.
struct Load {
    /// The keys whose outcomes were acknowledged, and when.
    acknowledged: Vec<(Key, Instant)>,
    failed: usize,
}

/// Runs fresh keys, 64 at once, until it is told to stop.
async fn load(engine: &Engine, stop: &AtomicBool) -> Load {
    let next = AtomicUsize::new(0);
    let workers = (0..64).map(|_| async {
        let mut load = Load { acknowledged: Vec::new(), failed: 0 };
        while !stop.load(Ordering::Relaxed) {
            let key = Key::new("load", next.fetch_add(1, Ordering::Relaxed)).unwrap();
            match engine.run(key.clone(), b"asked", |_| async { Ok::<u32, ()>(17) }).await {
                Ok(_) => load.acknowledged.push((key, Instant::now())),
                Err(RunError::Engine(Error::Store(_) | Error::ClaimLost | Error::OutcomeNotStored(_))) => {
                    load.failed += 1
                }
                Err(other) => panic!("{other:?}"),
            }
        }
        load
    });
    let mut all = Load { acknowledged: Vec::new(), failed: 0 };
    for one in join_all(workers).await {
        all.acknowledged.extend(one.acknowledged);
        all.failed += one.failed;
    }
    all
}

async fn until_it_runs(engine: &Engine) -> Duration {
    let began = Instant::now();
    for number in 0.. {
        let key = Key::new("probe", number).unwrap();
        if engine.run(key, b"", |_| async { Ok::<u32, ()>(1) }).await.is_ok() {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "it did not go on by itself");
    }
    began.elapsed()
}

/// Puts load on a master and kills it. Returns how many acknowledged outcomes its replica did not have, and how many
/// there were.
async fn lost_in_a_failover(lag: Duration) -> (usize, usize) {
    let servers = Arc::new(RedisSentinel::start());
    let backend =
        RedisBackend::builder(servers.url()).response_timeout(Duration::from_millis(500)).open().await.unwrap();
    let engine = Engine::builder(backend).settling_limit(Duration::from_secs(1)).start().unwrap();
    let stop = AtomicBool::new(false);
    let (old, failed_over) = (servers.master(), Arc::clone(&servers));
    let killing = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let replica = &failed_over.servers[1 - old];
        if !lag.is_zero() {
            // The pause keeps the replica from receiving what is still on its way.
            replica.pause();
            assert_eq!(failed_over.servers[old].cli(&["client", "kill", "type", "replica"]), "1");
            tokio::time::sleep(lag).await;
        }
        failed_over.servers[old].kill();
        let killed = Instant::now();
        replica.resume();
        let promoting = Arc::clone(&failed_over);
        let new = tokio::task::spawn_blocking(move || promoting.until_taken_over(old)).await.unwrap();
        assert_eq!(new, 1 - old);
        let back = until_it_runs(&engine).await;
        stop.store(true, Ordering::Relaxed);
        (killed, killed.elapsed(), back)
    };
    let (load, (killed, away, _)) = futures_util::future::join(load(&engine, &stop), killing).await;
    let before: Vec<_> = load.acknowledged.iter().filter(|(_, at)| *at <= killed).collect();
    let mut lost = Vec::new();
    for (key, at) in &before {
        if engine.lookup(key).await.unwrap().is_none() {
            lost.push(killed.duration_since(*at));
        }
    }
    let oldest = lost.iter().max().copied().unwrap_or_default();
    println!(
        "failover: {} of {} acknowledged outcomes lost, the oldest {oldest:?} before the kill; replica cut off for {lag:?}; \
         away for {away:?}, {} calls failed",
        lost.len(),
        before.len(),
        load.failed
    );
    assert!(load.failed > 0, "the failover was not noticed");
    // Only outcomes that the replica had not received yet are lost, and nothing older.
    assert!(oldest <= lag + Duration::from_secs(1), "an outcome of {oldest:?} before the kill is lost");
    (lost.len(), before.len())
}

/// Asynchronous replication: the replica has everything but the last instant, or everything but its lag.
#[actix_rt::test]
async fn e11_a_failover_loses_what_the_replica_had_not_heard() {
    let (lost, of) = lost_in_a_failover(Duration::ZERO).await;
    assert!(of > 1_000 && lost < of / 10, "{lost} of {of} lost");
    let (lost, _) = lost_in_a_failover(Duration::from_millis(500)).await;
    assert!(lost > 0, "a replica that was late by half a second had everything");
}

/// A shard's primary is killed. Its replica replaces it, the other shards never stop, and nothing stays stuck.
#[actix_rt::test]
async fn e11_a_shard_fails_over_by_itself() {
    let cluster = RedisCluster::start();
    let engine = Engine::builder(open(&cluster.url(), "shards:").await).start().unwrap();
    let keys: Vec<Key> = (0..300).map(|number| Key::new("s", number).unwrap()).collect();
    let run = async |key: &Key| engine.run(key.clone(), b"asked", |_| async { Ok::<u32, ()>(17) }).await;
    for ran in join_all(keys.iter().map(&run)).await {
        assert_eq!(ran.unwrap(), Outcome::Ran(17));
    }
    let victim = (0..6).find(|&node| !cluster.is_replica(node)).unwrap();
    cluster.nodes[victim].kill();
    let replays = join_all(keys.iter().map(&run)).await;
    let replayed = replays.iter().filter(|ran| matches!(ran, Ok(Outcome::Replayed(17)))).count();
    assert!(replayed >= 100, "only {replayed} of 300 keys were served: the other shards stopped");
    let deadline = Instant::now() + PATIENCE;
    for key in &keys {
        // The replica had received everything, because nothing was written since.
        while !matches!(run(key).await, Ok(Outcome::Replayed(17))) {
            assert!(Instant::now() < deadline, "{key} is not served again");
        }
    }
    assert!(matches!(run(&Key::new("s", "fresh").unwrap()).await, Ok(Outcome::Ran(17))));
}

/// One of three primaries stops answering, and its connections stay open. A client that was connected before and a
/// client that connects now can both use the keys of the other primaries.
#[actix_rt::test]
async fn e11_a_silent_primary_costs_its_own_slots_only() {
    let cluster = RedisCluster::start();
    let prefix = "silent:";
    let engine = Engine::builder(open(&cluster.url(), prefix).await).start().unwrap();
    let keys: Vec<Key> = (0..300).map(|number| Key::new("s", number).unwrap()).collect();
    let run =
        async |engine: &Engine, key: &Key| engine.run(key.clone(), b"asked", |_| async { Ok::<u32, ()>(17) }).await;
    for ran in join_all(keys.iter().map(|key| run(&engine, key))).await {
        assert_eq!(ran.unwrap(), Outcome::Ran(17));
    }
    let victim = (0..6).find(|&node| !cluster.is_replica(node)).unwrap();
    let there = cluster.nodes[victim].cli(&["KEYS", "*"]);
    let is_the_victims = |key: &&Key| there.lines().any(|line| line.ends_with(key.as_stored()));
    let (lost, others): (Vec<&Key>, Vec<&Key>) = keys.iter().partition(is_the_victims);
    assert!(lost.len() > 50 && others.len() > 150, "{} and {}", lost.len(), others.len());

    cluster.nodes[victim].pause();
    let paused = Instant::now();
    // Callers of the lost keys keep retrying the whole time.
    let asking = join_all(lost.iter().take(20).map(async |key| {
        while paused.elapsed() < Duration::from_secs(15) {
            let _ = run(&engine, key).await;
        }
    }));
    let serving = async {
        let (mut early, mut late, mut served) = (0, 0, 0);
        let mut opened: Option<Engine> = None;
        while paused.elapsed() < Duration::from_secs(15) {
            let began = paused.elapsed();
            for ran in join_all(others.iter().map(|key| run(&engine, key))).await {
                match ran {
                    Ok(Outcome::Replayed(17)) => served += 1,
                    // This is the store deadline.
                    Err(_) if began < Duration::from_secs(5) => early += 1,
                    _ => late += 1,
                }
            }
            let another = match &opened {
                Some(another) => another,
                None => {
                    let began = Instant::now();
                    let another = Engine::builder(open(&cluster.url(), prefix).await).start().unwrap();
                    assert!(began.elapsed() < Duration::from_secs(5), "opening took {:?}", began.elapsed());
                    opened.insert(another)
                }
            };
            for ran in join_all(others.iter().map(|key| run(another, key))).await {
                assert_eq!(ran.unwrap(), Outcome::Replayed(17));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        (early, late, served)
    };
    let (_, (early, late, served)) = futures_util::future::join(asking, serving).await;
    let share = |part: usize, of: usize| 100.0 * part as f64 / of as f64;
    println!(
        "{served} served, {early} refused within the first deadline, {late} after it: {:.1} % of the load on the other \
         primaries was kept, which have {:.0} % of the keys",
        share(served, served + early + late),
        share(others.len(), keys.len())
    );
    assert_eq!(late, 0, "keys of the other primaries were refused");
    assert!(served > 10 * others.len(), "only {served} were served");
}

/// While a slot moves to another node, its new keys are there and its old ones here (ASK). Afterwards all are there
/// (MOVED).
#[actix_rt::test]
async fn e01_a_slot_on_its_way_is_followed() {
    let cluster = RedisCluster::start();
    let prefix = "{one-slot}:";
    let backend = open(&cluster.url(), prefix).await;
    let first = acquire("first", OnAbandoned::Hold);
    assert!(matches!(backend.acquire(first.clone()).await, Ok(Acquired::Claimed { .. })));
    let slot = cluster.nodes[0].cli(&["cluster", "keyslot", prefix]);
    let primaries: Vec<usize> = (0..6).filter(|&node| !cluster.is_replica(node)).collect();
    let name = format!("{prefix}{}", first.key.as_stored());
    let holds = |node: &usize| cluster.nodes[*node].cli(&["get", &name]).starts_with('\u{2}');
    let from = *primaries.iter().find(|node| holds(node)).unwrap();
    let to = *primaries.iter().find(|node| **node != from).unwrap();
    let id = |node: usize| cluster.nodes[node].cli(&["cluster", "myid"]);
    assert_eq!(cluster.nodes[to].cli(&["cluster", "setslot", &slot, "importing", &id(from)]), "OK");
    assert_eq!(cluster.nodes[from].cli(&["cluster", "setslot", &slot, "migrating", &id(to)]), "OK");

    let second = acquire("second", OnAbandoned::Hold);
    assert!(matches!(backend.acquire(second.clone()).await, Ok(Acquired::Claimed { .. })));
    assert_eq!(cluster.nodes[from].cli(&["cluster", "countkeysinslot", &slot]), "1");
    assert_eq!(cluster.nodes[to].cli(&["cluster", "countkeysinslot", &slot]), "1");
    for key in ["first", "second"] {
        let again = backend.acquire(acquire(key, OnAbandoned::Hold)).await;
        assert!(matches!(again, Ok(Acquired::InProgress { .. })), "{key}: {again:?}");
    }

    let port = cluster.nodes[to].port().to_string();
    assert_eq!(cluster.nodes[from].cli(&["migrate", "127.0.0.1", &port, &name, "0", "5000"]), "OK");
    for node in [to, from] {
        assert_eq!(cluster.nodes[node].cli(&["cluster", "setslot", &slot, "node", &id(to)]), "OK");
    }
    for key in ["first", "second"] {
        let again = backend.acquire(acquire(key, OnAbandoned::Hold)).await;
        assert!(matches!(again, Ok(Acquired::InProgress { .. })), "{key}: {again:?}");
    }
}
