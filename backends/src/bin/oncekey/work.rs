//! Runs the commands.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use indicatif::ProgressBar;
use oncekey::backend::{Filter, Removed, Resolution, Resolved, StateView};
use oncekey::record::{PayloadKind, SealedOutcome};
use oncekey::web::RecordedResponse;
use oncekey::{Engine, Key};
use serde_json::json;

use crate::options::{Command, List, Name, Options, Resolve};
use crate::store::Store;
use crate::{Failure, print};

/// How many records are read at once.
const ON_A_PAGE: usize = 1_000;
const PURGED_AT_ONCE: usize = 1_000;

/// Names the operator in events and logs.
fn operator() -> String {
    std::env::var("USER").ok().filter(|user| !user.is_empty()).unwrap_or_else(|| "command line".to_owned())
}

/// Runs one command. Returns whether its answer is yes.
pub(crate) async fn run(options: Options) -> Result<bool, Failure> {
    let Options { store, json, yes, command } = options;
    let password = std::env::var("ONCEKEY_PASSWORD").ok();
    let store = Store::of(&store.ok_or(Failure::NoStore)?, password.as_deref())?;
    let asks = if yes { Asks::Never } else { Asks::Always };
    match command {
        Command::Schema => {
            print::line(store.schema()?.trim_end())?;
            return Ok(true);
        }
        Command::Migrate => {
            asks.confirm("Make the store's tables, or bring them up to date?")?;
            store.open(true).await?;
            return done(json, "migrated");
        }
        _ => {}
    }
    let engine = store.open(false).await?;
    match command {
        Command::Doctor => doctor(&engine, json).await,
        Command::Stats => stats(&engine, json).await,
        Command::List(list) => self::list(&engine, list, json).await,
        Command::Show(name) => show(&engine, &name, json).await,
        Command::Resolve(resolve) => self::resolve(&engine, resolve, json, asks).await,
        Command::Remove(name) => remove(&engine, &name, json, asks).await,
        Command::EraseScope { scope } => erase(&engine, &scope, json, asks).await,
        Command::Purge => purge(&engine, json).await,
        // Handled above.
        Command::Schema | Command::Migrate => Ok(true),
    }
}

fn done(json: bool, result: &str) -> Result<bool, Failure> {
    if json {
        print::json(&json!({ "result": result }))?
    } else {
        print::line(result)?
    }
    Ok(true)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Asks {
    Always,
    Never,
}

impl Asks {
    /// Asks on the terminal. If nobody can answer, the answer is no.
    fn confirm(self, question: &str) -> Result<(), Failure> {
        if self == Self::Never {
            return Ok(());
        }
        if !io::stdin().is_terminal() {
            return Err(Failure::NotConfirmed);
        }
        let mut told = io::stderr().lock();
        write!(told, "{question} [y/N] ")?;
        told.flush()?;
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer)?;
        if matches!(answer.trim(), "y" | "Y" | "yes") { Ok(()) } else { Err(Failure::NotConfirmed) }
    }
}

async fn doctor(engine: &Engine, json: bool) -> Result<bool, Failure> {
    let findings = engine.doctor().await?;
    if json {
        let findings = findings.iter().map(|finding| {
            let (setting, found, wanted, why) = (&finding.setting, &finding.found, &finding.wanted, &finding.why);
            json!({"server": finding.server, "setting": setting, "found": found, "wanted": wanted, "why": why})
        });
        print::json(&findings.collect())?;
    } else if findings.is_empty() {
        print::line("The store reports no setting that should be changed.")?;
    } else {
        findings.iter().try_for_each(|finding| print::line(&finding.to_string()))?;
    }
    Ok(findings.is_empty())
}

async fn stats(engine: &Engine, json: bool) -> Result<bool, Failure> {
    let stats = engine.stats().await?;
    let counts = [
        ("in progress", stats.in_progress),
        ("completed", stats.completed),
        ("indeterminate", stats.indeterminate),
        ("released", stats.released),
    ];
    if json {
        print::json(&counts.iter().map(|(name, count)| ((*name).replace(' ', "_"), json!(count))).collect())?;
    } else {
        print::table(&["STATE", "RECORDS"], counts.map(|(name, count)| vec![name.to_owned(), count.to_string()]))?;
    }
    Ok(true)
}

/// Prints page by page, so that a large store takes no more memory than a small one. Prints JSON as one record per
/// line.
async fn list(engine: &Engine, list: List, json: bool) -> Result<bool, Failure> {
    let filter = Filter { state: list.state.map(Into::into), scope: list.scope, older_than: list.older_than };
    let (mut left, mut after, mut rows) = (list.limit.unwrap_or(usize::MAX), None, Vec::new());
    while left > 0 {
        let found = engine.find(filter.clone(), after, left.min(ON_A_PAGE)).await?;
        left -= found.records.len();
        for view in &found.records {
            if json {
                print::json(&print::record(view))?;
            } else {
                rows.push(print::row(view));
            }
        }
        after = found.next;
        if after.is_none() {
            break;
        }
    }
    if !json {
        print::table(&print::HEAD, rows)?;
    }
    Ok(true)
}

fn absent(json: bool) -> Result<bool, Failure> {
    done(json, "no record")?;
    Ok(false)
}

async fn show(engine: &Engine, name: &Name, json: bool) -> Result<bool, Failure> {
    let Some(view) = engine.lookup(&Key::new(&name.scope, &name.key)?).await? else { return absent(json) };
    if json {
        print::json(&print::record(&view))?;
        return Ok(true);
    }
    print::table(&print::HEAD, [print::row(&view)])?;
    let steps = view.steps.iter().flat_map(|steps| &steps.list);
    let rows: Vec<_> = steps
        .map(|step| vec![step.name.to_string(), step.progress.name().to_owned(), step.attempt.to_string()])
        .collect();
    if !rows.is_empty() {
        print::table(&["STEP", "STATE", "ATTEMPT"], rows)?;
    }
    Ok(true)
}

async fn resolve(engine: &Engine, resolve: Resolve, json: bool, asks: Asks) -> Result<bool, Failure> {
    let key = Key::new(&resolve.name.scope, &resolve.name.key)?;
    let with = resolution(&key, &resolve)?;
    let Some(view) = engine.lookup(&key).await? else { return absent(json) };
    if view.state != StateView::Indeterminate {
        done(json, "not indeterminate")?;
        return Ok(false);
    }
    let act = if with == Resolution::Release { "Release" } else { "Complete" };
    asks.confirm(&format!("{act} {key}, attempt {}?", view.attempt))?;
    match engine.settle(&view, with, &operator()).await? {
        Resolved::Resolved => done(json, "resolved"),
        Resolved::UnsettledStep { step } => {
            done(json, &format!("not resolved: settle the step {step} first"))?;
            Ok(false)
        }
        Resolved::NotIndeterminate => {
            done(json, "not indeterminate: it has changed since")?;
            Ok(false)
        }
    }
}

fn resolution(key: &Key, resolve: &Resolve) -> Result<Resolution, Failure> {
    let retention = resolve.retention;
    let refused = |error: &dyn std::fmt::Display| Failure::Outcome(error.to_string());
    if let Some(text) = &resolve.with.outcome {
        serde_json::from_str::<serde_json::Value>(text).map_err(|error| refused(&error))?;
        let write = |bytes: &mut Vec<u8>| bytes.extend_from_slice(text.as_bytes());
        return Ok(Resolution::Complete { outcome: SealedOutcome::seal(key, PayloadKind::Json, write), retention });
    }
    let Some(status) = resolve.with.http_status else { return Ok(Resolution::Release) };
    let status = status.try_into().map_err(|error| refused(&error))?;
    let content_type = resolve.http_content_type.parse().map_err(|error| refused(&error))?;
    let response = RecordedResponse::new(status, resolve.http_body.clone());
    let response = response.header(actix_web::http::header::CONTENT_TYPE, content_type);
    Ok(Resolution::Complete { outcome: response.seal(key), retention })
}

async fn remove(engine: &Engine, name: &Name, json: bool, asks: Asks) -> Result<bool, Failure> {
    let key = Key::new(&name.scope, &name.key)?;
    asks.confirm(&format!("Remove {key}? A retry then runs its operation again."))?;
    match engine.remove(&key).await? {
        Removed::Removed => done(json, "removed"),
        Removed::Absent => absent(json),
    }
}

async fn erase(engine: &Engine, scope: &str, json: bool, asks: Asks) -> Result<bool, Failure> {
    asks.confirm(&format!("Remove all records of the scope {scope}? Retries then run their operations again."))?;
    let bar = spinner("Removing");
    let removed = engine.erase_scope(scope).await;
    bar.finish_and_clear();
    count(json, removed?)
}

async fn purge(engine: &Engine, json: bool) -> Result<bool, Failure> {
    let (bar, mut removed) = (spinner("Purging"), 0);
    loop {
        let purged = engine.purge(PURGED_AT_ONCE).await.inspect_err(|_| bar.finish_and_clear())?;
        removed += purged.removed as u64;
        bar.set_message(format!("Purging: {removed} removed"));
        if !purged.more {
            bar.finish_and_clear();
            return count(json, removed);
        }
    }
}

/// Visible only on a terminal.
fn spinner(text: &'static str) -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_message(text);
    bar.enable_steady_tick(std::time::Duration::from_millis(200));
    bar
}

fn count(json: bool, removed: u64) -> Result<bool, Failure> {
    if json {
        print::json(&json!({ "removed": removed }))?
    } else {
        print::line(&format!("{removed} removed"))?
    }
    Ok(true)
}
