//! An operation of three steps against the same operation by hand: three `run`s inside a `run`, with explicit keys. It
//! runs on memory, SQLite, PostgreSQL, MariaDB and Redis, with 64 and with 1 in flight. Both sides use one engine on
//! one thread, and take turns. The bench starts the servers with durable settings. At the end it compares the bytes
//! that a step takes with those of a `run` by hand.

use std::error::Error;

use benches::compare::{median, median_ratio};
use benches::flows::per_second;
use benches::report::{say, target_folder};
use diesel::prelude::*;
use oncekey::backend::Backend;
use oncekey::{Engine, Key, OnAbandoned, StepError};
use oncekey_backends::{MemoryBackend, MysqlBackend, PostgresBackend, RedisBackend, SqliteBackend};
use tests::server::{MariaDb, Postgres, Redis};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

const NAMES: [&str; 3] = ["reserve", "charge", "mail"];
/// The result of each effect.
const RECEIPT: &str = "receipt-0017";

fn failed(error: impl std::fmt::Debug) -> Box<dyn Error> {
    format!("{error:?}").into()
}

fn key(name: &str) -> Outcome<Key> {
    Ok(Key::new("bench", name)?)
}

async fn by_steps(engine: &Engine, name: &str) -> Outcome {
    let operation = async |claim: oncekey::Claim| {
        for name in NAMES {
            claim.step(name, async |_| Ok::<_, ()>(RECEIPT.to_owned())).await?;
        }
        Ok::<u32, StepError<()>>(17)
    };
    engine.with_on_abandoned(OnAbandoned::Resume).run_local(key(name)?, b"body", operation).await.map_err(failed)?;
    Ok(())
}

/// The operation as users write it without steps. After a crash all of it runs again, and completed effects replay
/// under their own keys.
async fn by_hand(engine: &Engine, name: &str) -> Outcome {
    let (inner, outer) = (engine.clone(), name.to_owned());
    let operation = async move |_: oncekey::Claim| {
        for effect in NAMES {
            let key = key(&format!("{outer}:{effect}")).map_err(|error| error.to_string())?;
            let done = inner.run_local(key, b"body", async |_| Ok::<_, ()>(RECEIPT.to_owned())).await;
            done.map_err(|error| format!("{error:?}"))?;
        }
        Ok::<u32, String>(17)
    };
    engine.with_on_abandoned(OnAbandoned::Rerun).run_local(key(name)?, b"body", operation).await.map_err(failed)?;
    Ok(())
}

async fn bare(engine: &Engine, name: &str) -> Outcome {
    let engine = engine.with_on_abandoned(OnAbandoned::Resume);
    engine.run_local(key(name)?, b"body", async |_| Ok::<u32, ()>(17)).await.map_err(failed)?;
    Ok(())
}

struct Sizes {
    rounds: usize,
    flows: usize,
}

async fn compare(store: &str, backend: impl Backend, sizes: &Sizes, bytes: impl Fn() -> Outcome<f64>) -> Outcome {
    let engine = Engine::builder(backend).start()?;
    for (in_flight, flows) in [(64, sizes.flows), (1, sizes.flows / 10)] {
        let (mut steps, mut hand) = (Vec::new(), Vec::new());
        for round in 0..sizes.rounds {
            for turn in 0..2 {
                let of_steps = (round + turn) % 2 == 0;
                let name = |number: usize| format!("{in_flight}-{round}-{turn}-{number}");
                if of_steps {
                    let flow = async |number| by_steps(&engine, &name(number)).await;
                    steps.push(per_second(in_flight, flows, flow).await?);
                } else {
                    let flow = async |number| by_hand(&engine, &name(number)).await;
                    hand.push(per_second(in_flight, flows, flow).await?);
                }
            }
        }
        say(&format!(
            "{store}, {in_flight} in flight, operations a second: three steps {:.0}, by hand {:.0} ({:.2} x); wanted: 1 x",
            median(&steps),
            median(&hand),
            median_ratio(&steps, &hand)
        ));
    }
    let count = sizes.flows;
    let before = bytes()?;
    per_second(64, count, async |number| bare(&engine, &format!("bytes-bare-{number}")).await).await?;
    let with_bare = bytes()?;
    per_second(64, count, async |number| by_steps(&engine, &format!("bytes-step-{number}")).await).await?;
    let with_steps = bytes()?;
    per_second(64, count, async |number| by_hand(&engine, &format!("bytes-hand-{number}")).await).await?;
    let with_hand = bytes()?;
    let parents = with_bare - before;
    let each = |grown: f64| (grown - parents) / (NAMES.len() * count) as f64;
    say(&format!(
        "{store}, bytes: a step {:.0}, a run by hand {:.0}; an operation without steps {:.0}",
        each(with_steps - with_bare),
        each(with_hand - with_steps),
        parents / count as f64
    ));
    Ok(())
}

fn number(text: &str) -> Outcome<f64> {
    Ok(text.trim().parse::<f64>()?)
}

/// Returns the size of the file's contents, without its free pages.
fn sqlite_bytes(file: &str) -> Outcome<f64> {
    #[derive(QueryableByName)]
    struct Bytes {
        #[diesel(sql_type = diesel::sql_types::BigInt)]
        bytes: i64,
    }
    let sql = "SELECT (page_count - freelist_count) * page_size AS bytes
               FROM pragma_page_count, pragma_freelist_count, pragma_page_size";
    let found: Bytes = diesel::sql_query(sql).get_result(&mut SqliteConnection::establish(file)?)?;
    Ok(found.bytes as f64)
}

/// Returns the size of the tables and their indexes, after the remains of updates are gone.
fn postgres_bytes(server: &Postgres) -> Outcome<f64> {
    server.sql("VACUUM FULL");
    let of_tables = "FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace";
    number(&server.sql(&format!("SELECT sum(pg_total_relation_size(oid)) {of_tables}")))
}

fn mariadb_bytes(server: &MariaDb) -> Outcome<f64> {
    let of_tables = "FROM information_schema.tables WHERE table_schema = 'shop'";
    let names = server.sql(&format!("SELECT group_concat(table_name) {of_tables}"));
    server.sql(&format!("OPTIMIZE TABLE {names}"));
    number(&server.sql(&format!("SELECT sum(data_length + index_length) {of_tables}")))
}

fn redis_bytes(server: &Redis) -> Outcome<f64> {
    let told = server.cli(&["info", "memory"]);
    let used =
        told.lines().find_map(|line| line.strip_prefix("used_memory:")).ok_or("INFO memory has no used_memory")?;
    number(used)
}

#[actix_rt::main]
async fn main() -> Outcome {
    // A test run has nothing to measure.
    if std::env::args().any(|argument| argument == "--test" || argument == "--list") {
        return Ok(());
    }
    let asked = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    let sizes = Sizes {
        rounds: asked("ONCEKEY_BENCH_ROUNDS").unwrap_or(5),
        flows: asked("ONCEKEY_BENCH_FLOWS").unwrap_or(5_000),
    };

    let backend = MemoryBackend::new();
    let memory = backend.clone();
    compare("memory", backend, &sizes, || Ok(memory.bytes() as f64)).await?;

    let folder = tempfile::tempdir_in(target_folder()?)?;
    let file = folder.path().join("keys.db").display().to_string();
    compare("SQLite", SqliteBackend::open(&file)?, &sizes, || sqlite_bytes(&file)).await?;

    let server = Postgres::start();
    compare("PostgreSQL", PostgresBackend::open(&server.url()).await?, &sizes, || postgres_bytes(&server)).await?;

    let server = MariaDb::start();
    compare("MariaDB", MysqlBackend::open(&server.url()).await?, &sizes, || mariadb_bytes(&server)).await?;

    let server = Redis::start();
    compare("Redis", RedisBackend::open(&server.url()).await?, &sizes, || redis_bytes(&server)).await?;
    Ok(())
}
