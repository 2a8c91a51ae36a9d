//! Steps whose fate is unknown: late claims, waiting commits, and transactions that ended unnoticed. Also the fencing
//! tokens, which never go back.

use std::time::Duration;

use oncekey::backend::{
    Acquire, Acquired, Backend, Complete, Completed, Hold, List, Lookup, Purge, Release, Remove, Resolution, Resolve,
    Resolved, StateView, Stats, Withdraw, Withdrawn,
};
use oncekey::record::{Owner, SealedOutcome};
use oncekey::{Engine, Error, FencingToken, Key, OnAbandoned, Outcome, RunError};
use tests::process::until;
use tests::proxy::Proxy;

use crate::common::acquire;

/// Returns the URL of a server through its proxy.
pub(crate) fn through(proxy: &Proxy, url: &str, port: u16) -> String {
    url.replace(&port.to_string(), &proxy.port().to_string())
}

/// Claims a free key, past a withdrawal if there was one.
async fn claim(backend: &impl Backend, message: Acquire) -> (Owner, FencingToken) {
    let mut message = message;
    loop {
        match backend.acquire(message.clone()).await.unwrap() {
            Acquired::Claimed { token, .. } => return (message.owner, token),
            Acquired::Withdrawn { owner } => message.past_withdrawal = Some(Box::new(owner)),
            other => panic!("not claimed: {other:?}"),
        }
    }
}

async fn lapsed(backend: &impl Backend, key: &str) -> Key {
    let claimed = Acquire { lease: Duration::from_millis(1), ..acquire(key) };
    let key = claimed.key.clone();
    claim(backend, claimed).await;
    let left = async || match backend.lookup(Lookup { key: key.clone() }).await.unwrap().unwrap().state {
        StateView::InProgress { lease_left } => lease_left,
        other => panic!("{other:?}"),
    };
    while !left().await.is_zero() {}
    key
}

/// An engine's claim waits inside the server, its deadline passes, and no connection succeeds for a while. Then the
/// server executes the claim and its withdrawal. Nothing began, so the key is free.
pub(crate) async fn key_ends_free(backend: impl Backend, proxy: &Proxy, let_go: impl AsyncFnOnce()) {
    let deadline = Duration::from_millis(400);
    let engine = Engine::builder(backend).store_deadline(deadline).on_abandoned(OnAbandoned::Hold).start().unwrap();
    let key = Key::new("s", "stalled").unwrap();
    let run = async || engine.run(key.clone(), b"", |_| async { Ok::<u32, ()>(1) }).await;
    let ran = run().await;
    assert!(matches!(&ran, Err(RunError::Engine(Error::Store(error))) if error.is_unknown()), "{ran:?}");
    proxy.refuse();
    until("a withdrawal that can't connect", async || proxy.refused() > 1).await;
    proxy.heal();
    let_go().await;
    loop {
        match run().await {
            Ok(Outcome::Ran(1)) => break,
            Err(RunError::Engine(Error::Store(_) | Error::InProgress { .. })) => {}
            other => panic!("nothing had begun, and then: {other:?}"),
        }
    }
}

/// The connection breaks after a claim was executed, and no other connection succeeds: whether anything happened is
/// unknown. `count` returns how many records a key has.
pub(crate) async fn broken_claim_is_unknown(backend: impl Backend, proxy: &Proxy, count: impl Fn(&str) -> String) {
    for number in 0.. {
        // This leaves its connection in the pool.
        assert!(matches!(backend.acquire(acquire(&format!("warm{number}"))).await, Ok(Acquired::Claimed { .. })));
        let key = format!("broken{number}");
        let message = acquire(&key);
        let withdraw = Withdraw { key: message.key.clone(), owner: message.owner };
        proxy.refuse();
        proxy.cut_answers(1);
        let answer = backend.acquire(message).await;
        proxy.heal();
        // On a slow machine the connection was checked before it was lent, and the claim was not sent.
        if count(&key) == "1" {
            assert!(matches!(&answer, Err(error) if error.is_unknown()), "{answer:?}");
            assert_eq!(backend.withdraw(withdraw.clone()).await, Ok(Withdrawn));
            assert_eq!(backend.lookup(Lookup { key: withdraw.key }).await, Ok(None));
            return;
        }
    }
}

/// A claim is held back on its way, withdrawn, and let through. It does not take effect.
pub(crate) async fn late_claim_does_not_land(
    direct: impl Backend,
    late: impl Backend,
    proxy: &Proxy,
    takes_over: bool,
) {
    let message = acquire(if takes_over { "lapsed" } else { "fresh" });
    let (key, owner) = (message.key.clone(), message.owner);
    if takes_over {
        lapsed(&direct, "lapsed").await;
    }
    proxy.hold(if takes_over { "UPDATE" } else { "INSERT" });
    let arriving = actix_rt::spawn(async move { late.acquire(message).await });
    until("a claim on its way", async || proxy.held() == 1).await;
    assert_eq!(direct.withdraw(Withdraw { key: key.clone(), owner }).await, Ok(Withdrawn));
    proxy.let_go();
    assert_eq!(arriving.await.unwrap(), Ok(Acquired::Withdrawn { owner }));

    let next = Acquire { owner: Owner::random(), key: key.clone(), ..acquire("k") };
    assert_eq!(direct.acquire(next.clone()).await, Ok(Acquired::Withdrawn { owner }));
    let next = Acquire { past_withdrawal: Some(Box::new(owner)), ..next };
    let claimed = direct.acquire(next).await.unwrap();
    assert!(matches!(claimed, Acquired::Claimed { took_over, .. } if took_over == takes_over), "{claimed:?}");
}

/// The token rises with every claim of a key, however the previous one ended. `sql` runs SQL on the server.
pub(crate) async fn token_rises(backend: impl Backend, sql: impl Fn(&str) -> String, table: &str) {
    let short = Duration::from_millis(1);
    let key = Key::new("s", "k").unwrap();
    let (mut owner, mut last) = claim(&backend, acquire("k")).await;
    let rises = async |last: &mut FencingToken, what: &str| {
        let (owner, token) = claim(&backend, acquire("k")).await;
        assert!(token > *last, "after a {what}, {token} follows {last}");
        *last = token;
        owner
    };
    // This is the state after a clock was set back: the clock alone would give a lower token.
    for ahead in [0, 3_600_000_000_i64] {
        if ahead > 0 {
            sql(&format!("UPDATE {table} SET fencing_token = fencing_token + {ahead}"));
            let view = backend.lookup(Lookup { key: key.clone() }).await.unwrap().unwrap();
            assert_eq!(view.token.get(), last.get() + ahead.unsigned_abs());
            last = view.token;
        }
        backend.release(Release { key: key.clone(), owner }).await.unwrap();
        // A row that is kept only for its token is not a record.
        assert_eq!(backend.lookup(Lookup { key: key.clone() }).await, Ok(None));
        assert_eq!(backend.list(List { after: None, limit: 10 }).await, Ok(Vec::new()));
        assert_eq!(backend.stats(Stats).await.unwrap().in_progress, 0);
        owner = rises(&mut last, "release").await;
        backend.hold(Hold { key: key.clone(), owner }).await.unwrap();
        let word = Resolve { key: key.clone(), attempt: None, owner: None, with: Resolution::Release };
        assert_eq!(backend.resolve(word).await, Ok(Resolved::Resolved));
        rises(&mut last, "resolve").await;
        backend.remove(Remove { key: key.clone() }).await.unwrap();
        owner = rises(&mut last, "removal").await;
        backend.release(Release { key: key.clone(), owner }).await.unwrap();
        let lapsing = Acquire { lease: short, ..acquire("k") };
        let (_, token) = claim(&backend, lapsing).await;
        assert!(token > last);
        last = token;
        let taken = loop {
            if let Acquired::Claimed { token, took_over: true, .. } = backend.acquire(acquire("k")).await.unwrap() {
                break token;
            }
        };
        assert!(taken > last, "after a takeover, {taken} follows {last}");
        last = taken;
        backend.remove(Remove { key: key.clone() }).await.unwrap();
        owner = rises(&mut last, "removal of a taken over claim").await;
    }
    // The clock has passed the token of a purged row.
    sql(&format!("UPDATE {table} SET fencing_token = 1"));
    let outcome = SealedOutcome::tombstone(&key);
    let completion = Complete { key: key.clone(), owner, outcome, retention: short };
    assert_eq!(backend.complete(completion).await, Ok(Completed::Stored));
    while backend.purge(Purge { limit: 10 }).await.unwrap().removed == 0 {}
    last = FencingToken::new(1);
    rises(&mut last, "purge").await;
}

/// Opens a table of an earlier schema version with rows in it. `previous` is the SQL that reverts the migrations.
pub(crate) async fn rows_of_the_version_before<B: Backend>(
    open: impl AsyncFn() -> B,
    sql: impl Fn(&str) -> String,
    previous: &[String],
) {
    let before = open().await;
    let (held, _) = claim(&before, acquire("held")).await;
    let (done, _) = claim(&before, acquire("done")).await;
    let key = |name: &str| Key::new("s", name).unwrap();
    let outcome = SealedOutcome::of_value(&key("done"), &17).unwrap();
    let completion =
        Complete { key: key("done"), owner: done, outcome: outcome.clone(), retention: Duration::from_secs(60) };
    assert_eq!(before.complete(completion).await, Ok(Completed::Stored));
    drop(before);
    for text in previous {
        sql(text);
    }
    let after = open().await;
    assert_eq!(after.acquire(acquire("done")).await, Ok(Acquired::Completed { outcome }));
    let view = after.lookup(Lookup { key: key("held") }).await.unwrap().unwrap();
    assert_eq!(view.token, FencingToken::ZERO);
    assert!(after.release(Release { key: key("held"), owner: held }).await.is_ok());
    let (_, token) = claim(&after, acquire("held")).await;
    assert!(token > view.token);
}

/// Checks for every database, in the module of one of them.
macro_rules! withdrawals_on_database {
    (
        backend: $backend:ident,
        key_column: $key_column:literal,
        lock_table: $lock:literal,
        unlock_table: $unlock:literal,
        schema_before: $before:literal $(,)?
    ) => {
        async fn open_through(proxy: &Proxy, table: &str) -> $backend {
            let url = withdrawals::through(proxy, &SERVER.url(), SERVER.port());
            $backend::builder(url).table(table).unwrap().open().await.unwrap()
        }

        /// Readers continue and writers wait. A mere read sees no claim.
        #[actix_rt::test]
        async fn e19_a_claim_behind_a_table_lock_leaves_the_key_free() {
            let (table, proxy) = (fresh_table(), Proxy::before(SERVER.port()));
            let backend = open_through(&proxy, &table).await;
            let pool = pool();
            let mut connection = pool.get().await.unwrap();
            for text in format!($lock, table = table).split("; ") {
                connection.batch_execute(text).await.unwrap();
            }
            withdrawals::key_ends_free(backend, &proxy, async || connection.batch_execute($unlock).await.unwrap()).await;
            assert_eq!(SERVER.sql(&format!("SELECT state FROM {table}")), "2");
        }

        #[actix_rt::test]
        async fn e19_a_claim_whose_connection_breaks_is_not_denied() {
            let (table, proxy) = (fresh_table(), Proxy::before(SERVER.port()));
            let count = |key: &str| {
                SERVER.sql(&format!("SELECT count(*) FROM {table} WHERE {} LIKE '%:{key}'", $key_column))
            };
            withdrawals::broken_claim_is_unknown(open_through(&proxy, &table).await, &proxy, count).await;
        }

        #[actix_rt::test]
        async fn e20_a_claim_that_was_withdrawn_on_its_way_never_lands() {
            for takes_over in [false, true] {
                let (table, proxy) = (fresh_table(), Proxy::before(SERVER.port()));
                let (direct, late) = (open(&table).await, open_through(&proxy, &table).await);
                withdrawals::late_claim_does_not_land(direct, late, &proxy, takes_over).await;
            }
        }

        #[actix_rt::test]
        async fn e25_the_token_never_goes_back() {
            let table = fresh_table();
            withdrawals::token_rises(open(&table).await, |text| SERVER.sql(text), &table).await;
        }

        #[actix_rt::test]
        async fn rows_of_an_earlier_schema_version_are_brought_along() {
            let table = fresh_table();
            let previous = [
                format!("ALTER TABLE {table} DROP COLUMN fencing_token, DROP COLUMN barrier_owner, DROP COLUMN barrier_until"),
                format!("ALTER TABLE {table} DROP COLUMN steps_life, DROP COLUMN steps_retention, DROP COLUMN steps_count"),
                format!("DROP TABLE {table}_steps"),
                format!("DELETE FROM {table}_migrations WHERE version > {}", $before),
            ];
            withdrawals::rows_of_the_version_before(async || open(&table).await, |text| SERVER.sql(text), &previous).await;
        }

        /// A row that is not a valid record can still be removed.
        #[actix_rt::test]
        async fn e13_a_corrupt_row_can_be_removed() {
            let table = fresh_table();
            let backend = open(&table).await;
            assert!(matches!(backend.acquire(acquire("k")).await, Ok(Acquired::Claimed { .. })));
            SERVER.sql(&format!("UPDATE {table} SET state = 9"));
            let key = Key::new("s", "k").unwrap();
            assert!(backend.lookup(Lookup { key: key.clone() }).await.is_err());
            assert_eq!(backend.remove(Remove { key: key.clone() }).await, Ok(Removed::Removed));
            assert_eq!(backend.remove(Remove { key }).await, Ok(Removed::Absent));
        }
    };
}
pub(crate) use withdrawals_on_database;
