//! First use and replay of a key over Redis, with 64 and with one in flight: the engine, the six-step sequence (get, lock,
//! set, get, set, unlock) that it replaces, and two bare commands a flow, `SET NX GET PX` and `SET PX`. All on one thread,
//! over one multiplexed connection of the same driver; the server is started here.

use std::error::Error;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use oncekey::{Engine, Key};
use oncekey_backends::RedisBackend;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, Pipeline};
use tests::server::Redis;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

const ROUNDS: usize = 5;
/// A minute and a day, as the seed has it.
const LOCK_MILLIS: usize = 60_000;
const RECORD_MILLIS: usize = 86_400_000;
/// What is stored while the operation runs, and after it: of the sizes that the engine's own values have.
const PENDING: [u8; 66] = [b'p'; 66];
const DONE: [u8; 74] = [b'd'; 74];

#[expect(clippy::print_stdout, reason = "a bench prints what it found")]
fn say(text: &str) {
    println!("{text}");
}

/// Runs `flow` over and over in as many tasks as are in flight, and gives how many a second.
async fn per_second(in_flight: usize, flows: usize, flow: impl AsyncFn(usize) -> Outcome) -> Outcome<f64> {
    let (next, began) = (AtomicUsize::new(0), Instant::now());
    let worker = async || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= flows {
                return Ok::<(), Box<dyn Error>>(());
            }
            flow(number).await?;
        }
    };
    futures_util::future::try_join_all((0..in_flight).map(|_| worker())).await?;
    Ok(flows as f64 / began.elapsed().as_secs_f64())
}

fn set(name: &str, value: &[u8], millis: usize) -> Cmd {
    redis::cmd("SET").arg(name).arg(value).arg("PX").arg(millis).take()
}

/// Two commands a flow, each flow by itself; the driver sends together what is ready together.
async fn bare(mut connection: MultiplexedConnection, name: String) -> Outcome {
    let mut claim = redis::cmd("SET");
    claim.arg(&name).arg(&PENDING).arg("NX").arg("GET").arg("PX").arg(RECORD_MILLIS);
    connection.send_packed_command(&claim).await?;
    connection.send_packed_command(&set(&name, &DONE, RECORD_MILLIS)).await?;
    Ok(())
}

/// The same, made by hand into one pipeline of claims and one of outcomes for as many flows as are in flight: the limit.
async fn bare_pipelined(connection: &mut MultiplexedConnection, names: &[String]) -> Outcome {
    let mut claims = Pipeline::with_capacity(names.len());
    let mut outcomes = Pipeline::with_capacity(names.len());
    for name in names {
        claims.cmd("SET").arg(name).arg(&PENDING).arg("NX").arg("GET").arg("PX").arg(RECORD_MILLIS);
        outcomes.cmd("SET").arg(name).arg(&DONE).arg("PX").arg(RECORD_MILLIS);
    }
    connection.send_packed_commands(&claims, 0, names.len()).await?;
    connection.send_packed_commands(&outcomes, 0, names.len()).await?;
    Ok(())
}

/// A first use as the seed does it: each step a round trip.
async fn six_steps(mut connection: MultiplexedConnection, name: String) -> Outcome {
    let (record, lock) = (format!("idempotency:{name}"), format!("idempotency:{name}:lock"));
    let get = redis::cmd("GET").arg(&record).take();
    connection.send_packed_command(&get).await?;
    let mut take = redis::cmd("SET");
    take.arg(&lock).arg("locked").arg("NX").arg("PX").arg(LOCK_MILLIS);
    connection.send_packed_command(&take).await?;
    connection.send_packed_command(&set(&record, &PENDING, RECORD_MILLIS)).await?;
    connection.send_packed_command(&get).await?;
    connection.send_packed_command(&set(&record, &DONE, RECORD_MILLIS)).await?;
    connection.send_packed_command(redis::cmd("DEL").arg(&lock)).await?;
    Ok(())
}

/// A replay as the seed does it: one look-up, and its body's SHA-256 is the caller's.
async fn seed_replay(mut connection: MultiplexedConnection, name: String) -> Outcome {
    connection.send_packed_command(redis::cmd("GET").arg(format!("idempotency:{name}"))).await?;
    Ok(())
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

#[derive(Default)]
struct Found {
    first: Vec<f64>,
    replay: Vec<f64>,
    six: Vec<f64>,
    seed_replay: Vec<f64>,
    bare: Vec<f64>,
    pipelined: Vec<f64>,
}

/// The sides in turns, each turn with keys of its own; each on a server that is emptied between them.
async fn compare(server: &Redis, in_flight: usize, flows: usize) -> Outcome {
    let mut found = Found::default();
    let mut connection = redis::Client::open(server.url())?.get_multiplexed_async_connection().await?;
    let engine =
        Engine::builder(RedisBackend::open(&format!("{}?accept=weak-persistence", server.url())).await?).start()?;
    for round in 0..ROUNDS {
        let run = async |number: usize| {
            let key = Key::new("bench", format_args!("{round}-{number}"))?;
            engine.run(key, b"body", |_| async { Ok::<u32, ()>(17) }).await.map_err(|error| format!("{error:?}"))?;
            Ok(())
        };
        found.first.push(per_second(in_flight, flows, &run).await?);
        found.replay.push(per_second(in_flight, flows, &run).await?);
        let name = |number: usize| format!("bench:{round}-{number}");
        found.six.push(per_second(in_flight, flows / 2, async |n| six_steps(connection.clone(), name(n)).await).await?);
        let replay = async |n: usize| seed_replay(connection.clone(), name(n % (flows / 2))).await;
        found.seed_replay.push(per_second(in_flight, flows, replay).await?);
        let name = |number: usize| format!("bare:{round}-{number}");
        found.bare.push(per_second(in_flight, flows, async |n| bare(connection.clone(), name(n)).await).await?);
        let began = Instant::now();
        for block in 0..flows / in_flight {
            let name = |number: usize| format!("pipelined:{round}-{}", block * in_flight + number);
            let names: Vec<String> = (0..in_flight).map(name).collect();
            bare_pipelined(&mut connection, &names).await?;
        }
        found.pipelined.push((flows / in_flight * in_flight) as f64 / began.elapsed().as_secs_f64());
        redis::cmd("FLUSHALL").exec_async(&mut connection).await?;
    }
    let Found { first, replay, six, seed_replay, bare, pipelined } = found;
    let (first, replay, six) = (median(first), median(replay), median(six));
    let (seed_replay, bare, pipelined) = (median(seed_replay), median(bare), median(pipelined));
    let (wanted_first, wanted_replay) = if in_flight == 1 { ("2.5", "-") } else { ("4", "1.5") };
    say(&format!("{in_flight} in flight, flows a second:"));
    say(&format!("  engine, first use       {first:>9.0}"));
    say(&format!("  six steps               {six:>9.0}   engine / this {:.2}, wanted {wanted_first}", first / six));
    say(&format!("  two bare commands       {bare:>9.0}   engine / this {:.2}", first / bare));
    say(&format!("  the same, one pipeline  {pipelined:>9.0}   engine / this {:.2}, wanted 0.5", first / pipelined));
    say(&format!("  engine, replay          {replay:>9.0}"));
    say(&format!(
        "  one look-up             {seed_replay:>9.0}   engine / this {:.2}, wanted {wanted_replay}",
        replay / seed_replay
    ));
    Ok(())
}

#[actix_rt::main]
async fn main() -> Outcome {
    // As a test there is nothing to see.
    if std::env::args().any(|argument| argument == "--test" || argument == "--list") {
        return Ok(());
    }
    let flows: usize = std::env::var("ONCEKEY_BENCH_FLOWS").ok().and_then(|flows| flows.parse().ok()).unwrap_or(60_000);
    for (name, settings) in [
        ("appendonly no, as the figures of the seed", &["--appendonly", "no"][..]),
        ("appendfsync always: every change is on the disk before it is answered", &[][..]),
    ] {
        say(name);
        let server = Redis::start_with(settings);
        compare(&server, 64, flows).await?;
        compare(&server, 1, flows / 10).await?;
    }
    Ok(())
}
