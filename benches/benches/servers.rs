//! First use of a key over PostgreSQL and MariaDB, with 64 and with 1 in flight. It compares the engine, a bare loop of
//! one INSERT and one UPDATE, and the six-step sequence that the engine replaces (get, lock, set, get, set, unlock).
//! All three run on one thread with the same driver and with pools of the same size. The bench starts the servers with
//! durable settings.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use benches::compare::median;
use benches::flows::per_second;
use benches::report::say;
use diesel::prelude::{ExpressionMethods as _, OptionalExtension as _, QueryDsl as _};
use diesel::query_builder::{AstPass, QueryFragment, QueryId};
use diesel_async::pooled_connection::deadpool::Pool;
use diesel_async::pooled_connection::{AsyncDieselConnectionManager, ManagerConfig, RecyclingMethod};
use diesel_async::{AsyncMysqlConnection, AsyncPgConnection, RunQueryDsl as _};
use futures_util::future::try_join_all;
use oncekey::backend::Backend;
use oncekey::{Engine, Key};
use oncekey_backends::{MysqlBackend, PostgresBackend};
use tests::server::{MariaDb, Postgres};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

const POOL: usize = 8;
const ROUNDS: usize = 3;
const HOT_KEYS: usize = 500;

mod tables {
    #![allow(missing_docs, reason = "what the macro makes can't be documented here")]

    diesel::table! {
        records (name) {
            name -> VarChar,
            data -> Binary,
            expires_at -> BigInt,
        }
    }

    diesel::table! {
        locks (name) {
            name -> VarChar,
            expires_at -> BigInt,
        }
    }
}
use tables::{locks, records};

/// Returns the engine's own pool setting: no check whether a connection is alive before it is used.
fn without_pings<C: diesel_async::AsyncConnection + 'static>() -> ManagerConfig<C> {
    let mut config = ManagerConfig::default();
    config.recycling_method = RecyclingMethod::Fast;
    config
}

/// Runs the whole path of the engine: key, claim, operation, completion.
async fn engine(backend: impl Backend, round: usize, in_flight: usize, flows: usize) -> Outcome<(f64, f64)> {
    let engine = Engine::builder(backend).start()?;
    let run = async |number: usize| {
        let key = Key::new("bench", format_args!("{in_flight}-{round}-{number}"))?;
        engine.run(key, b"body", |_| async { Ok::<u32, ()>(17) }).await.map_err(|error| format!("{error:?}"))?;
        Ok(())
    };
    let first = per_second(in_flight, flows, &run).await?;
    Ok((first, per_second(in_flight, flows, &run).await?))
}

/// Measures how long one caller of a fresh key takes, and how long it takes until 64 callers of one fresh key all have
/// their answer. The store gets one claim in both cases.
async fn hot_key(backend: impl Backend) -> Outcome<(f64, f64)> {
    let engine = Engine::builder(backend).start()?.with_wait(Duration::from_secs(10));
    let ask = async |name: String| {
        let key = Key::new("bench", name)?;
        engine.run(key, b"body", |_| async { Ok::<u32, ()>(17) }).await.map_err(|error| format!("{error:?}"))?;
        Outcome::Ok(())
    };
    let (mut alone, mut together) = (Vec::new(), Vec::new());
    for round in 0..HOT_KEYS {
        let began = Instant::now();
        ask(format!("alone-{round}")).await?;
        alone.push(began.elapsed().as_secs_f64());
        let began = Instant::now();
        try_join_all((0..64).map(|_| ask(format!("hot-{round}")))).await?;
        together.push(began.elapsed().as_secs_f64());
    }
    Ok((median(&alone), median(&together)))
}

/// Diesel prepares its own UPDATE anew for every execution, which would flatter the engine.
struct Update<'a> {
    name: &'a str,
}

impl QueryId for Update<'_> {
    type QueryId = Update<'static>;

    const HAS_STATIC_QUERY_ID: bool = true;
}

impl<DB: diesel::backend::Backend> QueryFragment<DB> for Update<'_>
where
    str: diesel::serialize::ToSql<diesel::sql_types::Text, DB>,
{
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, DB>) -> diesel::QueryResult<()> {
        out.push_sql("UPDATE records SET data = 'done', expires_at = 2 WHERE name = ");
        out.push_bind_param::<diesel::sql_types::Text, _>(self.name)
    }
}

macro_rules! yardsticks {
    ($module:ident, $connection:ty, $target:expr) => {
        mod $module {
            use super::*;

            /// The minimum that any guard must do: one INSERT before the operation, one UPDATE after it.
            pub(super) async fn bare(pool: &Pool<$connection>, name: String) -> Outcome {
                let row = (records::name.eq(&name), records::data.eq(&b"pending"[..]), records::expires_at.eq(1));
                diesel::insert_into(records::table).values(row).execute(&mut pool.get().await?).await?;
                Update { name: &name }.execute(&mut pool.get().await?).await?;
                Ok(())
            }

            async fn get(pool: &Pool<$connection>, name: &str) -> Outcome<Option<(Vec<u8>, i64)>> {
                let row = records::table.find(name).select((records::data, records::expires_at));
                Ok(row.first(&mut pool.get().await?).await.optional()?)
            }

            async fn set(pool: &Pool<$connection>, name: &str, data: &[u8]) -> Outcome {
                let changed = (records::data.eq(data), records::expires_at.eq(1));
                diesel::insert_into(records::table)
                    .values((records::name.eq(name), records::data.eq(data), records::expires_at.eq(1)))
                    .on_conflict($target(records::name))
                    .do_update()
                    .set(changed)
                    .execute(&mut pool.get().await?)
                    .await?;
                Ok(())
            }

            /// Runs each step as its own statement and commit.
            pub(super) async fn six_steps(pool: &Pool<$connection>, name: String) -> Outcome {
                get(pool, &name).await?;
                diesel::insert_into(locks::table)
                    .values((locks::name.eq(&name), locks::expires_at.eq(1)))
                    .on_conflict($target(locks::name))
                    .do_update()
                    .set(locks::expires_at.eq(1))
                    .execute(&mut pool.get().await?)
                    .await?;
                set(pool, &name, b"pending").await?;
                get(pool, &name).await?;
                set(pool, &name, b"done").await?;
                diesel::delete(locks::table.find(&name)).execute(&mut pool.get().await?).await?;
                Ok(())
            }
        }
    };
}

yardsticks!(on_postgres, AsyncPgConnection, std::convert::identity);
yardsticks!(on_mysql, AsyncMysqlConnection, |_| diesel::dsl::DuplicatedKeys);

/// Lets the sides take turns, each turn with fresh keys.
macro_rules! compare {
    ($name:literal, $backend:expr, $pool:expr, $module:ident, $in_flight:expr, $flows:expr, $wanted:literal) => {{
        let (pool, in_flight, flows) = (Arc::clone(&$pool), $in_flight, $flows);
        let (mut ours, mut replays, mut bare, mut six) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let (first, replay) = engine($backend, round, in_flight, flows).await?;
            ours.push(first);
            replays.push(replay);
            let flow = async |number: usize| $module::bare(&pool, format!("bare-{in_flight}-{round}-{number}")).await;
            bare.push(per_second(in_flight, flows, flow).await?);
            let flow =
                async |number: usize| $module::six_steps(&pool, format!("six-{in_flight}-{round}-{number}")).await;
            six.push(per_second(in_flight, flows / 4, flow).await?);
        }
        let (ours, replays, bare, six) = (median(&ours), median(&replays), median(&bare), median(&six));
        say(&format!(
            "{}, {in_flight} in flight, flows a second: engine {ours:.0} (replays {replays:.0}), bare pair {bare:.0} \
             ({:.2} x), six steps {six:.0} ({:.1} x); wanted: {}",
            $name,
            ours / bare,
            ours / six,
            $wanted
        ));
    }};
}

#[actix_rt::main]
async fn main() -> Outcome {
    // A test run has nothing to measure.
    if std::env::args().any(|argument| argument == "--test" || argument == "--list") {
        return Ok(());
    }
    let flows: usize = std::env::var("ONCEKEY_BENCH_FLOWS").ok().and_then(|flows| flows.parse().ok()).unwrap_or(20_000);
    let postgres = Postgres::start();
    postgres.sql(
        "CREATE TABLE records (name varchar(255) PRIMARY KEY, data bytea NOT NULL, expires_at bigint NOT NULL);
         CREATE TABLE locks (name varchar(255) PRIMARY KEY, expires_at bigint NOT NULL)",
    );
    let url = postgres.url();
    let manager = AsyncDieselConnectionManager::<AsyncPgConnection>::new_with_config(&url, without_pings());
    let pool = Arc::new(Pool::builder(manager).max_size(POOL).build()?);
    compare!("PostgreSQL", PostgresBackend::open(&url).await?, pool, on_postgres, 64, flows, "1.5 x and 8 x");
    compare!("PostgreSQL", PostgresBackend::open(&url).await?, pool, on_postgres, 1, flows / 10, "2 x six steps");
    let (alone, together) = hot_key(PostgresBackend::open(&url).await?).await?;
    say(&format!(
        "PostgreSQL, one fresh key: 1 caller {:.0} µs, 64 callers {:.0} µs ({:.2} x); wanted: at most 1.5 x",
        alone * 1e6,
        together * 1e6,
        together / alone
    ));

    let mysql = MariaDb::start();
    mysql.sql(
        "CREATE TABLE records (name varchar(255) PRIMARY KEY, data blob NOT NULL, expires_at bigint NOT NULL);
         CREATE TABLE locks (name varchar(255) PRIMARY KEY, expires_at bigint NOT NULL)",
    );
    let url = mysql.url();
    let manager = AsyncDieselConnectionManager::<AsyncMysqlConnection>::new_with_config(&url, without_pings());
    let pool = Arc::new(Pool::builder(manager).max_size(POOL).build()?);
    compare!("MariaDB", MysqlBackend::open(&url).await?, pool, on_mysql, 64, flows, "1.5 x and 8 x");
    compare!("MariaDB", MysqlBackend::open(&url).await?, pool, on_mysql, 1, flows / 10, "2 x six steps");
    Ok(())
}
