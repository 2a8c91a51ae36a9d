//! The engine against the yardstick, and a guarded route against the same route unguarded, with one table at the end.

use std::error::Error;
use std::time::Instant;

use benches::compare::{Turns, side, take_turns};
use benches::drive::{self, Load};
use benches::http::Kind;
use benches::http::client::{CONNECTIONS, Client};
use benches::http::server::{self, Server};
use benches::report::{Report, Row, say, target_folder};
use benches::settings::Settings;
use benches::{memory_use, yardstick};

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Outcome {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [server::ARGUMENT] => return Ok(server::serve()?),
        [memory_use::ARGUMENT, keys] => return Ok(memory_use::measure_and_print(keys.parse()?)?),
        // A test run has nothing to measure: the library's own tests cover the measured code.
        arguments if arguments.contains(&"--test") || arguments.contains(&"--list") => return Ok(()),
        _ => {}
    }
    let (settings, began) = (Settings::from_env(), Instant::now());
    let mut report = Report::default();
    in_memory(settings, 1, &mut report)?;
    in_memory(settings, 2, &mut report)?;
    over_http(settings, &mut report)?;
    on_sqlite(settings, &mut report)?;
    memory_of_a_key(settings, &mut report)?;
    report.notes.push(format!(
        "{} cores; {} rounds ({} on SQLite), the sides in turns; figures are medians of turns, ratios medians of rounds",
        std::thread::available_parallelism()?,
        settings.rounds,
        settings.sqlite_rounds,
    ));
    let json = report.write_json()?;
    say(&format!("\n{report}"));
    say(&format!("{:.0} s; also written to {}", began.elapsed().as_secs_f64(), json.display()));
    Ok(())
}

fn in_memory(settings: Settings, threads: usize, report: &mut Report) -> Outcome {
    let load = |in_flight| Load { threads, in_flight, operations: settings.operations };
    say(&format!("in memory, {threads} thread(s) …"));
    let sides = vec![
        side(|| Ok(drive::memory::yardstick(load(1)))),
        side(|| Ok(drive::memory::engine(load(1))?)),
        side(|| Ok(drive::memory::engine(load(64))?)),
    ];
    let measured = take_turns(settings.rounds, sides);
    let [yardstick, one, many] = measured.as_slice() else { return Err("three sides took turns".into()) };
    let plural = if threads == 1 { "thread" } else { "threads" };
    let wanted = if threads == 1 { 0.5 } else { 1.0 };
    for (phase, name, wanted) in [(0, "first use", Some(wanted)), (1, "replay", None)] {
        for (in_flight, ours) in [(1, one), (64, many)] {
            let what = format!("memory, {name}, {threads} {plural}, {in_flight} in flight");
            report.rows.push(Row::ratio(&what, "op/s", &ours[phase], &yardstick[phase], wanted));
        }
    }
    Ok(())
}

fn over_http(settings: Settings, report: &mut Report) -> Outcome {
    say(&format!("over HTTP, {CONNECTIONS} connections …"));
    let server = Server::start()?;
    let client = std::cell::RefCell::new(Client::new(server.port)?);
    let of = |kind| {
        let client = &client;
        side(move || Ok(vec![client.borrow_mut().turn(kind, settings.http_turn)?]))
    };
    let sides = [Kind::Unguarded, Kind::FirstUse, Kind::Replay, Kind::Bare].map(of);
    let measured: Vec<Turns> = take_turns(settings.rounds, sides.into()).into_iter().flatten().collect();
    let [unguarded, first_use, replay, bare] = measured.as_slice() else { return Err("four sides took turns".into()) };
    report.rows.extend([
        Row::ratio("HTTP, first use : the route unguarded", "req/s", first_use, unguarded, Some(0.75)),
        Row::ratio("HTTP, replay : the route unguarded", "req/s", replay, unguarded, Some(0.85)),
        Row::ratio("HTTP, unguarded : no middleware at all", "req/s", unguarded, bare, None),
    ]);
    Ok(())
}

fn on_sqlite(settings: Settings, report: &mut Report) -> Outcome {
    say("on SQLite …");
    let (folder, turn) = (target_folder()?, settings.sqlite_turn);
    let sides = vec![
        side(|| drive::sqlite::yardstick(&folder, 1, turn)),
        side(|| drive::sqlite::yardstick(&folder, 4, turn)),
        side(|| drive::sqlite::engine(&folder, 64, turn)),
        side(|| drive::sqlite::engine(&folder, 1, turn)),
    ];
    let measured = take_turns(settings.sqlite_rounds, sides);
    let [by_one, by_four, many, one] = measured.as_slice() else { return Err("four sides took turns".into()) };
    let best = |phase: usize| {
        let is_one = benches::compare::median(&by_one[phase]) >= benches::compare::median(&by_four[phase]);
        if is_one { (&by_one[phase], 1) } else { (&by_four[phase], 4) }
    };
    for (phase, name, wanted) in [(0, "first use", Some(10.0)), (1, "replay", None)] {
        let (yardstick, connections) = best(phase);
        for (in_flight, ours, wanted) in [(64, many, wanted), (1, one, None)] {
            let what = format!("SQLite, {name}, {in_flight} in flight");
            report.rows.push(Row::ratio(&what, "op/s", &ours[phase], yardstick, wanted));
        }
        report
            .notes
            .push(format!("SQLite, {name}: of 1 and 4 connections the yardstick was faster with {connections}"));
    }
    report.notes.push("SQLite: WAL, synchronous = FULL on both sides, files in Cargo's target folder".to_owned());
    Ok(())
}

fn memory_of_a_key(settings: Settings, report: &mut Report) -> Outcome {
    say(&format!("{} completed keys …", settings.completed_keys));
    let measured = memory_use::measure_apart(settings.completed_keys)?;
    report.rows.extend([
        Row::figure("KeyLock actors of an idle engine", "actors", measured.key_locks_when_idle as f64).exactly(0.0),
        Row::figure("memory of a completed key, resident", "bytes", measured.resident_bytes_per_key),
        Row::figure("memory of a completed key, by the backend", "bytes", measured.backend_bytes_per_key),
    ]);
    report.notes.push(format!(
        "memory of a key: over {} keys, each with an outcome of {} bytes",
        measured.completed_keys,
        yardstick::response().body.len(),
    ));
    Ok(())
}
