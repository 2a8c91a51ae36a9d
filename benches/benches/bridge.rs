//! Compares plain threads with the async handle for in-process events on memory. There are 8 threads or 8 tasks; the
//! sides take turns in one run.
//!
//! `cargo bench -p benches --bench bridge`

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use benches::compare::{Side, Turns, single, take_turns};
use benches::report::{Report, Row, say};
use oncekey::consumer::{BlockingProcessor, MessageKey, blocking_job, crossbeam_channel};
use oncekey::{Engine, Fingerprint, Key, KeyError};
use oncekey_backends::MemoryBackend;

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// The number of threads or tasks.
const WORKERS: usize = 8;
/// How many messages a thread of the processor takes at once.
const BATCH: usize = 64;
const QUEUE: usize = 1_024;

fn main() -> Outcome {
    if std::env::args().any(|argument| argument == "--test" || argument == "--list") {
        return Ok(());
    }
    let quick = std::env::var_os("ONCEKEY_BENCH_QUICK").is_some();
    let (events, rounds) = if quick { (40_000, 1) } else { (1_000_000, 3) };
    let sides: Vec<Side<'_>> = vec![
        single(move || on_an_arbiter(events)),
        single(move || on_tokio(events)),
        single(move || by_processor(events, 1)),
        single(move || by_processor(events, BATCH)),
        single(move || by_calls(events)),
    ];
    let measured: Vec<Turns> = take_turns(rounds, sides).into_iter().flatten().collect();
    let [arbiter, tokio, single, batched, calls] = measured.as_slice() else { return Err("five took turns".into()) };
    let mut report = Report::default();
    report.rows.extend([
        Row::ratio("processor of 8 threads, in batches : tasks on an arbiter", "event/s", batched, arbiter, Some(0.5)),
        Row::ratio("processor of 8 threads, in batches : tasks on tokio", "event/s", batched, tokio, Some(0.5)),
        Row::ratio("processor of 8 threads, one by one : tasks on tokio", "event/s", single, tokio, None),
        Row::ratio("run_blocking on 8 threads : tasks on tokio", "event/s", calls, tokio, None),
    ]);
    report.notes.push(format!(
        "{} cores; {events} events, {rounds} rounds; {WORKERS} threads or tasks; batches of {BATCH}, a queue of {QUEUE}",
        std::thread::available_parallelism()?
    ));
    say(&report.to_string());
    Ok(())
}

fn key(event: usize) -> Result<Key, KeyError> {
    Key::new("event", event)
}

fn asked() -> Fingerprint {
    Fingerprint::from_bytes([7; Fingerprint::LEN])
}

fn engine() -> Outcome<Engine> {
    Ok(Engine::builder(MemoryBackend::new()).start()?)
}

fn rate(events: usize, began: Instant) -> f64 {
    events as f64 / began.elapsed().as_secs_f64()
}

async fn run(engine: Engine, first: usize, events: usize) -> Outcome {
    for event in (first..events).step_by(WORKERS) {
        engine.run(key(event)?, asked(), move |_| async move { Ok::<usize, std::fmt::Error>(event) }).await?;
    }
    Ok(())
}

/// Runs the async handle where nothing crosses a thread.
fn on_an_arbiter(events: usize) -> Outcome<f64> {
    actix_rt::System::new().block_on(async {
        let (engine, began) = (engine()?, Instant::now());
        let tasks: Vec<_> = (0..WORKERS).map(|first| actix_rt::spawn(run(engine.clone(), first, events))).collect();
        for task in tasks {
            task.await??;
        }
        Ok(rate(events, began))
    })
}

/// Runs the async handle from tasks outside any arbiter, where the plain threads are too.
fn on_tokio(events: usize) -> Outcome<f64> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build()?;
    let (engine, began) = (engine()?, Instant::now());
    runtime.block_on(async {
        let tasks: Vec<_> = (0..WORKERS).map(|first| tokio::spawn(run(engine.clone(), first, events))).collect();
        for task in tasks {
            task.await??;
        }
        Ok(rate(events, began))
    })
}

/// Runs the blocking processor, from the channel to the last outcome.
fn by_processor(events: usize, batch: usize) -> Outcome<f64> {
    let work = blocking_job(
        |event: &usize| Ok(MessageKey { key: key(*event)?, fingerprint: asked() }),
        |event, _claim| Ok::<usize, std::fmt::Error>(*event),
    );
    let (messages, taken) = crossbeam_channel::bounded(QUEUE);
    let began = Instant::now();
    let processor = BlockingProcessor::builder(engine()?, work).threads(WORKERS).batch(batch).start(taken)?;
    for event in 0..events {
        messages.send(event)?;
    }
    drop(messages);
    let processed = processor.join();
    if processed.ran != events as u64 {
        return Err(format!("{processed:?}").into());
    }
    Ok(rate(events, began))
}

/// Lets each thread call the engine directly.
fn by_calls(events: usize) -> Outcome<f64> {
    let (engine, began) = (Arc::new(engine()?), Instant::now());
    let thread = |first: usize| {
        let engine = Arc::clone(&engine);
        std::thread::spawn(move || -> Outcome {
            for event in (first..events).step_by(WORKERS) {
                engine.run_blocking(key(event)?, asked(), |_| Ok::<usize, std::fmt::Error>(event))?;
            }
            Ok(())
        })
    };
    for thread in (0..WORKERS).map(thread).collect::<Vec<_>>() {
        thread.join().map_err(|_| "a thread panicked")??;
    }
    Ok(rate(events, began))
}
