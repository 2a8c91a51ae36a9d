//! Claims that are held back on their way, withdrawn by another connection, and then let through.

use std::time::{Duration, Instant};

use oncekey::backend::{
    Acquire, Acquired, Backend as _, Complete, Completed, List, Lookup, RecordView, Release, Released, StateView,
    Stats, StoreError, Withdraw, Withdrawn,
};
use oncekey::record::SealedOutcome;
use oncekey::{Attempt, Key, OnAbandoned};
use oncekey_backends::redis::RedisBackend;
use tests::process::PATIENCE;
use tests::proxy::Proxy;
use tests::server::{LoneSentinel, Redis, RedisCluster};

use super::{SERVER, acquire, fresh_prefix, open};

/// The time to live of the late claim: its lease, and a day more. No other claim has it. A `SET NX` ends with it; in a
/// takeover more follows.
const LATE_LEASE: Duration = Duration::from_millis(61_234);
const LATE_CLAIM: &str = "PX\r\n$8\r\n86461234\r\n";
const LATE_TAKEOVER: &str = "86461234\r\n$";
const LIMIT: Duration = Duration::from_millis(300);

/// A server behind a proxy.
pub(super) struct Place {
    pub(super) server: Redis,
    pub(super) proxy: Proxy,
    /// Names the proxy to the clients.
    _sentinel: Option<LoneSentinel>,
    pub(super) url: String,
}

impl Place {
    pub(super) fn single() -> Self {
        let server = Redis::start();
        let proxy = Proxy::before(server.port());
        let url = format!("redis://127.0.0.1:{}/0", proxy.port());
        Self { server, proxy, _sentinel: None, url }
    }

    pub(super) fn sentinel() -> Self {
        let server = Redis::start();
        let proxy = Proxy::before(server.port());
        let sentinel = LoneSentinel::before(proxy.port());
        let url = sentinel.url();
        Self { server, proxy, _sentinel: Some(sentinel), url }
    }

    pub(super) fn cluster() -> Self {
        let mut proxy = None;
        let server = RedisCluster::node_behind(|port| proxy.insert(Proxy::before(port)).port());
        let proxy = proxy.unwrap();
        let url = format!("redis+cluster://127.0.0.1:{}", proxy.port());
        Self { server, proxy, _sentinel: None, url }
    }

    async fn hurried(&self) -> RedisBackend {
        RedisBackend::builder(&self.url).response_timeout(LIMIT).open().await.unwrap()
    }

    /// Returns how often the server received a command.
    pub(super) fn calls(&self, command: &str) -> usize {
        let stats = self.server.cli(&["info", "commandstats"]);
        let line = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
        line.and_then(|line| line.split(',').next()).map_or(0, |calls| calls.parse().unwrap())
    }

    /// Sends an acquire until its caller gives up. The proxy holds back any message that contains `word`.
    async fn hold_back(&self, message: Acquire, word: &'static str) {
        let backend = self.hurried().await;
        let before = self.proxy.held();
        self.proxy.hold(word);
        let answer = backend.acquire(message).await;
        assert!(answer.as_ref().is_err_and(StoreError::is_unknown), "{answer:?}");
        assert_eq!(self.proxy.held(), before + 1, "nothing was held back");
    }

    /// Lets the message through, and waits until the server has executed it.
    async fn let_through(&self, command: &str) {
        let before = self.calls(command);
        self.proxy.let_go();
        let deadline = Instant::now() + PATIENCE;
        while self.calls(command) == before {
            assert!(Instant::now() < deadline, "the late command did not arrive");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn late(key: &str) -> Acquire {
    Acquire { lease: LATE_LEASE, ..acquire(key, OnAbandoned::Rerun) }
}

async fn look(backend: &RedisBackend, key: &Key) -> Option<RecordView> {
    backend.lookup(Lookup { key: key.clone() }).await.unwrap()
}

async fn withdraw(backend: &RedisBackend, message: &Acquire) {
    let Acquire { key, owner, .. } = message.clone();
    assert_eq!(backend.withdraw(Withdraw { key, owner }).await, Ok(Withdrawn));
}

async fn claimed(backend: &RedisBackend, message: Acquire) -> Acquire {
    let answer = backend.acquire(message.clone()).await;
    assert!(matches!(answer, Ok(Acquired::Claimed { .. })), "{answer:?}");
    message
}

async fn release(backend: &RedisBackend, message: &Acquire) {
    let Acquire { key, owner, .. } = message.clone();
    assert_eq!(backend.release(Release { key, owner }).await, Ok(Released::Released));
}

fn briefly(message: &Acquire) -> Complete {
    let Acquire { key, owner, .. } = message.clone();
    let outcome = SealedOutcome::tombstone(&key);
    Complete { key, owner, outcome, retention: Duration::from_millis(1) }
}

/// The events between the withdrawal and the late command.
const BETWEEN: [&str; 5] = ["nothing", "release", "completion", "withdrawal", "claim"];

async fn a_withdrawn_claim_never_lands_on(place: Place) {
    let beside = place.hurried().await;
    // The control: a claim that is not withdrawn takes effect, however late it is.
    let control = late("control");
    place.hold_back(control.clone(), LATE_CLAIM).await;
    place.let_through("set").await;
    assert!(look(&beside, &control.key).await.is_some(), "nothing is proved: it would not have landed");

    for between in BETWEEN {
        let message = late(between);
        place.hold_back(message.clone(), LATE_CLAIM).await;
        withdraw(&beside, &message).await;
        assert_eq!(look(&beside, &message.key).await, None);
        let other = acquire(between, OnAbandoned::Hold);
        match between {
            "nothing" => {}
            "release" => release(&beside, &claimed(&beside, other.clone()).await).await,
            "completion" => {
                let completion = briefly(&claimed(&beside, other.clone()).await);
                assert_eq!(beside.complete(completion).await, Ok(Completed::Stored));
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            "withdrawal" => withdraw(&beside, &claimed(&beside, other.clone()).await).await,
            _ => drop(claimed(&beside, other.clone()).await),
        }
        let before = look(&beside, &message.key).await.map(|view| (view.attempt, view.token));
        place.let_through("set").await;
        let after = look(&beside, &message.key).await;
        assert_eq!(after.as_ref().map(|view| (view.attempt, view.token)), before, "{between}");
        // In between, only the holder has the key.
        let next = beside.acquire(acquire(between, OnAbandoned::Hold)).await.unwrap();
        match between {
            "claim" => assert!(matches!(next, Acquired::InProgress { .. }), "{next:?}"),
            "completion" => assert!(matches!(next, Acquired::Completed { .. }), "{next:?}"),
            _ => assert!(
                matches!(next, Acquired::Claimed { attempt: Attempt::FIRST, took_over: false, .. }),
                "{between}: {next:?}"
            ),
        }
    }
}

async fn a_withdrawn_takeover_never_lands_on(place: Place) {
    let beside = place.hurried().await;
    let lapsed = async |key: &str| {
        let holder = Acquire { lease: Duration::from_millis(1), ..acquire(key, OnAbandoned::Rerun) };
        claimed(&beside, holder).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    // The server knows the script by now.
    lapsed("warm").await;
    claimed(&beside, acquire("warm", OnAbandoned::Rerun)).await;
    // The control.
    lapsed("control").await;
    let control = late("control");
    place.hold_back(control.clone(), LATE_TAKEOVER).await;
    place.let_through("evalsha").await;
    let landed = look(&beside, &control.key).await.unwrap();
    assert_eq!(landed.attempt, Attempt::new(2), "nothing is proved: it would not have landed");

    for between in BETWEEN {
        lapsed(between).await;
        let message = late(between);
        place.hold_back(message.clone(), LATE_TAKEOVER).await;
        withdraw(&beside, &message).await;
        let other = acquire(between, OnAbandoned::Hold);
        match between {
            "nothing" => {}
            "release" => release(&beside, &claimed(&beside, other.clone()).await).await,
            "completion" => {
                let completion = briefly(&claimed(&beside, other.clone()).await);
                assert_eq!(beside.complete(completion).await, Ok(Completed::Stored));
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            // It is sent twice, as if its first answer had been lost.
            "withdrawal" => {
                withdraw(&beside, &other).await;
                withdraw(&beside, &message).await;
            }
            _ => drop(claimed(&beside, other.clone()).await),
        }
        let before = look(&beside, &message.key).await.map(|view| (view.attempt, view.token));
        place.let_through("evalsha").await;
        let after = look(&beside, &message.key).await;
        assert_eq!(after.as_ref().map(|view| (view.attempt, view.token)), before, "{between}");
        let next = beside.acquire(acquire(between, OnAbandoned::Hold)).await.unwrap();
        match between {
            "claim" => assert!(matches!(next, Acquired::InProgress { .. }), "{next:?}"),
            "completion" => assert!(matches!(next, Acquired::Completed { .. }), "{next:?}"),
            "release" => assert!(matches!(next, Acquired::Claimed { attempt: Attempt::FIRST, .. }), "{next:?}"),
            _ => assert!(matches!(next, Acquired::Claimed { took_over: true, .. }), "{between}: {next:?}"),
        }
    }
}

#[actix_rt::test]
async fn e20_a_withdrawn_claim_never_lands_on_one_server() {
    a_withdrawn_claim_never_lands_on(Place::single()).await;
}

#[actix_rt::test]
async fn e20_a_withdrawn_claim_never_lands_behind_sentinels() {
    a_withdrawn_claim_never_lands_on(Place::sentinel()).await;
}

#[actix_rt::test]
async fn e20_a_withdrawn_claim_never_lands_in_a_cluster() {
    a_withdrawn_claim_never_lands_on(Place::cluster()).await;
}

#[actix_rt::test]
async fn e20_a_withdrawn_takeover_never_lands_on_one_server() {
    a_withdrawn_takeover_never_lands_on(Place::single()).await;
}

#[actix_rt::test]
async fn e20_a_withdrawn_takeover_never_lands_behind_sentinels() {
    a_withdrawn_takeover_never_lands_on(Place::sentinel()).await;
}

#[actix_rt::test]
async fn e20_a_withdrawn_takeover_never_lands_in_a_cluster() {
    a_withdrawn_takeover_never_lands_on(Place::cluster()).await;
}

/// A withdrawal leaves nothing visible, and does not touch another holder's claim.
#[actix_rt::test]
async fn e20_a_withdrawal_is_not_seen() {
    let backend = open(&SERVER.url(), &fresh_prefix()).await;
    let message = late("k");
    for _ in 0..2 {
        withdraw(&backend, &message).await;
        assert_eq!(look(&backend, &message.key).await, None);
        assert_eq!(backend.stats(Stats).await.map(|stats| stats.in_progress), Ok(0));
        assert_eq!(backend.list(List { after: None, limit: 10 }).await, Ok(Vec::new()));
    }
    // The withdrawn message itself gets that answer, unless it was sent after the withdrawal.
    let owner = message.owner;
    assert_eq!(backend.acquire(message.clone()).await, Ok(Acquired::Withdrawn { owner }));
    let holder = claimed(&backend, acquire("k", OnAbandoned::Hold)).await;
    let standing = look(&backend, &message.key).await.unwrap();
    withdraw(&backend, &message).await;
    let after = look(&backend, &message.key).await.unwrap();
    assert_eq!((after.attempt, after.token), (standing.attempt, standing.token));
    assert!(matches!(after.state, StateView::InProgress { lease_left } if lease_left > Duration::from_secs(50)));
    // When its holder repeats the claim, it is unchanged.
    claimed(&backend, holder.clone()).await;
    // The outcome of a marked claim outlives the barrier.
    assert_eq!(backend.complete(briefly(&holder)).await, Ok(Completed::Stored));
    let completed = look(&backend, &message.key).await.unwrap();
    let StateView::Completed { expires_in, .. } = completed.state else { panic!("{completed:?}") };
    assert!(expires_in > Duration::from_secs(590), "{expires_in:?}");
}

/// An outcome that would expire before the barrier is kept as long as the barrier. A longer retention is not shortened.
#[actix_rt::test]
async fn e20_an_outcome_outlives_the_barrier() {
    let backend = open(&SERVER.url(), &fresh_prefix()).await;
    for (name, retention, least) in [("short", 5, 590), ("long", 86_400, 86_390)] {
        let holder = claimed(&backend, acquire(name, OnAbandoned::Hold)).await;
        let completion = Complete { retention: Duration::from_secs(retention), ..briefly(&holder) };
        assert_eq!(backend.complete(completion).await, Ok(Completed::Stored));
        withdraw(&backend, &late(name)).await;
        let completed = look(&backend, &holder.key).await.unwrap();
        let StateView::Completed { expires_in, .. } = completed.state else { panic!("{completed:?}") };
        assert!(expires_in > Duration::from_secs(least), "{expires_in:?}");
    }
    // Without a withdrawal, nothing is kept longer than requested, even after a release.
    release(&backend, &claimed(&backend, acquire("released", OnAbandoned::Hold)).await).await;
    let holder = claimed(&backend, acquire("released", OnAbandoned::Hold)).await;
    assert_eq!(backend.complete(briefly(&holder)).await, Ok(Completed::Stored));
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(look(&backend, &holder.key).await, None);
}

/// A claim that lapsed a day ago is about to expire when another claim's withdrawal marks it. Without the mark, the
/// withdrawn claim would find no key when it arrives.
async fn a_barrier_outlives_the_claim_that_it_marks_on(place: Place) {
    let backend = RedisBackend::builder(&place.url).open().await.unwrap();
    for policy in [OnAbandoned::Rerun, OnAbandoned::Hold] {
        let name = format!("{policy:?}");
        let lapsed = Acquire { lease: Duration::from_millis(1), ..acquire(&name, policy) };
        claimed(&backend, lapsed.clone()).await;
        let stored = format!("oncekey:{}", lapsed.key.as_stored());
        // A claim under Hold never expires this way. It is the control: its time to live is long enough.
        if policy == OnAbandoned::Rerun {
            assert_eq!(place.server.cli(&["pexpire", &stored, "300"]), "1");
        }
        let message = late(&name);
        withdraw(&backend, &message).await;
        let ttl: i64 = place.server.cli(&["pttl", &stored]).parse().unwrap();
        assert!(ttl > 590_000, "{policy:?}: {ttl}");
        tokio::time::sleep(Duration::from_millis(400)).await;
        // This is the late command itself, which takes effect where there is no key.
        let set = ["set", stored.as_str(), "late", "nx", "px", "86461234"];
        assert_eq!(place.server.cli(&set), "", "{policy:?}: the withdrawn claim landed");
        let owner = message.owner;
        assert_eq!(backend.acquire(message).await, Ok(Acquired::Withdrawn { owner }), "{policy:?}");
    }
}

#[actix_rt::test]
async fn e20_a_barrier_outlives_the_claim_that_it_marks_on_one_server() {
    a_barrier_outlives_the_claim_that_it_marks_on(Place::single()).await;
}

#[actix_rt::test]
async fn e20_a_barrier_outlives_the_claim_that_it_marks_behind_sentinels() {
    a_barrier_outlives_the_claim_that_it_marks_on(Place::sentinel()).await;
}

#[actix_rt::test]
async fn e20_a_barrier_outlives_the_claim_that_it_marks_in_a_cluster() {
    a_barrier_outlives_the_claim_that_it_marks_on(Place::cluster()).await;
}

/// A claim whose connection broke is sent again. Whichever of its copies comes first and whatever it finds, the other
/// copy never takes effect later.
#[actix_rt::test]
async fn e20_the_first_copy_of_a_claim_that_was_sent_twice_never_lands_late() {
    let place = Place::single();
    let beside = open(&place.server.url(), "oncekey:").await;
    for meets in ["nothing", "a claim", "an outcome"] {
        let message = late(meets);
        let other = acquire(meets, OnAbandoned::Rerun);
        match meets {
            "nothing" => {}
            _ => drop(claimed(&beside, other.clone()).await),
        }
        if meets == "an outcome" {
            let completion = Complete { retention: Duration::from_secs(2), ..briefly(&other) };
            assert_eq!(beside.complete(completion).await, Ok(Completed::Stored));
        }
        let backend = RedisBackend::builder(&place.url).response_timeout(PATIENCE).open().await.unwrap();
        let held = place.proxy.held();
        place.proxy.hold(LATE_CLAIM);
        let acquiring = actix_rt::spawn({
            let message = message.clone();
            async move { backend.acquire(message).await }
        });
        let deadline = Instant::now() + PATIENCE;
        while place.proxy.held() == held {
            assert!(Instant::now() < deadline, "nothing was held back");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // The connection breaks, and the next one works.
        place.proxy.hold("nothing has this word");
        place.server.cli(&["client", "kill", "type", "normal"]);
        let answer = acquiring.await.unwrap().unwrap();
        match meets {
            "nothing" => {
                assert!(matches!(answer, Acquired::Claimed { attempt: Attempt::FIRST, took_over: false, .. }));
                assert_eq!(beside.complete(briefly(&message)).await, Ok(Completed::Stored));
            }
            "a claim" => {
                assert!(matches!(answer, Acquired::InProgress { .. }), "{answer:?}");
                assert_eq!(beside.complete(briefly(&other)).await, Ok(Completed::Stored));
            }
            _ => assert!(matches!(answer, Acquired::Completed { .. }), "{answer:?}"),
        }
        // The key blocks the first copy for as long as it may arrive, although the outcome was to be kept only for an
        // instant.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let kept = look(&beside, &message.key).await.unwrap();
        let StateView::Completed { expires_in, .. } = kept.state else { panic!("{kept:?}") };
        assert!(expires_in > Duration::from_secs(590), "{meets}: {expires_in:?}");
        place.proxy.let_go();
    }
}
