//! Measures what one damaged record costs a consumer. It processes 20,000 messages with and without the damage, in
//! turns, in one run.
//!
//! `cargo bench -p benches --bench consumers`

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use benches::compare::{Side, Turns, single, take_turns};
use benches::report::{Report, Row, say};
use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use oncekey::consumer::{
    BlockingProcessor, Disposition, MessageKey, Processor, blocking_job, crossbeam_channel, in_process, job,
};
use oncekey::{Engine, Fingerprint, Key, KeyError};
use oncekey_backends::SqliteBackend;

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

const MESSAGES: u64 = 20_000;
/// The message whose record is already in the store, intact or damaged.
const KNOWN: u64 = MESSAGES / 2;
const CONCURRENCY: usize = 64;
/// The number of threads, and how many messages each takes at once.
const THREADS: (usize, usize) = (8, 8);

fn main() -> Outcome {
    if std::env::args().any(|argument| argument == "--test" || argument == "--list") {
        return Ok(());
    }
    let rounds = if std::env::var_os("ONCEKEY_BENCH_QUICK").is_some() { 1 } else { 7 };
    let sides: Vec<Side<'_>> = vec![
        single(|| by_tasks(false)),
        single(|| by_tasks(true)),
        single(|| by_threads(false)),
        single(|| by_threads(true)),
    ];
    let measured: Vec<Turns> = take_turns(rounds, sides).into_iter().flatten().collect();
    let [tasks, tasks_damaged, threads, threads_damaged] = measured.as_slice() else {
        return Err("four took turns".into());
    };
    let mut report = Report::default();
    report.rows.extend([
        Row::ratio("processor, a damaged record : none", "message/s", tasks_damaged, tasks, Some(0.95)),
        Row::ratio("processor of threads, a damaged record : none", "message/s", threads_damaged, threads, Some(0.95)),
    ]);
    report.notes.push(format!(
        "{} cores; {MESSAGES} messages on SQLite, {rounds} rounds; {CONCURRENCY} jobs at once, or {} threads in batches of {}",
        std::thread::available_parallelism()?,
        THREADS.0,
        THREADS.1,
    ));
    say(&report.to_string());
    Ok(())
}

fn key(message: u64) -> Result<Key, KeyError> {
    Key::new("message", message)
}

fn identity(message: &u64) -> Result<MessageKey, oncekey::consumer::IdentifyError> {
    Ok(MessageKey { key: key(*message)?, fingerprint: Fingerprint::from_bytes([7; Fingerprint::LEN]) })
}

/// Puts one record into the store, intact or damaged.
fn prepare(file: &Path, is_damaged: bool) -> Outcome {
    let engine = Engine::builder(SqliteBackend::open(file)?).start()?;
    let MessageKey { key, fingerprint } = identity(&KNOWN)?;
    engine.run_blocking(key, fingerprint, |_| Ok::<u64, std::fmt::Error>(KNOWN))?;
    if is_damaged {
        let mut beside = SqliteConnection::establish(file.to_str().ok_or("a path of UTF-8")?)?;
        beside.batch_execute("PRAGMA busy_timeout = 10000; UPDATE oncekey_records SET state = 9")?;
    }
    Ok(())
}

/// Checks that the damaged record gave one dead letter with its reason, or that there was none, and that all other
/// messages were acknowledged.
fn check(is_damaged: bool, (ran, replayed): (u64, u64), reasons: &[String]) -> Outcome {
    let is_right = if is_damaged {
        (ran, replayed) == (MESSAGES - 1, 0) && matches!(reasons, [reason] if reason.contains("corrupt"))
    } else {
        (ran, replayed) == (MESSAGES - 1, 1) && reasons.is_empty()
    };
    if is_right { Ok(()) } else { Err(format!("{ran} ran, {replayed} were replayed, {reasons:?} are dead").into()) }
}

fn by_tasks(is_damaged: bool) -> Outcome<f64> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("keys.db");
    prepare(&file, is_damaged)?;
    actix_rt::System::new().block_on(async {
        let engine = Engine::builder(SqliteBackend::open(&file)?).start()?;
        let (publisher, source) = in_process::channel(1_000);
        let (source, mut dead) = source.with_dead_letters(10);
        let work = job(identity, |call: oncekey::consumer::Call, message: std::sync::Arc<u64>| async move {
            call.run(move |_| async move { Ok::<u64, std::fmt::Error>(*message) }).await
        });
        let began = Instant::now();
        let publishing = actix_rt::spawn(async move {
            for message in 0..MESSAGES {
                publisher.send(message).await?;
            }
            Ok::<(), in_process::Closed<u64>>(())
        });
        let processor = Processor::new(engine, source, work).concurrency(CONCURRENCY);
        let processed = processor.run(std::future::pending()).await;
        let rate = MESSAGES as f64 / began.elapsed().as_secs_f64();
        publishing.await??;
        let mut reasons = Vec::new();
        while let Ok(letter) = dead.try_recv() {
            reasons.push(letter.reason);
        }
        check(is_damaged, (processed.ran, processed.replayed), &reasons)?;
        Ok(rate)
    })
}

fn by_threads(is_damaged: bool) -> Outcome<f64> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("keys.db");
    prepare(&file, is_damaged)?;
    let engine = Engine::builder(SqliteBackend::open(&file)?).start()?;
    let work = blocking_job(identity, |message: &u64, _claim| Ok::<u64, std::fmt::Error>(*message));
    let (letters, dead) = crossbeam_channel::unbounded();
    let (messages, taken) = crossbeam_channel::bounded(1_000);
    let began = Instant::now();
    let processor = BlockingProcessor::builder(engine, work)
        .threads(THREADS.0)
        .batch(THREADS.1)
        .on_settled(move |_, disposition| {
            if let Disposition::DeadLetter { reason } = disposition {
                // The receiver exists until all messages are settled.
                let _ = letters.send(reason);
            }
        })
        .start(taken)?;
    for message in 0..MESSAGES {
        messages.send(message)?;
    }
    drop(messages);
    let processed = processor.join();
    let rate = MESSAGES as f64 / began.elapsed().as_secs_f64();
    check(is_damaged, (processed.ran, processed.replayed), &dead.try_iter().collect::<Vec<_>>())?;
    Ok(rate)
}
