//! Prints tables for people and JSON for programs.

use std::io::{self, Write as _};
use std::time::Duration;

use comfy_table::{Table, presets};
use oncekey::backend::{RecordView, StateName, StateView};
use serde_json::{Value, json};

pub(crate) fn line(text: &str) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{text}")
}

pub(crate) fn json(value: &Value) -> io::Result<()> {
    line(&value.to_string())
}

pub(crate) fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> io::Result<()> {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(head);
    rows.into_iter().for_each(|row| {
        table.add_row(row);
    });
    line(&table.trim_fmt())
}

fn span(duration: Duration) -> String {
    humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string()
}

/// Returns how long ago the claim was made.
fn age(view: &RecordView) -> Option<Duration> {
    view.claimed_at().map(|at| view.read_at.left(at))
}

fn stuck_step(view: &RecordView) -> Option<&str> {
    view.steps.as_ref()?.unsettled(view.read_at).map(|step| step.name.as_str())
}

pub(crate) const HEAD: [&str; 6] = ["SCOPE", "KEY", "STATE", "ATTEMPT", "CLAIMED", "NOTE"];

/// Returns a record as one line of a table.
pub(crate) fn row(view: &RecordView) -> Vec<String> {
    let note = match (&view.state, stuck_step(view)) {
        (StateView::Indeterminate, Some(step)) => format!("step {step} is stuck"),
        (StateView::Indeterminate, None) => match view.lapsed_at {
            Some(at) => format!("lease lapsed {} ago", span(view.read_at.left(at))),
            None => String::new(),
        },
        (StateView::InProgress { lease_left }, _) => format!("lease holds for {}", span(*lease_left)),
        (StateView::Completed { expires_in, .. } | StateView::Released { expires_in }, _) => {
            format!("kept for {}", span(*expires_in))
        }
    };
    vec![
        view.key.scope().to_owned(),
        view.key.idempotency_key().to_owned(),
        StateName::of(&view.state).name().to_owned(),
        view.attempt.to_string(),
        age(view).map_or_else(|| "unknown".to_owned(), |age| format!("{} ago", span(age))),
        note,
    ]
}

/// Returns a record as JSON. Times are in milliseconds. It does not contain an outcome's content.
pub(crate) fn record(view: &RecordView) -> Value {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let steps = view.steps.iter().flat_map(|steps| &steps.list).map(|step| {
        json!({
            "name": step.name.as_str(),
            "state": step.progress.name(),
            "attempt": step.attempt.get(),
            "stuck": step.is_unsettled(view.read_at),
            "began_ms_ago": millis(view.read_at.left(step.began_at)),
        })
    });
    let mut record = json!({
        "scope": view.key.scope(),
        "key": view.key.idempotency_key(),
        "state": StateName::of(&view.state).name(),
        "attempt": view.attempt.get(),
        "fencing_token": view.token.get(),
        "claimed_ms_ago": age(view).map(millis),
        "lapsed_ms_ago": view.lapsed_at.map(|at| millis(view.read_at.left(at))),
        "steps": steps.collect::<Vec<_>>(),
    });
    match &view.state {
        StateView::InProgress { lease_left } => record["lease_left_ms"] = millis(*lease_left).into(),
        StateView::Completed { expires_in, .. } | StateView::Released { expires_in } => {
            record["expires_in_ms"] = millis(*expires_in).into();
        }
        StateView::Indeterminate => {}
    }
    record
}
