//! First use and replay of a key over Redis, with 64 and with one in flight. It compares the engine, the six-step
//! sequence that the engine replaces (get, lock, set, get, set, unlock), and two bare commands per flow, `SET NX GET
//! PX` and `SET PX`. All run on one thread with the same driver. The bench starts the server.
//!
//! The sequence uses a pool of connections, one for each flow in flight, and every step is a round trip. This is how
//! such sequences are usually written. The bench also shows it over one multiplexed connection, which sends ready
//! commands together.

use std::error::Error;
use std::time::Instant;

use benches::compare::median;
use benches::flows::per_second;
use benches::report::say;
use oncekey::{Engine, Key};
use oncekey_backends::RedisBackend;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, Pipeline};
use tests::server::Redis;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

const ROUNDS: usize = 5;
/// A minute for the lock, and a day for the record.
const LOCK_MILLIS: usize = 60_000;
const RECORD_MILLIS: usize = 86_400_000;
/// The values stored during the operation and after it. They have the same sizes as the engine's values.
const PENDING: [u8; 66] = [b'p'; 66];
const DONE: [u8; 74] = [b'd'; 74];

fn set(name: &str, value: &[u8], millis: usize) -> Cmd {
    redis::cmd("SET").arg(name).arg(value).arg("PX").arg(millis).take()
}

/// Sends two commands per flow, each flow by itself. The driver sends ready commands together.
async fn bare(mut connection: MultiplexedConnection, name: String) -> Outcome {
    let mut claim = redis::cmd("SET");
    claim.arg(&name).arg(&PENDING).arg("NX").arg("GET").arg("PX").arg(RECORD_MILLIS);
    connection.send_packed_command(&claim).await?;
    connection.send_packed_command(&set(&name, &DONE, RECORD_MILLIS)).await?;
    Ok(())
}

/// Sends the same commands in one explicit pipeline of claims and one of outcomes, for as many flows as are in flight.
/// This is the upper limit.
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

/// A first use by the six-step sequence: each step is a round trip.
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

/// A replay by the same sequence: one lookup.
async fn look_up(mut connection: MultiplexedConnection, name: String) -> Outcome {
    connection.send_packed_command(redis::cmd("GET").arg(format!("idempotency:{name}"))).await?;
    Ok(())
}

#[derive(Default)]
struct Found {
    first: Vec<f64>,
    replay: Vec<f64>,
    six: Vec<f64>,
    six_multiplexed: Vec<f64>,
    looked_up: Vec<f64>,
    looked_up_multiplexed: Vec<f64>,
    bare: Vec<f64>,
    pipelined: Vec<f64>,
    /// Processor time, in microseconds, that the client and the server take for a first use by the engine.
    client: Vec<f64>,
    server: Vec<f64>,
}

/// Returns the processor time of this process, in seconds.
fn own_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Returns the processor time of the server, in seconds.
async fn server_seconds(connection: &mut MultiplexedConnection) -> Outcome<f64> {
    let info: redis::InfoDict = redis::cmd("INFO").arg("cpu").query_async(connection).await?;
    let used = |name| info.get::<f64>(name).unwrap_or_default();
    Ok(used("used_cpu_user") + used("used_cpu_sys"))
}

/// Lets the sides take turns, each turn with fresh keys. The server is emptied between turns.
async fn compare(server: &Redis, in_flight: usize, flows: usize) -> Outcome {
    let mut found = Found::default();
    let client = redis::Client::open(server.url())?;
    // No side has a response timeout.
    let config = redis::AsyncConnectionConfig::new().set_response_timeout(None);
    let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
    let mut pool = Vec::new();
    for _ in 0..in_flight {
        pool.push(client.get_multiplexed_async_connection_with_config(&config).await?);
    }
    let backend = RedisBackend::open(&format!("{}?accept=weak-persistence", server.url())).await?;
    let engine = Engine::builder(backend).start()?;
    for round in 0..ROUNDS {
        let run = async |number: usize| {
            let key = Key::new("bench", format_args!("{round}-{number}"))?;
            engine.run(key, b"body", |_| async { Ok::<u32, ()>(17) }).await.map_err(|error| format!("{error:?}"))?;
            Ok(())
        };
        let (own, its) = (own_seconds(), server_seconds(&mut connection).await?);
        found.first.push(per_second(in_flight, flows, &run).await?);
        found.client.push((own_seconds() - own) / flows as f64 * 1e6);
        found.server.push((server_seconds(&mut connection).await? - its) / flows as f64 * 1e6);
        found.replay.push(per_second(in_flight, flows, &run).await?);

        // The side whose turn it is takes its connections from the pool.
        let pooled = std::cell::RefCell::new(pool.clone());
        let take = || pooled.borrow_mut().pop().ok_or("more in flight than connections");
        let fewer = flows / 4;
        let flow = async |n: usize| {
            let lent = take()?;
            let done = six_steps(lent.clone(), format!("pooled:{round}-{n}")).await;
            pooled.borrow_mut().push(lent);
            done
        };
        found.six.push(per_second(in_flight, fewer, flow).await?);
        let flow = async |n: usize| {
            let lent = take()?;
            let done = look_up(lent.clone(), format!("pooled:{round}-{}", n % fewer)).await;
            pooled.borrow_mut().push(lent);
            done
        };
        found.looked_up.push(per_second(in_flight, flows, flow).await?);

        let name = |number: usize| format!("multiplexed:{round}-{number}");
        let flow = async |n: usize| six_steps(connection.clone(), name(n)).await;
        found.six_multiplexed.push(per_second(in_flight, fewer, flow).await?);
        let flow = async |n: usize| look_up(connection.clone(), name(n % fewer)).await;
        found.looked_up_multiplexed.push(per_second(in_flight, flows, flow).await?);
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
    report(found, in_flight);
    Ok(())
}

fn report(found: Found, in_flight: usize) {
    let (first, replay) = (median(&found.first), median(&found.replay));
    let (client, server) = (median(&found.client), median(&found.server));
    let line = |what: &str, beside: f64, ours: f64, wanted: &str| {
        say(&format!("  {what:<42} {beside:>9.0}   engine / this {:>5.2}{wanted}", ours / beside));
    };
    let wanted = |at_64: &'static str, at_1: &'static str| if in_flight == 1 { at_1 } else { at_64 };
    say(&format!("{in_flight} in flight, flows a second:"));
    say(&format!(
        "  {:<42} {first:>9.0}   processor: {client:.1} us here, {server:.1} us in the server",
        "engine, first use"
    ));
    line("six steps, a pool of connections", median(&found.six), first, wanted(", wanted 4", ", wanted 2.5"));
    line("six steps, one multiplexed connection", median(&found.six_multiplexed), first, "");
    line("two bare commands, multiplexed", median(&found.bare), first, "");
    line("two bare commands, in pipelines by hand", median(&found.pipelined), first, wanted(", wanted 0.5", ""));
    say(&format!("  {:<42} {replay:>9.0}", "engine, replay"));
    line("one look-up, a pool of connections", median(&found.looked_up), replay, wanted(", wanted 1.5", ""));
    line("one look-up, one multiplexed connection", median(&found.looked_up_multiplexed), replay, "");
}

#[actix_rt::main]
async fn main() -> Outcome {
    // A test run has nothing to measure.
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
