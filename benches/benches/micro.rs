//! Measures what each part of a call costs by itself.

use std::cell::Cell;
use std::hint::black_box;
use std::time::{Duration, Instant};

use actix::prelude::*;
use actix_web::http::{StatusCode, header};
use benches::drive::{call, key, key_text};
use benches::yardstick::memory::Memory;
use benches::yardstick::response;
use benches::{BODY, OUTCOME};
use criterion::{Criterion, criterion_group, criterion_main};
use oncekey::record::{Payload, SealedOutcome};
use oncekey::web::RecordedResponse;
use oncekey::{Engine, Fingerprint};
use oncekey_backends::MemoryBackend;

/// Measures the parts that need no actor.
fn parts(criterion: &mut Criterion) {
    let numbers = Cell::new(0);
    let number = || numbers.replace(numbers.get() + 1);
    criterion.bench_function("key", |bencher| bencher.iter(|| key(0, number())));
    criterion.bench_function("fingerprint of 100 bytes", |bencher| bencher.iter(|| Fingerprint::of(black_box(BODY))));
    let (key, value) = (key(0, 0), OUTCOME.to_owned());
    criterion.bench_function("outcome, sealed", |bencher| bencher.iter(|| SealedOutcome::of_value(&key, &value)));
    let sealed = SealedOutcome::of_value(&key, &value).unwrap_or_else(|_| unreachable!("a string is JSON"));
    criterion.bench_function("outcome, opened", |bencher| bencher.iter(|| sealed.value::<String>(&key)));
    let recorded = RecordedResponse::new(StatusCode::OK, OUTCOME)
        .header(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"))
        .seal(&key);
    criterion.bench_function("HTTP response, opened and decoded", |bencher| {
        bencher.iter(|| match recorded.open(&key) {
            Ok(Payload::Value { bytes, .. }) => RecordedResponse::decode(bytes).is_ok(),
            _ => false,
        });
    });
}

/// Answers a message with nothing. It measures one round trip between two actors of an arbiter.
struct Echo;

impl Actor for Echo {
    type Context = Context<Self>;
}

#[derive(Message)]
#[rtype(result = "()")]
struct Ping;

impl Handler<Ping> for Echo {
    type Result = ();

    fn handle(&mut self, _: Ping, _: &mut Self::Context) {}
}

/// Times `count` rounds of `work` on an arbiter.
fn on_arbiter(count: u64, work: impl AsyncFn(u64)) -> Duration {
    actix_rt::System::new().block_on(async {
        let began = Instant::now();
        for round in 0..count {
            work(round).await;
        }
        began.elapsed()
    })
}

fn actors(criterion: &mut Criterion) {
    criterion.bench_function("actix: send and answer on one arbiter", |bencher| {
        bencher.iter_custom(|count| {
            actix_rt::System::new().block_on(async {
                let echo = Echo.start();
                let began = Instant::now();
                for _ in 0..count {
                    let _ = echo.send(Ping).await;
                }
                began.elapsed()
            })
        });
    });
    criterion.bench_function("actix: an actor started and ended", |bencher| {
        bencher.iter_custom(|count| {
            on_arbiter(count, async |_| {
                let _ = Echo.start().send(Ping).await;
            })
        });
    });
}

/// Measures whole calls, one after the other, on a store that keeps their records.
fn calls(criterion: &mut Criterion) {
    let engine = || Engine::builder(MemoryBackend::new()).start().unwrap_or_else(|_| unreachable!("by its defaults"));
    criterion.bench_function("engine: first use", |bencher| {
        bencher.iter_custom(|count| {
            let engine = engine();
            on_arbiter(count, async |round| {
                call(&engine, key(0, round as usize)).await;
            })
        });
    });
    criterion.bench_function("engine: replay", |bencher| {
        bencher.iter_custom(|count| {
            let engine = engine();
            on_arbiter(count, async |_| {
                call(&engine, key(0, 0)).await;
            })
        });
    });
    criterion.bench_function("yardstick: first use", |bencher| {
        bencher.iter_custom(|count| {
            let memory = Memory::default();
            let began = Instant::now();
            for round in 0..count {
                black_box(memory.first_use(&key_text(0, round as usize), BODY, response));
            }
            began.elapsed()
        });
    });
    let memory = Memory::default();
    memory.first_use(&key_text(0, 0), BODY, response);
    criterion.bench_function("yardstick: replay", |bencher| bencher.iter(|| memory.replay(&key_text(0, 0), BODY)));
}

/// Returns settings with which the whole of `cargo bench` takes only minutes.
fn settings() -> Criterion {
    let quick = std::env::var_os("ONCEKEY_BENCH_QUICK").is_some();
    let (warm_up, measurement) = if quick { (50, 200) } else { (500, 2_000) };
    Criterion::default()
        .without_plots()
        .sample_size(if quick { 10 } else { 30 })
        .warm_up_time(Duration::from_millis(warm_up))
        .measurement_time(Duration::from_millis(measurement))
}

criterion_group! { name = micro; config = settings(); targets = parts, actors, calls }
criterion_main!(micro);
